"""What a provider's CSV says, as lines of one form: day, model, tier, kind, quantity, cost. Pure; columns come from
bill_formats. A file with one bad line gives nothing: the error names the line and what is wrong with it.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Final

from schemas.errors import SignalError, invalid
from schemas.money import COST_NANOS_MAX, NANOS_DIGITS

CALLS: Final = "calls"
_QUANTITY_MAX: Final = 10**15
_FIRST_DAY: Final = date(2000, 1, 1)
_LAST_DAY: Final = date(2199, 12, 31)
_COLUMNS_MAX: Final = 500
_DELIMITERS: Final = ",;\t"


@dataclass(frozen=True, slots=True)
class Item:
    """One statement of a line. ``model`` and ``kind`` are empty, ``quantity`` and ``cost`` None where not stated."""

    day: date
    model: str
    tier: str
    kind: str
    currency: str
    quantity: int | None
    cost: int | None


Key = tuple[date, str, str, str, str]


@dataclass(slots=True)
class Line:
    """The sum of items of one key; ``cells`` costs were added."""

    quantity: int | None = None
    cost: int | None = None
    cells: int = 0

    def add(self, item: Item) -> None:
        """Add what an item states. Raises BadCell where the sum is more than a bill can be."""
        if item.quantity is not None:
            self.quantity = (self.quantity or 0) + item.quantity
        if item.cost is not None:
            self.cost = (self.cost or 0) + item.cost
            self.cells += 1
        if (self.quantity or 0) > _QUANTITY_MAX or abs(self.cost or 0) > COST_NANOS_MAX:
            raise BadCell(f"the lines of {item.day} and {item.model[:40] or 'no model'!r} sum to more than any bill")


class BadCell(ValueError):
    """A cell that is not what its column holds; the text is fit for a caller."""


class Cells:
    """One line of the file by column names. Remembers how many decimals amounts were written with."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.decimals = 0

    def text(self, column: str | None) -> str:
        """The cell without surrounding blanks; empty where the file does not have it."""
        return self._values.get(column, "").strip() if column is not None else ""

    def count(self, column: str | None) -> int | None:
        """A whole number, also written ``59200.0``; None for an empty cell. Raises BadCell."""
        text = self.text(column)
        if not text:
            return None
        value = _decimal(text, column)
        if value != int(value) or not 0 <= value <= _QUANTITY_MAX:
            raise BadCell(f"{column} is {text[:40]!r}, not a whole number from 0 on")
        return int(value)

    def cost(self, column: str | None) -> int | None:
        """Nanos of an amount, rounded half-even; may be negative; None for an empty cell. Raises BadCell."""
        text = self.text(column).removeprefix("$")
        if not text:
            return None
        value = _decimal(text, column)
        if abs(value) > COST_NANOS_MAX // 10**NANOS_DIGITS:
            raise BadCell(f"{column} is {text[:40]!r}, more than any bill")
        exponent = value.as_tuple().exponent
        assert isinstance(exponent, int)
        self.decimals = max(self.decimals, min(-exponent, NANOS_DIGITS))
        return int((value * 10**NANOS_DIGITS).to_integral_value())

    def day(self, column: str) -> date:
        """The UTC day of a date or time. Raises BadCell."""
        text = self.text(column)
        try:
            whole = text if len(text) > 10 else f"{date.fromisoformat(text)}T12:00:00"
            found = datetime.fromisoformat(whole)
            at = found.astimezone(UTC) if found.tzinfo is not None else found.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            raise BadCell(f"{column} is {text[:40]!r}, not a date such as 2026-01-31") from None
        return _bounded(at.date(), column)

    def bucket(self, start: str, end: str) -> date:
        """The UTC day of a time bucket in Unix seconds. Raises BadCell, also where it is longer than that day."""
        since, until = self.count(start), self.count(end)
        if since is None:
            raise BadCell(f"{start} is empty")
        try:
            day = datetime.fromtimestamp(since, UTC).date()
            last = day if until is None else datetime.fromtimestamp(max(until - 1, since), UTC).date()
        except (OverflowError, ValueError, OSError):
            raise BadCell(f"{start} or {end} is no time in Unix seconds") from None
        if last != day:
            raise BadCell(f"the bucket from {day} to {last} is longer than a day of UTC: export by day")
        return _bounded(day, start)


def _bounded(day: date, column: str) -> date:
    if not _FIRST_DAY <= day <= _LAST_DAY:
        raise BadCell(f"{column} is {day}, {'before the year 2000' if day < _FIRST_DAY else 'in no near year'}")
    return day


def _decimal(text: str, column: str | None) -> Decimal:
    try:
        value = Decimal(text) if len(text) <= 60 and not set(text) - set("0123456789.-") else None
    except InvalidOperation:
        value = None
    if value is None:
        raise BadCell(f"{column} is {text[:40]!r}, not a plain number")
    return value


def read_table(text: str) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """The header of a CSV (commas, semicolons or tabs), and its lines by number. Raises SignalError naming ``csv``."""
    text = text.removeprefix("\ufeff")
    head, _, _ = text.partition("\n")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(_DELIMITERS, key=head.count), strict=True)

    def line() -> list[str] | None:
        number = reader.line_num + 1
        try:
            return next(reader, None)
        except csv.Error as error:
            raise bad_line(number, str(error)) from None

    header = [name.strip() for name in line() or []]
    if not any(header):
        raise bad_line(1, "there is no header")
    if len(header) > _COLUMNS_MAX:
        raise bad_line(1, f"has more than {_COLUMNS_MAX} columns")
    twice = [name for i, name in enumerate(header) if name in header[:i]]
    if twice:
        raise bad_line(1, f"the column {twice[0][:40]!r} is there twice")

    def lines() -> Iterator[tuple[int, dict[str, str]]]:
        while True:
            number = reader.line_num + 1
            values = line()
            if values is None:
                return
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(header):
                raise bad_line(number, f"has {len(values)} fields, the header {len(header)}")
            yield number, dict(zip(header, values, strict=True))

    return header, lines()


def bad_line(number: int, what: str) -> SignalError:
    """The refusal of a file for one of its lines; line 1 is the header."""
    return invalid(f"line {number}: {what}", field="csv")
