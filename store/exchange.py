"""Rows of ``exchange_rate``: dated rates, never edited, in revisions that are ordered like their commits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple

from store.pool import Connection
from store.sql import queries

_SQL = queries("exchange")
# The org of the rates that every org has.
SHARED: Final = ""


class DatedRate(NamedTuple):
    """``rate`` units of ``quote`` are worth one unit of ``base`` on that day."""

    base: str
    quote: str
    as_of: date
    rate: Decimal


@dataclass(frozen=True, slots=True)
class RateRow:
    """A stored rate; ``org_id`` is empty for those that every org has."""

    org_id: str
    revision: int
    base: str
    quote: str
    as_of: date
    rate: Decimal
    source: str


async def lock(connection: Connection) -> int:
    """Wait for other changes of rates, of any org, and return the revision of this one. Held until the commit."""
    await connection.execute(_SQL["lock_revision"])
    return await connection.fetchval(_SQL["next_revision"])


async def add(
    connection: Connection, org: str, rates: Sequence[DatedRate], *, revision: int, source: str, at: datetime
) -> None:
    """Store rates as one revision; ``lock`` gave its number."""
    await connection.execute(_SQL["add"], org, revision, source, at, *_columns(rates))


async def add_new(
    connection: Connection, org: str, rates: Sequence[DatedRate], *, revision: int, source: str, at: datetime
) -> int:
    """The same without those whose pair has a rate of that day already; returns how many there were."""
    status = await connection.execute(_SQL["add_new"], org, revision, source, at, *_columns(rates))
    return int(status.rsplit(" ", 1)[1])


async def newest(connection: Connection, org: str) -> int:
    """The newest revision of an org's rates and those of every org; 0 where there are none."""
    return await connection.fetchval(_SQL["newest"], org)


async def since(connection: Connection, org: str, *, own: int, shared: int) -> list[RateRow]:
    """An org's rates after revision ``own`` and those of every org after ``shared``, oldest revision first."""
    return [RateRow(*record) for record in await connection.fetch(_SQL["since"], org, own, shared)]


async def days(connection: Connection, org: str) -> set[tuple[str, date]]:
    """The days that have a rate, by quote."""
    return {(record["quote"], record["as_of"]) for record in await connection.fetch(_SQL["days"], org)}


async def known(connection: Connection, org: str, rate: DatedRate) -> bool:
    """Whether a pair has a rate of that day."""
    return await connection.fetchval(_SQL["known"], org, rate.base, rate.quote, rate.as_of)


async def count(connection: Connection, org: str) -> int:
    """How many rates an org has given itself."""
    return await connection.fetchval(_SQL["count"], org)


def rate_columns(rates: Mapping[str, Fraction]) -> list[list[object]]:
    """Codes, numerators and denominators, as statements that convert costs take them."""
    fractions = rates.values()
    return [list(rates), [Decimal(f.numerator) for f in fractions], [Decimal(f.denominator) for f in fractions]]


def _columns(rates: Sequence[DatedRate]) -> list[list[object]]:
    return [list(column) for column in zip(*rates, strict=True)] or [[], [], [], []]
