"""Where things are measured: private servers as users get them; agents and load generators are own processes."""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg
import msgspec

from agent.embedded import DataDir, EmbeddedNats, EmbeddedPostgres
from agent.embedded.process import Launch, ManagedProcess
from bench.load import LoadResult, LoadSpec
from bench.payloads import BUDGETS
from bench.replay.service import ROOT, read_runtime
from bench.requester import Requester

READY_S = 60.0
STOP_S = 30.0
LOAD_S = 120.0
POLL_S = 0.002
LIMIT = "900000000"


class BenchError(Exception):
    """A measurement could not be made; the text says why."""


@dataclass
class AgentProcess:
    """A running agent. `start_s` is how long it took until it was ready."""

    process: ManagedProcess
    data_dir: Path
    start_s: float

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    async def stop(self) -> None:
        """Let it drain and end."""
        await self.process.stop(grace_s=STOP_S)

    def forget_samples(self) -> None:
        """Start the profile anew, where the agent runs under the sampler."""
        self.process.send(signal.SIGUSR1)


async def start_agent(
    data_dir: Path, *, env: Mapping[str, str] | None = None, http: bool = False, profile: Path | None = None
) -> AgentProcess:
    """Start an agent and return when it is ready. Raises BenchError with the end of its log."""
    command = ("-m", "agent") if profile is None else ("-m", "bench.sampler", str(profile))
    argv = (sys.executable, *command, "--data-dir", str(data_dir), *(() if http else ("--no-http",)))
    log = data_dir.with_name(data_dir.name + ".log")
    variables = {"TOKEN_MANAGER_LOG_LEVEL": "warning", **(env or {})}
    began = time.perf_counter()
    process = ManagedProcess(Launch(name="agent", argv=argv, cwd=ROOT, log_path=log, env=variables))
    while time.perf_counter() - began < READY_S:
        runtime = read_runtime(data_dir)
        if runtime is not None and runtime.pid == process.pid:
            return AgentProcess(process, data_dir, time.perf_counter() - began)
        if process.returncode is not None:
            break
        await asyncio.sleep(POLL_S)
    await process.stop(grace_s=STOP_S)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise BenchError(f"the agent did not become ready (status {process.returncode}):\n{tail}")


@dataclass
class Stand:
    """One nats-server and one PostgreSQL, empty at first. Everything started on it ends with it."""

    folder: Path
    run_numbers: int = 0
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        data = self._stack.enter_context(DataDir(self.folder / "servers"))
        self.nats, self.postgres = EmbeddedNats(data), EmbeddedPostgres(data)
        for server in (self.nats, self.postgres):
            await server.start()
            self._stack.push_async_callback(server.stop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def env(self) -> dict[str, str]:
        """The environment of an agent that uses these servers."""
        return {
            "TOKEN_MANAGER_NATS_URL": self.nats.agent_url,
            "TOKEN_MANAGER_WEB_NATS_URL": self.nats.url,
            "TOKEN_MANAGER_DATABASE_URL": self.postgres.url,
            "TOKEN_MANAGER_DEFAULT_ROLES": '["admin"]',
            "TOKEN_MANAGER_SECRET_KEY": "a key for benchmarks only",
        }

    async def agent(self, name: str, *, profile: Path | None = None) -> AgentProcess:
        """Start an agent on these servers."""
        agent = await start_agent(self.folder / name, env=self.env, profile=profile)
        self._stack.push_async_callback(agent.stop)
        return agent

    async def create_budgets(self) -> None:
        """The hot tree: four blocking monthly budgets that every message of the load counts in."""
        requester = await Requester.to(self.nats.url)
        for kind, entity in BUDGETS:
            budget = {"name": f"hot-{kind}", "type": kind, "entity_id": entity, "limit": LIMIT}
            await requester.ask("create_budget", budget)
        await requester.close()

    async def echo(self, subject: str, *, direct: bool = False) -> "asyncio.subprocess.Process":
        """Start the echo service and return when it listens; the caller ends it with `end`."""
        return await start_helper("bench.echo", self.nats.url, subject, *(("--direct",) if direct else ()))

    async def load(self, subject: str, kind: str, **options: object) -> LoadResult:
        """Run one load from a process of its own. Raises BenchError when a request failed."""
        self.run_numbers += 1
        url = options.pop("url", self.nats.url)
        run = f"r{self.run_numbers}-{os.getpid()}"
        spec = msgspec.convert({"url": url, "subject": subject, "kind": kind, "run": run, **options}, LoadSpec)
        return await run_load(spec)

    async def connection(self) -> asyncpg.Connection:
        """A connection to the database, for looking and for references."""
        return await asyncpg.connect(self.postgres.url)


async def run_load(spec: LoadSpec) -> LoadResult:
    """Run a load generator with this specification. Raises BenchError."""
    output = await run_helper("bench.load", msgspec.json.encode(spec).decode())
    result = msgspec.json.decode(output, type=LoadResult)
    if result.failed:
        raise BenchError(f"{result.failed} of {spec.kind} failed: {result.problem}")
    return result


async def start_helper(module: str, *arguments: str) -> "asyncio.subprocess.Process":
    """Start a helper process and return when it has said that it is ready."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), READY_S)
    return process


async def run_helper(module: str, *arguments: str) -> bytes:
    """Run a helper process to its end, at most LOAD_S; what it printed. Raises BenchError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", module, *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, problems = await asyncio.wait_for(process.communicate(), LOAD_S)
    finally:
        await end(process)
    if process.returncode:
        raise BenchError(f"{module} failed:\n{problems.decode(errors='replace')[-2000:]}")
    return output


async def end(process: "asyncio.subprocess.Process") -> None:
    """End a helper process."""
    if process.returncode is None:
        process.terminate()
        await process.wait()


def temporary_folder(near: Path | None) -> "tempfile.TemporaryDirectory[str]":
    """A folder for servers; `near` chooses the file system, which decides what fsync costs."""
    return tempfile.TemporaryDirectory(prefix="tm-bench-", dir=near, ignore_cleanup_errors=True)
