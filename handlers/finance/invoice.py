"""``prepare_invoice`` and ``void_invoice``: drafts, numbered invoices, and the credit notes that take them back.

Documents of an org are issued one after the other (advisory lock), so that each knows what the ones before it billed.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec

from handlers import audit
from handlers.context import Context
from handlers.cursor import decode_cursor
from handlers.enforcer.calendar import zone
from handlers.finance.aside import aside
from handlers.finance.conversion import conversion_for
from handlers.finance.invoice_lines import Sheet, payer_of, sheet_of
from handlers.finance.invoice_reply import issued, shown_line, shown_totals, stored, subtotals, summary
from handlers.finance.paging import fitting_beside, next_page
from handlers.finance.period import Period, period_of
from handlers.finance.statement import totals_of, turned
from schemas.base import to_builtins
from schemas.errors import conflict, invalid, not_found
from schemas.invoice import Invoice, PrepareInvoice, VoidInvoice
from signals import finance as signals
from signals import route
from store import budgets as budget_store
from store import invoices as invoice_store
from store.invoices import InvoiceRow, LineRow, PayerKey
from store.pool import Connection

INVOICE: Final = "INV"
CREDIT_NOTE: Final = "CN"
# More lines than this do not fit a page.
PAGE_LINES_MAX: Final = 2_000
_Position = tuple[Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, understood."""

    request: PrepareInvoice
    period: Period
    payer: PayerKey
    body_hash: bytes


async def prepare_invoice(ctx: Context, request: PrepareInvoice) -> Invoice:
    """A draft, computed anew each time, or an invoice with the next number; asked for again it is the same invoice."""
    period = period_of(request)
    payer = payer_of(ctx, request.payer)
    decode_cursor(request.cursor, _Position)
    final = request.status == "final"
    if final and request.request_id is None:
        raise invalid("an invoice that is issued needs an id of the request, so that a retry is not a second one",
                      field="request_id")  # fmt: skip
    conversion = await conversion_for(ctx, request.currency, period.last_day)
    asked = _Asked(request, period, payer, _hash(request))
    async with ctx.database.transaction() as connection:
        if final:
            await invoice_store.lock(connection, ctx.org)
            if (found := await _repeated(ctx, connection, asked)) is not None:
                return await _view(ctx, connection, found, request)
        at = await budget_store.clock(connection)
        if final and period.end > at:
            raise invalid("the period has not ended: it can only be drafted", field=period.field)
        sheet = await sheet_of(ctx, connection, payer, period, request, conversion, at)
        if not final:
            return _page(sheet.draft, sheet.lines, request)
        if not sheet.lines:
            raise conflict("there is nothing to invoice", field=period.field)
        row = await _issue(ctx, connection, asked, sheet, at)
        return await _view(ctx, connection, row, request)


async def void_invoice(ctx: Context, request: VoidInvoice) -> Invoice:
    """Issue the credit note for an invoice; what it billed may be invoiced again. Again: the same credit note."""
    if not request.reason.strip():
        raise invalid("says nothing: tell auditors why", field="reason")
    async with ctx.database.transaction() as connection:
        await invoice_store.lock(connection, ctx.org)
        found = await found_invoice(connection, ctx.org, request.invoice_id)
        if found.series == CREDIT_NOTE:
            raise conflict("is a credit note already", field="invoice_id")
        if found.credited_by is not None:
            note = await found_invoice(connection, ctx.org, found.credited_by)
            if note.reason != request.reason:
                raise conflict(f"was taken back already by {found.credited_by}", field="invoice_id")
            return await _view(ctx, connection, note, None)
        note = await _credit(ctx, connection, found, request.reason)
        return await _view(ctx, connection, note, None)


async def found_invoice(connection: Connection, org: str, name: str) -> InvoiceRow:
    """A document by id or number. Raises SignalError ``not_found`` naming ``invoice_id``."""
    found = await invoice_store.find(connection, org, name)
    if found is None:
        raise not_found("no invoice has this id or number", field="invoice_id")
    return found


