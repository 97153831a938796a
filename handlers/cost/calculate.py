"""Answers ``calculate_cost`` and ``get_pricing``: what the ledger would charge, computed alike, recorded nowhere."""

from datetime import datetime
from fractions import Fraction

import msgspec

from handlers.context import Context
from handlers.cost.price import LineItem, Priced, price
from handlers.cost.price_book import request_card
from handlers.cost.rate_card import KINDS, RateCard, Rates, Volume
from handlers.counting.requests import job_of, texts_of, without_texts
from handlers.moment import in_utc
from handlers.payloads.counts import counted, counts_of
from handlers.payloads.normalise import Normalised, Uncounted
from handlers.tracker.priced import version_of
from schemas.cost import (
    CalculateCost,
    CalculateCostReply,
    GetPricing,
    Pricing,
    PricingTier,
    VolumePricing,
    VolumeStep,
)
from schemas.currencies import known_currency
from schemas.errors import SignalError, invalid
from schemas.money import NANOS, AmountError, format_cost, parse_cost
from schemas.tokens import TokenCount
from schemas.usage import UsageLineItem
from signals import Route, route
from signals.cost import CALCULATE_COST, GET_PRICING
from store import prices as price_store

NO_CARD = Priced(None, (), ("model",))


async def calculate_cost(ctx: Context, request: CalculateCost) -> CalculateCostReply:
    """The cost as of the request's timestamp; an unknown model or kind is ``unpriced`` with a null cost."""
    request, count = await _counted(ctx, request)
    try:
        counts = counts_of(request)
    except Uncounted as stream:
        exact = ctx.services.limits.count_exact_chars_max
        counts = await counted(ctx.services.counter, request, stream, exact_chars=exact)
    at = in_utc(request.timestamp, "timestamp") or ctx.now()
    card = _stated(request) if request.rates else _known(ctx, request, counts, at)
    seen = await _seen(ctx, card, at)
    priced = NO_CARD if card is None else price(card, counts.quantities, seen)
    limits = ctx.services.model_limits(ctx.org).of(request.provider, request.model, card)
    return msgspec.structs.replace(_reply(counts, priced, card, at), context_limit=limits.window, count=count)


async def get_pricing(ctx: Context, request: GetPricing) -> Pricing:
    """The rate card as of the request's timestamp. Raises ``unpriced`` where no source prices the model."""
    at = in_utc(request.timestamp, "timestamp") or ctx.now()
    card = ctx.prices.resolve(
        request.provider,
        request.model,
        at,
        service_tier=request.service_tier,
        batch=request.batch,
        region=request.region,
    )
    if card is None:
        raise SignalError("unpriced", f"no price is known for {request.provider}/{request.model}", field="model")
    seen = await _seen(ctx, card, at)
    return Pricing(
        provider=card.provider,
        model=card.model,
        priced_at=at,
        currency=card.currency,
        rates=rates_on_wire(card.rates),
        list_rates=rates_on_wire(card.list_rates or card.rates),
        tiers=[
            PricingTier(
                above_prompt_tokens=tier.above,
                rates=rates_on_wire(tier.rates),
                list_rates=rates_on_wire(tier.list_rates or tier.rates),
            )
            for tier in card.tiers
        ],
        rules=list(card.rules),
        volumes=[_volume_on_wire(volume, seen.get(volume.name, 0)) for volume in card.volumes],
        price_source=card.source,
        price_version=card.version,
        context_window=card.context_window,
        max_output_tokens=card.max_output_tokens,
        notes=list(card.notes),
    )


async def _counted(ctx: Context, request: CalculateCost) -> tuple[CalculateCost, TokenCount | None]:
    """The request with the counts of its texts; None where it carries none."""
    texts = texts_of(request)
    if not texts:
        return request, None
    count = (
        await ctx.services.counter.count(job_of(ctx.services, request.provider, request.model, texts, count=True))
    ).count
    if request.usage is not None or request.prompt_tokens is not None:
        field = "usage" if request.usage is not None else "prompt_tokens"
        raise invalid("give the counts, the raw usage or the texts, not several of them", field=field)
    if "completion" in texts and request.completion_tokens is not None:
        raise invalid("give the count or the text, not both", field="completion_tokens")
    assert count is not None, "a count was asked for"
    completion = count.components.get("completion", request.completion_tokens or 0)
    request = without_texts(request)
    return msgspec.structs.replace(request, prompt_tokens=count.tokens, completion_tokens=completion), count


def _known(ctx: Context, request: CalculateCost, counts: Normalised, at: datetime) -> RateCard | None:
    return ctx.prices.resolve(
        request.provider,
        request.model,
        at,
        service_tier=request.service_tier or counts.service_tier,
        batch=counts.was_batch(stated=request.batch, tier=request.service_tier),
        region=request.region or counts.region,
    )


def _stated(request: CalculateCost) -> RateCard:
    """The rates that a request states itself."""
    known_currency(request.currency)
    for kind, text in request.rates.items():
        try:
            parse_cost(text)
        except AmountError as error:
            raise invalid(str(error), field=f"rates.{kind}") from None
    return request_card(request.provider, request.model, request.rates, request.currency)


async def _seen(ctx: Context, card: RateCard | None, at: datetime) -> dict[str, int]:
    """What the card's volume rules have seen of the month of ``at`` so far."""
    if card is None or not card.volumes:
        return {}
    month = at.date().replace(day=1)
    async with ctx.database.connection() as connection:
        found = await price_store.volumes(connection, ctx.org, [(volume.name, month) for volume in card.volumes])
    return {name: used for (name, _), used in found.items()}


def _volume_on_wire(volume: Volume, used: int) -> VolumePricing:
    shown = format_cost if volume.by_cost else str
    return VolumePricing(
        rule=volume.label,
        unit="list_cost" if volume.by_cost else "tokens",
        kinds=[kind for kind in KINDS if kind in volume.kinds],
        steps=[VolumeStep(above=shown(above), factor=_decimal(factor)) for above, factor in volume.steps],
        used=shown(used),
    )


def _decimal(factor: Fraction) -> str:
    """A factor as it was stated: at most nine decimals."""
    return format_cost(int(factor * NANOS))


def line_item_on_wire(item: LineItem) -> UsageLineItem:
    """A line item with its amounts as decimal strings."""
    rate, cost = item.rate_nanos_per_million, item.cost_nanos
    list_rate, list_cost = item.list_rate_nanos_per_million, item.list_cost_nanos
    return UsageLineItem(
        kind=item.kind,
        tokens=item.quantity,
        rate_per_million=None if rate is None else format_cost(rate),
        cost=None if cost is None else format_cost(cost),
        list_rate_per_million=None if list_rate is None else format_cost(list_rate),
        list_cost=None if list_cost is None else format_cost(list_cost),
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
        list_cost=None if priced.list_cost_nanos is None else format_cost(priced.list_cost_nanos),
        currency="USD" if card is None else card.currency,
        cost_status="unpriced" if priced.unpriced_kinds else "priced",
        line_items=[line_item_on_wire(item) for item in priced.line_items],
        priced_at=at,
        price_source=None if card is None else card.source,
        price_version=None if card is None else version_of(card, priced),
        priced_model=None if card is None else f"{card.provider}/{card.model}",
        price_rules=[] if card is None else list(card.rules),
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
