"""A usage event as it is stored: validated, counted, priced. Pure; the same for every way an event can arrive."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any, Final

import msgspec

from handlers.context import Limits
from handlers.cost.org_prices import Prices
from handlers.cost.price import PER, LineItem, Priced, Quantities, price
from handlers.cost.rate_card import RateCard
from handlers.cost.resolve import provider_key
from handlers.counting.limits import NO_ORG_LIMITS, OrgLimits
from handlers.org_settings import OrgSettings
from handlers.payloads.counts import counts_of
from handlers.payloads.normalise import Normalised
from schemas.currencies import known_currency
from schemas.errors import invalid
from schemas.money import CALL_COST_NANOS_MAX, AmountError, parse_call_cost
from schemas.usage import UsageEvent

_FIELDS: Final = [field.name for field in msgspec.structs.fields(UsageEvent)].index("metadata") + 1
# Appended by later releases. A retry of what an earlier one hashed must have the same hash: only what is used counts.
_LATER: Final = tuple(field.name for field in msgspec.structs.fields(UsageEvent)[_FIELDS:])
_PACK: Final = msgspec.msgpack.Encoder(order="deterministic").encode
REPORTED: Final = "reported"
TOO_LARGE: Final = "cost_too_large"
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
ORG_DEFAULTS: Final = OrgSettings()
# Of every provider that reports a cost with its counts.
PAYLOAD_CURRENCY: Final = "USD"
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)


class PricedEvent(msgspec.Struct, array_like=True, gc=False):
    """The columns of ``usage_event`` in order, and the payload hash. Costs in nanos; JSON columns as JSON text."""

    org_id: str
    id: str
    timestamp: datetime
    arrived_at: datetime
    provider: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    reasoning_tokens: int
    system_tokens: int
    audio_input_tokens: int
    audio_output_tokens: int
    web_searches: int
    service_tier: str | None
    region: str | None
    batch: bool
    count_method: str
    cost: int | None
    currency: str
    cost_status: str
    price_source: str | None
    price_version: str | None
    line_items: str
    reported_cost: int | None
    user_id: str | None
    team_id: str | None
    project_id: str | None
    feature: str | None
    agent_id: str | None
    session_id: str | None
    task_id: str | None
    environment: str | None
    cost_center: str | None
    tags: str | None
    request_id: str | None
    reservation_id: str | None
    trace_id: str | None
    latency_ms: float | None
    status: str
    error_code: str | None
    final: bool
    prefix_hashes: list[str] | None
    parent_id: str | None
    task_status: str | None
    metadata: str | None
    flags: list[str]
    payload_hash: bytes
    # Appended, with defaults: what an earlier release stored in the stream must stay readable.
    list_cost: int | None = None
    other_counts: str | None = None
    context_used: int | None = None
    context_limit: int | None = None
    # Of the org's prices at intake, to be priced again where they have changed by the time it is applied.
    price_revision: int = 0
    # What reported_cost is in; None: there is none, or an earlier release stored it, in dollars.
    reported_currency: str | None = None


_NOT_STORED: Final = ("payload_hash", "price_revision")
COLUMNS: Final = tuple(f.name for f in msgspec.structs.fields(PricedEvent) if f.name not in _NOT_STORED)
_COUNTS: Final = tuple(f.name for f in msgspec.structs.fields(Quantities) if f.name in COLUMNS)
_OTHER_COUNTS: Final = tuple(f.name for f in msgspec.structs.fields(Quantities) if f.name not in COLUMNS)
_NO_COUNTS: Final = Quantities()


columns_of: Final = attrgetter(*COLUMNS)


@dataclass(frozen=True, slots=True)
class Receipt:
    """A priced event, and what its sender is told besides."""

    event: PricedEvent
    context_used: int
    context_limit: int | None
    warnings: list[str]


def payload_hash(event: UsageEvent) -> bytes:
    """What tells a retry from another event under the same id: everything the sender said, however it was encoded."""
    try:
        packed = _PACK(msgspec.structs.astuple(event)[:_FIELDS])
        later = {name: getattr(event, name) for name in _LATER if getattr(event, name)}
        if later:
            packed += _PACK(later)
    except (OverflowError, RecursionError):
        field = "usage" if event.metadata is None else "metadata"
        raise invalid("is nested too deeply, or holds a whole number beyond 64 bits", field=field) from None
    return hashlib.blake2b(packed, digest_size=16).digest()


def priced(
    event: UsageEvent,
    *,
    org: str,
    event_id: str,
    arrived_at: datetime,
    cards: Prices,
    limits: Limits,
    settings: OrgSettings = ORG_DEFAULTS,
    model_limits: OrgLimits = NO_ORG_LIMITS,
    found: Normalised | None = None,
) -> Receipt:
    """Validate, count and price an event. Raises SignalError naming the field; nothing is stored then.

    ``Uncounted`` is raised for a stream without its counts; ``found`` are its counts once somebody has counted it.
    What the provider reported as its cost is the cost where the org's ``settings`` trust that provider.
    """
    timestamp = _time(event.timestamp, arrived_at, limits)
    _check_bounds(event, limits)
    if found is None:
        found = counts_of(event)
    tier = event.service_tier or found.service_tier
    card = cards.resolve(
        event.provider,
        event.model,
        timestamp,
        service_tier=tier,
        batch=found.was_batch(stated=event.batch, tier=event.service_tier),
        region=event.region or found.region,
    )
    cost = price(card, _billed(found.quantities, final=event.final)) if card is not None else None
    reported = _reported(event, found)
    believed = reported is not None and believes(settings, provider_key(event.provider))
    if reported is not None and believed:
        charged, cost, warnings = None, _as_reported(reported), list(found.flags)
    else:
        charged, warnings = card, _warnings(event, card, cost, found)
    if cost is not None and (cost.cost_nanos or 0) > CALL_COST_NANOS_MAX:
        raise invalid("makes the cost larger than that of any one call", field="completion_tokens")
    window = model_limits.of(event.provider, event.model, card).window
    columns = _columns(event, org, event_id, timestamp, arrived_at, found, charged, cost, reported, cards.revision)
    columns.context_limit = window
    if reported is not None:
        columns.reported_currency = event.currency if event.reported_cost is not None else PAYLOAD_CURRENCY
        columns.currency = columns.reported_currency if believed else columns.currency
    return Receipt(
        event=columns,
        context_used=found.context_tokens,
        context_limit=window,
        warnings=warnings,
    )


def _columns(
    event: UsageEvent,
    org: str,
    event_id: str,
    timestamp: datetime,
    arrived_at: datetime,
    found: Normalised,
    card: RateCard | None,
    cost: Priced | None,
    reported: int | None,
    revision: int,
) -> PricedEvent:
    used = found.quantities
    return PricedEvent(
        org,
        event_id,
        timestamp,
        arrived_at,
        provider_key(event.provider),
        event.model.strip(),
        used.prompt_tokens,
        used.completion_tokens,
        used.cache_read_tokens,
        used.cache_write_tokens,
        used.cache_write_1h_tokens,
        used.reasoning_tokens,
        found.system_tokens,
        used.audio_input_tokens,
        used.audio_output_tokens,
        used.web_searches,
        event.service_tier or found.service_tier,
        event.region or found.region,
        found.was_batch(stated=event.batch, tier=event.service_tier),
        found.count_method or event.count_method,
        cost.cost_nanos if cost is not None else None,
        card.currency if card is not None else event.currency,
        cost.cost_status if cost is not None else "unpriced",
        card.source if card is not None else _source(cost),
        version_of(card, cost) if card is not None else None,
        _line_items(cost.line_items) if cost is not None else "[]",
        reported,
        event.user_id,
        event.team_id,
        event.project_id,
        event.feature,
        event.agent_id,
        event.session_id,
        event.task_id,
        event.environment,
        event.cost_center,
        _json(event.tags),
        event.request_id,
        _reservation(event.reservation_id),
        event.trace_id,
        event.latency_ms,
        event.status,
        event.error_code,
        event.final,
        event.prefix_hashes,
        event.parent_id,
        event.task_status,
        _json(event.metadata),
        list(found.flags),
        payload_hash(event),
        cost.list_cost_nanos if cost is not None else None,
        _other_counts(used),
        found.context_tokens,
        None,
        revision,
    )


def priced_again(
    event: PricedEvent,
    prices: Prices,
    settings: OrgSettings = ORG_DEFAULTS,
    *,
    seen: Mapping[str, int] | None = None,
) -> PricedEvent:
    """The event at present prices of its own time: cost, line items and their sources; twice changes nothing more.

    A reported cost that the org believes stays the cost. ``seen`` is what rules with volume tiers have seen of the
    event's month before it, by rule name; left out: what they had seen when it was priced first.
    """
    reported = event.reported_cost
    if reported is not None and believes(settings, event.provider):
        if event.price_source == REPORTED:
            return msgspec.structs.replace(event, price_revision=prices.revision)
        currency = event.reported_currency or PAYLOAD_CURRENCY
        return _with_price(event, None, _as_reported(reported), currency, prices.revision)
    card = card_of(event, prices)
    if card is None:
        return _with_price(event, None, None, event.currency, prices.revision)
    cost = price(card, quantities_of(event), seen_before(event, card) if seen is None else seen)
    return _with_price(event, card, cost, card.currency, prices.revision)


_PRICE: Final = ("cost", "list_cost", "currency", "cost_status", "price_source", "price_version", "line_items")


def take_price(event: PricedEvent, source: PricedEvent) -> None:
    """Give an event the price of another, in place."""
    for name in (*_PRICE, "context_limit", "flags", "price_revision"):
        setattr(event, name, getattr(source, name))


def card_of(event: PricedEvent, prices: Prices) -> RateCard | None:
    """The rate card that holds for a stored event."""
    return prices.resolve(
        event.provider,
        event.model,
        event.timestamp,
        service_tier=event.service_tier,
        batch=event.batch,
        region=event.region,
    )


def seen_before(event: PricedEvent, card: RateCard) -> dict[str, int]:
    """What rules with volume tiers had seen of the month before an event, as far as its price version tells."""
    found: dict[str, int] = {}
    for volume in card.volumes:
        match = re.search(rf"(?:^|; ){re.escape(volume.name)}@\w+#(\d+)", event.price_version or "")
        if match is not None:
            found[volume.name] = int(match[1])
    return found


def version_of(card: RateCard, cost: Priced | None) -> str:
    """What a price can be computed again from: the card's sources and rules, and what volume rules had seen."""
    if cost is None or not cost.counted:
        return card.version
    seen = {name: before for name, before, _ in cost.counted}
    return "; ".join((card.version, *(f"{v.label}#{seen[v.name]}" for v in card.volumes)))


