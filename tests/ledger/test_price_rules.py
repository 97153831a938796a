"""An org's prices in the ledger: a changed price binds the next decision and the next application on every agent, and
month counters are exact however many agents apply at once."""

import asyncio
import random
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from handlers.tracker.priced import PricedEvent, priced_again
from schemas.errors import SignalError
from schemas.pricing import PriceRule
from store import budgets as budget_store
from store import prices as price_store
from store.prices import ModelAliasRow, PriceRuleRow
from tests.support.ledger import CENT, USD, LedgerAgent, World


async def set_rule(world: World, version: int = 1, *, ended: bool = False, **fields: Any) -> None:
    """A version of a rule, as update_pricing writes it."""
    rule = msgspec.convert({"name": "rule", "layer": "contract", **fields}, PriceRule)
    row = PriceRuleRow(
        org_id=world.org,
        name=rule.name,
        version=version,
        rule_id=f"{rule.name}-{version}",
        layer=rule.layer,
        definition=None if ended else msgspec.to_builtins(rule),
        valid_from=rule.valid_from,
        valid_to=rule.valid_to,
        created_at=world.now(),
        created_by="tester",
    )
    async with world.connection() as connection, connection.transaction():
        await budget_store.lock_exclusive(connection, world.org)
        await price_store.add_rules(connection, world.org, [row])
        await budget_store.bump(connection, world.org)


async def used(world: World) -> dict[tuple[str, Any], int]:
    sql = "SELECT name, month, used FROM price_volume WHERE org_id = $1"
    return {(row["name"], row["month"]): row["used"] for row in await world.fetch(sql, world.org)}


async def stored(world: World, event_id: str) -> Any:
    sql = "SELECT * FROM usage_event WHERE org_id = $1 AND id = $2"
    return (await world.fetch(sql, world.org, event_id))[0]


async def test_a_changed_price_binds_the_very_next_check_on_every_agent(world: World) -> None:
    first, second = world.agents
    await world.budget(limit=100)
    for agent in world.agents:  # Both believe what the windows hold, and decide by it.
        for _ in range(3):
            assert (await agent.check(max_completion_tokens=100)).estimated_cost == "1"  # pyright: ignore

    await set_rule(world, op="multiply", factor="0.5")
    assert (await second.check(max_completion_tokens=100)).estimated_cost == "0.5"  # pyright: ignore
    assert (await first.check(max_completion_tokens=100)).estimated_cost == "0.5"  # pyright: ignore

    await set_rule(world, 2, op="multiply", factor="2")
    # Estimated on arrival with the price of before, decided with the one of now: 60 cents are 1.20 and do not fit.
    await world.put_setting("pressure_percent", 79)
    answers = await asyncio.gather(*(first.submit(max_completion_tokens=1000) for _ in range(6)))
    assert {answer.estimated_cost for answer in answers} == {"20"}
    # 6 x 1 + 2 x 0.5 = 7 are reserved: four times 20 fit under 100.
    assert sum(answer.approved for answer in answers) == 4


async def test_usage_priced_before_a_change_is_priced_again_when_it_is_applied(world: World) -> None:
    budget = await world.budget(limit=100)
    first, second = world.agents
    await first.track(id="before", completion_tokens=100)
    waiting = second.event(id="waiting", completion_tokens=100)
    assert waiting.cost == USD

    await set_rule(world, op="multiply", factor="0.25", layer="contract")
    assert await second.apply([waiting]) == {0: "applied"}

    row = await stored(world, "waiting")
    assert (row["cost"], row["list_cost"]) == (25 * CENT, USD)
    assert row["price_version"] == "1; rule@1"
    assert msgspec.json.decode(row["line_items"]) == [["output", 100, 2_500 * USD, 25 * CENT, 10_000 * USD, USD]]
    # Whoever waits for it to be applied hears what it costs.
    assert waiting.cost == 25 * CENT
    # What was applied before stays as it was.
    assert (await stored(world, "before"))["cost"] == USD
    assert (await world.sums(budget))[0] == USD + 25 * CENT
    rollups = await world.fetch("SELECT sum(cost) c, sum(list_cost) l FROM usage_rollup WHERE org_id = $1", world.org)
    assert (rollups[0]["c"], rollups[0]["l"]) == (USD + 25 * CENT, 2 * USD)


