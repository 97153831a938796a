"""``release_reservation`` and ``extend_reservation``: idempotent changes of one live reservation."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import msgspec

from handlers.context import Context
from handlers.counting.requests import job_of, texts_of
from handlers.enforcer.catalogue import Catalogue
from handlers.enforcer.charging import needed
from handlers.enforcer.estimate import Estimate, estimate, terms_of
from handlers.enforcer.plan import Planner, call_key
from handlers.enforcer.refusal import impossible, over
from handlers.enforcer.transaction import LockedWindows, MissingWindows, holds, ledger_transaction
from schemas.base import ATTRIBUTION_FIELDS
from schemas.budget import CheckBudget, DenialReason, ExtendReservation, ReleaseReservation, ReservationReply
from schemas.errors import conflict, invalid, not_found
from schemas.money import format_cost
from schemas.tokens import TokenCount
from signals import budget as signals
from signals import route
from store import budgets as budget_store
from store import reservations as reservation_store
from store.pool import Connection
from store.reservations import ReservationRow
from store.windows import WindowRow

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NEW_ESTIMATE: Final = ("provider", "model", "prompt_tokens", "max_completion_tokens", "estimated_cost")


async def release_reservation(ctx: Context, request: ReleaseReservation) -> ReservationReply:
    """Free what a reservation holds. Releasing again, or after it was settled, changes nothing and says what it is."""
    reservation_id = reservation_uuid(request.reservation_id)

    async def work(connection: Connection, catalogue: Catalogue) -> ReservationReply:
        row = await _locked(connection, ctx.org, reservation_id)
        if row.status != "live":
            return _reply(row)
        now = await budget_store.clock(connection)
        await reservation_store.close(connection, ctx.org, ids=[reservation_id], status="released", closed_at=now)
        windows = await LockedWindows.lock(connection, catalogue, row.window_ids, ctx.services.beliefs(ctx.org))
        for window_id, held in holds(row.window_ids, row.held).items():
            windows.sums[window_id].release(held)
        await windows.write(connection, ctx.org)
        return _reply(replace(row, status="released"))

    return await ledger_transaction(ctx.services, ctx.org, work)


async def extend_reservation(ctx: Context, request: ExtendReservation) -> ReservationReply:
    """Keep a reservation longer and, with a new estimate, resize it: all or nothing, decided like a check."""
    reservation_id = reservation_uuid(request.reservation_id)
    count = await _counted(ctx, request, reservation_id)

    async def work(connection: Connection, catalogue: Catalogue) -> ReservationReply:
        row = await _locked(connection, ctx.org, reservation_id)
        if row.status != "live":
            raise conflict(f"the reservation is {row.status}; check the budget again", field="reservation_id")
        change = _change(ctx, row, request, catalogue, count)
        return await _extend(ctx, connection, catalogue, row=row, change=change, ttl_s=request.ttl_s)

    return await ledger_transaction(ctx.services, ctx.org, work)


async def _counted(ctx: Context, request: ExtendReservation, reservation_id: str) -> TokenCount | None:
    """The count of the texts of a new estimate, before anything is locked; None where sizes are stated."""
    texts = texts_of(request)
    if not texts:
        return None
    stated = request.prompt_tokens is not None or request.estimated_cost is not None
    provider, model = request.provider, request.model
    if provider is None or model is None:
        async with ctx.database.transaction() as connection:
            row = await _locked(connection, ctx.org, reservation_id)
        provider, model = provider or row.provider, model or row.model
    return (await ctx.services.counter.count(job_of(ctx.services, provider, model, texts, count=not stated))).count


def reservation_uuid(text: str) -> str:
    """A reservation id in canonical form. Raises SignalError ``invalid_request``."""
    if not _UUID.fullmatch(text.lower()):
        raise invalid("is not a reservation id (a UUID)", field="reservation_id")
    return text.lower()


@dataclass(slots=True)
class _Change:
    """What a reservation should become; ``denial`` says that no budget needs to be asked."""

    provider: str | None
    model: str | None
    estimate: Estimate
    amounts: dict[int, int]
    denial: DenialReason | None = None


async def _locked(connection: Connection, org: str, reservation_id: str) -> ReservationRow:
    rows = await reservation_store.lock(connection, org, [reservation_id])
    if reservation_id not in rows:
        raise not_found("there is no such reservation", field="reservation_id")
    return rows[reservation_id]


def _change(
    ctx: Context, row: ReservationRow, request: ExtendReservation, catalogue: Catalogue, count: TokenCount | None
) -> _Change:
    """As it is, or re-estimated for another model or size in the windows of the first decision."""
    if count is None and all(getattr(request, field) is None for field in _NEW_ESTIMATE):
        same = Estimate(row.estimated_cost, row.estimated_tokens, currency=row.currency)
        return _Change(row.provider, row.model, same, dict(holds(row.window_ids, row.held)))
    check = CheckBudget(
        provider=request.provider or row.provider,
        model=request.model or row.model,
        prompt_tokens=request.prompt_tokens,
        max_completion_tokens=request.max_completion_tokens,
        estimated_cost=request.estimated_cost,
        currency=request.currency or row.currency,
        **{field: row.attribution[field] for field in ATTRIBUTION_FIELDS if field in row.attribution},
    )
    services = ctx.services
    on_unpriced = services.on_unpriced(catalogue)
    found = estimate(
        check,
        cards=services.prices_of(catalogue),
        at=ctx.now(),
        terms=terms_of(catalogue, services.limits),
        on_unpriced=on_unpriced,
        count=count,
    )
    planner = Planner(catalogue, ctx.services.index(ctx.org), 1)
    plan = planner.plan(call_key(check))
    pairs, missing = planner.windows_of(plan, row.decided_at)
    if missing:
        raise MissingWindows([(match, row.decided_at) for match in missing])
    amounts, lacking = needed(pairs, (found.cost or 0, found.tokens, 1), found.currency, catalogue.exchange)
    model = f"{check.provider}/{check.model}"
    without = pairs if on_unpriced == "reject" else []
    unrated = [(match.budget, lacking[ref.window_id]) for match, ref in without if ref.window_id in lacking]
    denial = impossible(
        plan, found, model=model, reject_unpriced=on_unpriced in ("reject", "estimate"), unrated=unrated
    )
    return _Change(check.provider, check.model, found, amounts, denial)


async def _extend(
    ctx: Context,
    connection: Connection,
    catalogue: Catalogue,
    *,
    row: ReservationRow,
    change: _Change,
    ttl_s: int,
) -> ReservationReply:
    if change.denial is not None:
        return _denied(row, change.denial, None)
    held = holds(row.window_ids, row.held)
    window_ids = held.keys() | change.amounts.keys()
    windows = await LockedWindows.lock(connection, catalogue, window_ids, ctx.services.beliefs(ctx.org))
    now = await budget_store.clock(connection)
    more_of = {w.window_id: change.amounts.get(w.window_id, 0) - held.get(w.window_id, 0) for w in windows.rows}
    for window in windows.rows:
        more = more_of[window.window_id]
        if more > 0 and _gated(catalogue, windows, window, more_of):
            return _denied(row, _full(catalogue, window), _retry_after(window, now))
    for window in windows.rows:
        more, sums = more_of[window.window_id], windows.sums[window.window_id]
        if more > 0 and not sums.fits(more):
            return _denied(row, _full(catalogue, window), _retry_after(window, now))
        if more > 0:
            sums.hold(more)
        else:
            sums.release(-more)
    await windows.write(connection, ctx.org)
    expires_at = max(row.expires_at, now + timedelta(seconds=ttl_s))
    window_ids = [window.window_id for window in windows.rows]
    await reservation_store.extend(
        connection,
        ctx.org,
        row.reservation_id,
        expires_at=expires_at,
        provider=change.provider,
        model=change.model,
        cost=change.estimate.cost,
        currency=change.estimate.currency,
        tokens=change.estimate.tokens,
        window_ids=window_ids,
        held=[change.amounts.get(window_id, 0) for window_id in window_ids],
    )
    found = change.estimate
    return _reply(replace(row, expires_at=expires_at, estimated_cost=found.cost, currency=found.currency))


def _gated(catalogue: Catalogue, windows: LockedWindows, window: WindowRow, more_of: Mapping[int, int]) -> bool:
    """Whether a window is of a rate without room for more, behind a budget that is used up."""
    gate_id = catalogue.by_id[window.budget_id].gate_id
    gates = [w for w in windows.rows if (w.budget_id, w.entity_id) == (gate_id, window.entity_id)]
    return any(all(over(windows.sums[w.window_id], more_of[w.window_id]) for w in (window, gate)) for gate in gates)


def _full(catalogue: Catalogue, window: WindowRow) -> DenialReason:
    name = catalogue.by_id[window.budget_id].name
    text = f"budget '{name}' has no room for the larger estimate; the reservation is unchanged"
    code = "throttled" if catalogue.by_id[window.budget_id].enforcement == "throttle" else "budget_exceeded"
    return DenialReason(code=code, message=text, budget_id=window.budget_id, budgets=[window.budget_id])


def _retry_after(window: WindowRow, now: datetime) -> int | None:
    return None if window.ends_at is None else max(1, round((window.ends_at - now).total_seconds()))


def _reply(row: ReservationRow) -> ReservationReply:
    return ReservationReply(
        reservation_id=row.reservation_id,
        status=row.status,  # pyright: ignore[reportArgumentType]  # A CHECK holds the column to these values.
        expires_at=row.expires_at,
        estimated_cost=None if row.estimated_cost is None else format_cost(row.estimated_cost),
        currency=row.currency,
    )


def _denied(row: ReservationRow, denial: DenialReason, retry_after_s: int | None) -> ReservationReply:
    return msgspec.structs.replace(_reply(row), approved=False, reason=denial, retry_after_s=retry_after_s)


ROUTES = (
    route(signals.RELEASE_RESERVATION, release_reservation),
    route(signals.EXTEND_RESERVATION, extend_reservation),
)
