"""reconcile_bill: a bill that says what we recorded matches; each planted difference is named for what it is."""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from handlers.adjustments.adjust import adjust_usage
from handlers.adjustments.reprice import reprice_usage
from handlers.context import Context, Limits, Services
from handlers.finance.bill import list_bills, reconcile_bill
from handlers.finance.bill_suggest import simplest
from handlers.management.audit import get_audit_trail
from handlers.pricing.update import update_pricing
from schemas.adjustment import AdjustUsage, RepriceUsage
from schemas.audit import GetAuditTrail
from schemas.bill import BillColumns, BillRow, ListBills, ReconcileBill, ReconciledBill
from schemas.pricing import UpdatePricing
from schemas.usage import TrackUsage, UsageEvent, UsageFilters
from tests.support.services import apply_usage, context, gpt, refusal, services_for, user

DAY = date(2025, 10, 5)
NOON = datetime(2025, 10, 5, 12, tzinfo=UTC)
DAYS = timedelta(days=1)
SONNET = "claude-sonnet-4-5-20250929"
USAGE_HEADER = (
    "start_time,end_time,start_time_iso,end_time_iso,num_model_requests,model,batch,service_tier,input_tokens,"
    "output_tokens,input_cached_tokens"
)
COST_HEADER = "start_time,end_time,amount_value,amount_currency,line_item"
# USD per million tokens, as OpenAI publishes them for gpt-4o: 2.5 in, 1.25 cached, 10 out.
RATES = {"input": Decimal("2.5"), "cached input": Decimal("1.25"), "output": Decimal(10)}


def made(kind: type[Any], body: Any) -> Any:
    """A request of the wire form, as a suggestion has it."""
    return msgspec.convert(body, kind)


def seconds(day: date) -> int:
    return int(datetime.combine(day, datetime.min.time(), UTC).timestamp())


