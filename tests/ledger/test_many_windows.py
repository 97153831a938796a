"""Thousands of windows opened at once: PostgreSQL has to know of them by then, or every look for one reads them all."""

import asyncio
from itertools import pairwise

import pytest

from handlers.enforcer.windows import ANALYZE_FIRST, WindowIndex
from tests.support.ledger import World

USERS = 8 * ANALYZE_FIRST
BATCH = 400


async def test_the_planner_knows_of_windows_that_were_opened_in_bulk(world: World) -> None:
    (one, *_) = world.agents
    everyone = await world.budget(type="user", limit=1)
    await world.execute("ANALYZE budget_window")

    for first in range(0, USERS, BATCH):
        calls = [one.hold(user_id=f"u{number}", max_completion_tokens=1) for number in range(first, first + BATCH)]
        await asyncio.gather(*calls)

    assert len(await world.windows(everyone)) == USERS
    async with world.connection() as connection:
        known = await connection.fetchval("SELECT reltuples FROM pg_class WHERE relname = 'budget_window'")
        assert known >= USERS / 2


@pytest.mark.parametrize("at_once", [1, 7, 256])
def test_the_planner_is_told_whenever_there_are_twice_as_many(at_once: int) -> None:
    index, created = WindowIndex(), 0
    told: list[int] = []
    while created < 20_000:
        created += at_once
        if index.outgrown(at_once):
            told.append(created)

    assert len(told) <= 9
    assert all(later <= 2 * before + at_once for before, later in pairwise(told))
