"""``set_brake`` and ``list_brakes``: the kill switch, under the catalogue lock, so that the next decision on every
agent knows it (R2). Admission denies; this module only says what is on.
"""

from typing import Final

from handlers import audit
from handlers.access.scope import may_manage
from handlers.context import Context
from handlers.cursor import decode_cursor, page
from handlers.enforcer.catalogue import EVERY
from handlers.enforcer.transaction import catalogue_change
from handlers.events import cloud_event
from schemas.brake import Brake, BrakeChanged, BrakeList, BrakeReply, ListBrakes, SetBrake
from schemas.errors import SignalError, conflict, invalid
from signals import brake as signals
from signals import route
from store import brakes as brake_store
from store import budgets as budget_store
from store import outbox as outbox_store
from store.brakes import BrakeRow
from store.pool import Connection

_ENTITY: Final = "brake"


async def set_brake(ctx: Context, request: SetBrake) -> BrakeReply:
    """Deny all calls of a scope, or let them through again. Setting what is set already changes nothing.

    Raises SignalError ``forbidden`` for a manager beyond the own teams, or over what somebody else has switched on.
    """
    _check(request)
    if not _reaches(ctx, request):
        raise SignalError("forbidden", "a manager may stop own teams only", field=_field(request))

    async def work(connection: Connection) -> BrakeReply:
        now = await budget_store.clock(connection)
        before = await brake_store.find(connection, ctx.org, request.scope, request.entity_id)
        after = BrakeRow(
            org_id=ctx.org,
            scope=request.scope,
            entity_id=request.entity_id,
            reason=request.reason,
            set_by=ctx.caller.actor,
            set_at=now,
        )
        if not _changes(before, after, on=request.on):
            return BrakeReply(brake=_shown(before or after, on=request.on), changed=False)
        _check_owner(ctx, before)
        await _write(ctx, connection, before, after, on=request.on)
        return BrakeReply(brake=_shown(after, on=request.on), changed=True)

    return await catalogue_change(ctx, work)


async def list_brakes(ctx: Context, request: ListBrakes) -> BrakeList:
    """Kill switches that are on, by scope and entity."""
    position = decode_cursor(request.cursor, tuple[str, str])
    async with ctx.database.connection() as connection:
        rows = await brake_store.listing(
            connection, ctx.org, scope=request.scope, after=position or ("", ""), limit=request.limit + 1
        )
    brakes, next_cursor = page(
        [_shown(row, on=True) for row in rows], limit=request.limit, key=lambda brake: (brake.scope, brake.entity_id)
    )
    return BrakeList(brakes=brakes, next_cursor=next_cursor)


def _check(request: SetBrake) -> None:
    """Refuse what would look like a kill switch and stop nothing."""
    if request.scope == "org" and request.entity_id != EVERY:
        raise invalid("the org has no entity: leave it out or give '*'", field="entity_id")
    if request.scope in ("team", "provider") and EVERY in request.entity_id:
        raise invalid(f"names one {request.scope}, without '*'; scope 'org' stops everything", field="entity_id")
    if not request.reason.strip():
        raise invalid("says nothing", field="reason")


def _reaches(ctx: Context, request: SetBrake) -> bool:
    """An admin may stop anything, a manager own teams."""
    if "admin" in ctx.caller.roles:
        return True
    return request.scope == "team" and may_manage(ctx.caller, type="team", entity_id=request.entity_id, members={})


def _field(request: SetBrake) -> str:
    return "entity_id" if request.scope == "team" else "scope"


def _changes(before: BrakeRow | None, after: BrakeRow, *, on: bool) -> bool:
    if before is None:
        return on
    return not on or before.reason != after.reason


def _check_owner(ctx: Context, before: BrakeRow | None) -> None:
    """What an admin has stopped a manager cannot set going again, nor take over by giving another reason."""
    if before is not None and "admin" not in ctx.caller.roles and before.set_by != ctx.caller.actor:
        raise SignalError("forbidden", f"was switched on by {before.set_by}; an admin can change it", field="entity_id")


async def _write(ctx: Context, connection: Connection, before: BrakeRow | None, after: BrakeRow, *, on: bool) -> None:
    """The row, the event and the audit entry."""
    if not on:
        await brake_store.remove(connection, ctx.org, after.scope, after.entity_id)
    else:
        most = ctx.services.limits.brakes_max
        if before is None and await brake_store.count(connection, ctx.org) >= most:
            raise conflict(f"{most} kill switches are on; release some, or use a pattern", field="entity_id")
        await brake_store.put(connection, after)
    was = None if before is None else _shown(before, on=True)
    told = BrakeChanged(actor=ctx.caller.actor, before=was, after=_shown(after, on=on))
    subject = f"{after.scope}/{after.entity_id}"
    event = cloud_event(ctx.services, ctx.org, signals.CHANGED, told, subject=subject)
    await outbox_store.add(connection, ctx.org, [event])
    await audit.record(
        connection,
        ctx.caller,
        action=("updated" if before is not None else "switched_on") if on else "switched_off",
        entity=_ENTITY,
        entity_id=subject,
        before=was,
        after=told.after if on else None,
        reason=after.reason,
    )


def _shown(row: BrakeRow, *, on: bool) -> Brake:
    return Brake(
        scope=row.scope,  # pyright: ignore[reportArgumentType]  # A CHECK holds the column to these values.
        entity_id=row.entity_id,
        on=on,
        reason=row.reason,
        set_by=row.set_by,
        set_at=row.set_at,
    )


ROUTES = (
    route(signals.SET_BRAKE, set_brake),
    route(signals.LIST_BRAKES, list_brakes),
)
