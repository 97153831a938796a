"""A world for each test: agents on a database of their own, with a clock that tests move."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from handlers.context import Context, Services
from tests.support.ledger import World, world_of
from tests.support.services import context, services_for


@pytest_asyncio.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    """Two agents on a Wednesday noon; whatever a test did, the promises of the ledger hold when it ends."""
    async with world_of(database_url, agents=2) as world:
        yield world
        await world.verify(complete=False)


@pytest_asyncio.fixture
async def services(database_url: str) -> AsyncIterator[Services]:
    """One agent's services on a database of their own."""
    async with services_for(database_url) as found:
        yield found


@pytest.fixture
def ctx(services: Services) -> Context:
    """An admin's request."""
    return context(services)
