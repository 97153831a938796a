"""Every user, and in single-account mode every API key, in memory: dispatch decides synchronously who may do what.

PostgreSQL says what has changed at the commit that changed it; besides, everything is read again every so often and
whenever the connection is new. What was known stays known while PostgreSQL is away.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import asyncpg
import msgspec

from agent.backoff import Backoff
from store import api_keys as key_store
from store import users as user_store
from store.api_keys import ApiKeyRow
from store.pool import UNAVAILABLE, Connection
from store.users import UserRow

_log = logging.getLogger(__name__)
_CHANGE: Final = msgspec.json.Decoder(tuple[str, str, str])
_USERS: Final = "app_user"
_KEYS: Final = "api_key"
_CLOSE_S: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class DirectoryLimits:
    """How much is known, how old it may be, and how long one statement may take; times in seconds."""

    users_max: int
    keys_max: int
    changes_max: int
    reread_s: float
    stale_max_s: float
    timeout_s: float = 15.0


class Directory:
    """What one agent knows of users and keys. ``changed`` is called after every change of it."""

    def __init__(self, dsn: str, limits: DirectoryLimits, backoff: Backoff, *, with_keys: bool) -> None:
        self._dsn = dsn
        self._limits = limits
        self._backoff = backoff
        self._with_keys = with_keys
        self._users: dict[tuple[str, str], UserRow] = {}
        self._by_public_key: dict[tuple[str, str], UserRow] = {}
        self._keys: dict[tuple[str, str], ApiKeyRow] = {}
        self._connection: Connection | None = None
        self._news = asyncio.Event()
        self._pending: set[tuple[str, str, str]] = set()
        self._reread = True
        self._whole_at = self._sure_at = time.monotonic()
        self._overfull: set[str] = set()
        self._used: set[tuple[str, str]] = set()
        self.changed: list[Callable[[], None]] = []

    @property
    def knows_all_users(self) -> bool:
        """Whether a user who is not here is not in the table either."""
        return _USERS not in self._overfull

    @property
    def problem(self) -> str | None:
        """What to say when decisions are made from what may be out of date, or from a part of it."""
        age_s = time.monotonic() - self._sure_at
        if age_s > self._limits.stale_max_s:
            return f"users and keys were last read {age_s:.0f} s ago; changes since then are not known"
        if self._overfull:
            return f"{' and '.join(sorted(self._overfull))} have more rows than this agent keeps: raise the setting"
        return None

    def user(self, org: str, name: str) -> UserRow | None:
        """A user by the name or the public key with which the bus knows one, whether active or not."""
        return self._by_public_key.get((org, name)) or self._users.get((org, name))

    def key(self, org: str, key_id: str) -> ApiKeyRow | None:
        """A key, whether it can still be used or not."""
        return self._keys.get((org, key_id))

    def note_used(self, key: ApiKeyRow) -> None:
        """Remember that a key was used, until ``take_used``."""
        self._used.add((key.org_id, key.key_id))

    def take_used(self) -> list[tuple[str, str]]:
        """The keys (org, key id) that were used since the last time, sorted."""
        used, self._used = self._used, set()
        return sorted(used)

    async def open(self) -> None:
        """Read everything and begin to listen. Raises what asyncpg raises."""
        await self._connect()

    async def run(self) -> None:
        """Follow changes until cancelled; connections are renewed for ever."""
        while True:
            try:
                if self._connection is None:
                    await self._connect()
                await self._wait()
                await self._catch_up()
                self._backoff.reset()
            except (asyncpg.PostgresError, *UNAVAILABLE) as error:
                if self._connection is not None:
                    _log.warning("changes of users cannot be heard: %s", error or type(error).__name__)
                await self.close()
                await asyncio.sleep(self._backoff.next_s())

    async def close(self) -> None:
        """End the connection; what is known stays."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            try:
                await connection.close(timeout=_CLOSE_S)
            except (asyncpg.PostgresError, *UNAVAILABLE):
                connection.terminate()

    async def _connect(self) -> None:
        self._connection = await user_store.listen(
            self._dsn, heard=self._hear, ended=self._news.set, timeout_s=self._limits.timeout_s
        )
        await self._read_everything(self._connection)

    def _hear(self, payload: str) -> None:
        """A notification. More changes at once than are kept count as: everything has changed."""
        try:
            change = _CHANGE.decode(payload)
        except msgspec.DecodeError:
            self._reread = True
        else:
            self._pending.add(change)
            self._reread = self._reread or len(self._pending) > self._limits.changes_max
        if self._reread:
            self._pending.clear()
        self._news.set()

    async def _wait(self) -> None:
        left_s = self._whole_at + self._limits.reread_s - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                await self._news.wait()
        except TimeoutError:
            self._reread = True

    async def _catch_up(self) -> None:
        connection = self._connection
        if connection is None or connection.is_closed():
            raise ConnectionError("the connection is lost")
        self._news.clear()
        if self._reread or time.monotonic() - self._whole_at >= self._limits.reread_s:
            await self._read_everything(connection)
        elif self._pending:
            await self._read_changed(connection)

    async def _read_everything(self, connection: Connection) -> None:
        """What is heard while this reads is read after it: the connection listens already."""
        self._reread = False
        self._pending.clear()
        limits, began = self._limits, time.monotonic()
        users = await user_store.everyone(connection, limits.users_max + 1)
        keys = await key_store.everything(connection, limits.keys_max + 1) if self._with_keys else []
        found = {_USERS: (users, limits.users_max), _KEYS: (keys, limits.keys_max)}
        self._overfull = {table for table, (rows, most) in found.items() if len(rows) > most}
        self._users = {(row.org_id, row.name): row for row in users[: limits.users_max]}
        self._by_public_key = {(u.org_id, u.public_key): u for u in self._users.values() if u.public_key is not None}
        self._keys = {(row.org_id, row.key_id): row for row in keys[: limits.keys_max]}
        self._whole_at = self._sure_at = began
        self._tell()

    async def _read_changed(self, connection: Connection) -> None:
        changes, self._pending = self._pending, set()
        try:
            users = [(org, name) for table, org, name in changes if table == _USERS]
            keys = [(org, key_id) for table, org, key_id in changes if table == _KEYS and self._with_keys]
            if users:
                self._replace_users(users, await user_store.some(connection, users))
            if keys:
                self._replace_keys(keys, await key_store.some(connection, keys))
        except BaseException:
            self._reread = True
            raise
        self._tell()

    def _replace_users(self, named: Iterable[tuple[str, str]], rows: list[UserRow]) -> None:
        for place in named:
            before = self._users.pop(place, None)
            if before is not None and before.public_key is not None:
                self._by_public_key.pop((before.org_id, before.public_key), None)
        for row in rows:
            if len(self._users) >= self._limits.users_max:
                self._overfull.add(_USERS)
                return
            self._users[row.org_id, row.name] = row
            if row.public_key is not None:
                self._by_public_key[row.org_id, row.public_key] = row

    def _replace_keys(self, named: Iterable[tuple[str, str]], rows: list[ApiKeyRow]) -> None:
        for place in named:
            self._keys.pop(place, None)
        for row in rows:
            if row.revoked_at is not None:
                continue
            if len(self._keys) >= self._limits.keys_max:
                self._overfull.add(_KEYS)
                return
            self._keys[row.org_id, row.key_id] = row

    def _tell(self) -> None:
        for changed in self.changed:
            changed()
