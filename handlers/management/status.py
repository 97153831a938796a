"""``get_status`` and ``describe``. Status answers in bounded time, whatever is away, and says which part it is."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

from handlers.context import Context
from handlers.currency.told import Teller
from handlers.management.compliance import compliance
from handlers.management.reconcile import reconcile
from schemas import CONTRACT_VERSION
from schemas.errors import SignalError, not_found
from schemas.management import (
    Compliance,
    Describe,
    Description,
    GetStatus,
    IngestStatus,
    Part,
    Reconciliation,
    ReservationCounts,
    Status,
)
from schemas.subjects import USAGE_STREAM
from signals import Request, contract, registry, route
from signals import management as signals
from store import budgets, dead_letters, outbox, reservations
from store.pool import is_unavailable

T = TypeVar("T")
PART_TIMEOUT_S: Final = 2.5
RECONCILE_TIMEOUT_S: Final = 20.0
AGENT: Final = "agent"
LEDGER: Final = "postgresql"
SUMS: Final = "reconciliation"
FIGURES: Final = "compliance"
READERS: Final = frozenset({"viewer", "manager", "approver", "finance", "admin"})


@dataclass(frozen=True, slots=True)
class _Ledger:
    """What PostgreSQL says about the org."""

    reservations: ReservationCounts
    outbox_pending: int
    dead_letters_open: int


async def get_status(ctx: Context, request: GetStatus) -> Status:
    """How the agent is. Never fails because a dependency does; ``reconcile`` also compares the org's sums.

    What says who spent how much is for those who may read it elsewhere: compliance figures are left out for others, and
    ``reconcile`` is ``forbidden``.
    """
    reads = not READERS.isdisjoint(ctx.caller.roles)
    if request.reconcile and not reads:
        raise SignalError("forbidden", f"needs the role {' or '.join(sorted(READERS))}", field="reconcile")
    (told, agent), (ledger, database) = await asyncio.gather(
        _bounded(AGENT, _told(ctx), PART_TIMEOUT_S), _bounded(LEDGER, _ledger(ctx), PART_TIMEOUT_S)
    )
    parts = [*_agent_parts(told, agent), database]
    reconciliation: Reconciliation | None = None
    if request.reconcile:
        reconciliation, sums = await _bounded(SUMS, reconcile(ctx), RECONCILE_TIMEOUT_S)
        if reconciliation is not None and not reconciliation.ok:
            sums = Part(name=SUMS, ok=False, detail="sums differ")
        parts.append(sums)
    figures: Compliance | None = None
    if reads and database.ok:  # What is away is not waited for a second time.
        figures, _ = await _bounded(FIGURES, _compliance(ctx), PART_TIMEOUT_S)
    return _status(ctx, told or {}, parts, ledger, reconciliation, figures)


async def describe(ctx: Context, request: Describe) -> Description:
    """The contract: the AsyncAPI document, or the list of signals; of one signal named, its schemas."""
    if request.signal is not None:
        document = _one(request.signal)
    elif request.format == "asyncapi":
        document = ctx.services.contract()
    else:
        document = {
            "signals": [_entry(signal) for signal in registry.REQUESTS],
            "events": [{"name": e.name, "subject": e.subject, "purpose": e.purpose} for e in registry.EVENTS],
        }
    shown = "signals" if request.signal is not None else request.format
    return Description(contract=CONTRACT_VERSION, format=shown, document=document)


async def _told(ctx: Context) -> dict[str, Any]:
    return {} if ctx.services.status is None else await ctx.services.status()


async def _ledger(ctx: Context) -> _Ledger:
    async with ctx.database.connection() as connection:
        live, oldest = await reservations.live_counts(connection, ctx.org)
        return _Ledger(
            ReservationCounts(live=live, oldest_expires_at=oldest),
            await outbox.pending(connection, ctx.org),
            await dead_letters.count_open(connection, ctx.org),
        )


async def _compliance(ctx: Context) -> Compliance:
    limits = ctx.services.limits
    async with ctx.database.connection() as connection:
        now = await budgets.clock(connection)
        teller = Teller(*await ctx.services.reporting(connection, ctx.org))
        return await compliance(
            connection, ctx.org, now, teller, days=limits.compliance_days, callers_max=limits.compliance_callers_max
        )


async def _bounded(name: str, work: Awaitable[T], timeout_s: float) -> tuple[T | None, Part]:
    """The result within ``timeout_s``, or none and why. What does not finish is cancelled and not waited for."""
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not done:
        task.add_done_callback(_forget)
        task.cancel()
        return None, Part(name=name, ok=False, detail=f"no answer within {timeout_s:g} s")
    error = task.exception()
    if error is None:
        return task.result(), Part(name=name, ok=True)
    if not is_unavailable(error):
        raise error
    return None, Part(name=name, ok=False, detail=f"cannot be reached ({type(error).__name__})")


def _forget(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _agent_parts(told: dict[str, Any] | None, agent: Part) -> list[Part]:
    if told is None:
        return [agent]
    return [Part(name=name, ok=ok, detail=detail) for name, ok, detail in told.get("parts", ())]


def _status(
    ctx: Context,
    told: dict[str, Any],
    parts: list[Part],
    ledger: _Ledger | None,
    reconciliation: Reconciliation | None,
    figures: Compliance | None,
) -> Status:
    now = ctx.now()
    return Status(
        healthy=all(part.ok for part in parts),
        version=told.get("version", "unknown"),
        contract=CONTRACT_VERSION,
        instance=ctx.services.instance,
        org=ctx.org,
        started_at=told.get("started_at", now),
        now=now,
        parts=parts,
        ingest=_ingest(told, now, None if ledger is None else ledger.dead_letters_open),
        reservations=None if ledger is None else ledger.reservations,
        requests=told.get("requests", {}),
        outbox_pending=None if ledger is None else ledger.outbox_pending,
        reconciliation=reconciliation,
        compliance=figures,
    )


def _ingest(told: dict[str, Any], now: datetime, dead_letters_open: int | None) -> IngestStatus:
    """The lag is the age of the oldest message that is not applied; without any there is none."""
    stored: int | None = told.get("stored_messages")
    oldest: datetime | None = told.get("oldest_unapplied") if stored else None
    lag_s = None if stored is None else 0.0
    if oldest is not None:
        lag_s = max(0.0, round((now - oldest).total_seconds(), 3))
    return IngestStatus(
        stream=told.get("stream", USAGE_STREAM),
        stored_messages=stored,
        oldest_unapplied=oldest,
        lag_s=lag_s,
        applied_events=told.get("applied_events", 0),
        duplicates=told.get("duplicates", 0),
        dead_letters_open=dead_letters_open,
    )


def _entry(signal: Request[Any, Any]) -> dict[str, Any]:
    return {
        "name": signal.name,
        "subject": signal.subject,
        "group": signal.group,
        "roles": list(signal.roles),
        "purpose": signal.purpose,
        "idempotent": signal.idempotent,
        "request": [kind.__name__ for kind in contract.request_types(signal)],
        "reply": [kind.__name__ for kind in contract.reply_types(signal)],
        "request_schema_id": contract.request_schema_id(signal),
        "reply_schema_id": contract.response_schema_id(signal),
    }


def _one(name: str) -> dict[str, Any]:
    for signal in registry.REQUESTS:
        if signal.name == name:
            schemas = contract.json_schemas()
            request, reply = schemas[f"{name}.request.json"], schemas[f"{name}.response.json"]
            return {"signals": [_entry(signal) | {"request_schema": request, "reply_schema": reply}]}
    raise not_found(f"there is no signal '{name[:64]}'", field="signal")


ROUTES = (
    route(signals.GET_STATUS, get_status),
    route(signals.DESCRIBE, describe),
)
