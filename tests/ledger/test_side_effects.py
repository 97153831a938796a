"""What is done on the side of a decision or of usage (offers, alerts, counts) refuses no call and loses no event."""

import asyncio
from typing import Any

import pytest

from handlers.enforcer import windows as enforcer_windows
from store import windows as window_store
from tests.support.ledger import CENT, World

BAD_RULE = """INSERT INTO alert_rule (org_id, rule_id, name, kind, scope, parameters, level, channels, actions, active,
                  created_at, updated_at)
              VALUES ($1, gen_random_uuid(), $2::text, $2::text, $3::text::jsonb, $4::text::jsonb, 'info', '{mail}',
                  '[{}]', true, ledger_clock(), ledger_clock())"""


async def test_offers_beyond_the_entity_cap_are_not_made_and_refuse_nothing(world: World) -> None:
    one, _ = world.agents
    everyone = await world.budget(type="user", limit=1, preferred_models=("odd",))
    await one.hold(user_id="known", max_completion_tokens=10)
    await world.budget(type="user", limit=1, filters={"model": "odd"})
    await world.put_setting("entity_windows_per_hour_max", 1)

    await one.hold(user_id="known", max_completion_tokens=10)

    assert (await world.sums(everyone, "known"))[1] == 20 * CENT


async def test_an_entity_that_two_agents_meet_at_once_counts_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = world.agents
    await world.budget(type="user", limit=1)
    await world.put_setting("entity_windows_per_hour_max", 3)
    both, met = asyncio.Event(), 0
    known = window_store.known_entities

    async def together(*args: Any) -> Any:
        nonlocal met
        found, met = await known(*args), met + 1
        if met == 2:
            both.set()
        await both.wait()
        return found

    monkeypatch.setattr(enforcer_windows.window_store, "known_entities", together)
    await asyncio.gather(*(agent.hold(user_id="u1", max_completion_tokens=1) for agent in (one, two)))

    assert await world.fetch("SELECT count FROM new_entity WHERE org_id = $1", world.org) == [{"count": 1}]


@pytest.mark.parametrize(
    ("kind", "scope", "parameters"),
    [("request_cost", "{}", "{}"), ("request_cost", "{}", '{"limit": "no number"}'), ("threshold", "[]", "{}")],
)
async def test_a_rule_that_cannot_be_evaluated_never_holds_up_usage_or_a_denial(
    world: World, kind: str, scope: str, parameters: str, caplog: pytest.LogCaptureFixture
) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=1)
    await world.put(BAD_RULE, kind, scope, parameters)

    assert await one.track(completion_tokens=60) == "applied"
    assert await one.track(completion_tokens=50) == "applied"
    denied = await one.deny(max_completion_tokens=1)

    assert denied.reason is not None and denied.reason.code == "budget_exceeded"
    assert (await world.sums(budget))[0] == 110 * CENT
    assert not await world.fetch("SELECT * FROM dead_letter WHERE org_id = $1", world.org)
    assert [event["threshold"] for event in await world.told("budget.threshold")] == [50, 100]
    assert "alert" in caplog.text


async def test_a_database_that_refuses_an_alert_still_takes_the_usage(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=1)
    sql = f"ALTER TABLE alert ADD CONSTRAINT refused CHECK (org_id <> '{world.org}') NOT VALID"
    await world.execute(sql)
    try:
        assert await one.track(completion_tokens=120) == "applied"
    finally:
        await world.execute("ALTER TABLE alert DROP CONSTRAINT refused")

    assert (await world.sums(budget))[0] == 120 * CENT
    assert not await world.fetch("SELECT * FROM dead_letter WHERE org_id = $1", world.org)
