"""Rates: what they hold up, what they let pass, and that nothing walks around them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.budgets import BudgetRow
from tests.support.ledger import CENT, World, examples


async def gated(world: World, **rate: Any) -> tuple[BudgetRow, BudgetRow]:
    """Ten cents a day, and beyond them a rate."""
    main = await world.budget(limit="0.10", period="daily", enforcement="throttle", name="day")
    shared: dict[str, Any] = {"enforcement": "throttle", "gate_id": main.budget_id, "name": "day (rate)"}
    return main, await world.budget(**{"period": "minute", "limit": "0.03", **shared, **rate})


async def test_a_call_that_costs_nothing_is_not_held_up_by_a_rate_of_cost(world: World) -> None:
    one, _ = world.agents
    await gated(world)
    await one.track(completion_tokens=20)
    await one.deny(max_completion_tokens=1)
    await one.hold(max_completion_tokens=0)


async def test_an_unpriced_call_is_held_up_by_a_rate_of_cost_that_has_nothing_left(world: World) -> None:
    one, _ = world.agents
    await gated(world)
    unpriced = {"model": "unheard of", "max_completion_tokens": 1}
    await one.hold(**unpriced)
    await one.track(completion_tokens=10)
    decision = await one.deny(**unpriced)
    assert decision.reason is not None
    assert decision.reason.code == "throttled"
    await world.wait(minutes=1)
    await one.hold(**unpriced)


async def test_a_brake_says_nothing_of_budgets_that_are_full_as_well(world: World) -> None:
    one, _ = world.agents
    await world.budget(limit=1, unit="requests", period="minute", enforcement="throttle")
    await one.hold(max_completion_tokens=1)
    await world.brake("org")
    decision = await one.deny(max_completion_tokens=1)
    assert decision.reason is not None
    assert decision.reason.code == "kill_switch"
    assert decision.retry_after_s is None
    assert await world.told("budget.exceeded") == []


async def test_an_extension_does_not_walk_around_a_rate(world: World) -> None:
    one, two = world.agents
    await gated(world)
    await one.track(completion_tokens=10)
    await world.wait(minutes=1)
    held = await one.hold(max_completion_tokens=1)
    await two.deny(max_completion_tokens=5)
    reply = await two.extend(held, prompt_tokens=0, max_completion_tokens=6)
    assert reply.approved is False
    assert (await two.extend(held, prompt_tokens=0, max_completion_tokens=3)).approved


_calls = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 30), st.sampled_from((0, 0, 0, 7, 20, 40, 61))), min_size=3, max_size=25
)


@pytest.mark.parametrize("unit", ["cost", "tokens", "requests"])
@examples(4)
@given(st.sampled_from(("minute", "hourly")), st.integers(1, 60), _calls)
async def test_a_rate_admits_up_to_its_limit_in_each_window_and_says_exactly_when_to_come_again(
    world: World, unit: str, period: str, limit: int, calls: list[tuple[int, int, int]]
) -> None:
    """Against a model of one number per window, and every ``retry_after_s`` tried out to the second."""
    scale = CENT if unit == "cost" else 1
    start = max(world.now(), datetime(2030, 3, 13, 12, tzinfo=UTC)).replace(minute=0, second=0, microsecond=0)
    await world.go_to(start + timedelta(hours=2, seconds=30))
    budget = await world.budget(
        limit=f"{limit / 100:.2f}" if unit == "cost" else limit, unit=unit, period=period, enforcement="throttle"
    )
    taken: dict[datetime, int] = {}
    for agent, size, pause_s in calls:
        if pause_s:
            await world.wait(seconds=pause_s)
        amount = 1 if unit == "requests" else size
        decision = await world.agents[agent].submit(max_completion_tokens=size)
        window = decision.budgets[0].window_start
        minute = world.now().replace(second=0, microsecond=0)
        assert window == (minute if period == "minute" else minute.replace(minute=0))
        fits = not amount or taken.get(window, 0) + amount <= limit
        assert decision.approved == fits
        if fits:
            taken[window] = taken.get(window, 0) + amount
        elif amount > limit:
            assert decision.retry_after_s is None
        else:
            assert decision.retry_after_s is not None
            await world.wait(seconds=decision.retry_after_s)
            decision = await world.agents[1 - agent].submit(max_completion_tokens=size)
            assert decision.approved
            taken[decision.budgets[0].window_start] = amount
    rows = {row["starts_at"]: row["reserved"] for row in await world.windows(budget)}
    assert rows == {at: taken.get(at, 0) * scale for at in rows}
    await world.change(budget, active=False)
