"""``list_alerts`` and ``acknowledge_alert``: what people see of alerts, and say to them."""

import re
from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

import msgspec

from handlers import audit
from handlers.alerts.shown import alert_reply
from handlers.context import Context
from handlers.cursor import decode_cursor, page
from handlers.enforcer.budgets import budget_uuid
from handlers.events import cloud_event
from schemas.alert import AcknowledgeAlert, Alert, AlertList, ListAlerts
from schemas.errors import invalid, not_found
from signals import alert as signals
from signals import route
from store import alerts as alert_store
from store import budgets as budget_store
from store import outbox as outbox_store

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_AT = Annotated[datetime, msgspec.Meta(tz=True)]


async def list_alerts(ctx: Context, request: ListAlerts) -> AlertList:
    """Alerts, newest first."""
    position = decode_cursor(request.cursor, tuple[_AT, UUID])
    async with ctx.database.connection() as connection:
        rows = await alert_store.listing(
            connection,
            ctx.org,
            level=request.level,
            kind=request.kind,
            budget_id=None if request.budget_id is None else budget_uuid(request.budget_id),
            acknowledged=None if request.state is None else request.state == "acknowledged",
            before=None if position is None else (position[0], str(position[1])),
            limit=request.limit + 1,
        )
    alerts, next_cursor = page(
        [alert_reply(row) for row in rows],
        limit=request.limit,
        key=lambda alert: (alert.created_at, alert.alert_id),
    )
    return AlertList(alerts=alerts, next_cursor=next_cursor)


async def acknowledge_alert(ctx: Context, request: AcknowledgeAlert) -> Alert:
    """Say that somebody looks after an alert: nobody is told again. The first one to say so counts."""
    alert_id = request.alert_id.lower()
    if not _UUID.fullmatch(alert_id):
        raise invalid("is not an alert id (a UUID)", field="alert_id")
    async with ctx.database.transaction() as connection:
        row = await alert_store.lock(connection, ctx.org, alert_id)
        if row is None:
            raise not_found("there is no such alert", field="alert_id")
        if row.acknowledged_at is not None:
            return alert_reply(row)
        at = await budget_store.clock(connection)
        by, comment = ctx.caller.actor, request.comment
        await alert_store.acknowledge(connection, ctx.org, alert_id, by=by, at=at, comment=comment)
        changed = await alert_store.find(connection, ctx.org, alert_id)
        assert changed is not None
        after = alert_reply(changed)
        event = cloud_event(ctx.services, ctx.org, signals.ACKNOWLEDGED, after, subject=alert_id)
        await outbox_store.add(connection, ctx.org, [event])
        await audit.record(
            connection,
            ctx.caller,
            action="acknowledged",
            entity="alert",
            entity_id=alert_id,
            before=alert_reply(row),
            after=after,
            reason=comment,
        )
    ctx.services.outbox_ready.set()
    return after


ROUTES = (
    route(signals.LIST_ALERTS, list_alerts),
    route(signals.ACKNOWLEDGE_ALERT, acknowledge_alert),
)
