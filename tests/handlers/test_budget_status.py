"""get_budget_status and list_reservations: which budgets apply and why, which are full, who holds what."""

from typing import Any

from handlers.context import Context, Services
from handlers.enforcer.budgets import create_budget, update_budget
from handlers.enforcer.changes import release_reservation
from handlers.enforcer.status import get_budget_status, list_reservations
from schemas.budget import (
    BudgetFilters,
    CreateBudget,
    GetBudgetStatus,
    ListReservations,
    ReleaseReservation,
    UpdateBudget,
)
from tests.support.services import apply_usage, checked, context, gpt, refusal

CALL: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 1_000, "max_completion_tokens": 100}


async def made(ctx: Context, name: str, **fields: Any) -> str:
    values: dict[str, Any] = {"limit": "10", "period": "total"} | fields
    return (await create_budget(ctx, CreateBudget(name=name, **values))).budget_id


async def test_every_budget_that_applies_says_why(ctx: Context) -> None:
    everyone = await made(ctx, "all", type="global")
    team = await made(ctx, "team", type="team", entity_id="t1", filters=BudgetFilters(model="gpt-*", provider="openai"))
    user = await made(ctx, "user", type="user")
    await made(ctx, "other team", type="team", entity_id="t2")
    idle = await made(ctx, "idle", type="user", active=False)
    status = await get_budget_status(
        ctx, GetBudgetStatus(team_id="t1", user_id="u1", provider="openai", model="gpt-4o")
    )
    assert {applied.budget.budget_id: applied.why for applied in status.budgets} == {
        everyone: "global budget for every call",
        team: "team budget for team_id 't1', filters model=gpt-* provider=openai",
        user: "user budget for each user_id 'u1'",
    }
    assert {a.window.entity_id for a in status.budgets} == {"*", "t1", "u1"}
    assert all((a.window.spent, a.window.remaining) == ("0", "10") for a in status.budgets)
    assert [a.budget.budget_id for a in (await get_budget_status(ctx, GetBudgetStatus())).budgets] == [everyone]
    (by_id,) = (await get_budget_status(ctx, GetBudgetStatus(budget_id=idle, user_id="u1"))).budgets
    assert by_id.why == "user budget for each user_id 'u1', inactive"


async def test_a_budget_of_each_entity_shows_one_window_or_all(ctx: Context, services: Services) -> None:
    budget_id = await made(ctx, "user", type="user", limit="0.0035")
    await apply_usage(services, gpt(user_id="u1"), gpt(user_id="u2", prompt=0))
    every = await get_budget_status(ctx, GetBudgetStatus(budget_id=budget_id))
    assert [(a.window.entity_id, a.window.spent) for a in every.budgets] == [("u1", "0.0035"), ("u2", "0.001")]
    assert every.denying == [budget_id]
    one = await get_budget_status(ctx, GetBudgetStatus(budget_id=budget_id, user_id="u2"))
    assert ([a.window.spent for a in one.budgets], one.denying) == (["0.001"], [])
    unknown = await get_budget_status(ctx, GetBudgetStatus(budget_id=budget_id, user_id="u3"))
    assert [a.window.spent for a in unknown.budgets] == ["0"]
    assert await services.database.fetchval("SELECT count(*) FROM budget_window") == 2


async def test_status_of_what_does_not_exist(ctx: Context, services: Services) -> None:
    error = await refusal(get_budget_status(ctx, GetBudgetStatus(budget_id=services.new_id())))
    assert (error.code, error.field) == ("not_found", "budget_id")
    error = await refusal(get_budget_status(ctx, GetBudgetStatus(budget_id="x")))
    assert (error.code, error.field) == ("invalid_request", "budget_id")
    budget_id = await made(ctx, "mine", type="global")
    error = await refusal(get_budget_status(context(services, org="other"), GetBudgetStatus(budget_id=budget_id)))
    assert error.code == "not_found"


async def test_a_change_by_another_agent_is_seen(ctx: Context, services: Services) -> None:
    budget_id = await made(ctx, "b", type="global")
    stale = services.catalogues.known("default")
    assert stale is not None
    await update_budget(ctx, UpdateBudget(budget_id=budget_id, version=1, limit="3"))
    services.catalogues._known["default"] = stale  # pyright: ignore[reportPrivateUsage]
    (applied,) = (await get_budget_status(ctx, GetBudgetStatus(budget_id=budget_id))).budgets
    assert (applied.budget.limit, applied.window.limit) == ("3", "3")


async def test_reservations_are_listed_newest_first_with_what_they_hold(ctx: Context, services: Services) -> None:
    cost = await made(ctx, "cost", type="global")
    tokens = await made(ctx, "tokens", type="user", unit="tokens", limit="5000")
    ids = [(await checked(services, **CALL, user_id=u, request_id=f"r-{u}"))["reservation_id"] for u in "abc"]
    first = await list_reservations(ctx, ListReservations(limit=2))
    assert [r.reservation_id for r in first.reservations] == [ids[2], ids[1]]
    newest = first.reservations[0]
    assert (newest.status, newest.request_id, newest.caller, newest.estimated_cost) == (
        "live",
        "r-c",
        "router",
        "0.0035",
    )
    assert newest.attribution == {"user_id": "c"}
    held = {(h.budget_id, h.entity_id, h.unit, h.amount) for h in newest.holds}
    assert held == {(cost, "*", "cost", "0.0035"), (tokens, "c", "tokens", "1100")}
    rest = await list_reservations(ctx, ListReservations(limit=2, cursor=first.next_cursor))
    assert ([r.reservation_id for r in rest.reservations], rest.next_cursor) == ([ids[0]], None)

    await release_reservation(ctx, ReleaseReservation(reservation_id=ids[0]))
    released = await list_reservations(ctx, ListReservations(status="released"))
    assert [(r.reservation_id, r.closed_at is not None) for r in released.reservations] == [(ids[0], True)]
    named = await list_reservations(ctx, ListReservations(status=None, request_id="r-b"))
    assert [r.reservation_id for r in named.reservations] == [ids[1]]
    of_budget = await list_reservations(ctx, ListReservations(status=None, budget_id=tokens))
    assert len(of_budget.reservations) == 3
    assert (await list_reservations(context(services, org="other"), ListReservations())).reservations == []


async def test_reservations_refuse_what_they_cannot_read(ctx: Context, services: Services) -> None:
    for request, field in (
        (ListReservations(cursor="x"), "cursor"),
        (ListReservations(cursor="WyJubyB1dWlkIl0"), "cursor"),
        (ListReservations(budget_id="x"), "budget_id"),
    ):
        error = await refusal(list_reservations(ctx, request))
        assert (error.code, error.field) == ("invalid_request", field)
    assert (await list_reservations(ctx, ListReservations(budget_id=services.new_id()))).reservations == []