async def every_line(connection: Connection, org: str, invoice_id: str, count: int) -> list[LineRow]:
    """All lines of a document, read some at a time: decisions go on meanwhile."""
    found: list[LineRow] = []
    while len(found) < count:
        more = await invoice_store.lines(connection, org, invoice_id, after=len(found), limit=PAGE_LINES_MAX // 4)
        if not more:
            break
        found += more
    return found


def _hash(request: PrepareInvoice) -> bytes:
    """What tells a retry from another request under the same id; which page of the reply is wanted does not matter."""
    plain = msgspec.structs.replace(request, cursor=None, limit=1)
    return hashlib.blake2b(msgspec.json.encode(plain), digest_size=16).digest()


async def _repeated(ctx: Context, connection: Connection, asked: _Asked) -> InvoiceRow | None:
    assert asked.request.request_id is not None
    found = await invoice_store.by_request(connection, ctx.org, asked.request.request_id)
    if found is not None and found.body_hash != asked.body_hash:
        raise conflict(f"is the id of another request, which issued {found.number}", field="request_id")
    return found


async def _issue(ctx: Context, connection: Connection, asked: _Asked, sheet: Sheet, at: datetime) -> InvoiceRow:
    request, period = asked.request, asked.period
    year = at.astimezone(zone(period.timezone)).year
    sequence = await invoice_store.next_sequence(connection, ctx.org, INVOICE, year)
    number, invoice_id = _number(INVOICE, year, sequence), ctx.new_id()
    document = issued(sheet.draft, invoice_id, number, at, period.timezone, request.due_days)
    found = totals_of(sheet.lines, sheet.draft.currency, request.markup_percent, request.tax_percent)
    row = InvoiceRow(
        invoice_id=invoice_id,
        series=INVOICE,
        year=year,
        sequence=sequence,
        number=number,
        payer_type=asked.payer.type,
        payer_id=asked.payer.entity_id,
        allocated=asked.payer.allocated,
        period_start=period.start,
        period_end=period.end,
        currency=document.currency,
        net=found.net,
        due=found.due,
        issued_at=at,
        issued_by=ctx.caller.actor,
        request_id=request.request_id,
        body_hash=asked.body_hash,
        corrects=None,
        reason=None,
        document={"invoice": to_builtins(document), "rates": sheet.exact_rates, "rules": sheet.rules},
    )
    await _store(ctx, connection, row, sheet.lines, "issued", None)
    return row


async def _credit(ctx: Context, connection: Connection, found: InvoiceRow, reason: str) -> InvoiceRow:
    at = await budget_store.clock(connection)
    before = msgspec.convert(found.document["invoice"], Invoice)
    year = at.astimezone(zone(before.timezone)).year
    sequence = await invoice_store.next_sequence(connection, ctx.org, CREDIT_NOTE, year)
    count = await invoice_store.count_lines(connection, ctx.org, found.invoice_id)
    lines = await every_line(connection, ctx.org, found.invoice_id, count)
    most = ctx.services.limits.invoice_subtotals_max
    back, sums = await aside(ctx, lambda: _turned(before, found, lines, most))
    number, invoice_id = _number(CREDIT_NOTE, year, sequence), ctx.new_id()
    document = msgspec.structs.replace(
        issued(before, invoice_id, number, at, before.timezone, 0),
        kind="credit_note",
        issued_by=ctx.caller.actor,
        rates=[],
        open_points=[],
        **sums,
        notes=[f"Takes back invoice {found.number}."],
        corrects=found.number,
        reason=reason,
    )
    note = msgspec.structs.replace(document, lines=[])
    row = InvoiceRow(
        invoice_id=invoice_id,
        series=CREDIT_NOTE,
        year=year,
        sequence=sequence,
        number=number,
        payer_type=found.payer_type,
        payer_id=found.payer_id,
        allocated=found.allocated,
        period_start=found.period_start,
        period_end=found.period_end,
        currency=found.currency,
        net=-found.net,
        due=-found.due,
        issued_at=at,
        issued_by=ctx.caller.actor,
        request_id=None,
        body_hash=None,
        corrects=found.invoice_id,
        reason=reason,
        document={"invoice": to_builtins(note)},
        corrects_number=found.number,
    )
    await _store(ctx, connection, row, back, "voided", reason)
    return row


def _turned(
    before: Invoice, found: InvoiceRow, lines: list[LineRow], most: int
) -> tuple[list[LineRow], dict[str, Any]]:
    """The lines of a credit note, and its sums by the names of the document's fields."""
    back = [turned(line, found.number) for line in lines]
    totals = before.totals
    return back, {
        "by_model": subtotals(back, lambda line: (line.provider, line.model, None), most),
        "by_project": subtotals(back, lambda line: (None, None, line.project_id), most),
        "totals": shown_totals(back, found.currency, totals.markup_percent, totals.tax_percent, totals.tax_label),
    }


async def _store(
    ctx: Context, connection: Connection, row: InvoiceRow, lines: list[LineRow], action: str, reason: str | None
) -> None:
    await invoice_store.insert(connection, ctx.org, row, lines)
    await audit.record(
        connection,
        ctx.caller,
        action=action,
        entity="invoice",
        entity_id=row.number if row.corrects_number is None else row.corrects_number,
        before=None,
        after=summary(row),
        reason=reason,
    )


def _number(series: str, year: int, sequence: int) -> str:
    return f"{series}-{year}-{sequence:06d}"


def _page(draft: Invoice, lines: list[LineRow], request: PrepareInvoice) -> Invoice:
    """A draft with one page of its lines."""
    position = decode_cursor(request.cursor, _Position)
    after = 0 if position is None else position[0]
    wanted = lines[after : after + request.limit]
    shown = fitting_beside(draft, (shown_line(after + i, line) for i, line in enumerate(wanted, 1)))
    return msgspec.structs.replace(draft, lines=shown, next_cursor=next_page(after + len(shown), len(lines)))


async def _view(ctx: Context, connection: Connection, row: InvoiceRow, request: PrepareInvoice | None) -> Invoice:
    limit, cursor = (1_000, None) if request is None else (request.limit, request.cursor)
    return await view(ctx, connection, row, limit=limit, cursor=cursor)


async def view(ctx: Context, connection: Connection, row: InvoiceRow, *, limit: int, cursor: str | None) -> Invoice:
    """A stored document with one page of its lines."""
    position = decode_cursor(cursor, _Position)
    after = 0 if position is None else position[0]
    limit = min(limit, PAGE_LINES_MAX)
    lines = await invoice_store.lines(connection, ctx.org, row.invoice_id, after=after, limit=limit)
    document: dict[str, Any] = row.document["invoice"]
    shown = fitting_beside(document, (shown_line(after + i, line) for i, line in enumerate(lines, 1)))
    count = document["line_count"]
    return stored(row, shown, next_page(after + len(shown), count))


ROUTES = (
    route(signals.PREPARE_INVOICE, prepare_invoice),
    route(signals.VOID_INVOICE, void_invoice),
)
