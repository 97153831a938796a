"""Every request: decode, who is it, may they, handle, reply. The one place where errors become replies."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from nats import errors as nats_errors

from agent.bus.client import BusClient, DirectSubscription
from agent.bus.service import EndpointStats
from agent.bus.wire import header_block
from agent.identity import Identity
from agent.signed import Signed
from handlers.context import Caller, Context, Inbound, Services
from schemas.codec import Codec, unwrap
from schemas.errors import STATUS, Error, ErrorReply, SignalError, unavailable
from signals import Request, Route
from store.pool import UNAVAILABLE, is_unavailable

_ENCODE: Final = msgspec.json.Encoder().encode
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchRoute:
    """A signal whose requests are decided in groups: ``submit`` takes one and answers it later."""

    signal: Request[Any, Any]
    submit: Callable[[Inbound], None]


@dataclass(frozen=True, kw_only=True)
class DispatchLimits:
    """How many requests run and wait at once, and for how long one may run."""

    concurrency_max: int
    queue_max: int
    timeout_s: float


class Dispatch:
    """Subscribes every route and answers every request it takes, also while it drains."""

    def __init__(self, client: BusClient, services: Services, identity: Identity, limits: DispatchLimits) -> None:
        self._client = client
        self._services = services
        self._identity = identity
        self._limits = limits
        self._places = asyncio.Semaphore(limits.concurrency_max)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._subscriptions: list[DirectSubscription] = []

    @property
    def open_requests(self) -> int:
        """Requests taken and not yet answered."""
        return self._open

    async def serve(
        self,
        routes: Iterable[Route[Context] | BatchRoute],
        *,
        prefix: str,
        queue: str,
        stats: Callable[[str], EndpointStats],
    ) -> None:
        """Subscribe ``<prefix>.<signal>`` for each route."""
        for route in routes:
            name = route.signal.name
            receive = self._receiver(route, stats(name))
            self._subscriptions.append(await self._client.subscribe_direct(f"{prefix}.{name}", receive, queue=queue))

    async def drain(self, timeout_s: float) -> bool:
        """Take no more requests and answer those taken; returns whether all were answered in time."""
        drains = [subscription.drain(timeout_s) for subscription in self._subscriptions]
        self._subscriptions.clear()
        for result in await asyncio.gather(*drains, return_exceptions=True):
            # A bus that hangs brings no more requests either; what was taken is finished all the same.
            if isinstance(result, BaseException) and not isinstance(result, nats_errors.Error):
                raise result
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _receiver(
        self, route: Route[Context] | BatchRoute, stats: EndpointStats
    ) -> Callable[[bytes, bytes, bytes, bytes | None], None]:
        signal = route.signal
        codec = Codec(signal.request)

        def receive(subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
            answer = self._answer(reply, stats)
            try:
                caller, signed = self._identity.caller(subject, headers, data)
                self._authorise(signal, caller)
            except SignalError as error:
                answer.fail(error)
                return
            if signed is not None:
                self._admit(self._once(signed, answer, lambda: take(caller, data, answer)), answer)
            else:
                take(caller, data, answer)

        def take(caller: Caller, data: bytes, answer: _Answer) -> None:
            if isinstance(route, BatchRoute):
                _submit(route, Inbound(caller, data, answer.send, answer.fail), answer)
            else:
                self._admit(self._handle(route, codec, caller, data, answer), answer)

        return receive

    def _authorise(self, signal: Request[Any, Any], caller: Caller) -> None:
        if not signal.allows(caller.roles):
            needed = " or ".join(signal.roles)
            raise SignalError("forbidden", f"{signal.name} needs the role {needed}")

    def _admit(self, work: Coroutine[Any, Any, None], answer: "_Answer") -> None:
        """Start what answers a request, unless too many are waiting."""
        if len(self._tasks) >= self._limits.concurrency_max + self._limits.queue_max:
            work.close()
            answer.fail(unavailable("too many requests are waiting; try again"))
        else:
            self._start(work)

    async def _once(self, signed: Signed, answer: "_Answer", take: Callable[[], None]) -> None:
        """Take a signed request if no agent has seen its nonce before."""
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await self._identity.claim(self._services.database, signed)
        except SignalError as error:
            answer.fail(error)
        except Exception as error:  # As for every request: an answer with a code.
            self._fail(answer, error)
        else:
            take()

    def _answer(self, reply: bytes, stats: EndpointStats) -> "_Answer":
        self._open += 1
        self._idle.clear()
        return _Answer(self, self._client, reply, stats)

    def answered(self) -> None:
        """One request is answered."""
        self._open -= 1
        if not self._open:
            self._idle.set()

    def new_correlation_id(self) -> str:
        """Ties an error reply to the log."""
        return self._services.new_id()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(
        self, route: Route[Context], codec: Codec[Any], caller: Caller, data: bytes, answer: "_Answer"
    ) -> None:
        try:
            # The time bound holds for waiting and work together: a hanging dependency must not make the queue endless.
            place = self._places if route.signal.queued else contextlib.nullcontext()
            async with asyncio.timeout(self._limits.timeout_s), place:
                request = codec.decode(unwrap(data)[0])
                try:
                    reply = await route.handler(Context(self._services, caller), request)
                except SignalError as error:
                    raise await self._spoken(caller.org, error) from error
                answer.send(_ENCODE(reply) if reply.verbatim else await self._named(caller.org, _ENCODE(reply)))
        except SignalError as error:
            answer.fail(error)
        except Exception as error:  # The last line of defence: the caller gets a code, the log the rest.
            self._fail(answer, error)

    async def _named(self, org: str, payload: bytes) -> bytes:
        identities = self._services.identities
        await identities.learn(org, payload)
        return identities.named(org, payload)

    async def _spoken(self, org: str, error: SignalError) -> SignalError:
        """The error with names in the place of surrogates, as far as they can be had."""
        identities = self._services.identities
        with contextlib.suppress(*UNAVAILABLE):
            await identities.learn(org, error.message.encode())
        return SignalError(error.code, identities.spoken(org, error.message), field=error.field)

    def _fail(self, answer: "_Answer", error: Exception) -> None:
        if is_unavailable(error):
            answer.fail(unavailable("a dependency cannot be reached; try again"))
        else:
            answer.fail(SignalError("internal", "the request failed; the log has the correlation id"), error)


def _submit(route: BatchRoute, inbound: Inbound, answer: "_Answer") -> None:
    """Hand a request to its group. A defect there costs this request, which is answered all the same."""
    try:
        route.submit(inbound)
    except Exception as error:
        answer.fail(SignalError("internal", "the request failed; the log has the correlation id"), error)


class _Answer:
    """The one reply of a request."""

    __slots__ = ("_client", "_dispatch", "_reply", "_since", "_stats")

    def __init__(self, dispatch: Dispatch, client: BusClient, reply: bytes, stats: EndpointStats) -> None:
        self._dispatch = dispatch
        self._client = client
        self._reply = reply
        self._stats = stats
        self._since = time.perf_counter_ns()

    def send(self, payload: bytes) -> None:
        """Reply with a result."""
        try:
            if self._reply:
                self._client.respond(self._reply, payload)
        except nats_errors.MaxPayloadError:
            self.fail(SignalError("too_large", "the reply is larger than the bus carries; ask for less at a time"))
            return
        self._done(None)

    def fail(self, error: SignalError, cause: BaseException | None = None) -> None:
        """Reply with an error; its code is contract, in the body and, as a number, in the headers."""
        correlation_id = self._dispatch.new_correlation_id()
        if cause is not None:
            _log.error("request failed (%s)", correlation_id, exc_info=cause)
        body = Error(code=error.code, message=error.message, field=error.field, correlation_id=correlation_id)
        headers = header_block(
            {"Nats-Service-Error": error.message[:512], "Nats-Service-Error-Code": str(STATUS[error.code])}
        )
        if self._reply:
            self._client.respond(self._reply, _ENCODE(ErrorReply(error=body)), headers)
        self._done(f"{error.code}: {error.message}")

    def _done(self, error: str | None) -> None:
        self._stats.count(time.perf_counter_ns() - self._since, error)
        self._dispatch.answered()
