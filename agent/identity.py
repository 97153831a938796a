"""Who sent a request, from what the server stamped on it. Nothing a caller can write is believed in accounts mode."""

from collections.abc import Callable
from typing import Final

import msgspec

from handlers.context import Caller
from schemas.errors import SignalError
from schemas.subjects import DEFAULT_ORG

REQUEST_INFO: Final = "Nats-Request-Info"
_MARK: Final = f"\r\n{REQUEST_INFO}:".encode()
_CACHE_MAX: Final = 4096


class _RequestInfo(msgspec.Struct):
    acc: str = ""
    user: str | None = None


_DECODER: Final = msgspec.json.Decoder(_RequestInfo)


def _stamp(headers: bytes | None) -> str | None:
    """The server's stamp: the last header of exactly this name.

    The server appends its own and removes one of the same spelling; what else a caller sends by this or a similar name
    is still there, before it.
    """
    at = -1 if headers is None else headers.rfind(_MARK)
    if headers is None or at < 0:
        return None
    start = at + len(_MARK)
    return headers[start : headers.find(b"\r\n", start)].strip().decode("utf-8", "replace")


class Identity:
    """Turns a subject and the server's stamp into a caller.

    In accounts mode the org is the subject's third token, which the server put there, and a request without the
    server's stamp is refused. In single-account mode there is one org and nobody is known by name.
    """

    def __init__(self, roles_of: Callable[[str, str | None], frozenset[str]], *, single_account: bool) -> None:
        self._roles_of = roles_of
        self._single = single_account
        self._callers: dict[tuple[str, str | None], Caller] = {}
        # The server stamps one connection's requests alike, so most were read before, to the byte.
        self._read: dict[tuple[bytes, bytes | None], Caller] = {}

    def caller(self, subject: bytes, headers: bytes | None) -> Caller:
        """The caller. Raises SignalError ``unauthenticated``."""
        if self._single:
            return self._known(DEFAULT_ORG, None)
        found = self._read.get((subject, headers))
        if found is None:
            if len(self._read) >= _CACHE_MAX:
                self._read.clear()
            found = self._read[subject, headers] = self._from_stamp(subject, headers)
        return found

    def _from_stamp(self, subject: bytes, headers: bytes | None) -> Caller:
        stamp = _stamp(headers)
        if stamp is None:
            raise SignalError("unauthenticated", "the request did not come through an account import")
        try:
            user = _DECODER.decode(stamp).user
        except msgspec.DecodeError:
            raise SignalError("unauthenticated", "the server's request info cannot be read") from None
        return self._known(subject.split(b".", 3)[2].decode(), user)

    def _known(self, org: str, user: str | None) -> Caller:
        found = self._callers.get((org, user))
        if found is None:
            if len(self._callers) >= _CACHE_MAX:
                self._callers.clear()
            found = self._callers[org, user] = Caller(org, user, self._roles_of(org, user))
        return found
