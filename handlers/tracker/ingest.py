"""Stream messages into PostgreSQL. What cannot be decoded becomes a dead letter; nothing is ever dropped."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from handlers.context import Services
from handlers.identities import rename_users
from handlers.tracker.apply import Applier, Effect
from handlers.tracker.dead import refused_letter, tell
from handlers.tracker.intake import BATCH_VERSION, StoredBatch, anonymous, enveloped
from handlers.tracker.partial import Partial, receipt_of, settled
from handlers.tracker.priced import PricedEvent
from schemas.base import CloudEvent
from schemas.codec import Codec, prefixed, unwrap
from schemas.errors import SignalError, invalid
from schemas.subjects import AGENT_BATCH_PREFIX, DEFAULT_ORG, USAGE_PREFIX
from schemas.usage import EVENTS_MAX, UsageEvent
from store import dead_letters as dead_letter_store
from store import outbox as outbox_store
from store.dead_letters import DeadLetterRow

_log = logging.getLogger(__name__)
_BATCH: Final = msgspec.msgpack.Decoder(StoredBatch)
_EVENT: Final = Codec(UsageEvent)


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """One message of the usage stream. ``key`` is unique to it for ever: stream creation time and sequence."""

    subject: str
    data: bytes
    key: str
    arrived_at: datetime


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An event of a message that is counted before it is applied."""

    partial: Partial
    message: StreamMessage
    key: str
    data: bytes
    index: int | None


class _PublishedBatch(msgspec.Struct, forbid_unknown_fields=True):
    events: list[msgspec.Raw]
    ack: str | None = None


_PUBLISHED_BATCH: Final = Codec(_PublishedBatch)


@dataclass(slots=True)
class IngestCounts:
    """What this agent has applied since it started."""

    applied: int = 0
    duplicates: int = 0
    conflicts: int = 0
    dead: int = 0

    def add(self, effects: Sequence[Effect]) -> None:
        """Count effects."""
        for effect in effects:
            if effect == "applied":
                self.applied += 1
            elif effect == "duplicate":
                self.duplicates += 1
            elif effect == "conflict":
                self.conflicts += 1
            else:
                self.dead += 1


