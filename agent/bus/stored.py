"""Publishing into a stream with an answer: one inbox for all, a deadline for each, nothing left behind.

Owns the waiting publishes of a connection. Must never retry: whether the same message may be sent again is known to
the caller, who chose its id.
"""

import asyncio
import itertools
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from nats import errors

from agent.bus.client import BusClient
from agent.bus.wire import header_block, status_of

STREAM_FULL = (10077, 10047, 10023)
WAITING_MAX = 65_536
NO_RESPONDERS = 503


class PublishFailed(Exception):
    """The message was not confirmed. `code` is the server's error code, 0 when it said nothing."""

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class PublishTooLarge(PublishFailed):
    """More than the server takes in one message; to try again is in vain."""


class StreamFull(PublishFailed):
    """The stream holds as much as it may; nothing was stored."""


class StreamUnavailable(PublishFailed):
    """No stream listens, or it did not answer in time; after a timeout the message may be stored all the same."""


@dataclass(frozen=True)
class PubAck:
    """Where a message is stored. `duplicate`: its id was known to the stream already."""

    stream: str
    seq: int
    duplicate: bool


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct):
    stream: str = ""
    seq: Annotated[int, msgspec.Meta(ge=0)] = 0
    duplicate: bool = False
    error: _Error | None = None


class StoredPublisher:
    """Stored publishing over one connection. `waiting_max` publishes may be unanswered at once."""

    def __init__(self, client: BusClient, *, waiting_max: int = WAITING_MAX) -> None:
        self._client = client
        self._waiting: dict[bytes, asyncio.Future[PubAck]] = {}
        self._waiting_max = waiting_max
        self._tokens = itertools.count()
        self._prefix = client.new_inbox().encode() + b"."
        self._subscribed = False
        self._decoder = msgspec.json.Decoder(_Answer)

    @property
    def waiting(self) -> int:
        """How many publishes are unanswered."""
        return len(self._waiting)

    async def publish(self, subject: str, payload: bytes, *, msg_id: str | None = None, timeout_s: float) -> PubAck:
        """Publish and wait until the stream has stored it.

        Raises:
            StreamFull: refused, nothing stored.
            StreamUnavailable: nobody answered, or the connection cannot take it; it may be stored after a timeout.
            PublishTooLarge: more than the server takes, nothing stored.
            PublishFailed: refused for another reason, or too many publishes are waiting.
        """
        if len(self._waiting) >= self._waiting_max:
            raise PublishFailed(f"{self._waiting_max} publishes are waiting for an answer")
        loop = asyncio.get_running_loop()
        token = b"%d" % next(self._tokens)
        future: asyncio.Future[PubAck] = loop.create_future()
        self._waiting[token] = future
        headers = None if msg_id is None else header_block({"Nats-Msg-Id": msg_id})
        try:
            if not self._subscribed:
                self._client.subscribe_now((self._prefix + b"*").decode(), self._answered)
                self._subscribed = True
            self._client.publish_now(subject, payload, self._prefix + token, headers)
            deadline = loop.call_later(timeout_s, _expire, future, subject)
            try:
                return await future
            finally:
                deadline.cancel()
        except (errors.OutboundBufferLimitError, errors.ConnectionClosedError, errors.ConnectionDrainingError) as error:
            raise StreamUnavailable(str(error)) from error
        except errors.MaxPayloadError as error:
            raise PublishTooLarge(f"{len(payload)} bytes are more than the bus takes") from error
        finally:
            self._waiting.pop(token, None)

    def _answered(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        del reply
        future = self._waiting.get(subject[len(self._prefix) :])
        if future is None or future.done():
            return
        outcome = self._outcome(data, headers)
        if isinstance(outcome, PubAck):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)

    def _outcome(self, data: bytes, headers: bytes | None) -> PubAck | PublishFailed:
        code, text = status_of(headers)
        if code == NO_RESPONDERS:
            return StreamUnavailable("no stream listens on this subject", code=code)
        if code:
            return PublishFailed(f"{code} {text}", code=code)
        try:
            answer = self._decoder.decode(data)
        except msgspec.DecodeError as error:
            return PublishFailed(f"not an answer of a stream: {error}")
        error = answer.error
        if error is None:
            return PubAck(answer.stream, answer.seq, answer.duplicate)
        kind: type[PublishFailed] = PublishFailed
        if error.err_code in STREAM_FULL:
            kind = StreamFull
        elif error.code == NO_RESPONDERS:
            kind = StreamUnavailable
        return kind(f"{error.description} (error {error.err_code})", code=error.err_code or error.code)


async def publish_stored(
    client: BusClient, subject: str, payload: bytes, msg_id: str | None = None, *, timeout_s: float
) -> PubAck:
    """`StoredPublisher.publish` on the one publisher this client has."""
    publisher = client.attached.get(StoredPublisher)
    if publisher is None:
        publisher = client.attached[StoredPublisher] = StoredPublisher(client)
    return await publisher.publish(subject, payload, msg_id=msg_id, timeout_s=timeout_s)


def _expire(future: "asyncio.Future[Any]", subject: str) -> None:
    if not future.done():
        future.set_exception(StreamUnavailable(f"no answer of the stream for {subject} in time"))