def _with_price(
    event: PricedEvent, card: RateCard | None, cost: Priced | None, currency: str, revision: int
) -> PricedEvent:
    flags = [flag for flag in event.flags if flag != TOO_LARGE]
    if cost is not None and (cost.cost_nanos or 0) > CALL_COST_NANOS_MAX:
        # At intake such an event is refused; one that is stored already is kept, without a price.
        cost, flags = Priced(None, cost.line_items, ("request",)), [*flags, TOO_LARGE]
    return msgspec.structs.replace(
        event,
        cost=None if cost is None else cost.cost_nanos,
        list_cost=None if cost is None else cost.list_cost_nanos,
        currency=currency,
        cost_status="unpriced" if cost is None else cost.cost_status,
        price_source=_source(cost) if card is None else card.source,
        price_version=None if card is None else version_of(card, cost),
        line_items="[]" if cost is None else _line_items(cost.line_items),
        # The org's own limits, known at intake, count for more than a card.
        context_limit=event.context_limit if card is None or event.context_limit else card.context_window,
        flags=flags,
        price_revision=revision,
    )


def quantities_of(event: PricedEvent) -> Quantities:
    """What a stored event used, to price it again."""
    other: dict[str, int] = msgspec.json.decode(event.other_counts) if event.other_counts else {}
    return _billed(Quantities(**{name: getattr(event, name) for name in _COUNTS}, **other), final=event.final)


