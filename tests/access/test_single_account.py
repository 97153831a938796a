"""Who is asking where there are no accounts: a signature by an NKey, or an API key; everything else is nobody."""
# pyright: reportUnknownMemberType=false
# nats-py leaves the options of its calls untyped.

import asyncio
import signal as signals_of_processes
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from nats.aio.client import Client

from agent.actor import TokenManagerAgent
from agent.backoff import Backoff
from agent.directory import Directory, DirectoryLimits
from agent.embedded import EmbeddedNats
from agent.embedded.nats import find_binary
from agent.signed import KEY_HEADER, NONCE_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, USER_HEADER, Proofs, own_headers
from handlers.access.users import set_user
from handlers.context import Caller, Context
from schemas.access import SetUser
from schemas.errors import SignalError
from tests.access.conftest import PASSWORD, NKey
from tests.bus.servers import free_port
from tests.support.polling import eventually
from tests.support.running import Reply, ask, ask_on, connected, forget_streams, running_agent

CONFIG = """
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: "{store}", max_mem: 64MB, max_file: 16GB }}
"""
SUBJECT = "token.list_users"
BODY = b'{"limit":5}'


@asynccontextmanager
async def nats_server(config: Path, port: int) -> AsyncGenerator[str]:
    """A nats-server on a configuration file, ended afterwards."""
    quiet = asyncio.subprocess.DEVNULL
    server = await asyncio.create_subprocess_exec(str(find_binary()), "-c", str(config), stdout=quiet, stderr=quiet)

    async def answers() -> bool:
        assert server.returncode is None, "nats-server ended"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await eventually(answers)
        yield f"nats://127.0.0.1:{port}"
    finally:
        if server.returncode is None:
            server.send_signal(signals_of_processes.SIGTERM)
        await server.wait()


@pytest_asyncio.fixture
async def plain(tmp_path: Path) -> AsyncIterator[str]:
    """A bus as it comes: no accounts, no users."""
    port, config = free_port(), tmp_path / "plain.conf"
    config.write_text(CONFIG.format(port=port, store=tmp_path / "js"), encoding="utf-8")
    async with nats_server(config, port) as url:
        yield url


@pytest_asyncio.fixture
async def agent(plain: str, database_url: str) -> AsyncIterator[TokenManagerAgent]:
    given: dict[str, Any] = {"nats_mode": "single-account", "default_roles": ("viewer",), "directory_reread_s": 600}
    async with running_agent(plain, database_url, **given) as found:
        yield found


@pytest_asyncio.fixture
async def client(plain: str, agent: TokenManagerAgent) -> AsyncIterator[Client]:
    async with connected(plain) as found:
        yield found


@pytest_asyncio.fixture
async def boss(agent: TokenManagerAgent, client: Client) -> NKey:
    """An admin with a key. The first one is made by whoever may: here, in the database the agent reads."""
    key = NKey.new()
    ctx = Context(agent.services, Caller("default", "root", frozenset({"admin"})))
    await set_user(ctx, SetUser(name="boss", roles=["admin"], public_key=key.text))

    async def known() -> bool:
        return (await ask_on(client, SUBJECT, BODY, headers=sign(key))).status is None

    await eventually(known)
    return key


def now_ms() -> int:
    return int(time.time() * 1000)


def sign(key: NKey, user: str = "boss", subject: str = SUBJECT, payload: bytes = BODY, **given: Any) -> dict[str, str]:
    at_ms: int = given.pop("at_ms", now_ms())
    return key.headers(user, subject, payload, at_ms=at_ms, **given)


async def asked(client: Client, headers: Mapping[str, str], signal: str = "list_users", body: Any = BODY) -> Reply:
    return await ask_on(client, f"token.{signal}", body, headers=headers)


async def test_a_signature_says_who_and_no_header_is_nobody_in_particular(boss: NKey, client: Client) -> None:
    assert (await asked(client, sign(boss))).result["users"][0]["name"] == "boss"
    assert (await asked(client, {})).code == "forbidden"
    assert (await ask(client, "list_budgets")).result["budgets"] == []


async def test_a_signature_covers_batched_signals_too(boss: NKey, client: Client) -> None:
    body = msgspec.json.encode(
        {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 1, "max_completion_tokens": 1}
    )
    headers = sign(boss, subject="token.check_budget", payload=body)
    decided = await asked(client, headers, "check_budget", body)
    assert decided.result["approved"]
    assert (await asked(client, headers, "check_budget", body)).code == "unauthenticated"
    assert (await asked(client, {}, "check_budget", body)).code == "forbidden"


