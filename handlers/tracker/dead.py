"""Dead letters: every message that cannot be applied is kept with its reason, in the table and in the stream."""

from datetime import datetime
from typing import Any, Final

import msgspec

from handlers.context import Services
from handlers.enforcer.charging import Unconvertible
from handlers.tracker.priced import PAYLOAD_CURRENCY, PricedEvent
from schemas.errors import SignalError
from schemas.money import format_cost
from schemas.usage import UsageEvent
from store.dead_letters import DeadLetterRow

_ENCODE = msgspec.json.Encoder().encode
_STATED: Final = frozenset(field.name for field in msgspec.structs.fields(UsageEvent))
# Outbox events of this prefix go to the dead-letter stream instead of the tenant's events.
STREAM_PREFIX = "dead_letter."


def refused_letter(
    services: Services,
    org: str,
    *,
    error: SignalError,
    subject: str,
    source_key: str,
    payload: bytes,
    arrived_at: datetime,
    usage_id: str | None,
) -> DeadLetterRow:
    """A message that is not valid usage."""
    return DeadLetterRow(
        org_id=org,
        dead_letter_id=services.new_id(),
        reason=error.code,
        message=error.message[:2000],
        field=error.field,
        subject=subject,
        source_key=source_key,
        usage_id=usage_id,
        payload=payload,
        arrived_at=arrived_at,
    )


def conflict_letter(services: Services, event: PricedEvent) -> DeadLetterRow:
    """An event whose id belongs to another payload (R10): never overwritten, kept here."""
    error = SignalError("conflict", "this id was used for another event", field="id")
    return _of_event(services, event, error, source_key=f"conflict:{event.id}:{event.payload_hash.hex()}")


def poison_letter(services: Services, event: PricedEvent, cause: Exception) -> DeadLetterRow:
    """An event that PostgreSQL refuses, or whose cost no budget of another currency can count (R13)."""
    if isinstance(cause, Unconvertible):
        error = SignalError("invalid_request", str(cause), field="cost")
    else:
        error = SignalError("internal", f"the database refuses this event: {type(cause).__name__}: {cause}")
    return _of_event(services, event, error, source_key=f"poison:{event.id}:{event.payload_hash.hex()}")


def tell(services: Services, letter: DeadLetterRow) -> tuple[str, bytes]:
    """The outbox entry that puts a letter into the dead-letter stream."""
    body = {
        "dead_letter_id": letter.dead_letter_id,
        "reason": letter.reason,
        "message": letter.message,
        "field": letter.field,
        "usage_id": letter.usage_id,
        "subject": letter.subject,
        "instance": services.instance,
    }
    return f"{STREAM_PREFIX}{letter.reason}", _ENCODE(body)


def _of_event(services: Services, event: PricedEvent, error: SignalError, *, source_key: str) -> DeadLetterRow:
    return refused_letter(
        services,
        event.org_id,
        error=error,
        subject="tm.batch",
        source_key=source_key,
        payload=_ENCODE(request_of(event)),
        arrived_at=event.arrived_at,
        usage_id=event.id,
    )


def request_of(event: PricedEvent) -> dict[str, Any]:
    """The event as its sender could send it again; the price is not part of it."""
    computed = {
        "org_id",
        "arrived_at",
        "cost",
        "cost_status",
        "price_source",
        "price_version",
        "line_items",
        "flags",
        "payload_hash",
        "list_cost",
        "other_counts",
        "context_used",
        "context_limit",
        "price_revision",
        "reported_currency",
    }
    values = {k: v for k, v in msgspec.structs.asdict(event).items() if k not in computed and v is not None}
    if event.other_counts is not None:
        values |= {k: v for k, v in msgspec.json.decode(event.other_counts).items() if k in _STATED}
    for name in ("tags", "metadata"):
        if name in values:
            values[name] = msgspec.json.decode(values[name])
    if event.reported_cost is not None:
        values["reported_cost"] = format_cost(event.reported_cost)
        values["currency"] = event.reported_currency or PAYLOAD_CURRENCY
    return values
