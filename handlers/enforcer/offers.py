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
from handlers.enforcer.estimate import Estimate, largest_completion
from handlers.enforcer.ledger import Sums
from handlers.enforcer.plan import UNITS, Plan
from schemas.budget import Alternative, CheckBudget
from schemas.money import format_cost


@dataclass(frozen=True, slots=True)
class Offer:
    """A call that fits, with the most completion tokens that do."""

    provider: str
    model: str
    completion: int
    cost: int
    kind: Literal["smaller", "preferred", "fallback"]

    @property
    def reply(self) -> Alternative:
        """As callers see it."""
        return Alternative(
            provider=self.provider,
            model=self.model,
            max_completion_tokens=self.completion,
            estimated_cost=format_cost(self.cost),
            kind=self.kind,
        )


def instead(
    request: CheckBudget, found: Estimate, plan: Plan, sums: Mapping[int, Sums], *, cards: Prices, at: datetime
) -> list[Alternative]:
    """For a denied call: offers that keep the asked length first, cheapest first; then shorter ones, longest first."""
    offers = _others(found, plan, sums, cards, at)
    if found.card is not None and request.provider is not None and request.model is not None:
        same = _fitting(found.card, found, found.max_completion_tokens - 1, plan, sums)
        if same is not None:
            offers.append(Offer(request.provider, request.model, *same, "smaller"))
    offers.sort(key=lambda o: (-o.completion, o.cost))
    return [offer.reply for offer in offers]


def cheaper(found: Estimate, plan: Plan, sums: Mapping[int, Sums], *, cards: Prices, at: datetime) -> list[Alternative]:
    """For an approval under pressure: preferred models that would cost less for the same length, cheapest first."""
    offers: list[Offer] = []
    length = found.max_completion_tokens
    for preference, other in plan.offered:
        card = cards.resolve(preference.provider, preference.model, at)
        cost = None if card is None else worst_case(card, found.prompt_tokens, length)
        if card is None or cost is None or (found.cost is not None and cost >= found.cost):
            continue
        context = card.context_window
        if (context is None or found.tokens <= context) and _has_room(other, (cost, found.tokens, 1), sums):
            offers.append(Offer(preference.provider, preference.model, length, cost, preference.kind))
    return [offer.reply for offer in sorted(offers, key=lambda o: o.cost)]


def _has_room(plan: Plan, measures: tuple[int, int, int], sums: Mapping[int, Sums]) -> bool:
    """Whether every budget of a call has room for all of it."""
    windows = [(sums.get(window_id), unit) for window_id, unit in zip(plan.window_ids, plan.units, strict=True)]
    return plan.refusal is None and all(window is not None and window.fits(measures[u]) for window, u in windows)


def _others(found: Estimate, plan: Plan, sums: Mapping[int, Sums], cards: Prices, at: datetime) -> list[Offer]:
    offers: list[Offer] = []
    for preference, other in plan.offered:
        card = cards.resolve(preference.provider, preference.model, at)
        if card is None:
            continue
        fits = _fitting(card, found, found.max_completion_tokens, other, sums)
        if fits is not None:
            offers.append(Offer(preference.provider, preference.model, *fits, preference.kind))
    return offers


def _fitting(
    card: RateCard, found: Estimate, completion: int, plan: Plan, sums: Mapping[int, Sums]
) -> tuple[int, int] | None:
    """The most completion tokens, at most ``completion``, that every budget has room for, and their cost; else None."""
    if plan.refusal is not None:
        return None
    if card.context_window is not None:
        completion = min(completion, card.context_window - found.prompt_tokens)
    for unit, window_id in zip(plan.units, plan.window_ids, strict=True):
        window = sums.get(window_id)
        if window is None:
            return None
        if not window.blocking:
            continue
        free = window.free()
        if UNITS[unit] == "cost":
            completion = largest_completion(card, found.prompt_tokens, free, completion)
        elif UNITS[unit] == "tokens":
            completion = min(completion, free - found.prompt_tokens)
        elif free < 1:
            return None
    if completion < 1:
        return None
    cost = worst_case(card, found.prompt_tokens, completion)
    return None if cost is None else (completion, cost)
