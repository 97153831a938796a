"""Drives the ledger the way agents do, without a bus: several agents on one database, with time that tests move.

Each agent has its own pool, catalogue, window index and planners; they share PostgreSQL and nothing else. Time is
``ledger_clock()``, moved by the database's setting ``token_manager.clock_offset``, and the agents' clocks with it.
"""

import asyncio
import contextlib
import itertools
import os
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import msgspec
from hypothesis import HealthCheck, Phase, settings

from agent.ids import UuidV7
from handlers.adjustments.adjust import adjust_usage
from handlers.adjustments.reprice import reprice_usage
from handlers.context import Caller, Context, Inbound, Limits, Services
from handlers.cost.layer import Answer, PriceQuery
from handlers.cost.rate_card import RateCard, Rates, rate_nanos
from handlers.cost.resolve import RateCards
from handlers.currency.rates import update_exchange_rates
from handlers.enforcer.admission import Admission
from handlers.enforcer.backfill import backfill
from handlers.enforcer.calendar import bounds
from handlers.enforcer.changes import extend_reservation, release_reservation
from handlers.enforcer.sweep import Applied, sweep
from handlers.tracker.apply import Applier, Effect
from handlers.tracker.intake import anonymous
from handlers.tracker.priced import PricedEvent, priced
from schemas.adjustment import AdjustedUsage, AdjustedUsages, AdjustUsage, RepricedUsage, RepriceUsage
from schemas.budget import BudgetDecision, ExtendReservation, ReleaseReservation, ReservationReply
from schemas.errors import SignalError
from schemas.exchange import ExchangeRatesUpdated, UpdateExchangeRates
from schemas.usage import UsageEvent
from store import budgets as budget_store
from store import windows as window_store
from store.budgets import BudgetRow
from store.pool import Connection, Database, PoolSettings
from tests.ledger.oracle import violations
from tests.support.vault import TEST_VAULT

ORG: Final = "default"
# A Wednesday noon: no window but the minute's and the hour's ends while a test runs.
START: Final = datetime(2030, 3, 13, 12, tzinfo=UTC)
DRAINED: Final = Applied(drained=True, until=None)
CENT: Final = 10_000_000
USD: Final = 1_000_000_000
_SCALE: Final = 20 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 1
_LOOKING: Final = {"timezone": "UTC", "application_name": "oracle", "jit": "off"}
_numbers = itertools.count(1)
_ids = UuidV7()


def examples(count: int) -> settings:
    """Hypothesis settings for ``count`` examples, twenty times as many with HYPOTHESIS_PROFILE=thorough."""
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    phases = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
    return settings(max_examples=count * _SCALE, deadline=None, suppress_health_check=quiet, phases=phases)


def card(model: str, context_window: int | None = None, currency: str = "USD", **per_million: str) -> RateCard:
    rates = Rates(**{kind: rate_nanos(Decimal(text)) for kind, text in per_million.items()})
    return RateCard(
        provider="acme",
        model=model,
        source="test",
        version="1",
        rates=rates,
        context_window=context_window,
        currency=currency,
    )


CARDS: Final = {
    "cent": card("cent", input="0", output="10000"),  # One completion token is one cent.
    "odd": card("odd", input="0.0375", output="0.1501", cache_read="0.0125"),  # Costs that need rounding.
    "eurocent": card("eurocent", currency="EUR", input="0", output="10000"),
    "small": card("small", context_window=1_000, input="0", output="10000"),
}


def _test_prices(query: PriceQuery) -> Answer | None:
    return Answer(CARDS.get(query.model))


