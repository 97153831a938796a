"""get_budget_status and list_reservations: which budgets apply and why, which are full, who holds what."""

from typing import Any

from handlers.context import Context, Services
from handlers.enforcer.budgets import create_budget, delete_budget, list_budgets, update_budget
from handlers.enforcer.changes import release_reservation
from handlers.enforcer.policies import apply_policies
from handlers.enforcer.status import get_budget_status, list_reservations
from schemas.budget import (
    BudgetFilters,
    CreateBudget,
    DeleteBudget,
    GetBudgetStatus,
    ListBudgets,
    ListReservations,
    Rate,
    ReleaseReservation,
    UpdateBudget,
)
from schemas.policy import ApplyPolicies
from tests.support.services import apply_usage, checked, context, gpt, refusal, user

CALL: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 1_000, "max_completion_tokens": 100}


async def made(ctx: Context, name: str, **fields: Any) -> str:
    values: dict[str, Any] = {"limit": "10", "period": "total"} | fields
    return (await create_budget(ctx, CreateBudget(name=name, **values))).budget_id


async def test_every_budget_that_applies_says_why(ctx: Context) -> None:
    everyone = await made(ctx, "all", type="global")
    team = await made(ctx, "team", type="team", entity_id="t1", filters=BudgetFilters(model="gpt-*", provider="openai"))
    each = await made(ctx, "user", type="user")
    await made(ctx, "other team", type="team", entity_id="t2")
    idle = await made(ctx, "idle", type="user", active=False)
    status = await get_budget_status(
        ctx, GetBudgetStatus(team_id="t1", user_id="u1", provider="openai", model="gpt-4o")
    )
    assert {applied.budget.budget_id: applied.why for applied in status.budgets} == {
        everyone: "global budget for every call",
        team: "team budget for team_id 't1', filters model=gpt-* provider=openai",
        each: f"user budget for each user_id '{user('u1')}'",
    }
    assert {a.window.entity_id for a in status.budgets} == {"*", "t1", user("u1")}
    assert all((a.window.spent, a.window.remaining) == ("0", "10") for a in status.budgets)
    assert [a.budget.budget_id for a in (await get_budget_status(ctx, GetBudgetStatus())).budgets] == [everyone]
    (by_id,) = (await get_budget_status(ctx, GetBudgetStatus(budget_id=idle, user_id="u1"))).budgets
    assert by_id.why == f"user budget for each user_id '{user('u1')}', inactive"


async def test_a_budget_of_each_entity_shows_one_window_or_all(ctx: Context, services: Services) -> None:
    budget_id = await made(ctx, "user", type="user", limit="0.0035")
    await apply_usage(services, gpt(user_id="u1"), gpt(user_id="u2", prompt=0))
    every = await get_budget_status(ctx, GetBudgetStatus(budget_id=budget_id))
    assert {a.window.entity_id: a.window.spent for a in every.budgets} == {user("u1"): "0.0035", user("u2"): "0.001"}
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


async def test_budgets_are_in_one_order_global_first_then_by_type_then_by_name(ctx: Context) -> None:
    for name, kind in (("z", "user"), ("a", "feature"), ("y", "team"), ("b", "team"), ("x", "global"), ("c", "global")):
        await made(ctx, name, type=kind)
    status = await get_budget_status(ctx, GetBudgetStatus(team_id="t1", user_id="u1", feature="f"))
    assert [a.budget.name for a in status.budgets] == ["c", "x", "b", "y", "z", "a"]


async def test_each_budget_says_what_it_does_to_a_call_that_does_not_fit(ctx: Context) -> None:
    await made(ctx, "1 block", type="global")
    await made(ctx, "2 downgrade", type="global", enforcement="downgrade")
    await made(ctx, "3 warn", type="global", enforcement="warn")
    await made(ctx, "4 shadow", type="global", enforcement="shadow")
    await made(ctx, "5 per minute", type="global", enforcement="throttle", period="minute")
    rate = Rate(limit="5", period="hourly")
    slow = await made(ctx, "6 slow", type="global", enforcement="throttle", rate=rate)
    status = await get_budget_status(ctx, GetBudgetStatus())
    found = {a.budget.name: a for a in status.budgets}
    assert {name: a.effect for name, a in found.items()} == {
        "1 block": "blocks",
        "2 downgrade": "downgrades",
        "3 warn": "warns",
        "4 shadow": "records",
        "5 per minute": "throttles",
        "6 slow": "throttles",
        "6 slow (rate)": "throttles",
    }
    main, behind = found["6 slow"], found["6 slow (rate)"]
    assert (main.gate_id, behind.gate_id) == (behind.budget.budget_id, slow)
    assert main.budget.rate == rate
    assert main.effect_text == "refuses nothing itself; used up, calls go on at 5 requests per hour ('6 slow (rate)')"
    assert behind.effect_text == (
        "binds only while budget '6 slow' is used up; that one has room left, so it refuses nothing"
    )


