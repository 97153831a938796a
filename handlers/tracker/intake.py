"""``track_usage``: validate and price, make durable in groups, then answer. One stream message carries many events."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from handlers.context import Inbound, Services
from handlers.cursor import PAGE_BYTES_MAX
from handlers.tracker.apply import Applier, Effect
from handlers.tracker.partial import Partial, Waiting, receipt_of
from handlers.tracker.priced import PricedEvent, Receipt
from schemas.base import CloudEvent
from schemas.codec import Codec, prefixed, unwrap
from schemas.errors import SignalError, unavailable
from schemas.money import format_cost
from schemas.usage import Ack, EventError, TrackedUsage, TrackedUsageBatch, TrackUsage, TrackUsageBatch, UsageEvent
from store.pool import is_unavailable

_log = logging.getLogger(__name__)
_SINGLE: Final = Codec(TrackUsage)
_BATCH: Final = Codec(TrackUsageBatch)
_EVENT: Final = Codec(UsageEvent)
_ENCODE: Final = msgspec.json.Encoder().encode
BATCH_VERSION: Final = 1


class StoredBatch(msgspec.Struct, array_like=True, gc=False):
    """What one message of ``tm.batch.*`` carries, as MessagePack."""

    version: int
    events: list[PricedEvent]


_PACK: Final = msgspec.msgpack.Encoder().encode


class _Peek(msgspec.Struct):
    events: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_PEEK: Final = msgspec.json.Decoder(_Peek)


@dataclass(slots=True)
class Waiter:
    """A request whose events are on their way; ``receipts`` holds an error where an event was refused.

    A ``Partial`` in it is counted before the request joins a group.
    """

    inbound: Inbound
    receipts: list[Receipt | SignalError | Partial]
    batch: bool
    ack: Ack

    @property
    def events(self) -> list[PricedEvent]:
        """The accepted events."""
        return [r.event for r in self.receipts if isinstance(r, Receipt)]


class Intake:
    """The group commit of ``track_usage``. Bounded: beyond the queue's limit callers are told ``unavailable``."""

    def __init__(self, services: Services, applier: Applier) -> None:
        self._services = services
        self._stored = _Group(services, self._store)
        self._applied = _Group(services, self._apply)
        self._waiting = Waiting(services)
        self._applier = applier

    def submit(self, inbound: Inbound) -> None:
        """Take a request; it is answered when its events are durable. Never blocks and never raises."""
        try:
            waiter = self._read(inbound)
            if any(type(receipt) is Partial for receipt in waiter.receipts):
                self._waiting.submit(waiter.receipts, batch=waiter.batch, then=lambda: self._take(waiter))
            else:
                self._take(waiter)
        except SignalError as error:
            inbound.fail(error)

    def _take(self, waiter: Waiter) -> None:
        """Let a request join the next group. Never raises."""
        first = waiter.receipts[0]
        if not waiter.batch and isinstance(first, SignalError):
            waiter.inbound.fail(first)
            return
        if not waiter.events:
            _answer(waiter, None)
            return
        try:
            (self._stored if waiter.ack == "stored" else self._applied).add(waiter)
        except SignalError as error:
            waiter.inbound.fail(error)

    async def drain(self) -> None:
        """Wait until everything submitted is answered."""
        await self._waiting.drain()
        await self._stored.drain()
        await self._applied.drain()

    def _read(self, inbound: Inbound) -> Waiter:
        data, envelope = unwrap(inbound.data)
        if b'"events"' in data and _has_events(data):
            request = _BATCH.decode(data)
            receipts = [self._item(inbound, raw, i) for i, raw in enumerate(request.events)]
            return Waiter(inbound, receipts, True, request.ack)
        single = _SINGLE.decode(data)
        receipt = self._receipt(inbound.caller.org, single if envelope is None else enveloped(single, envelope))
        return Waiter(inbound, [receipt], False, single.ack)

    def _item(self, inbound: Inbound, raw: msgspec.Raw, index: int) -> Receipt | SignalError | Partial:
        try:
            return self._receipt(inbound.caller.org, _EVENT.decode(raw))
        except SignalError as error:
            return prefixed(error, f"events[{index}]")

    def _receipt(self, org: str, event: UsageEvent) -> Receipt | Partial:
        services = self._services
        return receipt_of(
            services,
            org,
            anonymous(services, org, event),
            event_id=event.id or services.new_id(),
            arrived_at=services.clock(),
        )

    async def _store(self, waiters: Sequence[Waiter]) -> None:
        events = [event for waiter in waiters for event in waiter.events]
        for payload in packed(events, self._services.limits.stored_bytes_max):
            assert self._services.sink is not None
            await self._services.sink.store(payload)
        for waiter in waiters:
            _answer(waiter, None)

    async def _apply(self, waiters: Sequence[Waiter]) -> None:
        """Straight into PostgreSQL: the answer waits for the commit and knows about duplicates."""
        by_org: dict[str, list[Waiter]] = {}
        for waiter in waiters:
            by_org.setdefault(waiter.inbound.caller.org, []).append(waiter)
        for org, group in sorted(by_org.items()):
            effects = await self._applier.apply(org, [event for waiter in group for event in waiter.events])
            at = 0
            for waiter in group:
                count = len(waiter.events)
                _answer(waiter, [effects[i] for i in range(at, at + count)])
                at += count


Commit = Callable[[Sequence[Waiter]], Awaitable[None]]


