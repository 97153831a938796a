"""Alerts as people see them: pages and filters, acknowledging, and being told again until somebody does."""

from datetime import timedelta

import pytest

from handlers.alerts.inbox import acknowledge_alert, list_alerts
from handlers.alerts.rules import delete_alert_rule
from handlers.context import Caller, Context
from schemas.alert import AcknowledgeAlert, DeleteAlertRule, ListAlerts
from tests.alerts.scene import alerts, audited, deliveries, look, rule
from tests.support.ledger import LedgerAgent, World
from tests.support.services import refusal


async def _raised(world: World, agent: LedgerAgent, **fields: object) -> str:
    """One threshold alert of a rule; its id."""
    await world.budget(limit="1", alert_thresholds=(50,))
    await rule(agent, "half", "threshold", channels=["ops"], **fields)
    await agent.track(completion_tokens=60)
    (alert,) = await alerts(agent)
    return alert.alert_id


async def test_alerts_come_in_pages_newest_first(world: World) -> None:
    agent = world.agents[0]
    budgets = [await world.budget(limit="1", alert_thresholds=(50, 100)) for _ in range(3)]
    await agent.track(completion_tokens=60)
    await agent.track(completion_tokens=60)
    seen: list[str] = []
    cursor = None
    while True:
        page = await list_alerts(agent.context, ListAlerts(limit=2, cursor=cursor))
        seen += [alert.alert_id for alert in page.alerts]
        if (cursor := page.next_cursor) is None:
            break
    everything = await alerts(agent)
    assert seen == [alert.alert_id for alert in everything]
    assert len(set(seen)) == 9  # Half, full and overrun of each.
    times = [alert.created_at for alert in everything]
    assert times == sorted(times, reverse=True)
    of_one = await alerts(agent, budget_id=budgets[0].budget_id)
    assert {alert.budget_id for alert in of_one} == {budgets[0].budget_id} and len(of_one) == 3
    assert len(await alerts(agent, level="info")) == 3
    assert len(await alerts(agent, kind="overrun")) == 3


async def test_acknowledging_is_told_audited_and_done_once(world: World) -> None:
    agent = world.agents[0]
    alert_id = await _raised(world, agent)
    assert [a.alert_id for a in await alerts(agent, state="open")] == [alert_id]
    done = await acknowledge_alert(agent.context, AcknowledgeAlert(alert_id=alert_id, comment="looking"))
    again = await acknowledge_alert(
        Context(agent.services, Caller(world.org, "bob", frozenset({"viewer"}))), AcknowledgeAlert(alert_id=alert_id)
    )
    assert (done.acknowledged_by, done.comment) == (again.acknowledged_by, again.comment) == ("tester", "looking")
    assert done.acknowledged_at == again.acknowledged_at
    assert await alerts(agent, state="open") == []
    assert [a.alert_id for a in await alerts(agent, state="acknowledged")] == [alert_id]
    assert [told["alert_id"] for told in await world.told("alert.acknowledged")] == [alert_id]
    assert await audited(world, "alert") == [("tester", "acknowledged")]


async def test_what_is_no_alert_of_this_org_is_not_found(world: World) -> None:
    agent = world.agents[0]
    alert_id = await _raised(world, agent)
    other = Context(agent.services, Caller("other", "mallory", frozenset({"admin"})))
    assert (await list_alerts(other, ListAlerts())).alerts == []
    error = await refusal(acknowledge_alert(other, AcknowledgeAlert(alert_id=alert_id)))
    assert (error.code, error.field) == ("not_found", "alert_id")
    error = await refusal(acknowledge_alert(agent.context, AcknowledgeAlert(alert_id="nonsense")))
    assert (error.code, error.field) == ("invalid_request", "alert_id")
    error = await refusal(list_alerts(agent.context, ListAlerts(budget_id="nonsense")))
    assert (error.code, error.field) == ("invalid_request", "budget_id")


async def test_nobody_is_told_again_without_being_asked(world: World) -> None:
    agent = world.agents[0]
    await _raised(world, agent)
    await world.wait(days=3)
    await look(agent)
    assert len(await deliveries(world)) == 1


async def test_an_alert_is_told_again_until_somebody_looks_after_it(world: World) -> None:
    agent = world.agents[0]
    alert_id = await _raised(world, agent, renotify_s=3600)
    await world.wait(minutes=59)
    await look(agent)
    assert len(await deliveries(world)) == 1
    await world.wait(minutes=1)
    for other in world.agents:
        await look(other)
    sent = await deliveries(world)
    assert [str(d["alert_id"]) for d in sent] == [alert_id, alert_id]
    assert sent[1]["not_before"] - sent[0]["not_before"] >= timedelta(hours=1)
    (alert,) = await alerts(agent)
    assert alert.notified_at == sent[1]["not_before"]
    assert len(await world.told("alert.raised")) == 1

    await acknowledge_alert(agent.context, AcknowledgeAlert(alert_id=alert_id))
    await world.wait(hours=5)
    await look(agent)
    assert len(await deliveries(world)) == 2


@pytest.mark.parametrize("why", ["reset", "raised", "deleted rule", "inactive budget"])
async def test_what_is_no_longer_true_is_not_told_again(world: World, why: str) -> None:
    agent = world.agents[0]
    budget = await world.budget(limit="1", alert_thresholds=(50,), period="daily")
    made = await rule(agent, "half", "threshold", channels=["ops"], renotify_s=3600)
    await agent.track(completion_tokens=60)
    if why == "raised":
        await world.change(budget, base_limit=2_000_000_000)
    elif why == "deleted rule":
        await delete_alert_rule(agent.context, DeleteAlertRule(name="half", version=made.version))
    elif why == "inactive budget":
        await world.change(budget, active=False)
    await world.wait(hours=12 if why == "reset" else 2)
    await look(agent)
    await world.wait(hours=2)
    await look(agent)
    assert len(await deliveries(world)) == 1
    (alert,) = await alerts(agent)
    assert alert.renotify_at is None
    assert (alert.ended_at is None) == (why == "deleted rule")


async def test_a_rule_that_changed_is_told_again_as_it_is_now(world: World) -> None:
    agent = world.agents[0]
    await _raised(world, agent, renotify_s=3600)
    await rule(agent, "half", "threshold", channels=["mail", "chat"], renotify_s=7200, version=1)
    await world.wait(hours=1)
    await look(agent)
    assert sorted(d["channel"] for d in await deliveries(world)) == ["chat", "mail", "ops"]
    await world.wait(hours=1)
    await look(agent)
    assert len(await deliveries(world)) == 3
    await world.wait(hours=1)
    await look(agent)
    assert len(await deliveries(world)) == 5


async def test_a_rate_that_fell_is_not_told_again(world: World) -> None:
    agent = world.agents[0]
    await rule(agent, "fast", "hourly_rate", parameters={"limit": "1"}, channels=["ops"], renotify_s=1800)
    await agent.track(completion_tokens=200)
    await look(agent)
    await world.wait(minutes=31)
    await look(agent)
    assert len(await deliveries(world)) == 2
    await world.wait(minutes=60)
    await look(agent)
    assert len(await deliveries(world)) == 2
