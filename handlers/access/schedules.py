"""``set_schedule``, ``list_schedules``, ``delete_schedule``: what is asked when, and who hears the result."""

from typing import Any, Final

import msgspec

from handlers import audit
from handlers.access.cron import next_run
from handlers.access.users import access_change
from handlers.context import Context
from handlers.cursor import decode_cursor, page
from handlers.enforcer.entities import entity_key
from handlers.identities import rename_users
from schemas.access import DeleteSchedule, ListSchedules, Schedule, ScheduleList, SetSchedule
from schemas.codec import Codec, prefixed
from schemas.errors import SignalError, conflict, invalid, not_found
from signals import Request, registry, route
from signals import access as signals
from store import budgets as budget_store
from store import schedules as schedule_store
from store.pool import Connection
from store.schedules import ScheduleRow

# How the house names signals that change nothing.
_READING: Final = ("get_", "list_", "aggregate_", "calculate_", "forecast_", "detect_", "describe")
HEARD_BY: Final = frozenset({"viewer"})


def may_be_scheduled(signal: Request[Any, Any]) -> bool:
    """Whether a signal may be asked on a schedule: it only reads, and every viewer, who hears the result as an event,
    might ask it, too.
    """
    return signal.idempotent and signal.name.startswith(_READING) and signal.allows(HEARD_BY)


async def set_schedule(ctx: Context, request: SetSchedule) -> Schedule:
    """Make a schedule what the request says, new or not. It runs with what its setter may do at that time."""
    signal = _signal(request.signal)
    text = msgspec.json.encode(request.request)
    try:
        Codec(signal.request).decode(text)
    except SignalError as error:
        raise prefixed(error, "request") from None
    text = _nameless(ctx, text)

    async def work(connection: Connection) -> Schedule:
        now = await budget_store.clock(connection)
        before = await schedule_store.find(connection, ctx.org, request.name)
        limit = ctx.services.limits.schedules_max
        if before is None and await schedule_store.count(connection, ctx.org) >= limit:
            raise conflict(f"the org has {limit} schedules: delete one first")
        due = next_run(request.cron, request.timezone, now)
        if due is None:
            raise invalid("names no time that ever comes", field="cron")
        row = ScheduleRow(
            org_id=ctx.org,
            name=request.name,
            cron=request.cron,
            timezone=request.timezone,
            signal=signal.name,
            request=text.decode(),
            channels=tuple(dict.fromkeys(request.channels)),
            active=request.active,
            created_by=ctx.caller.user,
            created_at=now if before is None else before.created_at,
            updated_at=now,
            next_run_at=due,
            last_run_at=None if before is None else before.last_run_at,
            last_error=None if before is None else before.last_error,
        )
        await schedule_store.put(connection, row)
        after = _shown(row)
        await _record(ctx, connection, "created" if before is None else "updated", before, after)
        return after

    return await access_change(ctx, work)


async def delete_schedule(ctx: Context, request: DeleteSchedule) -> Schedule:
    """Remove a schedule; the reply is what it was."""

    async def work(connection: Connection) -> Schedule:
        before = await schedule_store.find(connection, ctx.org, request.name)
        if before is None:
            raise not_found("there is no such schedule", field="name")
        await schedule_store.delete(connection, ctx.org, request.name)
        await _record(ctx, connection, "deleted", before, None)
        return _shown(before)

    return await access_change(ctx, work)


async def list_schedules(ctx: Context, request: ListSchedules) -> ScheduleList:
    """Schedules by name."""
    position = decode_cursor(request.cursor, tuple[str])
    after_name = position[0] if position is not None else ""
    async with ctx.database.connection() as connection:
        rows = await schedule_store.listing(connection, ctx.org, after_name=after_name, limit=request.limit + 1)
    found, next_cursor = page([_shown(row) for row in rows], limit=request.limit, key=lambda s: (s.name,))
    return ScheduleList(schedules=found, next_cursor=next_cursor)


def _nameless(ctx: Context, request: bytes) -> bytes:
    """The request with surrogates for users, as which it asks for the same. Raises SignalError below ``request``."""
    document: dict[str, Any] = msgspec.json.decode(request)
    try:
        if document.get("type") == "user" and isinstance(document.get("entity_id"), str):
            document["entity_id"] = entity_key(ctx, type="user", entity_id=document["entity_id"])
        rename_users(document, ctx.user_key)
    except SignalError as error:
        raise prefixed(error, "request") from None
    return msgspec.json.encode(document)


def _signal(name: str) -> Request[Any, Any]:
    for signal in registry.REQUESTS:
        if signal.name == name and may_be_scheduled(signal):
            return signal
    allowed = ", ".join(signal.name for signal in registry.REQUESTS if may_be_scheduled(signal))
    raise invalid(f"can be asked on a schedule: {allowed}", field="signal")


async def _record(
    ctx: Context, connection: Connection, action: str, before: ScheduleRow | None, after: Schedule | None
) -> None:
    """The trail knows who set it by the surrogate: a name must be possible to delete."""

    def anonymous(schedule: Schedule | None) -> Schedule | None:
        if schedule is None or schedule.created_by is None:
            return schedule
        return msgspec.structs.replace(schedule, created_by=ctx.services.actor_key(ctx.org, schedule.created_by))

    shown = None if before is None else _shown(before)
    name = after.name if after is not None else before.name if before is not None else ""
    await audit.record(
        connection,
        ctx.caller,
        action=action,
        entity="schedule",
        entity_id=name,
        before=anonymous(shown),
        after=anonymous(after),
    )


def _shown(row: ScheduleRow) -> Schedule:
    return Schedule(
        name=row.name,
        cron=row.cron,
        timezone=row.timezone,
        signal=row.signal,
        request=msgspec.json.decode(row.request),
        channels=list(row.channels),
        active=row.active,
        created_by=row.created_by,
        created_at=row.created_at,
        updated_at=row.updated_at,
        next_run_at=row.next_run_at,
        last_run_at=row.last_run_at,
        last_error=row.last_error,
    )


ROUTES = (
    route(signals.SET_SCHEDULE, set_schedule),
    route(signals.LIST_SCHEDULES, list_schedules),
    route(signals.DELETE_SCHEDULE, delete_schedule),
)
