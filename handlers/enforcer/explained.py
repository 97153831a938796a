"""Why a budget applies to a call or just misses it, and what it would do: in words that name the fields."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Final, get_args

from handlers.currency.told import shown_rate
from handlers.enforcer.answers import amount_text
from handlers.enforcer.catalogue import ENTITY_FIELD, EVERY, Catalogue, Match, filters_match, pattern_matches
from handlers.enforcer.drafts import Whole
from handlers.enforcer.shown import Present, budget_reply, own_window, present
from schemas.budget import AppliedBudget, BudgetType, Effect, NotApplied
from schemas.exchange import ExchangeRate
from store.budgets import BudgetRow
from store.pool import Connection

NEAR_MISSES_MAX: Final = 50
# What public list prices are in.
_DOLLAR: Final = "USD"
_TYPES: Final[dict[str, int]] = {name: i for i, name in enumerate(get_args(BudgetType))}
_EFFECTS: Final[dict[str, tuple[Effect, str]]] = {
    "block": ("blocks", "refuses what does not fit"),
    "downgrade": ("downgrades", "refuses what does not fit and offers cheaper models"),
    "warn": ("warns", "refuses nothing"),
    "shadow": ("records", "refuses nothing and records what it would refuse"),
}
# A budget's windows by the entity they belong to.
Gates = Mapping[tuple[str, str], Present]


@dataclass(frozen=True)
class Scene:
    """One look at an org's budgets: a connection under the catalogue lock, the catalogue, and PostgreSQL's clock."""

    connection: Connection
    catalogue: Catalogue
    now: datetime

    def raised(self, budget_id: str, entity_id: str) -> int:
        """By how much overrides raise a limit now."""
        return self.catalogue.raised(budget_id, entity_id, self.now)

    @cached_property
    def rates(self) -> Mapping[str, BudgetRow]:
        """The rates of budgets that are not deleted, by the budget's id."""
        rows = self.catalogue.by_id.values()
        return {row.gate_id: row for row in rows if row.gate_id is not None and row.deleted_at is None}

    async def present(self, matches: Sequence[Match]) -> list[Present]:
        """The windows of now."""
        return await present(self.connection, matches, self.now, self.raised)

    async def gates(self, found: Iterable[Present]) -> Gates:
        """The windows of the budgets that these rates wait for, by the rate's id and entity."""
        rates = [p for p in found if p.budget.gate_id in self.catalogue.by_id]
        matches = [Match(self.catalogue.by_id[p.budget.gate_id or ""], p.ref.entity_id) for p in rates]
        windows = await self.present(matches)
        return {(p.budget.budget_id, p.ref.entity_id): gate for p, gate in zip(rates, windows, strict=True)}


def order(budget: BudgetRow) -> tuple[int, str, str]:
    """Global budgets first, then by type as the contract lists them, then by name."""
    return _TYPES.get(budget.type, len(_TYPES)), budget.name, budget.budget_id


def applied_budget(scene: Scene, found: Present, gates: Gates, *, filled: bool) -> AppliedBudget:
    """A budget, its window, why it applies and what it does. ``filled``: the directory gave the call its team."""
    budget = found.budget
    rate = scene.rates.get(budget.budget_id)
    window = found.reply
    own = window if own_window(budget) is not None else None
    effect, text = _effect(found, rate, gates.get((budget.budget_id, found.ref.entity_id)))
    raised = scene.raised(budget.budget_id, found.ref.entity_id)
    return AppliedBudget(
        budget=budget_reply(Whole(budget, rate), own),
        window=window,
        why=_why(found, filled=filled),
        effect=effect,
        effect_text=text,
        gate_id=budget.gate_id or (None if rate is None else rate.budget_id),
        raised=amount_text(budget, raised),
        exchange_rates=_frozen_rates(scene.catalogue, found),
    )


