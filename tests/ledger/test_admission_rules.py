"""R1-R6: locks, the catalogue, the clock that decides, a budget's identity, repeated checks, changes of state."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from handlers.context import Limits
from handlers.enforcer.ledger import SUM_MAX
from schemas.budget import BudgetDecision
from schemas.errors import SignalError
from schemas.money import CALL_COST_NANOS_MAX, format_cost
from tests.support.ledger import CENT, START, USD, World, world_of
from tests.support.polling import eventually


async def _blocked(world: World) -> bool:
    sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(await world.fetch(sql))


# R1 ---------------------------------------------------------------------------------------------------------------


async def test_r1_agents_that_name_the_same_scopes_in_any_order_never_deadlock(world: World) -> None:
    for user in "abcdef":
        await world.budget(type="user", entity_id=user, limit=100)
    users = [*"abcdef"]
    one, two = world.agents

    waiting = [one.submit(user_id=u, max_completion_tokens=1) for u in users * 20]
    waiting += [two.submit(user_id=u, max_completion_tokens=1) for u in reversed(users * 20)]
    used = [one.event(user_id=u, completion_tokens=1) for u in users * 20]
    _, _, *decisions = await asyncio.gather(one.apply(used[::2]), two.apply(used[1::2][::-1]), *waiting)

    assert all(isinstance(d, BudgetDecision) and d.approved for d in decisions)
    await world.verify()


async def _deadlock(world: World, *, hold: list[int], then: list[int]) -> None:
    """Lock windows in an order that no agent uses, so that an agent that waits becomes the victim."""
    sql = "SELECT FROM budget_window WHERE window_id = ANY ($1::bigint[]) FOR UPDATE"
    async with world.connection() as connection, connection.transaction():
        await connection.execute("SET LOCAL deadlock_timeout = '10 s'")
        await connection.fetch(sql, hold)
        await eventually(lambda: _blocked(world), message="no agent waits for the lock")
        await connection.fetch(sql, then)


async def test_r1_a_batch_that_lost_a_deadlock_is_decided_again(world: World) -> None:
    one, two = world.agents
    first, second = await world.budget(limit=1), await world.budget(limit=1)
    await one.hold(max_completion_tokens=1)
    ids = sorted([(await world.windows(b))[0]["window_id"] for b in (first, second)])

    deadlock = asyncio.create_task(_deadlock(world, hold=ids[1:], then=ids[:1]))
    await eventually(lambda: _holds_a_window(world))
    decision, effect = await asyncio.gather(one.check(max_completion_tokens=2), two.track(completion_tokens=3))
    await deadlock

    assert isinstance(decision, BudgetDecision)
    assert decision.approved
    assert effect == "applied"
    assert await world.sums(first) == (3 * CENT, 3 * CENT, 0)
    await world.verify()


async def _holds_a_window(world: World) -> bool:
    sql = """SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
             WHERE c.relname = 'budget_window' AND l.mode = 'RowShareLock'"""
    return bool(await world.fetch(sql))


async def test_r1_usage_whose_windows_lost_a_deadlock_while_they_were_opened_is_applied_all_the_same(
    world: World,
) -> None:
    """Opening a window locks its predecessor, for what is carried over; that transaction can be the victim, too."""
    one, _ = world.agents
    budgets = [await world.budget(limit=1, period="daily", rollover_policy="full") for _ in range(2)]
    budgets.sort(key=lambda b: b.budget_id)
    await one.hold(max_completion_tokens=1)
    first, second = [(await world.windows(b))[0]["window_id"] for b in budgets]
    await world.wait(days=1)

    deadlock = asyncio.create_task(_deadlock(world, hold=[second], then=[first]))
    await eventually(lambda: _holds_a_window(world))
    effect = await one.track(completion_tokens=3)
    await deadlock

    assert effect == "applied"
    assert await world.fetch("SELECT * FROM dead_letter WHERE org_id = $1", world.org) == []
    await world.verify()


# R2 ---------------------------------------------------------------------------------------------------------------


async def test_r2_a_changed_limit_binds_the_very_next_decision_of_another_agent(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    await one.hold(max_completion_tokens=10)
    await two.hold(max_completion_tokens=10)

    await world.change(budget, base_limit=20 * CENT)
    denied = await two.deny(max_completion_tokens=1)
    assert denied.budgets[0].limit == "0.2"
    await world.change(budget, base_limit=21 * CENT)
    await one.hold(max_completion_tokens=1)


async def test_r2_a_new_budget_binds_the_very_next_decision_and_the_very_next_charge(world: World) -> None:
    one, two = world.agents
    await one.hold(max_completion_tokens=10)
    await two.track(completion_tokens=10)

    budget = await world.budget(limit="0.05")
    denied = await one.deny(max_completion_tokens=6)
    assert denied.reason is not None
    assert denied.reason.budget_id == budget.budget_id
    await two.track(completion_tokens=2)
    assert await world.sums(budget) == (2 * CENT, 0, 0)
    await world.verify()


# R3 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [timedelta(hours=1), timedelta(hours=-1)], ids=["fast", "slow"])
async def test_r3_postgresql_says_which_window_it_is_however_wrong_the_agents_clock(
    world: World, skew: timedelta
) -> None:
    budget = await world.budget(limit=1, period="hourly")
    skewed = await world.agent(skew=skew)

    reservation = await world.reservation(await skewed.hold(max_completion_tokens=1, ttl_s=60))

    windows = await world.windows(budget)
    assert [w["starts_at"] for w in windows if w["reserved"]] == [START]
    assert START <= reservation["decided_at"] < START + timedelta(minutes=1)
    assert reservation["expires_at"] - reservation["decided_at"] == timedelta(seconds=60)


async def test_r3_an_agent_whose_clock_is_fast_does_not_open_tomorrow(world: World) -> None:
    """A window opened early would carry over what is still going to be spent today."""
    budget = await world.budget(limit=1, period="daily", rollover_policy="full")
    skewed = await world.agent(skew=timedelta(days=1))

    await skewed.hold(max_completion_tokens=1)
    assert [w["starts_at"] for w in await world.windows(budget)] == [datetime(2030, 3, 13, tzinfo=UTC)]

    await skewed.hold(max_completion_tokens=98)
    await world.wait(days=1)
    await skewed.hold(max_completion_tokens=1)
    assert [w["carry"] for w in await world.windows(budget)] == [0, CENT]


async def test_r3_at_midnight_the_next_decision_falls_into_the_new_window_on_every_agent(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, period="daily")
    await one.hold(max_completion_tokens=100)
    await two.deny(max_completion_tokens=1)

    await world.go_to(datetime(2030, 3, 13, 23, 59, 30, tzinfo=UTC))
    denied = await two.deny(max_completion_tokens=1)
    assert denied.retry_after_s is not None
    assert 0 < denied.retry_after_s <= 30

    await world.go_to(datetime(2030, 3, 14, tzinfo=UTC))
    await two.hold(max_completion_tokens=100)
    await one.deny(max_completion_tokens=1)
    assert [w["reserved"] for w in await world.windows(budget)] == [USD, USD]


async def test_r3_the_limit_is_base_and_overage_at_decision_time(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, overage_percent=10)

    await one.hold(max_completion_tokens=110)
    denied = await two.deny(max_completion_tokens=1)
    assert (denied.budgets[0].base_limit, denied.budgets[0].limit) == ("1", "1.1")
    await world.change(budget, overage_percent=20)
    await two.hold(max_completion_tokens=10)
    assert (await world.windows(budget))[0]["high_limit"] == 120 * CENT


async def test_r3_a_lowered_limit_keeps_what_is_held_and_lets_nothing_more_in(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    reservation = await one.hold(max_completion_tokens=90)

    await world.change(budget, base_limit=50 * CENT)
    await two.deny(max_completion_tokens=1)
    await two.track(completion_tokens=80, reservation_id=reservation)

    assert await world.sums(budget) == (80 * CENT, 0, 0)
    await world.verify()


# R4 ---------------------------------------------------------------------------------------------------------------


async def test_r4_a_new_budget_counts_from_its_creation(world: World) -> None:
    one, two = world.agents
    await world.budget(limit=10)
    early = await one.hold(max_completion_tokens=10)
    budget = await world.budget(limit=1)

    await two.track(completion_tokens=10, reservation_id=early)
    await two.track(completion_tokens=20, timestamp=START - timedelta(minutes=1))
    assert await world.windows(budget) == []
    await two.track(completion_tokens=30)
    assert await world.sums(budget) == (30 * CENT, 0, 0)
    await world.verify()


@pytest.mark.parametrize("settling", [0, 1], ids=["same agent", "other agent"])
async def test_r4_a_deactivated_budget_settles_its_live_reservations_and_counts_nothing_new(
    world: World, settling: int
) -> None:
    one = world.agents[0]
    budget = await world.budget(limit=1)
    used, freed = await one.hold(max_completion_tokens=40), await one.hold(max_completion_tokens=50)
    other = world.agents[settling]

    await world.change(budget, active=False)
    await other.hold(max_completion_tokens=900)
    await other.track(completion_tokens=30, reservation_id=used)
    await other.track(completion_tokens=70)
    await other.release(freed)

    assert await world.sums(budget) == (30 * CENT, 0, 0)


@pytest.mark.parametrize(
    "field", ["type", "entity_id", "filters", "unit", "currency", "period", "timezone", "counting_since"]
)
async def test_r4_the_identity_of_a_budget_is_no_field_of_an_update(field: str) -> None:
    from schemas.budget import UpdateBudget

    assert field not in UpdateBudget.__struct_fields__


# R5 ---------------------------------------------------------------------------------------------------------------


async def test_r5_a_live_request_id_gets_the_same_answer_on_any_agent(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)

    first = await one.submit(request_id="r", max_completion_tokens=60)
    again = [await agent.submit(request_id="r", max_completion_tokens=60) for agent in (one, two)]

    assert [(a.approved, a.reservation_id, a.expires_at) for a in again] == [
        (True, first.reservation_id, first.expires_at)
    ] * 2
    assert await world.sums(budget) == (0, 60 * CENT, 0)


async def test_r5_a_live_answer_stands_also_where_the_call_would_no_longer_fit(world: World) -> None:
    one, two = world.agents
    await world.budget(limit=1)
    held = await one.hold(request_id="r", max_completion_tokens=60)
    await one.hold(max_completion_tokens=40)

    assert await two.hold(request_id="r", max_completion_tokens=60) == held


@pytest.mark.parametrize("fields", [{"max_completion_tokens": 61}, {"reserve": False}, {"max_completion_tokens": 1000}])
async def test_r5_another_body_under_a_live_request_id_is_a_conflict(world: World, fields: dict[str, object]) -> None:
    one, two = world.agents
    await world.budget(limit=5)
    await one.hold(request_id="r", max_completion_tokens=60)

    answer = await two.check(**{"request_id": "r", "max_completion_tokens": 60, **fields})

    assert isinstance(answer, SignalError)
    assert (answer.code, answer.field) == ("conflict", "request_id")


async def test_r5_the_same_body_in_another_order_of_keys_is_the_same_body(world: World) -> None:
    one, two = world.agents
    held = await one.hold(request_id="r", max_completion_tokens=60, tags={"a": "1", "b": "2"})

    assert await two.hold(tags={"b": "2", "a": "1"}, max_completion_tokens=60, request_id="r") == held


async def test_r5_a_denied_request_id_is_decided_anew(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit="0.5")
    await one.deny(request_id="r", max_completion_tokens=60)
    await world.change(budget, base_limit=USD)

    await two.hold(request_id="r", max_completion_tokens=70)


@pytest.mark.parametrize("end", ["released", "expired"])
async def test_r5_a_released_or_expired_request_id_is_decided_anew(world: World, end: str) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    first = await one.hold(request_id="r", max_completion_tokens=60, ttl_s=1)
    if end == "released":
        await one.release(first)
    else:
        await world.wait(minutes=1)
        assert await one.sweep() == 1

    second = await two.hold(request_id="r", max_completion_tokens=70)

    assert second != first
    assert (await world.reservation(first))["status"] == end
    assert await world.sums(budget) == (0, 70 * CENT, 0)
    await one.track(completion_tokens=50, request_id="r")
    assert (await world.reservation(second))["status"] == "settled"
    assert await world.sums(budget) == (50 * CENT, 0, 0)


async def test_r5_a_settled_request_id_is_a_conflict(world: World) -> None:
    one, two = world.agents
    await world.budget(limit=1)
    await one.hold(request_id="r", max_completion_tokens=60)
    await one.track(completion_tokens=50, request_id="r")

    for fields in ({"max_completion_tokens": 60}, {"max_completion_tokens": 600}):
        answer = await two.check(request_id="r", **fields)
        assert isinstance(answer, SignalError)
        assert answer.code == "conflict"


async def test_r5_the_same_request_id_on_two_agents_at_once_gets_one_reservation(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=100)
    for number in range(20):
        fields = {"request_id": f"r{number}", "max_completion_tokens": 5}
        answers = await asyncio.gather(*(agent.submit(**fields) for agent in (one, two, one, two)))
        assert len({a.reservation_id for a in answers}) == 1
    assert await world.sums(budget) == (0, 20 * 5 * CENT, 0)


async def test_r5_request_ids_belong_to_their_org(world: World) -> None:
    held = await world.agents[0].hold(request_id="r", max_completion_tokens=1)
    async with world_of(world.url, org="other") as other:
        assert await other.agents[0].hold(request_id="r", max_completion_tokens=2) != held


# R6 ---------------------------------------------------------------------------------------------------------------


async def test_r6_of_settle_release_and_expire_at_once_exactly_one_happens(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=100)
    outcomes: set[str] = set()
    for _ in range(10):
        held = await one.hold(max_completion_tokens=10, ttl_s=1)
        await world.wait(minutes=1)
        await asyncio.gather(
            one.release(held), two.track(completion_tokens=10, reservation_id=held), two.sweep(), one.release(held)
        )
        outcomes.add((await world.reservation(held))["status"])
        await world.verify()
    spent, reserved, overrun = await world.sums(budget)
    assert (spent, reserved, overrun) == (10 * 10 * CENT, 0, 0)
    assert outcomes <= {"settled", "released", "expired"}


async def test_r6_releasing_again_says_what_the_reservation_is(world: World) -> None:
    one, two = world.agents
    await world.budget(limit=1)
    released, settled = await one.hold(max_completion_tokens=10), await one.hold(max_completion_tokens=10)
    await one.track(completion_tokens=1, reservation_id=settled)

    for agent in (one, two):
        assert (await agent.release(released)).status == "released"
        assert (await agent.release(settled)).status == "settled"
    with pytest.raises(SignalError) as error:
        await one.extend(released)
    assert error.value.code == "conflict"


async def test_an_extension_is_decided_like_a_check_all_or_nothing(world: World) -> None:
    one, two = world.agents
    wide, narrow = await world.budget(limit=1), await world.budget(type="user", limit="0.5")
    held = await one.hold(user_id="u", max_completion_tokens=40)
    before = (await world.reservation(held))["expires_at"]

    refused = await two.extend(held, prompt_tokens=0, max_completion_tokens=51)
    assert not refused.approved
    assert refused.reason is not None
    assert refused.reason.budget_id == narrow.budget_id
    assert [await world.sums(b) for b in (wide, narrow)] == [(0, 40 * CENT, 0)] * 2
    assert (await world.reservation(held))["expires_at"] == before

    assert (await two.extend(held, ttl_s=3600, prompt_tokens=0, max_completion_tokens=50)).approved
    assert [await world.sums(b) for b in (wide, narrow)] == [(0, 50 * CENT, 0)] * 2
    assert (await world.reservation(held))["expires_at"] > before
    await one.track(user_id="u", completion_tokens=20, reservation_id=held)
    assert [await world.sums(b) for b in (wide, narrow)] == [(20 * CENT, 0, 0)] * 2


# Several budgets, bounds, outages -----------------------------------------------------------------------------------


async def test_several_budgets_hold_all_or_nothing_and_every_denying_one_is_named(world: World) -> None:
    one, _ = world.agents
    day = await world.budget(limit="0.5", period="daily")
    month = await world.budget(type="team", entity_id="t", limit="0.6")
    room = await world.budget(type="user", limit=1)

    denied = await one.deny(team_id="t", user_id="u", max_completion_tokens=70)

    assert denied.reason is not None
    assert denied.reason.budget_id == month.budget_id
    assert set(denied.reason.budgets) == {day.budget_id, month.budget_id}
    assert [await world.sums(b) for b in (day, month, room)] == [(0, 0, 0)] * 3
    fits = denied.alternatives[0]
    assert (fits.max_completion_tokens, fits.estimated_cost) == (50, "0.5")
    await one.hold(team_id="t", user_id="u", max_completion_tokens=fits.max_completion_tokens)


@pytest.mark.parametrize(("unit", "limit", "most"), [("tokens", 100, 10), ("requests", 10, 10), ("cost", 1, 10)])
async def test_each_unit_admits_exactly_what_fits(world: World, unit: str, limit: int, most: int) -> None:
    one, two = world.agents
    budget = await world.budget(unit=unit, limit=limit)
    decisions = await asyncio.gather(
        *(agent.submit(max_completion_tokens=10) for agent in (one, two) for _ in range(most))
    )

    assert sum(d.approved for d in decisions) == most
    for decision in decisions:
        if decision.reservation_id is not None:
            await two.track(completion_tokens=10, reservation_id=decision.reservation_id)
    assert (await world.sums(budget))[0] == {"tokens": 100, "requests": 10, "cost": USD}[unit]


async def test_a_budget_that_warns_refuses_only_what_no_bigint_could_count(world: World) -> None:
    """What one caller piled up must not fail the batches of others."""
    one, two = world.agents
    budget = await world.budget(limit=1, enforcement="warn")
    await one.hold(max_completion_tokens=200)
    sql = "UPDATE budget_window SET spent = $3, backfilled = $3 WHERE org_id = $1 AND budget_id = $2"
    await world.fetch(sql, world.org, budget.budget_id, SUM_MAX - CALL_COST_NANOS_MAX - 4 * USD)

    huge = format_cost(CALL_COST_NANOS_MAX)
    answers = await asyncio.gather(*(one.submit(estimated_cost=huge) for _ in range(9)), two.submit(estimated_cost="1"))

    assert sum(a.approved for a in answers[:9]) == 1
    assert answers[9].approved


async def test_the_largest_limit_carried_over_for_years_still_decides(world: World) -> None:
    one, _ = world.agents
    limits = {"limit": 1_000_000_000, "rollover_policy": "full", "period": "daily"}
    await world.budget(**limits, counting_since=START - timedelta(days=4000))

    await one.hold(max_completion_tokens=10)


async def test_more_scopes_than_an_agent_remembers_are_decided_and_charged_all_the_same(world: World) -> None:
    budget = await world.budget(type="user", limit=1)
    small = await world.agent(limits=Limits(window_cache_max=3, match_cache_max=100))
    users = [f"u{n}" for n in range(8)]
    for _ in range(3):
        for user in users:
            held = await small.hold(user_id=user, max_completion_tokens=2)
            await small.track(user_id=user, completion_tokens=1, reservation_id=held)
    await small.deny(user_id="u0", max_completion_tokens=98)

    assert {w["spent"] for w in await world.windows(budget)} == {3 * CENT}
    assert len(await world.told("budget.exceeded")) == 1
    await world.verify()


async def test_a_check_that_cannot_reach_postgresql_is_unavailable_and_never_approved(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    await two.hold(max_completion_tokens=1)
    await one.close()

    answer = await one.check(max_completion_tokens=1)

    assert isinstance(answer, SignalError)
    assert answer.code == "unavailable"
    await one.restart()
    await one.hold(max_completion_tokens=1)
    assert await world.sums(budget) == (0, 2 * CENT, 0)


async def test_the_database_itself_refuses_to_go_over(world: World) -> None:
    await world.budget(limit=1)
    await world.agents[0].hold(max_completion_tokens=100)
    with pytest.raises(asyncpg.CheckViolationError, match="never_over"):
        await world.fetch("UPDATE budget_window SET reserved = reserved + 1 WHERE org_id = $1", world.org)
