"""Services on a fresh database for each test."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from handlers.context import Context, Services
from tests.support.services import context, services_for


@pytest_asyncio.fixture
async def services(database_url: str) -> AsyncIterator[Services]:
    async with services_for(database_url) as found:
        yield found


@pytest.fixture
def ctx(services: Services) -> Context:
    return context(services)
