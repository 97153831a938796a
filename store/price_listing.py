"""Reading an org's price rules and aliases as people do: the newest versions, pages and histories."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from store.pool import Connection
from store.prices import ModelAliasRow, PriceRuleRow, rule_row
from store.sql import queries

_SQL = queries("price_listing")
# A version, and when the first of its later versions takes over; None: there is none.
ListedRule = tuple[PriceRuleRow, datetime | None]
ListedAlias = tuple[ModelAliasRow, datetime | None]


async def newest_rules(connection: Connection, org: str, names: Sequence[str]) -> dict[str, PriceRuleRow]:
    """The newest version of each of the named rules that exist."""
    records = await connection.fetch(_SQL["newest_rules"], org, names)
    return {record["name"]: _rule(record)[0] for record in records}


async def rules_from(connection: Connection, org: str, at: datetime, *, limit: int) -> list[ListedRule]:
    """The versions that hold at ``at`` or later, by name and version."""
    return [_rule(record) for record in await connection.fetch(_SQL["rules_from"], org, at, limit)]


async def count_rules(connection: Connection, org: str) -> int:
    """How many rules there are or were."""
    return await connection.fetchval(_SQL["count_rules"], org)


async def page_rules(
    connection: Connection,
    org: str,
    *,
    name: str | None,
    layer: str | None,
    at: datetime,
    history: bool,
    coming: bool,
    after: tuple[str, int],
    limit: int,
) -> list[ListedRule]:
    """Versions in force at ``at``, with ``coming`` those to come too, with ``history`` all; by name and version."""
    records = await connection.fetch(_SQL["page_rules"], org, name, layer, *after, history, at, coming, limit)
    return [_rule(record) for record in records]


async def newest_alias(connection: Connection, org: str, provider: str, alias: str) -> ModelAliasRow | None:
    """The newest version of an alias."""
    record = await connection.fetchrow(_SQL["newest_alias"], org, provider, alias)
    return None if record is None else _alias(record)[0]


async def count_aliases(connection: Connection, org: str) -> int:
    """How many aliases there are or were."""
    return await connection.fetchval(_SQL["count_aliases"], org)


async def page_aliases(
    connection: Connection,
    org: str,
    *,
    provider: str | None,
    at: datetime,
    history: bool,
    after: tuple[str, str, int],
    limit: int,
) -> list[ListedAlias]:
    """Versions in force at ``at`` or to come, with ``history`` all; by provider, alias and version."""
    records = await connection.fetch(_SQL["page_aliases"], org, provider, *after, history, at, limit)
    return [_alias(record) for record in records]


def _rule(record: asyncpg.Record) -> ListedRule:
    values = dict(record)
    replaced_at = values.pop("replaced_at", None)
    return rule_row(values), replaced_at


def _alias(record: asyncpg.Record) -> ListedAlias:
    values = dict(record)
    replaced_at = values.pop("replaced_at", None)
    return ModelAliasRow(**values), replaced_at
