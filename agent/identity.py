"""Who sent a request and what they may do. Nothing a caller can write is believed in accounts mode.

In accounts mode the server says who it is: the org in the subject, the user in its stamp. In single-account mode a
caller proves it by an API key or a signature (agent/signed.py), or is nobody in particular.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import msgspec

from agent.directory import Directory
from agent.signed import KEY_HEADER, Proofs, Signed, own_headers
from handlers.access.api_keys import key_roles
from handlers.context import Caller
from schemas.errors import SignalError
from schemas.subjects import DEFAULT_ORG
from store import users as user_store
from store.pool import Database
from store.users import UserRow

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


@dataclass(frozen=True, slots=True)
class Access:
    """What a caller may do: the directory decides, and ``roles_of`` (org, user) for whom it does not know."""

    directory: Directory
    roles_of: Callable[[str, str | None], frozenset[str]]
    key_of: Callable[[str, str], str]
    """The surrogate (org, user) that stands for a user in records."""

    def caller(self, org: str, user: str | None) -> Caller:
        """The caller the bus, or a schedule, calls ``user``: a name, or the public key of one who connects by key."""
        row = None if user is None else self.directory.user(org, user)
        if row is not None:
            return self.known(row)
        if user is not None and self.directory.user(org, self.key_of(org, user)) is not None:
            return self._named(org, user, frozenset())  # Whose name was deleted: the row that is left says no.
        if not self.directory.knows_all_users:
            return self._named(org, user, frozenset())
        return self._named(org, user, self.roles_of(org, user))

    def known(self, row: UserRow) -> Caller:
        """A user of the table; one who is not active may do nothing."""
        if not row.active:
            return self._named(row.org_id, row.name, frozenset())
        return self._named(row.org_id, row.name, frozenset(row.roles), frozenset(row.teams))

    def _named(self, org: str, user: str | None, roles: frozenset[str], teams: frozenset[str] = frozenset()) -> Caller:
        return Caller(org, user, roles, teams, None if user is None else self.key_of(org, user))


class Identity:
    """Turns a subject, headers and payload into a caller.

    In accounts mode the org is the subject's third token, which the server put there, and a request without the
    server's stamp is refused. In single-account mode there is one org.
    """

    def __init__(self, access: Access, proofs: Proofs | None, clock: Callable[[], datetime]) -> None:
        """``proofs`` are what single-account mode asks for; None: accounts mode."""
        self._access = access
        self._proofs = proofs
        self._clock = clock
        self._callers: dict[tuple[str, str | None], Caller] = {}
        # The server stamps one connection's requests alike, so most were read before, to the byte.
        self._read: dict[tuple[bytes, bytes | None], Caller] = {}
        access.directory.changed.append(self.forget)

    def forget(self) -> None:
        """Decide anew who may do what: users have changed."""
        self._callers.clear()
        self._read.clear()

    def caller(self, subject: bytes, headers: bytes | None, payload: bytes) -> tuple[Caller, Signed | None]:
        """The caller, and the signature whose nonce must be claimed before the request is handled, if there is one.

        Raises SignalError ``unauthenticated``.
        """
        if self._proofs is not None:
            return self._proven(self._proofs, subject, headers, payload)
        found = self._read.get((subject, headers))
        if found is None:
            if len(self._read) >= _CACHE_MAX:
                self._read.clear()
            found = self._read[subject, headers] = self._from_stamp(subject, headers)
        return found, None

    def _proven(
        self, proofs: Proofs, subject: bytes, headers: bytes | None, payload: bytes
    ) -> tuple[Caller, Signed | None]:
        given = own_headers(headers)
        if not given:
            return self._known(DEFAULT_ORG, None), None
        if KEY_HEADER in given:
            if len(given) > 1:
                raise SignalError("unauthenticated", "a request has an API key or a signature, not both")
            key, user = proofs.key(given[KEY_HEADER], self._clock())
            caller = self._known(DEFAULT_ORG, user.name)
            return replace(caller, roles=key_roles(key, caller.roles)), None
        signed = proofs.signature(given, subject=subject.decode(), payload=payload, now=self._clock())
        return self._known(DEFAULT_ORG, signed.user.name), signed

    async def claim(self, database: Database, signed: Signed) -> None:
        """Use up the nonce of a signed request, on all agents. Raises SignalError ``unauthenticated`` if it was."""
        org, user = signed.user.org_id, signed.user.name
        async with database.connection() as connection:
            if await user_store.claim_nonce(connection, org=org, user=user, nonce=signed.nonce, keep_s=signed.keep_s):
                return
        raise SignalError("unauthenticated", "the request was sent before")

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
            found = self._callers[org, user] = self._access.caller(org, user)
        return found
