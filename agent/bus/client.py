"""The connection to the bus: nats-py with its sharp edges removed, and a direct path for the hot subjects.

Owns one connection. Must never decide anything about a message. What is changed against nats-py 2.16 and why:

* PING takes its place behind buffered commands, so `flush()` is a barrier and draining a subscription loses nothing.
* Direct subscriptions call a plain function from the read loop: no queue, no task, no header parsing.
* No error while a message is processed stops the read loop; a loop that ends all the same means a reconnect.
* Only `close()` closes for good: an -ERR of the server leads to a reconnect, not to a dead client.

Private methods of nats-py are overridden, hence the version check below.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Callable
from typing import Any

from nats import errors
from nats.aio.client import PING_PROTO, Client, Srv
from nats.aio.client import __version__ as nats_version
from nats.aio.subscription import Subscription

from agent.bus.settings import BusCredentials, BusListeners, BusSettings, tune_socket
from agent.bus.wire import DirectCallback, DirectParser, info_of, publish_command

__all__ = [
    "BusClient",
    "BusCredentials",
    "BusListeners",
    "BusSettings",
    "ConnectFailed",
    "DirectSubscription",
    "connect",
]

SUPPORTED_VERSION = "2.16."
READ_BYTES = 256 * 1024
SHUTDOWN_GRACE_S = 0.05
KEPT_CONNECTION = ("permissions violation", "invalid subject", "invalid publish subject", "maximum subscriptions")
REFUSED = ("authorization", "authentication", "account ")

_BLANK = re.compile(rb"[ \t\r\n]")
_log = logging.getLogger(__name__)

if not nats_version.startswith(SUPPORTED_VERSION):
    raise ImportError(
        f"agent.bus.client overrides private methods of nats-py {SUPPORTED_VERSION}x, found {nats_version}"
    )


class ConnectFailed(Exception):
    """No server of the list could be connected to in time, or the credentials were refused."""


class DirectSubscription(Subscription):
    """Interest in one subject whose messages go straight to `callback`. Made by `BusClient.subscribe_direct`."""

    def __init__(self, client: "BusClient", sid: int, subject: str, queue: str, callback: DirectCallback) -> None:
        super().__init__(client, sid, subject, queue)  # pyright: ignore[reportUnknownMemberType]
        self.callback = callback
        self.received = 0
        self._client = client

    async def drain(self, timeout_s: float = 5.0) -> None:
        """End the interest without losing a message: when this returns no further callback comes.

        Other members of the queue group get everything the server has not sent here yet. Returns at once when the
        connection is down; a second call does nothing.

        Raises:
            nats.errors.FlushTimeoutError: the server did not confirm in time; the subscription is gone all the same.
        """
        await self._client.drain_direct(self._id, timeout_s)

    async def _drain(self) -> None:
        await self.drain()

    async def unsubscribe(self, limit: int = 0) -> None:
        """End the interest now; messages on their way here are dropped. `limit` must be 0."""
        assert limit == 0, "a direct subscription has no message limit"
        self._client.forget_direct(self._id)


class BusClient(Client):
    """A nats-py client with direct subscriptions and synchronous, coalesced publishing."""

    _pongs: list["asyncio.Future[Any]"]
    _reading_task: "asyncio.Task[Any] | None"
    _ping_interval_task: "asyncio.Task[Any] | None"
    _flusher_task: "asyncio.Task[Any] | None"

    def __init__(self, settings: BusSettings | None = None, listeners: BusListeners | None = None) -> None:
        super().__init__()
        self.settings = settings or BusSettings()
        self.listeners = listeners or BusListeners()
        self.direct: dict[bytes, DirectSubscription] = {}
        self.attached: dict[type, Any] = {}
        """Helpers that live as long as the connection, such as its one stored publisher."""
        self.replies_dropped = 0
        self.errors_reported = 0
        self.last_connect_error: Exception | None = None
        self._kick_token: asyncio.Future[None] | None = None
        self._closed_told = False
        self._rescue: asyncio.Future[None] | None = None

    # Subscribing

    def subscribe_now(self, subject: str, callback: DirectCallback, queue: str = "") -> DirectSubscription:
        """Like `subscribe_direct`, without awaiting: the SUB line goes out in its order with everything published."""
        self._check_open()
        if not subject or _BLANK.search(subject.encode()) or _BLANK.search(queue.encode()):
            raise errors.BadSubjectError
        self._sid += 1
        subscription = DirectSubscription(self, self._sid, subject, queue, callback)
        self._subs[self._sid] = subscription
        self.direct[b"%d" % self._sid] = subscription
        self._append(f"SUB {subject} {queue} {self._sid}\r\n".encode())
        return subscription

    async def subscribe_direct(self, subject: str, callback: DirectCallback, queue: str = "") -> DirectSubscription:
        """Call `callback` from the read loop for every message on `subject`; it must not block and may not await.

        The subscription survives reconnects. An exception of the callback goes to the error listeners.

        Raises:
            nats.errors.BadSubjectError: the subject or queue is empty or contains blanks.
            nats.errors.ConnectionClosedError: the client is closed.
        """
        return self.subscribe_now(subject, callback, queue)

    def forget_direct(self, sid: int) -> None:
        """Remove a direct subscription here and on the server, without waiting."""
        if self.direct.pop(b"%d" % sid, None) is not None:
            self._subs.pop(sid, None)
            if self.is_connected:
                self._append(b"UNSUB %d\r\n" % sid)

    async def drain_direct(self, sid: int, timeout_s: float) -> None:
        """What `DirectSubscription.drain` does."""
        key = b"%d" % sid
        if key not in self.direct:
            return
        # Out of the resubscribe list at once; the callback stays until the server has confirmed.
        self._subs.pop(sid, None)
        try:
            if self.is_connected:
                self._append(b"UNSUB %d\r\n" % sid)
                await self.barrier(timeout_s)
        except (errors.ConnectionClosedError, errors.ConnectionReconnectingError):
            pass
        finally:
            self.direct.pop(key, None)

    # Publishing

    def respond(self, reply: bytes, payload: bytes, headers: bytes | None = None) -> None:
        """Queue a reply; all replies of one turn of the event loop leave in one write.

        A reply that cannot be queued, because the client is closed or `pending_bytes` are waiting already, is dropped
        and counted in `replies_dropped`: its requester times out. `reply` comes from a message and is not checked.

        Raises:
            nats.errors.MaxPayloadError: larger than the server takes; nothing was queued.
        """
        if len(payload) + (len(headers) if headers else 0) > self._max_payload:
            raise errors.MaxPayloadError
        if self._pending_data_size > self._max_pending_size or self.is_closed:
            self.replies_dropped += 1
            return
        self._append(publish_command(reply, b"", payload, headers))
        self.stats["out_msgs"] += 1

    def publish_now(
        self, subject: bytes | str, payload: bytes, reply: bytes = b"", headers: bytes | None = None
    ) -> None:
        """Queue a message without awaiting. While the connection is down it waits for the reconnect.

        Raises:
            nats.errors.BadSubjectError: the subject is empty or contains blanks.
            nats.errors.MaxPayloadError: larger than the server takes.
            nats.errors.OutboundBufferLimitError: `pending_bytes` are waiting already; nothing was queued.
            nats.errors.ConnectionClosedError: the client is closed.
        """
        if isinstance(subject, str):
            subject = subject.encode()
        if not subject or _BLANK.search(subject) or _BLANK.search(reply):
            raise errors.BadSubjectError
        if len(payload) + (len(headers) if headers else 0) > self._max_payload:
            raise errors.MaxPayloadError
        self._check_open()
        if self._pending_data_size > self._max_pending_size:
            raise errors.OutboundBufferLimitError
        self._append(publish_command(subject, reply, payload, headers))
        self.stats["out_msgs"] += 1

    # Barriers

    async def barrier(self, timeout_s: float) -> None:
        """Wait until the server has seen everything queued before, and we everything it had sent by then.

        Raises:
            nats.errors.FlushTimeoutError: no answer in time.
            nats.errors.ConnectionClosedError, nats.errors.ConnectionReconnectingError: there is no connection.
        """
        if self.is_closed:
            raise errors.ConnectionClosedError
        if not self.is_connected:
            raise errors.ConnectionReconnectingError
        done = asyncio.get_running_loop().create_future()
        await self._send_ping(done)
        try:
            async with asyncio.timeout(timeout_s):
                await done
        except TimeoutError:
            raise errors.FlushTimeoutError from None

    async def flush(self, timeout: float = 10) -> None:
        """`barrier` under the name nats-py uses."""
        await self.barrier(timeout)

    # What the parser calls

    def report(self, error: BaseException) -> None:
        """Hand an error that stops nothing to the error listeners."""
        self.errors_reported += 1
        if not self.listeners.error:
            _log.error("bus: %r", error, exc_info=None if isinstance(error, (errors.Error, OSError)) else error)
        _call_each(self.listeners.error, error)

    async def control(self, line: bytes) -> None:
        """Handle a protocol line that is no message."""
        verb = line[:4].upper()
        if verb == b"PING":
            await self._process_ping()
        elif verb == b"PONG":
            await self._process_pong()
        elif verb == b"INFO":
            await self._process_info(info_of(line))
        elif verb == b"-ERR":
            await self._process_err(line[4:].strip().decode("utf-8", "replace").lower())
        elif not verb.startswith(b"+OK"):
            raise errors.ProtocolError

    async def indirect(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        """Hand a message to an ordinary nats-py subscription."""
        await self._process_msg(sid, subject, reply, data, headers or b"")

    # Overrides of nats-py

    async def _send_ping(self, future: "asyncio.Future[Any] | None" = None) -> None:
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        self._append(PING_PROTO)

    async def _process_pong(self) -> None:
        # nats-py sets the result of a future that may have been given up, which ends its read loop.
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():
                future.set_result(True)
            self._pongs_received += 1
            self._pings_outstanding = 0

    async def _process_err(self, err_msg: str) -> None:
        error = errors.Error(f"nats: {err_msg}")
        self._err = error
        self.report(error)
        if any(text in err_msg for text in KEPT_CONNECTION):
            return
        await self._process_op_err(error)

    async def _connect_to_server(self, s: Srv) -> None:
        self._abort_transport()
        await super()._connect_to_server(s)
        tune_socket(self._writer_info("socket"), self.settings)

    async def _process_connect_init(self) -> None:
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and not task.done():
                task.cancel()
        # A PING of the lost connection would be answered on the new one and end somebody else's barrier.
        self._pending = [command for command in self._pending if command is not PING_PROTO]
        self._pending_data_size = sum(map(len, self._pending))
        self._ps = DirectParser(self)
        await super()._process_connect_init()
        if not self.is_connected:  # nats-py goes on when the server hangs up instead of answering
            raise errors.UnexpectedEOF
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            assert task is not None
            task.add_done_callback(self._loop_ended)

    async def _attempt_reconnect(self) -> None:
        self._fail_pongs(errors.ConnectionReconnectingError())
        # Closing politely would wait for data that a dead peer never takes.
        self._abort_transport()
        try:
            await super()._attempt_reconnect()
        except Exception as error:  # anything nats-py does not expect would leave the client reconnecting for ever
            self.report(error)
            await self._close(Client.CLOSED)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self._fail_pongs(errors.ConnectionClosedError())
        try:
            async with asyncio.timeout(self.settings.close_timeout_s):
                await super()._close(status, do_cbs)
        except (OSError, RuntimeError, errors.Error, TimeoutError) as error:
            # RuntimeError is what uvloop says of a transport that the other side has closed meanwhile.
            self.report(error)
            self._abort_transport()
        finally:
            if status == Client.CLOSED:
                self._status = Client.CLOSED
                self.direct.clear()
                if do_cbs:
                    self.tell_closed()

    async def _read_loop(self) -> None:
        me, parser, transport = asyncio.current_task(), self._ps, self._transport
        assert transport is not None
        try:
            while self._reading_task is me and not (self.is_closed or self.is_reconnecting):
                data = await transport.read(READ_BYTES)
                if not data and transport.at_eof():
                    raise errors.UnexpectedEOF
                await parser.parse(data)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            if self._reading_task is me and not self.is_closed:
                self.report(error)
                await self._process_op_err(error)

    # Inside

    def tell_closed(self) -> None:
        """Tell the closed listeners, once."""
        if not self._closed_told:
            self._closed_told = True
            _call_each(self.listeners.closed)

    def _append(self, command: bytes) -> None:
        """Queue one command and wake the flusher."""
        self._pending.append(command)
        self._pending_data_size += len(command)
        queue = self._flush_queue
        if queue is not None and queue.empty() and self.is_connected:
            if self._kick_token is None:
                self._kick_token = asyncio.get_running_loop().create_future()
                self._kick_token.set_result(None)
            queue.put_nowait(self._kick_token)

    def _loop_ended(self, task: "asyncio.Task[Any]") -> None:
        """A loop of the live connection ended by itself: the connection is deaf or dumb, so make a new one.

        A moment later, because an event loop that is being shut down cancels these loops too.
        """
        asyncio.get_running_loop().call_later(SHUTDOWN_GRACE_S, self._replace_if_dead, task)

    def _replace_if_dead(self, task: "asyncio.Task[Any]") -> None:
        if self.is_connected and task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            error = errors.StaleConnectionError()
            self.report(error)
            self._rescue = asyncio.ensure_future(self._process_op_err(error))

    def _fail_pongs(self, error: Exception) -> None:
        pongs, self._pongs = self._pongs, []
        for pong in pongs:
            if not pong.done():
                pong.set_exception(error)
                pong.exception()  # nobody waits for the keep-alive's

    def _check_open(self) -> None:
        if self.is_closed:
            raise errors.ConnectionClosedError
        if self.is_draining_pubs:
            raise errors.ConnectionDrainingError

    def _writer_info(self, name: str) -> Any:
        writer = getattr(self._transport, "_io_writer", None)
        return None if writer is None else writer.get_extra_info(name)

    def _abort_transport(self) -> None:
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()


def _call_each(listeners: "list[Callable[..., None]]", *args: object) -> None:
    for listener in list(listeners):
        try:
            listener(*args)
        except Exception:
            _log.exception("bus: a listener failed")


async def connect(
    servers: str | list[str],
    *,
    instance: str = "",
    settings: BusSettings | None = None,
    credentials: BusCredentials | None = None,
    listeners: BusListeners | None = None,
) -> BusClient:
    """Connect as `token-manager/<instance>` with an inbox prefix of its own.

    Afterwards the client reconnects for ever; `listeners` (plain functions, which must not block) hear of it.

    Raises:
        ConnectFailed: not within `connect_deadline_s`, or refused; the text names the last error.
    """
    settings = settings or BusSettings()
    instance = instance or secrets.token_hex(6)
    client = BusClient(settings, listeners)
    refused: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
    attempt = asyncio.ensure_future(
        client.connect(
            servers,
            name=f"token-manager/{instance}",
            inbox_prefix=f"_INBOX_TM.{instance}",
            reconnect_to_server_handler=settings.next_server,
            max_reconnect_attempts=-1,
            **_callbacks(client, refused),
            **settings.options(),
            **(credentials or BusCredentials()).options(),
        )
    )
    try:
        waiting = (attempt, refused)
        await asyncio.wait(waiting, timeout=settings.connect_deadline_s, return_when=asyncio.FIRST_COMPLETED)
        if attempt.done() and not refused.done():
            attempt.result()
            return client
    except (errors.Error, OSError) as error:
        raise ConnectFailed(f"no connection to the bus: {error}") from error
    finally:
        if not client.is_connected:
            attempt.cancel()
            await asyncio.gather(attempt, return_exceptions=True)
            await client.close()
    cause = refused.result() if refused.done() else client.last_connect_error
    raise ConnectFailed(f"no connection to the bus: {cause or 'no answer'}")


def _callbacks(client: BusClient, refused: "asyncio.Future[Exception]") -> dict[str, Any]:
    """The coroutines nats-py wants, around the plain listeners; `refused` is set when a server refuses us."""
    heard = client.listeners

    async def on_error(error: Exception) -> None:
        client.last_connect_error = error
        client.report(error)
        if not refused.done() and any(text in str(error).lower() for text in REFUSED):
            refused.set_result(error)

    async def on_disconnected() -> None:
        _call_each(heard.disconnected)

    async def on_reconnected() -> None:
        _call_each(heard.reconnected)

    async def on_closed() -> None:
        client.tell_closed()

    async def on_lame_duck() -> None:
        _call_each(heard.lame_duck)

    return {
        "error_cb": on_error,
        "disconnected_cb": on_disconnected,
        "reconnected_cb": on_reconnected,
        "closed_cb": on_closed,
        "lame_duck_mode_cb": on_lame_duck,
    }
