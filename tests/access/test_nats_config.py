"""The generated configuration on a real server: the server itself refuses what a role may not send."""
# pyright: reportUnknownMemberType=false
# nats-py leaves the options of its calls untyped.

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from nats import errors as nats_errors
from nats.aio.client import Client

from agent.embedded.nats import find_binary
from agent.nats_config import ConfigRefused, inbox_prefix, permissions, render
from handlers.access.users import delete_user, set_user
from handlers.context import Services
from schemas.access import DeleteUser, SetUser
from signals.registry import REQUESTS
from store.users import UserRow
from tests.access.conftest import NKey
from tests.bus.servers import free_port
from tests.support.polling import eventually
from tests.support.running import ROOT, ask, running_agent, store
from tests.support.services import context

ROLES = ("provider", "viewer", "manager", "approver", "finance", "admin")
SECRET = "abc123"
AT = datetime(2026, 1, 1, tzinfo=UTC)


def user(name: str, *roles: str, org: str = "acme", key: NKey | None = None, active: bool = True) -> UserRow:
    text = None if key is None else key.text
    return UserRow(
        org_id=org, name=name, display_name="", roles=roles, teams=(), public_key=text, active=active,
        created_at=AT, updated_at=AT,
    )  # fmt: skip


@asynccontextmanager
async def server_on(config: str, folder: Path) -> AsyncGenerator[tuple[str, str]]:
    """A nats-server on the configuration as it was printed, its data elsewhere; URLs for users and the agent."""
    port, path = free_port(), folder / "nats.conf"
    path.write_text(config.replace('"/data/jetstream"', f'"{folder / "js"}"'), encoding="utf-8")
    where = ("-a", "127.0.0.1", "-p", str(port), "-m", str(free_port()))
    environment = {**os.environ, "TM_NATS_AGENT_PASSWORD": SECRET, "TM_NATS_SYSTEM_PASSWORD": SECRET}
    log = (folder / "nats.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        str(find_binary()), "-c", str(path), *where, env=environment, stdout=log, stderr=log
    )
    log.close()

    async def answers() -> bool:
        if process.returncode is not None:
            raise RuntimeError((folder / "nats.log").read_text())
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await eventually(answers)
        yield f"nats://127.0.0.1:{port}", f"nats://agent:{SECRET}@127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


