"""What strangers send to signals about money: days beyond calendars, huge sums, repeats, other orgs, names."""

import contextlib
import gzip
import hashlib
import io
import json
import logging
import zipfile
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agent.bill_file import split
from agent.invoice_file import fetch
from agent.logs import configure
from agent.settings import Settings
from handlers.adjustments.adjust import adjust_usage
from handlers.adjustments.adjusted import list_adjustments
from handlers.context import Context, Limits, Services
from handlers.currency.rates import get_exchange_rates, update_exchange_rates
from handlers.currency.seed import RateFileError, load_file, read
from handlers.finance.allocate import allocate_costs
from handlers.finance.bill import list_bills, reconcile_bill
from handlers.finance.export import export_usage
from handlers.finance.focus_check import Checker
from handlers.finance.focus_file import UnreadableFile, check_file
from handlers.finance.invoice import PAGE_LINES_MAX, prepare_invoice, void_invoice
from handlers.finance.invoice_read import get_invoice, list_invoices
from handlers.finance.paging import fitting_beside
from handlers.finance.rules import list_allocation_rules, set_allocation_rules
from handlers.finance.spreadsheet import safe_text
from handlers.management.audit import get_audit_trail
from handlers.pricing.aliases import list_model_aliases, set_model_alias
from handlers.pricing.listing import list_price_rules
from handlers.pricing.update import update_pricing
from schemas.adjustment import AdjustUsage, ListAdjustments
from schemas.allocation import (
    AllocateCosts,
    AllocationRule,
    ListAllocationRules,
    SetAllocationRules,
    SharedUsage,
)
from schemas.audit import GetAuditTrail
from schemas.bill import BillColumns, ListBills, ReconcileBill
from schemas.exchange import GetExchangeRates, StatedRate, UpdateExchangeRates
from schemas.export import ExportUsage
from schemas.invoice import GetInvoice, ListInvoices, Payer, PrepareInvoice, VoidInvoice
from schemas.pricing import ListModelAliases, ListPriceRules, PriceRuleDraft, SetModelAlias, UpdatePricing
from schemas.usage import UsageFilters
from tests.support.services import apply_usage, context, gpt, refusal, services_for, user

JUNE = datetime(2026, 6, 1, tzinfo=UTC)
JULY = datetime(2026, 7, 1, tzinfo=UTC)
COLUMNS = BillColumns(date="date", model="model", cost="cost", input_tokens="input")
NAME = "erika.mustermann"


def of_bill(lines: str, bill_id: str = "b", **fields: Any) -> ReconcileBill:
    text = "date,model,cost,input\n" + lines
    return ReconcileBill(bill_id=bill_id, provider="openai", csv=text, columns=COLUMNS, **fields)


@pytest.mark.parametrize("timezone", ["America/New_York", "Pacific/Kiritimati", "UTC"])
@pytest.mark.parametrize(
    ("start", "end"),
    [
        (datetime(1, 1, 1, tzinfo=UTC), datetime(1, 1, 1, 0, 15, tzinfo=UTC)),
        (datetime(9999, 12, 31, 23, 30, tzinfo=UTC), datetime(9999, 12, 31, 23, 45, tzinfo=UTC)),
    ],
)
async def test_a_period_at_an_end_of_the_calendar_is_refused(
    ctx: Context, start: datetime, end: datetime, timezone: str
) -> None:
    period: dict[str, Any] = {"start": start, "end": end, "timezone": timezone}
    for work in (
        allocate_costs(ctx, AllocateCosts(by="team", **period)),
        prepare_invoice(ctx, PrepareInvoice(**period)),
    ):
        error = await refusal(work)
        assert (error.code, error.field) == ("invalid_request", "start")


@pytest.mark.parametrize(
    "lines",
    [
        "2026-01-02,m,999999999,1\n" * 10,
        "2026-01-02,m,1,999999999999999\n" * 10,
        "9999-12-31,m,1,1\n",
        "0001-01-01T00:00:00+14:00,m,1,1\n",
    ],
)
async def test_a_bill_beyond_any_bill_is_refused_and_leaves_nothing(ctx: Context, lines: str) -> None:
    error = await refusal(reconcile_bill(ctx, of_bill(lines)))
    assert (error.code, error.field) == ("invalid_request", "csv")
    assert (await list_bills(ctx, ListBills())).bills == []