def at_database(url: str, database: str) -> str:
    """The same DSN for another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


class LedgerAgent:
    """One agent: admission, apply, and the requests that change a reservation."""

    def __init__(self, world: "World", name: str, *, skew: timedelta, limits: Limits, pool_max: int) -> None:
        self.world = world
        self.name = name
        self.skew = skew
        self._limits = limits
        self._pool = PoolSettings(min_size=1, max_size=pool_max, command_timeout_s=30.0, acquire_timeout_s=30.0)
        self._forget()

    def _forget(self) -> None:
        self.services = Services(
            database=Database(self.world.url, self._pool),
            rate_cards=RateCards([_test_prices]),
            clock=lambda: self.world.now() + self.skew,
            new_id=_ids,
            vault=TEST_VAULT,
            limits=self._limits,
            instance=self.name,
        )
        self.admission = Admission(self.services)
        self.applier = Applier(self.services)

    async def start(self) -> None:
        """Open the pool."""
        await self.services.database.open()

    async def close(self) -> None:
        """Close the pool."""
        await self.services.database.close()

    async def restart(self) -> None:
        """Start again with nothing in memory, as after a kill."""
        await self.close()
        self._forget()
        await self.start()

    async def reconnect(self) -> None:
        """New connections, everything in memory kept."""
        await self.close()
        self.services.database = Database(self.world.url, self._pool)
        await self.start()

    @property
    def caller(self) -> Caller:
        """Who asks."""
        return Caller(self.world.org, "tester", frozenset({"admin"}))

    @property
    def context(self) -> Context:
        """What handlers of single requests are given."""
        return Context(self.services, self.caller)

    def submit(self, **fields: Any) -> "asyncio.Future[BudgetDecision]":
        """Ask for admission without waiting; a refusal is the future's exception."""
        answer: asyncio.Future[BudgetDecision] = asyncio.get_running_loop().create_future()
        request = {"provider": "acme", "model": "cent", "prompt_tokens": 0, **fields}
        self.admission.submit(
            Inbound(
                self.caller,
                msgspec.json.encode(request),
                lambda data: answer.set_result(msgspec.json.decode(data, type=BudgetDecision)),
                answer.set_exception,
            )
        )
        return answer

    async def check(self, **fields: Any) -> BudgetDecision | SignalError:
        """Ask for admission; a refusal is returned."""
        try:
            return await self.submit(**fields)
        except SignalError as error:
            return error

    async def hold(self, **fields: Any) -> str:
        """An approved check's reservation id."""
        decision = await self.submit(**fields)
        assert decision.approved, decision.reason
        assert decision.reservation_id is not None
        return decision.reservation_id

    async def deny(self, **fields: Any) -> BudgetDecision:
        """A denied check's answer."""
        decision = await self.submit(**fields)
        assert not decision.approved
        return decision

    def event(self, **fields: Any) -> PricedEvent:
        """A usage event as it arrives here and now, validated and priced."""
        given = {"provider": "acme", "model": "cent", "prompt_tokens": 0, **fields}
        event = anonymous(self.services, self.world.org, msgspec.convert(given, UsageEvent))
        arrived_at = self.services.clock()
        event_id = event.id or f"e-{next(_numbers)}"
        services = self.services
        return priced(
            event,
            org=self.world.org,
            event_id=event_id,
            arrived_at=arrived_at,
            cards=services.rate_cards,
            limits=services.limits,
        ).event

    async def track(self, **fields: Any) -> Effect:
        """One usage event, applied."""
        return (await self.apply([self.event(**fields)]))[0]

    async def apply(self, events: Sequence[PricedEvent]) -> dict[int, Effect]:
        """Apply events that arrived before."""
        return await self.applier.apply(self.world.org, events)

    async def release(self, reservation_id: str) -> ReservationReply:
        """Release a reservation."""
        return await release_reservation(self.context, ReleaseReservation(reservation_id=reservation_id))

    async def extend(self, reservation_id: str, *, ttl_s: int = 600, **fields: Any) -> ReservationReply:
        """Extend a reservation, optionally with a new estimate."""
        request = ExtendReservation(reservation_id=reservation_id, ttl_s=ttl_s, **fields)
        return await extend_reservation(self.context, request)

    async def adjust(self, usage_id: str, kind: str, **fields: Any) -> AdjustedUsage:
        """One adjustment. Raises SignalError where it is refused."""
        given = {"usage_id": usage_id, "kind": kind, "reason": "a test", **fields}
        return (await adjust_usage(self.context, msgspec.convert(given, AdjustUsage))).adjustments[0]

    async def adjust_many(self, adjustments: Sequence[Mapping[str, Any]], *, dry_run: bool = False) -> AdjustedUsages:
        """Several adjustments in one request."""
        given = {"adjustments": adjustments, "dry_run": dry_run}
        return await adjust_usage(self.context, msgspec.convert(given, AdjustUsage))

    async def reprice(self, **fields: Any) -> RepricedUsage:
        """Price usage of all times again."""
        span = {"start": START - timedelta(days=400), "end": START + timedelta(days=4000), "dry_run": False}
        return await reprice_usage(self.context, msgspec.convert({**span, **fields}, RepriceUsage))

    async def rates(self, pair: str, rate: str, *, confirm: bool = True, **fields: Any) -> ExchangeRatesUpdated:
        """State an exchange rate of the org's own: ``EUR/USD``, ``1.25``."""
        base, quote = pair.split("/")
        given = {"rates": [{"base": base, "quote": quote, "rate": rate}], "source": "a test", "confirm": confirm}
        return await update_exchange_rates(self.context, msgspec.convert({**given, **fields}, UpdateExchangeRates))

    async def sweep(self, applied: Applied = DRAINED) -> int:
        """Expire what is due."""
        return await sweep(self.services, applied)


