"""Where NATS and PostgreSQL are: given ones, or private ones in the data folder, each on its own."""

import asyncio
import contextlib
import logging
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from agent.embedded import DataDir, EmbeddedNats, EmbeddedPostgres, keep_running
from agent.settings import Settings
from agent.side_car import SideCar

DISK_FREE_MIN_BYTES = 32 * 1024 * 1024
ROOT = Path(__file__).resolve().parents[1]
_log = logging.getLogger(__name__)


@dataclass
class Servers:
    """Running servers and how to reach them. Private ones are restarted when they die and end with the agent."""

    data: DataDir
    nats_url: str = ""
    agent_nats_url: str = ""
    database_url: str = ""
    nats: EmbeddedNats | None = None
    postgres: EmbeddedPostgres | None = None
    side_car: SideCar | None = None
    _keepers: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

    @property
    def http_url(self) -> str | None:
        """Where HTTP is served, if it is."""
        return None if self.side_car is None else self.side_car.url

    async def start(self, settings: Settings) -> None:
        """Start what is not given. Raises EmbeddedServerError with the exact reason."""
        starting: list[asyncio.Task[None]] = []
        if settings.nats_url is None:
            self.nats = EmbeddedNats(self.data, port=settings.nats_port, local_users=settings.local_users)
            starting.append(asyncio.create_task(self.nats.start()))
        if settings.database_url is None:
            self.postgres = EmbeddedPostgres(self.data)
            starting.append(asyncio.create_task(self.postgres.start()))
        results = await asyncio.gather(*starting, return_exceptions=True)
        failed = [r for r in results if isinstance(r, BaseException)]
        if failed:
            await self.stop()
            raise failed[0]
        self._name(settings)
        for server in (self.nats, self.postgres):
            if server is not None:
                self._keepers.append(asyncio.create_task(keep_running(server)))

    def _name(self, settings: Settings) -> None:
        self.agent_nats_url = settings.nats_url or ""
        self.nats_url = settings.web_nats_url or (self.agent_nats_url if settings.nats_mode != "accounts" else "")
        if self.nats is not None:
            self.agent_nats_url, self.nats_url = self.nats.agent_url, self.nats.url
        self.database_url = settings.database_url or ""
        if self.postgres is not None:
            self.database_url = self.postgres.url

    async def start_side_car(self, settings: Settings) -> None:
        """Start HTTP beside the agent, where callers can reach the bus at all."""
        if not settings.http_enabled:
            return
        if not self.nats_url:
            _log.warning("HTTP is off: set TOKEN_MANAGER_WEB_NATS_URL, or HTTP has no way to the bus as a caller")
            return
        port = self.data.port("http", requested=settings.http_port)
        self.side_car = SideCar(
            [sys.executable, "-m", "web", "--nats-url", self.nats_url, "--host", settings.http_host],
            host=settings.http_host,
            port=port,
            log_path=self.data.path / "http.log",
            root=ROOT,
        )
        await self.side_car.start()
        self._keepers.append(asyncio.create_task(keep_running(self.side_car)))

    @property
    def private(self) -> bool:
        """Whether anything of the agent's is written to the data folder's disk."""
        return self.nats is not None or self.postgres is not None

    def disk_problem(self) -> str | None:
        """What to say when private servers cannot write much longer."""
        if not self.private:
            return None
        free = shutil.disk_usage(self.data.path).free
        if free >= DISK_FREE_MIN_BYTES:
            return None
        return f"the disk of {self.data.path} is full: {free // 1024} KiB are free"

    async def renew_nats(self) -> None:
        """End the private nats-server; the keeper starts it again. Nothing happens where it is given.

        A stream whose disk was full refuses to store, without an answer, until its server is started again.
        """
        if self.nats is not None:
            await self.nats.stop()

    async def stop(self) -> None:
        """End the side car, then the servers; what is given from outside stays."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if self.side_car is not None:
            await self.side_car.stop()
        running = [server.stop() for server in (self.nats, self.postgres) if server is not None]
        with contextlib.suppress(ProcessLookupError):
            await asyncio.gather(*running)
