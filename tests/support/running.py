"""A running agent for tests: in this process (fast) or as a process of its own, and one question at a time.

The usage stream belongs to the nats-server, not to the database: whoever starts an agent on an empty database calls
`forget_streams` first, or has a server of its own.
"""
# pyright: reportUnknownMemberType=false
# nats-py leaves the options of its calls untyped.

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import nats
from nats.aio.client import Client

from agent.actor import TokenManagerAgent
from agent.settings import Settings
from schemas.subjects import DEAD_LETTER_STREAM, EVENTS_STREAM, USAGE_STREAM, request_subject
from tests.support.polling import eventually
from tests.support.services import RATE_CARDS
from tests.support.vault import TEST_VAULT

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 15.0
START_S = 60.0
ERROR_HEADER = "Nats-Service-Error"
CODE_HEADER = "Nats-Service-Error-Code"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. `status` is the number in the error header, None where the request succeeded."""

    status: int | None
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def code(self) -> str | None:
        """The error code, None where the request succeeded."""
        return self.body["error"]["code"] if self.status is not None else None

    @property
    def field(self) -> str | None:
        """The field an error names."""
        return self.body["error"].get("field")

    @property
    def result(self) -> dict[str, Any]:
        """The body of a success; anything else fails the test that asked."""
        assert self.status is None, f"refused: {self.body}"
        return self.body


async def ask(client: Client, signal: str, body: object = None, *, timeout_s: float = TIMEOUT_S) -> Reply:
    """Send one request and return its reply. `body` is JSON-ready, or bytes that go out as they are."""
    return await ask_on(client, request_subject(signal), body, timeout_s=timeout_s)


async def ask_on(
    client: Client,
    subject: str,
    body: object = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Reply:
    """As `ask`, on any subject and with headers."""
    answer = await client.request(subject, payload_of(body), timeout=timeout_s, headers=dict(headers or {}) or None)
    found = {key: str(value) for key, value in (answer.headers or {}).items()}
    code = found.get(CODE_HEADER)
    return Reply(None if code is None else int(code), msgspec.json.decode(answer.data), found)


async def store(client: Client, subject: str, body: object, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Publish on a captured subject and return the stream's PubAck."""
    answer = await client.request(subject, payload_of(body), timeout=timeout_s)
    ack: dict[str, Any] = msgspec.json.decode(answer.data)
    assert "error" not in ack, ack
    return ack


def payload_of(body: object) -> bytes:
    """The bytes of a request."""
    if body is None:
        return b"{}"
    return body if isinstance(body, bytes) else msgspec.json.encode(body)


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[Client]:
    """A plain client, as callers use it."""
    client = await nats.connect(url, connect_timeout=5, max_reconnect_attempts=0)
    try:
        yield client
    finally:
        await client.close()


async def forget_streams(agent_url: str) -> None:
    """Delete what earlier agents left on a server."""
    async with connected(agent_url) as client:
        for stream in (USAGE_STREAM, EVENTS_STREAM, DEAD_LETTER_STREAM):
            await client.request(f"$JS.API.STREAM.DELETE.{stream}", b"", timeout=TIMEOUT_S)


@asynccontextmanager
async def running_agent(nats_url: str, database_url: str, **settings: Any) -> AsyncGenerator[TokenManagerAgent]:
    """An agent in this process, drained afterwards. Everybody is admin unless `settings` say otherwise."""
    given: dict[str, Any] = {"default_roles": ("admin",), "outbox_poll_s": 0.2, "drain_timeout_s": 5.0} | settings
    agent = TokenManagerAgent(
        Settings(**given), nats_url=nats_url, database_url=database_url, rate_cards=RATE_CARDS, vault=TEST_VAULT
    )
    await agent.start()
    try:
        yield agent
    finally:
        await agent.drain()


@dataclass(slots=True)
class AgentProcess:
    """`python -m agent`, ready. `runtime` is what it wrote for others to find it."""

    process: asyncio.subprocess.Process
    data_dir: Path
    runtime: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def nats_url(self) -> str:
        """Where callers connect."""
        return self.runtime["nats_url"]

    @property
    def log(self) -> str:
        """What it has written so far."""
        return (self.data_dir.parent / f"{self.data_dir.name}.log").read_text(encoding="utf-8", errors="replace")

    async def kill(self) -> None:
        """End it as a crash would."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """Ask it to drain and end; returns the exit status."""
        return await self._end(signal.SIGTERM)

    async def _end(self, how: signal.Signals) -> int:
        if self.process.returncode is None:
            self.process.send_signal(how)
        try:
            return await asyncio.wait_for(self.process.wait(), START_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise AssertionError(f"the agent did not end:\n{self.log[-2000:]}") from None


@asynccontextmanager
async def agent_process(
    data_dir: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> AsyncGenerator[AgentProcess]:
    """An agent as a process of its own, with private servers unless `environment` names real ones."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TOKEN_MANAGER_")}
    with (data_dir.parent / f"{data_dir.name}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent", "--data-dir", str(data_dir), "--no-http", *arguments),
            cwd=ROOT,
            env=inherited | dict(environment or {}),
            stdout=log,
            stderr=log,
        )
    agent = AgentProcess(process, data_dir)

    def ready() -> bool:
        if process.returncode is not None:
            raise RuntimeError(f"the agent ended with status {process.returncode}:\n{agent.log[-2000:]}")
        try:
            agent.runtime = json.loads((data_dir / "runtime.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False
        return agent.runtime["pid"] == process.pid

    try:
        await eventually(ready, START_S, "the agent was not ready")
        yield agent
    finally:
        await agent.stop()
