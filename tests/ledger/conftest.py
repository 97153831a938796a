"""A world with two agents; whatever a test did, the promises hold when it ends."""

import itertools
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest_asyncio

from tests.support.ledger import World, at_database, world_of

_orgs = itertools.count(1)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_database_url(postgres_server: Any, migrated_template: str) -> str:
    """The DSN of a migrated database for tests that keep to an org of their own."""
    connection = await asyncpg.connect(postgres_server.url)
    try:
        await connection.execute(f"CREATE DATABASE tm_ledger TEMPLATE {migrated_template}")
    finally:
        await connection.close()
    return at_database(postgres_server.url, "tm_ledger")


@pytest_asyncio.fixture
async def world(shared_database_url: str) -> AsyncIterator[World]:
    """Two agents of an org of its own, on a Wednesday noon."""
    async with world_of(shared_database_url, agents=2, org=f"org-{next(_orgs)}") as world:
        yield world
        await world.verify(complete=False)
        # A sweep looks at every org.
        await world.fetch("DELETE FROM reservation WHERE org_id = $1", world.org)


@pytest_asyncio.fixture
async def own_world(database_url: str) -> AsyncIterator[World]:
    """Two agents on a database of their own."""
    async with world_of(database_url, agents=2) as world:
        yield world
        await world.verify(complete=False, told=False)
