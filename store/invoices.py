"""Rows of ``invoice``, ``invoice_line`` and ``invoice_number``, and the sums they are made from. Amounts in nanos."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import asyncpg

from store.finance import Condition, excluded
from store.pool import Connection
from store.sql import queries

_SQL = queries("invoices")
# Lines written before others are served: some 5 ms.
LINES_AT_ONCE: Final = 500
PAYER_COLUMN: Final = {
    "team": "team_id",
    "project": "project_id",
    "cost_center": "cost_center",
    "user": "user_id",
}


class Measures(NamedTuple):
    """What a line counts; signed. Costs are in the line's own currency."""

    requests: int = 0
    unpriced_requests: int = 0
    unpriced_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost: int = 0
    list_cost: int = 0


class LineKey(NamedTuple):
    """What a line is about: ``kind`` is usage, the kind of an adjustment, share or commitment."""

    kind: str
    provider: str | None
    model: str | None
    project_id: str | None
    rule: str | None
    currency: str


class PricedSum(NamedTuple):
    """Units of one kind at one rate (nanos per million; None: as reported), and their cost."""

    provider: str
    model: str
    kind: str
    currency: str
    rate: int | None
    list_rate: int | None
    quantity: int
    cost: int


class LineRow(NamedTuple):
    """A line as stored, after org, invoice and position."""

    section: str
    kind: str
    period_start: datetime
    period_end: datetime
    provider: str | None
    model: str | None
    project_id: str | None
    rule: str | None
    corrects: str | None
    currency: str
    requests: int
    unpriced_requests: int
    unpriced_tokens: int
    prompt_tokens: int
    completion_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost: int
    list_cost: int
    net: int
    list_net: int


@dataclass(frozen=True, slots=True)
class PayerKey:
    """Whose invoices hang together; ``entity_id`` is empty for the org."""

    type: str
    entity_id: str
    allocated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceRow:
    """An invoice or credit note as stored; ``document`` is JSON. ``credited_by``: the number that took it back."""

    invoice_id: str
    series: str
    year: int
    sequence: int
    number: str
    payer_type: str
    payer_id: str
    allocated: bool
    period_start: datetime
    period_end: datetime
    currency: str
    net: int
    due: int
    issued_at: datetime
    issued_by: str
    request_id: str | None
    body_hash: bytes | None
    corrects: str | None
    reason: str | None
    document: dict[str, Any]
    corrects_number: str | None = None
    credited_by: str | None = None


async def lock(connection: Connection, org: str) -> None:
    """Wait for whoever else issues documents of the org; held until the commit. No catalogue lock comes after it."""
    await connection.execute(_SQL["lock"], org)


async def next_sequence(connection: Connection, org: str, series: str, year: int) -> int:
    """The next number of a series and year; it is taken only if the transaction commits."""
    return await connection.fetchval(_SQL["next_sequence"], org, series, year)


async def used_sums(
    connection: Connection,
    org: str,
    payer: PayerKey,
    *,
    start: datetime,
    end: datetime,
    shared: Sequence[Condition],
    limit: int,
) -> dict[LineKey, Measures]:
    """What a payer used in a half-open period, by kind, model, project and currency, as of now; one snapshot.

    ``shared`` usage is left out. One more than ``limit`` tells there are more.
    """
    args: list[Any] = [org, start, end, limit + 1]
    where = _payer(payer, args)
    if conditions := excluded(shared, args):
        where += f" AND NOT ({' OR '.join(conditions)})"
    # The filter stands in two queries over tables with the same columns.
    sql = _SQL["used_sums"].replace("/*payer*/", where)
    records = await connection.fetch(sql, *args)
    return {LineKey(*record[:6]): Measures(*record[6:]) for record in map(tuple, records)}


async def price_sums(
    connection: Connection,
    org: str,
    payer: PayerKey,
    *,
    start: datetime,
    end: datetime,
    shared: Sequence[Condition],
    limit: int,
) -> list[PricedSum]:
    """What a payer's priced usage of a period was priced at, from the line items of its postings, dearest first."""
    args: list[Any] = [org, start, end, limit + 1]
    where = _payer(payer, args)
    if conditions := excluded(shared, args):
        where += f" AND NOT ({' OR '.join(conditions)})"
    records = await connection.fetch(_SQL["price_sums"].replace("/*payer*/", where), *args)
    return [PricedSum(*record) for record in records]