FORGERIES = {
    "another subject": {"subject": "token.list_teams"},
    "another payload": {"payload": b'{"limit":6}'},
    "another user": {"user": "root"},
    "old": {"at_ms": -31_000},
    "of the future": {"at_ms": 31_000},
    "a short nonce": {"nonce": "x" * 15},
    "a nonce of odd characters": {"nonce": "x" * 16 + "/"},
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_what_was_not_signed_now_for_this_is_refused(boss: NKey, client: Client, forgery: str) -> None:
    given: dict[str, Any] = dict(FORGERIES[forgery])
    if "at_ms" in given:
        given["at_ms"] += now_ms()
    elif "user" in given:
        headers = sign(boss) | {USER_HEADER: given["user"]}
        assert (await asked(client, headers)).code == "unauthenticated"
    headers = sign(boss, **given)
    assert (await asked(client, headers)).code == "unauthenticated"


@pytest.mark.parametrize("header", [USER_HEADER, TIMESTAMP_HEADER, NONCE_HEADER, SIGNATURE_HEADER])
async def test_a_signature_with_a_part_missing_or_broken_is_refused(boss: NKey, client: Client, header: str) -> None:
    headers = sign(boss)
    del headers[header]
    assert (await asked(client, headers)).code == "unauthenticated"
    for wrong in ("", "x", "0", "-1", "99999999999999999999", "AAAA", "A" * 86, "boss "):
        if wrong.strip() != sign(boss)[header]:
            assert (await asked(client, sign(boss) | {header: wrong})).code == "unauthenticated", wrong


async def test_another_key_and_an_inactive_user_sign_in_vain(boss: NKey, client: Client) -> None:
    assert (await asked(client, sign(NKey.new()))).code == "unauthenticated"
    eve = NKey.new()
    for active in (True, False):
        body = msgspec.json.encode({"name": "eve", "roles": ["admin"], "public_key": eve.text, "active": active})
        headers = sign(boss, subject="token.set_user", payload=body)
        assert (await asked(client, headers, "set_user", body)).result["active"] is active
        wanted = None if active else "unauthenticated"

        async def known(wanted: str | None = wanted) -> bool:
            return (await asked(client, sign(eve, "eve"))).code == wanted

        await eventually(known)


async def test_a_replayed_request_is_refused_by_every_agent(boss: NKey, plain: str, database_url: str) -> None:
    given: dict[str, Any] = {"nats_mode": "single-account", "default_roles": None}
    async with running_agent(plain, database_url, **given), connected(plain) as client:
        for _ in range(20):  # One of two agents takes each; the nonce is used up for both.
            headers = sign(boss)
            replies = await asyncio.gather(*(asked(client, headers) for _ in range(8)))
            assert sorted(reply.code or "" for reply in replies) == ["", *["unauthenticated"] * 7]


async def make_key(client: Client, boss: NKey, **fields: Any) -> dict[str, Any]:
    body = msgspec.json.encode({"name": "k", **fields})
    headers = sign(boss, subject="token.create_api_key", payload=body)
    return (await asked(client, headers, "create_api_key", body)).result


async def put_user(client: Client, boss: NKey, **fields: Any) -> None:
    body = msgspec.json.encode(fields)
    assert (await asked(client, sign(boss, subject="token.set_user", payload=body), "set_user", body)).result


async def becomes(client: Client, secret: str, code: str | None, signal: str = "list_reservations") -> None:
    async def so() -> bool:
        return (await asked(client, {KEY_HEADER: secret}, signal, b"{}")).code == code

    await eventually(so, 2, f"{signal} is answered {code}")


async def test_an_api_key_is_its_user_as_far_as_its_roles_go(boss: NKey, client: Client) -> None:
    await put_user(client, boss, name="bot", roles=["provider", "viewer"])
    made = await make_key(client, boss, user="bot", roles=["provider"])
    await becomes(client, made["secret"], None, "describe")
    usage = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 1, "completion_tokens": 1, "ack": "applied"}
    assert (await asked(client, {KEY_HEADER: made["secret"]}, "track_usage", usage)).result["accepted"]
    assert (await asked(client, {KEY_HEADER: made["secret"]}, "list_budgets", b"{}")).code == "forbidden"
    await put_user(client, boss, name="bot", roles=["viewer"])

    async def no_more() -> bool:
        return (await asked(client, {KEY_HEADER: made["secret"]}, "track_usage", usage)).code == "forbidden"

    await eventually(no_more, 2)


async def test_unknown_revoked_and_expired_keys_are_refused(boss: NKey, client: Client) -> None:
    await put_user(client, boss, name="bot", roles=["viewer"])
    made = await make_key(client, boss, user="bot")
    secret, key_id = made["secret"], made["key"]["key_id"]
    await becomes(client, secret, None)
    flipped = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    for wrong in (
        flipped,
        secret.upper(),
        f"tm_{key_id}_",
        f"tm_{key_id}",
        "tm__",
        "",
        "x",
        f"tm_{'0' * 32}_{secret[-43:]}",
    ):
        assert (await asked(client, {KEY_HEADER: wrong})).code == "unauthenticated", wrong
    body = msgspec.json.encode({"key_id": key_id})
    headers = sign(boss, subject="token.revoke_api_key", payload=body)
    assert (await asked(client, headers, "revoke_api_key", body)).result["revoked_at"]
    await becomes(client, secret, "unauthenticated")

    soon = (datetime.now(UTC) + timedelta(seconds=1.5)).isoformat()
    short = await make_key(client, boss, user="bot", expires_at=soon)
    await becomes(client, short["secret"], None)
    await becomes(client, short["secret"], "unauthenticated")
    again = await make_key(client, boss, user="bot")
    await becomes(client, again["secret"], None)
    await put_user(client, boss, name="bot", roles=["viewer"], active=False)
    await becomes(client, again["secret"], "unauthenticated")