def _billed(used: Quantities, *, final: bool) -> Quantities:
    """Parts of a call are no requests: what each request costs comes with the final one."""
    return used if final else msgspec.structs.replace(used, requests=0)


def _other_counts(used: Quantities) -> str | None:
    """The counts that have no column of their own, where there are any."""
    found = {name: getattr(used, name) for name in _OTHER_COUNTS if getattr(used, name) != getattr(_NO_COUNTS, name)}
    return msgspec.json.encode(found).decode() if found else None


def believes(settings: OrgSettings, provider: str) -> bool:
    """Whether an org takes what this provider reports as a call's cost (R16)."""
    if settings.reported_cost == "listed":
        return provider in map(provider_key, settings.reported_cost_providers)
    return settings.reported_cost == "always"


def _as_reported(nanos: int) -> Priced:
    """One line item of one call at the reported cost, so that this cost, too, is a quantity times a rate."""
    item = LineItem(kind="reported", quantity=1, rate_nanos_per_million=nanos * PER, cost_nanos=nanos)
    return Priced(line_items=(item,), cost_nanos=nanos, unpriced_kinds=())


def _source(cost: Priced | None) -> str | None:
    return None if cost is None else REPORTED


def _time(stated: datetime | None, arrived_at: datetime, limits: Limits) -> datetime:
    """R11: a time of its own, not after now plus the margin."""
    if stated is None:
        return arrived_at
    if stated < _EARLIEST:
        raise invalid("is before the year 2000", field="timestamp")
    if stated - arrived_at > timedelta(seconds=limits.timestamp_future_max_s):
        raise invalid(f"is more than {limits.timestamp_future_max_s} s in the future", field="timestamp")
    return stated.astimezone(UTC)


