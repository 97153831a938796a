"""Rows of ``identity``: the names behind the surrogates that every other table uses."""

from collections.abc import Sequence
from datetime import datetime

from store.pool import Connection
from store.sql import queries

_SQL = queries("identities")
Key = tuple[str, str]


async def remember(connection: Connection, names: Sequence[tuple[str, str, str]]) -> None:
    """Keep (org, surrogate, name) unless the surrogate is known; one that was anonymised stays without a name."""
    wanted = sorted(names)
    await connection.execute(_SQL["remember"], *([row[i] for row in wanted] for i in range(3)))


async def find(connection: Connection, keys: Sequence[Key]) -> dict[Key, str | None]:
    """The names of (org, surrogate) pairs; None where it was anonymised, left out where it is unknown."""
    records = await connection.fetch(_SQL["find"], [key[0] for key in keys], [key[1] for key in keys])
    return {(record["org_id"], record["user_key"]): record["user_name"] for record in records}


async def anonymize(connection: Connection, org: str, user_key: str, at: datetime) -> datetime:
    """Delete the name behind a surrogate for good; returns when that was first done."""
    return await connection.fetchval(_SQL["anonymize"], org, user_key, at)


async def known(connection: Connection, org: str, user_key: str) -> bool | None:
    """Whether a surrogate was anonymised, its row locked; None where it is unknown."""
    return await connection.fetchval(_SQL["known"], org, user_key)
