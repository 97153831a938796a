"""create_budget, update_budget, list_budgets: validation, versions, the event, and what a backfill counts."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from handlers.context import Context, Services
from handlers.enforcer.budgets import create_budget, list_budgets, update_budget
from handlers.enforcer.catalogue import pattern_matches
from handlers.enforcer.status import get_budget_status
from handlers.management.reconcile import reconcile
from schemas.budget import BudgetFilters, CreateBudget, GetBudgetStatus, ListBudgets, Rollover, UpdateBudget
from store.sql import like_pattern
from tests.support.services import apply_usage, context, gpt, outbox_events, refusal


def wanted(name: str = "b", **fields: Any) -> CreateBudget:
    values: dict[str, Any] = {"type": "global", "limit": "10"} | fields
    return CreateBudget(name=name, **values)


async def spent(ctx: Context, budget_id: str) -> dict[str, tuple[str, str]]:
    status = await get_budget_status(ctx, GetBudgetStatus(budget_id=budget_id))
    return {b.window.entity_id: (b.window.spent, b.window.overrun) for b in status.budgets}


async def test_a_created_budget_is_told_and_binds_at_once(ctx: Context, services: Services) -> None:
    budget = await create_budget(ctx, wanted(type="team", entity_id="t1", limit="12.50", alert_thresholds=[90, 50, 90]))
    assert (budget.version, budget.limit, budget.currency, budget.alert_thresholds) == (1, "12.5", "USD", [50, 90])
    assert budget.window is not None
    assert (budget.window.spent, budget.window.remaining, budget.window.resets_at is None) == ("0", "12.5", False)
    assert budget.counting_since == budget.created_at == budget.updated_at
    ((name, data),) = await outbox_events(services)
    assert (name, data["action"], data["actor"], data["before"]) == ("budget.changed", "created", "alice", None)
    assert data["after"]["budget_id"] == budget.budget_id
    assert services.outbox_ready.is_set()
    known = services.catalogues.known("default")
    assert known is not None and budget.budget_id in known.by_id
    assert known.version == 1


async def test_each_entity_has_its_own_window_so_none_is_shown(ctx: Context) -> None:
    assert (await create_budget(ctx, wanted(type="user"))).window is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"limit": "1.0000000001"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "1e3"}, "limit"),
        ({"limit": "1000000001"}, "limit"),
        ({"limit": "1.5", "unit": "tokens"}, "limit"),
        ({"limit": "1.5", "unit": "requests"}, "limit"),
        ({"limit": "1000000000", "overage_percent": 1}, "overage_percent"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"type": "global", "entity_id": "t1"}, "entity_id"),
        ({"currency": "EUR"}, "currency"),
        ({"period": "total", "rollover": Rollover(policy="full")}, "rollover"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_field(ctx: Context, fields: dict[str, Any], field: str) -> None:
    error = await refusal(create_budget(ctx, wanted(**fields)))
    assert (error.code, error.field) == ("invalid_request", field)
    assert (await list_budgets(ctx, ListBudgets())).budgets == []


async def test_a_limit_of_nothing_denies_everything(ctx: Context) -> None:
    budget = await create_budget(ctx, wanted(limit="0"))
    assert (await get_budget_status(ctx, GetBudgetStatus())).denying == [budget.budget_id]


async def test_tokens_have_no_currency(ctx: Context) -> None:
    budget = await create_budget(ctx, wanted(unit="tokens", limit="1000", currency="EUR"))
    assert (budget.currency, budget.limit) == (None, "1000")


async def test_a_name_is_taken_once_in_an_org(ctx: Context, services: Services) -> None:
    await create_budget(ctx, wanted("one"))
    error = await refusal(create_budget(ctx, wanted("one")))
    assert (error.code, error.field) == ("conflict", "name")
    await create_budget(context(services, org="other"), wanted("one"))
    two = await create_budget(ctx, wanted("two"))
    error = await refusal(update_budget(ctx, UpdateBudget(budget_id=two.budget_id, version=1, name="one")))
    assert (error.code, error.field) == ("conflict", "name")
    assert len(await outbox_events(services)) == 3


async def test_an_update_needs_the_version_it_read(ctx: Context, services: Services) -> None:
    budget = await create_budget(ctx, wanted())
    changed = await update_budget(
        ctx,
        UpdateBudget(
            budget_id=budget.budget_id.upper(),
            version=1,
            name="renamed",
            limit="5",
            overage_percent=10,
            alert_thresholds=[80],
            rollover=Rollover(policy="capped", percent=50),
            on_expiry="settle",
            preferred_models=["m"],
            fallback_model="f",
            active=False,
        ),
    )
    assert (changed.version, changed.name, changed.limit, changed.active) == (2, "renamed", "5", False)
    assert changed.window is not None and changed.window.limit == "5.5"
    assert (changed.rollover.policy, changed.on_expiry, changed.preferred_models) == ("capped", "settle", ["m"])
    assert changed.updated_at > changed.created_at == budget.created_at
    error = await refusal(update_budget(ctx, UpdateBudget(budget_id=budget.budget_id, version=1, limit="6")))
    assert (error.code, error.field) == ("conflict", "version")
    assert "version 2" in error.message
    _, (name, data) = await outbox_events(services)
    assert (name, data["before"]["limit"], data["after"]["limit"]) == ("budget.changed", "10", "5")


async def test_an_update_of_what_is_not_there_or_makes_no_sense(ctx: Context, services: Services) -> None:
    budget = await create_budget(ctx, wanted(period="total"))
    refused = {
        ("not_found", "budget_id"): UpdateBudget(budget_id=services.new_id(), version=1),
        ("invalid_request", "budget_id"): UpdateBudget(budget_id="no-uuid", version=1),
        ("invalid_request", "limit"): UpdateBudget(budget_id=budget.budget_id, version=1, limit="x"),
        ("invalid_request", "rollover"): UpdateBudget(
            budget_id=budget.budget_id, version=1, rollover=Rollover(policy="full")
        ),
    }
    for expected, request in refused.items():
        error = await refusal(update_budget(ctx, request))
        assert (error.code, error.field) == expected
    error = await refusal(
        update_budget(context(services, org="other"), UpdateBudget(budget_id=budget.budget_id, version=1))
    )
    assert error.code == "not_found"


async def test_only_one_of_two_updates_of_a_version_wins(ctx: Context) -> None:
    budget = await create_budget(ctx, wanted())
    updates = [update_budget(ctx, UpdateBudget(budget_id=budget.budget_id, version=1, limit=str(n))) for n in (1, 2)]
    results = await asyncio.gather(*updates, return_exceptions=True)
    assert sorted(type(r).__name__ for r in results) == ["Budget", "SignalError"]


async def test_blocking_again_holds_the_database_to_the_limit(ctx: Context, services: Services) -> None:
    budget = await create_budget(ctx, wanted(enforcement="warn", limit="0.005"))
    await apply_usage(services, gpt(), gpt())  # 0.007, of which 0.002 is overrun

    async def high_limit() -> int | None:
        return await services.database.fetchval("SELECT high_limit FROM budget_window")

    assert await high_limit() is None
    change = UpdateBudget(budget_id=budget.budget_id, version=1, enforcement="block", limit="0.004", overage_percent=50)
    blocked = await update_budget(ctx, change)
    assert await high_limit() == 6_000_000
    assert blocked.window is not None
    assert (blocked.window.spent, blocked.window.overrun, blocked.window.remaining) == ("0.007", "0.002", "0")
    assert (await get_budget_status(ctx, GetBudgetStatus())).denying == [budget.budget_id]
    await update_budget(ctx, UpdateBudget(budget_id=budget.budget_id, version=2, enforcement="warn"))
    assert await high_limit() is None
    assert (await get_budget_status(ctx, GetBudgetStatus())).denying == []


async def test_budgets_are_listed_by_name_in_pages(ctx: Context) -> None:
    for name in ("c", "a", "b"):
        await create_budget(ctx, wanted(name, type="team", entity_id=name))
    first = await list_budgets(ctx, ListBudgets(limit=2))
    assert [b.name for b in first.budgets] == ["a", "b"]
    assert all(b.window is not None for b in first.budgets)
    rest = await list_budgets(ctx, ListBudgets(limit=2, cursor=first.next_cursor))
    assert ([b.name for b in rest.budgets], rest.next_cursor) == (["c"], None)
    assert [b.name for b in (await list_budgets(ctx, ListBudgets(type="team", entity_id="b"))).budgets] == ["b"]
    assert (await list_budgets(ctx, ListBudgets(active=False))).budgets == []
    error = await refusal(list_budgets(ctx, ListBudgets(cursor="nonsense")))
    assert (error.code, error.field) == ("invalid_request", "cursor")


async def test_a_new_budget_counts_from_now(ctx: Context, services: Services) -> None:
    await apply_usage(services, gpt(), gpt(timestamp=services.clock()))
    budget = await create_budget(ctx, wanted())
    before = budget.created_at - timedelta(seconds=1)
    await apply_usage(services, gpt(timestamp=before))
    assert await spent(ctx, budget.budget_id) == {"*": ("0", "0")}
    await apply_usage(services, gpt())
    assert await spent(ctx, budget.budget_id) == {"*": ("0.0035", "0")}
    assert (await reconcile(ctx)).ok


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"period": "total"}, {"*": ("0.0105", "0.0005")}),
        ({"period": "total", "enforcement": "warn"}, {"*": ("0.0105", "0.0005")}),
        ({"period": "total", "unit": "tokens", "limit": "10000"}, {"*": ("3300", "0")}),
        ({"period": "total", "unit": "requests", "limit": "10000"}, {"*": ("2", "0")}),
        ({"period": "total", "type": "team", "entity_id": "t1"}, {"t1": ("0.007", "0")}),
        ({"period": "total", "type": "user"}, {"u1": ("0.0035", "0"), "u2": ("0.0035", "0")}),
        ({"period": "total", "filters": BudgetFilters(model="gpt-*", feature="a_b%")}, {"*": ("0.0035", "0")}),
        ({"period": "total", "filters": BudgetFilters(model="gpt-?o")}, {"*": ("0", "0")}),
    ],
)
async def test_a_backfill_counts_what_was_applied_before(
    ctx: Context, services: Services, fields: dict[str, Any], expected: dict[str, tuple[str, str]]
) -> None:
    await apply_usage(
        services,
        gpt(team_id="t1", user_id="u1", feature="a_b%"),
        gpt(team_id="t1", user_id="u2", feature="axbb", final=False),
        gpt(team_id="t2"),
        gpt(provider="nobody", model="nothing", prompt=0, completion=0, final=False),
    )
    budget = await create_budget(ctx, wanted(backfill=True, **({"limit": "0.01"} | fields)))
    assert await spent(ctx, budget.budget_id) == expected
    assert (await reconcile(ctx)).ok


async def test_a_backfill_starts_at_its_window_and_goes_on_from_there(ctx: Context, services: Services) -> None:
    now = services.clock()
    await apply_usage(services, gpt(id="old", timestamp=now - timedelta(days=400)), gpt(id="new", timestamp=now))
    budget = await create_budget(ctx, wanted(backfill=True, period="yearly"))
    start = datetime(budget.created_at.year, 1, 1, tzinfo=UTC)
    assert budget.counting_since == start
    # An event older than 35 days is charged to its arrival, which is in the window.
    assert await spent(ctx, budget.budget_id) == {"*": ("0.007", "0")}
    await apply_usage(
        services, gpt(id="new", timestamp=now), gpt(id="later", timestamp=now - timedelta(microseconds=1))
    )
    assert await spent(ctx, budget.budget_id) == {"*": ("0.0105", "0")}
    assert (await reconcile(ctx)).ok


async def test_a_backfill_keeps_what_fast_clocks_charged_to_the_next_windows(ctx: Context, services: Services) -> None:
    now = services.clock()
    await apply_usage(services, gpt(timestamp=now), *[gpt(timestamp=now + timedelta(minutes=m)) for m in (2, 4, 4)])
    await create_budget(ctx, wanted(backfill=True, period="minute", limit="0.005", rollover=Rollover(policy="full")))
    rows = await services.database.fetch("SELECT spent, overrun, carry FROM budget_window ORDER BY starts_at")
    assert [r["spent"] for r in rows][-2:] == [3_500_000, 7_000_000]
    assert all(r["overrun"] == max(0, r["spent"] - 5_000_000 - r["carry"]) for r in rows)
    assert (await reconcile(ctx)).ok


async def test_events_applied_while_a_budget_is_created_are_counted_exactly_once(
    ctx: Context, services: Services
) -> None:
    async def use(n: int) -> None:
        for i in range(10):
            await apply_usage(services, gpt(user_id=f"u{n}", id=f"{n}-{i}"))

    created = (create_budget(ctx, wanted(f"b{n}", backfill=True, period="total", type="user")) for n in range(3))
    results = await asyncio.gather(use(0), use(1), use(2), *created)
    for budget in results[3:]:
        assert budget is not None
        found = await spent(ctx, budget.budget_id)
        assert found == {f"u{n}": ("0.035", "0") for n in range(3)}
    assert (await reconcile(ctx)).ok


PATTERNS = ["*", "", "a", "a*", "*a", "a*b", "a*b*c", "**", "a_c", "a%", "a?c", "[ab]c", "a\\c", "a\\*", "*_*", "*%"]
TEXTS = ["", "a", "b", "ab", "abc", "a_c", "axc", "a%", "a?c", "[ab]c", "ac", "a\\c", "a\\", "aXb\nYc", "\\", "%"]


async def test_only_the_star_is_special_in_python_and_in_sql(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    for pattern in PATTERNS:
        for text in TEXTS:
            in_sql = await connection.fetchval("SELECT $1::text LIKE $2::text", text, like_pattern(pattern))
            assert pattern_matches(pattern, text) == in_sql, (pattern, text)
    await connection.close()
    assert pattern_matches("a*b*c", "aXbYc") and not pattern_matches("ab*bc", "abc")
    assert not pattern_matches("gpt-?", "gpt-4") and not pattern_matches("[g]pt", "gpt")


async def test_years_of_unused_limits_carry_no_more_than_the_ledger_holds(ctx: Context, services: Services) -> None:
    everything = Rollover(policy="full")
    budget = await create_budget(ctx, wanted(limit="1000000000", period="minute", rollover=everything))
    await services.database.execute("UPDATE budget SET counting_since = now() - interval '10 years'")
    await services.reload_catalogue("default")
    await apply_usage(services, gpt())
    (applied,) = (await get_budget_status(ctx, GetBudgetStatus(budget_id=budget.budget_id))).budgets
    assert applied.window.limit == "5000000000"
