"""The data folder: one agent at a time, and what must be the same after a restart.

Owns the lock, the version, the chosen ports, the generated passwords and `runtime.json`. Must never start anything.
"""

import fcntl
import json
import logging
import os
import secrets
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from agent.embedded.errors import EmbeddedServerError

logger = logging.getLogger(__name__)

FORMAT = 1
POSTGRESQL_MAJOR = 18
PORT_MIN = 20_000
EPHEMERAL_PORT_MIN = 32_768  # Linux's default lower end of the ports it gives to outgoing connections
PORT_TRIES_MAX = 200


class DataDir:
    """A data folder of the agent. Use as a context manager, or `open()` and `close()`.

    Example: `with DataDir("data") as data: nats = EmbeddedNats(data); await nats.start()`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().absolute()
        self._lock_fd: int | None = None

    def open(self) -> Self:
        """Create the folder (0700), lock it for the life of this process and check its version.

        Raises `EmbeddedServerError` when another agent holds it, when it is not ours, newer, or not writable.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._refuse_foreign_folder()
            self._lock()
        except OSError as error:
            raise EmbeddedServerError(f"cannot use the data folder {self.path}: {error}") from error
        try:
            self._check_version()
            self.path.chmod(0o700)
            self.remove_runtime()
        except OSError as error:
            self.close()
            raise EmbeddedServerError(f"cannot use the data folder {self.path}: {error}") from error
        except EmbeddedServerError:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Let go of the folder. Repeatable; the end of the process does the same."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def folder(self, name: str) -> Path:
        """Return the sub-folder `name`, created 0700."""
        path = self.path / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def secret(self, name: str) -> str:
        """Return the generated password `name`: made once, kept in `<name>.password` with mode 0600."""
        path = self.path / f"{name}.password"
        if not path.exists():
            write_file(path, secrets.token_urlsafe(24))
        return path.read_text().strip()

    def port(self, name: str, *, requested: int = 0) -> int:
        """Return the loopback port for `name`: the requested one, or for 0 a free one that is kept over restarts.

        A kept port that a foreign process has taken is replaced by another one, and the log says so.
        """
        if requested:
            return requested
        ports = self._read_ports()
        kept = ports.get(name)
        if kept is not None and is_free(kept):
            return kept
        ports[name] = find_free_port(besides=set(ports.values()))
        if kept is not None:
            logger.warning("port %d for %s is taken by another process; using %d", kept, name, ports[name])
        write_file(self.path / "ports.json", json.dumps(ports))
        return ports[name]

    def write_runtime(
        self, *, nats_url: str, http_url: str | None, database_url: str, pid: int | None = None, **more: object
    ) -> None:
        """Write `runtime.json`, atomically and 0600: its presence means ready. `pid` defaults to this process."""
        runtime = {"nats_url": nats_url, "http_url": http_url, "database_url": database_url}
        write_file(self.path / "runtime.json", json.dumps({**runtime, "pid": pid or os.getpid(), **more}, indent=1))

    def remove_runtime(self) -> None:
        """Remove `runtime.json`: this agent is not, or no longer, ready. Repeatable."""
        (self.path / "runtime.json").unlink(missing_ok=True)

    def _refuse_foreign_folder(self) -> None:
        names = {entry.name for entry in self.path.iterdir()}
        if "version" not in names and names - {"lock", "version.new"}:
            raise EmbeddedServerError(
                f"{self.path} is not empty and not a data folder of the token manager; choose another folder"
            )

    def _lock(self) -> None:
        lock_fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock_fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock_fd)
            raise EmbeddedServerError(
                f"the data folder {self.path} is in use by another agent (pid {holder})"
            ) from None
        os.truncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = lock_fd

    def _check_version(self) -> None:
        path = self.path / "version"
        if not path.exists():
            write_file(path, json.dumps({"format": FORMAT, "postgresql": POSTGRESQL_MAJOR}))
            return
        version = _read_object(path)
        written, postgresql = version.get("format"), version.get("postgresql")
        if written != FORMAT:
            raise EmbeddedServerError(
                f"the data folder {self.path} has format {written!r}; this version of the token manager reads format"
                f" {FORMAT} only"
            )
        if postgresql != POSTGRESQL_MAJOR:
            raise EmbeddedServerError(
                f"the data folder {self.path} belongs to PostgreSQL {postgresql!r}; this version of the token manager"
                f" runs PostgreSQL {POSTGRESQL_MAJOR}"
            )

    def _read_ports(self) -> dict[str, int]:
        path = self.path / "ports.json"
        if not path.exists():
            return {}
        return {name: port for name, port in _read_object(path).items() if isinstance(port, int)}


def is_free(port: int) -> bool:
    """Tell whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def find_free_port(*, besides: set[int]) -> int:
    """Return a free loopback port below the ephemeral range.

    From inside that range a client that reconnects while the server is down could be given the server's port as its own
    and connect to itself, and the server could not start again.
    """
    for _ in range(PORT_TRIES_MAX):
        port = PORT_MIN + secrets.randbelow(EPHEMERAL_PORT_MIN - PORT_MIN)
        if port not in besides and is_free(port):
            return port
    raise EmbeddedServerError(f"no free loopback port between {PORT_MIN} and {EPHEMERAL_PORT_MIN} was found")


def write_file(path: Path, text: str) -> None:
    """Replace a file as a whole, durably, with mode 0600: a reader sees the old text or the new one."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, (text + "\n").encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    new.replace(path)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise EmbeddedServerError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise EmbeddedServerError(f"{path} is damaged: a JSON object was expected")
    return cast("dict[str, Any]", value)
