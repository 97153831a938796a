"""The service that is driven: one that runs already, or one of our own, restarted when it dies, gone when we are."""

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec

from agent.embedded.process import Launch, ManagedProcess

ROOT = Path(__file__).resolve().parents[2]
START_S = 120.0
STOP_S = 30.0
POLL_S = 0.05
RESTARTS_MAX = 20


class NoService(Exception):
    """No service runs and none could be started; the text says why."""


class Runtime(msgspec.Struct, frozen=True):
    """What a ready agent writes into its data folder."""

    nats_url: str
    pid: int
    database_url: str = ""


@dataclass
class Service:
    """Where the service is. `own` is set where it is ours; `restarts` counts how often it had to be started again."""

    nats_url: str
    database_url: str | None = None
    own: "OwnAgent | None" = None

    @property
    def restarts(self) -> int:
        """How often our own agent died and was started again."""
        return 0 if self.own is None else self.own.restarts

    @classmethod
    async def find(cls, data_dir: Path, *, url: str | None = None, database_url: str | None = None) -> Self:
        """The service at `url`, or the one that runs on `data_dir`, or a new one on it. Raises NoService."""
        if url is not None:
            return cls(url, database_url)
        running = read_runtime(data_dir)
        if running is not None and is_alive(running.pid):
            return cls(running.nats_url, database_url or running.database_url)
        own = OwnAgent(data_dir)
        started = await own.start()
        return cls(started.nats_url, database_url or started.database_url, own)

    async def close(self) -> None:
        """Stop the service if it is ours."""
        if self.own is not None:
            await self.own.stop()


def _log_path() -> Path:
    """Outside of the data folder, which the agent wants to itself."""
    handle, name = tempfile.mkstemp(prefix="replay-agent-", suffix=".log")
    os.close(handle)
    return Path(name)


@dataclass
class OwnAgent:
    """An agent with private servers as a child process."""

    data_dir: Path
    restarts: int = 0
    _process: ManagedProcess | None = None
    _keeper: "asyncio.Task[None] | None" = None
    _log: Path = field(default_factory=_log_path)

    async def start(self) -> Runtime:
        """Start it and return when it is ready. Raises NoService with the end of its log."""
        runtime = await self._start()
        self._keeper = asyncio.create_task(self._keep())
        return runtime

    async def stop(self) -> None:
        """Let it drain and end. Its log is kept only if it ended badly."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._process is not None:
            await self._process.stop(grace_s=STOP_S)
        self._log.unlink(missing_ok=True)

    async def _start(self) -> Runtime:
        argv = (sys.executable, "-m", "agent", "--data-dir", str(self.data_dir.absolute()), "--no-http")
        self._process = ManagedProcess(Launch(name="agent", argv=argv, cwd=ROOT, log_path=self._log))
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            runtime = read_runtime(self.data_dir)
            if runtime is not None and runtime.pid == self._process.pid:
                return runtime
            if self._process.returncode is not None:
                raise NoService(f"the agent ended with status {self._process.returncode}:\n{self._tail()}")
            await asyncio.sleep(POLL_S)
        await self._process.stop(grace_s=STOP_S)
        raise NoService(f"the agent was not ready within {START_S:g} s:\n{self._tail()}")

    async def _keep(self) -> None:
        """Start it again whenever it dies: requests on their way are repeated until it answers."""
        while self.restarts < RESTARTS_MAX:
            assert self._process is not None
            await self._process.wait()
            self.restarts += 1
            with contextlib.suppress(NoService):
                await self._start()

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
        return ""


def read_runtime(data_dir: Path) -> Runtime | None:
    """What the agent on `data_dir` wrote when it was ready; None where there is none."""
    try:
        return msgspec.json.decode((data_dir / "runtime.json").read_bytes(), type=Runtime)
    except (OSError, msgspec.DecodeError):
        return None


def is_alive(pid: int) -> bool:
    """Whether a process has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
