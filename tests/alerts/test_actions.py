"""What alerts set off: each action end to end, once per alert, also after a crash; and what is taken back when over."""

import asyncio
import logging
from typing import Any

import asyncpg
import msgspec
import pytest

from handlers.alerts.rules import set_alert_rule
from handlers.alerts.watch import Watch
from handlers.context import Caller, Context
from handlers.enforcer.budgets import create_budget, update_budget
from handlers.enforcer.status import get_budget_status
from handlers.pricing.update import update_pricing
from schemas.alert import SetAlertRule
from schemas.budget import Budget, CreateBudget, GetBudgetStatus, UpdateBudget
from schemas.pricing import UpdatePricing
from tests.alerts.scene import actions, alerts, audited, deliveries, look, rule
from tests.support.ledger import CENT, LedgerAgent, World

HALF = {"name": "half", "kind": "threshold"}


async def _budget(agent: LedgerAgent, name: str, limit: str, **fields: Any) -> Budget:
    return await create_budget(agent.context, CreateBudget(name=name, type="global", limit=limit, **fields))


async def _changed(agent: LedgerAgent, budget: Budget, **fields: Any) -> Budget:
    request = UpdateBudget(budget_id=budget.budget_id, version=budget.version, **fields)
    return await update_budget(agent.context, request)


async def _now(agent: LedgerAgent, budget_id: str) -> Budget:
    return (await get_budget_status(agent.context, GetBudgetStatus(budget_id=budget_id))).budgets[0].budget


async def _named(agent: LedgerAgent, name: str) -> Budget:
    status = await get_budget_status(agent.context, GetBudgetStatus(team_id="t1", provider="acme", model="cent"))
    return next(found.budget for found in status.budgets if found.budget.name == name)


async def test_notify_and_callback_tell_their_channels_with_the_rules_own(world: World) -> None:
    agent = world.agents[0]
    await _budget(agent, "b", "1", alert_thresholds=[50])
    doing = [{"do": "notify", "channels": ["chat", "ops"]}, {"do": "callback", "channels": ["hook"]}]
    await rule(agent, **HALF, channels=["ops"], actions=doing)
    await agent.track(completion_tokens=60)
    assert sorted(d["channel"] for d in await deliveries(world)) == ["chat", "hook", "ops"]
    assert await actions(world) == []


