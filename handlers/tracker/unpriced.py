"""Event ``usage.unpriced``: usage that has no cost is news once a day for each model, never silently free (P5)."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from handlers.context import Services
from handlers.events import cloud_event
from handlers.tracker.priced import PricedEvent
from schemas.usage import UnpricedUsage
from signals import usage as signals
from store import outbox as outbox_store
from store import usage as usage_store
from store.pool import Connection


async def tell_unpriced(
    services: Services, connection: Connection, org: str, events: Sequence[PricedEvent], at: datetime | None = None
) -> None:
    """Tell of those of the events that have no cost, each on the day it arrived, or at ``at``. In their transaction."""
    first: dict[tuple[str, str], PricedEvent] = {}
    for event in events:
        if event.cost_status == "unpriced":
            first.setdefault((event.provider, event.model), event)
    if not first:
        return
    days = {key: (at or event.arrived_at).date() for key, event in first.items()}
    models = [(p, m, days[p, m], event.id) for (p, m), event in sorted(first.items())]
    news = await usage_store.first_unpriced(connection, org, models)
    told: list[tuple[str, bytes]] = []
    for provider, model in sorted(news):
        event = first[provider, model]
        payload = UnpricedUsage(
            provider=provider,
            model=model,
            usage_id=event.id,
            day=days[provider, model].isoformat(),
            unpriced_kinds=_unpriced_kinds(event),
        )
        told.append(cloud_event(services, org, signals.UNPRICED, payload, subject=event.id))
    await outbox_store.add(connection, org, told)


def _unpriced_kinds(event: PricedEvent) -> list[str]:
    items = msgspec.json.decode(event.line_items, type=list[list[Any]])
    return [item[0] for item in items if item[2] is None]
