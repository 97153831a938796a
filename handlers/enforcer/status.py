"""``get_budget_status`` and ``list_reservations``: which budgets apply and why, and who holds what."""

from typing import Final
from uuid import UUID

from handlers.context import Context
from handlers.cursor import decode_cursor, fitting, page
from handlers.enforcer.answers import amount_text
from handlers.enforcer.budgets import budget_uuid
from handlers.enforcer.catalogue import ENTITY_FIELD, Catalogue, Match
from handlers.enforcer.plan import CALL_FIELDS, call_key
from handlers.enforcer.shown import Present, budget_reply, existing, own_window, present
from handlers.enforcer.transaction import ledger_transaction
from schemas.budget import (
    AppliedBudget,
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
    """A budget's windows of now, or every budget that applies to a call with these attributes."""

    async def work(connection: Connection, catalogue: Catalogue) -> list[Present]:
        if request.budget_id is not None:
            return await _of_budget(connection, catalogue, budget_uuid(request.budget_id), request)
        call: dict[str, str | None] = dict(zip(CALL_FIELDS, call_key(request), strict=True))
        return await present(connection, catalogue.matches(call), await budget_store.clock(connection))

    found = await ledger_transaction(ctx.services, ctx.org, work)
    denying = dict.fromkeys(p.budget.budget_id for p in found if p.denies)
    return BudgetStatus(budgets=fitting([_applied(p) for p in found]), denying=list(denying))


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


async def _of_budget(
    connection: Connection, catalogue: Catalogue, budget_id: str, request: GetBudgetStatus
) -> list[Present]:
    budget = catalogue.by_id.get(budget_id)
    if budget is None:
        raise not_found("there is no such budget", field="budget_id")
    now = await budget_store.clock(connection)
    match = own_window(budget)
    if match is None and (entity := getattr(request, ENTITY_FIELD[budget.type])) is not None:
        match = Match(budget, entity)
    if match is not None:
        return await present(connection, [match], now)
    rows = await window_store.of_budget(connection, catalogue.org, budget_id, now, WINDOWS_MAX)
    return [existing(budget, row) for row in rows]


def _applied(found: Present) -> AppliedBudget:
    window = found.reply
    own = window if own_window(found.budget) is not None else None
    return AppliedBudget(budget=budget_reply(found.budget, own), window=window, why=_why(found))


def _why(found: Present) -> str:
    budget = found.budget
    if budget.type == "global":
        text = "global budget for every call"
    else:
        each = "" if own_window(budget) is not None else "each "
        text = f"{budget.type} budget for {each}{ENTITY_FIELD[budget.type]} '{found.ref.entity_id}'"
    if budget.filters:
        text += ", filters " + " ".join(f"{name}={value}" for name, value in sorted(budget.filters.items()))
    return text if budget.active else text + ", inactive"


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
        currency="USD",
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
