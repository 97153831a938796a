"""Numbers and secrets of a bus connection, and who wants to hear of its state."""

import random
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Server


@dataclass(frozen=True, kw_only=True)
class BusSettings:
    """Every bound and wait of a connection. Times in seconds, sizes in bytes."""

    connect_timeout_s: float = 2.0
    """One attempt at one server."""
    connect_deadline_s: float | None = 30.0
    """The first connect, all attempts together; None waits for ever."""
    reconnect_wait_s: float = 0.1
    """Before the first attempt; doubles with every failed one, each time shortened by chance to spread the crowd."""
    reconnect_wait_max_s: float = 2.0
    ping_interval_s: float = 10.0
    pings_outstanding_max: int = 2
    pending_bytes: int = 16 * 1024 * 1024
    """What may wait to be written before publishing fails and replies are dropped."""
    close_timeout_s: float = 5.0
    drain_timeout_s: float = 20.0
    keepalive_idle_s: int = 10
    keepalive_interval_s: int = 5
    keepalive_probes: int = 3
    tcp_user_timeout_s: float = 20.0
    """Unacknowledged data older than this breaks the connection (Linux)."""

    def options(self) -> dict[str, Any]:
        """The arguments of `Client.connect` these stand for."""
        return {
            "connect_timeout": self.connect_timeout_s,
            "reconnect_time_wait": self.reconnect_wait_s,
            "ping_interval": self.ping_interval_s,
            "max_outstanding_pings": self.pings_outstanding_max,
            "pending_size": self.pending_bytes,
            "drain_timeout": self.drain_timeout_s,
        }

    def next_server(self, servers: list[Server], info: dict[str, Any]) -> tuple[Server, float]:
        """The server that failed least often, and how long to wait before trying it (s)."""
        del info
        server = min(servers, key=lambda known: known.reconnects)
        wait = min(self.reconnect_wait_max_s, self.reconnect_wait_s * 2 ** min(server.reconnects, 16))
        return server, wait * random.uniform(0.5, 1.0)  # noqa: S311


@dataclass(frozen=True, kw_only=True)
class BusCredentials:
    """How to prove who we are; what the URL says counts too. Never logged."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    credentials_file: str | None = None
    nkey_file: str | None = None
    tls: ssl.SSLContext | None = None

    def options(self) -> dict[str, Any]:
        """The arguments of `Client.connect` these stand for."""
        return {
            "user": self.user,
            "password": self.password,
            "token": self.token,
            "user_credentials": self.credentials_file,
            "nkeys_seed": self.nkey_file,
            "tls": self.tls,
        }


@dataclass
class BusListeners:
    """Plain functions told of changes of the connection. They run in the event loop and must not block."""

    closed: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    disconnected: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    reconnected: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    lame_duck: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    error: list[Callable[[BaseException], None]] = field(default_factory=list[Callable[[BaseException], None]])


def tune_socket(tcp: socket.socket | None, settings: BusSettings) -> None:
    """Send small writes at once, and notice a peer that vanished. Does nothing without a TCP socket."""
    if tcp is None or tcp.family not in (socket.AF_INET, socket.AF_INET6):
        return
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    numbers = {
        "TCP_KEEPIDLE": settings.keepalive_idle_s,
        "TCP_KEEPINTVL": settings.keepalive_interval_s,
        "TCP_KEEPCNT": settings.keepalive_probes,
        "TCP_USER_TIMEOUT": int(settings.tcp_user_timeout_s * 1000),
    }
    for name, value in numbers.items():
        option = getattr(socket, name, None)
        if option is not None:
            tcp.setsockopt(socket.IPPROTO_TCP, option, value)
