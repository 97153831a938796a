"""Budgets and windows as replies show them.

A window that nobody has opened yet is shown as the next call would open it: sums of zero, and what rolls over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from handlers.enforcer.answers import amount_text, window_reply
from handlers.enforcer.calendar import bounds
from handlers.enforcer.catalogue import EVERY, Match
from handlers.enforcer.drafts import Whole, rate_of
from handlers.enforcer.ledger import Sums, effective_limit, sums_of
from handlers.enforcer.windows import WindowRef, carry_into, key_of
from schemas.budget import Budget, BudgetFilters, BudgetWindow, OverridePolicy, Rollover
from store import catalogue as catalogue_store
from store import windows as window_store
from store.budgets import BudgetRow
from store.pool import Connection
from store.windows import WindowRow

# By how much overrides raise the limit of a budget (its id) for an entity.
Raised = Callable[[str, str], int]


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
    def full(self) -> bool:
        """Whether nothing more fits under the limit, whatever follows from that."""
        return self.sums.spent + self.sums.reserved >= self.sums.limit


async def raised_now(connection: Connection, org: str, now: datetime) -> Raised:
    """By how much overrides raise each budget's limit now, read from the database."""
    raises: dict[tuple[str, str], int] = {}
    for found in await catalogue_store.load_raises(connection, org):
        if found.starts_at <= now < found.ends_at:
            key = (found.budget_id, found.entity_id)
            raises[key] = raises.get(key, 0) + found.amount
    return lambda budget_id, entity_id: raises.get((budget_id, entity_id), 0)


async def present(connection: Connection, matches: Sequence[Match], now: datetime, raised: Raised) -> list[Present]:
    """The windows that hold ``now``, in the order of ``matches``. Creates none."""
    if not matches:
        return []
    keys = [key_of(match, now) for match in matches]
    found = await window_store.find(connection, matches[0].budget.org_id, sorted(set(keys)))
    shown: list[Present] = []
    for match, key in zip(matches, keys, strict=True):
        row = found.get(key)
        shown.append(
            await _unopened(connection, match, now, raised) if row is None else existing(match.budget, row, raised)
        )
    return shown


def existing(budget: BudgetRow, row: WindowRow, raised: Raised) -> Present:
    """A stored window."""
    return Present(budget, WindowRef.of(row), sums_of(budget, row, raised(budget.budget_id, row.entity_id)))


def own_window(budget: BudgetRow) -> Match | None:
    """The one window a budget has at a time; None where each entity has its own."""
    if budget.type != "global" and budget.entity_id == EVERY:
        return None
    return Match(budget, budget.entity_id)


async def budget_replies(connection: Connection, budgets: Sequence[Whole], now: datetime) -> list[Budget]:
    """Budgets with their present windows."""
    if not budgets:
        return []
    raised = await raised_now(connection, budgets[0].main.org_id, now)
    own = [own_window(whole.main) for whole in budgets]
    windows = iter(await present(connection, [match for match in own if match is not None], now, raised))
    return [
        budget_reply(whole, None if match is None else next(windows).reply)
        for whole, match in zip(budgets, own, strict=True)
    ]


def budget_reply(whole: Whole, window: BudgetWindow | None) -> Budget:
    """A budget as callers see it."""
    row = whole.main
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
        rate=None if whole.rate is None else rate_of(whole.rate),
        gate_id=row.gate_id,
        rollover=msgspec.convert({"policy": row.rollover_policy, "percent": row.rollover_percent}, Rollover),
        override_policy=_override_policy(row.override_policy),
        on_expiry=row.on_expiry,
        preferred_models=list(row.preferred_models),
        fallback_model=row.fallback_model,
        active=row.active,
        counting_since=row.counting_since,
        created_at=row.created_at,
        updated_at=row.updated_at,
        deleted_at=row.deleted_at,
        managed=row.managed,
        window=window,
    )


def _override_policy(stored: dict[str, Any]) -> OverridePolicy:
    return msgspec.convert(stored, OverridePolicy)


async def _unopened(connection: Connection, match: Match, now: datetime, raised: Raised) -> Present:
    budget = match.budget
    start, end = bounds(budget.period, budget.timezone, now)
    carry = await carry_into(connection, budget, match.entity_id, start)
    ref = WindowRef(0, budget.budget_id, match.entity_id, start, end)
    limit = effective_limit(budget, carry, raised(budget.budget_id, match.entity_id))
    return Present(budget, ref, Sums(0, limit, budget.blocking, 0, 0, 0, None))
