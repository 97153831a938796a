"""What was used within an hour, or since a period began: at the edge, by entity, and once per episode."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from handlers.alerts.rules import delete_alert_rule
from handlers.alerts.watch import Watch
from schemas.alert import DeleteAlertRule
from store import alerts as alert_store
from tests.alerts.scene import alerts, deliveries, look, rule
from tests.support.ledger import World

NOON = datetime(2030, 3, 13, 12, tzinfo=UTC)


async def test_a_rate_is_noticed_at_its_limit_and_not_below(world: World) -> None:
    agent = world.agents[0]
    await rule(agent, "fast", "hourly_rate", parameters={"limit": "1"}, channels=["ops"])
    await agent.track(completion_tokens=99)
    assert await look(agent) == 0
    await agent.track(completion_tokens=1)
    assert await look(agent) == 1
    (alert,) = await alerts(agent)
    assert (alert.kind, alert.level, alert.rule, alert.entity_id) == ("hourly_rate", "warning", "fast", "*")
    assert (alert.title, alert.message) == ("All calls: 1 USD in the last 60 minutes", "The rule's limit is 1 USD.")
    assert alert.details["amount"] == alert.details["limit"] == "1"
    assert [d["channel"] for d in await deliveries(world)] == ["ops"]


@pytest.mark.parametrize(("minute", "fires"), [(0, True), (4, True), (5, True), (6, False), (15, False)])
async def test_the_quarter_hour_in_which_the_hour_begins_counts_by_its_part(
    world: World, minute: int, fires: bool
) -> None:
    """150 tokens between 11:00 and 11:15: at 12:05 two thirds of them lie in the last 60 minutes."""
    agent = world.agents[0]
    await rule(agent, "fast", "hourly_rate", parameters={"limit": "100", "unit": "tokens"})
    await agent.track(completion_tokens=150, timestamp=(NOON - timedelta(minutes=52)).isoformat())
    await world.go_to(NOON + timedelta(minutes=minute))
    # The clock goes on while the test runs: at minute 5 as much as a second's part of the 150 is gone.
    if minute == 5:
        await agent.track(completion_tokens=5)
    assert await look(agent) == int(fires)


async def test_a_rate_that_stays_is_one_alert_and_ends_when_it_falls(world: World) -> None:
    agent = world.agents[0]
    await rule(agent, "fast", "hourly_rate", parameters={"limit": "1"}, channels=["ops"])
    for _ in range(5):
        await agent.track(completion_tokens=100)
        await look(agent)
        await world.wait(minutes=30)
    (alert,) = await alerts(agent)
    assert alert.ended_at is None
    await world.wait(minutes=60)
    await look(agent)
    (alert,) = await alerts(agent)
    assert alert.ended_at is not None
    await agent.track(completion_tokens=100)
    assert await look(agent) == 1
    assert len(await deliveries(world)) == 2


async def test_a_rate_that_comes_and_goes_begins_once_in_a_clock_hour(world: World) -> None:
    """The rate of a team is watched through a filter that the test turns off and on by the entity's own usage."""
    agent = world.agents[0]
    made = await rule(agent, "fast", "hourly_rate", parameters={"limit": "1"})
    await agent.track(completion_tokens=100)
    assert await look(agent) == 1
    made = await rule(agent, "fast", "hourly_rate", parameters={"limit": "2"}, version=made.version)
    await look(agent)
    assert [a.ended_at is None for a in await alerts(agent)] == [False]
    await rule(agent, "fast", "hourly_rate", parameters={"limit": "1"}, version=made.version)
    assert await look(agent) == 0
    assert len(await alerts(agent)) == 1


@pytest.mark.parametrize("how", ["deleted", "inactive", "another kind"])
async def test_a_rule_that_watches_no_longer_ends_its_alerts(world: World, how: str) -> None:
    agent = world.agents[0]
    limit = {"parameters": {"limit": "1"}}
    made = await rule(agent, "fast", "hourly_rate", **limit, channels=["ops"], renotify_s=60)
    await agent.track(completion_tokens=100)
    await look(agent)
    if how == "deleted":
        await delete_alert_rule(agent.context, DeleteAlertRule(name="fast", version=made.version))
    elif how == "inactive":
        await rule(agent, "fast", "hourly_rate", **limit, channels=["ops"], active=False, version=made.version)
    else:
        await rule(agent, "fast", "overrun", channels=["ops"], renotify_s=60, version=made.version)
    await world.wait(minutes=2)
    await look(agent)
    assert [a.ended_at is None for a in await alerts(agent)] == [False]
    assert len(await deliveries(world)) == 1


