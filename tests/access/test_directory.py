"""What one agent changes, every agent knows within milliseconds; and what they know when PostgreSQL is away."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest_asyncio

from agent.actor import TokenManagerAgent
from agent.backoff import Backoff
from agent.directory import Directory, DirectoryLimits
from agent.embedded import EmbeddedNats
from agent.identity import Access
from handlers.access.api_keys import create_api_key, revoke_api_key
from handlers.access.users import delete_user, set_user
from handlers.context import Context, Services
from schemas.access import CreateApiKey, DeleteUser, RevokeApiKey, SetUser
from store import users as user_store
from tests.access.conftest import PASSWORD, NKey
from tests.support.polling import eventually
from tests.support.running import ask, connected, forget_streams, running_agent

SOON_S = 5.0  # Far below the interval at which everything is read again, even on a busy machine.


def limits(**given: Any) -> DirectoryLimits:
    usual: dict[str, Any] = {
        "users_max": 100,
        "keys_max": 100,
        "changes_max": 50,
        "reread_s": 600.0,
        "stale_max_s": 900.0,
    }
    return DirectoryLimits(**usual | given)


@asynccontextmanager
async def following(dsn: str, **given: Any) -> AsyncGenerator[Directory]:
    directory = Directory(dsn, limits(**given), Backoff(0.01, 0.05), with_keys=True)
    await directory.open()
    task = asyncio.create_task(directory.run())
    try:
        yield directory
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await directory.close()


@pytest_asyncio.fixture
async def directory(database_url: str, services: Services) -> AsyncIterator[Directory]:
    async with following(database_url) as found:
        yield found


async def test_changes_arrive_without_being_looked_for(directory: Directory, ctx: Context) -> None:
    key = NKey.new().text
    await set_user(ctx, SetUser(name="ann", roles=["manager"], teams=["red"], public_key=key))
    found = await eventually(lambda: directory.user("default", "ann"), SOON_S)
    assert found is not None
    assert (found.roles, found.teams) == (("manager",), ("red",))
    assert directory.user("default", key) == found
    assert directory.user("other", "ann") is directory.user("other", key) is None
    other = NKey.new().text
    await set_user(ctx, SetUser(name="ann", roles=["viewer"], public_key=other))
    await eventually(lambda: directory.user("default", other), SOON_S)
    assert directory.user("default", key) is None
    made = await create_api_key(ctx, CreateApiKey(name="k", user="ann"))
    await eventually(lambda: directory.key("default", made.key.key_id), SOON_S)
    await revoke_api_key(ctx, RevokeApiKey(key_id=made.key.key_id))
    await eventually(lambda: directory.key("default", made.key.key_id) is None, SOON_S)
    await delete_user(ctx, DeleteUser(name="ann"))
    await eventually(lambda: not found_active(directory, "ann"), SOON_S)
    await ctx.database.execute("DELETE FROM api_key")
    await ctx.database.execute("DELETE FROM app_user")
    await eventually(lambda: directory.user("default", "ann") is None, SOON_S)


def found_active(directory: Directory, name: str) -> bool:
    found = directory.user("default", name)
    return found is not None and found.active


async def test_a_change_that_is_rolled_back_is_not_heard(directory: Directory, ctx: Context) -> None:
    heard: list[None] = []
    directory.changed.append(lambda: heard.append(None))
    try:
        async with ctx.database.transaction() as connection:
            await user_store.lock(connection, "default")
            await connection.execute(
                "INSERT INTO app_user VALUES ('default', 'x', '', '{admin}', '{}', NULL, true, now(), now())"
            )
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    await set_user(ctx, SetUser(name="y", roles=[]))
    await eventually(lambda: directory.user("default", "y"), SOON_S)
    assert directory.user("default", "x") is None
    assert len(heard) == 1


async def test_more_changes_at_once_than_are_kept_are_read_as_a_whole(database_url: str, ctx: Context) -> None:
    async with following(database_url, changes_max=3) as directory:
        await ctx.database.execute(
            "INSERT INTO app_user SELECT 'default', 'u' || n, '', '{viewer}', '{}', NULL, true, now(), now() "
            "FROM generate_series(1, 50) n"
        )
        await eventually(lambda: all(directory.user("default", f"u{n}") for n in range(1, 51)), SOON_S)


async def test_a_lost_connection_is_renewed_and_what_happened_meanwhile_is_read(
    database_url: str, directory: Directory, ctx: Context
) -> None:
    await set_user(ctx, SetUser(name="before", roles=["viewer"]))
    await eventually(lambda: directory.user("default", "before"), SOON_S)
    await ctx.database.execute(
        "INSERT INTO app_user VALUES ('default', 'meanwhile', '', '{admin}', '{}', NULL, true, now(), now())"
    )
    assert await ctx.database.fetchval(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE application_name = 'token-manager directory' AND datname = current_database()"
    )
    assert directory.user("default", "before") is not None
    await set_user(ctx, SetUser(name="after", roles=["viewer"]))
    await eventually(lambda: directory.user("default", "after") and directory.user("default", "meanwhile"), 5)


async def test_a_notification_that_was_missed_is_made_up_for(database_url: str, ctx: Context) -> None:
    async with following(database_url, reread_s=0.2) as directory:
        async with ctx.database.transaction() as connection:
            await connection.execute("ALTER TABLE app_user DISABLE TRIGGER USER")
            await connection.execute(
                "INSERT INTO app_user VALUES ('default', 'quiet', '', '{admin}', '{}', NULL, true, now(), now())"
            )
        await eventually(lambda: directory.user("default", "quiet"), 5)


async def test_what_cannot_be_read_for_long_is_said_and_the_last_known_stays(database_url: str, ctx: Context) -> None:
    await set_user(ctx, SetUser(name="ann", roles=["viewer"]))
    async with following(database_url, reread_s=0.05, stale_max_s=0.3, timeout_s=0.2) as directory:
        assert directory.problem is None
        blocker = await asyncpg.connect(database_url)
        try:
            async with blocker.transaction():
                await blocker.execute("LOCK TABLE app_user IN ACCESS EXCLUSIVE MODE")
                await eventually(lambda: directory.problem, 10)
                assert directory.user("default", "ann") is not None
            await eventually(lambda: directory.problem is None, 10)
        finally:
            await blocker.close()


async def test_users_beyond_the_bound_get_nothing_instead_of_the_default(
    database_url: str, ctx: Context, services: Services
) -> None:
    def everything(_org: str, _user: str | None) -> frozenset[str]:
        return frozenset({"admin"})

    async with following(database_url, users_max=2) as directory:
        access = Access(directory, everything, services.actor_key)
        assert access.caller("default", "c").roles == {"admin"}
        for name in "abc":
            await set_user(ctx, SetUser(name=name, roles=["viewer"]))
        problem = await eventually(lambda: directory.problem, SOON_S)
        assert problem is not None
        assert "app_user" in problem
        assert access.caller("default", "a").roles == {"viewer"}
        assert access.caller("default", "c").roles == frozenset()
    async with following(database_url, users_max=2) as directory:
        assert not directory.knows_all_users
        assert Access(directory, everything, services.actor_key).caller("default", "c").roles == frozenset()


@pytest_asyncio.fixture
async def agents(tenants_bus: EmbeddedNats, database_url: str) -> AsyncIterator[list[TokenManagerAgent]]:
    """Two agents who know `acme-root` from their settings and nobody else."""
    await forget_streams(tenants_bus.agent_url)
    given: dict[str, Any] = {"default_roles": None, "roles": {"acme/acme-root": ("admin",)}, "directory_reread_s": 600}
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(running_agent(tenants_bus.agent_url, database_url, **given))
            for _ in range(2)
        ]


async def test_every_agent_knows_a_change_within_milliseconds(
    agents: list[TokenManagerAgent], tenants_bus: EmbeddedNats
) -> None:
    root_url, user_url = (tenants_bus.url_for(f"acme-{name}", PASSWORD) for name in ("root", "viewer"))
    model, took_ms = {"provider": "openai", "model": "gpt-4o"}, list[float]()
    async with connected(root_url) as root, connected(user_url) as user:

        async def everywhere(code: str | None) -> bool:
            """Many requests in a row reach both agents, because the server spreads them over the queue group."""
            replies = await asyncio.gather(*(ask(user, "get_pricing", model) for _ in range(24)))
            return all(reply.code == code for reply in replies)

        assert await everywhere("forbidden")
        for active in (True, False, True, False):
            body = {"name": "acme-viewer", "roles": ["viewer"], "active": active}
            assert (await ask(root, "set_user", body)).result["active"] is active
            began = time.perf_counter()
            await eventually(lambda wanted=None if active else "forbidden": everywhere(wanted), SOON_S)
            took_ms.append((time.perf_counter() - began) * 1000)
        served = [sum(e["requests"] for e in (await of(agent)).values()) for agent in agents]
        assert min(served) > 20, "both agents were asked"
    assert max(took_ms) < SOON_S * 1000


async def of(agent: TokenManagerAgent) -> dict[str, Any]:
    assert agent.services.status is not None
    return (await agent.services.status())["requests"]


async def test_inactive_means_no_role_whatever_the_settings_say(
    agents: list[TokenManagerAgent], tenants_bus: EmbeddedNats
) -> None:
    async with connected(tenants_bus.url_for("acme-root", PASSWORD)) as root:
        status = (await ask(root, "get_status")).result
        assert {"name": "directory", "ok": True, "detail": None} in status["parts"]
        for person in ("other", "acme-root"):
            body = {"name": person, "roles": ["viewer"], "active": False}
            reply = await ask(root, "set_user", body)
            assert reply.code == ("conflict" if person == "acme-root" else None)
        body = {"name": "acme-admin", "roles": ["admin"]}
        assert (await ask(root, "set_user", body)).result["active"]
        async with connected(tenants_bus.url_for("acme-admin", PASSWORD)) as admin:

            async def removed() -> bool:
                return (await ask(admin, "delete_user", {"name": "acme-root"})).code in (None, "not_found")

            await eventually(removed, SOON_S)
            put = {"name": "acme-root", "roles": ["admin"], "active": False}
            assert (await ask(admin, "set_user", put)).result["active"] is False

        async def refused() -> bool:
            return (await ask(root, "list_users")).code == "forbidden"

        await eventually(refused, SOON_S)
