"""From a call's attributes to the windows it is charged to: cached, because callers repeat themselves."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from handlers.cost.resolve import provider_key
from handlers.enforcer import gatekeeping
from handlers.enforcer.calendar import EPOCH
from handlers.enforcer.catalogue import Catalogue, Match, counts
from handlers.enforcer.preferences import Preference, preferences_of
from handlers.enforcer.windows import WindowIndex, WindowRef
from schemas.base import ATTRIBUTION_FIELDS
from schemas.budget import DenialReason
from store.budgets import BudgetRow

UNITS = ("cost", "tokens", "requests")
CallKey = tuple[str | None, ...]
CALL_FIELDS = ("provider", "model", *ATTRIBUTION_FIELDS)
USER = CALL_FIELDS.index("user_id")
_OFFERS_AGAIN: Final = timedelta(hours=1)


def call_key(call: Any) -> CallKey:
    """The attributes that decide which budgets apply, of a request or an event."""
    return (
        None if call.provider is None else provider_key(call.provider),
        None if call.model is None else call.model.strip(),
        call.user_id,
        call.team_id,
        call.project_id,
        call.feature,
        call.agent_id,
        call.session_id,
        call.task_id,
        call.environment,
        call.cost_center,
    )


# Budget and bounds of windows, by id.
Targets = dict[int, tuple[BudgetRow, WindowRef]]


@dataclass(slots=True)
class Plan:
    """The budgets that apply to one set of attributes; ``refs`` are their windows in [``since``, ``until``).

    ``refusal`` denies such a call whatever its budgets say; ``team_id`` is what the directory knows and the call left
    out; ``gates`` pairs a match with the match of its gate, for rates that bind only beyond another budget.
    """

    matches: list[Match]
    attribution: str
    refs: list[WindowRef]
    since: datetime | None = None
    until: datetime | None = None
    # Of refs, for the hot path: their ids, the same as a PostgreSQL array, and the index of each budget's unit.
    window_ids: list[int] = field(default_factory=list[int])
    window_array: str = "{}"
    units: list[int] = field(default_factory=list[int])
    # From then on every match counts; earlier charges have to be looked at one by one.
    counts_from: datetime = EPOCH
    # The one currency of its cost budgets; empty where none counts cost, None where they differ.
    currency: str | None = ""
    refusal: DenialReason | None = None
    team_id: str | None = None
    mismatch: bool = False
    warnings: list[str] = field(default_factory=list[str])
    gates: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    # The same call of models that the policies of these budgets would rather have, each with its own budgets.
    others: list[tuple[Preference, "Plan"]] = field(default_factory=list[tuple[Preference, "Plan"]])
    # Those of them whose windows are known: what may be offered.
    offered: list[tuple[Preference, "Plan"]] = field(default_factory=list[tuple[Preference, "Plan"]])
    # Every window a decision on this plan looks at: its own, and those of the other models' calls.
    looked_at: dict[int, tuple[BudgetRow, WindowRef]] = field(default_factory=dict[int, tuple[BudgetRow, WindowRef]])

    def point(self, refs: list[WindowRef]) -> None:
        """Make ``refs`` the windows of this plan."""
        self.refs = refs
        self.window_ids = [ref.window_id for ref in refs]
        self.window_array = "{" + ",".join(map(str, self.window_ids)) + "}"
        self.units = [UNITS.index(match.budget.unit) for match in self.matches]
        self.looked_at = {ref.window_id: (match.budget, ref) for match, ref in zip(self.matches, refs, strict=True)}

    def current(self, at: datetime) -> bool:
        """Whether ``refs`` are the windows of ``at``."""
        return self.since is not None and self.since <= at and (self.until is None or at < self.until)


class Planner:
    """Plans of one org at one catalogue version; bounded by ``limit`` sets of attributes."""

    def __init__(self, catalogue: Catalogue, index: WindowIndex, limit: int, *, others_max: int = 0) -> None:
        self.catalogue = catalogue
        self._index = index
        self._limit = limit
        self._others_max = others_max
        self._plans: dict[CallKey, Plan] = {}

    def plan(self, key: CallKey) -> Plan:
        """The plan of a key; its refs may be of another time."""
        found = self._plans.get(key)
        if found is None:
            if len(self._plans) >= self._limit:
                self._plans.clear()
            found = self._plans[key] = self._make(key)
            found.others = self._others(key, found)
        return found

    def resolve(self, plan: Plan, at: datetime, *, every_offer: bool = True) -> list[Match]:
        """Point ``plan`` at the windows of ``at``; returns the matches whose window this agent does not know yet.

        Without ``every_offer`` the models whose windows are not known are not offered, for an hour.
        """
        if plan.current(at):
            return []
        lacking = [self.resolve(other, at) for _, other in plan.others]
        missing = [match for found in lacking for match in found] if every_offer else []
        refs: list[WindowRef] = []
        for match in plan.matches:
            ref = self._index.find(match, at)
            if ref is None:
                missing.append(match)
            else:
                refs.append(ref)
        if missing:
            return missing
        plan.point(refs)
        plan.offered = [offer for offer, found in zip(plan.others, lacking, strict=True) if not found]
        for _, other in plan.offered:
            plan.looked_at |= other.looked_at
        looked_at = [ref for _, ref in plan.looked_at.values()]
        plan.since = max((r.starts_at for r in looked_at), default=datetime.min.replace(tzinfo=at.tzinfo))
        ends = [r.ends_at for r in looked_at if r.ends_at is not None]
        if len(plan.offered) < len(plan.others):
            ends.append(at + _OFFERS_AGAIN)
        plan.until = min(ends, default=None)
        return []

    def charged(self, plan: Plan, charged_at: datetime) -> tuple[list[int], list[int], list[Match]]:
        """Ids and units of the windows charged by something that happened then, and the matches without a window."""
        if charged_at >= plan.counts_from and not self.resolve(plan, charged_at):
            return plan.window_ids, plan.units, []
        pairs, missing = self.windows_of(plan, charged_at)
        return [r.window_id for _, r in pairs], [UNITS.index(m.budget.unit) for m, _ in pairs], missing

    def windows_of(self, plan: Plan, charged_at: datetime) -> tuple[list[tuple[Match, WindowRef]], list[Match]]:
        """Windows charged by something that happened at ``charged_at``, and the matches whose window is missing."""
        found: list[tuple[Match, WindowRef]] = []
        missing: list[Match] = []
        for match in plan.matches:
            if not counts(match.budget, charged_at):
                continue
            ref = self._index.find(match, charged_at)
            if ref is None:
                missing.append(match)
            else:
                found.append((match, ref))
        return found, missing

    def windows(self, window_ids: Iterable[int]) -> list[tuple[Match, WindowRef]]:
        """Budget and bounds of windows that this agent knows."""
        refs = [self._index.by_id(window_id) for window_id in window_ids]
        return [(Match(self.catalogue.by_id[ref.budget_id], ref.entity_id), ref) for ref in refs if ref is not None]

    def _make(self, key: CallKey) -> Plan:
        call: dict[str, str | None] = dict(zip(CALL_FIELDS, key, strict=True))
        found = gatekeeping.look(self.catalogue, call)
        if found.team_id is not None:
            call["team_id"] = found.team_id
        named = {field: call[field] for field in ATTRIBUTION_FIELDS if call[field] is not None}
        matches = self.catalogue.matches(call)
        since = max((match.budget.counting_since for match in matches), default=EPOCH)
        return Plan(
            matches,
            msgspec.json.encode(named).decode(),
            [],
            counts_from=since,
            currency=_currency(matches),
            refusal=found.refusal,
            team_id=found.team_id,
            mismatch=found.mismatch,
            warnings=found.warnings,
            gates=_gates(matches),
        )

    def _others(self, key: CallKey, plan: Plan) -> list[tuple[Preference, Plan]]:
        wanted = preferences_of([match.budget for match in plan.matches], key[0])[: self._others_max]
        return [
            (preference, self._make((preference.provider, preference.model, *key[2:])))
            for preference in wanted
            if (preference.provider, preference.model) != key[:2]
        ]


def _currency(matches: list[Match]) -> str | None:
    found = {match.budget.currency or "" for match in matches if match.budget.unit == "cost"}
    return None if len(found) > 1 else next(iter(found), "")


def _gates(matches: list[Match]) -> list[tuple[int, int]]:
    at = {(match.budget.budget_id, match.entity_id): i for i, match in enumerate(matches)}
    pairs = [(i, at.get((m.budget.gate_id or "", m.entity_id))) for i, m in enumerate(matches)]
    return [(i, gate) for i, gate in pairs if gate is not None]