class World:
    """A database with a clock of its own, and the agents on it."""

    def __init__(self, url: str, org: str) -> None:
        self.url = url
        self.org = org
        self.agents: list[LedgerAgent] = []
        self._offset = timedelta(0)
        self._look: Connection | None = None
        self._looking = asyncio.Lock()

    def now(self) -> datetime:
        """The time of this world."""
        return datetime.now(UTC) + self._offset

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """An independent connection."""
        connection = await asyncpg.connect(self.url, server_settings=_LOOKING)
        try:
            yield connection
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def _looked(self) -> AsyncGenerator[Connection]:
        """The connection that tests look through, one look at a time; its clock is the present one."""
        async with self._looking:
            if self._look is None:
                self._look = await asyncpg.connect(self.url, server_settings=_LOOKING)
            yield self._look

    async def close(self) -> None:
        """Close what tests look through."""
        async with self._looking:
            if self._look is not None:
                await self._look.close()
                self._look = None

    async def go_to(self, at: datetime) -> None:
        """Move time to ``at``: on the server, and in every agent, which keeps all it remembers."""
        self._offset = at - datetime.now(UTC)
        name = urlsplit(self.url).path[1:]
        async with self._looked() as connection:
            offset = f"{self._offset.total_seconds():.6f} s"
            await connection.execute(f"ALTER DATABASE {name} SET token_manager.clock_offset = '{offset}'")
        await self.close()
        await asyncio.gather(*(agent.reconnect() for agent in self.agents))

    async def wait(self, **delta: float) -> None:
        """Let time pass."""
        await self.go_to(self.now() + timedelta(**delta))

    async def agent(self, *, skew: timedelta = timedelta(0), limits: Limits | None = None) -> LedgerAgent:
        """One more agent."""
        name = f"agent-{len(self.agents)}"
        agent = LedgerAgent(self, name, skew=skew, limits=limits or Limits(), pool_max=6)
        self.agents.append(agent)
        await agent.start()
        return agent

    async def budget(self, **fields: Any) -> BudgetRow:
        """A new budget, stored under the exclusive lock. ``limit`` is in USD for cost, else a count."""
        row = self._draft(self.now(), fields)
        async with self._looked() as connection, connection.transaction():
            await budget_store.lock_exclusive(connection, self.org)
            await budget_store.insert(connection, row)
            await budget_store.bump(connection, self.org)
        return row

    def _draft(self, now: datetime, fields: dict[str, Any]) -> BudgetRow:
        unit = fields.get("unit", "cost")
        limit = fields.pop("limit")
        defaults: dict[str, Any] = {
            "budget_id": str(uuid.uuid4()),
            "version": 1,
            "name": f"budget-{next(_numbers)}",
            "type": "global",
            "entity_id": "*",
            "filters": {},
            "unit": unit,
            "currency": "USD" if unit == "cost" else None,
            "period": "monthly",
            "timezone": "UTC",
            "base_limit": int(Decimal(str(limit)) * USD) if unit == "cost" else limit,
            "overage_percent": 0,
            "enforcement": "block",
            "alert_thresholds": (50, 100),
            "rollover_policy": "none",
            "rollover_percent": 0,
            "override_policy": {},
            "on_expiry": "release",
            "preferred_models": (),
            "fallback_model": None,
            "active": True,
            "counting_since": now,
            "created_at": now,
            "updated_at": now,
        }
        values = {**defaults, **fields}
        values["entity_id"] = self.key(values["type"], values["entity_id"])
        return BudgetRow(org_id=self.org, **values)

    async def backfilled(self, **fields: Any) -> BudgetRow:
        """A new budget that counts its present window from its start, as create_budget does."""
        now = self.now()
        row = replace(self._draft(now, fields), counting_since=bounds(fields["period"], "UTC", now)[0])
        async with self._looked() as connection, connection.transaction():
            await budget_store.lock_exclusive(connection, self.org)
            at = await budget_store.clock(connection)
            row = replace(row, created_at=at, updated_at=at)
            await budget_store.insert(connection, row)
            exchange = await self.agents[0].services.books.refresh(connection, self.org)
            await backfill(connection, row, at, exchange)
            await budget_store.bump(connection, self.org)
        return row

    async def change(self, budget: BudgetRow, **fields: Any) -> BudgetRow:
        """Change a budget under the exclusive lock, as update_budget does."""
        async with self._looked() as connection, connection.transaction():
            await budget_store.lock_exclusive(connection, self.org)
            before = await budget_store.find(connection, self.org, budget.budget_id)
            assert before is not None
            row = replace(before, version=before.version + 1, updated_at=self.now(), **fields)
            await budget_store.update(connection, row)
            if row.blocking != before.blocking:
                limit = row.base_limit + row.base_limit * row.overage_percent // 100
                await window_store.set_blocking(
                    connection, self.org, row.budget_id, limit=limit if row.blocking else None
                )
            await budget_store.bump(connection, self.org)
        return row

    async def put_setting(self, key: str, value: Any) -> None:
        """Change an org setting under the exclusive lock."""
        async with self._looked() as connection, connection.transaction():
            await budget_store.lock_exclusive(connection, self.org)
            await budget_store.put_setting(connection, self.org, key, value)
            await budget_store.bump(connection, self.org)

    async def put(self, sql: str, *args: Any) -> None:
        """Change anything that decisions are made from, under the exclusive lock; $1 is the org."""
        async with self._looked() as connection, connection.transaction():
            await budget_store.lock_exclusive(connection, self.org)
            await connection.execute(sql, self.org, *args)
            await budget_store.bump(connection, self.org)

    async def brake(self, scope: str, entity_id: str = "*", reason: str = "an incident") -> None:
        """Switch a brake on."""
        sql = "INSERT INTO brake VALUES ($1, $2, $3, $4, 'tester', ledger_clock())"
        await self.put(sql, scope, entity_id, reason)

    async def member(self, user_id: str, team_id: str) -> None:
        """Put a user into a team of the directory."""
        await self.put("INSERT INTO team_member VALUES ($1, $2, $3)", self.key("user", user_id), team_id)

    async def override(
        self, budget: BudgetRow, amount: int, *, hours: float, entity: str = "*", delay_s: float = 0.0
    ) -> None:
        """An approved override from now (or a little later) on; ``amount`` in the budget's integer measure."""
        sql = """INSERT INTO override (org_id, override_id, budget_id, entity_id, status, amount, reason, requested_by,
                     requested_at, starts_at, ends_at, reviewed_by, reviewed_at)
                 VALUES ($1, $2, $3, $4, 'approved', $5, 'a test', 'asker', $6, $6, $7, 'tester', $6)"""
        now = self.now() + timedelta(seconds=delay_s)
        of = self.key(budget.type, entity)
        await self.put(sql, str(uuid.uuid4()), budget.budget_id, of, amount, now, now + timedelta(hours=hours))

    async def fetch(self, sql: str, *args: Any) -> list[Mapping[str, Any]]:
        """Rows by an independent connection."""
        async with self._looked() as connection:
            return [dict(row) for row in await connection.fetch(sql, *args)]

    async def execute(self, sql: str) -> None:
        """Statements by an independent connection."""
        async with self._looked() as connection:
            await connection.execute(sql)

    async def windows(self, budget: BudgetRow, entity: str | None = None) -> list[Mapping[str, Any]]:
        """A budget's windows by start and entity, oldest first."""
        sql = """SELECT * FROM budget_window WHERE org_id = $1 AND budget_id = $2
                 AND ($3::text IS NULL OR entity_id = $3) ORDER BY starts_at, entity_id"""
        return await self.fetch(sql, self.org, budget.budget_id, self.key(budget.type, entity))

    def key(self, kind: str, entity: str | None) -> str | None:
        """How an entity is called in the database."""
        named = kind == "user" and entity not in (None, "*")
        return TEST_VAULT.surrogate(self.org, str(entity)) if named else entity

    async def sums(self, budget: BudgetRow, entity: str | None = None) -> tuple[int, int, int]:
        """Spent, reserved and overrun of a budget's newest window."""
        row = (await self.windows(budget, entity))[-1]
        return row["spent"], row["reserved"], row["overrun"]

    async def reservation(self, reservation_id: str) -> Mapping[str, Any]:
        """One reservation."""
        sql = "SELECT * FROM reservation WHERE org_id = $1 AND reservation_id = $2"
        return (await self.fetch(sql, self.org, reservation_id))[0]

    async def told(self, event: str) -> list[dict[str, Any]]:
        """Payloads of events of one name, in order. No relay runs here, so the outbox is their whole history."""
        sql = "SELECT payload FROM outbox WHERE org_id = $1 AND event = $2 ORDER BY outbox_id"
        return [msgspec.json.decode(row["payload"])["data"] for row in await self.fetch(sql, self.org, event)]

    async def verify(self, *, complete: bool = True, told: bool = True) -> None:
        """Assert that every promise holds. ``complete``: no budget was ever inactive. ``told``: no relay ran."""
        async with self._looked() as connection:
            found = await violations(connection, self.org, complete=complete, told=told)
        assert not found, "\n".join(f"{rule}: {rows[:3]}" for rule, rows in found.items())


@contextlib.asynccontextmanager
async def world_of(url: str, *, agents: int = 1, org: str = ORG, start: datetime = START) -> AsyncGenerator[World]:
    """A world at ``start`` with ``agents`` agents; at the end every promise is verified once more."""
    world = World(url, org)
    await world.go_to(start)
    for _ in range(agents):
        await world.agent()
    try:
        yield world
    finally:
        for agent in world.agents:
            await agent.admission.drain()
            await agent.close()
        await world.close()