async def test_a_rate_denies_only_while_its_gate_is_used_up(ctx: Context, services: Services) -> None:
    rate = Rate(limit="1", period="hourly")
    main = await made(ctx, "slow", type="global", enforcement="throttle", unit="requests", limit="2", rate=rate)

    async def denying() -> list[str]:
        return (await get_budget_status(ctx, GetBudgetStatus())).denying

    await apply_usage(services, gpt())
    assert await denying() == []
    await apply_usage(services, gpt())
    (behind,) = await denying()
    assert behind != main
    (alone,) = (await get_budget_status(ctx, GetBudgetStatus(budget_id=behind))).budgets
    assert alone.gate_id == main and "so it binds" in alone.effect_text
    # What status says is what a check does.
    assert (await checked(services, **CALL))["reason"]["budgets"] == [behind]


async def test_near_misses_say_what_differs(ctx: Context) -> None:
    await made(ctx, "claude", type="team", entity_id="t1", filters=BudgetFilters(model="claude-*", environment="prod"))
    await made(ctx, "idle", type="global", active=False)
    await made(ctx, "applies", type="team")
    await made(ctx, "another team", type="team", entity_id="t2", filters=BudgetFilters(model="claude-*"))
    gone = await made(ctx, "gone", type="global")
    await delete_budget(ctx, DeleteBudget(budget_id=gone, version=1))
    status = await get_budget_status(ctx, GetBudgetStatus(team_id="t1", provider="openai", model="gpt-4o"))
    assert [a.budget.name for a in status.budgets] == ["applies"]
    assert [(m.name, m.reason) for m in status.not_applied] == [
        ("idle", "the budget is inactive"),
        (
            "claude",
            "it counts environment=prod and the call names no environment; "
            "it counts model=claude-* and the call has model=gpt-4o",
        ),
    ]
    assert (await get_budget_status(ctx, GetBudgetStatus(budget_id=gone))).budgets[0].why.endswith(", deleted")


async def test_near_misses_are_bounded(ctx: Context) -> None:
    policies = [
        {"name": f"{n:02}", "scope": "org", "limit": "$1/day", "filters": {"model": "no-such"}} for n in range(60)
    ]
    await apply_policies(ctx, ApplyPolicies(policies=policies))
    missed = (await get_budget_status(ctx, GetBudgetStatus(model="gpt-4o"))).not_applied
    assert [m.name for m in missed] == [f"{n:02}" for n in range(50)]


async def test_the_directory_fills_the_team_and_says_so(ctx: Context, services: Services) -> None:
    await made(ctx, "team", type="team", entity_id="red")
    await services.database.execute("INSERT INTO team_member VALUES ('default', $1, 'red')", user("ann"))
    await services.reload_catalogue("default")
    status = await get_budget_status(ctx, GetBudgetStatus(user_id="ann"))
    (applied,) = status.budgets
    assert (status.team_id, status.refusal) == ("red", None)
    assert applied.why == "team budget for team_id 'red' (the directory's team of the user)"
    wrong = await get_budget_status(ctx, GetBudgetStatus(user_id="ann", team_id="blue"))
    assert wrong.refusal is not None and wrong.refusal.code == "attribution_mismatch"


async def test_an_override_shows_in_the_limit_and_as_what_it_raises(ctx: Context, services: Services) -> None:
    budget_id = await made(ctx, "b", type="global", limit="10")
    await services.database.execute(
        """INSERT INTO override (org_id, override_id, budget_id, entity_id, status, amount, reason, requested_by,
               requested_at, starts_at, ends_at)
           VALUES ('default', $1, $2, '*', 'approved', 2500000000, 'r', 'x', now(), now(), now() + interval '1 h')""",
        services.new_id(),
        budget_id,
    )
    await services.reload_catalogue("default")
    (applied,) = (await get_budget_status(ctx, GetBudgetStatus())).budgets
    assert (applied.raised, applied.window.limit, applied.window.base_limit) == ("2.5", "12.5", "10")
    (listed,) = (await list_budgets(ctx, ListBudgets())).budgets
    assert listed.window is not None and listed.window.limit == "12.5"


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
    assert newest.attribution == {"user_id": user("c")}
    held = {(h.budget_id, h.entity_id, h.unit, h.amount) for h in newest.holds}
    assert held == {(cost, "*", "cost", "0.0035"), (tokens, user("c"), "tokens", "1100")}
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
