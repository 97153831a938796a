"""What a check should come to, worked out apart from the code that decides: from rows, in the words of the contract."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from store.pool import Connection

Row = Mapping[str, Any]
_SAVED: Final = "SELECT * FROM {} WHERE org_id = $1"


@dataclass(frozen=True)
class Book:
    """Everything a decision may look at, as it was at ``at``."""

    at: datetime
    budgets: Sequence[Row]
    windows: Sequence[Row]
    overrides: Sequence[Row]
    brakes: Sequence[Row]
    members: Sequence[Row]

    @classmethod
    async def read(cls, connection: Connection, org: str, at: datetime) -> "Book":
        """Read it in one snapshot, and call it the state at ``at``."""
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            tables = ("budget", "budget_window", "override", "brake", "team_member")
            rows = [[dict(r) for r in await connection.fetch(_SAVED.format(table), org)] for table in tables]
            return cls(at, *rows)

    def window(self, budget: Row, entity: str, at: datetime) -> Row | None:
        """The window of a budget and entity that holds ``at``."""
        for row in self.windows:
            holds = row["starts_at"] <= at and (row["ends_at"] is None or at < row["ends_at"])
            if holds and (row["budget_id"], row["entity_id"]) == (budget["budget_id"], entity):
                return row
        return None

    def raised(self, budget: Row, entity: str, at: datetime) -> int:
        """What overrides add at ``at``."""
        return sum(
            row["amount"]
            for row in self.overrides
            if (row["budget_id"], row["entity_id"], row["status"]) == (budget["budget_id"], entity, "approved")
            and row["starts_at"] <= at < row["ends_at"]
        )


@dataclass(frozen=True)
class Call:
    """A check: what it takes in each unit, and for whom, users by their keys."""

    provider: str
    model: str
    amounts: Mapping[str, int]
    user: str | None
    team: str | None


@dataclass(frozen=True)
class Verdict:
    """``codes``: why it may be said to be refused, none: it is approved; ids of those that refuse, names of shadows."""

    codes: frozenset[str]
    full: frozenset[str]
    shadows: frozenset[str]
    retry_at: datetime | None = None


def blocks(budget: Row) -> bool:
    """Whether a budget refuses on its own whatever does not fit."""
    rate = budget["enforcement"] == "throttle" and budget["period"] in ("minute", "hourly")
    return budget["gate_id"] is None and (rate or budget["enforcement"] in ("block", "downgrade"))


def plain_limit(budget: Row, carry: int) -> int:
    """A limit without overrides."""
    return budget["base_limit"] + budget["base_limit"] * budget["overage_percent"] // 100 + carry


def verdict(before: Book, after: Book, call: Call) -> Verdict | None:
    """What a check made alone between two books must have come to; None where time changed it meanwhile."""
    teams = {row["team_id"] for row in before.members if row["user_id"] == call.user}
    team = next(iter(teams)) if call.team is None and len(teams) == 1 else call.team
    if any(_brakes(row, call, team) for row in before.brakes):
        return Verdict(frozenset({"kill_switch"}), frozenset(), frozenset())
    if call.team is not None and teams and call.team not in teams:
        return Verdict(frozenset({"attribution_mismatch"}), frozenset(), frozenset())
    entities = {"global": "*", "team": team, "user": call.user}
    looked: dict[tuple[str, str], tuple[Row, Row, int, int]] = {}
    for budget in before.budgets:
        entity = entities[budget["type"]]
        filtered = budget["filters"] != "{}" and f'"{call.model}"' not in budget["filters"]
        if entity is None or filtered or not budget["active"]:
            continue
        window = after.window(budget, entity, before.at)
        raised = before.raised(budget, entity, before.at)
        if window != after.window(budget, entity, after.at) or raised != after.raised(budget, entity, after.at):
            return None
        assert window is not None, "every window that a check looks at exists"
        was = before.window(budget, entity, before.at)
        taken = 0 if was is None else was["spent"] + was["reserved"]
        limit = plain_limit(budget, window["carry"]) + raised
        looked[str(budget["budget_id"]), entity] = (budget, window, taken + call.amounts[budget["unit"]], limit)
    return _decided(looked, call)


def _decided(looked: Mapping[tuple[str, str], tuple[Row, Row, int, int]], call: Call) -> Verdict:
    full: list[tuple[Row, Row, int]] = []
    shadows: set[str] = set()
    for (_, entity), (budget, window, taken, limit) in looked.items():
        if taken <= limit:
            continue
        takes = call.amounts[budget["unit"]] > 0
        gate = looked.get((str(budget["gate_id"]), entity))
        if takes and (blocks(budget) or (gate is not None and gate[2] > gate[3])):
            full.append((budget, window, limit))
        elif budget["enforcement"] == "shadow":
            shadows.add(budget["name"])
    ends = [window["ends_at"] for _, window, _ in full]
    never = None in ends or any(call.amounts[budget["unit"]] > limit for budget, _, limit in full)
    # Of several the reason is the one that resets last; two may reset at the same time.
    last = [budget for budget, window, _ in full if window["ends_at"] == (None if None in ends else max(ends))]
    return Verdict(
        frozenset("throttled" if b["enforcement"] == "throttle" else "budget_exceeded" for b in last),
        frozenset(str(budget["budget_id"]) for budget, _, _ in full),
        frozenset() if full else frozenset(shadows),
        None if never or not full else max(ends),
    )


def _brakes(brake: Row, call: Call, team: str | None) -> bool:
    of = {"org": "*", "team": team, "provider": call.provider, "model": call.model}
    return of[brake["scope"]] == brake["entity_id"]
