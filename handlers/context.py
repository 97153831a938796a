"""What every handler is given: the caller, and the services that reach the outside."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from handlers.alerts.couriers import Couriers
from handlers.alerts.rulebook import RuleBook
from handlers.alerts.threads import Threads
from handlers.cost.org_prices import OrgPrices
from handlers.cost.resolve import RateCards
from handlers.counting.counter import Counter, InlineCounter
from handlers.counting.limits import NO_ORG_LIMITS, OrgLimits
from handlers.currency.exchange import Books, Exchange
from handlers.enforcer.beliefs import Beliefs
from handlers.enforcer.catalogue import Catalogue, Catalogues
from handlers.enforcer.histograms import Histograms
from handlers.enforcer.tally import Tally
from handlers.enforcer.windows import WindowIndex
from handlers.identities import Identities
from handlers.org_settings import OrgSettings
from handlers.pricing.snapshots import Snapshots
from handlers.pricing.source import PriceSource, PriceSourceSettings
from handlers.vault import Vault
from schemas.errors import SignalError
from store import budgets as budget_store
from store.pool import Connection, Database


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
    usage_bytes_max: int = 262_144
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
    price_rules_max: int = 2_000
    model_aliases_max: int = 5_000
    price_preview_days: int = 30
    price_preview_days_max: int = 366
    price_preview_events_max: int = 200_000
    price_preview_chunk_max: int = 500
    price_preview_rows_max: int = 200
    price_preview_time_s: float = 15.0
    price_used_days: int = 30
    price_used_models_max: int = 2_000
    price_move_percent_max: int = 25
    price_changes_shown_max: int = 200
    price_snapshots_max: int = 8
    adjust_batch_max: int = 200
    adjustments_per_event_max: int = 100
    reprice_scan_max: int = 5_000
    reprice_time_s: float = 15.0
    reprice_models_max: int = 100
    reprice_ids_max: int = 20
    exchange_stale_days: int = 7
    exchange_rates_max: int = 50_000
    exchange_request_rates_max: int = 20_000
    exchange_orgs_max: int = 1_000
    exchange_cache_max: int = 10_000
    exchange_move_percent: int = 10
    exchange_file_bytes_max: int = 20_000_000
    export_windows_max: int = 200
    bill_lines_max: int = 200_000
    bills_max: int = 10_000
    bill_models_max: int = 1_000
    bill_rows_max: int = 50_000
    price_history_days: int = 400
    count_exact_chars_max: int = 4_000_000
    count_requests_max: int = 4_096
    model_limits_max: int = 1_000
    allocation_rows_max: int = 20_000
    invoice_lines_max: int = 20_000
    invoice_corrected_max: int = 400
    invoice_rates_max: int = 200
    invoice_subtotals_max: int = 200
    invoice_rates_requests_max: int = 500_000
    invoice_part_bytes_max: int = 480_000
    invoice_pdf_lines_max: int = 5_000
    finance_threads_max: int = 2
    finance_timeout_s: float = 20.0
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
    # The operator's table of exchange rates for every org.
    exchange_rates_file: Path | None = None
    price_source: PriceSource = field(default_factory=lambda: PriceSource(PriceSourceSettings()))
    sink: UsageSink | None = None
    counter: Counter = field(default_factory=InlineCounter)
    status: Callable[[], Awaitable[dict[str, Any]]] | None = None
    contract: Callable[[], dict[str, Any]] = dict
    # What an org is given before its catalogue is first read, if nobody has changed it yet.
    on_new_org: "Callable[[Services, str], Awaitable[None]] | None" = None

    def __post_init__(self) -> None:
        self.catalogues.books = self.books
        self.catalogues.price_history_days = self.limits.price_history_days
        self.catalogues.snapshots = self.snapshots

    @cached_property
    def books(self) -> Books:
        """The exchange rates of every org, as far as this agent knows them."""
        limits = self.limits
        return Books(
            today=lambda: self.clock().date(),
            stale_days=limits.exchange_stale_days,
            limit=limits.exchange_orgs_max,
            cache_max=limits.exchange_cache_max,
        )

    @cached_property
    def snapshots(self) -> Snapshots:
        """The public list prices that orgs use."""
        limit = self.limits.price_snapshots_max
        return Snapshots(self.rate_cards, today=lambda: self.clock().date(), limit=limit)

    @cached_property
    def finance_threads(self) -> Threads:
        """Where pages are set and much is split, away from the loop."""
        return Threads(self.limits.finance_threads_max)

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
        known = self.catalogues.known(org)
        return self.every_orgs_prices if known is None else self.prices_of(known)

    def prices_of(self, catalogue: Catalogue) -> OrgPrices:
        """An org's prices as of a catalogue."""
        found = self.priced.get(catalogue.org)
        if found is None or found.book is not catalogue.book:
            if len(self.priced) >= self.catalogues.limit:
                self.priced.clear()
            found = self.priced[catalogue.org] = OrgPrices(catalogue.cards or self.rate_cards, catalogue.book)
        return found

    def on_unpriced(self, catalogue: Catalogue | None) -> str:
        """What a check without a price comes to: as the org has decided, else as the agent's settings say."""
        default = self.limits.on_unpriced
        return default if catalogue is None else str(catalogue.settings.get("on_unpriced", default))

    @cached_property
    def every_orgs_prices(self) -> OrgPrices:
        """The prices of an org that has none of its own, or is not known here yet."""
        return OrgPrices(self.rate_cards)

    async def exchange(self, org: str) -> Exchange:
        """An org's exchange rates, its own and those of every org, as they are now."""
        async with self.database.connection() as connection:
            return await self.books.refresh(connection, org)

    def model_limits(self, org: str) -> OrgLimits:
        """What an org has set for its models, as far as this agent knows it."""
        known = self.catalogues.known(org)
        return NO_ORG_LIMITS if known is None else known.model_limits

    async def reporting(self, connection: Connection, org: str) -> tuple[Exchange, str]:
        """An org's exchange rates and the currency it reports in, both as they are now on any agent."""
        exchange = await self.books.refresh(connection, org)
        settings = OrgSettings.of(await budget_store.load_settings(connection, org))
        return exchange, settings.currency

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
