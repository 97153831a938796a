"""Fixtures of the bus tests: a private server, an agent's connection, a tenant's connection."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent.bus.client import BusClient, BusListeners, BusSettings, connect
from tests.bus.servers import PrivateServer

FAST = BusSettings(
    ping_interval_s=0.2, reconnect_wait_s=0.02, reconnect_wait_max_s=0.1, connect_deadline_s=10.0, close_timeout_s=1.0
)


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[PrivateServer]:
    private = PrivateServer(tmp_path)
    await private.start()
    yield private
    await private.kill()


@pytest.fixture
def reported() -> list[BaseException]:
    """The errors the fixture `bus` has reported."""
    return []


@pytest_asyncio.fixture
async def bus(server: PrivateServer, reported: list[BaseException]) -> AsyncIterator[BusClient]:
    """The agent's connection; what it reports is in `reported`."""
    listeners = BusListeners(error=[reported.append])
    client = await connect(server.url, settings=FAST, listeners=listeners)
    yield client
    await client.close()


@pytest_asyncio.fixture
async def tenant(server: PrivateServer) -> AsyncIterator[BusClient]:
    client = await connect(server.tenant_url, settings=FAST)
    yield client
    await client.close()