class OpenAi:
    """The export files of OpenAI for some calls of gpt-4o; every part of them can be bent."""

    def __init__(self) -> None:
        self.tokens: dict[tuple[date, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        self.rates = dict(RATES)
        self.decimals: int | None = None

    def call(self, event: UsageEvent, *, day: date | None = None, model: str = "gpt-4o-2024-08-06") -> None:
        assert event.timestamp is not None
        cell = self.tokens[day or event.timestamp.date(), model, str(event.batch).lower()]
        counts = (1, event.prompt_tokens or 0, event.completion_tokens or 0, event.cache_read_tokens)
        for i, value in enumerate(counts):
            cell[i] += value

    @property
    def usage(self) -> str:
        rows = [
            f"{seconds(day)},{seconds(day + DAYS)},,,{calls}.0,{model},{batch},default,{prompt}.0,{completion}.0,"
            f"{cached}.0"
            for (day, model, batch), (calls, prompt, completion, cached) in self.tokens.items()
        ]
        return "\n".join([USAGE_HEADER, *rows]) + "\n"

    @property
    def costs(self) -> str:
        rows: list[str] = []
        for (day, model, _), (_, prompt, completion, cached) in self.tokens.items():
            counts = {"input": prompt - cached, "cached input": cached, "output": completion}
            for kind, count in counts.items():
                amount = count * self.rates[kind] / 1_000_000
                text = f"{amount:.15f}" if self.decimals is None else f"{amount:.{self.decimals}f}"
                rows.append(f'{seconds(day)},{seconds(day + DAYS)},{text},usd,"{model}, {kind}"')
        return "\n".join([COST_HEADER, *rows]) + "\n"


def calls(number: int = 12, **fields: Any) -> list[UsageEvent]:
    """Calls of three days, some of them with cached tokens."""
    return [
        gpt(
            1_000 + 17 * i,
            100 + i,
            id=f"e{i}",
            timestamp=NOON + (i % 3) * DAYS,
            cache_read_tokens=64 * (i % 4),
            **fields,
        )
        for i in range(number)
    ]


async def sent(ctx: Context, bill: OpenAi, name: str = "oct", **fields: Any) -> ReconciledBill:
    """Both files of a bill, as two parts."""
    first = ReconcileBill(bill_id=name, csv=bill.usage, part=1, last=False, **fields)
    assert (await reconcile_bill(ctx, first)).bill.status == "open"
    return await reconcile_bill(ctx, ReconcileBill(bill_id=name, csv=bill.costs, part=2, **fields))


async def scene(
    services: Services, events: Iterable[UsageEvent], bend: Callable[[UsageEvent, OpenAi], None] | None = None
) -> OpenAi:
    """Our usage, and the bill for it; ``bend`` decides what the bill makes of each call."""
    bill, used = OpenAi(), list(events)
    await apply_usage(services, *used)
    for event in used:
        if bend is None:
            bill.call(event)
        else:
            bend(event, bill)
    return bill


def codes(row: BillRow) -> list[str]:
    return [why.code for why in row.reasons]


def differing(reply: ReconciledBill) -> dict[date, BillRow]:
    return {row.day: row for row in reply.rows if not row.matched}


async def test_a_bill_that_says_what_we_recorded_matches_to_the_last_decimal(ctx: Context, services: Services) -> None:
    bill = await scene(services, calls())
    reply = await sent(ctx, bill, tolerance="0")
    assert [row.matched for row in reply.rows] == [True] * 3
    summary = reply.bill.summary
    assert summary is not None and (summary.rows, summary.matched, summary.suggestions) == (3, 3, [])
    assert (summary.calls.ours, summary.calls.theirs, summary.tokens.difference) == (12, 12, 0)
    assert Decimal(summary.cost.ours or "x") == Decimal(summary.cost.theirs or "x") and summary.cost.difference == "0"
    (row, *_) = reply.rows
    # A dated snapshot on the bill, the plain name in our usage: one model.
    assert (row.model, row.our_names, row.their_names) == ("gpt-4o", ["gpt-4o"], ["gpt-4o-2024-08-06"])
    kinds = {kind.kind: kind for kind in row.kinds}
    assert {kind: (found.our_rate, found.their_rate) for kind, found in kinds.items()} == {
        "input": ("2.5", "2.5"),
        "cache_read": ("1.25", "1.25"),
        "output": ("10", "10"),
    }
    assert reply.bill.formats == ["openai_costs", "openai_usage"]


async def test_amounts_in_cents_match_by_rounding_only(ctx: Context, services: Services) -> None:
    bill = await scene(services, calls())
    bill.decimals = 2
    reply = await sent(ctx, bill, tolerance="0")
    assert all(row.matched for row in reply.rows)
    assert {code for row in reply.rows for code in codes(row)} == {"rounding"}


async def test_calls_that_only_the_bill_has_were_not_tracked(ctx: Context, services: Services) -> None:
    bill = await scene(services, calls())
    for i in range(5):
        bill.call(gpt(10_000, 500, id=f"lost{i}", timestamp=NOON, cache_read_tokens=100))
    bill.call(gpt(50, 50, timestamp=NOON + 9 * DAYS))
    found = differing(await sent(ctx, bill))
    assert set(found) == {DAY, DAY + 9 * DAYS}
    row = found[DAY]
    assert codes(row) == ["usage_not_tracked"] and (row.calls.difference, row.reasons[0].evidence["calls"]) == (5, 5)
    assert row.reasons[0].evidence["tokens"] == {"input": 49_500, "cache_read": 500, "output": 2_500}
    # 49,500 x 2.5 + 500 x 1.25 + 2,500 x 10, per million: the whole difference.
    assert row.reasons[0].amount == row.cost.difference == "0.149375"
    assert codes(found[DAY + 9 * DAYS]) == ["usage_not_tracked"]


async def test_what_was_not_tracked_can_be_tracked_as_it_is_suggested(ctx: Context, services: Services) -> None:
    bill = await scene(services, calls())
    bill.call(gpt(10_000, 500, timestamp=NOON, cache_read_tokens=100))
    reply = await sent(ctx, bill)
    assert reply.bill.summary is not None
    (suggested,) = reply.bill.summary.suggestions
    assert suggested.signal == "track_usage"
    event = msgspec.convert(suggested.body, TrackUsage)
    await apply_usage(services, event)
    again = await reconcile_bill(ctx, ReconcileBill(bill_id="oct"))
    assert again.bill.summary is not None and again.bill.summary.cost.difference == "0"
    assert all(row.matched for row in again.rows)


async def test_calls_that_only_we_have_were_not_billed(ctx: Context, services: Services) -> None:
    def bend(event: UsageEvent, bill: OpenAi) -> None:
        if event.id != "e3":
            bill.call(event)

    bill = await scene(services, calls(), bend)
    reply = await sent(ctx, bill)
    (row,) = differing(reply).values()
    assert (row.day, codes(row), row.calls.difference) == (DAY, ["not_billed"], -1)
    assert row.reasons[0].amount == row.cost.difference
    assert reply.bill.summary is not None
    (void,) = reply.bill.summary.suggestions
    assert (void.signal, [a["usage_id"] for a in void.body["adjustments"]]) == ("adjust_usage", ["e3"])
    body = made(AdjustUsage, {**void.body, "dry_run": False})
    assert (await adjust_usage(ctx, body)).accepted == 1
    assert differing(await reconcile_bill(ctx, ReconcileBill(bill_id="oct"))) == {}


async def test_a_day_and_model_that_is_on_no_bill(ctx: Context, services: Services) -> None:
    bill = await scene(services, calls())
    await apply_usage(services, gpt(id="mini", model="gpt-4o-mini", timestamp=NOON))
    reply = await sent(ctx, bill)
    (row,) = differing(reply).values()
    assert (row.model, codes(row), row.cost.theirs) == ("gpt-4o-mini", ["not_billed"], "0")
    assert row.cost.difference == row.reasons[0].amount
    assert reply.bill.summary is not None
    (void,) = reply.bill.summary.suggestions
    assert [a["usage_id"] for a in void.body["adjustments"]] == ["mini"]


async def test_other_counts_of_tokens(ctx: Context, services: Services) -> None:
    def bend(event: UsageEvent, bill: OpenAi) -> None:
        more = 7_000 if event.id == "e4" else 0
        bill.call(gpt((event.prompt_tokens or 0) + more, event.completion_tokens or 0, timestamp=event.timestamp,
                      cache_read_tokens=event.cache_read_tokens))  # fmt: skip

    bill = await scene(services, calls(), bend)
    (row,) = differing(await sent(ctx, bill)).values()
    assert codes(row) == ["token_count_differs"] and row.reasons[0].evidence == {"tokens": {"input": 7000}, "calls": 0}
    assert row.reasons[0].amount == row.cost.difference == "0.0175"
    tolerant = await reconcile_bill(ctx, ReconcileBill(bill_id="oct", token_tolerance=7_000, tolerance="0.02"))
    assert differing(tolerant) == {}


async def test_another_price_is_found_by_kind_and_its_rule_settles_it(ctx: Context, services: Services) -> None:
    bill = await scene(services, calls())
    bill.rates |= {"output": Decimal("9.5")}
    reply = await sent(ctx, bill, tolerance="0.0001")
    assert len(differing(reply)) == 3
    for row in reply.rows:
        assert codes(row) == ["price_differs"] and row.reasons[0].amount == row.cost.difference
        evidence = row.reasons[0].evidence
        assert (evidence["kind"], evidence["our_rate"], evidence["their_rate"]) == ("output", "10", "9.5")
    assert reply.bill.summary is not None
    rule, again = reply.bill.summary.suggestions
    assert rule.body["rules"][0]["rates"] == {"output": "9.5"} and rule.body["rules"][0]["partial"]
    for dry_run in (True, False):
        await update_pricing(ctx, made(UpdatePricing, {**rule.body, "dry_run": dry_run}))
    assert again.signal == "reprice_usage"
    repriced = await reprice_usage(ctx, made(RepriceUsage, {**again.body, "dry_run": False}))
    assert repriced.repriced == 12
    settled = await reconcile_bill(ctx, ReconcileBill(bill_id="oct", tolerance="0"))
    assert differing(settled) == {}


async def test_cached_tokens_at_another_price(ctx: Context, services: Services) -> None:
    bill = await scene(services, calls())
    bill.rates |= {"cached input": Decimal("2.5")}
    for row in differing(await sent(ctx, bill, tolerance="0.0001")).values():
        assert codes(row) == ["cache_priced_differently"] and row.reasons[0].amount == row.cost.difference


async def test_volume_and_price_together_split_the_difference_exactly(ctx: Context, services: Services) -> None:
    bill = await scene(services, calls())
    bill.rates |= {"input": Decimal(3)}
    bill.call(gpt(40_000, 10, timestamp=NOON))
    row = differing(await sent(ctx, bill, tolerance="0.0001"))[DAY]
    assert set(codes(row)) == {"usage_not_tracked", "price_differs"}
    assert sum(Decimal(why.amount or 0) for why in row.reasons) == Decimal(row.cost.difference or "x")


async def test_batch_on_the_bill_and_not_in_our_usage(ctx: Context, services: Services) -> None:
    def bend(event: UsageEvent, bill: OpenAi) -> None:
        bill.call(gpt(event.prompt_tokens or 0, event.completion_tokens or 0, timestamp=event.timestamp, batch=True,
                      cache_read_tokens=event.cache_read_tokens))  # fmt: skip

    bill = await scene(services, calls(), bend)
    bill.rates = {kind: rate / 2 for kind, rate in RATES.items()}
    for row in differing(await sent(ctx, bill, tolerance="0.0001")).values():
        assert "batch_or_tier" in codes(row)
        tiers = next(why for why in row.reasons if why.code == "batch_or_tier").evidence
        assert (list(tiers["ours"]), list(tiers["theirs"])) == (["standard"], ["batch"])


async def test_usage_without_a_price_here(ctx: Context, services: Services) -> None:
    bill = OpenAi()
    bill.rates = {"input": Decimal(4), "cached input": Decimal(1), "output": Decimal(20)}
    for i in range(3):
        event = gpt(3_000, 500, id=f"n{i}", model="o99-secret", timestamp=NOON, cache_read_tokens=1_000)
        await apply_usage(services, event)
        bill.call(event, model="o99-secret")
    reply = await sent(ctx, bill)
    (row,) = reply.rows
    assert (codes(row), row.cost.ours, row.calls.difference) == (["unpriced_here"], "0", 0)
    assert all(kind.quantity.difference == 0 for kind in row.kinds)
    assert reply.bill.summary is not None
    rule, again = reply.bill.summary.suggestions
    assert rule.body["rules"][0]["rates"] == {"cache_read": "1", "input": "4", "output": "20"}
    assert again.body["only"] == "unpriced"
    await update_pricing(ctx, made(UpdatePricing, {**rule.body, "dry_run": False}))
    assert (await reprice_usage(ctx, made(RepriceUsage, {**again.body, "dry_run": False}))).repriced == 3
    assert differing(await reconcile_bill(ctx, ReconcileBill(bill_id="oct", tolerance="0"))) == {}


async def test_what_was_adjusted_here(ctx: Context, services: Services) -> None:
    bill = await scene(services, calls())
    await adjust_usage(ctx, AdjustUsage(usage_id="e0", kind="refund", amount="0.002", reason="agreed"))
    (row,) = differing(await sent(ctx, bill, tolerance="0.0001")).values()
    assert codes(row) == ["adjusted"] and row.reasons[0].evidence["adjustments"] == 1
    assert row.cost.difference == row.reasons[0].amount == "0.002"


async def test_calls_near_midnight_on_the_other_day(ctx: Context, services: Services) -> None:
    def bend(event: UsageEvent, bill: OpenAi) -> None:
        bill.call(event, day=DAY + DAYS if event.id == "e3" else None)

    bill = await scene(services, calls(), bend)
    found = differing(await sent(ctx, bill, tolerance="0.0001"))
    assert set(found) == {DAY, DAY + DAYS} and all(codes(row) == ["day_boundary"] for row in found.values())
    assert sum(Decimal(row.cost.difference or "x") for row in found.values()) == 0


async def test_another_currency_is_told_and_not_compared(ctx: Context, services: Services) -> None:
    await scene(services, calls(3))
    text = "date,model,cost,currency\n" + "".join(f"2025-10-0{5 + i},gpt-4o,1.25,EUR\n" for i in range(3))
    columns = BillColumns(date="date", model="model", cost="cost", currency="currency")
    reply = await reconcile_bill(ctx, ReconcileBill(bill_id="eur", provider="openai", csv=text, columns=columns))
    assert reply.bill.summary is not None and reply.bill.summary.currency == "EUR"
    for row in reply.rows:
        assert codes(row) == ["currency"] and row.cost.difference is None and "USD" in row.reasons[0].evidence
    assert reply.bill.summary.cost.difference is None


@pytest.mark.parametrize(
    ("cost", "code"),
    [
        (Decimal("0.0175"), "batch_or_tier"),
        # 8,000 cached tokens at 2.5 instead of 1.25 a million.
        (Decimal("0.045"), "cache_priced_differently"),
        (Decimal("0.0385"), "price_differs"),
    ],
)
async def test_one_cost_for_all_kinds_is_explained_by_what_fits(
    ctx: Context, services: Services, cost: Decimal, code: str
) -> None:
    await apply_usage(services, gpt(10_000, 2_000, timestamp=NOON, cache_read_tokens=8_000))
    assert Decimal("0.035") == 2 * RATES["input"] / 1000 + 8 * RATES["cached input"] / 1000 + 2 * RATES["output"] / 1000
    text = f"day,m,in,cached,out,n,usd\n2025-10-05,gpt-4o,10000,8000,2000,1,{cost}\n"
    columns = BillColumns(date="day", model="m", input_tokens="in", cache_read_tokens="cached", output_tokens="out",
                          calls="n", cost="usd")  # fmt: skip
    request = ReconcileBill(bill_id="one", provider="openai", csv=text, columns=columns, tolerance="0.000001")
    (row,) = (await reconcile_bill(ctx, request)).rows
    assert codes(row) == [code] and row.reasons[0].amount == row.cost.difference


async def test_a_contracts_price_beside_a_bill_at_list_price(ctx: Context, services: Services) -> None:
    rule = {"name": "deal", "layer": "contract", "op": "multiply", "provider": "openai", "factor": "0.8",
            "valid_from": "2025-01-01T00:00:00Z"}  # fmt: skip
    await update_pricing(ctx, made(UpdatePricing, {"rules": [rule], "backdate": True}))
    await apply_usage(services, gpt(10_000, 2_000, id="deal", timestamp=NOON))
    day = {"start": "2025-10-05T00:00:00Z", "end": "2025-10-06T00:00:00Z"}
    await reprice_usage(ctx, made(RepriceUsage, {**day, "only": "all", "dry_run": False}))
    text = "day,m,in,out,usd\n2025-10-05,gpt-4o,10000,2000,0.045\n"
    columns = BillColumns(date="day", model="m", input_tokens="in", output_tokens="out", cost="usd")
    request = ReconcileBill(bill_id="deal", provider="openai", csv=text, columns=columns, tolerance="0.0001")
    (row,) = (await reconcile_bill(ctx, request)).rows
    assert (codes(row), row.cost.ours, row.reasons[0].evidence) == (["price_differs"], "0.036", {"list_cost": "0.045"})
    (row,) = (await reconcile_bill(ctx, ReconcileBill(bill_id="deal", compare="list"))).rows
    assert row.matched and row.cost.ours == "0.045"


async def test_a_cost_for_all_models_of_a_day_is_compared_with_all_of_ours(ctx: Context, services: Services) -> None:
    await scene(services, calls(3))
    await apply_usage(services, gpt(1_000, 100, model="gpt-4o-mini", timestamp=NOON))
    ours = await services.database.fetch(
        "SELECT (\"timestamp\" AT TIME ZONE 'UTC')::date AS day, sum(cost)::bigint AS nanos FROM usage_event GROUP BY 1"
    )
    rows = [f"{seconds(r['day'])},{seconds(r['day'] + DAYS)},{Decimal(r['nanos']).scaleb(-9)},usd," for r in ours]
    text = "\n".join([COST_HEADER, *rows])
    reply = await reconcile_bill(ctx, ReconcileBill(bill_id="days", csv=text, tolerance="0"))
    assert {row.day for row in reply.rows if row.model is None} == {DAY, DAY + DAYS, DAY + 2 * DAYS}
    assert differing(reply) == {}


async def test_anthropics_two_files_meet_under_one_name(ctx: Context, services: Services) -> None:
    """Tokens come under a snapshot's id, costs under the name on the invoice, in cents, our usage under an alias."""
    event: dict[str, Any] = {"provider": "anthropic", "model": "claude-sonnet-4-5", "prompt_tokens": 2_627_000}
    event |= {"completion_tokens": 97_000, "cache_read_tokens": 2_000_000, "cache_write_tokens": 123_000}
    event |= {"cache_write_1h_tokens": 23_000, "reasoning_tokens": 5_000, "web_searches": 2, "timestamp": NOON}
    await apply_usage(services, UsageEvent(**event))
    usage = (
        "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
        "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,"
        f"usage_output_tokens,web_search_count,inference_geo,speed\n2025-10-05,{SONNET},k,Default,standard,≤ 200k,"
        "504000,100000,23000,2000000,97000,2,global,\n"
    )
    # The prompt is beyond 200k tokens, so the call is at the long-context rates: 6, 7.5, 12, 0.6 and 22.5 a million.
    costs = {"input_no_cache": "3.02", "input_cache_write_5m": "0.75", "input_cache_write_1h": "0.28",
             "input_cache_read": "1.20", "output": "2.18", "": "0.02"}  # fmt: skip
    text = "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,cost_type\n"
    text += "".join(
        f"2025-10-05,Claude Sonnet 4.5,Default,k,message,> 200k,{kind},{cost},{'token' if kind else 'web_search'}\n"
        for kind, cost in costs.items()
    )
    await reconcile_bill(ctx, ReconcileBill(bill_id="a", csv=usage, last=False))
    reply = await reconcile_bill(ctx, ReconcileBill(bill_id="a", csv=text, part=2, tolerance="0"))
    (row,) = reply.rows
    assert (row.model, row.matched, codes(row)) == ("claude-sonnet-4-5", True, ["rounding"])
    assert row.their_names == ["Claude Sonnet 4.5", SONNET]
    assert {kind.kind: kind.quantity.difference for kind in row.kinds} == dict.fromkeys(
        ("input", "cache_read", "cache_write", "cache_write_1h", "output", "web_search"), 0
    )


async def test_only_the_usage_that_the_bill_is_for(ctx: Context, services: Services) -> None:
    bill = await scene(services, calls(project_id="p1", user_id="ann"))
    await apply_usage(services, *[gpt(id=f"x{i}", timestamp=NOON, project_id="p2") for i in range(3)])
    await apply_usage(services, gpt(id="alien", provider="azure", timestamp=NOON), org="default")
    assert len(differing(await sent(ctx, bill))) == 1
    only = await reconcile_bill(ctx, ReconcileBill(bill_id="oct", filters=UsageFilters(project_id="p1", user_id="ann")))
    assert differing(only) == {}
    assert (
        differing(await reconcile_bill(ctx, ReconcileBill(bill_id="oct", filters=UsageFilters(user_id=user("ann")))))
        == {}
    )


async def test_rows_come_largest_difference_first_in_pages_that_are_kept(ctx: Context, services: Services) -> None:
    bill = await scene(services, calls(30))
    for i, extra in enumerate((10_000, 90_000, 40_000)):
        bill.call(gpt(extra, 1, timestamp=NOON + i * DAYS))
    whole = await sent(ctx, bill)
    differences = [abs(Decimal(row.cost.difference or "x")) for row in whole.rows]
    assert differences == sorted(differences, reverse=True) and whole.rows[0].day == DAY + DAYS
    seen: list[BillRow] = []
    cursor: str | None = None
    first = await reconcile_bill(ctx, ReconcileBill(bill_id="oct", limit=2))
    await apply_usage(services, gpt(10**6, 1, timestamp=NOON))
    page = first
    while True:
        seen += page.rows
        cursor = page.next_cursor
        if cursor is None:
            break
        page = await reconcile_bill(ctx, ReconcileBill(bill_id="oct", limit=2, cursor=cursor))
    assert seen == whole.rows


async def test_importing_again_changes_nothing(ctx: Context, services: Services) -> None:
    bill = await scene(services, calls())
    first = await sent(ctx, bill)
    again = await reconcile_bill(ctx, ReconcileBill(bill_id="oct", csv=bill.usage, part=1, last=False))
    twice = await reconcile_bill(ctx, ReconcileBill(bill_id="oct", csv=bill.costs, part=2))
    assert again.duplicate and twice.duplicate and not first.duplicate
    assert (twice.rows, twice.bill.lines, twice.bill.summary) == (first.rows, first.bill.lines, first.bill.summary)
    other = ReconcileBill(bill_id="oct", csv=bill.costs.replace("usd", "eur"), part=2)
    assert (await refusal(reconcile_bill(ctx, other))).field == "part"
    extra = ReconcileBill(bill_id="oct", csv=bill.costs, part=3)
    assert (await refusal(reconcile_bill(ctx, extra))).code == "conflict"
    bill.call(gpt(5, 5, timestamp=NOON))
    replaced = ReconcileBill(bill_id="oct", csv=bill.usage, part=1, last=False, replace=True)
    assert (await reconcile_bill(ctx, replaced)).bill.status == "open"
    assert differing(await reconcile_bill(ctx, ReconcileBill(bill_id="oct", csv=bill.costs, part=2)))
    trail = (await get_audit_trail(ctx, GetAuditTrail(entity="bill"))).entries
    told = [("imported", "oct"), ("deleted", "oct"), ("imported", "oct")]
    assert [(entry.action, entry.entity_id) for entry in trail] == told


async def test_parts_may_come_in_any_order_and_none_may_be_missing(ctx: Context, services: Services) -> None:
    bill = await scene(services, calls())
    early = ReconcileBill(bill_id="oct", csv=bill.costs, part=2)
    error = await refusal(reconcile_bill(ctx, early))
    assert (error.code, error.field, error.message) == ("conflict", "part", "part 1 has not come")
    assert (await list_bills(ctx, ListBills())).bills == []
    bad = ReconcileBill(bill_id="oct", csv=bill.usage + "1,2\n", last=False)
    assert (await refusal(reconcile_bill(ctx, bad))).message.startswith("line 5: has 2 fields")
    assert (await refusal(reconcile_bill(ctx, ReconcileBill(bill_id="oct")))).code == "not_found"
    await reconcile_bill(ctx, ReconcileBill(bill_id="oct", csv=bill.usage, last=False))
    assert (await refusal(reconcile_bill(ctx, ReconcileBill(bill_id="oct")))).code == "conflict"
    assert (await reconcile_bill(ctx, early)).bill.status == "complete"


async def test_bills_are_listed_and_kept_apart_by_org(ctx: Context, services: Services) -> None:
    bill = await scene(services, calls(3))
    for name in ("a", "b", "c"):
        await sent(ctx, bill, name)
    seen: list[str] = []
    cursor: str | None = None
    while True:
        listed = await list_bills(ctx, ListBills(limit=2, cursor=cursor))
        seen += [found.bill_id for found in listed.bills]
        cursor = listed.next_cursor
        if cursor is None:
            break
    assert seen == ["c", "b", "a"]
    assert [b.bill_id for b in (await list_bills(ctx, ListBills(provider="OpenAI", status="complete"))).bills] == seen
    assert (await list_bills(ctx, ListBills(status="open"))).bills == []
    other = context(services, org="other")
    assert (await list_bills(other, ListBills())).bills == []
    assert (await refusal(reconcile_bill(other, ReconcileBill(bill_id="a")))).code == "not_found"
    assert (await refusal(reconcile_bill(other, ReconcileBill(bill_id="a", cursor="WzBd")))).code == "not_found"


async def test_the_bounds_of_bills(database_url: str) -> None:
    async with services_for(database_url, limits=Limits(bills_max=1, bill_lines_max=10, bill_rows_max=2)) as services:
        ctx = context(services)
        bill = await scene(services, calls(3))
        error = await refusal(reconcile_bill(ctx, ReconcileBill(bill_id="a", csv=bill.usage)))
        assert (error.field, "more than 10" in error.message) == ("csv", True)
        small = OpenAi()
        for i in range(3):
            small.call(gpt(timestamp=NOON), model=f"m{i}")
        text = "day,m,usd\n" + "".join(f"2025-10-05,m{i},1\n" for i in range(3))
        columns = BillColumns(date="day", model="m", cost="usd")
        request = ReconcileBill(bill_id="a", provider="p", csv=text, columns=columns)
        assert "more than 2 days and models" in (await refusal(reconcile_bill(ctx, request))).message
        services.limits = Limits(bill_models_max=2)
        many = reconcile_bill(ctx, ReconcileBill(bill_id="a"))
        assert "more than 2 models" in (await refusal(many)).message
        services.limits = Limits(bills_max=1)
        more = ReconcileBill(bill_id="b", provider="p", csv=text, columns=columns)
        assert (await refusal(reconcile_bill(ctx, more))).code == "conflict"


def test_a_rate_is_the_simplest_that_the_amounts_allow() -> None:
    from fractions import Fraction

    assert simplest(Fraction(2_499_000_000), Fraction(2_501_000_000)) == 2_500_000_000
    assert simplest(Fraction(9_500_000_000), Fraction(9_500_000_000)) == 9_500_000_000
    assert simplest(Fraction(1, 3), Fraction(2, 3)) == 0
    assert simplest(Fraction(123_456), Fraction(123_460)) == 123_460


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"csv": "x"}, "csv"),
        ({"csv": "d,c\n2025-10-05,1\n", "columns": BillColumns(date="d", cost="c")}, "provider"),
        ({"csv": "d,c\n", "columns": BillColumns(date="d", cost="c"), "provider": "p"}, "csv"),
        (
            {"csv": "d,c\n2025-10-05,1\n2023-10-05,1\n", "columns": BillColumns(date="d", cost="c"), "provider": "p"},
            "csv",
        ),
        ({"csv": USAGE_HEADER, "tolerance": "-1"}, "tolerance"),
        ({"csv": USAGE_HEADER, "currency": "USX"}, "currency"),
        ({"csv": USAGE_HEADER, "filters": UsageFilters(provider="x")}, "filters.provider"),
        ({"csv": USAGE_HEADER, "filters": UsageFilters(user_id="a*")}, "filters.user_id"),
        ({"cursor": "x"}, "cursor"),
    ],
)
async def test_what_cannot_be_reconciled_is_refused(ctx: Context, fields: dict[str, Any], field: str) -> None:
    assert (await refusal(reconcile_bill(ctx, ReconcileBill(bill_id="b", **fields)))).field == field


async def test_no_name_or_mail_of_the_file_is_kept(ctx: Context, services: Services) -> None:
    header = "start_time,end_time,amount_value,amount_currency,line_item,user_email,api_key_id"
    text = f'{header}\n{seconds(DAY)},{seconds(DAY + DAYS)},0.5,usd,"gpt-4o, input",ann@example.com,key_secret\n'
    await reconcile_bill(ctx, ReconcileBill(bill_id="b", csv=text))
    for table in ("bill", "bill_part", "bill_line", "bill_row", "audit"):
        kept = str(await services.database.fetch(f"SELECT * FROM {table}"))
        assert "ann@" not in kept and "key_secret" not in kept
    assert csv.reader(io.StringIO(text))
