"""Channels and deliveries as signals: set, list, delete and test a channel; list deliveries, retry a dead one."""

import re
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec

from handlers import audit
from handlers.alerts.couriers import Target
from handlers.alerts.deliver import quiet_hours_of, with_names
from handlers.alerts.mail import Envelope, alert_content
from handlers.alerts.notes import Note
from handlers.alerts.spending import Spending
from handlers.context import Context
from handlers.cursor import decode_cursor, page
from handlers.enforcer.calendar import zone
from schemas.base import to_builtins
from schemas.channel import (
    Channel,
    ChannelList,
    DeleteChannel,
    DeletedChannel,
    Delivery,
    DeliveryList,
    DeliveryStatus,
    ListChannels,
    ListDeliveries,
    RetryDelivery,
    SetChannel,
    TestChannel,
    TestedChannel,
)
from schemas.codec import prefixed
from schemas.errors import SignalError, conflict, invalid, not_found
from signals import channel as signals
from signals import route
from store import budgets as budget_store
from store import channels as channel_store
from store import deliveries as delivery_store
from store.channels import ChannelRow
from store.deliveries import DeliveryRow

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_AT = Annotated[datetime, msgspec.Meta(tz=True)]


async def set_channel(ctx: Context, request: SetChannel) -> Channel:
    """Create or replace a channel. Its URL is tried on before anything is stored: a typing error is told at once."""
    if request.quiet_hours is not None:
        try:
            zone(request.quiet_hours.timezone)
        except SignalError as error:
            raise prefixed(error, "quiet_hours") from None
    async with ctx.database.connection() as connection:
        known = await channel_store.find(connection, ctx.org, request.name)
    target = _target(ctx, request, known)
    shown = await ctx.services.couriers.inspect(target)
    changed = request.url is not None or request.secret is not None
    async with ctx.database.transaction() as connection:
        before = await channel_store.lock(connection, ctx.org, request.name)
        if before is None and await channel_store.count(connection, ctx.org) >= ctx.services.limits.channels_max:
            raise conflict(f"the org has {ctx.services.limits.channels_max} channels, which is all it may have")
        now = await budget_store.clock(connection)
        row = ChannelRow(
            org_id=ctx.org,
            name=request.name,
            kind=request.kind,
            sealed=ctx.services.vault.seal(target.packed()),
            shown=shown,
            min_level=request.min_level,
            quiet_hours=None if request.quiet_hours is None else to_builtins(request.quiet_hours),
            messages_per_hour_max=request.messages_per_hour_max,
            active=request.active,
            created_at=now if before is None else before.created_at,
            updated_at=now,
        )
        await channel_store.put(connection, row)
        await audit.record(
            connection,
            ctx.caller,
            action="created" if before is None else "updated",
            entity="channel",
            entity_id=request.name,
            before=None if before is None else shown_channel(before),
            after={**to_builtins(shown_channel(row)), "target_changed": changed},
        )
    ctx.services.delivery_ready.set()
    return shown_channel(row)


async def list_channels(ctx: Context, request: ListChannels) -> ChannelList:
    """Channels by name."""
    after = decode_cursor(request.cursor, tuple[str])
    async with ctx.database.connection() as connection:
        rows = await channel_store.listing(
            connection, ctx.org, after=None if after is None else after[0], limit=request.limit + 1
        )
    items, next_cursor = page([shown_channel(row) for row in rows], limit=request.limit, key=lambda item: (item.name,))
    return ChannelList(channels=items, next_cursor=next_cursor)


async def delete_channel(ctx: Context, request: DeleteChannel) -> DeletedChannel:
    """Remove a channel; deliveries that wait for it end as dead, and can be retried once it is set again."""
    async with ctx.database.transaction() as connection:
        row = await channel_store.lock(connection, ctx.org, request.name)
        if row is None:
            raise _no_channel()
        pending = await delivery_store.count_pending(connection, ctx.org, request.name)
        await channel_store.delete(connection, ctx.org, request.name)
        await audit.record(
            connection,
            ctx.caller,
            action="deleted",
            entity="channel",
            entity_id=request.name,
            before=shown_channel(row),
            after=None,
        )
    ctx.services.delivery_ready.set()
    return DeletedChannel(name=request.name, pending=pending)


