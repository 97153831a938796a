"""A world with two agents; whatever a test did, the promises hold when it ends."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.ledger import World, world_of


@pytest_asyncio.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    """Two agents on a database of their own, on a Wednesday noon."""
    async with world_of(database_url, agents=2) as world:
        yield world
        await world.verify(complete=False)
