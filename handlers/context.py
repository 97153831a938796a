"""What every handler is given: the caller, and the services that reach the outside."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

from handlers.alerts.couriers import Couriers
from handlers.alerts.rulebook import RuleBook
from handlers.cost.org_prices import OrgPrices
from handlers.cost.resolve import RateCards
from handlers.enforcer.beliefs import Beliefs
from handlers.enforcer.catalogue import Catalogue, Catalogues
from handlers.enforcer.histograms import Histograms
from handlers.enforcer.tally import Tally
from handlers.enforcer.windows import WindowIndex
from handlers.identities import Identities
from handlers.org_settings import OrgSettings
from handlers.vault import Vault
from schemas.errors import SignalError
from store import budgets as budget_store
from store.pool import Database


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Every bound that handlers keep. Each is a setting; units are in the names."""

    check_batch_max: int = 256
    check_queue_max: int = 8_192
    check_batches_max: int = 2
    check_overlap_min: int = 64
    offers_max: int = 8
    transaction_attempts_max: int = 8
    reservation_ttl_s: int = 600
    completion_tokens_default: int = 4_096
    expiry_skew_s: float = 2.0
    expiry_batch_max: int = 500
    override_open_max: int = 1_000
    override_requester_open_max: int = 50
    override_expiry_batch_max: int = 50
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
    alert_rules_max: int = 500
    alert_entities_max: int = 1_000
    alert_sums_max: int = 50_000
    alert_memory_max: int = 10_000
    alert_refresh_s: int = 300
    alert_profile_s: int = 3_600
    alert_orgs_max: int = 500
    alert_renotify_max: int = 500
    alert_actions_max: int = 100
    alert_changes_max: int = 100
    sizing_keys_max: int = 2_000
    sizing_samples_max: int = 4_000
    sizing_cache_max: int = 50_000
    brakes_max: int = 1_000
    audit_batch_max: int = 500
    audit_batch_bytes_max: int = 8_000_000
    audit_verify_entries_max: int = 500_000
    api_keys_max: int = 10_000
    schedules_max: int = 500
    channels_max: int = 200
    delivery_rows_max: int = 500
    delivery_channel_at_once_max: int = 4
    delivery_attempts_max: int = 16
    delivery_refused_attempts_max: int = 3
    delivery_wait_s: float = 2.0
    delivery_wait_max_s: float = 600.0
    delivery_lease_s: float = 90.0
    digest_items_max: int = 50
    top_features_max: int = 5
    compliance_days: int = 7
    compliance_callers_max: int = 20
    identity_cache_max: int = 100_000
    identity_keep_s: float = 30.0
    identity_unknown_keep_s: float = 1.0
    redact_batch_max: int = 200
    on_unpriced: str = "flag"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, as the server says: never read from a payload. ``teams`` are those a manager manages."""

    org: str
    user: str | None
    roles: frozenset[str]
    teams: frozenset[str] = frozenset()
    key: str | None = None

    @property
    def actor(self) -> str:
        """Who it is in records of who did something: the surrogate of a name, where the caller has one."""
        return self.key or self.user or "anonymous"


class Ids(Protocol):
    """Makes ids: UUIDv7 as text."""

    def __call__(self) -> str: ...


ORG_DEFAULTS = OrgSettings()


def _no_secret() -> str:
    raise AssertionError("whoever makes the services gives them a source of secrets")


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
    new_secret: Callable[[], str] = _no_secret
    limits: Limits = field(default_factory=Limits)
    instance: str = "agent"
    catalogues: Catalogues = field(default_factory=Catalogues)
    indexes: dict[str, WindowIndex] = field(default_factory=dict[str, WindowIndex])
    priced: dict[str, OrgPrices] = field(default_factory=dict[str, OrgPrices])
    believed: dict[str, Beliefs] = field(default_factory=dict[str, Beliefs])
    sizing: Histograms = field(default_factory=Histograms)
    alert_rules: RuleBook = field(default_factory=RuleBook)
    tally: Tally = field(default_factory=Tally)
    outbox_ready: asyncio.Event = field(default_factory=asyncio.Event)
    delivery_ready: asyncio.Event = field(default_factory=asyncio.Event)
    couriers: Couriers = field(default_factory=Couriers)
    public_url: str | None = None
    sink: UsageSink | None = None
    status: Callable[[], Awaitable[dict[str, Any]]] | None = None
    contract: Callable[[], dict[str, Any]] = dict
    # What an org is given before its catalogue is first read, if nobody has changed it yet.
    on_new_org: "Callable[[Services, str], Awaitable[None]] | None" = None

    @cached_property
    def identities(self) -> Identities:
        """User names behind surrogates."""
        limits = self.limits
        return Identities(
            self.database,
            self.vault,
            limit=limits.identity_cache_max,
            keep_s=limits.identity_keep_s,
            unknown_keep_s=limits.identity_unknown_keep_s,
        )

    def org_settings(self, org: str) -> OrgSettings:
        """An org's settings as far as this agent knows them: those of every org that has any are read at its start."""
        known = self.catalogues.known(org)
        return ORG_DEFAULTS if known is None else known.org_settings

    def user_key(self, org: str, name: str) -> str:
        """The surrogate of a user's name, as the org's settings have it. Raises SignalError naming ``user_id``."""
        return self.identities.key_of(org, name, self.org_settings(org).user_names)

    def actor_key(self, org: str, name: str) -> str:
        """The surrogate of somebody who signs in, which no setting refuses."""
        try:
            return self.user_key(org, name)
        except SignalError:
            return self.vault.surrogate(org, name)

    def prices(self, org: str) -> OrgPrices:
        """An org's prices as far as this agent knows them; ledger transactions know the present ones."""
        found = self.priced.get(org)
        if found is None:
            found = self.priced[org] = OrgPrices(self.rate_cards)
        return found

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
        """Read an org's catalogue again; of an org that is new here, after it was given its default policies."""
        if self.on_new_org is not None and self.catalogues.known(org) is None:
            async with self.database.transaction() as connection:
                version = await budget_store.version(connection, org)
            if version == 0:
                await self.on_new_org(self, org)
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
    def prices(self) -> OrgPrices:
        """The org's prices."""
        return self.services.prices(self.org)

    def user_key(self, name: str) -> str:
        """The surrogate that stands for a user's name everywhere in the database."""
        return self.services.user_key(self.org, name)

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
