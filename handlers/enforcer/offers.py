"""What would fit now, for a call that was denied or is approved under pressure: the same model with fewer tokens, and
the models that the policies of its budgets prefer, each with what it may cost. Pure, on sums that were read before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from handlers.cost.org_prices import Prices
from handlers.cost.price import worst_case
from handlers.cost.rate_card import RateCard
from handlers.currency.exchange import Exchange, MissingRate
from handlers.enforcer.charging import needed, window_rate
from handlers.enforcer.estimate import Estimate, largest_completion
from handlers.enforcer.ledger import Sums
from handlers.enforcer.plan import UNITS, Plan
from schemas.budget import Alternative, CheckBudget
from schemas.money import COST_NANOS_MAX, format_cost


@dataclass(frozen=True, slots=True)
class Offer:
    """A call that fits, with the most completion tokens that do. ``cost`` in nanos of ``currency``."""

    provider: str
    model: str
    completion: int
    cost: int
    kind: Literal["smaller", "preferred", "fallback"]
    currency: str

    @property
    def reply(self) -> Alternative:
        """As callers see it."""
        return Alternative(
            provider=self.provider,
            model=self.model,
            max_completion_tokens=self.completion,
            estimated_cost=format_cost(self.cost),
            kind=self.kind,
            currency=self.currency,
        )


def instead(
    request: CheckBudget,
    found: Estimate,
    plan: Plan,
    sums: Mapping[int, Sums],
    *,
    cards: Prices,
    at: datetime,
    exchange: Exchange,
) -> list[Alternative]:
    """For a denied call: offers that keep the asked length first, cheapest first; then shorter ones, longest first."""
    offers = _others(found, plan, sums, cards, at, exchange)
    if found.card is not None and request.provider is not None and request.model is not None:
        same = _fitting(found.card, found, found.max_completion_tokens - 1, plan, sums, exchange)
        if same is not None:
            offers.append(Offer(request.provider, request.model, *same, "smaller", found.card.currency))
    offers.sort(key=lambda o: (-o.completion, _compared(o.cost, o.currency, found.currency, exchange)))
    return [offer.reply for offer in offers]


def cheaper(
    found: Estimate, plan: Plan, sums: Mapping[int, Sums], *, cards: Prices, at: datetime, exchange: Exchange
) -> list[Alternative]:
    """For an approval under pressure: preferred models that would cost less for the same length, cheapest first."""
    offers: list[tuple[int, Offer]] = []
    length = found.max_completion_tokens
    for preference, other in plan.offered:
        card = cards.resolve(preference.provider, preference.model, at)
        cost = None if card is None else worst_case(card, found.prompt_tokens, length)
        if card is None or cost is None:
            continue
        compared = _compared(cost, card.currency, found.currency, exchange)
        if found.cost is not None and compared >= found.cost:
            continue
        context, measures = card.context_window, (cost, found.tokens, 1)
        if (context is None or found.tokens <= context) and _has_room(other, measures, card.currency, sums, exchange):
            offer = Offer(preference.provider, preference.model, length, cost, preference.kind, card.currency)
            offers.append((compared, offer))
    return [offer.reply for _, offer in sorted(offers, key=lambda pair: pair[0])]


def _compared(cost: int, currency: str, into: str, exchange: Exchange) -> int:
    """A cost in the currency of another one, only to tell which is less; without a rate it is more than any."""
    try:
        return exchange.convert(cost, currency, into)
    except MissingRate:
        return COST_NANOS_MAX


def _has_room(
    plan: Plan, measures: tuple[int, int, int], currency: str, sums: Mapping[int, Sums], exchange: Exchange
) -> bool:
    """Whether every budget of a call has room for all of it."""
    if plan.refusal is not None:
        return False
    takes = needed(zip(plan.matches, plan.refs, strict=True), measures, currency, exchange)
    windows = [(sums.get(window_id), amount) for window_id, amount in takes.amounts.items()]
    return not takes.lacking and all(window is not None and window.fits(amount) for window, amount in windows)


def _others(
    found: Estimate, plan: Plan, sums: Mapping[int, Sums], cards: Prices, at: datetime, exchange: Exchange
) -> list[Offer]:
    offers: list[Offer] = []
    for preference, other in plan.offered:
        card = cards.resolve(preference.provider, preference.model, at)
        if card is None:
            continue
        fits = _fitting(card, found, found.max_completion_tokens, other, sums, exchange)
        if fits is not None:
            offers.append(Offer(preference.provider, preference.model, *fits, preference.kind, card.currency))
    return offers


def _fitting(
    card: RateCard, found: Estimate, completion: int, plan: Plan, sums: Mapping[int, Sums], exchange: Exchange
) -> tuple[int, int] | None:
    """The most completion tokens, at most ``completion``, that every budget has room for, and their cost; else None."""
    if plan.refusal is not None:
        return None
    if card.context_window is not None:
        completion = min(completion, card.context_window - found.prompt_tokens)
    for unit, match, ref in zip(plan.units, plan.matches, plan.refs, strict=True):
        window = sums.get(ref.window_id)
        if window is None:
            return None
        if not window.blocking:
            continue
        free = window.free()
        if UNITS[unit] == "cost":
            if match.budget.currency != card.currency:
                rate = window_rate(exchange, match, ref, card.currency)
                if rate is None:
                    return None
                free = rate.affordable(free)
            completion = largest_completion(card, found.prompt_tokens, free, completion)
        elif UNITS[unit] == "tokens":
            completion = min(completion, free - found.prompt_tokens)
        elif free < 1:
            return None
    if completion < 1:
        return None
    cost = worst_case(card, found.prompt_tokens, completion)
    return None if cost is None else (completion, cost)