async def test_a_price_is_that_of_the_usage_s_own_time(world: World) -> None:
    agent = world.agents[0]
    now = world.now()
    await set_rule(world, op="multiply", factor="0.5", valid_from=(now - timedelta(days=2)).isoformat())
    await set_rule(world, 2, op="multiply", factor="0.1", valid_from=(now - timedelta(days=1)).isoformat())

    for days, cents in ((3, 100), (1.5, 50), (0.5, 10)):
        event = agent.event(id=f"{days}", completion_tokens=100, timestamp=(now - timedelta(days=days)).isoformat())
        await agent.apply([event])
        assert (await stored(world, f"{days}"))["cost"] == cents * CENT


async def test_pricing_twice_changes_nothing(world: World) -> None:
    agent = world.agents[0]
    await set_rule(world, name="v", op="volume", volume=[{"above": "50", "factor": "0.5"}])
    await agent.track(id="first", completion_tokens=40)
    event = agent.event(id="second", completion_tokens=100)
    await agent.apply([event])

    # 10 more at the rate, 90 at half of it; and from its own record alone, at any later time.
    assert event.cost == 10 * CENT + 45 * CENT and event.price_version == "1; v@1#40"
    await agent.track(id="third", completion_tokens=1000)
    prices = agent.services.prices(world.org)
    again = priced_again(event, prices)
    assert again == priced_again(again, prices)
    assert (again.cost, again.line_items, again.price_version) == (event.cost, event.line_items, event.price_version)


async def test_month_counters_are_exact_while_two_agents_apply_at_once(world: World) -> None:
    """Every call has the same rate, so what all cost together is told by how many tokens there were in each month."""
    await world.budget(limit=1_000_000)
    await set_rule(world, name="v", op="volume", volume=[
        {"above": "1000", "factor": "0.9"}, {"above": "5000", "factor": "0.5"}, {"above": "9000", "factor": "0"},
    ])  # fmt: skip
    await set_rule(world, name="c", op="commitment", factor="0.7", amount="30", position=1)
    chance = random.Random(7)
    now = world.now()
    months = [now, now.replace(day=1) - timedelta(days=1)]
    sent: list[PricedEvent] = []
    for number in range(240):
        agent = world.agents[number % 2]
        tokens, at = chance.randint(1, 120), months[number % 3 == 0]
        sent.append(agent.event(id=f"u{number}", completion_tokens=tokens, timestamp=at.isoformat()))
    batches = [sent[i : i + 12] for i in range(0, len(sent), 12)]
    chance.shuffle(batches)

    await asyncio.gather(*(world.agents[i % 2].apply(batch) for i, batch in enumerate(batches)))
    # Again, as a stream delivers what it does not know to be applied.
    await asyncio.gather(*(world.agents[i % 2].apply(batch) for i, batch in enumerate(batches[:6])))

    tokens_of: dict[Any, int] = {}
    for event in sent:
        month = event.timestamp.date().replace(day=1)
        tokens_of[month] = tokens_of.get(month, 0) + event.completion_tokens
    counted = await used(world)
    assert counted == {("v", month): n for month, n in tokens_of.items()} | {
        ("c", month): n * CENT for month, n in tokens_of.items()
    }
    rows = await world.fetch("SELECT cost, list_cost, timestamp FROM usage_event WHERE org_id = $1", world.org)
    assert len(rows) == 240
    assert sum(row["list_cost"] for row in rows) == sum(tokens_of.values()) * CENT
    for month, tokens in tokens_of.items():
        cost = sum(row["cost"] for row in rows if row["timestamp"].date().replace(day=1) == month)
        assert cost == _worked_out(tokens), (month, tokens)


def _worked_out(tokens: int) -> int:
    """Token by token: its factor by how many came before it, and 0.7 while less than 30 USD (3,000 tokens) did."""
    total = 0
    for before in range(tokens):
        rate = 10 if before < 1000 else 9 if before < 5000 else 5 if before < 9000 else 0
        total += rate * (7 if before < 3000 else 10) * CENT // 100
    return total


async def test_a_check_reserves_what_a_call_costs_without_the_discounts_of_volume(world: World) -> None:
    agent = world.agents[0]
    await world.budget(limit=10)
    await set_rule(world, op="commitment", factor="0.5", amount="1")
    decision = await agent.submit(max_completion_tokens=100)
    assert decision.estimated_cost == "1"
    await agent.track(id="u", reservation_id=decision.reservation_id, completion_tokens=100)
    assert (await stored(world, "u"))["cost"] == 50 * CENT


