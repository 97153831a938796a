"""Invoices: every number is a sum over usage_posting, nothing is billed twice or lost, numbers have no gaps."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from handlers.adjustments.adjust import adjust_usage
from handlers.context import Context, Services
from handlers.finance.invoice import prepare_invoice, void_invoice
from handlers.finance.invoice_read import get_invoice, list_invoices
from handlers.finance.rules import set_allocation_rules
from handlers.management.audit import get_audit_trail
from schemas.adjustment import AdjustUsage
from schemas.allocation import AllocationRule, SetAllocationRules, SharedUsage
from schemas.audit import GetAuditTrail
from schemas.invoice import GetInvoice, Invoice, ListInvoices, Payer, PrepareInvoice, VoidInvoice
from tests.finance.books import adds_up, billed, posted, text
from tests.support.services import ORG, apply_usage, context, gpt, refusal, services_for, user

JAN = datetime(2026, 1, 1, tzinfo=UTC)
FEB = datetime(2026, 2, 1, tzinfo=UTC)
MAR = datetime(2026, 3, 1, tzinfo=UTC)
APR = datetime(2026, 4, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
CENTS = "0.0035"
MONTHS = {"2026-01": (JAN, FEB), "2026-02": (FEB, MAR), "2026-03": (MAR, APR)}


def asked(month: str = "2026-01", **fields: Any) -> PrepareInvoice:
    values: dict[str, Any] = {"month": month, "limit": 10_000} | fields
    return PrepareInvoice(**values)


async def draft(ctx: Context, month: str = "2026-01", **fields: Any) -> Invoice:
    found = await prepare_invoice(ctx, asked(month, **fields))
    adds_up(found)
    return found


async def issue(ctx: Context, month: str = "2026-01", **fields: Any) -> Invoice:
    given: dict[str, Any] = {"status": "final", "request_id": f"{month}-{fields.get('payer')}", **fields}
    found = await prepare_invoice(ctx, asked(month, **given))
    adds_up(found)
    return found


async def adjust(ctx: Context, usage_id: str, kind: str, **fields: Any) -> None:
    await adjust_usage(ctx, AdjustUsage(usage_id=usage_id, kind=kind, reason="a test", **fields))  # pyright: ignore


@pytest_asyncio.fixture
async def month(services: Services) -> AsyncIterator[list[Any]]:
    """January: two teams, three projects, two models, cached and unpriced usage, and a call just before and after."""
    sonnet: dict[str, Any] = {"provider": "anthropic", "model": "claude-sonnet-4-5"}
    events = [
        gpt(id="a", timestamp=JAN, team_id="red", project_id="p1", user_id="ann"),
        gpt(id="b", timestamp=JAN + HOUR, team_id="red", project_id="p2", cache_read_tokens=400),
        gpt(id="c", timestamp=FEB - timedelta(microseconds=1), team_id="blue", project_id="p1", cost_center="cc1"),
        gpt(2_000, 300, id="d", timestamp=JAN + 2 * HOUR, team_id="blue", **sonnet),
        gpt(id="e", timestamp=JAN + 3 * HOUR, team_id="blue", project_id="p1", model="no-such-model"),
        gpt(id="before", timestamp=JAN - timedelta(microseconds=1), team_id="red"),
        gpt(id="after", timestamp=FEB, team_id="red"),
    ]
    assert set(await apply_usage(services, *events)) == {"applied"}
    yield events


@pytest.mark.parametrize(
    ("payer", "where", "args"),
    [
        (Payer(), "true", ()),
        (Payer(type="team", entity_id="red"), "team_id = $4", ("red",)),
        (Payer(type="project", entity_id="p1"), "project_id = $4", ("p1",)),
        (Payer(type="cost_center", entity_id="cc1"), "cost_center = $4", ("cc1",)),
        (Payer(type="user", entity_id="ann"), "user_id = $4", (user("ann"),)),
    ],
    ids=lambda value: value.type if isinstance(value, Payer) else "",
)
async def test_every_number_is_a_sum_over_postings(
    ctx: Context, month: list[Any], payer: Payer, where: str, args: tuple[Any, ...]
) -> None:
    if payer.type != "user":
        await adjust(ctx, "c", "refund", amount="0.001")
    found = await draft(ctx, payer=payer)
    sums = await posted(ctx.services, JAN, FEB, where, *args)
    assert found.totals.subtotal == text(sums["cost"]) and found.totals.list_price == text(sums["list_cost"])
    assert sum(line.requests for line in found.lines) == sums["requests"]
    assert sum(line.unpriced_requests for line in found.lines) == sums["unpriced"]
    assert sum(p.requests for p in found.open_points) == sums["unpriced"]
    inputs = sum(line.input_tokens + line.cache_read_tokens + line.cache_write_tokens for line in found.lines)
    assert inputs == sums["prompt_tokens"]
    assert sum(line.output_tokens for line in found.lines) == sums["completion_tokens"]
    for line in found.lines:
        more, values = "", list(args)
        for column, value in (("provider", line.provider), ("model", line.model), ("project_id", line.project_id)):
            values.append(value)
            more += f" AND {column} IS NOT DISTINCT FROM ${3 + len(values)}"
        usage = await posted(ctx.services, JAN, FEB, f"({where}){more} AND adjustment_id IS NULL", *values)
        rest = await posted(ctx.services, JAN, FEB, f"({where}){more} AND adjustment_id IS NOT NULL", *values)
        assert line.cost == line.net == text((usage if line.section == "usage" else rest)["cost"])
    assert sum(Decimal(rate.cost) for rate in found.rates) == Decimal(found.totals.subtotal)
    assert not any("rates listed cover" in note for note in found.notes)


async def test_the_draft_of_january(ctx: Context, month: list[Any]) -> None:
    found = await draft(ctx, markup_percent="10", tax_percent="20", tax_label="VAT", bill_to="Acme GmbH\nWien")
    # a and c: 0.0035 each. b: 600 x 2.5 + 400 x 1.25 + 100 x 10 = 3,000 a million. d: 2,000 x 3 + 300 x 15 = 10,500.
    assert found.totals.subtotal == "0.0205"
    assert (found.totals.markup, found.totals.tax, found.totals.total) == ("0.00205", "0.00451", "0.02706")
    assert (found.totals.rounding, found.totals.due) == ("0.00294", "0.03")
    assert found.number is None and found.status == "draft" and found.invoice_id is None
    assert [(p.model, p.project_id, p.requests, p.total_tokens) for p in found.open_points] == [
        ("no-such-model", "p1", 1, 1_100)
    ]
    assert any("no price yet" in note for note in found.notes)
    by_kind = {(r.model, r.kind): (r.quantity, r.rate_per_million, r.cost) for r in found.rates}
    assert by_kind["gpt-4o", "cache_read"] == (400, "1.25", "0.0005")
    assert by_kind["gpt-4o", "input"] == (2_600, "2.5", "0.0065")
    assert by_kind["claude-sonnet-4-5", "output"] == (300, "15", "0.0045")
    assert await ctx.services.database.fetchval("SELECT count(*) FROM invoice") == 0


async def test_an_invoice_is_numbered_stored_and_never_changes(ctx: Context, month: list[Any]) -> None:
    first = await issue(ctx)
    assert first.number == f"INV-{first.issued_on.year}-000001" and first.status == "final"
    assert await issue(ctx) == first
    other = await refusal(prepare_invoice(ctx, asked(status="final", request_id="2026-01-None", tax_percent="1")))
    assert (other.code, other.field) == ("conflict", "request_id")
    again = await refusal(prepare_invoice(ctx, asked(status="final", request_id="another")))
    assert (again.code, again.field) == ("conflict", "month")
    assert (await refusal(prepare_invoice(ctx, asked()))).code == "conflict"
    for sql in ("UPDATE invoice SET net = 0", "DELETE FROM invoice", "UPDATE invoice_line SET net = 0"):
        with pytest.raises(asyncpg.RestrictViolationError):
            await ctx.database.execute(sql)
    await apply_usage(ctx.services, gpt(id="late", timestamp=JAN + HOUR, team_id="red"))
    stored = (await get_invoice(ctx, GetInvoice(invoice_id=str(first.number), limit=10_000))).invoice
    assert stored == first
    (entry,) = (await get_audit_trail(ctx, GetAuditTrail(entity="invoice"))).entries
    assert (entry.action, entry.entity_id) == ("issued", first.number)
    assert msgspec.json.decode(entry.after)["due"] == first.totals.due


async def test_what_comes_later_is_on_the_next_invoice_once(ctx: Context, month: list[Any]) -> None:
    await issue(ctx)
    await adjust(ctx, "a", "void")
    await adjust(ctx, "e", "correct", model="gpt-4o")
    await apply_usage(ctx.services, gpt(id="late", timestamp=JAN + HOUR, team_id="red", project_id="p1"))
    second = await issue(ctx, "2026-02")
    lines = {(line.section, line.kind, line.model): line.net for line in second.lines}
    assert lines == {
        ("usage", "usage", "gpt-4o"): CENTS,
        ("earlier", "void", "gpt-4o"): "-0.0035",
        ("earlier", "correct", "gpt-4o"): CENTS,
        ("earlier", "correct", "no-such-model"): "0",
        ("earlier", "usage", "gpt-4o"): CENTS,
    }
    corrected = {line.corrects for line in second.lines if line.section == "earlier"}
    assert corrected == {f"INV-{second.issued_on.year}-000001"}
    assert second.open_points == []
    later = await posted(ctx.services, JAN, FEB)
    now = await posted(ctx.services, FEB, MAR)
    assert await billed(ctx.services) == later["cost"] + now["cost"]
    third = await refusal(prepare_invoice(ctx, asked("2026-03", status="final", request_id="empty")))
    assert (third.code, third.field) == ("conflict", "month")


async def test_a_credit_note_takes_everything_back_and_the_month_can_be_invoiced_again(
    ctx: Context, month: list[Any]
) -> None:
    first = await issue(ctx, markup_percent="3.3", tax_percent="19")
    await adjust(ctx, "d", "refund", amount="0.0005")
    await issue(ctx, "2026-02")
    assert first.number is not None
    note = await void_invoice(ctx, VoidInvoice(invoice_id=first.number, reason="wrong tax"))
    adds_up_to_nought = {getattr(note.totals, name) for name in ("subtotal", "markup", "tax", "total", "due")}
    assert adds_up_to_nought == {
        f"-{getattr(first.totals, name)}" for name in ("subtotal", "markup", "tax", "total", "due")
    }
    assert (note.kind, note.number, note.corrects) == ("credit_note", f"CN-{note.issued_on.year}-000001", first.number)
    assert await void_invoice(ctx, VoidInvoice(invoice_id=str(first.invoice_id), reason="wrong tax")) == note
    assert (await refusal(void_invoice(ctx, VoidInvoice(invoice_id=first.number, reason="x")))).code == "conflict"
    assert (await refusal(void_invoice(ctx, VoidInvoice(invoice_id=str(note.number), reason="x")))).code == "conflict"
    whole = await refusal(prepare_invoice(ctx, PrepareInvoice(start=JAN, end=JAN + 24 * HOUR)))
    assert (whole.code, whole.field) == ("conflict", "start")
    once_more = await issue(ctx, request_id="again")
    assert once_more.number == f"INV-{once_more.issued_on.year}-000003"
    assert {line.section for line in once_more.lines} == {"usage", "adjustment", "billed"}
    sums = [await posted(ctx.services, *span) for span in list(MONTHS.values())[:2]]
    assert await billed(ctx.services) == sum(s["cost"] for s in sums)
    listed = (await list_invoices(ctx, ListInvoices())).invoices
    states = [(found.kind, found.status) for found in listed]
    assert states[:2] == [("invoice", "final"), ("credit_note", "final")]
    assert states[2:] == [("invoice", "final"), ("invoice", "void")]
    assert listed[3].credited_by == note.number and listed[1].corrects == first.number


async def test_numbers_have_no_gaps_whoever_issues_and_whatever_fails(ctx: Context, month: list[Any]) -> None:
    teams = [f"t{i}" for i in range(8)]
    await apply_usage(ctx.services, *(gpt(timestamp=JAN + HOUR, team_id=team) for team in teams))
    payers = [Payer(type="team", entity_id=team) for team in [*teams, "nobody"]]
    made = await asyncio.gather(
        *(issue(ctx, payer=payer, request_id=f"r{i}") for i, payer in enumerate(payers)),
        *(issue(ctx, payer=payer, request_id=f"r{i}") for i, payer in enumerate(payers)),
        return_exceptions=True,
    )
    numbers = {found.number for found in made if isinstance(found, Invoice)}
    year = (await list_invoices(ctx, ListInvoices(limit=1))).invoices[0].issued_at.year
    assert numbers == {f"INV-{year}-{n:06d}" for n in range(1, 9)}
    rows = await ctx.database.fetch("SELECT sequence FROM invoice ORDER BY sequence")
    assert [row["sequence"] for row in rows] == list(range(1, 9))


async def test_in_another_currency_each_line_is_converted_at_one_rate_that_stays(
    ctx: Context, month: list[Any]
) -> None:
    await put_rate(ctx, "EUR", "USD", "1.25", JAN)
    first = await issue(ctx, currency="EUR", payer=Payer(type="team", entity_id="blue"))
    (rate,) = first.exchange_rates
    assert (rate.currency, rate.rate, rate.cost) == ("USD", "0.8", "0.014")
    assert first.totals.subtotal == "0.0112"
    assert rate.stale and any("the newest there was" in note for note in first.notes)
    for usage_id in ("c", "d"):
        await adjust(ctx, usage_id, "void")
    await put_rate(ctx, "EUR", "USD", "2", FEB)
    second = await draft(ctx, "2026-02", currency="EUR", payer=Payer(type="team", entity_id="blue"))
    assert second.totals.subtotal == "-0.0112"
    missing = await refusal(prepare_invoice(ctx, asked(currency="VND")))
    assert (missing.code, missing.field) == ("invalid_request", "currency") and "VND" in missing.message


async def put_rate(ctx: Context, base: str, quote: str, rate: str, day: datetime) -> None:
    await ctx.database.execute(
        """INSERT INTO exchange_rate (org_id, revision, base, quote, as_of, rate, source, recorded_at)
            SELECT $1, coalesce(max(revision), 0) + 1, $2, $3, $4, $5, 'a test', now() FROM exchange_rate""",
        ORG,
        base,
        quote,
        day.date(),
        Decimal(rate),
    )


async def test_teams_with_their_shares_pay_all_that_was_spent(ctx: Context, month: list[Any]) -> None:
    rule = AllocationRule(name="platform", shared=SharedUsage(team_id=None), split="by_cost")
    await set_allocation_rules(ctx, SetAllocationRules(by="team", rules=[rule]))
    await apply_usage(ctx.services, gpt(1_111, 77, id="shared", timestamp=JAN + HOUR, project_id="p9"))
    payers = [Payer(type="team", entity_id=team, allocated=True) for team in ("red", "blue")]
    made = [await issue(ctx, payer=payer) for payer in payers]
    shares = [line for invoice in made for line in invoice.lines if line.section == "share"]
    assert [line.rule for line in shares] == ["platform", "platform"]
    total = (await posted(ctx.services, JAN, FEB))["cost"]
    assert sum(Decimal(invoice.totals.subtotal) for invoice in made) == Decimal(text(total))
    # The rules that an invoice was made by stay its own: another split later moves nothing.
    even = AllocationRule(name="platform", shared=SharedUsage(team_id=None), split="even")
    await set_allocation_rules(ctx, SetAllocationRules(by="team", rules=[even]))
    await adjust(ctx, "shared", "void")
    later = [await draft(ctx, "2026-02", payer=payer) for payer in payers]
    back = [line.net for invoice in later for line in invoice.lines if line.section == "earlier"]
    assert back == [f"-{line.net}" for line in shares]


async def test_a_month_that_has_not_ended_is_only_drafted(ctx: Context, services: Services) -> None:
    now = datetime.now(UTC)
    await apply_usage(services, gpt(timestamp=now))
    month = f"{now:%Y-%m}"
    assert (await draft(ctx, month)).totals.subtotal == CENTS
    early = await refusal(prepare_invoice(ctx, asked(month, status="final", request_id="r")))
    assert (early.code, early.field) == ("invalid_request", "month")


async def test_lines_come_in_pages_that_are_the_whole(ctx: Context, month: list[Any]) -> None:
    whole = await issue(ctx)
    found: list[Any] = []
    cursor: str | None = None
    while True:
        page = (await get_invoice(ctx, GetInvoice(invoice_id=str(whole.number), limit=2, cursor=cursor))).invoice
        assert page is not None and len(page.lines) <= 2
        found += page.lines
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == whole.lines and len(found) > 2


async def test_an_invoice_of_any_size_fits_the_bus(database_url: str) -> None:
    """Names as long as they may be, and more of everything than is listed."""
    async with services_for(database_url) as services:
        ctx = context(services)
        events = [
            gpt(1, 1, timestamp=JAN, project_id=f"{i:03d}" + "p" * 253, model=f"{i % 230:03d}" + "m" * 253)
            for i in range(700)
        ]
        await apply_usage(services, *events)
        first = await prepare_invoice(ctx, asked())
        assert first.line_count == 700 and len(first.lines) < 700 and first.next_cursor
        assert len(msgspec.json.encode(first)) < 900_000
        assert len(first.by_project) == 201 and first.by_project[-1].others == 500
        assert sum(item.requests for item in first.by_model) == 700 == sum(i.requests for i in first.by_project)
        assert any("open points are the first 200 of 700" in note for note in first.notes)
        made = await prepare_invoice(ctx, asked(status="final", request_id="r"))
        lines, cursor = list(made.lines), made.next_cursor
        while cursor is not None:
            page = (await get_invoice(ctx, GetInvoice(invoice_id=str(made.number), cursor=cursor))).invoice
            assert page is not None and len(msgspec.json.encode(page)) < 900_000
            lines += page.lines
            cursor = page.next_cursor
        assert [line.position for line in lines] == list(range(1, 701))


async def test_one_month_of_a_time_zone_and_the_same_range_are_the_same(ctx: Context, month: list[Any]) -> None:
    by_name = await draft(ctx, timezone="America/New_York")
    start, end = datetime(2026, 1, 1, 5, tzinfo=UTC), datetime(2026, 2, 1, 5, tzinfo=UTC)
    by_range = await draft(ctx, month=None, start=start, end=end, timezone="America/New_York")  # pyright: ignore
    assert by_name.totals == by_range.totals and by_name.period_start == start
    assert (by_name.first_day, by_name.last_day) == (JAN.date(), datetime(2026, 1, 31).date())
    assert by_name.totals.subtotal == text((await posted(ctx.services, start, end))["cost"])
