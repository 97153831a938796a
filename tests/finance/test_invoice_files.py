"""Invoices as files: the same amounts in every format, names that do no harm, parts that make the whole."""

import base64
import csv
import html
import io
import re
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import typst

from handlers.context import Context, Limits
from handlers.finance.invoice import prepare_invoice
from handlers.finance.invoice_files import file_of
from handlers.finance.invoice_page import amount, amount_sum
from handlers.finance.invoice_read import get_invoice
from handlers.finance.invoice_reply import shown_line, shown_totals
from handlers.management.settings import configure_manager
from schemas.invoice import GetInvoice, Invoice, InvoiceFile, Payer, PrepareInvoice
from schemas.settings import ConfigureManager
from store.invoices import LineRow
from tests.support.services import apply_usage, context, gpt, services_for

JAN = datetime(2026, 1, 1, tzinfo=UTC)
EVIL = '<script>alert("1")</script> & #set page(width: 1cm) $x$ `raw` \\ "'
FORMULA = '=HYPERLINK("http://x")'


async def whole(ctx: Context, number: str, wanted: str) -> tuple[bytes, list[InvoiceFile]]:
    """Every part of a file, put together."""
    found: list[InvoiceFile] = []
    cursor: str | None = None
    while True:
        file = (await get_invoice(ctx, GetInvoice(invoice_id=number, format=wanted, cursor=cursor))).file  # pyright: ignore
        assert file is not None
        found.append(file)
        cursor = file.next_cursor
        if cursor is None:
            break
    if found[0].encoding == "base64":
        return b"".join(base64.b64decode(file.content) for file in found), found
    return "".join(file.content for file in found).encode(), found


async def an_invoice(ctx: Context, **fields: Any) -> Invoice:
    """An invoice of hostile names, issued."""
    events = [
        gpt(timestamp=JAN, team_id="red", project_id=EVIL, user_id="ann"),
        gpt(timestamp=JAN, team_id="red", project_id=FORMULA, user_id="ann"),
        gpt(timestamp=JAN, team_id="red", project_id="p" * 256, user_id="ann"),
    ]
    await apply_usage(ctx.services, *events)
    request = PrepareInvoice(month="2026-01", status="final", request_id="r", tax_percent="20", note=EVIL, bill_to=EVIL)
    found = await prepare_invoice(ctx, msgspec.structs.replace(request, **fields))
    await apply_usage(ctx.services, gpt(timestamp=JAN))
    return found


async def test_html_escapes_every_name_and_fetches_nothing(ctx: Context) -> None:
    await configure_manager(ctx, ConfigureManager(invoice_issuer=f"{EVIL}\nSecond line"))
    invoice = await an_invoice(ctx)
    content, _ = await whole(ctx, str(invoice.number), "html")
    text = content.decode()
    assert "<script" not in text and html.escape(EVIL, quote=False).split("&gt;")[0] in text
    assert not re.findall(r"https?://(?!x)|src=|@import|url\(", text)
    assert str(invoice.number) in text and "Second line" in text and "VAT" not in text
    assert amount(invoice.totals.due, 2) in text


async def test_csv_is_safe_to_open_and_sums_to_what_is_due(ctx: Context) -> None:
    invoice = await an_invoice(ctx)
    content, _ = await whole(ctx, str(invoice.number), "csv")
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    lines = [row for row in rows if row["row"] == "line"]
    assert {row["project_id"] for row in lines} == {EVIL, "'" + FORMULA, "p" * 256}
    assert sum(Decimal(row["net"]) for row in lines) == Decimal(invoice.totals.subtotal)
    last = {row["row"]: row["net"] for row in rows if row["row"] != "line"}
    assert last["due"] == invoice.totals.due and last["tax"] == invoice.totals.tax
    assert not [cell for row in rows for cell in row.values() if re.match(r"[=+@\t\r]|-[^0-9]", cell)]


async def test_json_is_the_document(ctx: Context) -> None:
    invoice = await an_invoice(ctx)
    content, (file,) = await whole(ctx, str(invoice.number), "json")
    assert msgspec.json.decode(content, type=Invoice) == invoice
    assert (file.filename, file.media_type) == (f"{invoice.number}.json", "application/json")


async def test_pdf_shows_names_as_they_are(ctx: Context) -> None:
    invoice = await an_invoice(ctx)
    content, files = await whole(ctx, str(invoice.number), "pdf")
    assert content.startswith(b"%PDF-1.") and files[0].size_bytes == len(content) < 200_000
    again, _ = await whole(ctx, str(invoice.number), "pdf")
    assert again == content, "the same document is the same file"
    assert b"/JavaScript" not in content and b"/URI" not in content