async def test_each_entity_of_a_scope_is_summed_for_itself(world: World) -> None:
    agent = world.agents[0]
    scope = {"type": "team", "filters": {"model": "c*"}}
    await rule(agent, "teams", "hourly_rate", scope=scope, parameters={"limit": "1"})
    await rule(agent, "t2", "hourly_rate", scope={"type": "team", "entity_id": "t2"}, parameters={"limit": "1"})
    await agent.apply([
        agent.event(completion_tokens=120, team_id="t1"),
        agent.event(completion_tokens=60, team_id="t2"),
        agent.event(model="small", completion_tokens=60, team_id="t2"),
        agent.event(completion_tokens=500),
    ])  # fmt: skip
    assert await look(agent) == 2
    found = {(a.rule, a.entity_id): a for a in await alerts(agent)}
    assert set(found) == {("teams", "t1"), ("t2", "t2")}
    assert found["teams", "t1"].title == "team t1 (model c*): 1.2 USD in the last 60 minutes"
    assert found["teams", "t1"].details["scope"] == {"type": "team", "entity_id": "t1", "filters": {"model": "c*"}}


async def test_a_budget_stands_for_the_calls_it_counts(world: World) -> None:
    agent = world.agents[0]
    budget = await world.budget(limit="100", type="team", entity_id="t1", name="team one", alert_thresholds=())
    await rule(agent, "fast", "hourly_rate", scope={"budget": "team one"}, parameters={"limit": "1"})
    await agent.apply([agent.event(completion_tokens=100, team_id=team) for team in ("t1", "t2")])
    assert await look(agent) == 1
    (alert,) = await alerts(agent)
    assert (alert.budget_id, alert.entity_id) == (budget.budget_id, "t1")


async def test_tokens_since_the_start_of_a_period(world: World) -> None:
    agent = world.agents[0]
    watch = Watch(agent.services)
    parameters = {"limit": "1000", "period": "monthly", "timezone": "Europe/Vienna"}
    await rule(agent, "many", "absolute_tokens", parameters=parameters, channels=["ops"])
    # February in Vienna, the first of March, today.
    await agent.track(completion_tokens=5_000, model="odd", timestamp="2030-02-28T22:59:00Z")
    await agent.track(completion_tokens=400, model="odd", timestamp="2030-02-28T23:00:00Z")
    await agent.track(completion_tokens=500, model="odd")
    assert await watch.run() == 0
    await agent.track(prompt_tokens=50, completion_tokens=50, model="odd")
    assert await watch.run() == 1
    assert await watch.run() == 0
    (alert,) = await alerts(agent)
    assert (alert.details["amount"], alert.details["unit"]) == ("1000", "tokens")
    assert alert.title == "All calls: 1000 tokens since 2030-02-28 23:00 UTC"

    await world.go_to(datetime(2030, 4, 2, 12, tzinfo=UTC))
    assert await watch.run() == 0
    assert [a.ended_at is None for a in await alerts(agent)] == [False]
    await agent.track(completion_tokens=1_000, model="odd")
    assert await watch.run() == 1


async def test_late_usage_of_a_period_is_seen_after_the_refresh(world: World) -> None:
    agent = world.agents[0]
    watch = Watch(agent.services)
    await rule(agent, "many", "absolute_tokens", parameters={"limit": "1000"})
    await agent.track(completion_tokens=10, model="odd")
    assert await watch.run() == 0
    await agent.track(completion_tokens=990, model="odd", timestamp="2030-03-02T00:00:00Z")
    assert await watch.run() == 0
    await world.wait(seconds=agent.services.limits.alert_refresh_s)
    assert await watch.run() == 1


async def test_many_agents_looking_at_once_raise_one_alert(world: World) -> None:
    await rule(world.agents[0], "fast", "hourly_rate", parameters={"limit": "1"}, channels=["ops"])
    await world.agents[0].track(completion_tokens=100)
    raised = await asyncio.gather(*(look(agent) for agent in world.agents for _ in range(4)))
    assert sum(raised) == 1
    assert len(await deliveries(world)) == 1


async def test_an_org_without_rules_is_not_even_looked_at(world: World) -> None:
    agent = world.agents[0]
    await world.budget(limit="1", alert_thresholds=(50,))
    await rule(agent, "half", "threshold", channels=["ops"], actions=[])
    await agent.track(completion_tokens=60)
    assert len(await alerts(agent)) == 1
    async with world.connection() as connection:
        assert await alert_store.orgs_with_work(connection, after="", limit=10) == []
        await rule(agent, "fast", "hourly_rate", parameters={"limit": "1"})
        assert await alert_store.orgs_with_work(connection, after="", limit=10) == [world.org]
        assert await alert_store.orgs_with_work(connection, after=world.org, limit=10) == []
