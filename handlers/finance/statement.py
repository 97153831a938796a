"""Decides what an invoice says: what was used and what was billed before in, lines and totals out. Pure.

What a payer owes for a period is what its usage counts for now, less what invoices have billed for it. So whatever is
booked later, in whatever order it is committed, is on the next invoice once: nothing is billed twice, nothing is lost.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Final, NamedTuple

from handlers.finance.conversion import Conversion
from handlers.finance.shares import percent_of, whole
from schemas.currencies import minor_decimals
from schemas.money import NANOS_DIGITS
from store.invoices import LineKey, LineRow, Measures

_NOTHING: Final = Measures()
_OWN_SECTION: Final = {"usage": "usage", "share": "share", "commitment": "commitment"}
_ORDER: Final = ("usage", "adjustment", "share", "commitment", "billed", "earlier")
Sums = Mapping[LineKey, Measures]


@dataclass(frozen=True, slots=True)
class Owed:
    """One period: what its usage counts for now, what was billed for it, and at which rates it is converted.

    ``corrects`` is the number of the invoice that had the period; None: it is the period of this invoice.
    """

    start: datetime
    end: datetime
    now: Sums
    billed: Sums
    conversion: Conversion
    corrects: str | None = None


class Totals(NamedTuple):
    """Nanos of the invoice's currency. ``due`` is ``total`` with ``rounding``: an amount that can be paid."""

    list_net: int
    net: int
    markup: int
    tax: int
    total: int
    rounding: int
    due: int


def lines_of(owed: Sequence[Owed]) -> list[LineRow]:
    """Every line that is not nothing, in the order of sections, dearest first in each."""
    found = [line for period in owed for line in _lines(period)]
    found.sort(key=lambda line: (_ORDER.index(line.section), line.period_start, -line.net, *_names(line)))
    return found


def _lines(owed: Owed) -> Iterator[LineRow]:
    if owed.corrects is None:
        for key, measures in owed.now.items():
            if measures != _NOTHING:
                yield _line(owed, _OWN_SECTION.get(key.kind, "adjustment"), key, measures)
        for key, measures in owed.billed.items():
            if measures != _NOTHING:
                yield _line(owed, "billed", key, negated(measures))
        return
    for key in {**owed.now, **owed.billed}:
        now, before = owed.now.get(key, _NOTHING), owed.billed.get(key, _NOTHING)
        if now != before:
            yield _line(owed, "earlier", key, Measures(*(a - b for a, b in zip(now, before, strict=True))))


def _line(owed: Owed, section: str, key: LineKey, measures: Measures) -> LineRow:
    convert = owed.conversion.convert
    return LineRow(
        section,
        key.kind,
        owed.start,
        owed.end,
        key.provider,
        key.model,
        key.project_id,
        key.rule,
        owed.corrects,
        key.currency,
        *measures,
        net=convert(measures.cost, key.currency),
        list_net=convert(measures.list_cost, key.currency),
    )


def _names(line: LineRow) -> tuple[str, ...]:
    return tuple(
        name or "" for name in (line.provider, line.model, line.project_id, line.rule, line.kind, line.currency)
    )


def negated(measures: Measures) -> Measures:
    """The same with the signs turned."""
    return Measures(*(-value for value in measures))


def turned(line: LineRow, corrects: str) -> LineRow:
    """A line of the credit note for the invoice ``corrects``."""
    measures = {name: -getattr(line, name) for name in (*Measures._fields, "net", "list_net")}
    return line._replace(**measures, corrects=line.corrects or corrects)


def totals_of(lines: Iterable[LineRow], currency: str, markup_percent: str, tax_percent: str) -> Totals:
    """Markup on the sum of the lines, tax on both, rounded half-even to what can be paid in the currency."""
    lines = list(lines)
    net, list_net = sum(line.net for line in lines), sum(line.list_net for line in lines)
    markup = whole(net * percent_of(markup_percent))
    tax = whole((net + markup) * percent_of(tax_percent))
    total = net + markup + tax
    unit = 10 ** (NANOS_DIGITS - minor_decimals(currency))
    due = whole(Fraction(total, unit)) * unit
    return Totals(list_net, net, markup, tax, total, due - total, due)
