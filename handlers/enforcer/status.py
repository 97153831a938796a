"""``get_budget_status`` and ``list_reservations``: which budgets apply and why, and who holds what."""

from typing import Final
from uuid import UUID

import msgspec

from handlers.context import Context
from handlers.cursor import decode_cursor, fitting, page
from handlers.enforcer import gatekeeping
from handlers.enforcer.answers import amount_text
from handlers.enforcer.budgets import budget_uuid
from handlers.enforcer.catalogue import ENTITY_FIELD, Catalogue, Match
from handlers.enforcer.explained import Scene, applied_budget, denying, near_misses, order
from handlers.enforcer.plan import CALL_FIELDS, call_key
from handlers.enforcer.shown import Present, existing, own_window
from handlers.enforcer.transaction import ledger_transaction
from schemas.budget import (
    BudgetStatus,
    GetBudgetStatus,
    Held,
    ListReservations,
    Reservation,
    ReservationList,
)
from schemas.errors import not_found
from schemas.money import format_cost
from signals import budget as signals
from signals import route
from store import budgets as budget_store
from store import reservations as reservation_store
from store import windows as window_store
from store.pool import Connection
from store.reservations import ReservationRow
from store.windows import WindowRow

WINDOWS_MAX: Final = 1_000
_NEWEST: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"


async def get_budget_status(ctx: Context, request: GetBudgetStatus) -> BudgetStatus:
    """A budget's windows of now, or every budget that applies to a call with these attributes, and why."""

    await ctx.services.catalogue(ctx.org)  # Before a user is named: the org says how.
    if request.user_id is not None:
        request = msgspec.structs.replace(request, user_id=ctx.user_key(request.user_id))

    async def work(connection: Connection, catalogue: Catalogue) -> BudgetStatus:
        now = await budget_store.clock(connection)
        scene = Scene(connection, catalogue, now)
        if request.budget_id is not None:
            return await _status(scene, await _of_budget(scene, budget_uuid(request.budget_id), request))
        call: dict[str, str | None] = dict(zip(CALL_FIELDS, call_key(request), strict=True))
        found = gatekeeping.look(catalogue, call)
        call["team_id"] = found.team_id or call["team_id"]
        matches = sorted(catalogue.matches(call), key=lambda m: order(m.budget))
        status = await _status(scene, await scene.present(matches), filled=found.team_id is not None)
        return msgspec.structs.replace(
            status, not_applied=near_misses(catalogue, call), team_id=found.team_id, refusal=found.refusal
        )

    return await ledger_transaction(ctx.services, ctx.org, work)


async def list_reservations(ctx: Context, request: ListReservations) -> ReservationList:
    """Reservations, newest first, with what each holds or held."""
    position = decode_cursor(request.cursor, tuple[UUID])
    budget_id = budget_uuid(request.budget_id) if request.budget_id is not None else None

    async def work(connection: Connection, catalogue: Catalogue) -> list[Reservation]:
        rows = await reservation_store.listing(
            connection,
            ctx.org,
            status=request.status,
            request_id=request.request_id,
            budget_id=budget_id,
            before_id=str(position[0]) if position is not None else _NEWEST,
            limit=request.limit + 1,
        )
        windows = await window_store.by_id(connection, ctx.org, sorted({w for row in rows for w in row.window_ids}))
        return [_reservation(row, windows, catalogue) for row in rows]

    found = await ledger_transaction(ctx.services, ctx.org, work)
    reservations, next_cursor = page(found, limit=request.limit, key=lambda r: (r.reservation_id,))
    return ReservationList(reservations=reservations, next_cursor=next_cursor)


async def _of_budget(scene: Scene, budget_id: str, request: GetBudgetStatus) -> list[Present]:
    budget = scene.catalogue.by_id.get(budget_id)
    if budget is None:
        raise not_found("there is no such budget", field="budget_id")
    match = own_window(budget)
    if match is None and (entity := getattr(request, ENTITY_FIELD[budget.type])) is not None:
        match = Match(budget, entity)
    if match is not None:
        return await scene.present([match])
    rows = await window_store.of_budget(scene.connection, budget.org_id, budget_id, scene.now, WINDOWS_MAX)
    return [existing(budget, row, scene.raised) for row in rows]


async def _status(scene: Scene, found: list[Present], *, filled: bool = False) -> BudgetStatus:
    gates = await scene.gates(found)
    applied = fitting([applied_budget(scene, p, gates, filled=filled) for p in found])
    return BudgetStatus(budgets=applied, denying=list(dict.fromkeys(denying(found, gates))))


def _reservation(row: ReservationRow, windows: dict[int, WindowRow], catalogue: Catalogue) -> Reservation:
    return Reservation(
        reservation_id=row.reservation_id,
        request_id=row.request_id,
        status=row.status,  # pyright: ignore[reportArgumentType]  # A CHECK holds the column to these values.
        provider=row.provider,
        model=row.model,
        attribution=row.attribution,
        estimated_cost=None if row.estimated_cost is None else format_cost(row.estimated_cost),
        estimated_tokens=row.estimated_tokens,
        currency=row.currency,
        caller=row.caller,
        decided_at=row.decided_at,
        expires_at=row.expires_at,
        closed_at=row.closed_at,
        holds=[_held(windows[w], a, catalogue) for w, a in zip(row.window_ids, row.held, strict=True) if w in windows],
    )


def _held(window: WindowRow, amount: int, catalogue: Catalogue) -> Held:
    budget = catalogue.by_id[window.budget_id]
    return Held(
        budget_id=window.budget_id,
        entity_id=window.entity_id,
        window_start=window.starts_at,
        unit=budget.unit,
        amount=amount_text(budget, amount),
    )


ROUTES = (
    route(signals.GET_BUDGET_STATUS, get_budget_status),
    route(signals.LIST_RESERVATIONS, list_reservations),
)
