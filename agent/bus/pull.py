"""Pulling from a JetStream consumer: two overlapping requests, each with an inbox of its own, and plain callbacks.

Owns the requests and the count of messages in flight. Must never acknowledge by itself: whoever took a message says
what became of it. Replaces the fetch of nats-py, which stalls on requests it has lost track of and creates a task per
message.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
from nats import errors

from agent.bus.client import BusClient, DirectSubscription
from agent.bus.wire import status_of

ACK: Final = b"+ACK"
IN_PROGRESS: Final = b"+WPI"
ACK_PREFIX: Final = b"$JS.ACK."
V1_TOKENS = 9
V2_TOKENS_MIN = 11
SLOTS = 2
NOTHING_LEFT = (404, 408)
HEARTBEAT = 100

_log = logging.getLogger(__name__)


class PulledMessage:
    """One delivered message. `timestamp_ns` is when the stream stored it, `pending` how many wait behind it."""

    __slots__ = (
        "data",
        "headers",
        "num_delivered",
        "open",
        "pending",
        "reply",
        "stream_seq",
        "subject",
        "timestamp_ns",
    )

    def __init__(self, subject: bytes, data: bytes, reply: bytes, headers: bytes | None) -> None:
        """Take the metadata from the ack subject, of either version.

        Raises:
            ValueError: `reply` is no ack subject.
        """
        words = reply.split(b".")
        # $JS.ACK.<stream>.<consumer>.<delivered>.<sseq>.<cseq>.<time>.<pending>, or with <domain>.<account> before
        # the stream and perhaps a random token at the end.
        at = 4 if len(words) == V1_TOKENS else 6
        if not reply.startswith(ACK_PREFIX) or (at > 4 and len(words) < V2_TOKENS_MIN):
            raise ValueError(f"not an ack subject: {reply!r}")
        self.subject = subject
        self.data = data
        self.reply = reply
        self.headers = headers
        self.num_delivered = int(words[at])
        self.stream_seq = int(words[at + 1])
        self.timestamp_ns = int(words[at + 3])
        self.pending = int(words[at + 4])
        self.open = True


@dataclass(frozen=True, kw_only=True)
class PullSettings:
    """Bounds and waits of a pull loop. `expires_s` must be at least twice `heartbeat_s` (the server insists)."""

    batch: int = 500
    batch_bytes: int = 16 * 1024 * 1024
    """More than one message of the largest size, or nothing would ever come."""
    expires_s: float = 5.0
    heartbeat_s: float = 1.0
    max_pending_messages: int = 4000
    """Delivered and not yet acknowledged, plus asked for: never more than this at once."""
    backoff_s: float = 0.1
    backoff_max_s: float = 2.0
    drain_timeout_s: float = 5.0


class _Slot:
    """One outstanding request and its inbox."""

    def __init__(self) -> None:
        self.subscription: DirectSubscription | None = None
        self.inbox = b""
        self.request = b""
        self.remaining = 0
        self.heard_at = 0.0
        self.failures = 0
        self.retry: asyncio.TimerHandle | None = None


class PullLoop:
    """Keeps asking for messages and calls `on_message` for each, in the event loop, in the order they come.

    `on_message` must be fast and may not raise for a bad message: it keeps the message and later calls `ack`, `nak`,
    `term` or `abandon` once. `on_idle` is called when the consumer has nothing left to deliver. `on_problem` hears
    what the server refused, e.g. `409 Consumer Deleted`; the loop goes on asking, less often.
    """

    def __init__(
        self,
        client: BusClient,
        *,
        stream: str,
        consumer: str,
        on_message: Callable[[PulledMessage], None],
        on_idle: Callable[[], None] | None = None,
        on_problem: Callable[[int, str], None] | None = None,
        settings: PullSettings | None = None,
    ) -> None:
        self.settings = settings or PullSettings()
        self.in_flight = 0
        self._client = client
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}".encode()
        self._on_message = on_message
        self._on_idle = on_idle
        self._on_problem = on_problem
        self._slots = [_Slot() for _ in range(SLOTS)]
        self._retiring: set[asyncio.Task[None]] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._active = False
        self._numbers = itertools.count(1)

    @property
    def paused(self) -> bool:
        """Whether no messages are asked for."""
        return not self._active

    def start(self) -> None:
        """Begin asking. Must run in the event loop."""
        self._client.listeners.reconnected.append(self._renew_all)
        self.resume()

    def resume(self) -> None:
        """Ask again after `pause`; does nothing when not paused."""
        if self._active:
            return
        self._active = True
        for slot in self._slots:
            self._open(slot)
        self._look_later()

    def pause(self) -> None:
        """Stop asking. What the server has sent already is still delivered; the rest waits in the stream."""
        self._active = False
        if self._watch is not None:
            self._watch.cancel()
        for slot in self._slots:
            self._retire(slot)

    async def stop(self) -> None:
        """Pause for good; when this returns every message the server sent here has been seen by `on_message`."""
        self.pause()
        if self._renew_all in self._client.listeners.reconnected:
            self._client.listeners.reconnected.remove(self._renew_all)
        if self._retiring:
            await asyncio.gather(*self._retiring, return_exceptions=True)

    # What became of a message

    def ack(self, message: PulledMessage) -> None:
        """Done: the stream may forget it. A lost ack means a redelivery, so effects must be idempotent."""
        self._settle(message, ACK)

    def nak(self, message: PulledMessage, delay_s: float = 0.0) -> None:
        """Deliver it again, after `delay_s`."""
        self._settle(message, b'-NAK {"delay": %d}' % int(delay_s * 1e9) if delay_s > 0 else b"-NAK")

    def term(self, message: PulledMessage, reason: str = "") -> None:
        """Never deliver it again; `reason` is in the advisory."""
        self._settle(message, b"+TERM " + reason.encode() if reason else b"+TERM")

    def in_progress(self, message: PulledMessage) -> None:
        """Still working on it: the ack wait starts anew."""
        if message.open:
            self._client.respond(message.reply, IN_PROGRESS)

    def abandon(self, message: PulledMessage) -> None:
        """Say nothing to the server, which delivers it again when its ack wait is over."""
        self._settle(message, b"")

    def _settle(self, message: PulledMessage, verdict: bytes) -> None:
        if not message.open:
            return
        message.open = False
        self.in_flight -= 1
        if verdict:
            self._client.respond(message.reply, verdict)
        if self._active:
            for slot in self._slots:
                if slot.remaining == 0 and slot.retry is None:
                    self._ask(slot)

    # Requests

    def _open(self, slot: _Slot) -> None:
        """Give the slot a fresh inbox, so that nothing of an earlier request is counted for the next one."""
        self._retire(slot)
        inbox = self._client.new_inbox()

        own = inbox.encode()

        def receive(subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
            current = slot.inbox == own
            if reply.startswith(ACK_PREFIX):
                self._deliver(slot if current else None, PulledMessage(subject, data, reply, headers))
            elif subject == slot.request:
                self._on_status(slot, *status_of(headers))

        slot.inbox = own
        slot.subscription = self._client.subscribe_now(inbox + ".*", receive)
        self._ask(slot)

    def _retire(self, slot: _Slot) -> None:
        if slot.retry is not None:
            slot.retry.cancel()
            slot.retry = None
        subscription, slot.subscription = slot.subscription, None
        slot.inbox = slot.request = b""
        slot.remaining = 0
        if subscription is not None:
            task = asyncio.ensure_future(self._drain(subscription))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _drain(self, subscription: DirectSubscription) -> None:
        try:
            await subscription.drain(self.settings.drain_timeout_s)
        except errors.Error as error:
            self._client.report(error)

    def _ask(self, slot: _Slot) -> None:
        """Send one request for as much as the bound leaves room for; none when there is none."""
        slot.retry = None
        if not self._active or not self._client.is_connected:
            return
        asked = sum(other.remaining for other in self._slots)
        batch = min(self.settings.batch, self.settings.max_pending_messages - self.in_flight - asked)
        # Not one by one when the bound is reached: wait until a good part of a batch fits.
        if batch < min(self.settings.batch, self.settings.max_pending_messages // SLOTS) // SLOTS or batch <= 0:
            return
        request = {
            "batch": batch,
            "max_bytes": self.settings.batch_bytes,
            "expires": int(self.settings.expires_s * 1e9),
            "idle_heartbeat": int(self.settings.heartbeat_s * 1e9),
        }
        # A name of its own: the server also says "Batch Completed" when we have long asked for the next one.
        slot.request = b"%b.%d" % (slot.inbox, next(self._numbers))
        try:
            self._client.publish_now(self._next, msgspec.json.encode(request), slot.request)
        except errors.Error as error:
            self._client.report(error)
            self._ask_later(slot)
            return
        slot.remaining = batch
        slot.heard_at = asyncio.get_running_loop().time()

    def _ask_later(self, slot: _Slot) -> None:
        wait = min(self.settings.backoff_max_s, self.settings.backoff_s * 2 ** min(slot.failures, 16))
        slot.failures += 1
        slot.retry = asyncio.get_running_loop().call_later(wait, self._ask, slot)

    # Deliveries

    def _deliver(self, slot: _Slot | None, message: PulledMessage) -> None:
        """Count and hand on one message; `slot` is None when its request has been given up meanwhile."""
        self.in_flight += 1
        if slot is not None:
            slot.heard_at = asyncio.get_running_loop().time()
            slot.failures = 0
            slot.remaining = max(0, slot.remaining - 1)
            if slot.remaining == 0:
                self._ask(slot)
        try:
            self._on_message(message)
        except Exception:
            self.abandon(message)
            raise

    def _on_status(self, slot: _Slot, code: int, text: str) -> None:
        slot.heard_at = asyncio.get_running_loop().time()
        if code == HEARTBEAT:
            slot.failures = 0
            self._tell_idle()
            return
        slot.remaining = 0
        if code in NOTHING_LEFT or text in ("Batch Completed", "Message Size Exceeds MaxBytes"):
            if code in NOTHING_LEFT:
                self._tell_idle()
            self._ask(slot)
            return
        # 400, 409, 423 (pin lost), 503: the consumer, its leader or the server is not there, or we ask wrongly.
        _log.warning("pull from %s refused: %d %s", self._next.decode(), code, text)
        if self._on_problem is not None:
            self._on_problem(code, text)
        if slot.retry is None:
            self._ask_later(slot)

    def _tell_idle(self) -> None:
        if self._on_idle is not None:
            self._on_idle()

    # Watching

    def _renew_all(self) -> None:
        if self._active:
            for slot in self._slots:
                self._open(slot)

    def _look_later(self) -> None:
        self._watch = asyncio.get_running_loop().call_later(self.settings.heartbeat_s, self._look)

    def _look(self) -> None:
        """Give up requests of which nothing, not even a heartbeat, has been heard for two beats."""
        now = asyncio.get_running_loop().time()
        if self._client.is_connected:
            for slot in self._slots:
                silent = slot.remaining > 0 and now - slot.heard_at > 2.5 * self.settings.heartbeat_s
                if silent:
                    self._open(slot)
                elif slot.remaining == 0 and slot.retry is None:
                    self._ask(slot)
        if self._active:
            self._look_later()
