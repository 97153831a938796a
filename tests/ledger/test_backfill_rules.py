"""R4: a budget created late with ``backfill`` stands where it would stand had it been there all along."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from handlers.enforcer.budgets import create_budget, update_budget
from schemas.budget import Budget, CreateBudget, UpdateBudget
from tests.support.ledger import CENT, START, LedgerAgent, World

_numbers = itertools.count()


async def _create(agent: LedgerAgent, **fields: object) -> Budget:
    request = {"name": f"b{next(_numbers)}", "type": "global", "period": "daily", **fields}
    return await create_budget(agent.context, msgspec.convert(request, CreateBudget))


async def _spent(world: World, budget: Budget) -> list[tuple[object, ...]]:
    sql = """SELECT starts_at, entity_id, spent, overrun FROM budget_window
             WHERE org_id = $1 AND budget_id = $2 AND spent > 0 AND ends_at > ledger_clock() ORDER BY 1, 2"""
    return [tuple(row.values()) for row in await world.fetch(sql, world.org, budget.budget_id)]


@pytest.mark.parametrize("unit", ["cost", "tokens", "requests"])
@pytest.mark.parametrize("kind", ["global", "user"])
async def test_r4_a_backfilled_budget_equals_one_that_was_there_from_the_beginning(
    world: World, unit: str, kind: str
) -> None:
    one, two = world.agents
    same = {"type": kind, "unit": unit, "limit": "50"}
    always = await _create(one, **same)
    await world.go_to(datetime(2030, 3, 13, 23, 50, tzinfo=UTC))
    yesterday = await one.hold(user_id="u", max_completion_tokens=9)
    await two.track(user_id="u", completion_tokens=5)

    await world.go_to(datetime(2030, 3, 14, 0, 10, tzinfo=UTC))
    today = await two.hold(user_id="v", max_completion_tokens=9)
    await one.track(user_id="u", completion_tokens=7, reservation_id=yesterday)
    await one.track(user_id="u", completion_tokens=11)
    await one.track(user_id="v", completion_tokens=3, reservation_id=today, final=False)
    await one.track(user_id="u", completion_tokens=13, timestamp=START)
    late = await _create(two, backfill=True, **same)
    assert await _spent(world, late) == await _spent(world, always)

    await one.track(user_id="v", completion_tokens=4, reservation_id=today)
    await two.track(user_id="u", completion_tokens=40)
    assert [row[:3] for row in await _spent(world, late)] == [row[:3] for row in await _spent(world, always)]


async def test_r4_usage_applied_while_a_budget_is_backfilled_is_counted_once(world: World) -> None:
    one, two = world.agents
    budget = await _create(one, limit="10")
    events = [agent.event(completion_tokens=1) for agent in (one, two) for _ in range(60)]

    tasks = [asyncio.create_task(one.apply([event])) for event in events[:60]]
    tasks += [asyncio.create_task(two.apply([event])) for event in events[60:]]
    late = [await _create(two, limit="10", backfill=True) for _ in range(3)]
    await asyncio.gather(*tasks)

    expected = await _spent(world, budget)
    assert expected[0][2] == 120 * CENT
    for other in late:
        assert await _spent(world, other) == expected


async def test_r4_what_a_backfilled_budget_finds_above_its_limit_is_overrun_and_blocks(world: World) -> None:
    one, two = world.agents
    await one.track(completion_tokens=150)

    late = await _create(one, limit="1", backfill=True)

    assert [row[2:] for row in await _spent(world, late)] == [(150 * CENT, 50 * CENT)]
    await two.deny(max_completion_tokens=1)


async def test_r2_update_budget_binds_the_next_decision_of_every_agent_and_keeps_the_identity(world: World) -> None:
    one, two = world.agents
    budget = await _create(one, limit="1")
    await two.hold(max_completion_tokens=60)

    request = UpdateBudget(budget_id=budget.budget_id, version=budget.version, limit="0.7")
    changed = await update_budget(one.context, request)

    await two.deny(max_completion_tokens=11)
    await two.hold(max_completion_tokens=10)
    same = ("budget_id", "type", "entity_id", "unit", "period", "timezone", "counting_since", "created_at")
    assert [getattr(changed, name) for name in same] == [getattr(budget, name) for name in same]
    await world.wait(seconds=timedelta(minutes=1).total_seconds())
    await two.deny(max_completion_tokens=1)


async def test_p1_overrun_and_thresholds_from_before_a_backfilled_budget_are_told(world: World) -> None:
    one, _ = world.agents
    await one.track(completion_tokens=150)

    budget = await _create(one, limit="1", backfill=True, alert_thresholds=[50, 100])

    assert [told["amount"] for told in await world.told("budget.overrun")] == ["0.5"]
    assert sorted(told["threshold"] for told in await world.told("budget.threshold")) == [50, 100]
    assert [told["window"]["budget_id"] for told in await world.told("budget.exceeded")] == [budget.budget_id]
