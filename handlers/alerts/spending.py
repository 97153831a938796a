"""What the money of a window went to, and what could be done about it: figures for those who are told of an alert.

Recommendations are computed from what was used: each names what, and how much of it. Nothing here is advice in general.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Final

import msgspec

from handlers.alerts.notes import Note
from handlers.alerts.words import amount_words, day_words
from handlers.context import Services
from handlers.cost.org_prices import Prices
from handlers.cost.price import Quantities, QuantityError, price
from handlers.currency.exchange import half_even
from handlers.enforcer.preferences import preferences_of
from schemas.money import format_cost
from store import budgets as budget_store
from store import spend as spend_store
from store import windows as window_store
from store.budgets import BudgetRow
from store.pool import Connection
from store.spend import FeatureSpend
from store.windows import WindowRow

# Sums read for one message: features x models. The rest of a window is small change.
SUMS_MAX: Final = 500
_OTHERS: Final = "(no feature named)"
# Below this share of a window's cost, unreserved usage is not worth a word.
_UNRESERVED_PERCENT_MIN: Final = 5


@dataclass(frozen=True, slots=True)
class TopFeature:
    """A feature, what it cost (decimal), and its share of the window in percent."""

    feature: str
    cost: str
    percent: int


@dataclass(frozen=True, slots=True)
class Spending:
    """Of the window an alert is about, as far as it is known."""

    top_features: list[TopFeature] = field(default_factory=list[TopFeature])
    recommendations: list[str] = field(default_factory=list[str])
    currency: str = "USD"
    timezone: str = "UTC"


async def spending_of(services: Services, connection: Connection, org: str, note: Note, now: datetime) -> Spending:
    """What is known of the window of an alert; nothing where it is about none."""
    if note.budget_id is None or note.window_id is None:
        return Spending()
    budget = await budget_store.find(connection, org, note.budget_id)
    window = (await window_store.by_id(connection, org, [note.window_id])).get(note.window_id)
    if budget is None or window is None:
        return Spending()
    exchange = await services.books.refresh(connection, org)
    # Of a budget that counts no money, what its calls cost in the org's own currency.
    counts = budget.unit == "cost" and budget.currency is not None
    currency = budget.currency if counts and budget.currency else services.org_settings(org).currency
    rates = exchange.into(currency, revision=window.fx_revision or 0) if counts else exchange.into(currency)
    sums = await spend_store.by_feature(
        connection,
        budget,
        entity_id=window.entity_id,
        starts_at=max(window.starts_at, budget.counting_since - timedelta(minutes=15)),
        ends_at=window.ends_at,
        rates=rates,
        limit=SUMS_MAX,
    )
    advice = [
        cheaper_model(budget, sums, services.prices(budget.org_id), at=now, currency=currency, rates=rates),
        pace(budget, window, now),
        unreserved(sums, currency),
    ]
    return Spending(
        top_features=top_features(sums, services.limits.top_features_max),
        recommendations=[text for text in advice if text is not None],
        currency=currency,
        timezone=budget.timezone,
    )


def top_features(sums: Sequence[FeatureSpend], most: int) -> list[TopFeature]:
    """The features that cost most."""
    by_feature: dict[str, int] = {}
    for row in sums:
        name = row.feature or _OTHERS
        by_feature[name] = by_feature.get(name, 0) + row.cost
    total = sum(by_feature.values())
    ranked = sorted(by_feature.items(), key=lambda item: (-item[1], item[0]))[:most]
    return [TopFeature(name, format_cost(cost), cost * 100 // total) for name, cost in ranked if cost > 0]


def cheaper_model(
    budget: BudgetRow,
    sums: Sequence[FeatureSpend],
    cards: Prices,
    *,
    at: datetime,
    currency: str,
    rates: Mapping[str, Fraction],
) -> str | None:
    """What the costliest feature and model would have cost on the cheapest model that the budget's policy names."""
    if not sums or sums[0].cost <= 0:
        return None
    costliest = sums[0]
    found: list[tuple[int, str]] = []
    for preference in preferences_of([budget], costliest.provider):
        cost = same_tokens(costliest, cards, preference.provider, preference.model, at=at, rates=rates)
        if cost is not None and cost < costliest.cost:
            found.append((cost, preference.model))
    if not found:
        return None
    cost, model = min(found)
    feature = "Calls that name no feature" if costliest.feature is None else f"Feature {costliest.feature}"
    paid, instead = (amount_words(format_cost(c), "cost", currency) for c in (costliest.cost, cost))
    saved = (costliest.cost - cost) * 100 // costliest.cost
    return f"{feature} on {costliest.model} cost {paid}. The same tokens on {model}: about {instead} ({saved}% less)."


def same_tokens(
    row: FeatureSpend, cards: Prices, provider: str, model: str, *, at: datetime, rates: Mapping[str, Fraction]
) -> int | None:
    """Nanos that the same tokens cost on another model, at the rates of a call of average length; None: not priced.

    ``rates`` is what one unit of each currency is in that of the answer.
    """
    card = cards.resolve(provider, model, at)
    if card is None or card.currency not in rates:
        return None
    average = card.rates_for(row.prompt_tokens // max(1, row.requests))
    used = Quantities(
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        cache_read_tokens=row.cache_read_tokens,
        cache_write_tokens=row.cache_write_tokens,
        reasoning_tokens=row.reasoning_tokens,
        requests=row.requests,
    )
    try:
        cost = price(msgspec.structs.replace(card, rates=average, tiers=()), used).cost_nanos
        worth = rates[card.currency]
        return None if cost is None else half_even(cost * worth.numerator, worth.denominator)
    except QuantityError:
        return None


def pace(budget: BudgetRow, window: WindowRow, now: datetime) -> str | None:
    """When the limit is reached if spending goes on as it did since the window, or the budget, began."""
    since = max(window.starts_at, budget.counting_since)
    elapsed = now - since
    left = budget.base_limit + window.carry - window.spent
    if window.ends_at is None or window.spent <= 0 or left <= 0 or elapsed <= timedelta(0) or now >= window.ends_at:
        return None
    # Further than this is later than any window ends.
    if left > window.spent * 1000:
        return None
    reached = now + elapsed * left // window.spent
    if reached >= window.ends_at:
        return None
    early = window.ends_at - reached
    when = f"{early.days} days" if early.days >= 2 else f"{int(early.total_seconds() // 3600)} hours"
    return f"At this pace the limit is reached {day_words(reached, budget.timezone)}, {when} before the budget resets."


def unreserved(sums: Sequence[FeatureSpend], currency: str) -> str | None:
    """How much was spent by calls that asked nobody: no limit can stop those in time."""
    total = sum(row.cost for row in sums)
    outside = sum(row.unreserved_cost for row in sums)
    if total <= 0 or outside * 100 // total < _UNRESERVED_PERCENT_MIN:
        return None
    who = max(sums, key=lambda row: row.unreserved_cost)
    name = "calls that name no feature" if who.feature is None else f"feature {who.feature}"
    amount = amount_words(format_cost(outside), "cost", currency)
    return (
        f"{amount} ({outside * 100 // total}%) was spent without check_budget, most by {name}: "
        "only calls that reserve first can be stopped in time."
    )