async def test_an_alias_prices_a_deployment_by_its_model(world: World) -> None:
    agent = world.agents[0]
    event = agent.event(id="u", provider="azure", model="my-deployment", completion_tokens=10)
    assert event.cost is None
    row = ModelAliasRow(
        org_id=world.org,
        provider="azure",
        alias="my-deployment",
        version=1,
        to_provider="acme",
        to_model="cent",
        valid_from=None,
        created_at=world.now(),
        created_by="tester",
    )
    async with world.connection() as connection, connection.transaction():
        await budget_store.lock_exclusive(connection, world.org)
        await price_store.add_aliases(connection, world.org, [row])
        await budget_store.bump(connection, world.org)
    await agent.apply([event])

    found = await stored(world, "u")
    assert (found["cost"], found["cost_status"], found["model"]) == (10 * CENT, "priced", "my-deployment")
    assert not await world.told("usage.unpriced")


async def test_versions_are_never_overwritten(world: World) -> None:
    await set_rule(world, op="multiply", factor="0.5")
    for sql in ("UPDATE price_rule SET version = 2", "DELETE FROM price_rule", "DELETE FROM model_alias"):
        try:
            await world.execute(f"{sql} WHERE org_id = '{world.org}'")
        except Exception as error:
            assert "append" in str(error) or "change" in str(error), error
        else:
            assert "alias" in sql  # There is none to delete.


async def test_unpriced_calls_are_reserved_at_the_dearest_rates_of_their_provider(world: World) -> None:
    await world.budget(limit=1)
    await world.put_setting("on_unpriced", "estimate")
    first, second = world.agents

    unknown = {"provider": "acme", "model": "nobody-knows", "prompt_tokens": 0, "max_completion_tokens": 60}
    # Nothing is known of that provider, and the org has set no rates: as under reject.
    denied = await first.deny(**unknown)
    assert denied.reason is not None and denied.reason.code == "unpriced"

    await world.put_setting("unpriced_rates", {"input": "1", "output": "5000"})
    decision = await first.submit(**unknown)
    assert decision.approved and decision.estimated_cost == "0.3"
    assert any("unpriced_rates" in warning for warning in decision.warnings)

    await set_rule(world, op="rates", provider="acme", model="own", rates={"input": "1", "output": "20000"})
    dearer = await second.submit(**unknown)
    # 60 tokens at 0.02 are 1.20: more than there is.
    assert not dearer.approved and dearer.estimated_cost == "1.2"

    await first.track(id="u", reservation_id=decision.reservation_id, completion_tokens=60, model="nobody-knows")
    row = await stored(world, "u")
    assert (row["cost"], row["cost_status"]) == (None, "unpriced")


async def test_self_hosted_calls_are_free_on_every_agent_once_the_org_says_so(world: World) -> None:
    await world.budget(limit=1)
    await world.put_setting("on_unpriced", "reject")
    first, second = world.agents
    call = {"provider": "vllm", "model": "big", "prompt_tokens": 9, "max_completion_tokens": 9}
    assert not (await first.submit(**call)).approved
    waiting = second.event(id="u", provider="vllm", model="big", completion_tokens=9)

    await world.put_setting("self_hosted_providers", ["vllm"])
    assert (await second.submit(**call)).estimated_cost == "0"
    assert (await first.submit(**call)).estimated_cost == "0"
    await first.apply([waiting])
    row = await stored(world, "u")
    assert (row["cost"], row["price_source"], row["cost_status"]) == (0, "self-hosted", "priced")


async def test_a_call_that_is_too_dear_at_the_new_price_is_refused_and_its_usage_kept(world: World) -> None:
    agent: LedgerAgent = world.agents[0]
    await world.budget(limit=1)
    waiting = agent.event(id="u", completion_tokens=1_000_000)
    assert waiting.cost == 10_000 * USD
    await set_rule(world, op="multiply", factor="1000")

    with pytest.raises(SignalError, match="costs more"):
        await agent.submit(max_completion_tokens=1_000_000)
    await agent.apply([waiting])
    row = await stored(world, "u")
    assert (row["cost"], row["cost_status"], row["flags"]) == (None, "unpriced", ["cost_too_large"])


async def test_hundreds_of_rules_are_read_once_for_each_change_of_prices(world: World) -> None:
    for number in range(3):
        await set_rule(world, name=f"r{number}", op="multiply", factor="0.5", model=f"m{number}")
    agent = world.agents[0]
    book = (await agent.services.reload_catalogue(world.org)).book
    await world.budget(limit=5)
    assert (await agent.services.reload_catalogue(world.org)).book is book
    await set_rule(world, name="more", op="multiply", factor="0.5")
    assert (await agent.services.reload_catalogue(world.org)).book is not book
