"""Agents as processes that a test kills and starts again, and callers that never take silence for an answer."""
# pyright: reportUnknownMemberType=false, reportArgumentType=false
# nats-py leaves the options of its calls untyped, or says int where it takes seconds as a float.

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from nats import errors as nats_errors
from nats.aio.client import Client

from agent.embedded import DataDir, EmbeddedNats, EmbeddedPostgres
from agent.embedded.leftover import find_processes
from tests.support.polling import eventually
from tests.support.vault import TEST_SECRET

ROOT = Path(__file__).parent.parent.parent
READY_S = 40.0
ANSWER_S = 2.0
PERSIST_S = 45.0
TEMPORARY = frozenset({"unavailable", "rate_limited"})


class Unanswered(Exception):
    """Nobody answered; whether the request had an effect is not known."""


class Refused(Exception):
    """An error reply."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['code']}: {error['message']}")
        self.code: str = error["code"]


class AgentProcess:
    """`python -m agent` on its own data folder. Starts again as often as a test wants."""

    def __init__(self, folder: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.log_path = folder.with_name(folder.name + ".log")
        self._env = dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "start() comes first"
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        assert self._process is not None, "start() comes first"
        return self._process.poll()

    def launch(self, *options: str) -> None:
        """Start the process and do not wait for it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TOKEN_MANAGER_")}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "agent", "--data-dir", str(self.folder), "--no-http", *options),
                cwd=ROOT,
                env={**clean, **self._env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    async def start(self) -> dict[str, Any]:
        """Start the process; returns its `runtime.json` once it serves."""
        self.launch()
        return await self.ready()

    async def ready(self, timeout_s: float = READY_S) -> dict[str, Any]:
        """Wait until it serves."""

        def look() -> dict[str, Any] | None:
            if self.returncode is not None:
                raise RuntimeError(f"the agent ended with {self.returncode}:\n{self.log()}")
            return self.serves()

        runtime = await eventually(look, timeout_s, f"{self.folder.name} is not ready")
        assert runtime is not None
        return runtime

    def serves(self) -> dict[str, Any] | None:
        """Its `runtime.json`, if it is its own and not that of a killed predecessor."""
        with contextlib.suppress(FileNotFoundError):
            runtime: dict[str, Any] = json.loads((self.folder / "runtime.json").read_text())
            return runtime if runtime["pid"] == self.pid else None
        return None

    def send(self, what: signal.Signals) -> None:
        """Signal it, unless it has ended."""
        assert self._process is not None, "start() comes first"
        if self._process.poll() is None:
            self._process.send_signal(what)

    async def kill(self) -> None:
        """End it as a crash would."""
        self.send(signal.SIGKILL)
        await self.ended()

    async def stop(self, timeout_s: float = 60.0) -> tuple[int, float]:
        """Ask it to end; its exit status and how many seconds that took."""
        began = time.monotonic()
        self.send(signal.SIGTERM)
        status = await self.ended(timeout_s)
        return status, time.monotonic() - began

    async def ended(self, timeout_s: float = 60.0) -> int:
        """Its exit status, once it has ended."""
        await eventually(lambda: self.returncode is not None, timeout_s, f"{self.folder.name} does not end")
        assert self.returncode is not None
        return self.returncode

    async def discard(self) -> None:
        """Make sure that it is gone, whatever happened."""
        if self._process is not None:
            await self.kill()

    def log(self) -> str:
        """Everything it wrote."""
        return self.log_path.read_text(errors="replace")

    def servers(self) -> dict[str, list[int]]:
        """The private servers that run in its folder, by name."""
        return {
            "nats-server": find_processes(self.folder / "nats", command="nats-server"),
            "postgres": find_processes(self.folder / "postgres" / "data", command="postgres"),
        }


@dataclass
class Tally:
    """How requests went."""

    asked: int = 0
    answered: int = 0
    refused: dict[str, int] = field(default_factory=dict[str, int])
    timeouts: int = 0
    no_responders: int = 0
    slowest_s: float = 0.0

    @property
    def unanswered(self) -> int:
        return self.timeouts + self.no_responders


class Caller:
    """A client of the bus, in account `default`."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.tally = Tally()

    async def ask(self, name: str, body: Any, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The reply to one signal. Raises Unanswered or Refused."""
        return await self.send(f"token.{name}", json.dumps(body).encode(), timeout_s)

    async def send(self, subject: str, data: bytes, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The reply to one message, JSON. Raises Unanswered or Refused."""
        began = time.monotonic()
        self.tally.asked += 1
        try:
            message = await self.client.request(subject, data, timeout=timeout_s)
        except nats_errors.NoRespondersError:
            self.tally.no_responders += 1
            raise Unanswered(f"{subject}: no responders") from None
        except (nats_errors.Error, OSError, TimeoutError) as error:
            self.tally.timeouts += 1
            raise Unanswered(f"{subject}: {type(error).__name__}") from error
        self.tally.slowest_s = max(self.tally.slowest_s, time.monotonic() - began)
        self.tally.answered += 1
        reply: dict[str, Any] = json.loads(message.data)
        error = reply.get("error")
        if error is not None and "id" not in reply:
            code = str(error["code"])
            self.tally.refused[code] = self.tally.refused.get(code, 0) + 1
            raise Refused({"message": error.get("description", ""), **error})
        return reply

    async def persist(self, name: str, body: Any, timeout_s: float = PERSIST_S) -> dict[str, Any]:
        """Ask again, with the same body, until there is an answer that is final."""
        return await self.persist_raw(f"token.{name}", json.dumps(body).encode(), timeout_s)

    async def persist_raw(self, subject: str, data: bytes, timeout_s: float = PERSIST_S) -> dict[str, Any]:
        """As `persist`, for any subject."""

        async def attempt() -> dict[str, Any] | None:
            try:
                return await self.send(subject, data)
            except Unanswered:
                return None
            except Refused as error:
                if error.code not in TEMPORARY and error.code != "503":
                    raise
                return None

        reply = await eventually(attempt, timeout_s, f"no final answer to {subject}")
        assert reply is not None
        return reply


@contextlib.asynccontextmanager
async def calling(url: str) -> AsyncGenerator[Caller]:
    """A caller connected to `url`; it reconnects by itself."""

    async def hush(error: Exception) -> None:
        del error

    client = Client()
    await client.connect(
        url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, connect_timeout=2, error_cb=hush, allow_reconnect=True
    )
    try:
        yield Caller(client)
    finally:
        await client.close()


@dataclass
class Cluster:
    """A bus, a database and agents on them, each a process of its own."""

    bus: EmbeddedNats
    database: EmbeddedPostgres
    agents: list[AgentProcess]

    @property
    def env(self) -> dict[str, str]:
        return agent_env(self.bus.agent_url, self.database.url)


def agent_env(nats_url: str, database_url: str, **more: str) -> dict[str, str]:
    """The environment of an agent on given servers whose local caller may do everything."""
    return {
        "TOKEN_MANAGER_NATS_URL": nats_url,
        "TOKEN_MANAGER_DATABASE_URL": database_url,
        "TOKEN_MANAGER_DEFAULT_ROLES": '["admin"]',
        "TOKEN_MANAGER_SECRET_KEY": TEST_SECRET,
        **more,
    }


@contextlib.asynccontextmanager
async def running_cluster(folder: Path, *, agents: int, **env: str) -> AsyncGenerator[Cluster]:
    """Servers and `agents` agents that serve; nothing of them is left afterwards."""
    with DataDir(folder / "servers") as data:
        bus, database = EmbeddedNats(data), EmbeddedPostgres(data)
        processes: list[AgentProcess] = []
        try:
            await asyncio.gather(bus.start(), database.start())
            given = agent_env(bus.agent_url, database.url, **env)
            processes += [AgentProcess(folder / f"agent{n}", env=given) for n in range(agents)]
            await asyncio.gather(*(process.start() for process in processes))
            yield Cluster(bus, database, processes)
        finally:
            await asyncio.gather(*(process.discard() for process in processes))
            await asyncio.gather(bus.stop(), database.stop())


@contextlib.asynccontextmanager
async def embedded_agent(folder: Path, **env: str) -> AsyncGenerator[AgentProcess]:
    """An agent with private servers, started; it and they are gone afterwards."""
    process = AgentProcess(folder, env=env)
    try:
        await process.start()
        yield process
    finally:
        await process.discard()
        await gone(process)


async def gone(process: AgentProcess, timeout_s: float = 30.0) -> None:
    """Wait until none of the private servers of a dead agent is left."""
    await eventually(lambda: not any(process.servers().values()), timeout_s, "servers outlive their agent")


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]"]:
    """A database connection of the test's own."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        connection.terminate()


async def elapsed(event: asyncio.Event, seconds: float) -> bool:
    """Wait for `event` at most `seconds`; whether it came."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


def seeded() -> tuple[int, random.Random]:
    """The seed (`CHAOS_SEED`, else a new one) and its generator."""
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    return seed, random.Random(seed)


def seconds(name: str, default: float) -> float:
    """A duration from the environment."""
    return float(os.environ.get(name) or default)
