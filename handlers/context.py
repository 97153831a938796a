"""What every handler is given: the caller, and the services that reach the outside."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from handlers.cost.resolve import RateCards
from handlers.enforcer.beliefs import Beliefs
from handlers.enforcer.catalogue import Catalogue, Catalogues
from handlers.enforcer.windows import WindowIndex
from handlers.vault import Vault
from schemas.errors import SignalError
from store.pool import Database


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Every bound that handlers keep. Each is a setting; units are in the names."""

    check_batch_max: int = 256
    check_queue_max: int = 8_192
    check_batches_max: int = 2
    check_overlap_min: int = 64
    transaction_attempts_max: int = 8
    reservation_ttl_s: int = 600
    completion_tokens_default: int = 4_096
    expiry_skew_s: float = 2.0
    expiry_batch_max: int = 500
    track_batch_events_max: int = 256
    track_batch_bytes_max: int = 262_144
    track_queue_events_max: int = 20_000
    apply_batch_events_max: int = 2_000
    apply_attempts_max: int = 8
    stored_bytes_max: int = 900_000
    stored_timeout_s: float = 15.0
    timestamp_future_max_s: int = 300
    unreserved_age_max_days: int = 35
    metadata_bytes_max: int = 16_384
    tags_max: int = 64
    window_cache_max: int = 200_000
    match_cache_max: int = 50_000
    on_unpriced: str = "flag"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, as the server says: never read from a payload. ``teams`` are those a manager manages."""

    org: str
    user: str | None
    roles: frozenset[str]
    teams: frozenset[str] = frozenset()

    @property
    def actor(self) -> str:
        """A name for records of who did something."""
        return self.user or "anonymous"


class Ids(Protocol):
    """Makes ids: UUIDv7 as text."""

    def __call__(self) -> str: ...


class UsageSink(Protocol):
    """Where validated usage is made durable before it is acknowledged."""

    async def store(self, payload: bytes) -> None:
        """Return once ``payload`` is in the stream. Raises SignalError ``unavailable``."""
        ...

    async def resend(self, org: str, payload: bytes, subject: str) -> None:
        """Put one raw usage message of ``org`` into the stream again."""
        ...


@dataclass(kw_only=True)
class Services:
    """One per agent process."""

    database: Database
    rate_cards: RateCards
    clock: Callable[[], datetime]
    new_id: Ids
    vault: Vault
    limits: Limits = field(default_factory=Limits)
    instance: str = "agent"
    catalogues: Catalogues = field(default_factory=Catalogues)
    indexes: dict[str, WindowIndex] = field(default_factory=dict[str, WindowIndex])
    believed: dict[str, Beliefs] = field(default_factory=dict[str, Beliefs])
    outbox_ready: asyncio.Event = field(default_factory=asyncio.Event)
    sink: UsageSink | None = None
    status: Callable[[], Awaitable[dict[str, Any]]] | None = None
    contract: Callable[[], dict[str, Any]] = dict

    def index(self, org: str) -> WindowIndex:
        """The window ids this agent knows of an org."""
        found = self.indexes.get(org)
        if found is None:
            found = self.indexes[org] = WindowIndex(self.limits.window_cache_max)
        return found

    def beliefs(self, org: str) -> Beliefs:
        """What this agent believes of an org's windows."""
        found = self.believed.get(org)
        if found is None:
            found = self.believed[org] = Beliefs(self.limits.window_cache_max)
        return found

    async def catalogue(self, org: str) -> Catalogue:
        """The newest known catalogue of an org, read if this agent knows none."""
        known = self.catalogues.known(org)
        return known if known is not None else await self.reload_catalogue(org)

    async def reload_catalogue(self, org: str) -> Catalogue:
        """Read an org's catalogue again."""
        async with self.database.transaction() as connection:
            return await self.catalogues.reload(connection, org)


@dataclass(frozen=True, slots=True)
class Context:
    """One request's view of the agent."""

    services: Services
    caller: Caller

    @property
    def org(self) -> str:
        """The tenant."""
        return self.caller.org

    @property
    def database(self) -> Database:
        """The pool."""
        return self.services.database

    @property
    def rate_cards(self) -> RateCards:
        """Prices."""
        return self.services.rate_cards

    def now(self) -> datetime:
        """The agent's clock, UTC. What binds money uses PostgreSQL's instead."""
        return self.services.clock()

    def new_id(self) -> str:
        """A UUIDv7."""
        return self.services.new_id()


@dataclass(slots=True)
class Inbound:
    """A request that is answered later, by the batch that decides it."""

    caller: Caller
    data: bytes
    answer: Callable[[bytes], None]
    fail: Callable[[SignalError], None]
