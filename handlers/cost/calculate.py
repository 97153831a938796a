"""Answers ``calculate_cost`` and ``get_pricing``: what the ledger would charge, computed alike, recorded nowhere."""

from datetime import datetime

import msgspec

from handlers.context import Context
from handlers.cost.price import LineItem, Priced, price
from handlers.cost.rate_card import RateCard, Rates
from handlers.moment import in_utc
from handlers.tracker.counts import counts_of
from handlers.tracker.normalise import Normalised
from schemas.cost import CalculateCost, CalculateCostReply, GetPricing, Pricing, PricingTier
from schemas.errors import SignalError
from schemas.money import format_cost
from schemas.usage import UsageLineItem
from signals import Route, route
from signals.cost import CALCULATE_COST, GET_PRICING

NO_CARD = Priced(None, (), ("model",))


async def calculate_cost(ctx: Context, request: CalculateCost) -> CalculateCostReply:
    """The cost as of the request's timestamp; an unknown model or kind is ``unpriced`` with a null cost."""
    counts = counts_of(request)
    at = in_utc(request.timestamp, "timestamp") or ctx.now()
    tier = request.service_tier or counts.service_tier
    card = ctx.prices.resolve(
        request.provider, request.model, at, service_tier=tier, batch=request.batch, region=request.region
    )
    priced = NO_CARD if card is None else price(card, counts.quantities)
    return _reply(counts, priced, card, at)


async def get_pricing(ctx: Context, request: GetPricing) -> Pricing:
    """The rate card as of the request's timestamp. Raises ``unpriced`` where no source prices the model."""
    at = in_utc(request.timestamp, "timestamp") or ctx.now()
    card = ctx.prices.resolve(
        request.provider, request.model, at, service_tier=request.service_tier, batch=request.batch
    )
    if card is None:
        raise SignalError("unpriced", f"no price is known for {request.provider}/{request.model}", field="model")
    return Pricing(
        provider=card.provider,
        model=card.model,
        priced_at=at,
        currency=card.currency,
        rates=rates_on_wire(card.rates),
        tiers=[PricingTier(above_prompt_tokens=tier.above, rates=rates_on_wire(tier.rates)) for tier in card.tiers],
        price_source=card.source,
        price_version=card.version,
        context_window=card.context_window,
        notes=list(card.notes),
    )


def line_item_on_wire(item: LineItem) -> UsageLineItem:
    """A line item with its amounts as decimal strings."""
    rate, cost = item.rate_nanos_per_million, item.cost_nanos
    return UsageLineItem(
        kind=item.kind,
        tokens=item.quantity,
        rate_per_million=None if rate is None else format_cost(rate),
        cost=None if cost is None else format_cost(cost),
    )


def rates_on_wire(rates: Rates) -> dict[str, str]:
    """The kinds that have a rate, as decimal strings per million units."""
    stated = msgspec.structs.asdict(rates).items()
    return {kind: format_cost(rate) for kind, rate in stated if rate is not None}


def _reply(counts: Normalised, priced: Priced, card: RateCard | None, at: datetime) -> CalculateCostReply:
    used = counts.quantities
    reported = counts.reported_cost_nanos
    return CalculateCostReply(
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
        total_tokens=used.prompt_tokens + used.completion_tokens,
        cost=None if priced.cost_nanos is None else format_cost(priced.cost_nanos),
        currency="USD" if card is None else card.currency,
        cost_status="unpriced" if priced.unpriced_kinds else "priced",
        line_items=[line_item_on_wire(item) for item in priced.line_items],
        priced_at=at,
        price_source=None if card is None else card.source,
        price_version=None if card is None else card.version,
        priced_model=None if card is None else f"{card.provider}/{card.model}",
        unpriced_kinds=list(priced.unpriced_kinds),
        reported_cost=None if reported is None else format_cost(reported),
        context_used=counts.context_tokens,
        context_limit=None if card is None else card.context_window,
        warnings=[*counts.flags, *(() if card is None else card.warnings)],
    )


ROUTES: tuple[Route[Context], ...] = (
    route(CALCULATE_COST, calculate_cost),
    route(GET_PRICING, get_pricing),
)
