"""R7-R9, thresholds and overruns: what usage does to reservations and windows, and what expiry may do."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal

import pytest

from handlers.enforcer.sweep import Applied, cutoff
from tests.support.ledger import CENT, START, World

NO_SKEW = timedelta(0)


# R7 ---------------------------------------------------------------------------------------------------------------


async def test_r7_settling_releases_everything_and_charges_what_matches_the_event(world: World) -> None:
    """The call failed over to a model and a team that other budgets count."""
    one, two = world.agents
    asked = await world.budget(limit=1, filters={"model": "cent"})
    used = await world.budget(limit=1, filters={"model": "small"})
    team = await world.budget(type="team", limit=1)
    held = await one.hold(team_id="a", max_completion_tokens=50)

    await two.track(model="small", team_id="b", completion_tokens=20, reservation_id=held)

    assert await world.sums(asked) == (0, 0, 0)
    assert await world.sums(used) == (20 * CENT, 0, 0)
    assert [(w["entity_id"], w["spent"], w["reserved"]) for w in await world.windows(team)] == [
        ("a", 0, 0),
        ("b", 20 * CENT, 0),
    ]


async def test_r7_a_call_begun_before_midnight_is_charged_to_its_day(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, period="daily")
    await world.go_to(datetime(2030, 3, 13, 23, 59, 50, tzinfo=UTC))
    held = await one.hold(max_completion_tokens=50)

    await world.go_to(datetime(2030, 3, 14, 0, 5, tzinfo=UTC))
    await two.hold(max_completion_tokens=1)
    await two.track(completion_tokens=20, reservation_id=held)

    assert [(w["spent"], w["reserved"]) for w in await world.windows(budget)] == [(20 * CENT, 0), (0, CENT)]


async def test_r7_attribution_that_the_event_lacks_comes_from_its_reservation(world: World) -> None:
    one, two = world.agents
    team, user = await world.budget(type="team", limit=1), await world.budget(type="user", limit=1)
    held = await one.hold(team_id="t", user_id="u", max_completion_tokens=50)

    await two.track(user_id="v", completion_tokens=20, reservation_id=held)

    assert await world.sums(team, "t") == (20 * CENT, 0, 0)
    assert await world.sums(user, "u") == (0, 0, 0)
    assert await world.sums(user, "v") == (20 * CENT, 0, 0)
    event = (await world.fetch("SELECT team_id, user_id FROM usage_event WHERE org_id = $1", world.org))[0]
    assert (event["team_id"], event["user_id"]) == ("t", world.key("user", "v"))


@pytest.mark.parametrize("named", ["reservation_id", "request_id", "both"])
async def test_r7_reservation_id_or_request_id_alone_finds_the_reservation(world: World, named: str) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    held = await one.hold(request_id="r", max_completion_tokens=50)
    names = {"reservation_id": held.upper(), "request_id": "r"}

    await two.track(completion_tokens=20, **(names if named == "both" else {named: names[named]}))

    assert await world.sums(budget) == (20 * CENT, 0, 0)
    assert (await world.reservation(held))["status"] == "settled"


async def test_r7_an_actual_above_its_reservation_takes_free_room_then_overrun(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    first, second = await one.hold(max_completion_tokens=50), await one.hold(max_completion_tokens=20)

    await two.track(completion_tokens=60, reservation_id=first)
    assert await world.sums(budget) == (60 * CENT, 20 * CENT, 0)
    await two.track(completion_tokens=65, reservation_id=second)
    assert await world.sums(budget) == (125 * CENT, 0, 25 * CENT)

    assert [told["amount"] for told in await world.told("budget.overrun")] == ["0.25"]
    await one.deny(max_completion_tokens=1)


async def test_r7_an_actual_above_its_reservation_never_takes_what_others_hold(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    first, second = await one.hold(max_completion_tokens=50), await one.hold(max_completion_tokens=50)

    await two.track(completion_tokens=60, reservation_id=first)
    assert await world.sums(budget) == (60 * CENT, 50 * CENT, 10 * CENT)
    await two.track(completion_tokens=50, reservation_id=second)
    assert await world.sums(budget) == (110 * CENT, 0, 10 * CENT)


@pytest.mark.parametrize("end", ["settled", "released", "expired"])
async def test_r7_a_further_event_of_a_closed_reservation_is_charged_as_unreserved(world: World, end: str) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, period="daily")
    await world.go_to(START + timedelta(hours=11, minutes=59))
    held = await one.hold(max_completion_tokens=50, ttl_s=1)
    await world.wait(minutes=2)
    if end == "settled":
        await two.track(completion_tokens=10, reservation_id=held)
    elif end == "released":
        await two.release(held)
    else:
        assert await two.sweep() == 1
    before = [w["spent"] for w in await world.windows(budget)]

    await one.track(completion_tokens=20, reservation_id=held)

    after = [(w["spent"], w["reserved"]) for w in await world.windows(budget)]
    assert after == [(before[0], 0), (20 * CENT, 0)]
    assert (await world.reservation(held))["status"] == end


async def test_r7_the_first_late_event_replaces_a_presumed_charge_and_later_ones_do_not(world: World) -> None:
    one, two = world.agents
    presumes = await world.budget(limit=1, on_expiry="settle")
    frees = await world.budget(limit=1)
    held = await one.hold(max_completion_tokens=50, ttl_s=1)
    await world.wait(minutes=1)
    assert await one.sweep() == 1
    assert await world.sums(presumes) == (50 * CENT, 0, 0)
    assert await world.sums(frees) == (0, 0, 0)
    await world.verify()

    await two.track(completion_tokens=30, reservation_id=held)
    assert await world.sums(presumes) == (30 * CENT, 0, 0)
    assert await world.sums(frees) == (30 * CENT, 0, 0)
    await two.track(completion_tokens=5, reservation_id=held)
    assert await world.sums(presumes) == (35 * CENT, 0, 0)
    await world.verify()


async def test_r7_a_late_event_dearer_than_presumed_takes_free_room_then_overrun(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, on_expiry="settle")
    held = await one.hold(max_completion_tokens=50, ttl_s=1)
    await one.hold(max_completion_tokens=40)
    await world.wait(minutes=1)
    assert await one.sweep() == 1

    await two.track(completion_tokens=70, reservation_id=held)

    assert await world.sums(budget) == (70 * CENT, 40 * CENT, 10 * CENT)


async def test_r7_part_of_a_call_moves_from_reserved_to_spent_and_leaves_the_rest_held(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    calls = await world.budget(unit="requests", limit=10)
    held = await one.hold(max_completion_tokens=50)

    await two.track(completion_tokens=20, reservation_id=held, final=False)
    assert await world.sums(budget) == (20 * CENT, 30 * CENT, 0)
    assert await world.sums(calls) == (0, 1, 0)
    await world.verify()
    await one.track(completion_tokens=40, reservation_id=held, final=False)
    assert await world.sums(budget) == (60 * CENT, 0, 0)
    await world.verify()
    await two.track(completion_tokens=5, reservation_id=held)
    assert await world.sums(budget) == (65 * CENT, 0, 0)
    assert await world.sums(calls) == (1, 0, 0)
    assert (await world.reservation(held))["status"] == "settled"


async def test_r7_the_rest_of_a_call_whose_caller_died_between_parts_is_freed(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    held = await one.hold(max_completion_tokens=50, ttl_s=1)
    await two.track(completion_tokens=20, reservation_id=held, final=False)
    await world.wait(minutes=1)

    assert await two.sweep() == 1
    assert await world.sums(budget) == (20 * CENT, 0, 0)


async def test_r7_parts_and_the_end_of_a_call_in_one_batch_are_settled_in_order(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=1)
    held = await one.hold(max_completion_tokens=50)
    parts = [one.event(completion_tokens=n, reservation_id=held, final=n == 30) for n in (10, 20, 30)]
    further = one.event(completion_tokens=7, reservation_id=held)

    await one.apply([*parts, further])

    assert await world.sums(budget) == (67 * CENT, 0, 0)
    assert (await world.reservation(held))["status"] == "settled"


async def test_a_call_that_cost_nothing_frees_its_reservation(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    held = await one.hold(max_completion_tokens=50)

    await two.track(completion_tokens=0, status="error", reservation_id=held)

    assert await world.sums(budget) == (0, 0, 0)


async def test_an_unpriced_actual_frees_the_cost_and_charges_the_tokens(world: World) -> None:
    one, two = world.agents
    cost, tokens = await world.budget(limit=1), await world.budget(unit="tokens", limit=1000)
    held = await one.hold(max_completion_tokens=50)

    await two.track(model="nobody-prices-this", completion_tokens=40, reservation_id=held)

    assert await world.sums(cost) == (0, 0, 0)
    assert await world.sums(tokens) == (40, 0, 0)
    assert [told["model"] for told in await world.told("usage.unpriced")] == ["nobody-prices-this"]


# R8 ---------------------------------------------------------------------------------------------------------------


async def test_r8_unreserved_usage_takes_free_room_and_is_overrun_where_it_finds_none(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    held = await one.hold(max_completion_tokens=60)

    await two.track(completion_tokens=30)
    assert await world.sums(budget) == (30 * CENT, 60 * CENT, 0)
    await two.track(completion_tokens=30)
    assert await world.sums(budget) == (60 * CENT, 60 * CENT, 20 * CENT)
    await one.deny(max_completion_tokens=1)
    await one.release(held)
    await one.hold(max_completion_tokens=40)


async def test_r8_unreserved_usage_is_charged_to_the_window_of_its_timestamp(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=1, period="daily", counting_since=START - timedelta(days=30))

    await one.track(completion_tokens=30, timestamp=START - timedelta(days=2))
    await one.track(completion_tokens=20)

    found = [(w["starts_at"].day, w["spent"]) for w in await world.windows(budget)]
    assert found == [(11, 30 * CENT), (13, 20 * CENT)]


async def test_r8_of_many_unreserved_events_in_one_batch_exactly_the_part_without_room_is_overrun(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=1)
    await one.hold(max_completion_tokens=33)

    await one.apply([one.event(completion_tokens=10) for _ in range(10)])

    assert await world.sums(budget) == (100 * CENT, 33 * CENT, 33 * CENT)
    assert [told["amount"] for told in await world.told("budget.overrun")] == ["0.33"]


# R9 ---------------------------------------------------------------------------------------------------------------


async def test_r9_a_dead_callers_reservation_frees_itself_after_the_margin(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    held = await one.hold(max_completion_tokens=100, ttl_s=60)
    expires_at = (await world.reservation(held))["expires_at"]

    await world.go_to(expires_at + timedelta(seconds=0.5))
    assert await two.sweep() == 0
    await world.go_to(expires_at + timedelta(seconds=2.5))
    assert await two.sweep() == 1
    assert await one.sweep() == 0
    assert await world.sums(budget) == (0, 0, 0)
    await one.hold(max_completion_tokens=100)


async def test_r9_nothing_expires_that_a_stored_but_unapplied_message_may_still_settle(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    held = await one.hold(max_completion_tokens=100, ttl_s=60)
    expires_at = (await world.reservation(held))["expires_at"]
    stored = two.event(completion_tokens=90, reservation_id=held)
    await world.wait(hours=1)

    for until in (START, expires_at, expires_at + timedelta(seconds=1)):
        assert await one.sweep(Applied(drained=False, until=until)) == 0
    await two.apply([stored])
    assert await one.sweep(Applied(drained=False, until=expires_at + timedelta(seconds=3))) == 0
    assert await world.sums(budget) == (90 * CENT, 0, 0)


async def test_r9_what_expired_before_the_oldest_unapplied_message_is_due(world: World) -> None:
    one, _ = world.agents
    await world.budget(limit=1)
    held = await one.hold(max_completion_tokens=100, ttl_s=60)
    expires_at = (await world.reservation(held))["expires_at"]
    await world.wait(hours=1)

    assert await one.sweep(Applied(drained=False, until=expires_at + timedelta(seconds=3))) == 1


async def test_r9_where_it_is_unknown_what_is_applied_nothing_expires(world: World) -> None:
    one, _ = world.agents
    await world.budget(limit=1)
    await one.hold(max_completion_tokens=100, ttl_s=60)
    await world.wait(hours=1)

    assert cutoff(world.now(), Applied(drained=False, until=None), skew=NO_SKEW) is None
    assert await one.sweep(Applied(drained=False, until=None)) == 0
    assert await one.sweep() == 1


async def test_r9_an_extended_reservation_does_not_expire_at_its_old_time(world: World) -> None:
    one, two = world.agents
    await world.budget(limit=1)
    held = await one.hold(max_completion_tokens=100, ttl_s=60)
    await two.extend(held, ttl_s=7200)

    await world.wait(hours=1)
    assert await one.sweep() == 0
    await world.wait(hours=2)
    assert await one.sweep() == 1


async def test_r9_more_than_one_batch_expires_in_one_sweep_and_two_sweepers_share_it(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=100)
    await asyncio.gather(*(one.submit(max_completion_tokens=1, ttl_s=1) for _ in range(1_200)))
    await world.wait(minutes=1)

    expired = await asyncio.gather(one.sweep(), two.sweep())

    assert sum(expired) == 1_200
    assert await world.sums(budget) == (0, 0, 0)


# Thresholds, exceeded ----------------------------------------------------------------------------------------------


async def test_thresholds_fire_once_per_window_also_with_two_agents_racing(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, alert_thresholds=(50, 75, 90, 100))
    events = [one.event(completion_tokens=1) for _ in range(120)]

    await asyncio.gather(*(agent.apply(events[n : n + 5]) for n in range(0, 120, 5) for agent in (one, two)))

    assert sorted(told["threshold"] for told in await world.told("budget.threshold")) == [50, 75, 90, 100]
    assert [told["cause"] for told in await world.told("budget.exceeded")] == ["spent"]
    assert (await world.sums(budget))[2] == 20 * CENT
    await world.verify()


async def test_thresholds_fire_again_in_the_next_window(world: World) -> None:
    one, two = world.agents
    await world.budget(limit=1, period="daily", alert_thresholds=(50,))
    for agent in (one, two):
        await agent.track(completion_tokens=49)
        await agent.track(completion_tokens=1)
        await agent.track(completion_tokens=1)
        await world.wait(days=1)

    told = await world.told("budget.threshold")
    assert [(t["threshold"], t["window"]["spent"]) for t in told] == [(50, "0.5")] * 2


async def test_several_thresholds_reached_by_one_event_fire_together(world: World) -> None:
    one, _ = world.agents
    await world.budget(limit=1, alert_thresholds=(90, 50, 75, 120))

    await one.track(completion_tokens=91)

    assert [told["threshold"] for told in await world.told("budget.threshold")] == [50, 75, 90]


async def test_exceeded_is_told_once_however_many_are_denied_by_how_many_agents(world: World) -> None:
    one, two = world.agents
    await world.budget(limit=1)
    await one.hold(max_completion_tokens=100)

    await asyncio.gather(*(agent.submit(max_completion_tokens=1) for agent in (one, two) for _ in range(20)))
    await one.track(completion_tokens=100)

    assert [told["cause"] for told in await world.told("budget.exceeded")] == ["denied"]


async def test_overrun_of_a_budget_that_warns_is_told_as_well(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=1, enforcement="warn")
    decision = await one.submit(max_completion_tokens=150)
    assert decision.approved
    assert any("exceeded" in warning for warning in decision.warnings)

    await one.track(completion_tokens=150)

    assert await world.sums(budget) == (150 * CENT, 150 * CENT, 50 * CENT)
    assert [told["amount"] for told in await world.told("budget.overrun")] == ["0.5"]


async def test_a_budget_that_begins_to_block_keeps_what_it_has_and_lets_nothing_more_in(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, enforcement="warn")
    held = await one.hold(max_completion_tokens=150)
    await world.change(budget, enforcement="block")

    await two.deny(max_completion_tokens=1)
    await two.track(completion_tokens=160, reservation_id=held)
    assert await world.sums(budget) == (160 * CENT, 0, 10 * CENT)
    await world.verify()
    await world.change(budget, enforcement="warn")
    await two.hold(max_completion_tokens=500)
    await world.verify()


async def test_sums_are_exact_to_the_nano_at_rates_that_need_rounding(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    events = [
        agent.event(model="odd", prompt_tokens=n * 7, cache_read_tokens=n, completion_tokens=n * 10)
        for n in range(1, 60)
        for agent in (one, two)
    ]
    await one.apply(events[::2])
    await two.apply(events[1::2])

    exact = [Decimal(n * 6 * 375 + n * 125 + n * 10 * 1501) / 10 for n in range(1, 60)]
    rounded = [int(cost.quantize(Decimal(1), ROUND_HALF_EVEN)) for cost in exact]
    assert any(cost % 1 == Decimal("0.5") for cost in exact)
    assert await world.sums(budget) == (2 * sum(rounded), 0, 0)


async def test_r9_what_was_stored_after_the_stream_was_asked_may_still_settle(world: World) -> None:
    one, _ = world.agents
    await world.budget(limit=1)
    held = await one.hold(max_completion_tokens=100, ttl_s=60)
    asked_at = (await world.reservation(held))["expires_at"] - timedelta(seconds=1)
    await world.wait(hours=1)

    # The agent stalled between asking the stream, which was drained then, and reading the clock: an hour of usage that
    # names this reservation may be stored and unapplied.
    assert await one.sweep(Applied(drained=True, until=None, asked_at=asked_at)) == 0
    assert await one.sweep(Applied(drained=True, until=None, asked_at=world.now())) == 1


async def test_p5_a_cost_budget_with_nothing_left_refuses_what_nobody_knows_the_price_of(world: World) -> None:
    one, _ = world.agents
    await world.budget(limit=1, name="full")
    unknown = {"model": "nobody-prices-this", "max_completion_tokens": 1}
    assert (await one.submit(**unknown)).approved

    await one.track(completion_tokens=100)
    denied = await one.deny(**unknown)

    assert denied.reason is not None
    assert denied.reason.code == "budget_exceeded"
