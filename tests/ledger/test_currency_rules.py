"""R18: budgets, prices and costs in any currency; each window converts at the rates it froze. The oracle works every
charge out anew (tests/ledger/conversions.py) when a test ends.
"""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.enforcer.budgets import create_budget
from handlers.enforcer.sizing import refresh
from schemas.budget import Budget, BudgetDecision, CreateBudget
from schemas.errors import SignalError
from tests.ledger import conversions
from tests.support.ledger import CENT, LedgerAgent, World, examples, world_of

EURO = 1_000_000_000
_numbers = itertools.count()


async def create(agent: LedgerAgent, **fields: object) -> Budget:
    request = {"name": f"money{next(_numbers)}", "type": "global", **fields}
    return await create_budget(agent.context, msgspec.convert(request, CreateBudget))


def offers(decision: BudgetDecision) -> list[tuple[int, str, str]]:
    return [(a.max_completion_tokens, a.estimated_cost, a.currency) for a in decision.alternatives]


async def sums(world: World, budget: Budget) -> tuple[int, int, int]:
    sql = "SELECT spent, reserved, overrun FROM budget_window WHERE org_id = $1 AND budget_id = $2 ORDER BY starts_at"
    row = (await world.fetch(sql, world.org, budget.budget_id))[-1]
    return row["spent"], row["reserved"], row["overrun"]


async def event(world: World, usage_id: str) -> Any:
    return (await world.fetch("SELECT * FROM usage_event WHERE org_id = $1 AND id = $2", world.org, usage_id))[0]


