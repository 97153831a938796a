"""Decisions made from what an agent believes (one round trip) are as exact as those made after looking."""

import asyncio

import pytest

from handlers.enforcer.beliefs import PAUSE_FIRST, Beliefs
from handlers.enforcer.catalogue import Catalogue
from store import reservations
from tests.support.ledger import CENT, START, World


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each decision made from beliefs was written."""
    seen: list[bool] = []
    commit = reservations.commit_admission

    async def watched(*args: object, **kwargs: object) -> object:
        at = await commit(*args, **kwargs)  # type: ignore[arg-type]
        seen.append(at is not None)
        return at

    monkeypatch.setattr(reservations, "commit_admission", watched)
    return seen


async def test_a_lone_agent_decides_from_what_it_wrote_itself(world: World, written: list[bool]) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=1)
    held = [await one.hold(max_completion_tokens=10) for _ in range(5)]
    await one.track(completion_tokens=10, reservation_id=held[0])
    await one.release(held[1])
    await one.hold(max_completion_tokens=10)

    assert written == [True] * 6
    assert await world.sums(budget) == (10 * CENT, 40 * CENT, 0)


async def test_a_wrong_belief_never_lets_two_agents_spend_the_same_room(world: World, written: list[bool]) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    await one.hold(max_completion_tokens=10)
    await two.hold(max_completion_tokens=10)

    await one.hold(max_completion_tokens=70)
    denied = await two.deny(max_completion_tokens=20)

    assert denied.budgets[0].remaining == "0.1"
    assert False in written
    assert await world.sums(budget) == (0, 90 * CENT, 0)


async def test_a_changed_limit_or_budget_makes_every_belief_false(world: World, written: list[bool]) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=1)
    await one.hold(max_completion_tokens=10)
    await one.hold(max_completion_tokens=10)

    await world.change(budget, base_limit=25 * CENT)
    await one.deny(max_completion_tokens=10)

    assert written == [True, True, False]


async def test_a_belief_does_not_outlive_its_window(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=1, period="daily")
    await one.hold(max_completion_tokens=60)
    await one.hold(max_completion_tokens=30)
    await world.wait(days=1)

    await one.hold(max_completion_tokens=90)

    assert [w["reserved"] for w in await world.windows(budget)] == [90 * CENT, 90 * CENT]


async def test_a_repeated_request_is_told_from_a_new_one_also_by_belief(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    await one.hold(max_completion_tokens=1)
    first = await one.hold(max_completion_tokens=10, request_id="again")

    assert await one.hold(max_completion_tokens=10, request_id="again") == first
    assert await two.hold(max_completion_tokens=10, request_id="again") == first
    assert await world.sums(budget) == (0, 11 * CENT, 0)


async def test_batches_in_flight_together_stay_within_the_limit(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=5)
    answers = await asyncio.gather(*(one.submit(max_completion_tokens=1) for _ in range(900)))

    assert sum(answer.approved for answer in answers) == 500
    assert await world.sums(budget) == (0, 500 * CENT, 0)
    await world.verify()


def test_after_a_wrong_belief_the_next_batches_look_first() -> None:
    beliefs = Beliefs(10)
    beliefs.forget([1])

    assert [beliefs.premises([], Catalogue("default", 0, [], {}), {}, START) is None for _ in range(PAUSE_FIRST)] == [
        True
    ] * PAUSE_FIRST
