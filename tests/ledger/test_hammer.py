"""Four agents with many calls outstanding on the same four scopes, and somebody who looks all the while."""

import asyncio
import random
from dataclasses import dataclass, field

from schemas.errors import SignalError
from tests.ledger.oracle import violations
from tests.support.ledger import CENT, LedgerAgent, World, world_of

AGENTS = 4
OUTSTANDING = 64
CALLS_EACH = 8


@dataclass
class Tally:
    """What callers heard."""

    approved: int = 0
    denied: int = 0
    spent: int = 0
    errors: list[BaseException] = field(default_factory=list[BaseException])


async def _caller(agent: LedgerAgent, seed: str, tally: Tally) -> None:
    """A router: asks, then uses at most what it reserved, or lets go; sometimes says the same thing twice."""
    chance = random.Random(seed)
    for number in range(CALLS_EACH):
        size = chance.randint(1, 40)
        call = {"user_id": f"u{chance.randrange(3)}", "team_id": f"t{chance.randrange(2)}", "project_id": "p"}
        name = {"request_id": f"{seed}-{number}"} if chance.random() < 0.3 else {}
        try:
            decision = await agent.submit(**call, **name, max_completion_tokens=size)
            if not decision.approved or decision.reservation_id is None:
                tally.denied += 1
                continue
            tally.approved += 1
            held = decision.reservation_id
            what = chance.random()
            if what < 0.25:
                await asyncio.gather(agent.release(held), agent.release(held))
            elif what < 0.35:
                await agent.extend(held, prompt_tokens=0, max_completion_tokens=chance.randint(1, 60))
                await agent.release(held)
            elif what < 0.4:
                continue
            else:
                used = chance.randint(0, size)
                event = agent.event(completion_tokens=used, reservation_id=held)
                await asyncio.gather(*(agent.apply([event]) for _ in range(1 + (chance.random() < 0.2))))
                tally.spent += used
        except SignalError as error:
            tally.errors.append(error)


async def _watch(world: World, done: asyncio.Event) -> int:
    """Look as often as possible, from outside; every snapshot has to be right."""
    looks = 0
    async with world.connection() as connection:
        while not done.is_set():
            found = await violations(connection, world.org)
            assert not found, found
            over = await connection.fetch(
                """SELECT w.* FROM budget_window w JOIN budget b USING (org_id, budget_id)
                   WHERE w.org_id = $1 AND (w.overrun > 0 OR w.spent + w.reserved > b.base_limit)""",
                world.org,
            )
            assert not over, over
            looks += 1
    return looks


async def test_four_agents_with_64_calls_outstanding_each_never_go_over_and_never_lose_a_nano(
    shared_database_url: str,
) -> None:
    async with world_of(shared_database_url, agents=AGENTS, org="hammer") as world:
        budget = await world.budget(limit=100, period="daily", alert_thresholds=(10, 50, 90))
        scopes = [
            budget,
            await world.budget(type="team", limit=60),
            await world.budget(type="user", limit=45, unit="cost"),
            await world.budget(type="project", unit="requests", limit=2_000),
        ]
        tally, done = Tally(), asyncio.Event()
        watching = asyncio.create_task(_watch(world, done))

        callers = [(agent, f"{agent.name}-{n}") for agent in world.agents for n in range(OUTSTANDING)]
        await asyncio.gather(*(_caller(agent, seed, tally) for agent, seed in callers))
        done.set()
        looks = await watching

        assert tally.errors == []
        assert looks > 3
        assert tally.approved > 300
        assert tally.denied > 50
        assert (await world.sums(budget))[0] == tally.spent * CENT
        assert {len(await world.windows(b)) for b in scopes} == {1, 2, 3}
        await world.verify()

        await world.wait(minutes=11)
        await asyncio.gather(*(agent.sweep() for agent in world.agents))
        assert {w["reserved"] for b in scopes for w in await world.windows(b)} == {0}
        await world.verify()
