"""What an org has promised to spend in a month and did not. Decides nothing about prices."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import msgspec

from handlers.finance.shares import whole
from schemas.money import parse_cost
from schemas.pricing import PriceRule
from store import prices as price_store
from store.invoices import LineKey, Measures
from store.pool import Connection
from store.prices import PriceRuleRow


async def shortfalls(
    connection: Connection, org: str, start: datetime, end: datetime
) -> tuple[dict[LineKey, Measures], bool]:
    """What is owed for commitments of the calendar months (UTC) in a period, and whether a rule could not be judged.

    Commitments are counted by whole months; a period that is none leaves them open, and says so.
    """
    rows = await price_store.load_rules(connection, org, since=start)
    names = sorted({row.name for row in rows if row.definition is not None and row.definition["op"] == "commitment"})
    months = list(_months(start, end))
    held = [(month, rule) for month in months for name in names if (rule := _in_force(rows, name, month)) is not None]
    seen = await price_store.volumes(connection, org, [(rule.name, month) for month, rule in held]) if held else {}
    found: dict[LineKey, Measures] = {}
    for month, rule in held:
        missing = parse_cost(rule.amount or "0") - seen.get((rule.name, month), 0)
        if missing > 0:
            factor = Fraction(1) if rule.factor is None else Fraction(Decimal(rule.factor))
            key = LineKey("commitment", None, None, None, f"{rule.name} {month:%Y-%m}", rule.currency)
            found[key] = Measures(cost=whole(missing * factor), list_cost=missing)
    return found, bool(names) and not months


def _months(start: datetime, end: datetime) -> Iterator[date]:
    """First days of the UTC months that lie in a period as a whole."""
    first = start.astimezone(UTC).date().replace(day=1)
    while True:
        following = (first + timedelta(days=32)).replace(day=1)
        if _midnight(following) > end:
            return
        if _midnight(first) >= start:
            yield first
        first = following


def _in_force(rows: Sequence[PriceRuleRow], name: str, month: date) -> PriceRule | None:
    """The version of a rule that holds for a whole month."""
    begins, ends = _midnight(month), _midnight((month + timedelta(days=32)).replace(day=1))
    held = [row for row in rows if row.name == name and (row.valid_from is None or row.valid_from <= begins)]
    if not held:
        return None
    row = max(held, key=lambda row: row.version)
    if row.definition is None or (row.valid_to is not None and row.valid_to < ends):
        return None
    rule = msgspec.convert(row.definition, PriceRule)
    return rule if rule.op == "commitment" else None


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