def _check_bounds(event: UsageEvent, limits: Limits) -> None:
    known_currency(event.currency)
    if event.tags is not None and len(event.tags) > limits.tags_max:
        raise invalid(f"has more than {limits.tags_max} tags", field="tags")
    for field, most in (("metadata", limits.metadata_bytes_max), ("usage", limits.usage_bytes_max)):
        value: object = getattr(event, field)
        if value is not None and _size(value, field) > most:
            raise invalid(f"is larger than {most} bytes", field=field)


def _size(value: object, field: str) -> int:
    try:
        return len(msgspec.json.encode(value))
    except RecursionError:
        raise invalid("is nested too deeply", field=field) from None


def _line_items(items: tuple[LineItem, ...]) -> str:
    """``[[kind, quantity, rate in nanos per million, cost in nanos], ...]``, and list rate and cost if they differ."""
    return "[" + ",".join(map(_line_item, items)) + "]"


def _line_item(item: LineItem) -> str:
    text = f'["{item.kind}",{item.quantity},{_number(item.rate_nanos_per_million)},{_number(item.cost_nanos)}'
    if item.list_cost_nanos is None:
        return text + "]"
    return f"{text},{_number(item.list_rate_nanos_per_million)},{item.list_cost_nanos}]"


def _number(value: int | None) -> str:
    return "null" if value is None else str(value)


def _reported(event: UsageEvent, found: Normalised) -> int | None:
    if event.reported_cost is None:
        return found.reported_cost_nanos
    try:
        return parse_call_cost(event.reported_cost)
    except AmountError as error:
        raise invalid(str(error), field="reported_cost") from None


def _reservation(text: str | None) -> str | None:
    if text is not None and not _UUID.fullmatch(text):
        raise invalid("is not a reservation id (a UUID)", field="reservation_id")
    return text.lower() if text is not None else None


def _json(value: dict[str, Any] | None) -> str | None:
    return msgspec.json.encode(value).decode() if value else None


def _warnings(event: UsageEvent, card: RateCard | None, cost: Priced | None, found: Normalised) -> list[str]:
    warnings = list(found.flags)
    if card is None:
        warnings.append(f"unpriced: {event.provider}/{event.model} has no price; the cost is unknown, not zero")
    elif cost is not None and cost.unpriced_kinds:
        warnings.append(f"unpriced: no rate for {', '.join(cost.unpriced_kinds)}; the cost is unknown, not zero")
    if card is not None:
        warnings.extend(card.warnings)
        if card.volumes:
            warnings.append("volume_pricing: the cost is as if the month began here; it is settled when it is applied")
    return warnings
