"""Servers that a killed agent left behind in a data folder.

A process is ours only if its working directory *is* the server's folder and its name is the server's: a pid from a file
proves nothing. Whoever calls this holds the lock of the data folder, so no living agent owns what is found. Where there
is no /proc nothing is found, and the server's own lock decides.
"""

import asyncio
import logging
import os
import signal
import time
from pathlib import Path

from agent.embedded.errors import EmbeddedServerError

logger = logging.getLogger(__name__)

COMMAND_NAME_MAX = 15  # the kernel keeps 15 characters, proc(5)
POLL_S = 0.01
KILL_WAIT_S = 5.0


async def wait_for_leftovers(folder: Path, *, command: str, wait_s: float) -> None:
    """Return when no process `command` works in `folder`: wait for those that are ending, then kill them.

    Raises `EmbeddedServerError` when one survives even that.
    """
    if await _all_gone(folder, command=command, wait_s=wait_s):
        return
    for pid in find_processes(folder, command=command):
        logger.warning("killing %s (pid %d), left in %s by an agent that was killed", command, pid, folder)
        _kill(pid)
    if not await _all_gone(folder, command=command, wait_s=KILL_WAIT_S):
        pids = ", ".join(map(str, find_processes(folder, command=command)))
        raise EmbeddedServerError(f"{command} (pid {pids}) still uses {folder} and could not be ended")


async def _all_gone(folder: Path, *, command: str, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while find_processes(folder, command=command):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


def find_processes(folder: Path, *, command: str) -> list[int]:
    """Return the pids of the processes named `command` whose working directory is `folder`."""
    proc = Path("/proc")
    if not proc.is_dir():
        return []
    wanted = str(folder.resolve())
    pids = [int(entry.name) for entry in proc.iterdir() if entry.name.isdecimal()]
    return [pid for pid in pids if _is_ours(proc / str(pid), wanted=wanted, command=command)]


def _is_ours(entry: Path, *, wanted: str, command: str) -> bool:
    try:
        if (entry / "comm").read_text().strip() != command[:COMMAND_NAME_MAX]:
            return False
        return str((entry / "cwd").readlink()).removesuffix(" (deleted)") == wanted
    except OSError:  # it has just ended, or it is somebody else's and not ours to read
        return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise EmbeddedServerError(f"a left-over server (pid {pid}) belongs to another user: {error}") from error
