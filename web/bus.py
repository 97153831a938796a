"""The side car's connection to the bus: one request, one bounded wait, one answer in HTTP terms."""
# pyright: reportUnknownMemberType=false
# nats-py leaves the options of its calls untyped.

import asyncio
import logging
from dataclasses import dataclass

import msgspec
from nats.aio.client import Client
from nats.errors import Error, MaxPayloadError, NoRespondersError

logger = logging.getLogger(__name__)

CODE_HEADER = "Nats-Service-Error-Code"
STATUS_OK = 200
STATUS_INTERNAL = 500


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A status and a JSON body."""

    status: int
    body: bytes


class Bus:
    """A connection that is made in the background and made again whenever it is lost."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._client = Client()
        self._connecting: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to connect and return at once; requests are `unavailable` until it has worked."""
        self._connecting = asyncio.create_task(self._connect())

    async def close(self) -> None:
        """Close the connection, or give up connecting."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        await self._client.close()

    async def _connect(self) -> None:
        await self._client.connect(
            self._url,
            name="token-manager-web",
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            ping_interval=10,
            max_outstanding_pings=2,
            error_cb=_log_error,
        )

    async def call(self, signal: str, body: bytes, *, timeout_s: float | None = None) -> Answer:
        """Send `token.<signal>` and return the answer; whatever goes wrong is an answer too."""
        if not self._client.is_connected:
            return failure(503, "unavailable", "not connected to the bus")
        try:
            reply = await self._client.request(f"token.{signal}", body, timeout=timeout_s or self._timeout_s)
        except NoRespondersError:
            return failure(
                503, "unavailable", f"nobody answers token.{signal}: no agent runs, or there is no such signal"
            )
        except MaxPayloadError:
            return failure(413, "too_large", "the body is larger than the bus takes")
        except (TimeoutError, Error) as error:
            logger.warning("token.%s was not answered: %r", signal, error)
            return failure(503, "unavailable", f"token.{signal} was not answered in time")
        return Answer(status=_status((reply.headers or {}).get(CODE_HEADER)), body=reply.data)


def failure(status: int, code: str, message: str) -> Answer:
    """Return an error in the form every signal uses."""
    error = {"code": code, "message": message, "field": None, "correlation_id": None}
    return Answer(status=status, body=msgspec.json.encode({"error": error}))


def _status(code: str | None) -> int:
    if code is None:
        return STATUS_OK
    known = code.isdecimal() and 400 <= int(code) <= 599
    return int(code) if known else STATUS_INTERNAL


async def _log_error(error: Exception) -> None:
    logger.debug("bus: %r", error)