async def test_log_writes_one_line_with_what_identifies_the_alert(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    agent = world.agents[0]
    await _budget(agent, "b", "1", alert_thresholds=[50])
    await rule(agent, **HALF, actions=[{"do": "log"}])
    with caplog.at_level(logging.WARNING, logger="handlers.alerts.actions"):
        await agent.track(completion_tokens=60)
        assert caplog.records == []
        for other in world.agents:
            await look(other)
    (alert,) = await alerts(agent)
    (record,) = caplog.records
    assert alert.alert_id in record.getMessage() and "rule=half level=info" in record.getMessage()
    assert await actions(world) == [("done", "logged")]


async def test_rate_limit_throttles_the_scope_for_a_while(world: World) -> None:
    agent, other = world.agents
    await _budget(agent, "b", "10", alert_thresholds=[50])
    doing = [{"do": "rate_limit", "rate": {"limit": "2", "unit": "requests"}, "minutes": 30}]
    await rule(agent, **HALF, actions=doing)
    await agent.track(completion_tokens=500)
    await look(agent)
    throttle = await _named(agent, "alert: half")
    assert (throttle.enforcement, throttle.unit, throttle.period, throttle.limit) == (
        "throttle",
        "requests",
        "minute",
        "2",
    )
    await other.hold(max_completion_tokens=1)
    await other.hold(max_completion_tokens=1)
    denied = await other.deny(max_completion_tokens=1)
    assert denied.reason is not None and denied.reason.code == "throttled"

    await world.wait(minutes=29)
    await look(other)
    assert (await _now(agent, throttle.budget_id)).active
    await world.wait(minutes=1)
    await look(other)
    assert not (await _now(agent, throttle.budget_id)).active
    for _ in range(3):
        await other.hold(max_completion_tokens=1)
    assert await actions(world) == [("done", "rate limit over")]
    assert (await audited(world, "budget"))[1:] == [("policy:half", "created"), ("policy:half", "updated")]
    assert [told["actor"] for told in await world.told("budget.changed")][1:] == ["policy:half", "policy:half"]


async def test_a_rate_limit_is_used_again_and_ends_with_the_last_alert(world: World) -> None:
    agent = world.agents[0]
    await _budget(agent, "b", "10", alert_thresholds=[50, 80])
    await rule(agent, **HALF, actions=[{"do": "rate_limit", "rate": {"limit": "1000"}, "minutes": 30}])
    await agent.track(completion_tokens=500)
    await look(agent)
    throttle = await _named(agent, "alert: half")
    await world.wait(minutes=20)
    await agent.track(completion_tokens=300)
    await look(agent)
    await world.wait(minutes=10)
    await look(agent)
    assert (await _now(agent, throttle.budget_id)).active
    await world.wait(minutes=20)
    await look(agent)
    assert not (await _now(agent, throttle.budget_id)).active
    assert sorted(await actions(world)) == [
        ("done", "another alert keeps the rate limit"),
        ("done", "rate limit over"),
    ]


async def test_teams_of_one_rule_are_throttled_each_for_itself(world: World) -> None:
    agent = world.agents[0]
    doing = [{"do": "rate_limit", "rate": {"limit": "1"}, "minutes": 5}]
    await rule(agent, "fast", "hourly_rate", scope={"type": "team"}, parameters={"limit": "1"}, actions=doing)
    await agent.apply([agent.event(completion_tokens=200, team_id=team) for team in ("t1", "t2")])
    await look(agent)
    for team in ("t1", "t2"):
        await agent.hold(max_completion_tokens=1, team_id=team)
        await agent.deny(max_completion_tokens=1, team_id=team)
    await agent.hold(max_completion_tokens=1, team_id="t3")


async def test_switch_model_comes_first_and_goes_back_when_the_window_resets(world: World) -> None:
    agent = world.agents[0]
    budget = await _budget(agent, "b", "1", alert_thresholds=[50], period="daily", preferred_models=["big", "small"])
    await rule(agent, **HALF, actions=[{"do": "switch_model", "model": "small", "until_reset": True}])
    await agent.track(completion_tokens=60)
    await look(agent)
    assert (await _now(agent, budget.budget_id)).preferred_models == ["small", "big"]
    await world.wait(hours=12)
    await look(agent)
    assert (await _now(agent, budget.budget_id)).preferred_models == ["big", "small"]
    assert (await audited(world, "budget"))[1:] == [("policy:half", "updated")] * 2


async def test_switching_back_keeps_what_somebody_changed_meanwhile(world: World) -> None:
    agent = world.agents[0]
    budget = await _budget(agent, "b", "1", alert_thresholds=[50], preferred_models=["big"])
    doing: list[dict[str, Any]] = [
        {"do": "switch_model", "model": "small", "minutes": 10},
        {"do": "switch_model", "model": "tiny", "place": "fallback"},
    ]
    await rule(agent, **HALF, actions=doing)
    await agent.track(completion_tokens=60)
    await look(agent)
    now = await _now(agent, budget.budget_id)
    assert (now.preferred_models, now.fallback_model) == (["small", "big"], "tiny")
    await _changed(agent, now, preferred_models=["small", "new", "big"])
    await world.wait(minutes=10)
    await look(agent)
    now = await _now(agent, budget.budget_id)
    assert (now.preferred_models, now.fallback_model) == (["new", "big"], "tiny")


async def test_what_cannot_be_done_says_why_and_is_not_tried_for_ever(world: World) -> None:
    agent = world.agents[0]
    await world.budget(limit="1", alert_thresholds=(50,), name="b")
    await world.budget(limit="1", name="alert: half", type="team", entity_id="t9")
    await world.budget(limit="1", name="alert: half (*)", type="team", entity_id="t9")
    await world.budget(limit="1", name="alert: half (*, requests minute)", type="team", entity_id="t9")
    await rule(agent, **HALF, actions=[{"do": "rate_limit", "rate": {"limit": "1"}}])
    await agent.track(completion_tokens=60)
    await look(agent)
    await look(agent)
    assert await actions(world) == [("failed", "budgets named 'alert: half' are of another scope")]


async def test_a_crash_between_alert_and_action_loses_and_repeats_nothing(world: World) -> None:
    """The agent that raised the alert dies before it acts; then many look at once."""
    agent, other = world.agents
    budget = await _budget(agent, "b", "1", alert_thresholds=[50], preferred_models=["big"])
    await rule(agent, **HALF, actions=[{"do": "log"}, {"do": "switch_model", "model": "small"}])
    await agent.track(completion_tokens=60)
    assert await actions(world) == [("pending", None), ("pending", None)]
    await agent.restart()
    await asyncio.gather(*(Watch(a.services).run() for a in (agent, other) for _ in range(4)))
    assert await actions(world) == [("done", "logged"), ("done", "small is preferred now")]
    now = await _now(other, budget.budget_id)
    assert (now.preferred_models, now.version) == (["small", "big"], budget.version + 1)


async def test_an_action_that_fails_half_way_has_not_happened(world: World) -> None:
    """The audit entry, the last step of all, is refused; then it is not."""
    agent = world.agents[0]
    budget = await _budget(agent, "b", "1", alert_thresholds=[50], preferred_models=["big"])
    await rule(agent, **HALF, actions=[{"do": "switch_model", "model": "small"}])
    await agent.track(completion_tokens=60)
    await world.execute("""
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
        CREATE TRIGGER fail BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION fail()
    """)
    with pytest.raises(asyncpg.RaiseError):
        await look(agent)
    assert await actions(world) == [("pending", None)]
    assert (await _now(agent, budget.budget_id)).preferred_models == ["big"]
    await world.execute("DROP TRIGGER fail ON audit")
    await look(agent)
    assert await actions(world) == [("done", "small is preferred now")]
    assert (await _now(agent, budget.budget_id)).preferred_models == ["small", "big"]


async def test_an_org_that_fails_keeps_no_other_from_its_alerts(world: World) -> None:
    agent = world.agents[0]
    for org in ("aaa", "zzz"):
        admin = Context(agent.services, Caller(org, "admin", frozenset({"admin"})))
        wanted = {"name": "fast", "kind": "hourly_rate", "parameters": {"limit": "1"}}
        await set_alert_rule(admin, msgspec.convert(wanted, SetAlertRule))
        event = msgspec.structs.replace(agent.event(completion_tokens=200), org_id=org)
        await agent.applier.apply(org, [event])
    await world.execute("""
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN IF new.org_id = 'aaa' THEN RAISE 'no'; END IF; RETURN new; END $$;
        CREATE TRIGGER fail BEFORE INSERT ON alert FOR EACH ROW EXECUTE FUNCTION fail()
    """)
    with pytest.raises(asyncpg.RaiseError):
        await look(agent)
    assert [row["org_id"] for row in await world.fetch("SELECT org_id FROM alert")] == ["zzz"]


async def _raise_and_spend(world: World, **rollback: Any) -> tuple[LedgerAgent, Budget]:
    """A limit of 10 is raised to 100, and two hours later 20 an hour are spent under a rule of 15."""
    agent = world.agents[0]
    budget = await _budget(agent, "b", "10", alert_thresholds=[])
    doing = [{"do": "rollback", "entities": ["budget"], **rollback}]
    await rule(agent, "fast", "hourly_rate", parameters={"limit": "15"}, actions=doing)
    await agent.track(completion_tokens=500)
    raised = await _changed(agent, budget, limit="100")
    await world.wait(hours=2)
    await look(agent)
    await agent.track(completion_tokens=2_000)
    await look(agent)
    return agent, raised


async def test_a_raise_after_which_spending_is_too_fast_is_taken_back(world: World) -> None:
    agent, raised = await _raise_and_spend(world)
    now = await _now(agent, raised.budget_id)
    assert (now.limit, now.version) == ("10", raised.version + 1)
    await agent.deny(max_completion_tokens=1)
    ((status, result),) = await actions(world)
    assert (status, result) == ("done", "change 3 by tester taken back")
    assert await audited(world, "budget") == [("tester", "created"), ("tester", "updated"), ("policy:fast", "reverted")]
    reason = "SELECT content::json ->> 'reason' AS reason FROM audit WHERE action = 'reverted'"
    assert (await world.fetch(reason))[0]["reason"].startswith("change 3 by tester taken back: All calls: 20 USD")
    assert [told["actor"] for told in await world.told("budget.changed")] == ["tester", "tester", "policy:fast"]


async def test_what_was_taken_back_is_not_taken_back_again(world: World) -> None:
    agent, raised = await _raise_and_spend(world)
    await world.wait(hours=3)
    await look(agent)
    await agent.track(completion_tokens=2_000)
    await look(agent)
    assert len(await alerts(agent)) >= 2
    assert (await actions(world))[-1] == ("done", "no change to take back")
    assert (await _now(agent, raised.budget_id)).limit == "10"


async def test_another_raise_of_a_person_is_another_change(world: World) -> None:
    agent, raised = await _raise_and_spend(world)
    now = await _now(agent, raised.budget_id)
    await _changed(agent, now, limit="200")
    await world.wait(hours=3)
    await look(agent)
    await agent.track(completion_tokens=2_000)
    await look(agent)
    assert (await _now(agent, raised.budget_id)).limit == "10"


async def test_an_older_change_is_left_alone(world: World) -> None:
    agent, raised = await _raise_and_spend(world, within_hours=1)
    assert (await _now(agent, raised.budget_id)).limit == "100"
    assert await actions(world) == [("done", "no change to take back")]


async def test_a_change_of_other_calls_is_left_alone(world: World) -> None:
    agent = world.agents[0]
    other = await create_budget(agent.context, CreateBudget(name="t2", type="team", entity_id="t2", limit="10"))
    raised = await _changed(agent, other, limit="100")
    doing = [{"do": "rollback", "entities": ["budget"]}]
    scope = {"type": "team", "entity_id": "t1"}
    await rule(agent, "fast", "hourly_rate", scope=scope, parameters={"limit": "15"}, actions=doing)
    await agent.track(completion_tokens=2_000, team_id="t1")
    await look(agent)
    assert await actions(world) == [("done", "no change to take back")]
    assert (await _now(agent, raised.budget_id)).limit == "100"


async def test_a_change_after_which_nothing_got_faster_is_left_alone(world: World) -> None:
    """Twenty an hour were spent before the raise already; the alert itself is new because the rule is."""
    agent = world.agents[0]
    budget = await _budget(agent, "b", "50", alert_thresholds=[])
    before = (world.now()).isoformat()
    await agent.track(completion_tokens=2_000, timestamp=before)
    await world.wait(minutes=20)
    raised = await _changed(agent, budget, limit="100")
    doing = [{"do": "rollback", "entities": ["budget"]}]
    await rule(agent, "fast", "hourly_rate", parameters={"limit": "15"}, actions=doing)
    await look(agent)
    assert await actions(world) == [("done", "no change to take back")]
    assert (await _now(agent, raised.budget_id)).limit == "100"


async def _priced(agent: LedgerAgent, **fields: Any) -> None:
    rule_ = {"name": "acme", "layer": "contract", "op": "multiply", "provider": "acme", "factor": "10", **fields}
    await update_pricing(agent.context, msgspec.convert({"rules": [rule_]}, UpdatePricing))


async def _spend_fast(world: World, agent: LedgerAgent, entities: list[str], *, unit: str = "cost") -> None:
    """A hundred calls' worth of tokens an hour: 1 USD at the list price, 10 USD at ten times of it."""
    parameters = {"limit": "5", "unit": "cost"} if unit == "cost" else {"limit": "50", "unit": "tokens"}
    doing = [{"do": "rollback", "entities": entities}]
    await rule(agent, "fast", "hourly_rate", parameters=parameters, actions=doing)
    await world.wait(hours=2)
    await look(agent)
    await agent.track(completion_tokens=100)
    await look(agent)


async def test_a_price_after_which_spending_is_too_fast_is_taken_back_by_another_version(world: World) -> None:
    agent = world.agents[0]
    await _priced(agent)
    await _spend_fast(world, agent, ["budget", "price_rule"])
    ((status, result),) = await actions(world)
    assert (status, result) == ("done", "change 1 by tester taken back")
    assert await audited(world, "price_rule") == [("tester", "created"), ("policy:fast", "reverted")]
    versions = await world.fetch("SELECT version, definition IS NULL AS ends FROM price_rule ORDER BY version")
    assert [(v["version"], v["ends"]) for v in versions] == [(1, False), (2, True)]
    assert [told["action"] for told in await world.told("pricing.changed")] == ["created", "reverted"]
    await agent.track(completion_tokens=100, id="after")
    (row,) = await world.fetch("SELECT cost FROM usage_event WHERE id = 'after'")
    assert row["cost"] == 100 * CENT, "the list price holds again"


async def test_a_price_is_not_why_there_are_too_many_tokens(world: World) -> None:
    agent = world.agents[0]
    await _priced(agent)
    await _spend_fast(world, agent, ["price_rule"], unit="tokens")
    assert await actions(world) == [("done", "no change to take back")]