async def test_a_header_of_countless_or_endless_columns_is_refused_at_once(ctx: Context) -> None:
    for header in (",".join(f"c{i}" for i in range(100_000)), f"{'x' * 100_000},{'x' * 100_000}"):
        error = await refusal(reconcile_bill(ctx, ReconcileBill(bill_id="b", csv=f"{header}\n")))
        assert error.field == "csv"
        assert len(error.message) < 500


async def test_no_more_bills_than_allowed_also_by_replacing_and_the_last_one_takes_its_parts(database_url: str) -> None:
    async with services_for(database_url, limits=Limits(bills_max=1)) as services:
        ctx = context(services)
        await reconcile_bill(ctx, of_bill("2026-01-02,m,1,1\n", part=1, last=False))
        await reconcile_bill(ctx, of_bill("2026-01-03,m,1,1\n", part=2))
        error = await refusal(reconcile_bill(ctx, of_bill("2026-01-02,m,1,1\n", bill_id="c", replace=True)))
        assert (error.code, error.field) == ("conflict", "bill_id")
        await reconcile_bill(ctx, of_bill("2026-01-02,m,2,1\n", replace=True))
        entries = (await get_audit_trail(ctx, GetAuditTrail(entity="bill"))).entries
        assert [entry.action for entry in entries][:3] == ["imported", "deleted", "imported"]


def test_parts_of_a_bill_cut_no_row_at_what_only_unicode_takes_for_a_line_end() -> None:
    rows = ["date,model", "2026-01-01,a\u2028b", "2026-01-02,a\x0cb\x85c", '2026-01-03,"a', 'b"']
    assert list(split("\n".join(rows) + "\n")) == ["\n".join(rows) + "\n"]


def test_a_table_of_rates_with_an_endless_cell_is_refused() -> None:
    for text in ("x" * 200_000, 'Date,"' + "x" * 200_000, "Date,USD\n2026-01-01," + "1" * 200_000):
        with pytest.raises(RateFileError):
            list(read(text))


