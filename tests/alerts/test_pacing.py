"""Budgets that will not last: noticed once, when enough of the window has passed, with the day they are spent on."""

from datetime import UTC, datetime, timedelta

from handlers.alerts.watch import Watch
from tests.alerts.scene import alerts, deliveries, look, rule
from tests.support.ledger import World

MARCH = datetime(2030, 3, 1, tzinfo=UTC)


async def test_at_this_pace_the_month_is_spent_on_the_16th(world: World) -> None:
    agent = world.agents[0]
    await world.budget(limit="31", name="month", counting_since=MARCH, alert_thresholds=())
    await rule(agent, "pace", "pacing", channels=["ops"])
    await world.go_to(MARCH + timedelta(days=12, hours=12))
    await agent.track(completion_tokens=1_250)  # 12.5 days, a dollar a day: it lasts exactly.
    assert await look(agent) == 0
    await agent.track(completion_tokens=1_250)
    assert await look(agent) == 1
    (alert,) = await alerts(agent)
    assert alert.title == "At this pace budget 'month' is spent on 16 March 2030"
    assert alert.message.startswith("That is 15.5 days before it resets. Spent 25 of 31 USD")
    assert (alert.kind, alert.level, alert.details["method"]) == ("pacing", "warning", "linear")
    assert (alert.details["exhausted_on"], alert.details["days_left"]) == ("2030-03-16", "18.4")
    assert await look(agent) == 0
    assert len(await deliveries(world)) == 1


async def test_too_little_of_the_window_says_nothing(world: World) -> None:
    agent = world.agents[0]
    await world.budget(limit="31", counting_since=MARCH, alert_thresholds=())
    await rule(agent, "pace", "pacing", parameters={"min_elapsed_percent": 50})
    await agent.track(completion_tokens=2_000)
    assert await look(agent) == 0
    await world.go_to(MARCH + timedelta(days=15, hours=13))
    assert await look(agent) == 1


async def test_a_budget_made_in_the_middle_paces_from_then(world: World) -> None:
    """Made on 13 March at noon, 18.5 days before its window ends: a tenth of them has to pass."""
    agent = world.agents[0]
    await world.budget(limit="31", alert_thresholds=())
    await rule(agent, "pace", "pacing")
    await agent.track(completion_tokens=1_000)
    await world.wait(days=1.8)
    assert await look(agent) == 0
    await world.wait(days=0.2)
    assert await look(agent) == 1
    assert (await alerts(agent))[0].details["exhausted_on"] == "2030-03-19"  # 6.2 days at 5 dollars.


async def test_what_is_spent_already_is_no_forecast(world: World) -> None:
    agent = world.agents[0]
    await world.budget(limit="10", counting_since=MARCH, alert_thresholds=())
    await rule(agent, "pace", "pacing")
    await agent.track(completion_tokens=1_000)
    assert await look(agent) == 0


async def test_each_entity_of_a_budget_is_projected_for_itself(world: World) -> None:
    agent = world.agents[0]
    await world.budget(limit="31", type="team", counting_since=MARCH, alert_thresholds=(), name="each")
    await world.budget(limit="31", type="team", counting_since=MARCH, alert_thresholds=(), name="other")
    await rule(agent, "pace", "pacing", scope={"budget": "each"})
    await agent.apply([
        agent.event(completion_tokens=2_500, team_id="fast"),
        agent.event(completion_tokens=100, team_id="slow"),
    ])  # fmt: skip
    assert await look(agent) == 1
    assert [(a.entity_id, a.details["budget_name"]) for a in await alerts(agent)] == [("fast", "each")]


async def test_two_weeks_of_days_make_a_profile_of_the_week(world: World) -> None:
    """A dollar each working day of May. On 3 June 2030, a Monday after a weekend, the line says that 14.50 last;
    20 working days say that they do not.
    """
    agent = world.agents[0]
    june = datetime(2030, 6, 1, tzinfo=UTC)
    await world.go_to(june)
    days = [june - timedelta(days=back) for back in range(1, 31)]
    await agent.apply([
        agent.event(completion_tokens=100, timestamp=(day + timedelta(hours=12)).isoformat())
        for day in days
        if day.weekday() < 5
    ])  # fmt: skip
    await world.budget(limit="14.5", counting_since=june, alert_thresholds=(), name="june")
    await rule(agent, "pace", "pacing")
    await world.go_to(june + timedelta(days=3))
    await agent.track(completion_tokens=100, timestamp=(june + timedelta(days=2, hours=12)).isoformat())
    watch = Watch(agent.services)
    assert await watch.run() == 1
    (alert,) = await alerts(agent)
    # The fifteenth working day of June 2030 is Friday the 21st.
    assert (alert.details["method"], alert.details["exhausted_on"]) == ("weekday", "2030-06-21")
