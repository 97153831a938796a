"""TokenManagerAgent: the token manager on the bus. Thin: it wires handlers to connections and keeps the order."""

import asyncio
import contextlib
import logging
import secrets
from datetime import UTC, date, datetime, timedelta
from typing import Any, Protocol

from nats import errors as nats_errors

from agent.access import AccessControl
from agent.backoff import Backoff
from agent.base import BaseAgent
from agent.bus import streams
from agent.bus.client import BusClient, connect
from agent.bus.service import Service, endpoint_of
from agent.bus.settings import BusCredentials, BusSettings
from agent.bus.stored import StoredPublisher
from agent.counter import CounterSettings, WorkerCounter
from agent.default_policies import for_new_orgs
from agent.deliverer import Deliverer
from agent.dispatch import BatchRoute, Dispatch, DispatchLimits
from agent.ids import new_id
from agent.ingest_loop import IngestLoop
from agent.price_rules import read_price_rules
from agent.relay import Relay
from agent.routes import ROUTES
from agent.schedules import Schedules
from agent.settings import Settings
from agent.sink import StreamSink
from agent.version import VERSION
from handlers.alerts.couriers import Couriers, CourierSettings
from handlers.alerts.watch import Watch
from handlers.context import Services
from handlers.cost.resolve import RateCards
from handlers.counting import limits as model_limits
from handlers.counting.requests import TokenCounting
from handlers.currency import seed as exchange_seed
from handlers.enforcer.admission import Admission
from handlers.enforcer.overrides import expire_overrides
from handlers.enforcer.sizing import refresh
from handlers.enforcer.sweep import Applied, sweep
from handlers.management.upgrade import upgrade_users
from handlers.pricing.refresh import refresh_every_org
from handlers.pricing.source import PriceSource, PriceSourceSettings
from handlers.tracker.apply import Applier
from handlers.tracker.ingest import Ingest
from handlers.tracker.intake import Intake
from handlers.vault import Vault
from schemas.errors import SignalError
from schemas.subjects import AGENT_REQUEST_PREFIX, REQUEST_PREFIX, USAGE_STREAM
from signals import contract
from signals.budget import CHECK_BUDGET
from signals.tokens import COUNT_TOKENS
from signals.usage import TRACK_USAGE
from store import budgets as budget_store
from store import installation, jobs, partitions
from store.pool import UNAVAILABLE, Database, PoolSettings

QUEUE = "q"
STATUS_TIMEOUT_S = 2.0
SECRET_BYTES = 32
_log = logging.getLogger(__name__)


class PrivateServers(Protocol):
    """What the agent can do about servers that are its own."""

    def disk_problem(self) -> str | None: ...

    async def renew_nats(self) -> None: ...


class WrongKey(RuntimeError):
    """The database was first used with another secret key."""


