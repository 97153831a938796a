"""Services whose couriers may reach loopback, servers to reach there, and agents that deliver."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from agent.backoff import Backoff
from agent.deliverer import Deliverer
from handlers.alerts.channels import set_channel
from handlers.alerts.couriers import Couriers, CourierSettings
from handlers.context import Context, Limits, Services
from schemas.channel import Channel, SetChannel
from store import alerts as alert_store
from store import deliveries as delivery_store
from store.alerts import AlertRow
from store.deliveries import NewDelivery
from store.pool import Database, PoolSettings
from tests.delivery.servers import MailServer, Receiver
from tests.support.services import ORG, context, services_for

SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
# Attempts follow each other at once: what is tested is what comes of them, not how long one waits.
LIMITS = Limits(delivery_wait_s=0.05, delivery_wait_max_s=0.2, delivery_attempts_max=200)
COURIERS = CourierSettings(allowed_hosts=("127.0.0.0/8",), timeout_s=5.0, answer_timeout_s=2.0)


@pytest_asyncio.fixture
async def services(database_url: str) -> AsyncIterator[Services]:
    async with delivering_services(database_url) as found:
        yield found


@contextlib.asynccontextmanager
async def delivering_services(url: str, *, limits: Limits = LIMITS) -> AsyncGenerator[Services]:
    """One agent's services."""
    async with services_for(url, limits=limits) as found:
        found.couriers = Couriers(COURIERS)
        yield found


@pytest.fixture
def ctx(services: Services) -> Context:
    return context(services)


@pytest.fixture
def mail() -> Iterator[MailServer]:
    server = MailServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    server.start()
    yield server
    server.stop()


@contextlib.asynccontextmanager
async def delivering(*agents: Services, poll_s: float = 0.05) -> AsyncGenerator[list[Deliverer]]:
    """A deliverer running for each agent's services; what is on its way at the end is finished."""
    made = [Deliverer(found, places=8, poll_s=poll_s, backoff=Backoff(0.01, 0.1)) for found in agents]
    jobs = [asyncio.create_task(deliverer.run()) for deliverer in made]
    try:
        yield made
    finally:
        for deliverer in made:
            await deliverer.stop(10.0)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)


async def new_channel(services: Services, name: str = "team", *, org: str = ORG, **fields: Any) -> Channel:
    """A channel that exists."""
    return await set_channel(context(services, org=org), SetChannel(name=name, **fields))


async def new_alert(services: Services, *, org: str = ORG, level: str = "critical", **fields: Any) -> AlertRow:
    """An alert that exists, about nothing in particular."""
    alert_id = services.new_id()
    values: dict[str, Any] = {
        "alert_id": alert_id,
        "dedup_key": alert_id,
        "kind": "threshold",
        "level": level,
        "title": f"alert {alert_id[-6:]}",
        "message": "Spent 90 of 100 USD.",
        "rule": None,
        "rule_ids": (),
        "budget_id": None,
        "window_id": None,
        "entity_id": None,
        "details": {},
        "created_at": services.clock(),
    }
    row = AlertRow(org_id=org, **{**values, **fields})
    async with services.database.transaction() as connection:
        await alert_store.insert(connection, [row])
    return row


async def tell(
    services: Services, *channels: str, org: str = ORG, count: int = 1, alert: AlertRow | None = None, **fields: Any
) -> list[str]:
    """Raise ``count`` alerts for each channel, as rules do; returns the ids of the deliveries."""
    ids: list[str] = []
    for _ in range(count):
        row = alert or await new_alert(services, org=org, **fields)
        async with services.database.transaction() as connection:
            now = await connection.fetchval("SELECT ledger_clock()")
            new = [
                NewDelivery(delivery_id=services.new_id(), alert_id=row.alert_id, channel=channel, not_before=now)
                for channel in channels
            ]
            await delivery_store.enqueue(connection, org, new)
        ids += [delivery.delivery_id for delivery in new]
    services.delivery_ready.set()
    return ids


async def deliveries(services: Services, **where: str) -> list[dict[str, Any]]:
    """Rows of the table, oldest first."""
    rows = await services.database.fetch("SELECT * FROM delivery ORDER BY delivery_id")
    return [dict(row) for row in rows if all(row[name] == value for name, value in where.items())]


def all_are(services: Services, status: str, count: int) -> Callable[[], Any]:
    """A check that ``count`` deliveries exist and all have a status."""

    async def check() -> bool:
        rows = await deliveries(services)
        found = [row["status"] for row in rows]
        assert found == [status] * count, f"{found}: {[row['last_error'] for row in rows][:3]}"
        return True

    return check


async def go_to(services: Services, url: str, at: datetime) -> None:
    """Let PostgreSQL's clock, by which deliveries go, run on from ``at``."""
    ahead = at - datetime.now(UTC)
    await services.database.execute(
        f"ALTER DATABASE {urlsplit(url).path[1:]} SET token_manager.clock_offset = '{ahead.total_seconds():.6f} s'"
    )
    await services.database.close()
    services.database = Database(url, PoolSettings(min_size=1, max_size=6))
    await services.database.open()
    services.clock = lambda: datetime.now(UTC) + ahead


MINUTE = timedelta(minutes=1)
