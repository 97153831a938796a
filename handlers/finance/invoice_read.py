"""``list_invoices`` and ``get_invoice``: documents as they were issued, and as files. Writes nothing."""

import base64
import hashlib
from datetime import datetime
from typing import Annotated, Final

import msgspec

from handlers.context import Context
from handlers.cursor import decode_cursor, encode_cursor, page
from handlers.finance.aside import aside
from handlers.finance.invoice import CREDIT_NOTE, INVOICE, every_line, found_invoice, view
from handlers.finance.invoice_files import FORMATS, file_of
from handlers.finance.invoice_reply import shown_line, stored, summary
from schemas.errors import SignalError, conflict, invalid
from schemas.invoice import FoundInvoice, GetInvoice, InvoiceFile, InvoiceList, ListInvoices
from signals import finance as signals
from signals import route
from store import invoices as invoice_store
from store.invoices import InvoiceRow

_AT = Annotated[datetime, msgspec.Meta(tz=True)]
_Part = tuple[Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)], str]
_SERIES: Final = {"invoice": INVOICE, "credit_note": CREDIT_NOTE}
_ENCODE: Final = msgspec.json.Encoder().encode


async def list_invoices(ctx: Context, request: ListInvoices) -> InvoiceList:
    """Invoices and credit notes, newest first."""
    position = decode_cursor(request.cursor, tuple[_AT, _Uuid])
    async with ctx.database.connection() as connection:
        rows = await invoice_store.listing(
            connection,
            ctx.org,
            series=None if request.kind is None else _SERIES[request.kind],
            payer_type=request.payer_type,
            payer_ids=_forms(ctx, request),
            year=request.year,
            before=position,
            limit=request.limit + 1,
        )
    found, cursor = page([summary(row) for row in rows], limit=request.limit, key=lambda i: (i.issued_at, i.invoice_id))
    return InvoiceList(invoices=found, next_cursor=cursor)


_Uuid = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$(?!\\n)")]


def _forms(ctx: Context, request: ListInvoices) -> list[str] | None:
    """What a payer may be stored as: users are surrogates."""
    entity = request.entity_id
    if entity is None:
        return None
    user = ctx.services.vault.surrogate(ctx.org, entity)
    return {"user": [entity, user], None: [entity, user]}.get(request.payer_type, [entity])


async def get_invoice(ctx: Context, request: GetInvoice) -> FoundInvoice:
    """One document with a page of its lines, or a part of a file of it."""
    if request.format == "document":
        async with ctx.database.connection() as connection:
            row = await found_invoice(connection, ctx.org, request.invoice_id)
            shown = await view(ctx, connection, row, limit=request.limit, cursor=request.cursor)
        return FoundInvoice(invoice=shown)
    position = decode_cursor(request.cursor, _Part)
    async with ctx.database.connection() as connection:
        row = await found_invoice(connection, ctx.org, request.invoice_id)
        count = row.document["invoice"]["line_count"]
        most = ctx.services.limits.invoice_pdf_lines_max
        if request.format == "pdf" and count > most:
            raise SignalError("too_large", f"a PDF has at most {most} lines; take csv or html", field="format")
        lines = await every_line(connection, ctx.org, row.invoice_id, count)
    payload = await aside(
        ctx, lambda: _ENCODE(stored(row, [shown_line(i, line) for i, line in enumerate(lines, 1)], None))
    )
    named = await _named(ctx, payload)
    content = await aside(ctx, lambda: file_of(msgspec.json.decode(named), request.format))
    return FoundInvoice(file=_part(ctx, row, request.format, content, position))


async def _named(ctx: Context, payload: bytes) -> bytes:
    """The document in JSON with users by their names, as dispatch would name them."""
    await ctx.services.identities.learn(ctx.org, payload)
    return ctx.services.identities.named(ctx.org, payload)


def _part(ctx: Context, row: InvoiceRow, wanted: str, content: bytes, position: _Part | None) -> InvoiceFile:
    """One part, cut where a character, or a group of base64, ends."""
    digest = hashlib.sha256(content).hexdigest()
    start = 0 if position is None else position[0]
    if position is not None and position[1] != digest:
        raise conflict("the file is another one by now: begin again without a cursor", field="cursor")
    if start and start >= len(content):
        raise invalid("is not a cursor of an earlier page", field="cursor")
    form = FORMATS[wanted]
    # Text may double where JSON escapes it, base64 is a third longer than what it says.
    most = ctx.services.limits.invoice_part_bytes_max
    end = min(len(content), start + (most // 2 if form.text else most // 3 * 3))
    while form.text and end < len(content) and content[end] & 0xC0 == 0x80:
        end -= 1
    piece = content[start:end]
    return InvoiceFile(
        invoice_id=row.invoice_id,
        number=row.number,
        format=wanted,
        media_type=form.media_type,
        filename=f"{row.number}.{wanted}",
        encoding="utf-8" if form.text else "base64",
        content=piece.decode() if form.text else base64.b64encode(piece).decode(),
        size_bytes=len(content),
        sha256=digest,
        next_cursor=encode_cursor(end, digest) if end < len(content) else None,
    )


ROUTES = (
    route(signals.LIST_INVOICES, list_invoices),
    route(signals.GET_INVOICE, get_invoice),
)