async def test_damaged_archives_are_refused(ctx: Context, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as found:
        found.writestr("rates.csv", "Date,USD\n" + "".join(f"2026-01-{i % 28 + 1:02d},1.{i}\n" for i in range(500)))
    damaged = bytearray(archive.getvalue())
    damaged[45:80] = b"\xff" * 35
    ctx.services.exchange_rates_file = tmp_path / "rates.zip"
    ctx.services.exchange_rates_file.write_bytes(bytes(damaged))
    with pytest.raises(RateFileError):
        await load_file(ctx.services)
    packed = bytearray(gzip.compress(b"BilledCost\n" + b"1\n2\n3\n" * 1_000))
    packed[12:20] = b"\xff" * 8
    (tmp_path / "focus.csv.gz").write_bytes(bytes(packed))
    with pytest.raises(UnreadableFile):
        check_file(tmp_path / "focus.csv.gz", Checker("1.2"))


def test_logs_tell_no_url_of_a_mirror() -> None:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    try:
        configure("debug", "text")
        assert not logging.getLogger("httpx").isEnabledFor(logging.INFO)
        assert not logging.getLogger("httpcore").isEnabledFor(logging.INFO)
    finally:
        root.handlers = handlers
        root.setLevel(level)


def test_settings_that_are_refused_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_MANAGER_SECRET_KEY", "hunter2hunter2hunter2")
    monkeypatch.setenv("TOKEN_MANAGER_PRICES_REFRESH", "url")
    monkeypatch.setenv("TOKEN_MANAGER_PRICES_URL", "ftp://bob:hunter2@mirror.example/prices.json")
    with pytest.raises(ValidationError) as refused:
        Settings()  # pyright: ignore[reportCallIssue]  # From the environment.
    assert "prices_url" in str(refused.value)
    assert "hunter2" not in str(refused.value)


async def test_a_file_name_that_leads_elsewhere_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = {
        "content": "x",
        "encoding": "utf-8",
        "filename": "../../escaped.csv",
        "sha256": hashlib.sha256(b"x").hexdigest(),
        "next_cursor": None,
    }

    class Reply:
        data = json.dumps({"file": file}).encode()

    @contextlib.asynccontextmanager
    async def asking(*_: object, **__: object) -> AsyncGenerator[Any]:
        async def ask(*_: object) -> Reply:
            return Reply()

        yield ask

    monkeypatch.setattr("agent.console.asking", asking)
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert await fetch("INV-1", wanted="csv", out=None, data_dir=tmp_path, url=None, user=None) == 0
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*.csv")] == [Path("a/b/escaped.csv")]


def test_a_page_makes_no_more_items_than_fit() -> None:
    made = 0

    def items() -> Iterator[str]:
        nonlocal made
        for _ in range(10_000):
            made += 1
            yield "x" * 100_000

    assert len(fitting_beside({}, items())) == 7
    assert made == 8


async def test_pages_of_an_allocation_and_an_invoice_hold_every_entity_and_line_once(services: Services) -> None:
    ctx = context(services)
    count = PAGE_LINES_MAX + 500
    for first in range(0, count, 500):
        calls = [gpt(timestamp=JUNE, project_id=f"p{i:05d}", team_id=f"t{i:05d}") for i in range(first, first + 500)]
        await apply_usage(services, *calls)
    cursor, bearers = None, list[str]()
    while True:
        part = await allocate_costs(ctx, AllocateCosts(by="team", start=JUNE, end=JULY, limit=999, cursor=cursor))
        bearers += [one.entity_id for one in part.allocations]
        cursor = part.next_cursor
        if cursor is None:
            break
    assert bearers == [f"t{i:05d}" for i in range(count)]
    issued = await prepare_invoice(ctx, PrepareInvoice(month="2026-06", status="final", request_id="r", limit=10_000))
    assert issued.number is not None
    note = await void_invoice(ctx, VoidInvoice(invoice_id=issued.number, reason="a test"))
    for document in (issued, note):
        projects: list[str | None] = []
        cursor = None
        while True:
            request = GetInvoice(invoice_id=str(document.number), limit=10_000, cursor=cursor)
            found = (await get_invoice(ctx, request)).invoice
            assert found is not None
            projects += [line.project_id for line in found.lines]
            cursor = found.next_cursor
            if cursor is None:
                break
        assert sorted(map(str, projects)) == [f"p{i:05d}" for i in range(count)]
        text = (await get_invoice(ctx, GetInvoice(invoice_id=str(document.number), format="json"))).file
        assert text is not None and text.size_bytes > 100 * count


async def test_requests_that_are_sent_again_change_nothing_twice(ctx: Context, services: Services) -> None:
    await apply_usage(services, gpt(id="u1", timestamp=JUNE, team_id="ops"))

    draft = PriceRuleDraft(name="r", layer="contract", op="multiply", factor="0.5")
    await update_pricing(ctx, UpdatePricing(rules=(draft,)))
    error = await refusal(update_pricing(ctx, UpdatePricing(rules=(draft,))))
    assert (error.code, error.field) == ("conflict", "rules[0].version")
    assert len((await list_price_rules(ctx, ListPriceRules(name="r", history=True))).rules) == 1

    rates = UpdateExchangeRates(rates=(StatedRate(base="EUR", quote="USD", rate="1.1"),), source="x", confirm=True)
    assert (await update_exchange_rates(ctx, rates)).stored == 1
    assert (await update_exchange_rates(ctx, rates)).stored == 0

    adjust = AdjustUsage(usage_id="u1", kind="refund", amount="0.001", reason="late", adjustment_id="a1")
    first = (await adjust_usage(ctx, adjust)).adjustments[0]
    again = (await adjust_usage(ctx, adjust)).adjustments[0]
    assert again.duplicate and again.cost_after == first.cost_after
    assert len((await list_adjustments(ctx, ListAdjustments())).adjustments) == 1

    invoice = PrepareInvoice(month="2026-06", status="final", request_id="i1")
    numbers = {(await prepare_invoice(ctx, invoice)).number for _ in range(2)}
    assert numbers == {(await list_invoices(ctx, ListInvoices())).invoices[0].number}

    bill = of_bill("2026-06-01,gpt-4o,0.0035,1000\n")
    assert [(await reconcile_bill(ctx, bill)).duplicate for _ in range(2)] == [False, True]
    assert len((await get_audit_trail(ctx, GetAuditTrail(entity="bill"))).entries) == 1


async def _use_everything(services: Services, ctx: Context) -> str:
    """Something of every kind in one org; the number of its invoice."""
    await apply_usage(services, gpt(id="u1", timestamp=JUNE, team_id="ops", user_id=NAME))
    rule = PriceRuleDraft(name="r", layer="contract", op="multiply", factor="0.5")
    await update_pricing(ctx, UpdatePricing(rules=(rule,)))
    await set_model_alias(ctx, SetModelAlias(provider="openai", alias="mine", to_model="gpt-4o"))
    rates = (StatedRate(base="EUR", quote="USD", rate="1.1"),)
    await update_exchange_rates(ctx, UpdateExchangeRates(rates=rates, source="x", confirm=True))
    await adjust_usage(ctx, AdjustUsage(usage_id="u1", kind="refund", amount="0.001", reason="late"))
    shared = AllocationRule(name="s", shared=SharedUsage(user_id=NAME), split="fixed", percents={NAME: "100"})
    await set_allocation_rules(ctx, SetAllocationRules(by="user", rules=[shared]))
    await reconcile_bill(ctx, of_bill("2026-06-01,gpt-4o,1,1000\n", filters=UsageFilters(user_id=NAME)))
    payer = Payer(type="user", entity_id=NAME)
    issued = await prepare_invoice(ctx, PrepareInvoice(month="2026-06", payer=payer, status="final", request_id="i"))
    return str(issued.number)


async def test_another_org_sees_none_of_it(ctx: Context, services: Services) -> None:
    number = await _use_everything(services, ctx)
    other = context(services, org="other")
    assert (await list_price_rules(other, ListPriceRules(origin="org"))).rules == []
    assert (await list_model_aliases(other, ListModelAliases())).aliases == []
    assert (await get_exchange_rates(other, GetExchangeRates(base="EUR"))).rates == []
    assert (await list_adjustments(other, ListAdjustments())).adjustments == []
    assert (await list_allocation_rules(other, ListAllocationRules())).rule_sets == []
    assert (await list_bills(other, ListBills())).bills == []
    assert (await list_invoices(other, ListInvoices())).invoices == []
    assert (await refusal(get_invoice(other, GetInvoice(invoice_id=number)))).code == "not_found"
    assert (await refusal(void_invoice(other, VoidInvoice(invoice_id=number, reason="x")))).code == "not_found"
    assert (await refusal(reconcile_bill(other, ReconcileBill(bill_id="b")))).code == "not_found"
    adjusted = adjust_usage(other, AdjustUsage(usage_id="u1", kind="void", reason="x"))
    assert (await refusal(adjusted)).code == "not_found"
    assert (await allocate_costs(other, AllocateCosts(by="team", start=JUNE, end=JULY))).total == "0"
    for wanted in ("csv", "jsonl", "focus-csv"):
        part = await export_usage(other, ExportUsage(start=JUNE, end=JUNE + timedelta(days=1), format=wanted))
        assert part.rows == 0
    assert (await prepare_invoice(other, PrepareInvoice(month="2026-06"))).line_count == 0
    at = datetime.now(UTC)
    mine, theirs = ctx.prices.resolve("openai", "mine", at), other.prices.resolve("openai", "mine", at)
    assert mine is not None and theirs is None


async def test_no_table_holds_the_name_of_a_user(ctx: Context, services: Services) -> None:
    await _use_everything(services, ctx)
    tables = await services.database.fetch(
        "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace "
        "WHERE relkind IN ('r', 'p') AND NOT relispartition AND n.nspname = current_schema()"
    )
    assert len(tables) > 30
    for (table,) in tables:
        rows = await services.database.fetch(f'SELECT t::text FROM "{table}" AS t')
        assert not [row for row in rows if NAME in row[0]], table
    listed = (await list_invoices(ctx, ListInvoices(entity_id=NAME))).invoices
    assert [one.entity_id for one in listed] == [user(NAME)]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1+1", "\uff20SUM"])
def test_no_text_is_a_formula(text: str) -> None:
    assert safe_text(text) == f"'{text}"
