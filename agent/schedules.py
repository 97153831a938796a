"""Runs what is scheduled: each planned time once, whichever agent comes first, as the user who set the schedule.

The row of the planned time is held locked while the signal runs, so that an agent that dies leaves it to another one.
The result, the event that tells it and the next planned time are one transaction. Times that passed while no agent ran
are made up for by one run.
"""

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from agent.identity import Access
from handlers.access.cron import next_run
from handlers.context import Context, Services
from handlers.events import cloud_event
from schemas.access import ScheduleRan
from schemas.codec import Codec
from schemas.errors import SignalError
from signals import Route
from signals.access import SCHEDULE_RAN
from store import budgets as budget_store
from store import deliveries as delivery_store
from store import jobs
from store import outbox as outbox_store
from store import schedules as schedule_store
from store.deliveries import NewDelivery
from store.pool import Connection, is_unavailable
from store.schedules import ScheduleRow

RUNS_KEPT: Final = timedelta(days=7)
RESULT_BYTES_MAX: Final = 750_000
DETAILS_BYTES_MAX: Final = 16_384
_ENCODE: Final = msgspec.json.Encoder().encode
_log = logging.getLogger(__name__)


class Schedules:
    """The schedules of all orgs, run one after the other."""

    def __init__(
        self,
        services: Services,
        access: Access,
        routes: Mapping[str, Route[Context]],
        *,
        batch_max: int,
        timeout_s: float,
    ) -> None:
        self._services = services
        self._access = access
        self._routes = routes
        self._batch_max = batch_max
        self._timeout_s = timeout_s

    async def run_due(self) -> int:
        """Run what is due now, at most ``batch_max``; returns how many. Raises what the database raises."""
        async with self._services.database.connection() as connection:
            rows = await schedule_store.due(connection, self._batch_max)
        count = 0
        for row in rows:
            count += await self._run(row)
        return count

    async def _run(self, row: ScheduleRow) -> bool:
        """Run a schedule that is due, unless another agent does or did; returns whether this one did."""
        services, planned_at = self._services, row.next_run_at
        assert planned_at is not None, "only what is planned is due"
        async with services.database.connection() as connection:
            # Committed before it is locked, so that other agents need not wait to see that somebody runs it.
            await jobs.plan(connection, row.job, planned_at, services.instance)
        async with services.database.transaction() as connection:
            now = await budget_store.clock(connection)
            mine = await jobs.lock(connection, row.job, planned_at)
            if mine:
                error = await self._tell(connection, row, planned_at, now)
                await jobs.finish(connection, row.job, planned_at, services.instance, error or "ok")
                await jobs.forget(connection, row.job, now - RUNS_KEPT)
                await schedule_store.ran(connection, row, at=now, error=error, next_run_at=_next(row, now))
            elif await jobs.is_finished(connection, row.job, planned_at):
                await schedule_store.ran(connection, row, at=None, error=None, next_run_at=_next(row, now))
        if mine:  # Only now: what waits for these must find what was committed.
            services.outbox_ready.set()
            services.delivery_ready.set()
        return mine

    async def _tell(self, connection: Connection, row: ScheduleRow, planned_at: datetime, now: datetime) -> str | None:
        """Run the signal and write the event of its result beside; returns the error, if it is one."""
        result, error = await self._ask(row)
        encoded = _ENCODE(result)
        too_large = len(encoded) > RESULT_BYTES_MAX
        told = ScheduleRan(
            name=row.name,
            signal=row.signal,
            planned_at=planned_at,
            ran_at=now,
            result=None if result is None or too_large else msgspec.json.decode(encoded),
            error=error,
            channels=list(row.channels),
            too_large=too_large,
        )
        event = cloud_event(self._services, row.org_id, SCHEDULE_RAN, told, subject=row.name)
        await delivery_store.enqueue(connection, row.org_id, self._deliveries(told, now))
        await outbox_store.add(connection, row.org_id, [event])
        return error

    def _deliveries(self, told: ScheduleRan, now: datetime) -> list[NewDelivery]:
        """The same for people, to the channels that are named; a result too large for a message stays in the event."""
        fits = told.result is not None and len(_ENCODE(told.result)) <= DETAILS_BYTES_MAX
        payload: dict[str, Any] = {
            "kind": "schedule",
            "level": "info" if told.error is None else "warning",
            "title": f"Schedule {told.name}: {told.signal}",
            "message": told.error or f"Asked as planned for {told.planned_at.isoformat()}.",
            "details": told.result if fits else {},
        }
        return [
            NewDelivery(
                delivery_id=self._services.new_id(), alert_id=None, channel=channel, not_before=now, payload=payload
            )
            for channel in told.channels
        ]

    async def _ask(self, row: ScheduleRow) -> tuple[Any, str | None]:
        """The signal's reply, or its error as code and text. Raises where the database is away: it is run later."""
        caller = self._access.caller(row.org_id, row.created_by)
        try:
            route = self._routes.get(row.signal)
            if route is None:
                raise SignalError("not_found", f"there is no signal {row.signal}")
            if not route.signal.allows(caller.roles):
                raise SignalError("forbidden", f"who set this may not send {row.signal} any more")
            request = Codec(route.signal.request).decode(row.request.encode())
            async with asyncio.timeout(self._timeout_s):
                return await route.handler(Context(self._services, caller), request), None
        except SignalError as error:
            return None, f"{error.code}: {error.message}"
        except TimeoutError:
            return None, f"unavailable: no answer within {self._timeout_s:g} s"
        except Exception as error:  # One schedule that fails must not keep the others from running.
            if is_unavailable(error):
                raise
            _log.exception("schedule %s of %s failed", row.name, row.org_id)
            return None, "internal: the request failed; the log says why"


def _next(row: ScheduleRow, now: datetime) -> datetime | None:
    """The next planned time; None, which ends the schedule until it is set anew, where its time zone is no more."""
    try:
        return next_run(row.cron, row.timezone, now)
    except SignalError:
        _log.exception("schedule %s of %s cannot be planned", row.name, row.org_id)
        return None
