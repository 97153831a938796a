"""adjust_usage, reprice_usage and list_adjustments as callers see them: what is refused, shown, and adds up."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from handlers import cursor
from handlers.adjustments.adjust import adjust_usage
from handlers.adjustments.adjusted import list_adjustments
from handlers.adjustments.reprice import reprice_usage
from handlers.context import Context, Limits, Services
from handlers.currency.rates import update_exchange_rates
from handlers.enforcer.budgets import create_budget
from handlers.management.reconcile import reconcile
from handlers.org_settings import OrgSettings
from handlers.tracker.apply import Applier
from handlers.tracker.priced import priced
from handlers.tracker.query import aggregate_usage, get_usage
from schemas.adjustment import AdjustedUsage, AdjustUsage, ListAdjustments, RepriceUsage
from schemas.budget import CreateBudget
from schemas.codec import Codec
from schemas.exchange import UpdateExchangeRates
from schemas.usage import AggregateUsage, GetUsage, UsageFilters
from tests.support.services import apply_usage, context, gpt, outbox_events, refusal, services_for

NOON = datetime(2025, 3, 10, 12, tzinfo=UTC)
DAY = timedelta(days=1)


async def adjusted(ctx: Context, usage: str, kind: str | None = "correct", **fields: Any) -> AdjustedUsage:
    asked = {"usage_id": usage, "kind": kind, "reason": "a test", **fields}
    return (await adjust_usage(ctx, msgspec.convert(asked, AdjustUsage))).adjustments[0]


async def test_an_event_shows_what_it_is_and_what_it_stands_for(ctx: Context, services: Services) -> None:
    await apply_usage(services, gpt(id="a", timestamp=NOON), gpt(id="b", timestamp=NOON), gpt(id="c", timestamp=NOON))
    await adjusted(ctx, "a", completion_tokens=50)
    await adjusted(ctx, "a", "refund", amount="0.001")
    await adjusted(ctx, "b", "void")
    found = {event.id: event for event in (await get_usage(ctx, GetUsage())).events}
    assert {(e.cost, e.completion_tokens, e.charged_budgets) for e in found.values()} == {("0.0035", 100, 0)}
    assert [(e.adjusted, e.adjustments, e.void, e.standing_cost) for e in map(found.get, "abc") if e] == [
        (True, 2, False, "0.002"),
        (True, 1, True, "0"),
        (False, 0, False, "0.0035"),
    ]


async def test_sums_from_raw_events_include_adjustments_and_equal_rollups(ctx: Context, services: Services) -> None:
    await apply_usage(
        services,
        *(
            gpt(id=f"e{n}", timestamp=NOON + timedelta(minutes=7 * n), session_id=f"s{n % 3}", latency_ms=float(n))
            for n in range(12)
        ),
    )
    await adjusted(ctx, "e0", "void")
    await adjusted(ctx, "e1", model="gpt-4o-mini", cache_read_tokens=500)
    await adjusted(ctx, "e2", model="unheard-of")
    await adjusted(ctx, "e3", "refund", amount="0.0005")
    await adjusted(ctx, "e4", cost="0.1")
    for group_by in ([], ["model"], ["cost_status", "model"]):
        span: dict[str, Any] = {"end": NOON + DAY, "interval": "hour", "group_by": group_by}
        rolled = await aggregate_usage(ctx, AggregateUsage(start=NOON - DAY, **span))
        summed = await aggregate_usage(ctx, AggregateUsage(start=NOON - timedelta(seconds=1), **span))
        assert (rolled.source, summed.source) == ("rollups", "events")
        shown = [(r.group, r.requests, r.cost, r.total_tokens, r.latency_ms_mean) for r in summed.rows if r.requests]
        assert shown == [
            (r.group, r.requests, r.cost, r.total_tokens, r.latency_ms_mean) for r in rolled.rows if r.requests
        ]
    totals = summed.totals
    # 0.0001725 (500 tokens at 0.15, 500 at 0.075, 100 at 0.60 a million) + 0.003 + 0.1 + 7 x 0.0035; one unpriced.
    assert (totals.requests, totals.unpriced_requests, totals.cost) == (11, 1, "0.1276725")
    one = AggregateUsage(start=NOON - DAY, end=NOON + DAY, filters=UsageFilters(session_id="s0"))
    assert (await aggregate_usage(ctx, one)).totals.requests == 3


async def test_reconciliation_counts_adjustments_and_finds_what_was_damaged(ctx: Context, services: Services) -> None:
    await create_budget(ctx, CreateBudget(name="all", type="global", entity_id="*", limit="5", period="total"))
    await apply_usage(services, gpt(id="a"), gpt(id="b"))
    await adjusted(ctx, "a", "void")
    await adjusted(ctx, "b", completion_tokens=200)
    sums = await reconcile(ctx)
    assert (sums.ok, sums.events, sums.adjustments, sums.event_cost) == (True, 2, 2, "0.0045")
    assert (sums.window_spent, sums.window_charges) == ("0.0045", "0.0045")
    assert [(c.currency, c.event_cost, c.rollup_cost) for c in sums.currencies] == [("USD", "0.0045", "0.0045")]
    for damage in (
        "UPDATE adjustment SET charge_amounts[1] = charge_amounts[1] + 1",
        "UPDATE adjustment_entry SET cost = cost + 1",
        "UPDATE adjustment_entry SET prompt_tokens = prompt_tokens + 1",
        "DELETE FROM adjustment_entry",
    ):
        async with services.database.connection() as connection, connection.transaction():
            await connection.execute("ALTER TABLE adjustment DISABLE TRIGGER ALL")
            await connection.execute("ALTER TABLE adjustment_entry DISABLE TRIGGER ALL")
            await connection.execute(
                "CREATE TABLE kept AS TABLE adjustment; CREATE TABLE kept_entry AS TABLE adjustment_entry"
            )
            await connection.execute(damage)
        assert not (await reconcile(ctx)).ok, damage
        async with services.database.connection() as connection, connection.transaction():
            await connection.execute("DELETE FROM adjustment; DELETE FROM adjustment_entry")
            await connection.execute("INSERT INTO adjustment TABLE kept; INSERT INTO adjustment_entry TABLE kept_entry")
            await connection.execute("DROP TABLE kept; DROP TABLE kept_entry")
        assert (await reconcile(ctx)).ok


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"kind": "void", "completion_tokens": 1}, "completion_tokens"),
        ({"kind": "void", "amount": "1"}, "amount"),
        ({"kind": "refund"}, "amount"),
        ({"kind": "refund", "amount": "1", "model": "gpt-4o-mini"}, "model"),
        ({"kind": "correct", "amount": "1"}, "amount"),
        ({"kind": "correct", "currency": "EUR"}, "currency"),
        ({"kind": "correct", "cost": "1", "currency": "XQX"}, "currency"),
        ({"kind": "correct", "cost": "-1"}, "cost"),
        ({"kind": "correct", "cost": "1000001"}, "cost"),
        ({"kind": "correct", "cache_read_tokens": 1_001}, "cache_read_tokens"),
        ({"kind": "correct", "reasoning_tokens": 101}, "reasoning_tokens"),
        ({"kind": "correct", "system_tokens": 1_001}, "system_tokens"),
        ({"kind": "correct", "model": " "}, "model"),
        ({"kind": "correct", "provider": "  "}, "provider"),
        ({"kind": "void", "reason": " "}, "reason"),
        ({"kind": "void", "reason": None}, "reason"),
        ({"kind": None}, "kind"),
        ({"kind": "void", "usage_id": None}, "usage_id"),
        ({"kind": "void", "adjustments": [{"usage_id": "a", "kind": "void", "reason": "r"}]}, "usage_id"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_its_field(
    ctx: Context, services: Services, fields: dict[str, Any], field: str
) -> None:
    await apply_usage(services, gpt(id="a"))
    error = await refusal(adjusted(ctx, "a", **fields))
    assert (error.code, error.field) == ("invalid_request", field), error.message
    assert (await list_adjustments(ctx, ListAdjustments())).adjustments == []


async def test_what_does_not_fit_what_stands_is_not_found_or_a_conflict(ctx: Context, services: Services) -> None:
    await apply_usage(services, gpt(id="a"), gpt(id="free", model="unheard-of"))
    for usage_id, kind, fields, expected in (
        ("nothing", "void", {}, ("not_found", "usage_id")),
        ("a", "correct", {"completion_tokens": 100}, ("conflict", "usage_id")),
        ("a", "correct", {}, ("conflict", "usage_id")),
        ("free", "refund", {"amount": "1"}, ("conflict", "usage_id")),
    ):
        error = await refusal(adjusted(ctx, usage_id, kind, **fields))
        assert (error.code, error.field) == expected, error.message
    theirs = context(services, org="other")
    assert (await refusal(adjusted(theirs, "a", "void"))).code == "not_found"


async def test_attribution_is_not_adjusted_and_that_is_said() -> None:
    body = {"usage_id": "a", "kind": "correct", "reason": "r", "team_id": "other"}
    error = await refusal(_decode(Codec(AdjustUsage), msgspec.json.encode(body)))
    assert error.field == "team_id" and "attribution" in error.message


async def _decode(codec: Any, data: bytes) -> Any:
    return codec.decode(data)


async def test_adjustments_are_listed_with_before_after_and_budgets(ctx: Context, services: Services) -> None:
    await create_budget(ctx, CreateBudget(name="each", type="user", entity_id="*", limit="5", period="total"))
    key = ctx.user_key("ada")
    await apply_usage(services, gpt(id="a", user_id="ada"), gpt(id="b"))
    for usage_id, kind, fields in (("a", "refund", {"amount": "0.001"}), ("b", "void", {}), ("a", "void", {})):
        await adjusted(ctx, usage_id, kind, **fields)
    pages: list[str] = []
    token = None
    for _ in range(3):
        found = await list_adjustments(ctx, ListAdjustments(limit=1, cursor=token))
        pages += [f"{made.usage_id} {made.kind} {made.sequence}" for made in found.adjustments]
        token = found.next_cursor
    assert (pages, token) == (["a void 2", "b void 1", "a refund 1"], None)
    refund, void = reversed((await list_adjustments(ctx, ListAdjustments(usage_id="a"))).adjustments)
    assert (refund.before.cost, refund.after.cost, refund.after.refunded) == ("0.0035", "0.0025", "0.001")
    assert [(i.kind, i.cost) for i in refund.after.line_items][-1] == ("refund", "-0.001")
    assert [(w.name, w.entity_id, w.amount) for w in refund.budgets] == [("each", key, "-0.001")]
    assert (void.before, void.after.void, void.after.requests) == (refund.after, True, 0)
    assert void.made_by == "alice" and void.reason == "a test"
    kinds = await list_adjustments(ctx, ListAdjustments(kind="refund", start=NOON))
    assert [made.adjustment_id for made in kinds.adjustments] == [refund.adjustment_id]
    assert (await list_adjustments(ctx, ListAdjustments(end=NOON))).adjustments == []
    assert (await list_adjustments(context(services, org="other"), ListAdjustments())).adjustments == []
    told = [data for name, data in await outbox_events(services) if name == "usage.adjusted"]
    assert [(t["usage_id"], t["kind"], t["cost_before"], t["cost_after"]) for t in told] == [
        ("a", "refund", "0.0035", "0.0025"),
        ("b", "void", "0.0035", "0"),
        ("a", "void", "0.0025", "0"),
    ]


async def test_every_adjustment_is_in_the_audit_trail(ctx: Context, services: Services) -> None:
    await apply_usage(services, gpt(id="a"), gpt(id="b"))
    await adjusted(ctx, "a", "refund", amount="0.001")
    many = [{"usage_id": i, "kind": "void", "reason": f"why {i}"} for i in "ab"]
    await adjust_usage(ctx, msgspec.convert({"adjustments": many}, AdjustUsage))
    rows = await services.database.fetch("SELECT action, entity, entity_id, content FROM audit ORDER BY seq")
    assert [(r["action"], r["entity"], r["entity_id"]) for r in rows] == [
        ("refunded", "usage", "a"),
        ("adjusted", "usage", "a and 1 more"),
    ]
    one, both = (msgspec.json.decode(r["content"]) for r in rows)
    assert (one["before"]["cost"], one["after"]["cost"], one["reason"]) == (3_500_000, 2_500_000, "a test")
    listed = both["after"]["adjustments"]
    assert [(x["usage_id"], x["cost_before"], x["cost_after"], x["reason"]) for x in listed] == [
        ("a", 2_500_000, 0, "why a"),
        ("b", 3_500_000, 0, "why b"),
    ]


async def test_a_cost_that_was_reported_and_is_trusted_stays(ctx: Context, services: Services) -> None:
    await services.database.execute(
        """INSERT INTO setting VALUES ('default', 'reported_cost', '"always"');
        INSERT INTO org_catalogue VALUES ('default', 1)"""
    )
    receipt = priced(
        gpt(timestamp=NOON, reported_cost="0.5"),
        org=ctx.org,
        event_id="a",
        arrived_at=services.clock(),
        cards=ctx.prices,
        limits=services.limits,
        settings=OrgSettings(reported_cost="always"),
    )
    assert (await Applier(services).apply(ctx.org, [receipt.event])) == {0: "applied"}
    made = await adjusted(ctx, "a", completion_tokens=50)
    assert made.cost_after == made.cost_before and "reported" in made.warnings[0]
    await adjusted(ctx, "a", "refund", amount="0.1")
    span = {"start": NOON, "end": NOON + DAY, "dry_run": False, "only": "all"}
    found = await reprice_usage(ctx, msgspec.convert(span, RepriceUsage))
    assert (found.repriced, found.left_alone) == (0, 1)


async def _rate(ctx: Context, pair: str, rate: str) -> None:
    base, quote = pair.split("/")
    stated = {"rates": [{"base": base, "quote": quote, "rate": rate}], "source": "treasury", "confirm": True}
    await update_exchange_rates(ctx, msgspec.convert(stated, UpdateExchangeRates))


async def _spent(ctx: Context) -> dict[str, int]:
    sql = "SELECT b.name, sum(w.spent)::bigint AS spent FROM budget_window w JOIN budget b USING (budget_id) GROUP BY 1"
    return {row["name"]: row["spent"] for row in await ctx.database.fetch(sql)}


async def test_what_no_budget_could_count_for_want_of_a_rate_is_charged_when_there_is_one(
    ctx: Context, services: Services
) -> None:
    for name, currency in (("dong", "VND"), ("dollars", "USD")):
        body = {"name": name, "type": "global", "entity_id": "*", "limit": "5000", "currency": currency}
        await create_budget(ctx, msgspec.convert({**body, "period": "total"}, CreateBudget))
    await apply_usage(services, gpt(id="a"), gpt(id="b"))
    assert (await _spent(ctx)) == {"dong": 0, "dollars": 7_000_000}
    asked: dict[str, Any] = {"start": NOON, "end": NOON + 4000 * DAY, "dry_run": False}
    found = await reprice_usage(ctx, msgspec.convert(asked, RepriceUsage))
    assert (found.repriced, found.unchanged) == (0, 2)

    await _rate(ctx, "USD/VND", "25400")
    await adjusted(ctx, "b", completion_tokens=200)
    found = await reprice_usage(ctx, msgspec.convert(asked, RepriceUsage))
    assert (found.repriced, found.unchanged, found.usage_ids) == (1, 1, ["a"])
    # (0.0035 + 0.0045) x 25,400
    assert (await _spent(ctx)) == {"dong": 203_200_000_000, "dollars": 8_000_000}
    # The window keeps the rate it has met first.
    await _rate(ctx, "USD/VND", "30000")
    found = await reprice_usage(ctx, msgspec.convert({**asked, "only": "all"}, RepriceUsage))
    assert (found.repriced, found.unchanged) == (0, 2)
    made = await adjusted(ctx, "a", cost="25400", currency="VND")
    assert (made.currency, made.cost_before, made.cost_after) == ("VND", "0.0035", "25400")
    assert {w.name: w.amount for w in made.budgets} == {"dong": "25311.1", "dollars": "0.9965"}
    for usage_id in "ab":
        await adjusted(ctx, usage_id, "void")
    assert (await _spent(ctx)) == {"dong": 0, "dollars": 0}
    sums = await reconcile(ctx)
    assert sums.ok and {c.currency: c.event_cost for c in sums.currencies} == {"USD": "0", "VND": "0"}


async def test_a_reply_fits_a_message_and_bounds_are_kept(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(adjust_batch_max=2, adjustments_per_event_max=2)
    async with services_for(database_url, limits=limits) as services:
        ctx = context(services)
        await create_budget(ctx, CreateBudget(name="all", type="global", entity_id="*", limit="5", period="total"))
        await apply_usage(services, *(gpt(id=f"e{n}") for n in range(5)))
        monkeypatch.setattr("handlers.adjustments.adjust.PAGE_BYTES_MAX", 2_000)
        many = [{"usage_id": f"e{n}", "kind": "refund", "amount": "0.001", "reason": "r"} for n in range(5)]
        found = await adjust_usage(ctx, msgspec.convert({"adjustments": many}, AdjustUsage))
        assert found.accepted == 5 and all(not made.budgets for made in found.adjustments)
        rows = await services.database.fetch("SELECT count(*) AS n FROM adjustment GROUP BY made_at ORDER BY 1")
        assert [row["n"] for row in rows] == [1, 2, 2]
        await adjusted(ctx, "e0", "refund", amount="0.001")
        error = await refusal(adjusted(ctx, "e0", "refund", amount="0.001"))
        assert (error.code, error.field) == ("conflict", "usage_id")
        monkeypatch.setattr(cursor, "PAGE_BYTES_MAX", 3_000)
        page = await list_adjustments(ctx, ListAdjustments())
        assert 0 < len(page.adjustments) < 6 and page.next_cursor is not None


async def test_pricing_again_stops_in_time_and_says_where_to_go_on(database_url: str) -> None:
    async with services_for(
        database_url, limits=Limits(reprice_scan_max=3, adjust_batch_max=2, reprice_time_s=0.0)
    ) as services:
        ctx = context(services)
        await apply_usage(services, *(gpt(id=f"e{n}", timestamp=NOON, model="unheard-of") for n in range(5)))
        seen: list[tuple[int, int, bool]] = []
        token = None
        for _ in range(4):
            asked = {"start": NOON, "end": NOON + DAY, "cursor": token}
            found = await reprice_usage(ctx, msgspec.convert(asked, RepriceUsage))
            seen.append((found.looked_at, found.unpriced, found.dry_run))
            token = found.next_cursor
            if token is None:
                break
        assert seen == [(2, 2, True), (2, 2, True), (1, 1, True), (0, 0, True)], "the time is over after every batch"
