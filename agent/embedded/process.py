"""One child process that never outlives the agent, and its bounded log.

Owns starting, waiting and stopping. Must never decide what to run. On Linux the kernel signals the child when the
*thread* that started it ends, so start servers from the thread that runs the event loop for the agent's whole life.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

from agent.embedded.errors import EmbeddedServerError

logger = logging.getLogger(__name__)

LAUNCHER = Path(__file__).with_name("launch.py")
LOG_BYTES_MAX = 10 * 1024 * 1024
LOG_CHECK_S = 30.0
WAIT_POLL_S = 0.05
KILL_WAIT_S = 5.0
RESTART_DELAY_MIN_S = 0.1
RESTART_DELAY_MAX_S = 10.0
STABLE_AFTER_S = 60.0


@dataclass(frozen=True, kw_only=True)
class SystemUser:
    """A user of the operating system, by number, that a child process becomes."""

    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Everything needed to start one child process."""

    name: str
    argv: tuple[str, ...]
    cwd: Path
    log_path: Path
    death_signal: signal.Signals = signal.SIGTERM
    user: SystemUser | None = None
    pass_fds: tuple[int, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])


class ManagedProcess:
    """A running child. Its process group is its own, so Ctrl-C in a terminal reaches the agent only."""

    def __init__(self, launch: Launch) -> None:
        trim_log(launch.log_path)
        self._log_path = launch.log_path
        self._popen = _spawn(launch)

    @property
    def pid(self) -> int:
        """The process id, also after the end."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or None while it runs; minus the signal number when a signal ended it."""
        return self._popen.poll()

    async def wait(self) -> int:
        """Return the exit status once the process has ended. Keeps the log below its bound meanwhile."""
        pidfd = _pidfd(self.pid)
        try:
            while self._popen.poll() is None:
                await _ended(pidfd)
                trim_log(self._log_path)
        finally:
            if pidfd is not None:
                os.close(pidfd)
        return self._popen.returncode

    async def stop(self, *, grace_s: float, stop_signal: signal.Signals = signal.SIGTERM) -> int:
        """Ask with `stop_signal`, kill after `grace_s` seconds; return the exit status. Repeatable."""
        self.send(stop_signal)
        try:
            async with asyncio.timeout(grace_s):
                return await self.wait()
        except TimeoutError:
            self.send(signal.SIGKILL)
            async with asyncio.timeout(KILL_WAIT_S):
                return await self.wait()

    def send(self, what: signal.Signals) -> None:
        """Signal the process; nothing happens when it has ended."""
        if self._popen.poll() is None:
            self._popen.send_signal(what)


def _spawn(launch: Launch) -> subprocess.Popen[bytes]:
    uid, gid = (launch.user.uid, launch.user.gid) if launch.user else (-1, -1)
    before = (str(os.getpid()), str(int(launch.death_signal)), str(uid), str(gid))
    launch.log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_fd = os.open(launch.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            (sys.executable, "-I", "-S", str(LAUNCHER), *before, *launch.argv),
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            cwd=launch.cwd,
            env={"PATH": os.defpath, "LC_ALL": "C", **launch.env},
            pass_fds=launch.pass_fds,
            process_group=0,
        )
    except OSError as error:
        raise EmbeddedServerError(f"cannot start {launch.name}: {error}") from error
    finally:
        os.close(log_fd)


def _pidfd(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # an old kernel, a sandbox, or it has ended and was reaped
        return None


async def _ended(pidfd: int | None) -> None:
    """Return when the process has ended, at the latest when the log is due for a look."""
    if pidfd is None:
        await asyncio.sleep(WAIT_POLL_S)
        return
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(pidfd, readable.set)
    try:
        async with asyncio.timeout(LOG_CHECK_S):
            await readable.wait()
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(pidfd)


def trim_log(path: Path, *, bytes_max: int = LOG_BYTES_MAX) -> None:
    """Move a log beyond `bytes_max` to `<name>.1` and go on empty; the writer appends, so it needs no telling."""
    try:
        if path.stat().st_size <= bytes_max:
            return
        content = path.read_bytes()[-bytes_max:]
        path.with_name(path.name + ".1").write_bytes(content)
        os.truncate(path, 0)
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("cannot trim the log %s: %s", path, error)


class Restartable(Protocol):
    """What `keep_running` needs of a server."""

    name: str

    async def start(self) -> None: ...

    async def wait(self) -> int: ...


async def keep_running(server: Restartable) -> NoReturn:
    """Start the server again whenever it ends, with growing delays. Cancel this before stopping the server."""
    delay_s = RESTART_DELAY_MIN_S
    while True:
        running_since = time.monotonic()
        status = await server.wait()
        if time.monotonic() - running_since > STABLE_AFTER_S:
            delay_s = RESTART_DELAY_MIN_S
        logger.error("%s ended with status %s; starting it again in %.1f s", server.name, status, delay_s)
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, RESTART_DELAY_MAX_S)
        try:
            await server.start()
        except EmbeddedServerError as error:
            logger.error("%s did not start: %s", server.name, error)
