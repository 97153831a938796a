"""The HTTP side car against a real nats-server and a responder of a few lines."""
# pyright: reportUnknownMemberType=false
# nats-py leaves the options of its calls untyped.

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import nats
import pytest
import uvicorn
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.conftest import NatsServer
from tests.support.polling import eventually
from web.app import Settings, create_app
from web.metrics import render

ROOT = Path(__file__).parent.parent.parent
STATUS = {
    "status": "ok",
    "version": "1.2.3",
    "ready": True,
    "lag": {"stream_messages": 7, "oldest_s": 0.5},
    "jobs": [{"name": "expire", "runs": 3}, {"name": 'a"b', "runs": 4}],
    "samples": [1, 2],
}


@asynccontextmanager
async def serving(settings: Settings) -> AsyncGenerator[httpx.AsyncClient]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="warning", ws="none", lifespan="on"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    await eventually(lambda: server.started, message="uvicorn did not start")
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
        yield client
    server.should_exit = True
    await task
    listener.close()


@pytest.fixture
async def agent(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A responder in place of the agent: echoes, refuses, keeps silent, or gives its status."""
    client = await nats.connect(nats_server.agent_url)

    async def answer(message: Msg) -> None:
        match message.subject.rsplit(".", 1)[1]:
            case "get_status":
                await message.respond(json.dumps(STATUS).encode())
            case "echo":
                await message.respond(message.data)
            case "refuse":
                headers = {"Nats-Service-Error-Code": "409", "Nats-Service-Error": "conflict"}
                await client.publish(message.reply, b'{"error":{"code":"conflict"}}', headers=headers)
            case _:
                pass

    for signal in ("get_status", "echo", "refuse", "silent"):
        await client.subscribe(f"tm.req.*.{signal}", cb=answer)
    await client.flush()
    await client.flush()
    yield client
    await client.close()


@pytest.fixture
async def http(nats_server: NatsServer, agent: Client) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(
        Settings(nats_url=nats_server.url, hosts=frozenset({"tokens.example"}), timeout_s=0.2)
    ) as client:

        async def ready() -> bool:
            return (await client.get("/readyz")).status_code == 200

        await eventually(ready, message="never ready")
        yield client


async def test_a_body_is_passed_to_the_signal_and_its_reply_comes_back(http: httpx.AsyncClient) -> None:
    reply = await http.post("/v1/echo", json={"a": "é"})
    assert (reply.status_code, reply.json()) == (200, {"a": "é"})
    assert reply.headers["content-type"] == "application/json"
    assert (await http.post("/v1/echo", content=b'{"b":1}')).json() == {"b": 1}
    assert (await http.post("/v1/echo")).json() == {}


async def test_the_agents_error_code_becomes_the_status_and_its_body_passes(http: httpx.AsyncClient) -> None:
    reply = await http.post("/v1/refuse", json={})
    assert (reply.status_code, reply.json()) == (409, {"error": {"code": "conflict"}})


@pytest.mark.parametrize("signal", ["silent", "nobody_is_there"])
async def test_no_answer_is_unavailable(http: httpx.AsyncClient, signal: str) -> None:
    reply = await http.post(f"/v1/{signal}", json={})
    assert reply.status_code == 503
    error = reply.json()["error"]
    assert (error["code"], error["field"], error["correlation_id"]) == ("unavailable", None, None)
    assert signal in error["message"]


@pytest.mark.parametrize("path", ["/v1/ECHO", "/v1/echo.x", "/v1/%3E", "/v1/a%20b", "/v1/a/b", "/v1/", "/nothing"])
async def test_what_is_no_signal_is_not_found(http: httpx.AsyncClient, path: str) -> None:
    reply = await http.post(path, json={})
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "not_found"


async def test_a_body_over_one_megabyte_is_too_large(http: httpx.AsyncClient) -> None:
    most = b'"' + b"a" * 999_998 + b'"'
    assert (await http.post("/v1/echo", content=most)).status_code == 200
    reply = await http.post("/v1/echo", content=most + b" ")
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:1"}, 200),
        ({"host": "tokens.example"}, 200),
        ({"host": "Tokens.Example:443"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "[bad"}, 403),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, 200),
        ({"host": "localhost:1", "origin": "http://localhost:2"}, 403),
        ({"host": "localhost:1", "origin": "null"}, 403),
        ({"host": "localhost:1", "origin": "http://evil.example"}, 403),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "text/plain"}, 415),
    ],
)
async def test_pages_of_other_sites_are_kept_out(http: httpx.AsyncClient, headers: dict[str, str], status: int) -> None:
    reply = await http.post("/v1/echo", content=b"{}", headers=headers)
    assert reply.status_code == status, reply.text


async def test_reading_is_guarded_by_the_host_name_too(http: httpx.AsyncClient) -> None:
    for path in ("/", "/metrics", "/readyz"):
        assert (await http.get(path, headers={"host": "evil.example"})).status_code == 403


async def test_the_page_says_what_this_is(http: httpx.AsyncClient) -> None:
    reply = await http.get("/")
    assert "Token Manager" in reply.text
    assert str(http.base_url.port) in reply.text
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]


async def test_metrics_are_the_numbers_of_the_status(http: httpx.AsyncClient) -> None:
    reply = await http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    lines = set(reply.text.splitlines())
    assert {
        "token_manager_up 1.0",
        'token_manager_ready{item=""} 1.0',
        'token_manager_lag_stream_messages{item=""} 7.0',
        'token_manager_lag_oldest_s{item=""} 0.5',
        'token_manager_jobs_runs{item="expire"} 3.0',
        'token_manager_jobs_runs{item="a\\"b"} 4.0',
    } <= lines
    assert "version" not in reply.text
    assert "samples" not in reply.text


def test_the_number_of_metrics_is_bounded() -> None:
    assert len(render({f"f{n}": n for n in range(10_000)}).splitlines()) < 3 * 2_100


async def test_without_a_bus_it_is_alive_but_not_ready() -> None:
    async with serving(Settings(nats_url="nats://127.0.0.1:1")) as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).json()["error"]["code"] == "unavailable"
        assert (await client.post("/v1/echo", json={})).status_code == 503
        assert "token_manager_up 0.0" in (await client.get("/metrics")).text


@pytest.mark.usefixtures("agent")
async def test_the_program_serves_on_loopback_and_ends_on_sigterm(nats_server: NatsServer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = (sys.executable, "-m", "web", "--nats-url", nats_server.url, "--port", str(port))
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=os.environ, stderr=subprocess.PIPE)

    async def ready() -> bool:
        try:
            return (await client.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        await eventually(ready, message="never ready")
    process.terminate()
    _, errors = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, errors) in ((0, b""), (-15, b""))
