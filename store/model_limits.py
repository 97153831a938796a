"""Rows of ``model_limit``: what an org says its models take and give. What it said before is in the audit trail."""

from dataclasses import astuple, dataclass
from datetime import datetime

from store.pool import Connection
from store.sql import queries

_SQL = queries("model_limits")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimitRow:
    """Limits in tokens; None leaves what is known of the model. ``provider`` is in lower case."""

    org_id: str
    provider: str
    model: str
    context_window: int | None
    max_input_tokens: int | None
    max_output_tokens: int | None
    set_by: str
    set_at: datetime


async def find(connection: Connection, org: str, provider: str, model: str) -> ModelLimitRow | None:
    """One row, None where the org has set nothing."""
    record = await connection.fetchrow(_SQL["find"], org, provider, model)
    return None if record is None else ModelLimitRow(**dict(record))


async def put(connection: Connection, row: ModelLimitRow) -> None:
    """Set, or change. The exclusive catalogue lock is held."""
    await connection.execute(_SQL["put"], *astuple(row))


async def remove(connection: Connection, org: str, provider: str, model: str) -> None:
    """Take away. The exclusive catalogue lock is held."""
    await connection.execute(_SQL["remove"], org, provider, model)


async def count(connection: Connection, org: str) -> int:
    """How many the org has set."""
    return await connection.fetchval(_SQL["count"], org)


async def listing(
    connection: Connection, org: str, *, provider: str | None, after: tuple[str, str], limit: int
) -> list[ModelLimitRow]:
    """By provider and model, after a (provider, model)."""
    records = await connection.fetch(_SQL["listing"], org, provider, *after, limit)
    return [ModelLimitRow(**dict(record)) for record in records]


async def load(connection: Connection, org: str) -> list[tuple[str, str, int | None, int | None, int | None]]:
    """Provider, model, window, input and output limit of every row."""
    return [tuple(record) for record in await connection.fetch(_SQL["load"], org)]
