"""Which budgets a plan would be charged to, and how large their limits would have to be. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

from handlers.enforcer.answers import amount_text
from handlers.enforcer.catalogue import Catalogue, Match
from handlers.finance.projected import Cell, Model, Plan
from schemas.projection import ProjectedBudget
from store.budgets import BudgetRow

_NONE: Final = Fraction(0)
# The most days that one period can have.
_DAYS: Final = {"daily": 1, "weekly": 7, "monthly": 31, "yearly": 366}


@dataclass(slots=True)
class _Load:
    """What one budget would be charged in each month of the plan, in its own measure."""

    match: Match
    months: list[Fraction]
    models: list[str] = field(default_factory=list[str])


def budgets_of(
    catalogue: Catalogue,
    call: dict[str, str | None],
    plan: Plan,
    models: Sequence[Model],
    cells: Sequence[Cell],
    *,
    hours: int,
    into: Callable[[str], Fraction | None],
) -> list[ProjectedBudget]:
    """Every active budget of these calls, those that would break first.

    ``into`` says what the reply's currency is worth in a budget's; a budget in one without a rate is left out.
    """
    loads: dict[tuple[str, str], _Load] = {}
    for number, model in enumerate(models):
        name = model.share.model.strip()
        named = {**call, "provider": model.share.provider.strip().lower(), "model": name}
        for match in catalogue.matches(named):
            if match.budget.unit == "cost" and into(match.budget.currency or "USD") is None:
                continue
            key = (match.budget.budget_id, match.entity_id)
            load = loads.setdefault(key, _Load(match, [_NONE] * len(plan.months)))
            load.models.append(name)
            for month, amount in enumerate(_charged(match.budget, number, model, cells, into)):
                load.months[month] += amount
    found = [_shown(load, plan, hours) for load in loads.values()]
    return sorted(found, key=lambda budget: (not budget.would_break, budget.name, budget.entity_id))


def _charged(
    budget: BudgetRow, number: int, model: Model, cells: Sequence[Cell], into: Callable[[str], Fraction | None]
) -> list[Fraction]:
    if budget.unit == "requests":
        return [part.requests for part in model.parts]
    if budget.unit == "tokens":
        return [part.prompt + part.completion for part in model.parts]
    worth = into(budget.currency or "USD") or _NONE
    months = [_NONE] * len(model.parts)
    for cell in cells:
        if cell.model == number:
            months[cell.month] += cell.cost * worth
    return months


def _shown(load: _Load, plan: Plan, hours: int) -> ProjectedBudget:
    budget = load.match.budget
    a_day = max((amount / month.days for amount, month in zip(load.months, plan.months, strict=True)), default=_NONE)
    if budget.period == "total":
        needed = sum(load.months, _NONE)
    elif budget.period in _DAYS:
        needed = a_day * _DAYS[budget.period]
    else:
        needed = a_day / hours / (60 if budget.period == "minute" else 1)
    amount = -(-needed.numerator // needed.denominator)
    return ProjectedBudget(
        budget_id=budget.budget_id,
        name=budget.name,
        type=budget.type,
        entity_id=load.match.entity_id,
        unit=budget.unit,
        currency=budget.currency,
        period=budget.period,
        enforcement=budget.enforcement,
        limit=amount_text(budget, budget.base_limit),
        needed=amount_text(budget, amount),
        would_break=amount > budget.base_limit,
        models=load.models,
    )