class _Group:
    """Requests that arrive while a group is being committed form the next one; no timer when idle."""

    def __init__(self, services: Services, commit: Commit) -> None:
        self._limits = services.limits
        self._commit = commit
        self._queue: deque[Waiter] = deque()
        self._events = 0
        self._task: asyncio.Task[None] | None = None

    def add(self, waiter: Waiter) -> None:
        """Queue a request. Raises SignalError ``unavailable`` where too many events wait."""
        count = len(waiter.receipts)
        if self._events + count > self._limits.track_queue_events_max:
            raise unavailable("too much usage is waiting to be stored; send it again with the same ids")
        self._events += count
        self._queue.append(waiter)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def drain(self) -> None:
        """Wait until the queue is empty and its last group answered."""
        while self._task is not None:
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        try:
            while self._queue:
                group = self._take()
                try:
                    await self._commit(group)
                except SignalError as error:
                    _fail(group, error)
                except Exception as error:  # One group that fails must not leave the next ones unanswered.
                    if is_unavailable(error):
                        _fail(group, unavailable("the ledger cannot be reached; send it again with the same ids"))
                        continue
                    _log.exception("a group of usage failed")
                    _fail(group, SignalError("internal", "the usage could not be stored"))
        finally:
            self._task = None
            if self._queue:
                self._task = asyncio.get_running_loop().create_task(self._run())

    def _take(self) -> list[Waiter]:
        group: list[Waiter] = []
        events = size = 0
        most = self._limits.track_batch_events_max
        while self._queue and (not group or events + len(self._queue[0].receipts) <= most):
            size += len(self._queue[0].inbound.data)
            if group and size > self._limits.track_batch_bytes_max:
                break
            waiter = self._queue.popleft()
            group.append(waiter)
            events += len(waiter.receipts)
        self._events -= events
        return group


def packed(events: Sequence[PricedEvent], bytes_max: int) -> list[bytes]:
    """Events as stream messages of at most ``bytes_max`` each, as few as halving gives."""
    payload = _PACK(StoredBatch(BATCH_VERSION, list(events)))
    if len(payload) <= bytes_max or len(events) == 1:
        return [payload]
    middle = len(events) // 2
    return packed(events[:middle], bytes_max) + packed(events[middle:], bytes_max)


def enveloped(event: UsageEvent, envelope: CloudEvent) -> UsageEvent:
    """An event that came in a CloudEvent: the envelope's identity and time stand in where the data has none."""
    changes: dict[str, str | datetime] = {}
    if event.id is None:
        changes["id"] = f"{envelope.source}#{envelope.id}"[:256]
    if event.timestamp is None and envelope.time is not None:
        changes["timestamp"] = envelope.time
    return msgspec.structs.replace(event, **changes) if changes else event


def anonymous(services: Services, org: str, event: UsageEvent) -> UsageEvent:
    """An event with a surrogate for its user's name. Raises SignalError where the org refuses plain names."""
    if event.user_id is None:
        return event
    return msgspec.structs.replace(event, user_id=services.user_key(org, event.user_id))


def _has_events(data: bytes) -> bool:
    try:
        return _PEEK.decode(data).events is not msgspec.UNSET
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False


def _fail(group: Sequence[Waiter], error: SignalError) -> None:
    for waiter in group:
        waiter.inbound.fail(error)


def _answer(waiter: Waiter, effects: Sequence[Effect] | None) -> None:
    replies: list[TrackedUsage] = []
    at = 0
    for receipt in waiter.receipts:
        if isinstance(receipt, SignalError):
            replies.append(_refused(receipt))
            continue
        assert isinstance(receipt, Receipt), "what had to be counted is counted"
        replies.append(_tracked(receipt, None if effects is None else effects[at]))
        at += 1
    if not waiter.batch:
        waiter.inbound.answer(_ENCODE(replies[0]))
        return
    accepted = sum(reply.accepted for reply in replies)
    reply = TrackedUsageBatch(events=replies, accepted=accepted, rejected=len(replies) - accepted)
    encoded = _ENCODE(reply)
    if len(encoded) > PAGE_BYTES_MAX:
        # What was stored must be answered as stored: the warnings are what can be done without.
        without = [msgspec.structs.replace(item, warnings=[]) for item in replies]
        encoded = _ENCODE(msgspec.structs.replace(reply, events=without))
    waiter.inbound.answer(encoded)


def _tracked(receipt: Receipt, effect: Effect | None) -> TrackedUsage:
    event = receipt.event
    bad = effect in ("conflict", "dead")
    return TrackedUsage(
        id=event.id,
        accepted=not bad,
        duplicate=None if effect is None else effect == "duplicate",
        conflict=None if effect is None else effect == "conflict",
        total_tokens=event.prompt_tokens + event.completion_tokens,
        cost=None if event.cost is None else format_cost(event.cost),
        currency=event.currency,
        cost_status="priced" if event.cost is not None else "unpriced",
        price_source=event.price_source,
        context_used=receipt.context_used,
        context_limit=receipt.context_limit,
        warnings=receipt.warnings,
        error=_effect_error(effect) if bad else None,
    )


def _effect_error(effect: Effect | None) -> EventError:
    if effect == "conflict":
        return EventError(code="conflict", message="this id was used for another event", field="id")
    return EventError(code="internal", message="kept as a dead letter; an administrator can see why")


def _refused(error: SignalError) -> TrackedUsage:
    return TrackedUsage(
        id=None, accepted=False, error=EventError(code=error.code, message=error.message, field=error.field)
    )
