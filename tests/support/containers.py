"""Test servers as containers of the official images, where a Docker engine answers and TEST_SERVERS=containers is set.

They stand in for the embedded servers: the same attributes, the same account layout.
"""

from pathlib import Path

import docker
from docker.errors import DockerException
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

NATS_IMAGE = "nats:2.15-alpine"
POSTGRES_IMAGE = "postgres:18"
PASSWORD = "test"


def engine_answers() -> bool:
    """Tell whether a Docker engine can be reached."""
    try:
        return bool(docker.from_env().ping())  # pyright: ignore[reportUnknownMemberType]
    except DockerException:
        return False


class ContainerPostgres:
    """An official PostgreSQL image; `url` is its DSN."""

    def __init__(self) -> None:
        ready = LogMessageWaitStrategy("database system is ready to accept connections", times=2)
        container = DockerContainer(POSTGRES_IMAGE).with_exposed_ports(5432)
        for name, value in (("USER", "token_manager"), ("PASSWORD", PASSWORD), ("DB", "token_manager")):
            container.with_env(f"POSTGRES_{name}", value)
        self._container = container.waiting_for(ready)

    async def start(self) -> None:
        self._container.start()

    async def stop(self) -> None:
        self._container.stop()

    @property
    def url(self) -> str:
        address = f"{self._container.get_container_host_ip()}:{self._container.get_exposed_port(5432)}"
        return f"postgresql://token_manager:{PASSWORD}@{address}/token_manager"


class ContainerNats:
    """An official nats image with the configuration the deployment uses."""

    def __init__(self, config: Path) -> None:
        container = DockerContainer(NATS_IMAGE).with_exposed_ports(4222).with_command("-c /config/nats.conf")
        container.with_volume_mapping(str(config.parent), "/config", "ro")
        for user in ("AGENT", "SYSTEM", "DEFAULT"):
            container.with_env(f"TM_NATS_{user}_PASSWORD", PASSWORD)
        self._container = container.waiting_for(LogMessageWaitStrategy("Server is ready"))

    async def start(self) -> None:
        self._container.start()

    async def stop(self) -> None:
        self._container.stop()

    @property
    def url(self) -> str:
        return self._url("app")

    @property
    def agent_url(self) -> str:
        return self._url("agent")

    def _url(self, user: str) -> str:
        address = f"{self._container.get_container_host_ip()}:{self._container.get_exposed_port(4222)}"
        return f"nats://{user}:{PASSWORD}@{address}"