async def test_channel(ctx: Context, request: TestChannel) -> TestedChannel:
    """Send a test message now and say what became of it. Nothing is stored."""
    async with ctx.database.connection() as connection:
        row = await channel_store.find(connection, ctx.org, request.name)
    if row is None:
        raise _no_channel()
    started = ctx.now()
    message_id = ctx.new_id()
    envelope = Envelope(
        org=ctx.org,
        channel=row.name,
        message_id=message_id,
        sent_at=started,
        public_url=ctx.services.public_url,
    )
    note = Note(
        delivery_id=message_id,
        level="info",
        kind="test",
        title="Test message of the token manager",
        message=f"Channel {row.name} works: alerts will arrive like this. {ctx.caller.actor} asked for it.",
        created_at=started,
    )
    content = await with_names(ctx.services, ctx.org, alert_content(envelope, note, Spending()))
    outcome = await ctx.services.couriers.send(_unsealed(ctx, row), content, trial=True)
    latency = ctx.now() - started
    return TestedChannel(
        name=row.name,
        delivered=outcome.delivered,
        reason=outcome.reason,
        latency_ms=max(0, round(latency.total_seconds() * 1000)),
    )


async def list_deliveries(ctx: Context, request: ListDeliveries) -> DeliveryList:
    """Deliveries, newest first."""
    alert_id = None if request.alert_id is None else request.alert_id.lower()
    if alert_id is not None and not _UUID.fullmatch(alert_id):
        raise invalid("is not an alert id (a UUID)", field="alert_id")
    position = decode_cursor(request.cursor, tuple[_AT, UUID])
    async with ctx.database.connection() as connection:
        rows = await delivery_store.listing(
            connection,
            ctx.org,
            status=request.status,
            channel=request.channel,
            alert_id=alert_id,
            before=None if position is None else (position[0], str(position[1])),
            limit=request.limit + 1,
        )
    items, next_cursor = page(
        [_shown_delivery(row) for row in rows],
        limit=request.limit,
        key=lambda item: (item.created_at, item.delivery_id),
    )
    return DeliveryList(deliveries=items, next_cursor=next_cursor)


async def retry_delivery(ctx: Context, request: RetryDelivery) -> Delivery:
    """Make a dead delivery pending again, with all its attempts before it."""
    delivery_id = request.delivery_id.lower()
    known = _UUID.fullmatch(delivery_id) is not None
    async with ctx.database.transaction() as connection:
        row = await delivery_store.lock(connection, ctx.org, delivery_id) if known else None
        if row is None:
            raise not_found("there is no delivery with this id", field="delivery_id")
        if row.status != "dead":
            raise conflict(f"the delivery is {row.status}; only a dead one can be retried", field="delivery_id")
        revived = await delivery_store.revive(connection, ctx.org, row.delivery_id)
        await audit.record(
            connection,
            ctx.caller,
            action="retried",
            entity="delivery",
            entity_id=row.delivery_id,
            before=_shown_delivery(row),
            after=_shown_delivery(revived),
        )
    ctx.services.delivery_ready.set()
    return _shown_delivery(revived)


def shown_channel(row: ChannelRow) -> Channel:
    """A channel as everybody who may see it sees it."""
    return Channel(
        name=row.name,
        kind=row.kind,
        url=row.shown,
        signed=row.kind == "webhook",
        min_level=row.min_level,
        quiet_hours=quiet_hours_of(row),
        messages_per_hour_max=row.messages_per_hour_max,
        active=row.active,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _target(ctx: Context, request: SetChannel, known: ChannelRow | None) -> Target:
    """Where the channel is to lead: what the request says, and what is kept of the channel that exists."""
    kept = None if known is None or known.kind != request.kind else known
    if request.url is not None and (request.secret is not None or request.kind != "webhook" or kept is None):
        return Target(request.kind, request.url, request.secret)
    if kept is None:
        raise invalid("is required: the channel is new, or of another kind than before", field="url")
    old = _unsealed(ctx, kept)
    return replace(old, url=request.url or old.url, secret=request.secret or old.secret)


def _unsealed(ctx: Context, row: ChannelRow) -> Target:
    try:
        return Target.unpacked(ctx.services.vault.unseal(row.sealed))
    except ValueError:
        raise conflict("the channel was sealed with another secret key: set it again", field="name") from None


def _no_channel() -> SignalError:
    return not_found("there is no channel of this name", field="name")


def _shown_delivery(row: DeliveryRow) -> Delivery:
    values: dict[str, Any] = {name: getattr(row, name) for name in Delivery.__struct_fields__ if name != "status"}
    status: DeliveryStatus = msgspec.convert(row.status, DeliveryStatus)
    return Delivery(status=status, **values)


ROUTES = (
    route(signals.SET_CHANNEL, set_channel),
    route(signals.LIST_CHANNELS, list_channels),
    route(signals.DELETE_CHANNEL, delete_channel),
    route(signals.TEST_CHANNEL, test_channel),
    route(signals.LIST_DELIVERIES, list_deliveries),
    route(signals.RETRY_DELIVERY, retry_delivery),
)
