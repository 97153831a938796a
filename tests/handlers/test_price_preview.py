"""What a preview says is what an independent computation says, and what repricing then really does."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import msgspec
import pytest

from handlers.adjustments.adjust import adjust_usage
from handlers.adjustments.reprice import reprice_usage
from handlers.context import Context, Limits, Services
from handlers.enforcer.budgets import create_budget
from handlers.pricing.update import update_pricing
from schemas.adjustment import AdjustUsage, RepriceUsage
from schemas.budget import CreateBudget
from schemas.money import format_cost, parse_cost
from schemas.pricing import PricingPreview, PricingUpdate, UpdatePricing
from schemas.usage import UsageEvent
from tests.support.services import apply_usage, context, gpt, refusal, services_for

NOW = datetime.now(UTC)
SPAN: dict[str, Any] = {"start": NOW - timedelta(days=40), "end": NOW + timedelta(hours=12)}
EARLY = (NOW - timedelta(days=60)).isoformat()
_numbers = itertools.count(1)
LIST = {"gpt-4o": (2_500_000_000, 10_000_000_000), "gpt-4o-mini": (150_000_000, 600_000_000)}


def rule(**fields: Any) -> dict[str, Any]:
    return {"name": "r", "layer": "contract", "op": "multiply", "factor": "0.9", "valid_from": EARLY, **fields}


CONTRACT = rule(op="rates", factor=None, provider="openai", model="gpt-4o", rates={"input": "1.3", "output": "7.77"})


async def update(ctx: Context, *rules: dict[str, Any], **fields: Any) -> PricingUpdate:
    given = {"rules": list(rules), "backdate": True, **fields}
    return await update_pricing(ctx, msgspec.convert(given, UpdatePricing))


async def tried(ctx: Context, *rules: dict[str, Any], **fields: Any) -> PricingPreview:
    found = (await update(ctx, *rules, dry_run=True, preview=SPAN, **fields)).preview
    assert found is not None
    return found


def events(count: int, **fields: Any) -> list[UsageEvent]:
    """Calls of two models, some minutes apart, of odd sizes."""
    found: list[UsageEvent] = []
    for _ in range(count):
        n = next(_numbers)
        at = NOW - timedelta(minutes=7 * n)
        model = ("gpt-4o", "gpt-4o-mini")[n % 2]
        found.append(gpt(997 * n + 1, 13 * n + 1, id=f"u{n}", model=model, timestamp=at, **fields))
    return found


def half_even(value: Fraction) -> int:
    return round(value)


def cost(event: UsageEvent, rates: tuple[int, int], factor: Fraction = Fraction(1)) -> int:
    """By hand: rates rounded to nanos a million first, then one rounding of the sum."""
    assert event.prompt_tokens is not None and event.completion_tokens is not None
    dear, out = (half_even(rate * factor) for rate in rates)
    return half_even(Fraction(event.prompt_tokens * dear + event.completion_tokens * out, 1_000_000))


async def costs(services: Services) -> dict[str, int]:
    """What each event counts for now, adjustments included."""
    rows = await services.database.fetch(
        "SELECT usage_id, sum(cost)::bigint AS cost FROM usage_posting GROUP BY usage_id"
    )
    return {row["usage_id"]: row["cost"] for row in rows}


async def spent(services: Services) -> dict[str, int]:
    rows = await services.database.fetch("SELECT budget_id::text, spent FROM budget_window")
    return {row["budget_id"]: row["spent"] for row in rows}


async def test_a_preview_equals_a_recomputation_by_hand(ctx: Context, services: Services) -> None:
    calls = events(30)
    await apply_usage(services, *calls)
    found = await tried(ctx, CONTRACT, rule(name="all", provider="*", factor="0.85"))
    contract = (1_300_000_000, 7_770_000_000)
    off = Fraction("0.85")
    for model in ("gpt-4o", "gpt-4o-mini"):
        (told,) = [m for m in found.models if m.model == model]
        mine = [e for e in calls if e.model == model]
        before = sum(cost(e, LIST[model]) for e in mine)
        after = sum(cost(e, contract if model == "gpt-4o" else LIST[model], off) for e in mine)
        assert (told.cost_before, told.cost_after) == (format_cost(before), format_cost(after))
        assert told.difference == format_cost(after - before)
        assert (told.events, told.changed_events, told.unpriced_after) == (15, 15, 0)
    assert (found.events, found.complete, found.changed_events) == (30, True, 30)
    assert sum(parse_cost(line.cost_before) for line in found.lines) == sum((await costs(services)).values())


async def test_a_rule_from_now_on_is_tried_on_the_past_and_one_dated_back_from_its_date_on(
    ctx: Context, services: Services
) -> None:
    for days in (20, 10):
        await apply_usage(services, gpt(id=f"u{days}", timestamp=NOW - timedelta(days=days)))
    soon, between = (NOW + timedelta(days=1)).isoformat(), (NOW - timedelta(days=15)).isoformat()
    half = {**rule(factor="0.5"), "valid_from": None}
    after = {at: (await tried(ctx, {**half, "valid_from": at})).models[0].cost_after for at in (None, soon, between)}
    # Two calls of 0.0035 each.
    assert after == {None: "0.0035", soon: "0.0035", between: "0.00525"}
    await update(ctx, rule(factor="0.5"))
    found = (await update(ctx, end=[{"name": "r", "version": 1}], dry_run=True, preview=SPAN)).preview
    assert found is not None and found.models[0].cost_after == "0.007", "an end from now on, too"


async def test_repricing_does_exactly_what_was_previewed(ctx: Context, services: Services) -> None:
    for fields in (
        {"name": "all", "type": "global", "limit": "1000", "period": "yearly"},
        {"name": "t1", "type": "team", "entity_id": "t1", "limit": "1", "period": "total", "enforcement": "warn"},
        {"name": "tokens", "type": "global", "limit": "10000000", "unit": "tokens", "period": "total"},
    ):
        await create_budget(ctx, msgspec.convert({**fields, "backfill": True}, CreateBudget))
    await apply_usage(services, *events(20, team_id="t1"), *events(20, team_id="t2"))
    void, refund, *_ = sorted(await costs(services))
    adjust = {"adjustments": [
        {"usage_id": void, "kind": "void", "reason": "a test"},
        {"usage_id": refund, "kind": "refund", "amount": "0.0000001", "reason": "a test"},
    ]}  # fmt: skip
    await adjust_usage(ctx, msgspec.convert(adjust, AdjustUsage))
    before, windows = sum((await costs(services)).values()), await spent(services)
    found = await tried(ctx, CONTRACT)
    assert sum((await costs(services)).values()) == before, "nothing has changed yet"
    assert found.changed_events < found.events == 40

    await update(ctx, CONTRACT)
    assert sum((await costs(services)).values()) == before, "nor by the rule itself"
    span = {"start": SPAN["start"], "end": SPAN["end"]}
    done = await reprice_usage(ctx, RepriceUsage(**span, only="all", dry_run=False))
    assert done.repriced == found.changed_events
    after = sum((await costs(services)).values())
    differences = [parse_signed(m.difference) for m in found.models]
    assert after - before == sum(differences)
    now = await spent(services)
    told = {b.budget_id: (parse_cost(b.spent), parse_cost(b.spent_after)) for b in found.budgets}
    assert told == {i: (windows[i], now[i]) for i in now if now[i] != windows[i]}
    assert sorted(b.name for b in found.budgets) == ["all", "t1"]
    again = await tried(ctx, {**CONTRACT, "version": 1})
    assert again.changed_events == 0 and again.budgets == [] and again.lines == []


def parse_signed(text: str) -> int:
    return -parse_cost(text[1:]) if text.startswith("-") else parse_cost(text)


async def test_what_an_ended_rule_leaves_unpriced_is_counted_and_keeps_its_cost(
    ctx: Context, services: Services
) -> None:
    own = rule(op="rates", factor=None, provider="local", model="llama", rates={"input": "1", "output": "1"})
    await update(ctx, own)
    await apply_usage(services, gpt(1_000, 1_000, id="u", provider="local", model="llama"))
    found = (await update(ctx, end=[{"name": "r", "version": 1, "at": EARLY}], dry_run=True)).preview
    assert found is not None
    (model,) = found.models
    assert (model.cost_before, model.cost_after, model.unpriced_after) == ("0.002", "0.002", 1)
    assert "would have no price" in found.warnings[0]


async def test_unpriced_usage_gets_the_cost_it_would_have(ctx: Context, services: Services) -> None:
    await apply_usage(services, gpt(1_000, 1_000, id="u", provider="local", model="llama"))
    own = rule(op="rates", factor=None, provider="local", model="*", rates={"input": "1", "output": "3"})
    (model,) = (await tried(ctx, own)).models
    assert (model.cost_before, model.cost_after, model.difference) == (None, "0.004", "0.004")
    assert (model.unpriced_before, model.unpriced_after) == (1, 0)


async def test_another_currency_is_another_row(ctx: Context, services: Services) -> None:
    await apply_usage(services, gpt(id="u"))
    found = await tried(ctx, {**CONTRACT, "currency": "EUR", "rates": {"input": "1", "output": "1"}})
    told = {m.currency: (m.cost_before, m.cost_after) for m in found.models}
    assert told == {"USD": ("0.0035", None), "EUR": (None, "0.0011")}


async def test_volume_tiers_are_applied_in_the_order_of_the_month(ctx: Context, services: Services) -> None:
    """Calls of a million input tokens each, at 2.5: above two million in a month they cost half."""
    first = NOW.replace(day=1, hour=0, minute=0, second=0, microsecond=0) - timedelta(days=20)
    month = first.replace(day=1)
    calls = [gpt(1_000_000, 0, id=f"v{n}", timestamp=month + timedelta(hours=n)) for n in range(4)]
    await apply_usage(services, *calls)
    tiers = rule(op="volume", factor=None, volume=[{"above": "2000000", "factor": "0.5"}], model="gpt-4o")
    later = {"start": month + timedelta(hours=3), "end": month + timedelta(hours=4)}
    found = (await update(ctx, {**tiers, "valid_from": month.isoformat()}, dry_run=True, preview=later)).preview
    assert found is not None
    (model,) = found.models
    assert (model.events, model.cost_before, model.cost_after) == (1, "2.5", "1.25"), "two calls came before"
    everything = {"start": month, "end": month + timedelta(days=1)}
    found = (await update(ctx, {**tiers, "valid_from": month.isoformat()}, dry_run=True, preview=everything)).preview
    assert found is not None and found.models[0].cost_after == "7.5", "2.5 + 2.5 + 1.25 + 1.25"


@pytest.mark.parametrize(
    ("period", "field"),
    [
        ({"start": NOW, "end": NOW}, "preview.end"),
        ({"start": NOW - timedelta(days=400), "end": NOW}, "preview.start"),
        ({"start": "0001-01-01T00:00:00+12:00", "end": NOW}, "preview.start"),
    ],
)
async def test_a_period_that_is_none_is_refused(ctx: Context, period: dict[str, Any], field: str) -> None:
    assert (await refusal(update(ctx, CONTRACT, dry_run=True, preview=period))).field == field


async def test_so_many_events_are_looked_at_and_no_more(database_url: str) -> None:
    limits = Limits(price_preview_events_max=15, price_preview_chunk_max=4)
    async with services_for(database_url, limits=limits) as services:
        ctx = context(services)
        calls = events(16)
        await apply_usage(services, *calls[:15])
        assert (await tried(ctx, CONTRACT)).complete is False, "there might be one more"
        await apply_usage(services, *calls[15:])
        found = await tried(ctx, CONTRACT)
        assert (found.events, found.complete) == (15, False)
        assert found.until == sorted(c.timestamp for c in calls if c.timestamp)[14]


async def test_the_loop_has_its_turn_every_few_events(ctx: Context, services: Services) -> None:
    await apply_usage(services, *events(400))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    found = await tried(ctx, CONTRACT)
    counting.cancel()
    assert found.events == 400
    assert turns >= 400 // 40
