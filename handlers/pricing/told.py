"""How a change of prices is told: event ``pricing.changed``, and the audit trail. The caller's transaction is open."""

from collections.abc import Sequence

from handlers import audit
from handlers.context import Context
from handlers.events import cloud_event
from schemas.pricing import PricingChanged
from signals import pricing as signals
from store import outbox as outbox_store
from store.pool import Connection


async def announce(ctx: Context, connection: Connection, changes: Sequence[PricingChanged]) -> None:
    """Write the events of changes."""
    events = [cloud_event(ctx.services, ctx.org, signals.CHANGED, each, subject=each.entity_id) for each in changes]
    await outbox_store.add(connection, ctx.org, events)


async def record(ctx: Context, connection: Connection, change: PricingChanged) -> None:
    """Append a change to the audit trail: last in its transaction."""
    await audit.record(
        connection,
        ctx.caller,
        action=change.action,
        entity=change.entity,
        entity_id=change.entity_id,
        before=change.before,
        after=change.after,
        reason=change.reason,
    )
