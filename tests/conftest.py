"""The servers every test shares: one PostgreSQL and one nats-server per session, one fresh database per test.

They are the embedded ones, or containers of the official images with TEST_SERVERS=containers and a Docker engine.
"""

import importlib
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import pytest_asyncio
from hypothesis import settings

from agent.embedded import DataDir, EmbeddedNats, EmbeddedPostgres

# The suite is the same for everybody; HYPOTHESIS_PROFILE=thorough looks further, and elsewhere every time.
settings.register_profile("repeatable", derandomize=True, database=None)
if os.environ.get("HYPOTHESIS_PROFILE") != "thorough":
    settings.load_profile("repeatable")

TEMPLATE = "tm_template"
DEPLOYED_NATS_CONFIG = Path(__file__).parent.parent / "deploy" / "nats" / "nats.conf"

_numbers = itertools.count(1)


class PostgresServer(Protocol):
    """A PostgreSQL whose role may create databases."""

    @property
    def url(self) -> str:
        """The DSN of an empty database that exists already."""
        ...


class NatsServer(Protocol):
    """A nats-server with JetStream and the account layout of the agent."""

    @property
    def url(self) -> str:
        """For callers: account `default`."""
        ...

    @property
    def agent_url(self) -> str:
        """For the agent: account `TM`."""
        ...


def _uses_containers() -> bool:
    if os.environ.get("TEST_SERVERS") != "containers":
        return False
    from tests.support.containers import engine_answers

    return engine_answers()


def pytest_report_header() -> str:
    return f"test servers: {'containers' if _uses_containers() else 'embedded'}"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostgresServer]:
    """One PostgreSQL for the whole session."""
    if _uses_containers():
        from tests.support.containers import ContainerPostgres

        container = ContainerPostgres()
        await container.start()
        yield container
        await container.stop()
        return
    with DataDir(tmp_path_factory.mktemp("pg")) as data:
        server = EmbeddedPostgres(data)
        await server.start()
        # A killed process loses nothing without fsync, and databases are made and dropped in half the time.
        for statement in ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"):
            await _execute(server.url, statement)
        yield server
        await server.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nats_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    """One nats-server with JetStream for the whole session."""
    if _uses_containers():
        from tests.support.containers import ContainerNats

        container = ContainerNats(DEPLOYED_NATS_CONFIG)
        await container.start()
        yield container
        await container.stop()
        return
    with DataDir(tmp_path_factory.mktemp("nats")) as data:
        server = EmbeddedNats(data)
        await server.start()
        yield server
        await server.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def migrated_template(postgres_server: PostgresServer) -> str:
    """The name of a database with the whole schema and no data, to be copied."""
    await _execute(postgres_server.url, f"CREATE DATABASE {TEMPLATE}")
    try:
        migrate = importlib.import_module("store.migrate").migrate
    except ModuleNotFoundError:
        return TEMPLATE
    await migrate(database_dsn(postgres_server.url, TEMPLATE))
    return TEMPLATE


@pytest_asyncio.fixture
async def database_url(postgres_server: PostgresServer, migrated_template: str) -> AsyncIterator[str]:
    """The DSN of a database of its own for one test, migrated and empty, dropped afterwards."""
    name = f"tm_test_{next(_numbers)}"
    await _execute(postgres_server.url, f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
    yield database_dsn(postgres_server.url, name)
    await _execute(postgres_server.url, f"DROP DATABASE {name} WITH (FORCE)")


def database_dsn(dsn: str, database: str) -> str:
    """Return the same DSN for another database."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
