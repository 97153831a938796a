"""Budgets and windows as replies show them. A window that nobody has opened yet is shown with sums of zero."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from handlers.enforcer.answers import amount_text, window_reply
from handlers.enforcer.calendar import bounds
from handlers.enforcer.catalogue import EVERY, Match
from handlers.enforcer.ledger import Sums, effective_limit, sums_of
from handlers.enforcer.windows import WindowRef, key_of
from schemas.budget import Budget, BudgetFilters, BudgetWindow, OverridePolicy, Rollover
from store import windows as window_store
from store.budgets import BudgetRow
from store.pool import Connection
from store.windows import WindowRow


@dataclass(frozen=True, slots=True)
class Present:
    """The window of now of one budget and entity."""

    budget: BudgetRow
    ref: WindowRef
    sums: Sums

    @property
    def reply(self) -> BudgetWindow:
        """As callers see it."""
        return window_reply(self.budget, self.ref, self.sums)

    @property
    def denies(self) -> bool:
        """Whether any further call would be refused."""
        return self.budget.active and not self.sums.fits(1)


async def present(connection: Connection, matches: Sequence[Match], now: datetime) -> list[Present]:
    """The windows that hold ``now``, in the order of ``matches``. Creates none."""
    if not matches:
        return []
    keys = [key_of(match, now) for match in matches]
    found = await window_store.find(connection, matches[0].budget.org_id, keys)
    return [_present(m, found.get(key), now) for m, key in zip(matches, keys, strict=True)]


def existing(budget: BudgetRow, row: WindowRow) -> Present:
    """A stored window."""
    return Present(budget, WindowRef.of(row), sums_of(budget, row))


def own_window(budget: BudgetRow) -> Match | None:
    """The one window a budget has at a time; None where each entity has its own."""
    if budget.type != "global" and budget.entity_id == EVERY:
        return None
    return Match(budget, budget.entity_id)


async def budget_replies(connection: Connection, rows: Sequence[BudgetRow], now: datetime) -> list[Budget]:
    """Budgets with their present windows."""
    own = {row.budget_id: match for row in rows if (match := own_window(row)) is not None}
    windows = {p.budget.budget_id: p.reply for p in await present(connection, list(own.values()), now)}
    return [budget_reply(row, windows.get(row.budget_id)) for row in rows]


def budget_reply(row: BudgetRow, window: BudgetWindow | None) -> Budget:
    """A budget as callers see it."""
    return Budget(
        budget_id=row.budget_id,
        version=row.version,
        name=row.name,
        type=row.type,
        entity_id=row.entity_id,
        filters=msgspec.convert(row.filters, BudgetFilters),
        unit=row.unit,
        currency=row.currency,
        period=row.period,
        timezone=row.timezone,
        limit=amount_text(row, row.base_limit),
        overage_percent=row.overage_percent,
        enforcement=row.enforcement,
        alert_thresholds=list(row.alert_thresholds),
        rollover=msgspec.convert({"policy": row.rollover_policy, "percent": row.rollover_percent}, Rollover),
        override_policy=_override_policy(row.override_policy),
        on_expiry=row.on_expiry,
        preferred_models=list(row.preferred_models),
        fallback_model=row.fallback_model,
        active=row.active,
        counting_since=row.counting_since,
        created_at=row.created_at,
        updated_at=row.updated_at,
        window=window,
    )


def _override_policy(stored: dict[str, Any]) -> OverridePolicy:
    return msgspec.convert(stored, OverridePolicy)


def _present(match: Match, row: WindowRow | None, now: datetime) -> Present:
    if row is not None:
        return existing(match.budget, row)
    budget = match.budget
    start, end = bounds(budget.period, budget.timezone, now)
    ref = WindowRef(0, budget.budget_id, match.entity_id, start, end)
    return Present(budget, ref, Sums(0, effective_limit(budget, 0), budget.blocking, 0, 0, 0, None))
