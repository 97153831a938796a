"""The NATS wire form: header blocks, publish commands, and a parser that hands messages straight to callbacks.

Pure bytes in, calls out; owns no socket. `DirectParser` replaces the parser of nats-py: two regular expressions and an
awaited coroutine per message become one split and one plain call.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Protocol

from nats.errors import ProtocolError
from nats.protocol.parser import Parser

DirectCallback = Callable[[bytes, bytes, bytes, bytes | None], None]
"""`callback(subject, reply, data, headers)`: `headers` is the raw block or None, `reply` empty when none is wanted."""

CONTROL_LINE_MAX = 1024 * 1024
STATUS_LINE = b"NATS/1.0 "
HEADER_LINE = b"NATS/1.0\r\n"
_M = ord("M")
MESSAGE_KINDS = frozenset(b"MH")


class MessageTarget(Protocol):
    """What the parser needs to know of a direct subscription."""

    callback: DirectCallback
    received: int


class Receiver(Protocol):
    """What the parser calls: the client."""

    @property
    def direct(self) -> "Mapping[bytes, MessageTarget]":
        """The direct subscriptions by id, as the server writes it."""
        ...

    def report(self, error: BaseException) -> None:
        """Take note of an error that must not stop the connection."""
        ...

    async def control(self, line: bytes) -> None:
        """Handle PING, PONG, INFO, +OK or -ERR."""
        ...

    async def indirect(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        """Handle a message of an ordinary nats-py subscription."""
        ...


class DirectParser(Parser):
    """Cuts the byte stream of one connection into messages; made anew for every connection."""

    def __init__(self, receiver: Receiver) -> None:
        super().__init__(receiver)  # pyright: ignore[reportUnknownMemberType]
        self._receiver = receiver

    def reset(self) -> None:
        """Forget a partly received message."""
        super().reset()
        self._tail = bytearray()
        self._wanted = 0

    async def parse(self, data: bytes = b"") -> None:
        """Deliver every complete message in `data` plus what was left over, and keep the rest.

        An error raised by a callback is reported and costs that message only.

        Raises:
            ProtocolError: the bytes are not NATS; the connection must be given up.
        """
        if self._tail:
            self._tail += data
            if len(self._tail) < self._wanted:
                return
            data = bytes(self._tail)
        done, self._wanted = await self._deliver(data)
        self._tail = bytearray(data[done:])

    async def _deliver(self, data: bytes) -> tuple[int, int]:
        """Deliver what is complete. Returns how many bytes were used and how many the next item needs (0: unknown)."""
        receiver = self._receiver
        direct, find, end = receiver.direct, data.find, len(data)
        at = 0
        while at < end:
            eol = find(b"\r\n", at)
            if eol < 0:
                if end - at > CONTROL_LINE_MAX:
                    raise ProtocolError
                break
            kind = data[at]
            if kind not in MESSAGE_KINDS:
                line = data[at:eol]
                at = eol + 2
                await receiver.control(line)
                continue
            # MSG subject sid [reply] size | HMSG subject sid [reply] header_size size
            words = data[at:eol].split()
            try:
                size = int(words[-1])
                fixed = 4 if kind == _M else 5
                reply = words[3] if len(words) > fixed else b""
                body = eol + 2 + (0 if kind == _M else int(words[-2]))
                sid, subject = words[2], words[1]
            except (ValueError, IndexError) as error:
                raise ProtocolError from error
            stop = eol + 2 + size
            if body > stop:
                raise ProtocolError
            if stop + 2 > end:
                return at, stop + 2 - at
            headers = None if kind == _M else data[eol + 2 : body]
            at = stop + 2
            target = direct.get(sid)
            try:
                if target is not None:
                    target.received += 1
                    target.callback(subject, reply, data[body:stop], headers)
                else:
                    await receiver.indirect(int(sid), subject, reply, data[body:stop], headers)
            except (Exception, asyncio.CancelledError) as error:
                if target is None and isinstance(error, asyncio.CancelledError):
                    raise
                receiver.report(error)
        return at, 0


def publish_command(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> bytes:
    """The PUB or HPUB line and body. `headers` is a whole block as `header_block` makes it."""
    if headers is None:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload)
    size = len(headers)
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, size, size + len(payload), headers, payload)


def header_block(headers: Mapping[str, str]) -> bytes:
    """A header block; line breaks in a value become spaces, so no value can add a header."""
    lines = [f"{name}: {_one_line(value)}\r\n" for name, value in headers.items()]
    return b"%b%b\r\n" % (HEADER_LINE, "".join(lines).encode())


def header_value(headers: bytes | None, name: str) -> str | None:
    """The first value of a header, its name compared without regard to case; None when absent."""
    if headers is None:
        return None
    wanted = b"\r\n" + name.lower().encode() + b":"
    at = headers.lower().find(wanted)
    if at < 0:
        return None
    start = at + len(wanted)
    return headers[start : headers.find(b"\r\n", start)].strip().decode("utf-8", "replace")


def status_of(headers: bytes | None) -> tuple[int, str]:
    """Code and text of an inline status such as `NATS/1.0 408 Request Timeout`; (0, "") of an ordinary message."""
    if headers is None or not headers.startswith(STATUS_LINE):
        return 0, ""
    line = headers[len(STATUS_LINE) : headers.find(b"\r\n")].strip()
    code = line[:3]
    return (int(code), line[3:].strip().decode("utf-8", "replace")) if code.isdigit() else (0, "")


def info_of(line: bytes) -> dict[str, object]:
    """The JSON of an INFO line.

    Raises:
        ProtocolError: it is no JSON object.
    """
    try:
        info = json.loads(line[4:])
    except ValueError as error:
        raise ProtocolError from error
    if not isinstance(info, dict):
        raise ProtocolError
    return info  # pyright: ignore[reportUnknownVariableType]


def _one_line(value: str) -> str:
    return value.replace("\r", " ").replace("\n", " ").strip()