async def billed_sums(
    connection: Connection, org: str, payer: PayerKey, *, start: datetime, end: datetime
) -> dict[LineKey, Measures]:
    """What invoices and credit notes have billed a payer for a period so far."""
    records = await connection.fetch(_SQL["billed_sums"], org, payer.type, payer.entity_id, payer.allocated, start, end)
    return {LineKey(*record[:6]): Measures(*record[6:]) for record in map(tuple, records)}


async def standing(connection: Connection, org: str, payer: PayerKey, limit: int) -> list[InvoiceRow]:
    """A payer's invoices that no credit note has taken back, the newest periods first."""
    records = await connection.fetch(_SQL["standing"], org, payer.type, payer.entity_id, payer.allocated, limit)
    return [_row(record) for record in records]


async def overlapping(
    connection: Connection, org: str, payer: PayerKey, *, start: datetime, end: datetime
) -> str | None:
    """The number of a payer's standing invoice that has part of a period."""
    args = (org, payer.type, payer.entity_id, payer.allocated, start, end)
    return await connection.fetchval(_SQL["overlapping"], *args)


async def billed_across(
    connection: Connection, org: str, payer: PayerKey, *, start: datetime, end: datetime
) -> tuple[datetime, datetime] | None:
    """A period that reaches beyond this one, of which something is still billed although its invoice was taken back."""
    args = (org, payer.type, payer.entity_id, payer.allocated, start, end)
    record = await connection.fetchrow(_SQL["billed_across"], *args)
    return None if record is None else (record["period_start"], record["period_end"])


async def overlapping_payers(
    connection: Connection, org: str, payer: PayerKey, *, start: datetime, end: datetime
) -> list[str]:
    """Numbers of other payers' standing invoices in a period; the newest ten."""
    args = (org, payer.type, payer.entity_id, payer.allocated, start, end)
    return [record["number"] for record in await connection.fetch(_SQL["overlapping_payers"], *args)]


async def by_request(connection: Connection, org: str, request_id: str) -> InvoiceRow | None:
    """The invoice that a request made."""
    record = await connection.fetchrow(_SQL["by_request"], org, request_id)
    return None if record is None else _row(record)


async def find(connection: Connection, org: str, name: str) -> InvoiceRow | None:
    """An invoice or credit note by its id or its number."""
    record = await connection.fetchrow(_SQL["find"], org, name)
    return None if record is None else _row(record)


async def listing(
    connection: Connection,
    org: str,
    *,
    series: str | None,
    payer_type: str | None,
    payer_ids: Sequence[str] | None,
    year: int | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[InvoiceRow]:
    """Invoices and credit notes, newest first, without their documents."""
    at, invoice_id = before or (None, None)
    records = await connection.fetch(_SQL["listing"], org, series, payer_type, payer_ids, year, at, invoice_id, limit)
    return [_row(record) for record in records]


async def insert(connection: Connection, org: str, row: InvoiceRow, lines: Sequence[LineRow]) -> None:
    """Store a document and its lines, numbered from 1."""
    await connection.execute(
        _SQL["insert"],
        *(org, row.invoice_id, row.series, row.year, row.sequence, row.number, row.payer_type, row.payer_id),
        *(row.allocated, row.period_start, row.period_end, row.currency, row.net, row.due, row.issued_at),
        *(row.issued_by, row.request_id, row.body_hash, row.corrects, row.reason, json.dumps(row.document)),
    )
    columns = ["org_id", "invoice_id", "position", *LineRow._fields]
    for first in range(0, len(lines), LINES_AT_ONCE):
        part = enumerate(lines[first : first + LINES_AT_ONCE], first + 1)
        records = [(org, row.invoice_id, position, *line) for position, line in part]
        await connection.copy_records_to_table("invoice_line", records=records, columns=columns)


async def lines(connection: Connection, org: str, invoice_id: str, *, after: int, limit: int) -> list[LineRow]:
    """Lines of a document in their order, after a position."""
    return [LineRow(*record) for record in await connection.fetch(_SQL["lines"], org, invoice_id, after, limit)]


async def count_lines(connection: Connection, org: str, invoice_id: str) -> int:
    """How many lines a document has."""
    return await connection.fetchval(_SQL["count_lines"], org, invoice_id)


def _payer(payer: PayerKey, args: list[Any]) -> str:
    if payer.type == "org":
        return ""
    args.append(payer.entity_id)
    return f" AND {PAYER_COLUMN[payer.type]} = ${len(args)}"


def _row(record: asyncpg.Record) -> InvoiceRow:
    values = dict(record)
    for name in ("invoice_id", "corrects"):
        values[name] = None if values[name] is None else str(values[name])
    values["document"] = json.loads(values["document"]) if values["document"] is not None else {}
    return InvoiceRow(**values)
