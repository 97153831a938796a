"""The embedded servers: start, stop, restart, crash, and the accounts of the bus."""
# pyright: reportUnknownMemberType=false
# nats-py leaves the options of its calls untyped.

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import nats
import pytest
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.js.api import StreamConfig

from agent.embedded import AccountSpec, DataDir, EmbeddedNats, EmbeddedPostgres, EmbeddedServerError, UserSpec
from agent.embedded.leftover import find_processes


@pytest.fixture
async def data(tmp_path: Path) -> AsyncIterator[DataDir]:
    with DataDir(tmp_path / "d") as data:
        yield data


async def test_both_servers_start_at_the_same_time_and_stop_without_leaving_a_process(data: DataDir) -> None:
    bus, database = EmbeddedNats(data), EmbeddedPostgres(data)
    await asyncio.gather(bus.start(), database.start())
    connection = await asyncpg.connect(database.url)
    assert await connection.fetchval("SHOW synchronous_commit") == "on"
    assert await connection.fetchval("SHOW server_encoding") == "UTF8"
    await connection.close()
    await asyncio.gather(bus.stop(), database.stop())
    assert find_processes(data.path / "postgres" / "data", command="postgres") == []
    assert find_processes(data.path / "nats", command="nats-server") == []


async def test_postgres_keeps_data_and_port_over_a_restart_and_over_a_crash(data: DataDir) -> None:
    server = EmbeddedPostgres(data)
    await server.start()
    url = server.url
    await _execute(url, "CREATE TABLE kept (n int)")
    await server.restart()
    await _execute(url, "INSERT INTO kept VALUES (1)")
    await server.kill()
    await server.start()
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT count(*) FROM kept") == 1
    await connection.close()
    await server.stop()


async def test_postgres_answers_over_tcp_with_the_password_only(data: DataDir) -> None:
    server = EmbeddedPostgres(data)
    await server.start()
    await _execute(server.tcp_url, "SELECT 1")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(server.tcp_url, password="wrong")
    await server.stop()


async def test_postgres_uses_tcp_where_the_socket_path_would_be_too_long(tmp_path: Path) -> None:
    with DataDir(tmp_path / ("long" * 25)) as data:
        server = EmbeddedPostgres(data)
        await server.start()
        assert server.url == server.tcp_url
        await _execute(server.url, "SELECT 1")
        await server.stop()


async def test_a_broken_configuration_is_reported_with_the_servers_own_words(data: DataDir) -> None:
    server = EmbeddedPostgres(data)
    await server.start()
    await server.stop()
    (data.path / "postgres" / "data" / "local.conf").write_text("shared_buffers = 'many'\n")
    with pytest.raises(EmbeddedServerError, match=r"ended with status 1.*\n(.*\n)*.*shared_buffers"):
        await server.start()


async def test_a_cluster_of_another_postgresql_is_refused_by_name(data: DataDir) -> None:
    server = EmbeddedPostgres(data)
    await server.start()
    await server.stop()
    (data.path / "postgres" / "data" / "PG_VERSION").write_text("19\n")
    with pytest.raises(EmbeddedServerError, match=r"holds a cluster of PostgreSQL 19; .* runs PostgreSQL 18"):
        await server.start()


async def test_a_broken_off_initdb_is_repeated(data: DataDir) -> None:
    left = data.folder("postgres") / "data.new-1"
    left.mkdir()
    (left / "PG_VERSION").write_text("18\n")
    server = EmbeddedPostgres(data)
    await server.start()
    await server.stop()
    assert not left.exists()


async def test_nats_keeps_streams_and_port_over_a_restart_and_over_a_crash(data: DataDir) -> None:
    server = EmbeddedNats(data)
    await server.start()
    url = server.agent_url
    await _publish(url, "kept.1")
    await server.restart()
    await _publish(url, "kept.2")
    await server.kill()
    await server.start()
    client = await nats.connect(url)
    assert (await client.jetstream().stream_info("KEPT")).state.messages == 2
    await client.close()
    await server.stop()


async def test_the_server_tells_the_agent_the_org_and_the_user_of_each_request(data: DataDir) -> None:
    acme = AccountSpec(name="acme", users=(UserSpec(name="u", password="p-1_", publish=("token.get_status",)),))
    server = EmbeddedNats(data, extra_accounts=(acme,))
    await server.start()
    agent, local = await nats.connect(server.agent_url), await nats.connect(server.url)
    tenant = await nats.connect(server.url_for("u", "p-1_"))

    async def answer(message: Msg) -> None:
        stamp = (message.headers or {})["Nats-Request-Info"]
        await message.respond(f"{message.subject} {stamp}".encode())

    await agent.subscribe("tm.req.*.get_status", cb=answer)
    await agent.flush()
    await agent.flush()
    assert b"tm.req.default.get_status " in (await local.request("token.get_status", b"{}")).data
    reply = (await tenant.request("token.get_status", b"{}")).data
    assert b"tm.req.acme.get_status " in reply
    assert b'"user":"u"' in reply
    with pytest.raises(NoRespondersError):
        await local.request("token.unknown", b"{}")
    for client in (agent, local, tenant):
        await client.close()
    await server.stop()


async def test_a_server_that_cannot_listen_says_so(data: DataDir, tmp_path: Path) -> None:
    first = EmbeddedNats(data)
    await first.start()
    refused = pytest.raises(EmbeddedServerError, match=f"port {first.port} is taken|address already in use")
    with DataDir(tmp_path / "other") as other, refused:
        await EmbeddedNats(other, port=first.port).start()
    await first.stop()


async def test_a_named_nats_server_that_does_not_exist_is_refused(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_MANAGER_NATS_SERVER", "/nonexistent/nats-server")
    with pytest.raises(EmbeddedServerError, match="TOKEN_MANAGER_NATS_SERVER is not a program"):
        await EmbeddedNats(data).start()


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _publish(url: str, subject: str) -> None:
    client = await nats.connect(url)
    stream = client.jetstream()
    await stream.add_stream(StreamConfig(name="KEPT", subjects=["kept.>"]))
    await stream.publish(subject, b"x")
    await client.close()