class Ingest:
    """Applies stream messages; returns only when all of them are committed and may be acknowledged."""

    def __init__(self, services: Services, applier: Applier) -> None:
        self._services = services
        self._applier = applier
        self.counts = IngestCounts()

    async def apply(self, messages: Sequence[StreamMessage]) -> None:
        """Apply messages. Raises where PostgreSQL is away: then none may be acknowledged."""
        events: dict[str, list[PricedEvent]] = {}
        letters: dict[str, list[DeadLetterRow]] = {}
        for message in messages:
            for read in self._readable(message):
                item = await self._settled(read) if isinstance(read, _Waiting) else read
                if isinstance(item, DeadLetterRow):
                    letters.setdefault(item.org_id, []).append(item)
                else:
                    events.setdefault(item.org_id, []).append(item)
        await self._bury(letters)
        results = await asyncio.gather(
            *(self._apply_org(org, batch) for org, batch in sorted(events.items())), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _apply_org(self, org: str, events: Sequence[PricedEvent]) -> None:
        size = self._services.limits.apply_batch_events_max
        for start in range(0, len(events), size):
            effects = await self._applier.apply(org, events[start : start + size])
            self.counts.add(list(effects.values()))

    async def _settled(self, waiting: "_Waiting") -> PricedEvent | DeadLetterRow:
        try:
            return (await settled(self._services, waiting.partial)).event
        except SignalError as error:
            named = error if waiting.index is None else prefixed(error, f"events[{waiting.index}]")
            return self._letter(waiting.partial.org, waiting.message, named, waiting.key, waiting.data)

    async def _bury(self, letters: dict[str, list[DeadLetterRow]]) -> None:
        for org, rows in sorted(letters.items()):
            async with self._services.database.transaction() as connection:
                kept = await dead_letter_store.keep(connection, rows)
                told = [tell(self._services, row) for row in rows if row.source_key in kept]
                await outbox_store.add(connection, org, told)
            self.counts.dead += len(kept)
            self._services.outbox_ready.set()

    def _readable(self, message: StreamMessage) -> "list[PricedEvent | DeadLetterRow | _Waiting]":
        """As ``_read``. A defect on the way must not hold up everybody's usage: that message is kept aside, too."""
        try:
            return self._read(message)
        except Exception as defect:
            _log.exception("a stored message cannot be read")
            error = SignalError("internal", f"cannot be read: {type(defect).__name__}: {defect}")
            org = DEFAULT_ORG if message.subject.startswith(AGENT_BATCH_PREFIX) else _org(message.subject)
            return [self._letter(org, message, error, message.key, message.data)]

    def _read(self, message: StreamMessage) -> "list[PricedEvent | DeadLetterRow | _Waiting]":
        if message.subject.startswith(AGENT_BATCH_PREFIX):
            return self._read_stored(message)
        return self._read_published(message)

    def _read_stored(self, message: StreamMessage) -> "list[PricedEvent | DeadLetterRow | _Waiting]":
        """A batch that an agent validated and priced before it was stored."""
        try:
            batch = _BATCH.decode(message.data)
            if batch.version == BATCH_VERSION:
                return list(batch.events)
            error = invalid(f"batch version {batch.version} is unknown to this release")
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as cause:
            error = invalid(f"not a stored batch: {cause}")
        return [self._letter(DEFAULT_ORG, message, error, message.key, message.data)]

    def _read_published(self, message: StreamMessage) -> "list[PricedEvent | DeadLetterRow | _Waiting]":
        """What a client published on ``usage.>``: one event, a batch, or either in a CloudEvent."""
        org = _org(message.subject)
        try:
            data, envelope = unwrap(message.data)
            if b'"events"' in data and (items := events_in(data)) is not None:
                return [self._event(org, message, bytes(raw), i) for i, raw in enumerate(items)]
            if envelope is not None:
                data = merged(data, envelope)
            return [self._event(org, message, data, None)]
        except SignalError as error:
            return [self._letter(org, message, error, message.key, message.data)]

    def _event(
        self, org: str, message: StreamMessage, data: bytes, index: int | None
    ) -> "PricedEvent | DeadLetterRow | _Waiting":
        key = message.key if index is None else f"{message.key}-{index}"
        try:
            event = anonymous(self._services, org, _EVENT.decode(data))
            found = receipt_of(self._services, org, event, event_id=event.id or key, arrived_at=message.arrived_at)
            return _Waiting(found, message, key, data, index) if isinstance(found, Partial) else found.event
        except SignalError as error:
            named = error if index is None else prefixed(error, f"events[{index}]")
            return self._letter(org, message, named, key, data)

    def _hidden(self, org: str, data: bytes) -> bytes:
        """What was sent; where the org keeps no user names, with surrogates in their place."""
        if self._services.org_settings(org).user_names == "keep":
            return data
        return _scrubbed(data, lambda name: self._services.vault.surrogate(org, name))

    def _letter(self, org: str, message: StreamMessage, error: SignalError, key: str, data: bytes) -> DeadLetterRow:
        return refused_letter(
            self._services,
            org,
            error=error,
            subject=message.subject,
            source_key=key,
            payload=self._hidden(org, data),
            arrived_at=message.arrived_at,
            usage_id=_id_in(data),
        )


def _scrubbed(data: bytes, key_of: Callable[[str], str]) -> bytes:
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return data
    return msgspec.json.encode(document) if rename_users(document, key_of) else data


def _org(subject: str) -> str:
    """Whose usage it is. In single-account mode the stream captures what callers publish under their own subject."""
    words = subject.split(".", 3)
    return DEFAULT_ORG if words[0] == USAGE_PREFIX else words[2]


def events_in(data: bytes) -> list[msgspec.Raw] | None:
    """The items of a batch that was published; None where ``events`` is only somewhere inside a single event."""
    try:
        keys = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if "events" not in keys:
        return None
    items = _PUBLISHED_BATCH.decode(data).events
    if not 1 <= len(items) <= EVENTS_MAX:
        raise invalid(f"a batch carries 1 to {EVENTS_MAX} events", field="events")
    return items


def merged(data: bytes, envelope: CloudEvent) -> bytes:
    """The event in a CloudEvent, with the envelope's id and time where it has none."""
    return msgspec.json.encode(enveloped(_EVENT.decode(data), envelope))


def _id_in(data: bytes) -> str | None:
    try:
        found = msgspec.json.decode(data, type=_Identified).id
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return found[:256].replace("\x00", "") if found else None


class _Identified(msgspec.Struct):
    id: str | None = None
