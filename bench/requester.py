"""Requests over one bus connection, repeated with the same bytes until they are answered.

Owns the waiting requests of a connection. Must never change a request between attempts: the ids in it are what makes
repeating it harmless.
"""

import asyncio
import itertools
import random
import time
from typing import Any

import msgspec
from nats import errors

from agent.bus.client import BusClient, connect
from agent.bus.wire import header_value, status_of
from schemas.errors import Error, ErrorReply
from schemas.subjects import request_subject

NO_RESPONDERS = 503
ATTEMPT_S = 5.0
WAIT_MIN_S = 0.05
WAIT_MAX_S = 1.0
REPEATABLE = ("unavailable", "rate_limited")
_ERROR = msgspec.json.Decoder(ErrorReply)


class Unanswered(Exception):
    """One attempt brought no answer: a timeout, nobody listening, a lost connection, or a busy agent."""


class GaveUp(Exception):
    """No answer within the caller's patience; the text names the last problem."""


class Refused(Exception):
    """The service answered with an error code that repeating does not mend."""

    def __init__(self, error: Error) -> None:
        where = f" ({error.field})" if error.field else ""
        super().__init__(f"{error.code}: {error.message}{where}")
        self.code = error.code


class Requester:
    """Requests of one caller. `patience_s` bounds one request with all its attempts."""

    def __init__(self, client: BusClient, *, patience_s: float = 60.0) -> None:
        self.retries = 0
        self.disconnections = 0
        self._client = client
        self._patience_s = patience_s
        self._waiting: dict[bytes, asyncio.Future[tuple[bytes, bytes | None]]] = {}
        self._tokens = itertools.count()
        self._prefix = client.new_inbox().encode() + b"."
        client.subscribe_now((self._prefix + b"*").decode(), self._answered)
        client.listeners.disconnected.append(self._disconnected)

    @classmethod
    async def to(cls, url: str, *, patience_s: float = 60.0) -> "Requester":
        """A requester with a connection of its own. Raises `agent.bus.client.ConnectFailed`."""
        return cls(await connect(url), patience_s=patience_s)

    async def close(self) -> None:
        """End the connection."""
        await self._client.close()

    async def ask(self, signal: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send one request until it is answered, and decode the reply.

        Raises:
            Refused: answered with an error.
            GaveUp: not answered within `patience_s`.
        """
        subject, payload = request_subject(signal).encode(), msgspec.json.encode(body)
        deadline = time.monotonic() + self._patience_s
        wait_s = WAIT_MIN_S
        while True:
            try:
                return await self._attempt(subject, payload)
            except Unanswered as problem:
                if time.monotonic() + wait_s > deadline:
                    raise GaveUp(f"{signal} was not answered within {self._patience_s:g} s: {problem}") from None
            self.retries += 1
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(WAIT_MAX_S, wait_s * 2)

    async def _attempt(self, subject: bytes, payload: bytes) -> dict[str, Any]:
        data, headers = await self._round_trip(subject, payload)
        code, text = status_of(headers)
        if code:
            raise Unanswered("nobody listens" if code == NO_RESPONDERS else f"{code} {text}")
        if header_value(headers, "Nats-Service-Error-Code") is None:
            return msgspec.json.decode(data)
        error = _ERROR.decode(data).error
        if error.code in REPEATABLE:
            raise Unanswered(error.message)
        raise Refused(error)

    async def _round_trip(self, subject: bytes, payload: bytes) -> tuple[bytes, bytes | None]:
        if not self._client.is_connected:
            raise Unanswered("the bus is away")
        token = b"%d" % next(self._tokens)
        future: asyncio.Future[tuple[bytes, bytes | None]] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        try:
            self._client.publish_now(subject, payload, self._prefix + token)
            return await asyncio.wait_for(future, ATTEMPT_S)
        except TimeoutError:
            raise Unanswered(f"no answer in {ATTEMPT_S:g} s") from None
        except errors.Error as error:
            raise Unanswered(str(error)) from error
        finally:
            del self._waiting[token]

    def _answered(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        del reply
        future = self._waiting.get(subject[len(self._prefix) :])
        if future is not None and not future.done():
            future.set_result((data, headers))

    def _disconnected(self) -> None:
        """Answers on their way are lost with the connection: do not wait for them."""
        self.disconnections += 1
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Unanswered("the connection was lost"))
