"""Rows of ``app_user`` and ``team_member``, the nonces of signed requests, and how agents hear of changed rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import asyncpg

from store.pool import Connection
from store.sql import queries

_SQL = queries("users")
# What the triggers of app_user and api_key notify.
CHANNEL: Final = "token_manager_access"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRow:
    """A user. ``name`` is the user's name on the bus, ``teams`` those a manager manages, ``public_key`` an NKey."""

    org_id: str
    name: str
    display_name: str
    roles: tuple[str, ...]
    teams: tuple[str, ...]
    public_key: str | None
    active: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class TeamRow:
    """A team of the directory and the users, as calls name them, that belong to it."""

    team_id: str
    members: tuple[str, ...]


async def lock(connection: Connection, org: str) -> None:
    """Be alone with the org's users, keys and schedules until the transaction ends; before any other lock."""
    await connection.execute(_SQL["lock"], org)


async def find(connection: Connection, org: str, name: str) -> UserRow | None:
    """One user, whether active or not."""
    record = await connection.fetchrow(_SQL["find"], org, name)
    return None if record is None else _user(record)


async def put(connection: Connection, row: UserRow) -> None:
    """Store a user as ``row`` says. Raises asyncpg.UniqueViolationError where another user has the public key."""
    values = (row.display_name, list(row.roles), list(row.teams), row.public_key, row.active)
    await connection.execute(_SQL["put"], row.org_id, row.name, *values, row.created_at, row.updated_at)


async def remove(connection: Connection, org: str, name: str) -> None:
    """Delete the row of an inactive user, whose name is to be forgotten; with it go the user's revoked keys."""
    await connection.execute(_SQL["remove"], org, name)


async def listing(
    connection: Connection, org: str, *, active: bool | None, role: str | None, after_name: str, limit: int
) -> list[UserRow]:
    """Users by name after ``after_name``."""
    return [_user(r) for r in await connection.fetch(_SQL["listing"], org, after_name, active, role, limit)]


async def everyone(connection: Connection, limit: int) -> list[UserRow]:
    """The users of all orgs, at most ``limit``."""
    return [_user(record) for record in await connection.fetch(_SQL["everyone"], limit)]


async def some(connection: Connection, named: Sequence[tuple[str, str]]) -> list[UserRow]:
    """Those users (org, name) that there are."""
    orgs, names = [org for org, _ in named], [name for _, name in named]
    return [_user(record) for record in await connection.fetch(_SQL["some"], orgs, names)]


async def teams(
    connection: Connection, org: str, *, after_team_id: str, limit: int, team_id: str | None = None
) -> list[TeamRow]:
    """Teams of the directory with their members, by id after ``after_team_id``; only ``team_id`` if given."""
    records = await connection.fetch(_SQL["teams"], org, after_team_id, team_id, limit)
    return [TeamRow(record["team_id"], tuple(record["members"])) for record in records]


async def set_team(connection: Connection, org: str, team_id: str, members: Sequence[str]) -> None:
    """Make ``members`` the members of a team. The catalogue is locked and bumped by the caller."""
    await connection.execute(_SQL["empty_team"], org, team_id)
    await connection.execute(_SQL["fill_team"], org, team_id, list(members))


async def claim_nonce(connection: Connection, *, org: str, user: str, nonce: str, keep_s: float) -> bool:
    """Remember a nonce for ``keep_s`` seconds; returns whether it is used for the first time."""
    return await connection.fetchval(_SQL["claim_nonce"], org, user, nonce, keep_s) is not None


async def forget_nonces(connection: Connection, limit: int) -> None:
    """Remove at most ``limit`` nonces that no signature can use any more."""
    await connection.execute(_SQL["forget_nonces"], limit)


async def listen(dsn: str, *, heard: Callable[[str], None], ended: Callable[[], None], timeout_s: float) -> Connection:
    """A connection of its own that calls ``heard`` with ``[table, org, id]`` (JSON) for each change committed from now
    on, and ``ended`` when it is lost. Raises what asyncpg raises where the server cannot be reached.
    """
    options = {"application_name": "token-manager directory", "jit": "off", "timezone": "UTC"}
    connection = await asyncpg.connect(dsn, timeout=timeout_s, command_timeout=timeout_s, server_settings=options)

    def hear(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        heard(str(payload))

    connection.add_termination_listener(lambda _connection: ended())
    try:
        await connection.add_listener(CHANNEL, hear)
    except BaseException:
        connection.terminate()
        raise
    return connection


def _user(record: Any) -> UserRow:
    values: dict[str, Any] = dict(record)
    for name in ("roles", "teams"):
        values[name] = tuple(values[name])
    return UserRow(**values)