class Person:
    """A user on the bus by key, with what the server complained of."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.client = Client()

    async def connect(self, url: str, name: str, key: NKey) -> None:
        async def complain(error: Exception) -> None:
            self.complaints.append(str(error).lower())

        self.client = await key.connect(url, inbox_prefix=inbox_prefix(name).encode(), error_cb=complain)

    def complained(self, subject: str) -> bool:
        """Whether the server refused to take a message of this person for ``subject``."""
        return any("permissions violation" in text and f'"{subject}"' in text for text in self.complaints)

    def refused_subscriptions(self) -> int:
        """How many subscriptions the server has refused."""
        return len([text for text in self.complaints if "subscription" in text])

    async def refused(self, subject: str) -> None:
        """Send a message that the server must refuse, and wait for its complaint."""
        await self.client.publish(subject, b"{}")
        await self.client.flush()
        await eventually(lambda: self.complained(subject), 5, f"{subject} was not refused")


async def printed(database_url: str, *arguments: str) -> tuple[int, str, str]:
    """What `python -m agent nats-config` says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "nats-config", *arguments),
        cwd=ROOT,
        env={**os.environ, "TOKEN_MANAGER_DATABASE_URL": database_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_server_refuses_what_the_role_lacks_and_carries_the_rest(
    services: Services, database_url: str, tmp_path: Path
) -> None:
    keys = {(org, role): NKey.new() for org in ("acme", "globex") for role in ROLES}
    for (org, role), key in keys.items():
        ctx = context(services, org=org, user="setup")
        await set_user(ctx, SetUser(name=f"{role}.one", roles=[role], public_key=key.text))  # pyright: ignore
    gone, ctx = NKey.new(), context(services, org="acme", user="setup")
    await set_user(ctx, SetUser(name="gone", roles=["admin"], public_key=gone.text))
    await delete_user(ctx, DeleteUser(name="gone"))
    await set_user(ctx, SetUser(name="by-password", roles=["admin"]))
    status, config, _ = await printed(database_url)
    assert status == 0
    async with AsyncExitStack() as stack:
        url, agent_url = await stack.enter_async_context(server_on(config, tmp_path))
        await stack.enter_async_context(running_agent(agent_url, database_url, default_roles=None))
        people: dict[tuple[str, str], Person] = {}
        for (org, role), key in keys.items():
            person = people[org, role] = Person()
            await person.connect(url, f"{role}.one", key)
            stack.push_async_callback(person.client.close)
        for (org, role), person in people.items():
            for signal in REQUESTS:
                if signal.allows(frozenset({role})):
                    answer = await ask(person.client, signal.name, {"no_such_field": 1})
                    assert answer.code == "invalid_request", f"{org} {role} {signal.name}: {answer.body}"
                    assert not person.complained(signal.subject)
                else:
                    await person.refused(signal.subject)
            status = (await ask(person.client, "get_status")).result
            assert status["org"] == org
            await person.refused("tm.req.globex.list_users")
            if role not in ("provider", "admin"):
                await person.refused("usage.openai.chat")
        stored = await store(people["acme", "provider"].client, "usage.openai.chat", {"model": "x"})
        assert stored["stream"] == "TM_USAGE"
        with pytest.raises((nats_errors.Error, OSError, TimeoutError)):
            await gone.connect(url, allow_reconnect=False)


async def test_events_and_replies_are_heard_by_those_they_are_for(
    services: Services, database_url: str, tmp_path: Path
) -> None:
    keys = {name: NKey.new() for name in ("prov", "view", "boss")}
    for name, role in (("prov", "provider"), ("view", "viewer"), ("boss", "admin")):
        await set_user(context(services), SetUser(name=name, roles=[role], public_key=keys[name].text))  # pyright: ignore
    _, config, _ = await printed(database_url)
    async with AsyncExitStack() as stack:
        url, agent_url = await stack.enter_async_context(server_on(config, tmp_path))
        await stack.enter_async_context(running_agent(agent_url, database_url, default_roles=None))
        people = {name: Person() for name in keys}
        for name, person in people.items():
            await person.connect(url, name, keys[name])
            stack.push_async_callback(person.client.close)
        view, prov = people["view"], people["prov"]
        events = await view.client.subscribe("token.evt.>")
        await prov.client.subscribe("token.evt.>")
        await view.client.subscribe("_INBOX_boss.>")
        await view.client.subscribe("_INBOX.>")
        for person in (view, prov):
            await person.client.flush()
        # The server has complained before it answered the flush; the callbacks run when they are due.
        await eventually(lambda: view.refused_subscriptions() == 2, message="inboxes of others are open")
        await eventually(lambda: prov.refused_subscriptions() == 1, message="events are open to a provider")
        budget = {"name": "b", "type": "team", "entity_id": "t1", "limit": "1"}
        assert (await ask(people["boss"].client, "create_budget", budget)).result["name"] == "b"
        assert json.loads((await events.next_msg(timeout=5)).data)["type"] == "token.budget.changed"
        assert events.pending_msgs == 0


async def test_one_orgs_account_alone_can_be_included(services: Services, database_url: str, tmp_path: Path) -> None:
    key = NKey.new()
    await set_user(context(services, org="acme"), SetUser(name="v", roles=["viewer"], public_key=key.text))
    status, account, _ = await printed(database_url, "--org", "acme")
    assert status == 0
    assert account.startswith("  acme: {")
    (tmp_path / "acme.conf").write_text(account, encoding="utf-8")
    deployed = (ROOT / "deploy" / "nats" / "nats.conf").read_text(encoding="utf-8")
    assert "  # include ./acme.conf\n" in deployed
    whole = deployed.replace("# include ./acme.conf", "include ./acme.conf").replace(
        "$TM_NATS_DEFAULT_PASSWORD", SECRET
    )
    async with server_on(whole, tmp_path) as (url, _):
        client = await key.connect(url, inbox_prefix=b"_INBOX_v")
        await client.close()


async def test_what_cannot_be_right_is_refused_with_the_reason(database_url: str, tmp_path: Path) -> None:
    key = NKey.new()
    both = [user("a", "admin", org="acme", key=key), user("b", "viewer", org="globex", key=key)]
    with pytest.raises(ConfigRefused, match=r"globex/b and acme/a have the same public key"):
        render(both)
    assert key.text in render([both[0], replace(both[1], active=False)])
    for org in ("TM", "SYS", "a b", "x.y", "*", "a\n}"):
        with pytest.raises(ConfigRefused):
            render([user("a", "admin", org=org, key=key)])
    status, out, err = await printed("postgresql://nobody@127.0.0.1:1/none")
    assert (status, out) == (1, "")
    assert err.startswith("no configuration: ")


def test_inboxes_of_different_users_never_overlap() -> None:
    names = ["ann", "ann.b", "ann.b.c", "ann_b", "ann-b", "ann@b", "ann+b"]
    prefixes = [inbox_prefix(name) for name in names]
    assert len(set(prefixes)) == len(names)
    assert all("." not in prefix for prefix in prefixes)


def test_nobody_may_do_what_anyone_may_and_nothing_else() -> None:
    assert permissions("x", frozenset()) == {
        "publish": ["token.get_status", "token.describe"],
        "subscribe": ["_INBOX_x.>"],
    }


def test_a_user_without_a_key_or_not_active_is_only_mentioned() -> None:
    rows = [user("a", "admin"), user("b", "admin", key=NKey.new(), active=False)]
    text = render(rows, org="acme")
    assert "nkey" not in text
    assert "# a has no public key" in text
    assert "# b is not active" in text
