"""Services on a fresh database for each test."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from handlers.context import Context, Services
from tests.support.services import RecordingSink, context, services_for


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


@pytest_asyncio.fixture
async def services(database_url: str, sink: RecordingSink) -> AsyncIterator[Services]:
    async with services_for(database_url, sink=sink) as found:
        yield found


@pytest.fixture
def ctx(services: Services) -> Context:
    return context(services)
