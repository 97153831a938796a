"""From a call's attributes to the windows it is charged to: cached, because callers repeat themselves."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from handlers.enforcer.calendar import EPOCH
from handlers.enforcer.catalogue import Catalogue, Match, counts
from handlers.enforcer.windows import WindowIndex, WindowRef
from schemas.base import ATTRIBUTION_FIELDS

UNITS = ("cost", "tokens", "requests")
CallKey = tuple[str | None, ...]
CALL_FIELDS = ("provider", "model", *ATTRIBUTION_FIELDS)


def call_key(call: Any) -> CallKey:
    """The attributes that decide which budgets apply, of a request or an event."""
    return (
        call.provider,
        call.model,
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


@dataclass(slots=True)
class Plan:
    """The budgets that apply to one set of attributes; ``refs`` are their windows in [``since``, ``until``)."""

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

    def point(self, refs: list[WindowRef]) -> None:
        """Make ``refs`` the windows of this plan."""
        self.refs = refs
        self.window_ids = [ref.window_id for ref in refs]
        self.window_array = "{" + ",".join(map(str, self.window_ids)) + "}"
        self.units = [UNITS.index(match.budget.unit) for match in self.matches]

    def current(self, at: datetime) -> bool:
        """Whether ``refs`` are the windows of ``at``."""
        return self.since is not None and self.since <= at and (self.until is None or at < self.until)


class Planner:
    """Plans of one org at one catalogue version; bounded by ``limit`` sets of attributes."""

    def __init__(self, catalogue: Catalogue, index: WindowIndex, limit: int) -> None:
        self.catalogue = catalogue
        self._index = index
        self._limit = limit
        self._plans: dict[CallKey, Plan] = {}

    def plan(self, key: CallKey) -> Plan:
        """The plan of a key; its refs may be of another time."""
        found = self._plans.get(key)
        if found is None:
            if len(self._plans) >= self._limit:
                self._plans.clear()
            found = self._plans[key] = self._make(key)
        return found

    def resolve(self, plan: Plan, at: datetime) -> list[Match]:
        """Point ``plan`` at the windows of ``at``; returns the matches whose window this agent does not know yet."""
        if plan.current(at):
            return []
        missing: list[Match] = []
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
        plan.since = max((r.starts_at for r in refs), default=at)
        plan.until = min((r.ends_at for r in refs if r.ends_at is not None), default=None)
        if not refs:
            plan.since = datetime.min.replace(tzinfo=at.tzinfo)
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
        named = {field: call[field] for field in ATTRIBUTION_FIELDS if call[field] is not None}
        matches = self.catalogue.matches(call)
        since = max((match.budget.counting_since for match in matches), default=EPOCH)
        return Plan(matches, msgspec.json.encode(named).decode(), [], counts_from=since)
