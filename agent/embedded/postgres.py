"""A private PostgreSQL 18: loopback and a Unix socket, data in the data folder, durable, works for root too.

Owns the cluster, its configuration and the life of the server. Must never know a table: migrations are the store's.

For root the server runs as another user who cannot traverse to a folder below root's home. It gets the folder as an
open file descriptor and reaches it through `/proc/self/fd/N`, so no permission has to be widened.
"""

import asyncio
import logging
import os
import secrets
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from string import Template
from urllib.parse import quote, urlencode

import asyncpg

from agent.embedded.data_dir import POSTGRESQL_MAJOR, DataDir, write_file
from agent.embedded.errors import EmbeddedServerError, with_log_tail
from agent.embedded.leftover import find_processes, wait_for_leftovers
from agent.embedded.postgres_install import programs_for, service_user
from agent.embedded.process import Launch, ManagedProcess, SystemUser

logger = logging.getLogger(__name__)

ROLE = "token_manager"
READY_S = 120.0  # crash recovery replays at most max_wal_size
INITDB_S = 120.0
LEFTOVER_S = 30.0  # a left-over server is writing its last checkpoint
POLL_S = 0.005
NEW_CLUSTER = "data.new-"
SOCKET_PATH_MAX = 107  # sun_path, unix(7)
EXIT_WAIT_S = 5.0

# wal_compression stays off: the wheel's build has neither lz4 nor zstd, and pglz costs more than it saves.
CONFIG = Template("""\
# Written at every start; changes here are lost. Put yours into local.conf in this folder.
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = '..'
unix_socket_permissions = 0700
max_connections = 100
password_encryption = scram-sha-256
shared_buffers = 128MB
fsync = on
synchronous_commit = on
full_page_writes = on
max_wal_size = 2GB
min_wal_size = 128MB
checkpoint_timeout = 15min
autovacuum = on
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
datestyle = 'iso, ymd'
default_text_search_config = 'pg_catalog.simple'
log_destination = 'stderr'
logging_collector = off
log_line_prefix = '%m [%p] '
log_checkpoints = off
""")


@dataclass(frozen=True, kw_only=True)
class _Runner:
    """Who runs the server's programs, from where, and by which path they reach the folder."""

    user: SystemUser | None
    programs: Path
    folder: str
    fd: int | None


