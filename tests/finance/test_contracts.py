"""Contracts in projections and invoices: discounts, volume tiers and commitments, by hand."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from handlers.context import Context
from handlers.finance.invoice import prepare_invoice
from handlers.finance.project import project_costs
from handlers.pricing.update import update_pricing
from schemas.invoice import Invoice, Payer, PrepareInvoice
from schemas.pricing import UpdatePricing
from schemas.projection import MessageTokens, ModelShare, ProjectCosts, Projection
from store import prices as price_store
from tests.finance.books import adds_up
from tests.support.services import apply_usage, gpt

JAN = datetime(2026, 1, 1, tzinfo=UTC)
START = datetime(2026, 4, 1, tzinfo=UTC)


async def agree(ctx: Context, **rule: Any) -> None:
    rules = [{"layer": "contract", "provider": "openai", "valid_from": "2025-01-01T00:00:00Z", **rule}]
    await update_pricing(ctx, msgspec.convert({"rules": rules, "backdate": True}, UpdatePricing))


async def projected(ctx: Context, per_day: int = 1_000) -> Projection:
    """30 days of messages of 1,000 tokens in and 100 out: 0.0035 each."""
    plan = ProjectCosts(
        conversations_per_day=per_day,
        tokens=MessageTokens(prompt=1_000, completion=100),
        models=[ModelShare(provider="openai", model="gpt-4o", percent="100")],
        start=START,
        days=30,
    )
    found = await project_costs(ctx, plan)
    (model,) = found.models
    assert sum(Decimal(item.cost) for item in model.items) == Decimal(str(found.cost))
    return found


async def test_a_discount_is_net_and_the_list_price_stays(ctx: Context) -> None:
    await agree(ctx, name="ten off", op="multiply", factor="0.9")
    found = await projected(ctx)
    assert (found.list_cost, found.cost, found.discount) == ("105", "94.5", "10.5")
    assert {(i.kind, i.rate_per_million, i.list_rate_per_million) for i in found.models[0].items} == {
        ("input", "2.25", "2.5"),
        ("output", "9", "10"),
    }
    assert found.models[0].rules == ["ten off@1"]


async def test_volume_tiers_are_reached_by_the_plan_itself(ctx: Context) -> None:
    tiers = [{"above": "11000000", "factor": "0.5"}]
    await agree(ctx, name="volume", op="volume", volume=tiers, kinds=["input", "output"])
    # 33 M tokens a month at 105: 11 M at the rate, 22 M at half of it.
    found = await projected(ctx)
    assert (found.list_cost, found.cost) == ("105", "70")
    assert {i.kind: i.cost for i in found.models[0].items} == {"input": "75", "output": "30", "volume: volume": "-35"}
    assert any("volume rules" in text for text in found.assumptions)


async def test_a_commitment_is_cheaper_up_to_its_amount(ctx: Context) -> None:
    await agree(ctx, name="promise", op="commitment", factor="0.8", amount="50")
    # 50 of 105 at 0.8.
    assert (await projected(ctx)).cost == "95"


async def draft(ctx: Context, **fields: Any) -> Invoice:
    found = await prepare_invoice(ctx, PrepareInvoice(month="2026-01", **fields))
    adds_up(found)
    return found


async def test_what_was_promised_and_not_spent_is_a_line(ctx: Context) -> None:
    await agree(ctx, name="promise", op="commitment", factor="0.8", amount="500")
    await apply_usage(ctx.services, gpt(timestamp=JAN, team_id="red"))
    spent = {("promise", JAN.date()): 200 * 10**9}
    async with ctx.database.transaction() as connection:
        await price_store.lock_volumes(connection, ctx.org, list(spent))
        await price_store.write_volumes(connection, ctx.org, spent)
    found = await draft(ctx)
    (line,) = [line for line in found.lines if line.section == "commitment"]
    # 300 of 500 were not spent: at list price 300, at 0.8 it is 240.
    assert (line.rule, line.list_price, line.net, line.discount) == ("promise 2026-01", "300", "240", "60")
    assert found.totals.list_price == str(Decimal("300.0035"))
    team = await draft(ctx, payer=Payer(type="team", entity_id="red"))
    assert not [line for line in team.lines if line.section == "commitment"]
    half = await prepare_invoice(ctx, PrepareInvoice(start=JAN, end=JAN + timedelta(days=10)))
    assert any("calendar months" in note for note in half.notes)
    assert not [line for line in half.lines if line.section == "commitment"]


async def test_a_promise_that_was_not_judged_right_is_corrected_on_the_next_invoice(ctx: Context) -> None:
    await agree(ctx, name="promise", op="commitment", factor="0.8", amount="500")
    first = await draft(ctx, status="final", request_id="r")
    assert first.totals.subtotal == "400"
    async with ctx.database.transaction() as connection:
        keys = [("promise", JAN.date()), ("promise", datetime(2026, 2, 1).date())]
        await price_store.lock_volumes(connection, ctx.org, keys)
        await price_store.write_volumes(connection, ctx.org, {keys[0]: 100 * 10**9, keys[1]: 600 * 10**9})
    second = await prepare_invoice(ctx, PrepareInvoice(month="2026-02"))
    assert [(line.section, line.rule, line.net) for line in second.lines] == [("earlier", "promise 2026-01", "-80")]