async def test_a_key_beside_a_signature_is_refused(boss: NKey, client: Client) -> None:
    await put_user(client, boss, name="bot", roles=["admin"])
    made = await make_key(client, boss, user="bot")
    await becomes(client, made["secret"], None)
    mixed = sign(boss) | {KEY_HEADER: made["secret"]}
    assert (await asked(client, mixed)).code == "unauthenticated"


@pytest.mark.parametrize("name", [KEY_HEADER, SIGNATURE_HEADER])
def test_a_header_that_is_there_twice_is_refused(name: str) -> None:
    block = b"NATS/1.0\r\n" + f"{name}: a\r\n".encode()
    assert own_headers(block + b"X: y\r\n\r\n") == {name: "a"}
    with pytest.raises(SignalError):
        own_headers(block + f"{name}: a\r\n\r\n".encode())


async def test_when_a_key_was_used_is_noted(plain: str, database_url: str) -> None:
    given: dict[str, Any] = {"nats_mode": "single-account", "access_tidy_interval_s": 0.1}
    async with running_agent(plain, database_url, **given) as agent, connected(plain) as client:
        await ask(client, "set_user", {"name": "bot", "roles": ["admin"]})
        made = (await ask(client, "create_api_key", {"name": "k", "user": "bot"})).result
        await becomes(client, made["secret"], None)

        async def noted() -> bool:
            (key,) = (await ask(client, "list_api_keys")).result["keys"]
            return key["last_used_at"] is not None

        await eventually(noted)
        await agent.services.database.execute(
            "INSERT INTO used_nonce VALUES ('default', 'x', 'y', now() - interval '1 s')"
        )

        async def forgotten() -> bool:
            return await agent.services.database.fetchval("SELECT count(*) FROM used_nonce") == 0

        await eventually(forgotten)


async def test_accounts_mode_ignores_keys_and_signatures(tenants_bus: EmbeddedNats, database_url: str) -> None:
    """The server says who it is; a header of the caller's adds nothing and takes nothing."""
    await forget_streams(tenants_bus.agent_url)
    given: dict[str, Any] = {
        "default_roles": None,
        "roles": {"acme/acme-root": ("admin",), "acme/acme-viewer": ("viewer",)},
    }
    async with (
        running_agent(tenants_bus.agent_url, database_url, **given),
        connected(tenants_bus.url_for("acme-root", PASSWORD)) as root,
        connected(tenants_bus.url_for("acme-viewer", PASSWORD)) as viewer,
    ):
        key = NKey.new()
        await ask(root, "set_user", {"name": "boss", "roles": ["admin"], "public_key": key.text})
        made = (await ask(root, "create_api_key", {"name": "k", "user": "boss"})).result
        for headers in ({KEY_HEADER: made["secret"]}, {KEY_HEADER: "tm_x_y"}, sign(key)):
            assert (await asked(viewer, headers)).code == "forbidden"
            assert (await asked(viewer, headers, "list_budgets", b"{}")).result["budgets"] == []


async def test_nonces_are_bounded_and_never_forgotten_early(database_url: str, ctx: Context) -> None:
    key = NKey.new()
    await set_user(ctx, SetUser(name="boss", roles=["admin"], public_key=key.text))
    limits = DirectoryLimits(users_max=10, keys_max=10, changes_max=10, reread_s=60, stale_max_s=90)
    directory = Directory(database_url, limits, Backoff(0.1, 1), with_keys=True)
    await directory.open()
    await directory.close()
    proofs = Proofs(directory, window_s=30, nonces_max=2)
    start = datetime.now(UTC)

    def use(after_s: float, nonce: str, signed_s: float | None = None) -> str | None:
        at = start + timedelta(seconds=after_s)
        signed = start + timedelta(seconds=after_s if signed_s is None else signed_s)
        headers = sign(key, at_ms=int(signed.timestamp() * 1000), nonce=nonce)
        try:
            proofs.signature(headers, subject=SUBJECT, payload=BODY, now=at)
        except SignalError as error:
            return error.code
        return None

    a, b, c = "a" * 16, "b" * 16, "c" * 16
    assert [use(0, a, signed_s=30), use(1, b)] == [None, None]
    assert use(2, c) == "unavailable"
    assert use(59, a, signed_s=30) == "unauthenticated"
    assert use(60.5, c) is None
    assert use(61, "d" * 16) == "unavailable"
