"""create, update, delete and list_budgets: validation, versions, rates, events, the trail; what a backfill counts."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest

from handlers.context import Caller, Context, Services
from handlers.enforcer.budgets import create_budget, delete_budget, list_budgets, update_budget
from handlers.enforcer.calendar import EPOCH
from handlers.enforcer.catalogue import pattern_matches
from handlers.enforcer.drafts import drafted
from handlers.enforcer.status import get_budget_status
from handlers.management.reconcile import reconcile
from schemas.budget import (
    Budget,
    BudgetFilters,
    CreateBudget,
    DeleteBudget,
    GetBudgetStatus,
    ListBudgets,
    Rate,
    Rollover,
    UpdateBudget,
)
from schemas.codec import Codec
from store import budgets as budget_store
from store.sql import like_pattern
from tests.support.services import apply_usage, checked, context, gpt, outbox_events, refusal, user


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
        ({"currency": "EUX"}, "currency"),
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
        ({"period": "total", "type": "user"}, {user("u1"): ("0.0035", "0"), user("u2"): ("0.0035", "0")}),
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


async def test_a_backfill_counts_what_fast_clocks_date_ahead_in_the_present_window(
    ctx: Context, services: Services
) -> None:
    now = services.clock()
    await apply_usage(services, gpt(timestamp=now), *[gpt(timestamp=now + timedelta(minutes=m)) for m in (2, 4, 4)])
    await create_budget(ctx, wanted(backfill=True, period="yearly", limit="0.005", rollover=Rollover(policy="full")))
    (row,) = await services.database.fetch("SELECT spent, overrun, carry FROM budget_window")
    assert (row["spent"], row["overrun"], row["carry"]) == (14_000_000, 9_000_000, 0)
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
        assert found == {user(f"u{n}"): ("0.035", "0") for n in range(3)}
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


RATE = Rate(limit="60")


async def trail(services: Services) -> list[dict[str, Any]]:
    rows = await services.database.fetch("SELECT content FROM audit ORDER BY seq")
    return [msgspec.json.decode(row["content"]) for row in rows]


def manager(services: Services, *teams: str) -> Context:
    return Context(services, Caller("default", "mia", frozenset({"manager"}), frozenset(teams)))


async def throttled(ctx: Context, **fields: Any) -> Budget:
    return await create_budget(ctx, wanted("slow", **{"enforcement": "throttle", "rate": RATE, **fields}))


async def rate_of(ctx: Context, main: Budget) -> Budget | None:
    found = (await list_budgets(ctx, ListBudgets())).budgets
    return next((b for b in found if b.gate_id == main.budget_id), None)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"enforcement": "throttle"}, "rate"),
        ({"enforcement": "throttle", "period": "minute", "rate": RATE}, "rate"),
        ({"enforcement": "throttle", "period": "hourly", "rate": RATE}, "rate"),
        ({"enforcement": "block", "rate": RATE}, "rate"),
        ({"enforcement": "warn", "rate": RATE}, "rate"),
        ({"enforcement": "throttle", "rate": Rate(limit="x")}, "rate.limit"),
        ({"enforcement": "throttle", "rate": Rate(limit="1.5", unit="tokens")}, "rate.limit"),
    ],
)
async def test_a_rate_belongs_to_a_long_throttle_and_to_nothing_else(
    ctx: Context, fields: dict[str, Any], field: str
) -> None:
    error = await refusal(create_budget(ctx, wanted(**fields)))
    assert (error.code, error.field) == ("invalid_request", field)
    assert (await list_budgets(ctx, ListBudgets())).budgets == []


async def test_a_rate_is_a_budget_behind_the_gate_of_the_throttled_one(ctx: Context, services: Services) -> None:
    main = await throttled(ctx, type="user", filters=BudgetFilters(model="gpt-*"), timezone="Asia/Tokyo")
    assert main.rate == Rate(limit="60", unit="requests", period="minute")
    rate = await rate_of(ctx, main)
    assert rate is not None
    assert (rate.name, rate.enforcement, rate.unit, rate.period, rate.limit) == (
        "slow (rate)",
        "throttle",
        "requests",
        "minute",
        "60",
    )
    same = ("type", "entity_id", "filters", "timezone", "on_expiry", "active")
    assert [getattr(rate, name) for name in same] == [getattr(main, name) for name in same]
    async with services.database.connection() as connection:
        rows = await budget_store.load(connection, "default")
    assert {row.name: row.blocking for row in rows} == {"slow": False, "slow (rate)": False}
    assert len(await outbox_events(services)) == 1  # The rate is part of what the one event tells.
    assert [e["after"]["rate"]["limit"] for e in await trail(services)] == ["60"]


async def test_a_rate_changes_with_its_budget_and_never_alone(ctx: Context, services: Services) -> None:
    main = await throttled(ctx)
    rate = await rate_of(ctx, main)
    assert rate is not None
    for refused in (
        update_budget(ctx, UpdateBudget(budget_id=rate.budget_id, version=1, limit="5")),
        delete_budget(ctx, DeleteBudget(budget_id=rate.budget_id, version=1)),
    ):
        error = await refusal(refused)
        assert (error.code, error.field) == ("invalid_request", "budget_id")
        assert main.budget_id in error.message

    async def change(version: int, **fields: Any) -> Budget | None:
        changed = await update_budget(ctx, UpdateBudget(budget_id=main.budget_id, version=version, **fields))
        found = await rate_of(ctx, changed)
        assert (changed.rate is None) == (found is None)
        return found

    renamed = await change(1, name="slower", active=False)
    assert renamed is not None
    assert (renamed.budget_id, renamed.name, renamed.active, renamed.limit) == (
        rate.budget_id,
        "slower (rate)",
        False,
        "60",
    )
    limited = await change(2, rate=Rate(limit="30"), active=True)
    assert limited is not None and (limited.budget_id, limited.limit) == (rate.budget_id, "30")
    untouched = await change(3, limit="99")
    assert untouched is not None and untouched.version == limited.version
    other = await change(4, rate=Rate(limit="1.5", unit="cost", period="hourly"))
    assert other is not None and other.budget_id != rate.budget_id
    assert (other.name, other.currency, other.limit) == ("slower (rate)", "USD", "1.5")
    error = await refusal(change(5, enforcement="block", rate=RATE))
    assert error.field == "rate"
    assert await change(5, enforcement="block") is None
    error = await refusal(change(6, enforcement="throttle"))
    assert error.field == "rate"
    assert await change(6, enforcement="throttle", rate=RATE) is not None
    known = services.catalogues.known("default")
    assert known is not None and rate.budget_id in known.by_id  # Its history stays.


async def test_a_throttle_refuses_nothing_before_its_limit_and_only_by_its_rate_after(
    ctx: Context, services: Services
) -> None:
    await throttled(ctx, unit="requests", limit="2", period="total", rate=Rate(limit="1", period="hourly"))
    call: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 10, "max_completion_tokens": 10}
    answers = [await checked(services, **call) for _ in range(4)]
    # The rate counts all calls; while the budget has room it refuses none of them.
    assert [a["approved"] for a in answers] == [True, True, False, False]
    assert {a["reason"]["code"] for a in answers[2:]} == {"throttled"}


async def test_blocking_is_of_those_that_refuse_by_themselves() -> None:
    row = drafted(wanted(), org="o", now=EPOCH, new_id=lambda: "id").main
    blocking = {
        (enforcement, period): replace(row, enforcement=enforcement, period=period).blocking
        for enforcement in ("block", "downgrade", "warn", "shadow", "throttle")
        for period in ("minute", "hourly", "daily", "total")
    }
    assert {pair for pair, is_blocking in blocking.items() if is_blocking} == {
        *((e, p) for e in ("block", "downgrade") for p in ("minute", "hourly", "daily", "total")),
        ("throttle", "minute"),
        ("throttle", "hourly"),
    }
    assert not replace(row, enforcement="throttle", period="minute", gate_id="x").blocking


async def test_a_fallback_is_taken_away_by_null_and_kept_when_left_out(ctx: Context) -> None:
    budget = await create_budget(ctx, wanted(fallback_model="small"))
    decode = Codec(UpdateBudget).decode
    body = {"budget_id": budget.budget_id, "version": 1, "limit": "5"}
    kept = await update_budget(ctx, decode(msgspec.json.encode(body)))
    assert kept.fallback_model == "small"
    gone = await update_budget(ctx, decode(msgspec.json.encode(body | {"version": 2, "fallback_model": None})))
    assert gone.fallback_model is None


async def test_a_deleted_budget_is_gone_but_never_forgotten(ctx: Context, services: Services) -> None:
    budget = await create_budget(ctx, wanted("b", limit="1"))
    call: dict[str, Any] = {
        "provider": "openai",
        "model": "gpt-4o",
        "prompt_tokens": 1_000,
        "max_completion_tokens": 100,
    }
    held = await checked(services, **call)
    gone = await delete_budget(ctx, DeleteBudget(budget_id=budget.budget_id, version=1, reason="a typing error"))
    assert (gone.version, gone.active, gone.deleted_at is not None) == (2, False, True)
    assert (await list_budgets(ctx, ListBudgets())).budgets == []
    everything = (await list_budgets(ctx, ListBudgets(deleted=True))).budgets
    assert [b.budget_id for b in everything] == [budget.budget_id]
    # It decides nothing any more, and what it had reserved is settled all the same (R4).
    assert (await checked(services, **call))["budgets"] == []
    await apply_usage(services, gpt(reservation_id=held["reservation_id"]))
    (kept,) = (await get_budget_status(ctx, GetBudgetStatus(budget_id=budget.budget_id))).budgets
    assert (kept.window.reserved, kept.budget.deleted_at) == ("0", gone.deleted_at)
    assert (await reconcile(ctx)).ok
    # Its name is free, and it cannot be changed or deleted again.
    again = await create_budget(ctx, wanted("b"))
    assert again.budget_id != budget.budget_id
    for refused in (
        update_budget(ctx, UpdateBudget(budget_id=budget.budget_id, version=2, active=True)),
        delete_budget(ctx, DeleteBudget(budget_id=budget.budget_id, version=2)),
    ):
        error = await refusal(refused)
        assert (error.code, error.field) == ("not_found", "budget_id")
    actions = [(name, data["action"]) for name, data in await outbox_events(services) if "action" in data]
    assert actions == [("budget.changed", "created"), ("budget.changed", "deleted"), ("budget.changed", "created")]
    deleted = (await trail(services))[1]
    assert (deleted["action"], deleted["entity"], deleted["entity_id"], deleted["reason"]) == (
        "deleted",
        "budget",
        budget.budget_id,
        "a typing error",
    )
    assert (deleted["before"]["active"], deleted["after"]["active"]) == (True, False)


async def test_deleting_needs_the_version_and_takes_the_rate_along(ctx: Context, services: Services) -> None:
    main = await throttled(ctx)
    for request, code in (
        (DeleteBudget(budget_id=main.budget_id, version=7), "conflict"),
        (DeleteBudget(budget_id=services.new_id(), version=1), "not_found"),
        (DeleteBudget(budget_id="x", version=1), "invalid_request"),
    ):
        assert (await refusal(delete_budget(ctx, request))).code == code
    other = context(services, org="other")
    assert (await refusal(delete_budget(other, DeleteBudget(budget_id=main.budget_id, version=1)))).code == "not_found"
    gone = await delete_budget(ctx, DeleteBudget(budget_id=main.budget_id, version=1))
    assert gone.rate == RATE
    assert (await list_budgets(ctx, ListBudgets())).budgets == []
    assert await services.database.fetchval("SELECT count(*) FROM budget WHERE active") == 0
    assert (await throttled(ctx)).rate == RATE


async def test_every_change_is_audited_with_what_was_before_and_why(ctx: Context, services: Services) -> None:
    budget = await create_budget(ctx, wanted(reason="a new team"))
    update = UpdateBudget(budget_id=budget.budget_id, version=1, limit="11", reason="more people")
    await update_budget(ctx, update)
    created, updated = await trail(services)
    assert (created["action"], created["actor"], created["before"], created["reason"]) == (
        "created",
        "alice",
        None,
        "a new team",
    )
    assert (updated["before"]["limit"], updated["after"]["limit"], updated["reason"]) == ("10", "11", "more people")
    await refusal(update_budget(ctx, update))  # What is refused leaves no trace.
    assert len(await trail(services)) == 2


async def test_a_manager_changes_budgets_of_own_teams_and_their_members(ctx: Context, services: Services) -> None:
    await services.database.execute(
        "INSERT INTO team_member VALUES ('default', $1, 'red'), ('default', $2, 'blue')", user("ann"), user("bob")
    )
    red = manager(services, "red")
    own = await create_budget(red, wanted("own", type="team", entity_id="red"))
    await create_budget(red, wanted("ann", type="user", entity_id="ann"))
    await update_budget(red, UpdateBudget(budget_id=own.budget_id, version=1, limit="11"))
    await delete_budget(red, DeleteBudget(budget_id=own.budget_id, version=2))
    blue = await create_budget(ctx, wanted("blue", type="team", entity_id="blue"))
    before = await trail(services)
    for refused in (
        create_budget(red, wanted("1", type="team", entity_id="blue")),
        create_budget(red, wanted("2", type="team")),
        create_budget(red, wanted("3", type="user", entity_id="bob")),
        create_budget(red, wanted("4")),
        create_budget(red, wanted("5", type="project", entity_id="red")),
        update_budget(red, UpdateBudget(budget_id=blue.budget_id, version=1, limit="99")),
        delete_budget(red, DeleteBudget(budget_id=blue.budget_id, version=1)),
    ):
        assert (await refusal(refused)).code == "forbidden"
    assert await trail(services) == before


async def test_a_user_of_a_budget_is_stored_by_surrogate_and_found_by_name(ctx: Context, services: Services) -> None:
    budget = await create_budget(ctx, wanted(type="user", entity_id="ann"))
    assert budget.entity_id == user("ann")
    assert "ann" not in str(await services.database.fetch("SELECT entity_id FROM budget"))
    for request in (
        ListBudgets(type="user", entity_id="ann"),
        ListBudgets(entity_id="ann"),
        ListBudgets(type="user", entity_id=user("ann")),
    ):
        assert [b.budget_id for b in (await list_budgets(ctx, request)).budgets] == [budget.budget_id]
    assert (await list_budgets(ctx, ListBudgets(type="team", entity_id="ann"))).budgets == []
    await apply_usage(services, gpt(user_id="ann"))
    assert await spent(ctx, budget.budget_id) == {user("ann"): ("0.0035", "0")}
