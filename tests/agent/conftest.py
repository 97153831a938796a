"""One nats-server with tenants, an agent on it per test or per module, and a database of its own for each agent."""

import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
import pytest_asyncio
from nats.aio.client import Client

from agent.actor import TokenManagerAgent
from agent.embedded import AccountSpec, DataDir, EmbeddedNats, UserSpec
from tests.conftest import PostgresServer, database_dsn
from tests.support.running import connected, forget_streams, running_agent

ROLES = ("provider", "viewer", "manager", "approver", "finance", "admin")
PASSWORD = "test"

_numbers = itertools.count(1)


def _account(name: str) -> AccountSpec:
    users = (*ROLES, "nobody")
    return AccountSpec(name=name, users=tuple(UserSpec(name=f"{name}-{u}", password=PASSWORD) for u in users))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def bus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedNats]:
    """A server with the tenants `acme` and `globex` besides `default`; each has a user for every role and `nobody`."""
    with DataDir(tmp_path_factory.mktemp("tenants")) as data:
        server = EmbeddedNats(data, extra_accounts=(_account("acme"), _account("globex")))
        await server.start()
        yield server
        await server.stop()


@asynccontextmanager
async def new_database(server: PostgresServer, template: str) -> AsyncGenerator[str]:
    """A migrated, empty database, dropped afterwards."""
    name = f"tm_agent_{next(_numbers)}"
    connection = await asyncpg.connect(server.url)
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield database_dsn(server.url, name)
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


@pytest_asyncio.fixture
async def agent(bus: EmbeddedNats, database_url: str) -> AsyncIterator[TokenManagerAgent]:
    """An agent on empty streams and an empty database."""
    await forget_streams(bus.agent_url)
    async with running_agent(bus.agent_url, database_url) as running:
        yield running


@pytest_asyncio.fixture
async def client(bus: EmbeddedNats) -> AsyncIterator[Client]:
    """A caller in account `default`."""
    async with connected(bus.url) as caller:
        yield caller
