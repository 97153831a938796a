"""User names behind surrogates: names become surrogates where they enter, and surrogates names where they leave.

In between (ledger, rollups, reservations, audit trail) nobody has a name. Replies and events are written with
surrogates, which are replaced in their JSON at the very end; a surrogate without a name stays as it is.
"""

import contextlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec

from handlers.vault import SURROGATE_PREFIX, Vault
from schemas.errors import invalid
from store import identities as identity_store
from store.identities import Key
from store.pool import UNAVAILABLE, Database

_SURROGATE: Final = re.compile(rb"uk_[a-z2-7]{26}")
_WHOLE: Final = re.compile(r"uk_[a-z2-7]{26}")
_MARK: Final = SURROGATE_PREFIX.encode()
_ENCODE: Final = msgspec.json.Encoder().encode


# A surrogate, and with the name it stands for, as they are written in JSON.
Hidden = tuple[str, tuple[bytes, bytes] | None]


def is_surrogate(text: str) -> bool:
    """Whether ``text`` is a surrogate already, made here or by a caller's own key."""
    return _WHOLE.fullmatch(text) is not None


def rename_users(document: Any, key_of: Callable[[str], str | None]) -> bool:
    """Replace every ``user_id`` in plain JSON, in place, by what ``key_of`` says (None: leave it); whether any was.

    Without recursion: payloads are as deep as callers like.
    """
    found = False
    waiting: list[Any] = [document]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            fields = cast("dict[str, Any]", part)
            name = fields.get("user_id")
            key = key_of(name) if isinstance(name, str) else None
            if key is not None and key != name:
                fields["user_id"] = key
                found = True
            waiting.extend(fields.values())
        elif isinstance(part, list):
            waiting.extend(cast("list[Any]", part))
    return found


class Identities:
    """What this agent knows of names; bounded by ``limit`` users. Names it met are stored by ``flush``.

    A name is believed for ``keep_s`` seconds, so one that another agent made anonymous is forgotten here by then; that
    there is none for ``unknown_keep_s``, so one that another agent has just stored is told here by then.
    """

    def __init__(
        self, database: Database, vault: Vault, *, limit: int, keep_s: float, unknown_keep_s: float = 1.0
    ) -> None:
        self._database = database
        self._vault = vault
        self._limit = limit
        self._keep_s = keep_s
        self._unknown_keep_s = unknown_keep_s
        self._keys: dict[Key, Hidden] = {}
        self._names: OrderedDict[Key, tuple[str | None, float]] = OrderedDict()
        self._new: dict[Key, str] = {}

    def key_of(self, org: str, name: str, policy: str = "keep") -> str:
        """The surrogate of a user's name; a surrogate stands for itself.

        ``policy`` is the org's ``user_names``: keep, surrogate (the name is not kept) or refuse (SignalError naming
        the field ``user_id``).
        """
        return self.hidden(org, name, policy)[0]

    def hidden(self, org: str, name: str, policy: str) -> Hidden:
        """As ``key_of``, and both as JSON writes them, to be exchanged in a reply; None for what is a surrogate."""
        known = self._keys.get((org, name))
        if known is not None and policy == "keep":
            return known
        if is_surrogate(name):
            return name, None
        if policy == "refuse":
            raise invalid("plain user names are refused in this org: send a surrogate (uk_...)", field="user_id")
        key = self._vault.surrogate(org, name)
        found = key, (key.encode(), _ENCODE(name)[1:-1])
        if policy == "keep":
            self._meet(org, name, found)
        return found

    def _meet(self, org: str, name: str, found: Hidden) -> None:
        if len(self._keys) >= self._limit:
            self._keys.clear()
        self._keys[org, name] = found
        key = found[0]
        if (org, key) not in self._names and len(self._new) < self._limit:
            self._new[org, key] = name
            self._put((org, key), name)

    def _put(self, key: Key, name: str | None) -> None:
        self._names[key] = (name, time.monotonic() + (self._keep_s if name is not None else self._unknown_keep_s))
        if len(self._names) > self._limit:
            self._names.popitem(last=False)

    def named(self, org: str, payload: bytes) -> bytes:
        """JSON with every surrogate replaced whose name this agent knows. Costs nothing where there is none."""
        if _MARK not in payload:
            return payload
        return _SURROGATE.sub(lambda found: self._name(org, found[0]), payload)

    def _name(self, org: str, surrogate: bytes) -> bytes:
        known = self._names.get((org, surrogate.decode()))
        return surrogate if known is None or known[0] is None else _ENCODE(known[0])[1:-1]

    def spoken(self, org: str, text: str, escape: Callable[[str], str] = str) -> str:
        """Text for people with every surrogate replaced whose name this agent knows: on one line, and escaped."""

        def name(found: re.Match[str]) -> str:
            known = self._names.get((org, found[0]))
            return found[0] if known is None or known[0] is None else escape(" ".join(known[0].split()))

        return _WHOLE.sub(name, text)

    async def learn(self, org: str, payload: bytes) -> None:
        """Read the names behind the surrogates in ``payload`` that this agent does not know, or no longer believes.

        Those it alone knows are stored first: whoever is told of them may ask another agent next.
        """
        if _MARK not in payload:
            return
        now = time.monotonic()
        found = {(org, key.decode()) for key in _SURROGATE.findall(payload)}
        if not found.isdisjoint(self._new):
            with contextlib.suppress(*UNAVAILABLE):
                await self.flush()
        wanted = sorted(key for key in found if key not in self._new and self._stale(key, now))
        if not wanted:
            return
        async with self._database.connection() as connection:
            names = await identity_store.find(connection, wanted)
        for key in wanted:
            self._put(key, names.get(key))

    def _stale(self, key: Key, now: float) -> bool:
        known = self._names.get(key)
        return known is None or known[1] < now

    async def flush(self) -> None:
        """Store the names met since the last time. Where PostgreSQL is away it raises, and nothing is lost."""
        if not self._new:
            return
        taken = dict(self._new)
        async with self._database.transaction() as connection:
            await identity_store.remember(connection, [(org, key, name) for (org, key), name in sorted(taken.items())])
            names = await identity_store.find(connection, sorted(taken))
        for key in taken:
            self._new.pop(key, None)
            self._put(key, names.get(key))

    def forget(self, org: str, key: str) -> None:
        """Drop the name behind a surrogate at once: it was made anonymous."""
        self._new.pop((org, key), None)
        self._put((org, key), None)
