"""What crosses a line is told once: per window and threshold, whoever applies it and however often."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from store.pool import Connection, Database
from tests.alerts.scene import alerts, deliveries, rule
from tests.support.ledger import LedgerAgent, World, world_of

AGENTS = 4
SETTLEMENTS = 10_000
OUTSTANDING = 250
BATCH = 50


async def _settle(agent: LedgerAgent, count: int) -> None:
    """Reserve and settle ``count`` calls, many at a time."""
    for _ in range(0, count, OUTSTANDING):
        held = await asyncio.gather(*(agent.hold(max_completion_tokens=1) for _ in range(OUTSTANDING)))
        events = [agent.event(completion_tokens=1, reservation_id=reservation_id) for reservation_id in held]
        await asyncio.gather(*(agent.apply(events[i : i + BATCH]) for i in range(0, OUTSTANDING, BATCH)))


async def test_ten_thousand_settlements_by_four_agents_are_four_alerts_and_four_deliveries(database_url: str) -> None:
    async with world_of(database_url, agents=AGENTS) as world:
        budget = await world.budget(unit="requests", limit=SETTLEMENTS, alert_thresholds=(50, 75, 90, 100))
        await rule(world.agents[0], "thresholds", "threshold", channels=["ops"])
        await asyncio.gather(*(_settle(agent, SETTLEMENTS // AGENTS) for agent in world.agents))

        assert await world.sums(budget) == (SETTLEMENTS, 0, 0)
        found = await alerts(world.agents[0])
        assert sorted((a.details["threshold"], a.level, a.kind, a.rule) for a in found) == [
            (50, "info", "threshold", "thresholds"),
            (75, "warning", "threshold", "thresholds"),
            (90, "critical", "threshold", "thresholds"),
            (100, "exceeded", "threshold", "thresholds"),
        ]
        sent = await deliveries(world)
        assert sorted(str(d["alert_id"]) for d in sent) == sorted(a.alert_id for a in found)
        assert {d["channel"] for d in sent} == {"ops"}
        assert len(await world.told("alert.raised")) == len(await world.told("budget.threshold")) == 4
        await world.verify()


async def test_without_any_rule_alerts_are_listed_and_nobody_is_told(world: World) -> None:
    agent = world.agents[0]
    await world.budget(limit="1", alert_thresholds=(50,), name="small")
    await agent.track(completion_tokens=60)
    (alert,) = await alerts(agent)
    assert (alert.kind, alert.level, alert.rule, alert.rules) == ("threshold", "info", None, 0)
    assert alert.title == "Budget 'small' has used 50% of its limit"
    assert alert.message == "Spent 0.6 of 1 USD (60%); 0.4 remain until 2030-04-01 00:00 UTC."
    figures = {
        "limit": "1",
        "spent": "0.6",
        "remaining": "0.4",
        "percent_used": 60.0,
        "unit": "cost",
        "currency": "USD",
        "days_left": "18.4",
    }
    assert {name: alert.details[name] for name in figures} == figures
    assert await deliveries(world) == []


async def test_two_budgets_of_one_call_are_two_alerts(world: World) -> None:
    agent = world.agents[0]
    await rule(agent, "all", "threshold", channels=["ops"])
    await world.budget(limit="1", alert_thresholds=(50,), name="org")
    await world.budget(limit="1", alert_thresholds=(50,), name="team", type="team", entity_id="t1")
    await agent.track(completion_tokens=60, team_id="t1")
    await agent.track(completion_tokens=10, team_id="t1")
    assert sorted(a.details["budget_name"] for a in await alerts(agent)) == ["org", "team"]
    assert len(await deliveries(world)) == 2


async def test_each_entity_of_a_budget_for_each_has_alerts_of_its_own(world: World) -> None:
    agent = world.agents[0]
    await world.budget(limit="1", alert_thresholds=(50,), name="each", type="user")
    await rule(agent, "u1 only", "threshold", scope={"budget": "each", "entity_id": "u1"}, channels=["ops"])
    await agent.apply([agent.event(completion_tokens=60, user_id=user) for user in ("u1", "u2")])
    u1, u2 = (agent.services.user_key(world.org, user) for user in ("u1", "u2"))
    found = {a.entity_id: a for a in await alerts(agent)}
    assert {entity: a.rule for entity, a in found.items()} == {u1: "u1 only", u2: None}
    assert found[u1].title == f"Budget 'each' of user {u1} has used 50% of its limit"
    assert len(await deliveries(world)) == 1


async def test_a_new_window_tells_anew(world: World) -> None:
    agent = world.agents[0]
    await world.budget(limit="1", alert_thresholds=(50,), period="daily")
    await agent.track(completion_tokens=60)
    await world.wait(days=1)
    await agent.track(completion_tokens=60)
    assert len(await alerts(agent)) == 2


async def test_rules_choose_thresholds_levels_and_channels_and_several_are_one_alert(world: World) -> None:
    agent = world.agents[0]
    budget = await world.budget(limit="1", alert_thresholds=(50, 80))
    await rule(agent, "a", "threshold", parameters={"percents": [80]}, level="critical", channels=["ops", "mail"])
    await rule(agent, "b", "threshold", scope={"budget_id": budget.budget_id}, channels=["mail", "chat"])
    await rule(agent, "off", "threshold", channels=["never"], active=False)
    await rule(agent, "elsewhere", "threshold", scope={"type": "team"}, channels=["never"])
    await agent.track(completion_tokens=85)
    at_80, at_50 = sorted(await alerts(agent), key=lambda a: -a.details["threshold"])
    assert (at_50.level, at_50.rule, at_50.rules) == ("info", "b", 1)
    assert (at_80.level, at_80.rule, at_80.rules) == ("critical", "a", 2)
    sent = sorted((str(d["alert_id"]), d["channel"]) for d in await deliveries(world))
    wanted = [(at_50.alert_id, c) for c in ("mail", "chat")] + [(at_80.alert_id, c) for c in ("ops", "mail", "chat")]
    assert sent == sorted(wanted)


async def test_the_limit_reached_is_one_alert_for_rules_about_either_word(world: World) -> None:
    agent = world.agents[0]
    await world.budget(limit="1", alert_thresholds=(100,), enforcement="warn")
    await rule(agent, "full", "exceeded", channels=["ops"])
    await agent.track(completion_tokens=100)
    (alert,) = await alerts(agent)
    assert (alert.kind, alert.level, alert.rule) == ("threshold", "exceeded", "full")
    assert len(await deliveries(world)) == 1


async def test_the_first_denial_is_an_alert_and_later_ones_are_not(world: World) -> None:
    await world.budget(limit="1", alert_thresholds=(), name="tight")
    await rule(world.agents[0], "full", "exceeded", channels=["ops"])
    await asyncio.gather(*(agent.deny(max_completion_tokens=200) for agent in world.agents for _ in range(20)))
    (alert,) = await alerts(world.agents[0])
    assert (alert.kind, alert.level, alert.rule) == ("exceeded", "exceeded", "full")
    assert alert.title == "Budget 'tight' refuses calls"
    assert alert.details["cause"] == "denied"
    assert len(await deliveries(world)) == 1
    assert len(await world.told("budget.exceeded")) == 1


async def test_what_shadow_enforcement_would_refuse_is_a_warning(world: World) -> None:
    agent = world.agents[0]
    await world.budget(limit="1", alert_thresholds=(), enforcement="shadow", name="trial")
    for _ in range(3):
        await agent.hold(max_completion_tokens=200)
    (alert,) = await alerts(agent)
    assert (alert.kind, alert.level, alert.title) == ("exceeded", "warning", "Budget 'trial' would refuse calls")


async def test_the_first_overrun_of_a_window_is_an_alert_and_each_is_an_event(world: World) -> None:
    agent = world.agents[0]
    await world.budget(limit="1", alert_thresholds=())
    await rule(agent, "over", "overrun", channels=["ops"])
    for _ in range(3):
        await agent.track(completion_tokens=70)
    overrun = [a for a in await alerts(agent) if a.kind == "overrun"]
    assert [(a.level, a.rule, a.details["amount"]) for a in overrun] == [("exceeded", "over", "0.4")]
    assert len(await world.told("budget.overrun")) == 2


async def test_a_rate_that_is_used_up_is_not_news(world: World) -> None:
    agent = world.agents[0]
    await world.budget(unit="requests", limit=2, period="minute", enforcement="throttle", alert_thresholds=(50, 100))
    for _ in range(3):
        await agent.track(completion_tokens=1)
    assert await alerts(agent) == []


async def test_one_call_above_a_rule_is_an_alert(world: World) -> None:
    agent = world.agents[0]
    await rule(agent, "dear", "request_cost", scope={"type": "team"}, parameters={"limit": "0.5"}, channels=["ops"])
    await agent.apply([
        agent.event(completion_tokens=50, team_id="t1"),  # Exactly the limit is not more than the limit.
        agent.event(completion_tokens=51, team_id="t1", id="dear-1"),
        agent.event(completion_tokens=60, team_id="t1", id="dearest"),
        agent.event(completion_tokens=90),  # No team.
    ])  # fmt: skip
    (alert,) = await alerts(agent)
    assert (alert.kind, alert.level, alert.entity_id, alert.details["usage_id"]) == (
        "request_cost",
        "warning",
        "t1",
        "dearest",
    )
    assert alert.title == "team t1: acme/cent: 0.6 USD for one call"
    assert len(await deliveries(world)) == 1


async def test_a_loop_of_dear_calls_is_one_alert_a_minute(world: World) -> None:
    agent = world.agents[0]
    await rule(agent, "dear", "request_cost", parameters={"limit": "0.1"}, channels=["ops"])
    await asyncio.gather(*(a.track(completion_tokens=20) for a in world.agents for _ in range(10)))
    await world.wait(minutes=1)
    await agent.track(completion_tokens=20)
    assert 2 <= len(await alerts(agent)) <= 3  # The loop may have gone over the turn of a minute.


async def test_a_rule_binds_the_very_next_call_on_every_agent(world: World) -> None:
    first, second = world.agents
    await second.track(completion_tokens=20)
    made = await rule(first, "dear", "request_cost", parameters={"limit": "0.1"})
    await second.track(completion_tokens=20)
    assert len(await alerts(first)) == 1
    await rule(first, "dear", "request_cost", parameters={"limit": "0.1"}, active=False, version=made.version)
    await world.wait(minutes=1)
    await second.track(completion_tokens=20)
    assert len(await alerts(first)) == 1


async def test_a_repeated_event_tells_nothing(world: World) -> None:
    agent = world.agents[0]
    await world.budget(limit="1", alert_thresholds=(50,))
    await rule(agent, "dear", "request_cost", parameters={"limit": "0.1"})
    event = agent.event(completion_tokens=60)
    await asyncio.gather(*(a.apply([event]) for a in world.agents for _ in range(5)))
    await world.wait(minutes=5)
    await agent.apply([event])
    assert sorted(a.kind for a in await alerts(agent)) == ["request_cost", "threshold"]


class _Counting(Database):
    """A pool that writes down every statement."""

    statements: list[str]

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        def note(query: Any) -> None:
            self.statements.append(query.query)

        async with super().connection() as connection:
            with connection.query_logger(note):
                yield connection


@pytest.mark.parametrize("rules", [0, 20])
async def test_where_nothing_crosses_apply_asks_nothing_about_alerts(world: World, rules: int) -> None:
    agent = world.agents[0]
    await world.budget(limit="100")
    for number in range(rules):
        await rule(agent, f"rule {number}", "threshold", channels=["ops"])
    await agent.track(completion_tokens=1)
    database = _Counting(world.url)
    database.statements = []
    await database.open()
    before, agent.services.database = agent.services.database, database
    await agent.track(completion_tokens=1)
    agent.services.database = before
    await database.close()
    asked = [statement for statement in database.statements if "alert" in statement]
    assert database.statements and not asked
