"""Rows of ``api_key``. The secret itself is never here: only its SHA-256."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from store.pool import Connection
from store.sql import queries

_SQL = queries("api_keys")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyRow:
    """A key of one user, for some of the user's roles. ``shown_prefix`` is what a person recognises it by."""

    org_id: str
    key_id: str
    name: str
    user_name: str
    secret_hash: bytes
    shown_prefix: str
    roles: tuple[str, ...]
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


async def insert(connection: Connection, row: ApiKeyRow) -> None:
    """Store a new key."""
    values = (row.org_id, row.key_id, row.name, row.user_name, row.secret_hash, row.shown_prefix, list(row.roles))
    await connection.execute(_SQL["insert"], *values, row.created_by, row.created_at, row.expires_at)


async def find(connection: Connection, org: str, key_id: str) -> ApiKeyRow | None:
    """One key, revoked or not."""
    record = await connection.fetchrow(_SQL["find"], org, key_id)
    return None if record is None else _key(record)


async def count_live(connection: Connection, org: str) -> int:
    """How many keys of the org can be used."""
    return await connection.fetchval(_SQL["live"], org)


async def revoke(connection: Connection, org: str, key_id: str, at: datetime) -> None:
    """End a key; one that has ended keeps the time it ended at."""
    await connection.execute(_SQL["revoke"], org, key_id, at)


async def revoke_all(connection: Connection, org: str, user_name: str, at: datetime) -> list[str]:
    """End every key of a user; returns the ids of those that had not ended."""
    return [record["key_id"] for record in await connection.fetch(_SQL["revoke_all"], org, user_name, at)]


async def listing(
    connection: Connection, org: str, *, user_name: str | None, revoked: bool, before_key_id: str, limit: int
) -> list[ApiKeyRow]:
    """Keys, newest first, before ``before_key_id``; with ``revoked`` those that were ended, too."""
    records = await connection.fetch(_SQL["listing"], org, before_key_id, user_name, revoked, limit)
    return [_key(record) for record in records]


async def everything(connection: Connection, limit: int) -> list[ApiKeyRow]:
    """The keys of all orgs that were not revoked, at most ``limit``."""
    return [_key(record) for record in await connection.fetch(_SQL["everything"], limit)]


async def some(connection: Connection, named: Sequence[tuple[str, str]]) -> list[ApiKeyRow]:
    """Those keys (org, key id) that there are."""
    orgs, key_ids = [org for org, _ in named], [key_id for _, key_id in named]
    return [_key(record) for record in await connection.fetch(_SQL["some"], orgs, key_ids)]


async def used(connection: Connection, named: Sequence[tuple[str, str]]) -> None:
    """Note that these keys (org, key id) are in use."""
    await connection.execute(_SQL["used"], [org for org, _ in named], [key_id for _, key_id in named])


def _key(record: Any) -> ApiKeyRow:
    values: dict[str, Any] = dict(record)
    values["roles"] = tuple(values["roles"])
    return ApiKeyRow(**values)
