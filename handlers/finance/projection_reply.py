"""A projection as it stands on the wire: every figure is a sum of the same cells. Pure."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from handlers.finance.conversion import Conversion
from handlers.finance.projected import Cell, Kind, Model, Plan
from handlers.finance.shares import decimal_text, percent_of, whole
from schemas.money import format_cost
from schemas.projection import ProjectedBudget, ProjectedItem, ProjectedModel, ProjectedPeriod, Projection

_NONE: Final = Fraction(0)
_YEAR_DAYS: Final = 365
# Conversations and requests are counted in parts of one where a percentage makes them so.
_COUNT_DECIMALS: Final = 4


def projection(
    plan: Plan,
    models: Sequence[Model],
    cells: Sequence[Cell],
    conversion: Conversion,
    budgets: list[ProjectedBudget],
    assumptions: list[str],
    observed_calls: int | None,
) -> Projection:
    """The reply."""
    total, total_list = sum(cell.cost for cell in cells), sum(cell.list_cost for cell in cells)
    unpriced = [f"{model.share.provider}/{model.share.model}" for model in models if model.unpriced]
    conversations = sum((plan.conversations(month) for month in plan.months), _NONE)
    first = plan.months[0]
    a_day = Fraction(sum(cell.cost for cell in cells if cell.month == 0), first.days)
    for currency in sorted({cell.kind.currency for cell in cells}):
        own = sum(cell.cost for cell in cells if cell.kind.currency == currency)
        conversion.saw(currency, whole(own / conversion.rate(currency)))
    return Projection(
        start=first.start,
        end=plan.months[-1].end,
        currency=conversion.currency,
        cost=None if unpriced else format_cost(total),
        priced_cost=format_cost(total),
        list_cost=None if unpriced else format_cost(total_list),
        discount=format_cost(total_list - total),
        per_day=format_cost(whole(a_day)),
        per_month=format_cost(whole(a_day * _YEAR_DAYS / 12)),
        per_year=format_cost(whole(a_day * _YEAR_DAYS)),
        per_conversation=format_cost(whole(total / conversations) if conversations else 0),
        conversations=decimal_text(conversations, _COUNT_DECIMALS),
        requests=decimal_text(sum((part.requests for m in models for part in m.parts), _NONE), _COUNT_DECIMALS),
        models=[_model(number, model, plan, cells) for number, model in enumerate(models)],
        periods=[_period(month, plan, models, cells) for month in range(len(plan.months))],
        unpriced=unpriced,
        budgets=budgets,
        currencies=conversion.told(),
        assumptions=assumptions,
        observed_calls=observed_calls,
    )


def _model(number: int, model: Model, plan: Plan, cells: Sequence[Cell]) -> ProjectedModel:
    own = [cell for cell in cells if cell.model == number]
    cost, card, share = sum(cell.cost for cell in own), model.card, model.share
    conversations = sum((plan.conversations(month) for month in plan.months), _NONE) * percent_of(share.percent)
    priced = not model.unpriced
    return ProjectedModel(
        provider=share.provider,
        model=share.model,
        percent=share.percent,
        requests=decimal_text(sum((part.requests for part in model.parts), _NONE), _COUNT_DECIMALS),
        prompt_tokens=whole(sum((part.prompt for part in model.parts), _NONE)),
        completion_tokens=whole(sum((part.completion for part in model.parts), _NONE)),
        cost=format_cost(cost) if priced else None,
        list_cost=format_cost(sum(cell.list_cost for cell in own)) if priced else None,
        cost_per_conversation=format_cost(whole(cost / conversations)) if priced and conversations else None,
        price_source=None if card is None else card.source,
        price_version=None if card is None else card.version,
        rules=sorted(model.rules),
        items=_items(own),
        unpriced_kinds=sorted(model.unpriced),
        notes=list(model.notes),
    )


def _items(own: Sequence[Cell]) -> list[ProjectedItem]:
    kinds: dict[Kind, list[Cell]] = {}
    for cell in own:
        kinds.setdefault(cell.kind, []).append(cell)
    return [
        ProjectedItem(
            kind=kind.name,
            quantity=whole(sum((cell.quantity for cell in found), _NONE)),
            rate_per_million=format_cost(kind.rate),
            list_rate_per_million=format_cost(kind.list_rate),
            rate_currency=kind.currency,
            cost=format_cost(sum(cell.cost for cell in found)),
            list_cost=format_cost(sum(cell.list_cost for cell in found)),
        )
        for kind, found in kinds.items()
    ]


def _period(number: int, plan: Plan, models: Sequence[Model], cells: Sequence[Cell]) -> ProjectedPeriod:
    month = plan.months[number]
    own = [cell for cell in cells if cell.month == number]
    return ProjectedPeriod(
        start=month.start,
        end=month.end,
        days=month.days,
        conversations=decimal_text(plan.conversations(month), _COUNT_DECIMALS),
        requests=decimal_text(sum((model.parts[number].requests for model in models), _NONE), _COUNT_DECIMALS),
        cost=format_cost(sum(cell.cost for cell in own)),
        list_cost=format_cost(sum(cell.list_cost for cell in own)),
    )