async def test_a_large_file_comes_in_parts_that_fit_the_bus(database_url: str) -> None:
    limits = Limits(invoice_part_bytes_max=2_000)
    async with services_for(database_url, limits=limits) as services:
        ctx = context(services)
        invoice = await an_invoice(ctx)
        for wanted in ("json", "csv", "html", "pdf"):
            content, files = await whole(ctx, str(invoice.number), wanted)
            assert len(files) > 1 or wanted == "csv"
            assert all(len(msgspec.json.encode(file)) < 5_000 for file in files)
            assert {file.size_bytes for file in files} == {len(content)}
            assert content == file_of(await named(ctx, invoice), wanted)


async def named(ctx: Context, invoice: Invoice) -> dict[str, Any]:
    stored = (await get_invoice(ctx, GetInvoice(invoice_id=str(invoice.number), limit=10_000))).invoice
    return msgspec.json.decode(msgspec.json.encode(stored))


async def test_users_have_their_names_in_files_escaped(ctx: Context) -> None:
    await an_invoice(ctx)
    evil = "<b>ann</b>"
    await apply_usage(ctx.services, gpt(timestamp=JAN, user_id=evil))
    payer = Payer(type="user", entity_id=evil)
    made = await prepare_invoice(ctx, PrepareInvoice(month="2026-01", payer=payer, status="final", request_id="u"))
    assert made.entity_id is not None and made.entity_id.startswith("uk_")
    content, _ = await whole(ctx, str(made.number), "html")
    assert b"&lt;b&gt;ann&lt;/b&gt;" in content and b"<b>ann" not in content
    found = await get_invoice(ctx, GetInvoice(invoice_id=str(made.number), format="html"))
    assert found.verbatim


def many_lines(count: int) -> dict[str, Any]:
    """An invoice of so many lines, in plain JSON."""
    rows = [
        LineRow(
            *("usage", "usage", JAN, JAN + timedelta(days=31), "openai", f"model-{i % 50}", f"project-{i}", None, None),
            *("USD", i, 0, 0, 1_000_000 + i, 5_000, 10_000, 0, 0, 12_345_678_901 + i, 13_000_000_000),
            *(12_345_678_901 + i, 13_000_000_000),
        )
        for i in range(count)
    ]  # fmt: skip
    invoice = Invoice(
        invoice_id="x", number="INV-2026-000001", kind="invoice", status="final", org="acme", issuer="Acme\nWien",
        payer_type="org", entity_id=None, allocated=False, bill_to="", period_start=JAN, period_end=JAN,
        timezone="UTC", first_day=JAN.date(), last_day=JAN.date(), issued_at=JAN, issued_on=JAN.date(),
        due_on=JAN.date(), issued_by="x", currency="USD", line_count=count,
        lines=[shown_line(i, row) for i, row in enumerate(rows, 1)], by_model=[], by_project=[],
        totals=shown_totals(rows, "USD", "0", "20", "VAT"), rates=[], open_points=[], exchange_rates=[],
        notes=[], note="",
    )  # fmt: skip
    return msgspec.json.decode(msgspec.json.encode(invoice))


async def test_setting_many_pages_does_not_hold_up_the_loop(ctx: Context) -> None:
    """The loop keeps turning while a thread sets some 100 pages."""
    import asyncio

    invoice = many_lines(3_000)
    longest, last = 0.0, time.perf_counter()
    making = asyncio.ensure_future(ctx.services.finance_threads.run(lambda: file_of(invoice, "pdf"), 60))
    while not making.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert (await making).startswith(b"%PDF")
    assert longest < 1.0, longest


def test_everything_the_page_needs_is_in_the_installed_package() -> None:
    families = set(typst.Fonts(include_system_fonts=False).families())
    assert "Libertinus Serif" in families
    content, warnings = typst.compile_with_warnings(b'#set text(font: "Libertinus Serif")\nx', ignore_system_fonts=True)
    assert content and not warnings


@pytest.mark.parametrize(
    ("text", "decimals", "shown"),
    [("0", 2, "0.00"), ("1234.5", 2, "1,234.50"), ("-0.0035", 4, "\u22120.0035"), ("1000000", 0, "1,000,000")],
)
def test_amounts_are_written_in_full(text: str, decimals: int, shown: str) -> None:
    assert amount(text, decimals) == shown


def test_sums_of_texts_are_exact() -> None:
    assert amount_sum(["0.1", "0.2", "-0.300000001"], 9) == "\u22120.000000001"
    assert amount_sum(["-5", "7"], 0) == "2"
