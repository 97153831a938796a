"""Rows of ``sizing``: how much of their worst case calls took, by key; and of ``overrun_cause``: what found no room."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from store.pool import Connection
from store.sql import queries

# Of currencies with small units more than this may add up in a day; it is told as at least this much.
_AMOUNT_MAX = 9_000_000_000_000_000_000
_SQL = queries("sizing")

# Provider, model, feature and agent; an empty feature or agent stands for any.
Key = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class SizingRow:
    """The ratios of one key by bucket; of ``learned`` settled reservations that held less, ``missed`` took more."""

    key: Key
    cost: list[int]
    tokens: list[int]
    learned: int
    missed: int
    updated_at: datetime


@dataclass(slots=True)
class Observed:
    """What a batch adds to one key: counts by bucket (most of them 0), and reservations that held less."""

    cost: list[int]
    tokens: list[int]
    learned: int = 0
    missed: int = 0


def _row(record: Any) -> SizingRow:
    key = (record["provider"], record["model"], record["feature"], record["agent_id"])
    return SizingRow(
        key,
        record["cost_counts"],
        record["token_counts"],
        record["learned"],
        record["missed"],
        record["updated_at"],
    )


async def add(
    connection: Connection, org: str, observed: Mapping[Key, Observed], *, keys_max: int, samples_max: int
) -> None:
    """Add what a batch observed, in key order. Beyond about ``keys_max`` keys of the org new ones are left out.

    Beyond ``samples_max`` counts a histogram is thinned out, so what is old fades.
    """
    if not observed:
        return
    keys = sorted(observed)
    rows = [observed[key] for key in keys]
    await connection.execute(
        _SQL["add"],
        org,
        *(list(column) for column in zip(*keys, strict=True)),
        [_array(row.cost) for row in rows],
        [_array(row.tokens) for row in rows],
        keys_max,
        samples_max,
        [row.learned for row in rows],
        [row.missed for row in rows],
    )


async def changed(
    connection: Connection, org: str, *, since: datetime | None, limit: int
) -> tuple[list[SizingRow], datetime | None]:
    """Rows that may have changed since the last look (None: all), oldest change first, and the newest change seen.

    A change is dated before its commit, so each look goes back a minute.
    """
    rows = [_row(r) for r in reversed(await connection.fetch(_SQL["changed"], org, since, limit))]
    return rows, rows[-1].updated_at if rows else since


async def forget(connection: Connection, org: str, *, keys_max: int, keep: int) -> None:
    """Where an org has reached ``keys_max`` keys, delete those unchanged for longest until ``keep`` are left."""
    await connection.execute(_SQL["forget"], org, keep, keys_max)


async def listing(connection: Connection, org: str, *, after: Key = ("", "", "", ""), limit: int) -> list[SizingRow]:
    """Rows by key, after ``after``: what is observed, and how often what was held was too little."""
    return [_row(r) for r in await connection.fetch(_SQL["listing"], org, *after, limit)]


@dataclass(frozen=True, slots=True)
class Overrun:
    """What found no room: ``amount`` in ``unit`` (nanos of ``currency`` for cost), over so many charges of windows."""

    cause: str
    unit: str
    amount: int
    charges: int
    currency: str = "USD"


async def count_overrun(connection: Connection, org: str, rows: Sequence[Overrun]) -> None:
    """Add to today's overrun by cause (the ledger's clock, UTC). The windows are locked: this comes after them."""
    if rows:
        ordered = sorted(rows, key=lambda row: (row.cause, row.unit, row.currency))
        await connection.execute(
            _SQL["count_overrun"],
            org,
            [row.cause for row in ordered],
            [row.unit for row in ordered],
            [min(row.amount, _AMOUNT_MAX) for row in ordered],
            [row.charges for row in ordered],
            [row.currency for row in ordered],
        )


async def overruns(connection: Connection, org: str, *, since: date, until: date) -> list[Overrun]:
    """Overrun by cause, unit and currency over the days in [``since``, ``until``)."""
    return [Overrun(**dict(record)) for record in await connection.fetch(_SQL["overruns"], org, since, until)]


def _array(counts: Sequence[int]) -> str:
    return "{" + ",".join(map(str, counts)) + "}"