def _frozen_rates(catalogue: Catalogue, found: Present) -> list[ExchangeRate]:
    """The rates of a window for dollars and the org's own currency; a window not opened yet would freeze today's."""
    budget, ref, exchange = found.budget, found.ref, catalogue.exchange
    if budget.unit != "cost" or budget.currency is None:
        return []
    revision = ref.fx_revision if ref.window_id else exchange.revision
    began = max(ref.starts_at, budget.counting_since).date()
    shown: list[ExchangeRate] = []
    for currency in sorted({_DOLLAR, catalogue.org_settings.currency} - {budget.currency}):
        rate = exchange.frozen(revision, currency, budget.currency)
        if rate is not None:
            shown.append(shown_rate(replace(rate, stale=exchange.stale(rate.as_of, began))))
    return shown


def denying(found: Iterable[Present], gates: Gates) -> Iterator[str]:
    """Ids of the budgets that would refuse any further call."""
    for p in found:
        gate = gates.get((p.budget.budget_id, p.ref.entity_id))
        binds = p.budget.blocking or (gate is not None and gate.budget.active and gate.full)
        if p.budget.active and binds and p.full:
            yield p.budget.budget_id


def near_misses(catalogue: Catalogue, call: Mapping[str, str | None]) -> list[NotApplied]:
    """Budgets for the entities of a call that do not apply to it, in the order of ``order``; the first of them."""
    missed: list[tuple[BudgetRow, str]] = []
    for row in catalogue.by_id.values():
        entity = EVERY if row.type == "global" else call.get(ENTITY_FIELD[row.type])
        if row.deleted_at is None and entity is not None and row.entity_id in (entity, EVERY):
            if not filters_match(row.filters, dict(call)):
                missed.append((row, _filtered(row, call)))
            elif not row.active:
                missed.append((row, "the budget is inactive"))
    missed.sort(key=lambda pair: order(pair[0]))
    return [
        NotApplied(budget_id=row.budget_id, name=row.name, type=row.type, entity_id=row.entity_id, reason=reason)
        for row, reason in missed[:NEAR_MISSES_MAX]
    ]


def _filtered(row: BudgetRow, call: Mapping[str, str | None]) -> str:
    """Which filters do not match, and what the call has instead."""
    texts: list[str] = []
    for field, pattern in sorted(row.filters.items()):
        value = call.get(field)
        if value is None:
            texts.append(f"it counts {field}={pattern} and the call names no {field}")
        elif not pattern_matches(pattern, value):
            texts.append(f"it counts {field}={pattern} and the call has {field}={value}")
    return "; ".join(texts)


def _why(found: Present, *, filled: bool) -> str:
    budget = found.budget
    if budget.type == "global":
        text = "global budget for every call"
    else:
        each = "" if own_window(budget) is not None else "each "
        text = f"{budget.type} budget for {each}{ENTITY_FIELD[budget.type]} '{found.ref.entity_id}'"
        if filled and budget.type == "team":
            text += " (the directory's team of the user)"
    if budget.filters:
        text += ", filters " + " ".join(f"{name}={value}" for name, value in sorted(budget.filters.items()))
    if budget.deleted_at is not None:
        return text + ", deleted"
    return text if budget.active else text + ", inactive"


def _effect(found: Present, rate: BudgetRow | None, gate: Present | None) -> tuple[Effect, str]:
    """What a budget does to a call that does not fit, and that in words."""
    budget = found.budget
    if not budget.active:
        return "nothing", "counts nothing and refuses nothing"
    if budget.enforcement != "throttle":
        return _EFFECTS[budget.enforcement]
    if gate is not None:
        now = "is used up, so it binds" if gate.full else "has room left, so it refuses nothing"
        return "throttles", f"binds only while budget '{gate.budget.name}' is used up; that one {now}"
    if rate is not None:
        unit = rate.currency if rate.unit == "cost" else rate.unit
        per = "minute" if rate.period == "minute" else "hour"
        at = f"{amount_text(rate, rate.base_limit)} {unit} per {per}"
        now = ", as it is now" if found.full else ""
        return "throttles", f"refuses nothing itself; used up{now}, calls go on at {at} ('{rate.name}')"
    if budget.blocking:
        return "throttles", "refuses what does not fit until the next window"
    return "warns", "refuses nothing: its rate is gone"
