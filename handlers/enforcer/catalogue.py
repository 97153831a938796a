"""Which budgets apply to a call: an org's budgets as an index, reloaded whenever its version changes (R2)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from handlers.enforcer.ledger import effective_limit
from handlers.org_settings import OrgSettings
from store import budgets as budget_store
from store import catalogue as catalogue_store
from store.budgets import BudgetRow
from store.catalogue import Brake, Raise
from store.pool import Connection

# The attribute of a call that names the entity of each budget type.
ENTITY_FIELD: Final[dict[str, str]] = {
    "team": "team_id",
    "user": "user_id",
    "project": "project_id",
    "feature": "feature",
    "agent": "agent_id",
    "session": "session_id",
    "task": "task_id",
    "environment": "environment",
    "cost_center": "cost_center",
}
EVERY: Final = "*"


@dataclass(frozen=True, slots=True)
class Match:
    """A budget that applies to a call, and the entity whose window is charged."""

    budget: BudgetRow
    entity_id: str


class Catalogue:
    """An immutable snapshot of everything an org's decisions are made from, at one version."""

    def __init__(
        self,
        org: str,
        version: int,
        rows: list[BudgetRow],
        settings: dict[str, Any],
        *,
        raises: Sequence[Raise] = (),
        brakes: Sequence[Brake] = (),
        members: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.org = org
        self.version = version
        self.settings = settings
        self.org_settings = OrgSettings.of(settings)
        self.brakes = tuple(brakes)
        self.members: Mapping[str, tuple[str, ...]] = members or {}
        self.raises: dict[tuple[str, str], list[Raise]] = {}
        for found in raises:
            self.raises.setdefault((found.budget_id, found.entity_id), []).append(found)
        self.by_id = {row.budget_id: row for row in rows}
        self._global = [row for row in rows if row.active and row.type == "global"]
        self._scoped: dict[tuple[str, str], list[BudgetRow]] = {}
        for row in rows:
            if row.active and row.type != "global":
                self._scoped.setdefault((row.type, row.entity_id), []).append(row)

    def raised(self, budget_id: str, entity_id: str, at: datetime) -> int:
        """By how much overrides raise a budget's limit for an entity at ``at``, in the budget's unit."""
        if not self.raises:
            return 0
        found = self.raises.get((budget_id, entity_id), ())
        return sum(r.amount for r in found if r.starts_at <= at < r.ends_at)

    def limit(self, budget: BudgetRow, entity_id: str, carry: int, at: datetime) -> int:
        """The effective limit of a window at ``at``."""
        return effective_limit(budget, carry, self.raised(budget.budget_id, entity_id, at))

    def unchanged_around(self, at: datetime) -> tuple[datetime | None, datetime | None]:
        """The time around ``at`` in which no override begins or ends: since (inclusive) and until, None: unbounded."""
        edges = [edge for found in self.raises.values() for r in found for edge in (r.starts_at, r.ends_at)]
        since = max((edge for edge in edges if edge <= at), default=None)
        return since, min((edge for edge in edges if edge > at), default=None)

    def matches(self, call: dict[str, str | None]) -> list[Match]:
        """Active budgets that apply to a call with these attributes (with ``provider`` and ``model``), by id."""
        found = [m for m in self._candidates(call) if filters_match(m.budget.filters, call)]
        return sorted(found, key=lambda m: (m.budget.budget_id, m.entity_id))

    def _candidates(self, call: dict[str, str | None]) -> Iterator[Match]:
        for row in self._global:
            yield Match(row, EVERY)
        for kind, field in ENTITY_FIELD.items():
            entity = call.get(field)
            if entity is None:
                continue
            for named in (entity, EVERY) if entity != EVERY else (EVERY,):
                for row in self._scoped.get((kind, named), ()):
                    yield Match(row, entity)


def filters_match(filters: dict[str, str], call: dict[str, str | None]) -> bool:
    """Whether every filter matches; ``*`` in a filter stands for any text, a missing attribute matches nothing."""
    for field, pattern in filters.items():
        value = call.get(field)
        if value is None or not pattern_matches(pattern, value):
            return False
    return True


def pattern_matches(pattern: str, text: str) -> bool:
    """Whether a filter's pattern matches: only ``*`` is special; store.sql.like_pattern says the same in SQL.

    Linear, unlike a regular expression: patterns come from callers.
    """
    if EVERY not in pattern:
        return pattern == text
    first, *middle, last = pattern.split(EVERY)
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def counts(budget: BudgetRow, charged_at: datetime) -> bool:
    """Whether a budget counts a charge of that time: a new budget counts from its creation (R4)."""
    return charged_at >= budget.counting_since


class Catalogues:
    """The newest known catalogue of each org; bounded by ``limit`` orgs."""

    def __init__(self, limit: int = 10_000) -> None:
        self._known: dict[str, Catalogue] = {}
        self._limit = limit

    def known(self, org: str) -> Catalogue | None:
        """The cached catalogue, which may be stale: its version is compared under the lock before it decides."""
        return self._known.get(org)

    async def reload(self, connection: Connection, org: str) -> Catalogue:
        """Read the catalogue in one snapshot, under the shared lock that the caller's transaction takes here."""
        version = await budget_store.lock_shared(connection, org)
        rows = await budget_store.load(connection, org)
        settings = await budget_store.load_settings(connection, org)
        raises = await catalogue_store.load_raises(connection, org)
        brakes = await catalogue_store.load_brakes(connection, org)
        members = await catalogue_store.load_members(connection, org)
        if len(self._known) >= self._limit:
            self._known.clear()
        catalogue = Catalogue(org, version, rows, settings, raises=raises, brakes=brakes, members=members)
        self._known[org] = catalogue
        return catalogue