class TokenManagerAgent(BaseAgent):
    """One agent process; any number of them share a bus and a database."""

    def __init__(
        self,
        settings: Settings,
        *,
        nats_url: str,
        database_url: str,
        rate_cards: RateCards,
        vault: Vault,
        house: PrivateServers | None = None,
    ) -> None:
        super().__init__(settings.instance or f"tm-{new_id()[-12:]}")
        self._settings = settings
        self._nats_url = nats_url
        self._house = house
        self._started_at = datetime.now(UTC)
        pool = PoolSettings(max_size=settings.database_pool_max)
        self._database = Database(database_url, pool)
        self.services = Services(
            database=self._database,
            rate_cards=rate_cards,
            clock=lambda: datetime.now(UTC) + self._ahead,
            new_id=new_id,
            vault=vault,
            new_secret=lambda: secrets.token_urlsafe(SECRET_BYTES),
            limits=settings.limits,
            instance=self.instance,
            public_url=settings.public_url,
            price_source=PriceSource(
                PriceSourceSettings(
                    refresh=settings.prices_refresh,
                    file=settings.prices_file,
                    url=settings.prices_url,
                    bytes_max=settings.prices_bytes_max,
                    timeout_s=settings.prices_timeout_s,
                )
            ),
            exchange_rates_file=settings.exchange_rates_file,
            couriers=Couriers(
                CourierSettings(
                    threads_max=settings.delivery_threads_max,
                    timeout_s=settings.delivery_timeout_s,
                    answer_timeout_s=settings.delivery_answer_timeout_s,
                    allowed_hosts=settings.delivery_allowed_hosts,
                )
            ),
        )
        if settings.price_rules_file is not None:
            rate_cards.use_rules(read_price_rules(settings.price_rules_file))
        if settings.default_policies_file is not None:
            self.services.on_new_org = for_new_orgs(settings.default_policies_file)
        self._access = AccessControl(settings, self.services, database_url=database_url)
        self._counter = WorkerCounter(
            CounterSettings(
                workers=settings.count_workers,
                queue_jobs_max=settings.count_queue_jobs_max,
                queue_bytes_max=settings.count_queue_bytes_max,
                deadline_s=settings.count_deadline_s,
                start_s=settings.count_start_s,
                retry_wait_s=settings.retry_wait_s,
                retry_wait_max_s=settings.retry_wait_max_s,
            )
        )
        self.services.counter = self._counter
        self._clients: list[BusClient] = []
        self._ahead = timedelta(0)

    @property
    def _single(self) -> bool:
        return self._settings.nats_mode == "single-account"

    def _backoff(self) -> Backoff:
        return Backoff(self._settings.retry_wait_s, self._settings.retry_wait_max_s)

    async def _start(self) -> None:
        settings, services = self._settings, self.services
        opened = await asyncio.gather(
            self._connect("requests"),
            self._connect("bulk"),
            self._database.open(),
            self._counter.start(),
            asyncio.to_thread(model_limits.warm),
            return_exceptions=True,
        )
        self._clients = [part for part in opened if isinstance(part, BusClient)]
        for part in opened:
            if isinstance(part, BaseException):
                raise part
        await self._same_key()
        if renamed := await upgrade_users(services):
            _log.warning("the names of %d users of an earlier release became surrogates", renamed)
        await exchange_seed.begin(services, days=settings.exchange_seed_days)
        await asyncio.gather(self._access.directory.open(), self._know_orgs())
        requests, bulk = self._clients
        stream_settings = streams.StreamSettings(
            num_replicas=settings.stream_replicas,
            usage_bytes_max=settings.stream_usage_bytes_max,
            ack_wait_s=settings.ingest_ack_wait_s,
            single_account=self._single,
        )
        created, _ = await asyncio.gather(streams.ensure_streams(bulk, stream_settings), self._ensure_partitions())
        publisher = StoredPublisher(bulk)
        services.sink = self._sink = StreamSink(publisher, new_id, timeout_s=settings.limits.stored_timeout_s)
        applier = Applier(services)
        self._ingest = Ingest(services, applier)
        self._ingest_loop = IngestLoop(
            bulk,
            self._ingest,
            stream_created=created,
            batch_max=settings.ingest_batch_messages_max,
            pending_max=settings.ingest_pending_messages_max,
            keep_s=settings.ingest_ack_wait_s / 3,
            backoff=self._backoff(),
            on_failed=self.stop,
        )
        self._relay = Relay(
            self._database,
            publisher,
            services.outbox_ready,
            services.identities,
            batch_max=settings.outbox_batch_max,
            poll_s=settings.outbox_poll_s,
            backoff=self._backoff(),
            single_account=self._single,
        )
        self._deliverer = Deliverer(
            services,
            places=settings.delivery_threads_max,
            poll_s=settings.delivery_poll_s,
            backoff=self._backoff(),
        )
        self._admission = Admission(services)
        self._counting = TokenCounting(services)
        self._intake = Intake(services, applier)
        services.status = self._status
        services.contract = contract.document
        await self._serve(requests)
        self._ingest_loop.start()
        self._start_jobs()

    async def _same_key(self) -> None:
        """An agent with another key would count every user anew and could read no secret: it must not serve."""
        async with self._database.transaction() as connection:
            known = await installation.remember(connection, "secret_key", self.services.vault.fingerprint)
        if known != self.services.vault.fingerprint:
            raise WrongKey(
                "this database belongs to agents with another secret key: give them all the same "
                "TOKEN_MANAGER_SECRET_KEY (with private servers it is master.password in the data folder)"
            )

    async def _know_orgs(self) -> None:
        """The settings of every org that has any, so that the first usage that arrives is treated by them."""
        async with self._database.connection() as connection:
            orgs = await budget_store.orgs(connection, self._settings.orgs_read_max)
        for org in orgs:
            await self.services.reload_catalogue(org)

    async def _connect(self, purpose: str) -> BusClient:
        credentials = self._settings.nats_credentials_file
        client = await connect(
            self._nats_url,
            instance=f"{self.instance}-{purpose}",
            settings=BusSettings(connect_deadline_s=self._settings.connect_deadline_s),
            credentials=BusCredentials(credentials_file=str(credentials)) if credentials else None,
        )
        # A connection that is closed for good is never mended; a process that cannot hear must not look alive.
        client.listeners.closed.append(self.stop)
        return client

    async def _serve(self, client: BusClient) -> None:
        settings = self._settings
        routes = (
            BatchRoute(CHECK_BUDGET, self._admission.submit),
            BatchRoute(TRACK_USAGE, self._intake.submit),
            BatchRoute(COUNT_TOKENS, self._counting.submit),
            *ROUTES,
        )
        prefix = REQUEST_PREFIX if self._single else f"{AGENT_REQUEST_PREFIX}.*"
        endpoints = [endpoint_of(r.signal, subject_prefix=prefix, queue_group=QUEUE) for r in routes]
        self._service = Service(client, instance=self.instance, version=VERSION, endpoints=endpoints)
        self._dispatch = Dispatch(
            client,
            self.services,
            self._access.identity,
            DispatchLimits(
                concurrency_max=settings.request_concurrency_max,
                queue_max=settings.request_queue_max,
                timeout_s=settings.request_timeout_s,
            ),
        )
        self._schedules = Schedules(
            self.services,
            self._access.access,
            {route.signal.name: route for route in ROUTES},
            batch_max=settings.schedule_batch_max,
            timeout_s=settings.request_timeout_s,
        )
        await self._dispatch.serve(routes, prefix=prefix, queue=QUEUE, stats=self._service.stats)
        await self._service.start()
        await client.flush()

    def _start_jobs(self) -> None:
        settings, services = self._settings, self.services
        self._run(self._relay.run(), "outbox")
        self._run(self._every(settings.identity_interval_s, services.identities.flush, self._backoff()), "names")
        self._run(self._every(settings.tally_interval_s, self._count, self._backoff()), "counts")
        self._run(self._deliverer.run(), "deliveries")
        self._run(self._access.directory.run(), "directory")
        self._run(self._every(settings.access_tidy_interval_s, self._access.tidy, self._backoff()), "access")
        self._run(self._every(settings.schedule_interval_s, self._schedules.run_due, self._backoff()), "schedules")
        self._run(self._every(settings.expiry_interval_s, self._expire, self._backoff()), "expiry")
        self._run(self._every(settings.override_interval_s, self._expire_overrides, self._backoff()), "overrides")
        self._run(self._every(settings.alert_interval_s, Watch(self.services).run, self._backoff()), "alerts")
        self._run(self._every(settings.sizing_interval_s, self._refresh_sizing, self._backoff()), "sizing")
        self._run(self._every(settings.partition_interval_s, self._ensure_partitions, self._backoff()), "partitions")
        self._run(self._every(settings.watchdog_interval_s, self._look_after_servers, self._backoff()), "servers")
        if settings.prices_refresh != "off" and settings.prices_interval_s:
            self._run(self._every(settings.prices_interval_s, self._refresh_prices, self._backoff()), "prices")
        for client in self._clients:
            watch = self._watch(client, interval_s=settings.watchdog_interval_s, timeout_s=settings.watchdog_timeout_s)
            self._run(watch, "watchdog")

    async def _drain(self) -> None:
        """Intake ends, everything accepted is answered and applied, events go out; only then connections close."""
        timeout_s = self._settings.drain_timeout_s
        answered = await self._dispatch.drain(timeout_s)
        await self._service.stop()
        if answered:
            await self._admission.drain()
            await self._intake.drain()
            await self._counting.drain()
        else:  # What hangs now may hang for long; nobody has been told that it was done.
            _log.error("%d requests were not answered in time", self._dispatch.open_requests)
        await self._ingest_loop.stop(timeout_s)
        await self._deliverer.stop(timeout_s)
        with contextlib.suppress(*UNAVAILABLE):  # A name that is lost is met again.
            await self.services.identities.flush()
            await self._count()
        for client in self._clients:
            if client.is_connected:
                with contextlib.suppress(nats_errors.Error):  # A bus that hangs takes no replies.
                    await client.flush()

    async def _close(self) -> None:
        await self._counter.stop()
        for client in self._clients:
            client.listeners.closed.clear()
            await client.close()
        await self._access.directory.close()
        await self._database.close()

    async def _read_clock(self) -> datetime:
        """The ledger's clock; this agent's own is corrected by it, so that usage is dated alike on every agent."""
        async with self._database.connection() as connection:
            now = await budget_store.clock(connection)
        self._ahead = now - datetime.now(UTC)
        return now

    async def _expire(self) -> None:
        """R9: what the stream still holds decides how far expiry may go; if that is unknown, nothing expires."""
        asked_at = await self._read_clock()
        try:
            state = await streams.stream_state(self._clients[1], USAGE_STREAM, timeout_s=STATUS_TIMEOUT_S)
        except (streams.StreamConflict, streams.StreamUnavailable):
            return
        applied = Applied(drained=state.messages == 0, until=state.first_timestamp, asked_at=asked_at)
        expired = await sweep(self.services, applied)
        if expired:
            _log.info("%d reservations expired", expired)

    async def _expire_overrides(self) -> None:
        """The clock has ended them; this says so."""
        expired = await expire_overrides(self.services)
        if expired:
            _log.info("%d overrides expired", expired)

    async def _count(self) -> None:
        await self.services.tally.flush(self._database)

    async def _refresh_sizing(self) -> None:
        """What calls are observed to take, for admission to size them by without asking."""
        await refresh(self.services)

    async def _look_after_servers(self) -> None:
        """Say when the disk is full, and renew a private bus that is there but stores nothing although it could."""
        if self._house is None:
            return
        if disk := self._house.disk_problem():
            _log.error("%s", disk)
        elif self._sink.silent_s > self._settings.store_silent_max_s and self._clients[1].is_connected:
            _log.error("%s; starting nats-server again", self._sink.problem)
            self._sink.forget()
            await self._house.renew_nats()

    async def _ensure_partitions(self) -> None:
        """R12: partitions a week ahead, made by whichever agent comes first."""
        today = datetime.now(UTC).date()
        days = [today + timedelta(days=n) for n in range(self._settings.partition_days_ahead + 1)]
        await jobs.once_a_day(self._database, "partitions", today, self.instance, self._attach(days))

    async def _refresh_prices(self) -> None:
        """Public list prices for every org, once per interval, by whichever agent comes first."""
        interval_s = self._settings.prices_interval_s
        now = await self._read_clock()
        planned_at = datetime.fromtimestamp(now.timestamp() // interval_s * interval_s, UTC)

        async def work() -> str:
            async with self._database.connection() as connection:
                orgs = await budget_store.orgs(connection, self._settings.orgs_read_max)
            try:
                return await refresh_every_org(self.services, orgs)
            except SignalError as error:  # What is wrong with the file or the mirror: the next time may be better.
                _log.warning("prices were not refreshed: %s", error.message)
                return f"{error.code}: {error.message}"

        await jobs.once(self._database, "prices", planned_at, self.instance, work)

    def _attach(self, days: list[date]) -> Any:
        async def attach() -> str:
            created = await partitions.ensure(self._database, days)
            return f"{len(created)} attached"

        return attach

    async def _status(self) -> dict[str, Any]:
        """What only the agent knows, for ``get_status``: bounded in time, and never raises."""
        state: streams.StreamState | None = None
        problem: str | None = None
        try:
            state = await streams.stream_state(self._clients[1], USAGE_STREAM, timeout_s=STATUS_TIMEOUT_S)
        except (streams.StreamConflict, streams.StreamUnavailable) as error:
            problem = str(error)
        counts = self._ingest.counts
        disk = None if self._house is None else self._house.disk_problem()
        return {
            "started_at": self._started_at,
            "version": VERSION,
            "stream": USAGE_STREAM,
            "stored_messages": None if state is None else state.messages,
            "oldest_unapplied": None if state is None else state.first_timestamp,
            "applied_events": counts.applied,
            "duplicates": counts.duplicates,
            "parts": [
                ("stream", problem is None, problem),
                ("store", self._sink.problem is None, self._sink.problem),
                ("disk", disk is None, disk),
                ("ingest", self._ingest_loop.problem is None, self._ingest_loop.problem),
                ("outbox", self._relay.problem is None, self._relay.problem),
                ("deliveries", self._deliverer.problem is None, self._deliverer.problem),
                ("counter", self._counter.problem is None, self._counter.problem),
                ("directory", self._access.directory.problem is None, self._access.directory.problem),
                ("prices", self.services.snapshots.problem is None, self.services.snapshots.problem),
            ],
            "requests": {
                name: {"requests": endpoint.stats.num_requests, "errors": endpoint.stats.num_errors}
                for name, endpoint in self._service.endpoints.items()
            },
        }