async def test_r18_a_call_in_dollars_is_charged_to_a_budget_in_euros_at_the_frozen_rate(world: World) -> None:
    one, two = world.agents
    await one.rates("EUR/USD", "1.25")
    budget = await create(one, limit="10", currency="EUR")
    held = await one.submit(max_completion_tokens=100)
    assert held.approved and (held.estimated_cost, held.currency) == ("1", "USD")
    assert (held.budgets[0].currency, held.budgets[0].reserved) == ("EUR", "0.8")
    await two.track(completion_tokens=50, reservation_id=held.reservation_id)
    assert await sums(world, budget) == (EURO * 4 // 10, 0, 0)
    listed = await two.submit(max_completion_tokens=100, reserve=False)
    assert listed.budgets[0].spent == "0.4"


async def test_r18_a_contract_in_euros_and_a_budget_in_euros_need_no_rate(world: World) -> None:
    one, two = world.agents
    budget = await create(one, limit="1", currency="EUR")
    held = await one.submit(model="eurocent", max_completion_tokens=60)
    assert (held.estimated_cost, held.currency, held.warnings) == ("0.6", "EUR", [])
    await two.track(model="eurocent", completion_tokens=60, reservation_id=held.reservation_id, id="u")
    assert await sums(world, budget) == (60 * CENT, 0, 0)
    stored = await event(world, "u")
    assert (stored["currency"], stored["cost"], stored["flags"]) == ("EUR", 60 * CENT, [])
    denied = await one.deny(model="eurocent", max_completion_tokens=41)
    assert denied.reason is not None and "needs 0.41" in denied.reason.message
    assert [(a.max_completion_tokens, a.estimated_cost, a.currency) for a in denied.alternatives] == [
        (40, "0.4", "EUR")
    ]


async def test_r18_what_changes_in_the_middle_of_a_window_holds_from_the_next_one(world: World) -> None:
    one, two = world.agents
    await one.rates("EUR/USD", "1.25")
    budget = await create(one, limit="8", currency="EUR", period="monthly")
    await one.track(completion_tokens=500)
    assert await sums(world, budget) == (4 * EURO, 0, 0)
    await two.rates("EUR/USD", "2.5")
    status = await one.submit(max_completion_tokens=500, reserve=False)
    assert (status.budgets[0].spent, status.budgets[0].limit, status.approved) == ("4", "8", True)
    held = await two.hold(max_completion_tokens=500)
    assert await sums(world, budget) == (4 * EURO, 4 * EURO, 0)  # At the old rate.
    await one.release(held)
    await world.go_to(datetime(2030, 4, 2, tzinfo=UTC))
    await two.track(completion_tokens=500)
    assert await sums(world, budget) == (2 * EURO, 0, 0)


async def test_r18_a_rate_that_is_missing_lets_a_flagged_call_through_and_charges_nothing(world: World) -> None:
    one, two = world.agents
    vietnam = await create(one, limit="1000000", currency="VND")
    dollars = await create(one, limit="1")
    found = await one.submit(max_completion_tokens=50)
    assert found.approved
    assert found.warnings == [f"no_exchange_rate: USD/VND: budget '{vietnam.name}' could not be applied"]
    await two.track(completion_tokens=50, reservation_id=found.reservation_id, id="u")
    assert await sums(world, vietnam) == (0, 0, 0)
    assert await sums(world, dollars) == (50 * CENT, 0, 0)
    assert (await event(world, "u"))["flags"] == ["no_exchange_rate:USD/VND"]
    # The first rate that anybody states holds for the window that lacked it.
    await two.rates("USD/VND", "25000")
    await two.track(completion_tokens=10)
    assert await sums(world, vietnam) == (2_500 * EURO, 0, 0)
    await one.rates("USD/VND", "30000")
    await one.track(completion_tokens=10)
    assert await sums(world, vietnam) == (5_000 * EURO, 0, 0)


async def test_r18_repricing_charges_what_had_no_rate(world: World) -> None:
    one, two = world.agents
    vietnam = await create(one, limit="1000000", currency="VND")
    await one.track(completion_tokens=50, id="u")
    assert await sums(world, vietnam) == (0, 0, 0)
    await two.rates("USD/VND", "25000")
    await one.reprice()
    assert await sums(world, vietnam) == (12_500 * EURO, 0, 0)


async def test_r18_a_rate_that_is_missing_is_a_denial_where_unpriced_calls_are_refused(world: World) -> None:
    one, _ = world.agents
    await world.put_setting("on_unpriced", "reject")
    budget = await create(one, limit="1000000", currency="VND")
    watched = await create(one, limit="1000000", currency="NGN", enforcement="warn")
    denied = await one.deny(max_completion_tokens=50)
    assert denied.reason is not None
    assert (denied.reason.code, denied.reason.budget_id) == ("no_exchange_rate", budget.budget_id)
    assert denied.reason.message == f"there is no exchange rate USD/VND, so budget '{budget.name}' cannot be applied"
    await one.rates("USD/VND", "25000")
    # A budget that only warns refuses nothing, also for want of a rate.
    approved = await one.submit(max_completion_tokens=50)
    assert approved.approved
    assert approved.warnings == [f"no_exchange_rate: USD/NGN: budget '{watched.name}' could not be applied"]


async def test_r18_a_budget_that_has_nothing_left_refuses_what_nobody_can_convert(world: World) -> None:
    one, _ = world.agents
    budget = await create(one, limit="1", currency="EUR")
    await one.track(model="eurocent", completion_tokens=100)
    denied = await one.deny(max_completion_tokens=1)
    assert denied.reason is not None and (denied.reason.code, denied.reason.budget_id) == (
        "budget_exceeded",
        budget.budget_id,
    )


async def test_r18_an_estimate_in_any_currency(world: World) -> None:
    one, two = world.agents
    await one.rates("EUR/JPY", "160")
    await one.rates("EUR/KWD", "0.32")
    budget = await create(one, limit="2", currency="KWD")
    held = await one.submit(estimated_cost="500", currency="JPY")
    assert held.approved and (held.estimated_cost, held.currency) == ("500", "JPY")
    assert await sums(world, budget) == (0, EURO, 0)
    extended = await two.extend(str(held.reservation_id), estimated_cost="750")
    assert (extended.approved, extended.estimated_cost, extended.currency) == (True, "750", "JPY")
    assert await sums(world, budget) == (0, EURO * 3 // 2, 0)
    dear = await one.extend(str(held.reservation_id), estimated_cost="7", currency="EUR")
    assert not dear.approved
    await two.track(reported_cost="600", currency="JPY", reservation_id=held.reservation_id)
    assert (await sums(world, budget))[1] == 0


async def test_r18_parts_of_a_call_are_taken_from_what_is_held(world: World) -> None:
    one, two = world.agents
    await one.rates("EUR/USD", "1.5")  # A third has no end in decimals.
    budget = await create(one, limit="10", currency="EUR")
    held = await one.hold(max_completion_tokens=100)
    assert await sums(world, budget) == (0, 666_666_667, 0)
    for tokens in (33, 33):
        await two.track(completion_tokens=tokens, reservation_id=held, final=False)
    assert await sums(world, budget) == (440_000_000, 226_666_667, 0)
    await one.track(completion_tokens=34, reservation_id=held)
    assert await sums(world, budget) == (666_666_667, 0, 0)


async def test_r18_what_nobody_reports_is_presumed_in_the_windows_currency(world: World) -> None:
    one, two = world.agents
    await one.rates("EUR/USD", "1.25")
    budget = await create(one, limit="10", currency="EUR", on_expiry="settle")
    held = await one.hold(max_completion_tokens=100, ttl_s=1)
    await world.wait(minutes=5)
    await two.sweep()
    assert await sums(world, budget) == (EURO * 8 // 10, 0, 0)
    await one.track(completion_tokens=50, reservation_id=held)
    assert await sums(world, budget) == (EURO * 4 // 10, 0, 0)


async def test_r18_learned_reservations_are_of_the_windows_currency(world: World) -> None:
    one, two = world.agents
    await world.put_setting("sizing", {"default": "learned", "samples_min": 5, "percentile": 50})
    await one.rates("EUR/USD", "1.25")
    budget = await create(one, limit="100", currency="EUR")
    for _ in range(6):
        held = await one.hold(max_completion_tokens=100)
        await two.track(completion_tokens=10, reservation_id=held)
    await refresh(one.services)
    before = await sums(world, budget)
    found = await one.submit(max_completion_tokens=100)
    taken = (await sums(world, budget))[1] - before[1]
    assert 80_000_000 <= taken < 200_000_000  # A tenth of 0.8 EUR, to the edge of its bucket.
    assert found.warnings == [f"learned: reserved {taken / EURO:g} of at most 0.8"]


async def test_r18_a_backfilled_budget_counts_every_currency(world: World) -> None:
    one, two = world.agents
    await one.track(completion_tokens=100)
    await one.track(model="eurocent", completion_tokens=100)
    with pytest.raises(SignalError) as error:
        await create(two, limit="10", currency="GBP", backfill=True)
    assert (error.value.code, error.value.field) == ("conflict", "backfill")
    assert "EUR/GBP, USD/GBP" in error.value.message
    await two.rates("EUR/USD", "1.25")
    budget = await create(two, limit="10", currency="EUR", backfill=True)
    assert await sums(world, budget) == (EURO * 18 // 10, 0, 0)
    await one.track(completion_tokens=100)
    assert await sums(world, budget) == (EURO * 26 // 10, 0, 0)


async def test_r18_a_charge_that_no_budget_can_count_is_a_dead_letter_that_says_so(world: World) -> None:
    one, _ = world.agents
    await one.rates("USD/VND", "25000")
    budget = await create(one, limit="1000000000", currency="VND", enforcement="warn")
    # A window that only warns refuses what its sums could not hold: 25 billion dong, not 2.5 billion.
    assert not (await one.submit(estimated_cost="1000000", reserve=False)).approved
    assert (await one.submit(estimated_cost="100000", reserve=False)).approved
    with pytest.raises(SignalError) as error:
        await create(one, limit="25000000000", currency="VND")
    assert (error.value.field, error.value.message) == ("limit", "is larger than any amount this service keeps")
    assert await one.track(completion_tokens=5_000_000, id="dear") == "dead"
    (letter,) = await world.fetch("SELECT reason, message FROM dead_letter WHERE org_id = $1", world.org)
    assert letter["reason"] == "invalid_request"
    assert letter["message"] == "a cost of 50000 USD is 1250000000 VND, more than any budget counts"
    assert (await sums(world, budget))[0] == 0


async def test_r18_a_rate_in_another_currency_behind_a_gate(world: World) -> None:
    one, _ = world.agents
    await one.rates("EUR/USD", "1.25")
    rate = {"limit": "0.5", "unit": "cost", "period": "hourly", "currency": "USD"}
    made = await create(one, limit="1", currency="EUR", enforcement="throttle", rate=rate)
    assert made.rate is not None and (made.rate.currency, made.currency) == ("USD", "EUR")
    await one.track(completion_tokens=125)
    assert (await one.submit(max_completion_tokens=1, reserve=False)).approved is False
    await world.wait(hours=1)
    assert (await one.submit(max_completion_tokens=50, reserve=False)).approved
    assert (await one.submit(max_completion_tokens=51, reserve=False)).approved is False


@pytest.mark.parametrize("agents", [1, 2])
async def test_p1_holds_in_euros_under_concurrency(world: World, agents: int) -> None:
    used = world.agents[:agents]
    await used[0].rates("EUR/USD", "1.37")
    budget = await create(used[0], limit="1", currency="EUR")
    calls = [
        agent.check(model="odd", prompt_tokens=900_000 + i, max_completion_tokens=3)
        for i in range(90)
        for agent in used
    ]
    answers = await asyncio.gather(*calls)
    approved = [answer for answer in answers if not isinstance(answer, SignalError) and answer.approved]
    assert 0 < len(approved) < len(answers)
    await asyncio.gather(
        *(
            used[i % agents].track(
                model="odd", prompt_tokens=900_000, completion_tokens=3, reservation_id=answer.reservation_id
            )
            for i, answer in enumerate(approved)
        )
    )
    spent, reserved, overrun = await sums(world, budget)
    assert (reserved, overrun) == (0, 0)
    assert 0 < spent <= EURO


@given(
    rate=st.decimals("0.0001", "99999", places=4),
    calls=st.lists(st.tuples(st.integers(1, 50_000), st.integers(1, 50_000)), min_size=1, max_size=4),
)
@examples(6)
async def test_r18_held_and_charged_are_exact_at_any_rate(
    shared_database_url: str, rate: Any, calls: list[tuple[int, int]]
) -> None:
    async with world_of(shared_database_url, agents=2, org=f"fx-{next(_numbers)}") as world:
        one, two = world.agents
        await one.rates("USD/VND", f"{rate:f}")
        budget = await create(one, limit="1000000", currency="VND", enforcement="warn")
        for worst, used in calls:
            held = await one.hold(model="odd", prompt_tokens=worst, max_completion_tokens=0)
            await two.track(model="odd", prompt_tokens=min(worst, used), reservation_id=held)
        assert (await sums(world, budget))[1:] == (0, 0)
        await world.verify(complete=False)
        await world.fetch("DELETE FROM reservation WHERE org_id = $1", world.org)


async def test_r18_an_agent_that_has_not_read_the_newest_rates_reads_them_first(own_world: World) -> None:
    """The rates of every org change without its catalogue: the window that froze them tells."""
    one, two = own_world.agents
    sql = "INSERT INTO exchange_rate VALUES ('', $1, 'EUR', 'USD', '2030-03-12', $2, 'seed', ledger_clock())"
    await own_world.fetch(sql, 1, 1.25)
    budget = await create(one, limit="10", currency="EUR", period="daily")
    await two.track(completion_tokens=100)
    assert await sums(own_world, budget) == (EURO * 8 // 10, 0, 0)
    await own_world.fetch(sql, 2, 2)
    await own_world.wait(days=1)
    await one.restart()
    await one.track(completion_tokens=100)
    assert await sums(own_world, budget) == (EURO // 2, 0, 0)
    held = await two.hold(max_completion_tokens=100)
    assert await sums(own_world, budget) == (EURO // 2, EURO // 2, 0)
    await two.track(completion_tokens=100, reservation_id=held)
    assert await sums(own_world, budget) == (EURO, 0, 0)


async def test_r18_an_exhausted_euro_budget_says_when_it_resets_in_euros(world: World) -> None:
    one, _ = world.agents
    await one.rates("EUR/USD", "1.25")
    await create(one, limit="0.8", currency="EUR", period="daily")
    await one.track(completion_tokens=60)
    denied = await one.deny(max_completion_tokens=41)
    assert denied.reason is not None
    assert "0.32 EUR free of 0.8: 0.48 spent, 0 reserved; this call needs 0.328" in denied.reason.message
    assert [(a.max_completion_tokens, a.estimated_cost, a.currency) for a in denied.alternatives] == [
        (40, "0.4", "USD")
    ]
    assert timedelta(0) < timedelta(seconds=denied.retry_after_s or 0) <= timedelta(hours=12)


@pytest.mark.parametrize("nanos", [-1, 1])
async def test_the_oracle_sees_a_charge_that_is_a_nano_off(world: World, nanos: int) -> None:
    one, _ = world.agents
    await one.rates("EUR/USD", "1.37")
    await create(one, limit="10", currency="EUR")
    await one.track(model="odd", prompt_tokens=123_457, id="u")
    async with world.connection() as connection:
        assert not await conversions.violations(connection, world.org)
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("ALTER TABLE usage_event DISABLE TRIGGER ALL")
        await connection.execute(
            "UPDATE usage_event SET charge_amounts = ARRAY[charge_amounts[1] + $2] WHERE org_id = $1", world.org, nanos
        )
        assert len(await conversions.violations(connection, world.org)) == 1
        await transaction.rollback()


async def test_r18_windows_older_than_exchange_rates_take_the_first_there_are(world: World) -> None:
    one, two = world.agents
    budget = await create(one, limit="10")
    await one.track(completion_tokens=100)
    # As the release before left it.
    await world.execute(f"UPDATE budget_window SET fx_revision = NULL WHERE org_id = '{world.org}'")
    for agent in (one, two):
        await agent.restart()
    await one.rates("EUR/USD", "1.25")
    await two.rates("EUR/USD", "2")
    await one.track(model="eurocent", completion_tokens=100)
    assert await sums(world, budget) == (EURO * 225 // 100, 0, 0)


async def test_r18_a_reported_cost_keeps_its_currency_whoever_is_believed(world: World) -> None:
    one, two = world.agents
    await one.rates("EUR/USD", "1.25")
    budget = await create(one, limit="10", currency="EUR")
    await one.track(completion_tokens=100, reported_cost="3", currency="EUR", id="u")
    stored = await event(world, "u")
    assert (stored["cost"], stored["currency"]) == (EURO, "USD")  # At the price: nobody believes acme.
    assert (stored["reported_cost"], stored["reported_currency"]) == (3 * EURO, "EUR")
    await world.put_setting("reported_cost", "always")
    await two.reprice(only="all")
    assert await sums(world, budget) == (3 * EURO, 0, 0)