class EmbeddedPostgres:
    """A PostgreSQL server in `data.path/postgres`.

    `port` 0 takes a free port that stays the same over restarts of the folder. The role and the database are both
    `token_manager`; the role is the cluster's superuser, its password is generated.
    """

    name = "PostgreSQL"

    def __init__(self, data: DataDir, *, port: int = 0) -> None:
        self._data = data
        self._requested_port = port
        self._port: int | None = None
        self._process: ManagedProcess | None = None
        self._folder = data.path / "postgres"
        self._cluster = self._folder / "data"

    @property
    def port(self) -> int:
        """The loopback port, which also names the socket; known from the first start."""
        assert self._port is not None, "EmbeddedPostgres.start() was not called"
        return self._port

    @property
    def url(self) -> str:
        """The DSN: over the Unix socket where its path is short enough, else over TCP."""
        return self.socket_url if self._socket_fits() else self.tcp_url

    @property
    def tcp_url(self) -> str:
        """The DSN over loopback TCP."""
        return f"postgresql://{self._login()}@127.0.0.1:{self.port}/{ROLE}"

    @property
    def socket_url(self) -> str:
        """The DSN over the Unix socket; usable where the path of the data folder is short enough."""
        query = urlencode({"host": str(self._folder), "port": self.port})
        return f"postgresql://{self._login()}@/{ROLE}?{query}"

    @property
    def log_path(self) -> Path:
        """The server's log, at most 10 MB and one older file."""
        return self._data.path / "log" / "postgres.log"

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        return self._started().pid

    async def start(self) -> None:
        """Start the server, creating cluster and database the first time; return when it takes connections.

        Waits for a server that a killed agent left in the folder. Raises `EmbeddedServerError` with the reason.
        """
        try:
            self._data.folder("postgres")
            await wait_for_leftovers(self._cluster, command="postgres", wait_s=LEFTOVER_S)
            self._remove_stale_locks()
            self._refuse_other_version()
            runner = self._runner()
        except OSError as error:
            raise EmbeddedServerError(f"cannot prepare PostgreSQL in {self._folder}: {error}") from error
        try:
            await self._start(runner)
        except OSError as error:
            raise EmbeddedServerError(f"cannot prepare PostgreSQL in {self._folder}: {error}") from error
        finally:
            if runner.fd is not None:
                os.close(runner.fd)

    async def wait(self) -> int:
        """Return the exit status once the server has ended, for whatever reason."""
        return await self._started().wait()

    async def stop(self, *, grace_s: float = 30.0) -> None:
        """Shut down fast (sessions end, one checkpoint), by force after `grace_s` seconds. Repeatable."""
        if self._process is not None:
            await self._process.stop(grace_s=grace_s, stop_signal=signal.SIGINT)
            await wait_for_leftovers(self._cluster, command="postgres", wait_s=EXIT_WAIT_S)

    async def kill(self) -> None:
        """Kill every process of the server as a crash would (SIGKILL) and return when all are gone."""
        self._started().send(signal.SIGKILL)
        for pid in find_processes(self._cluster, command="postgres"):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        await self.wait()
        await wait_for_leftovers(self._cluster, command="postgres", wait_s=EXIT_WAIT_S)

    async def restart(self) -> None:
        """Stop the server if it runs and start it again on the same port and data."""
        await self.stop()
        await self.start()

    def _started(self) -> ManagedProcess:
        assert self._process is not None, "EmbeddedPostgres.start() was not called"
        return self._process

    def _login(self) -> str:
        return f"{ROLE}:{quote(self._data.secret('postgres'), safe='')}"

    def _socket_fits(self) -> bool:
        return len(os.fsencode(self._folder / f".s.PGSQL.{self.port}")) <= SOCKET_PATH_MAX

    def _refuse_other_version(self) -> None:
        path = self._cluster / "PG_VERSION"
        if path.exists() and path.read_text().strip() != str(POSTGRESQL_MAJOR):
            raise EmbeddedServerError(
                f"{self._cluster} holds a cluster of PostgreSQL {path.read_text().strip()}; this version of the token"
                f" manager runs PostgreSQL {POSTGRESQL_MAJOR}"
            )

    def _remove_stale_locks(self) -> None:
        """Remove the lock files of a server that was killed.

        Only after `wait_for_leftovers` has looked at every process: PostgreSQL itself goes by the pid alone and would
        refuse to start when that pid is a zombie nobody reaps, or has been given to another process.
        """
        if not Path("/proc/self").exists():
            return
        for path in (self._cluster / "postmaster.pid", *self._folder.glob(".s.PGSQL.*")):
            path.unlink(missing_ok=True)

    def _runner(self) -> _Runner:
        user = service_user(self._cluster)
        programs = programs_for(user)
        if user is None:
            return _Runner(user=None, programs=programs, folder=str(self._folder), fd=None)
        os.chown(self._folder, user.uid, user.gid, follow_symlinks=False)
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return _Runner(user=user, programs=programs, folder=f"/proc/self/fd/{fd}", fd=fd)

    async def _start(self, runner: _Runner) -> None:
        if not self._cluster.exists():
            await self._create_cluster(runner)
        self._port = self._port or self._data.port("postgres", requested=self._requested_port)
        self._write_config(runner)
        argv = (str(runner.programs / "postgres"), "-D", f"{runner.folder}/data")
        self._process = self._spawn(runner, argv=argv, log_path=self.log_path, death_signal=signal.SIGINT)
        try:
            await self._wait_until_ready()
            await self._ensure_database()
        except BaseException:
            await self.stop(grace_s=EXIT_WAIT_S)
            raise

    def _spawn(
        self, runner: _Runner, *, argv: tuple[str, ...], log_path: Path, death_signal: signal.Signals
    ) -> ManagedProcess:
        return ManagedProcess(
            Launch(
                name=self.name,
                argv=argv,
                cwd=Path("/"),
                log_path=log_path,
                death_signal=death_signal,
                user=runner.user,
                pass_fds=() if runner.fd is None else (runner.fd,),
            )
        )

    async def _create_cluster(self, runner: _Runner) -> None:
        """Run initdb beside the final place and move the result there, so a broken-off attempt leaves no cluster.

        The place is new each time: what a killed attempt left may still be written to for a moment.
        """
        new = self._folder / f"{NEW_CLUSTER}{secrets.token_hex(4)}"
        password_file = self._folder / "password.new"
        log_path = self._data.path / "log" / "initdb.log"
        log_path.unlink(missing_ok=True)
        for old in self._folder.glob(f"{NEW_CLUSTER}*"):
            shutil.rmtree(old, ignore_errors=True)
        write_file(password_file, self._data.secret("postgres"))
        try:
            _give(password_file, to=runner.user)
            argv = _initdb(runner, cluster=new.name, password_file=password_file.name)
            process = self._spawn(runner, argv=argv, log_path=log_path, death_signal=signal.SIGKILL)
            try:
                async with asyncio.timeout(INITDB_S):
                    status = await process.wait()
            except BaseException:
                await process.stop(grace_s=1.0)
                raise
        except TimeoutError:
            raise with_log_tail(f"initdb did not finish within {INITDB_S:g} s", log_path) from None
        finally:
            password_file.unlink(missing_ok=True)
        if status != 0:
            raise with_log_tail(f"initdb could not create the cluster (status {status})", log_path)
        new.rename(self._cluster)

    def _write_config(self, runner: _Runner) -> None:
        path = self._cluster / "postgresql.conf"
        own = "include = 'local.conf'" if (self._cluster / "local.conf").exists() else ""
        write_file(path, CONFIG.substitute(port=self.port) + own)
        _give(path, to=runner.user)

    async def _wait_until_ready(self) -> None:
        process, deadline = self._started(), time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if process.returncode is not None:
                raise with_log_tail(f"PostgreSQL ended with status {process.returncode}", self.log_path)
            if self._says_ready(process.pid):
                return
            await asyncio.sleep(POLL_S)
        raise with_log_tail(f"PostgreSQL was not ready within {READY_S:g} s", self.log_path)

    def _says_ready(self, pid: int) -> bool:
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    async def _ensure_database(self) -> None:
        """Create the database unless it is there. Proves at the same time that the password is right."""
        try:
            connection = await self._connect(ROLE)
        except asyncpg.InvalidCatalogNameError:
            connection = await self._connect("postgres")
            await connection.execute(f"CREATE DATABASE {ROLE}")
        await connection.close()

    async def _connect(self, database: str) -> asyncpg.Connection:
        try:
            return await asyncpg.connect(self.url, database=database, timeout=READY_S)
        except asyncpg.InvalidCatalogNameError:
            raise
        except (asyncpg.PostgresError, OSError, TimeoutError) as error:
            raise with_log_tail(f"PostgreSQL refuses the agent: {error}", self.log_path) from error


def _initdb(runner: _Runner, *, cluster: str, password_file: str) -> tuple[str, ...]:
    return (
        str(runner.programs / "initdb"),
        f"--pgdata={runner.folder}/{cluster}",
        f"--username={ROLE}",
        f"--pwfile={runner.folder}/{password_file}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--no-instructions",
    )


def _give(path: Path, *, to: SystemUser | None) -> None:
    if to is not None:
        os.chown(path, to.uid, to.gid, follow_symlinks=False)
