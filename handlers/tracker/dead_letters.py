"""``list_dead_letters`` and ``retry_dead_letter``: what could not be applied, and sending it again (R13)."""

import base64
import re
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec

from handlers.context import Context
from handlers.cursor import decode_cursor, page
from handlers.enforcer.answers import wire_time
from handlers.tracker.ingest import events_in, merged
from handlers.tracker.intake import anonymous
from handlers.tracker.priced import priced
from schemas.base import ID_CHARS_MAX
from schemas.codec import Codec, prefixed, unwrap
from schemas.errors import SignalError, conflict, invalid, not_found, unavailable
from schemas.usage import DeadLetter, DeadLetters, ListDeadLetters, RetriedDeadLetter, RetryDeadLetter, UsageEvent
from signals import route
from signals import usage as signals
from store import dead_letters as dead_letter_store
from store.dead_letters import DeadLetterRow

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_AT = Annotated[datetime, msgspec.Meta(tz=True)]
_EVENT: Final = Codec(UsageEvent)
# What a listing shows of one payload; the stored one is whole. Escaped six-fold it still fits one message.
PAYLOAD_CHARS_MAX: Final = 100_000


async def list_dead_letters(ctx: Context, request: ListDeadLetters) -> DeadLetters:
    """Dead letters, newest first, with why each could not be applied."""
    position = decode_cursor(request.cursor, tuple[_AT, UUID])
    async with ctx.database.connection() as connection:
        rows = await dead_letter_store.listing(
            connection,
            ctx.org,
            status=request.status,
            reason=request.reason,
            before=None if position is None else (position[0], str(position[1])),
            limit=request.limit + 1,
        )
    letters, next_cursor = page(
        [_shown(row) for row in rows],
        limit=request.limit,
        key=lambda letter: (letter.arrived_at, letter.dead_letter_id),
    )
    return DeadLetters(dead_letters=letters, next_cursor=next_cursor)


async def retry_dead_letter(ctx: Context, request: RetryDeadLetter) -> RetriedDeadLetter:
    """Send an open letter's message, or its correction, through ingest again; then it counts as retried.

    A crash in between leaves it open: sending it twice is harmless, because every event in it has its id by then.
    """
    letter_id = request.dead_letter_id.lower()
    if not _UUID.fullmatch(letter_id):
        raise invalid("is not a dead letter id (a UUID)", field="dead_letter_id")
    sink = ctx.services.sink
    if sink is None:
        raise unavailable("the usage stream is not connected yet")
    async with ctx.database.transaction() as connection:
        letter = await dead_letter_store.lock(connection, ctx.org, letter_id)
        if letter is None:
            raise not_found("there is no such dead letter", field="dead_letter_id")
        if letter.status != "open":
            raise conflict("was retried already", field="dead_letter_id")
        message = _identified(request.payload if request.payload is not None else _object(letter.payload), letter)
        if request.payload is not None and message is not None:
            _check(ctx, message)
        payload = letter.payload if message is None else msgspec.json.encode(message)
        await sink.resend(ctx.org, payload, letter.subject)
        await dead_letter_store.mark_retried(connection, ctx.org, letter_id)
    return RetriedDeadLetter(dead_letter_id=letter_id, status="retried", usage_id=_usage_id(message))


def _object(payload: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(payload, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # Not usage at all; it is sent as it is, for a release that may understand it.


def _identified(message: dict[str, Any] | None, letter: DeadLetterRow) -> dict[str, Any] | None:
    """The message with the id and the time it would have been stored under, where its sender gave none (R10)."""
    if message is None or "specversion" in message:
        return message  # An envelope identifies what it carries.
    stem = letter.source_key if len(letter.source_key) <= ID_CHARS_MAX - 8 else f"retry-{letter.dead_letter_id}"
    if not isinstance(message.get("events"), list):
        return _stamped(message, stem, letter)
    events: list[Any] = message["events"]
    return {**message, "events": [_stamped(item, f"{stem}-{i}", letter) for i, item in enumerate(events)]}


def _stamped(item: Any, usage_id: str, letter: DeadLetterRow) -> Any:
    if not isinstance(item, dict):
        return item  # Whatever it is, applying it says what is wrong with it.
    event: dict[str, Any] = dict(item)  # pyright: ignore[reportUnknownArgumentType]
    if event.get("id") is None:
        event["id"] = usage_id
    if event.get("timestamp") is None:
        event["timestamp"] = wire_time(letter.arrived_at)
    return event


def _check(ctx: Context, message: dict[str, Any]) -> None:
    """Refuse a correction that would only become the next dead letter. Raises naming the field below ``payload``."""
    try:
        data, envelope = unwrap(msgspec.json.encode(message))
        items = events_in(data)
        if items is None:
            _check_event(ctx, data if envelope is None else merged(data, envelope))
        for i, item in enumerate(items or ()):
            try:
                _check_event(ctx, bytes(item))
            except SignalError as error:
                raise prefixed(error, f"events[{i}]") from None
    except SignalError as error:
        raise prefixed(error, "payload") from None


def _check_event(ctx: Context, data: bytes) -> None:
    event = anonymous(ctx.services, ctx.org, _EVENT.decode(data))
    priced(
        event,
        org=ctx.org,
        event_id=event.id or "",
        arrived_at=ctx.now(),
        cards=ctx.prices,
        limits=ctx.services.limits,
        settings=ctx.services.org_settings(ctx.org),
        model_limits=ctx.services.model_limits(ctx.org),
    )


def _usage_id(message: dict[str, Any] | None) -> str | None:
    found = None if message is None or "specversion" in message else message.get("id")
    return found if isinstance(found, str) else None


def _shown(row: DeadLetterRow) -> DeadLetter:
    return DeadLetter(
        dead_letter_id=row.dead_letter_id,
        status=row.status,
        reason=row.reason,
        message=row.message,
        field=row.field,
        subject=row.subject,
        usage_id=row.usage_id,
        payload=_text(row.payload)[:PAYLOAD_CHARS_MAX],
        arrived_at=row.arrived_at,
        retried_at=row.retried_at,
    )


def _text(payload: bytes) -> str:
    """JSON as it came; what is not text as base64."""
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(payload).decode()


ROUTES = (
    route(signals.LIST_DEAD_LETTERS, list_dead_letters),
    route(signals.RETRY_DEAD_LETTER, retry_dead_letter),
)
