"""request_override, review_override, list_overrides: who may raise what, by how much, and what is told about it."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from handlers.context import Caller, Context, Limits, Services
from handlers.enforcer.budgets import create_budget, delete_budget, update_budget
from handlers.enforcer.overrides import expire_overrides, list_overrides, request_override, review_override
from schemas.budget import (
    Budget,
    BudgetDecision,
    CreateBudget,
    DeleteBudget,
    OverridePolicy,
    Rate,
    UpdateBudget,
)
from schemas.errors import SignalError
from schemas.money import COST_NANOS_MAX
from schemas.override import ListOverrides, Override, RequestOverride, ReviewOverride
from store.audit import chained
from tests.support.services import RecordingSink, checked, context, outbox_events, refusal, services_for

HOUR = timedelta(hours=1)


async def new_budget(ctx: Context, policy: OverridePolicy | None = None, **fields: Any) -> Budget:
    values: dict[str, Any] = {"name": "b", "type": "global", "limit": "100"} | fields
    return await create_budget(ctx, CreateBudget(override_policy=policy or OverridePolicy(), **values))


async def ask(ctx: Context, budget: Budget, **fields: Any) -> Override:
    values: dict[str, Any] = {"reason": "the launch", "until": ctx.now() + HOUR} | fields
    if "amount" not in values and "percent" not in values:
        values["amount"] = "10"
    return await request_override(ctx, RequestOverride(budget_id=budget.budget_id, **values))


async def review(ctx: Context, override: Override, decision: Any = "approve", comment: str | None = None) -> Override:
    return await review_override(
        ctx, ReviewOverride(override_id=override.override_id, decision=decision, comment=comment)
    )


def approver(services: Services, user: str | None = "bob", *roles: str) -> Context:
    return context(services, user=user, roles=roles or ("approver",))


async def trail(services: Services) -> list[dict[str, Any]]:
    """Audit entries about overrides, oldest first; the chain is whole."""
    rows = await services.database.fetch("SELECT content, previous_hash, hash, entity FROM audit ORDER BY seq")
    for row in rows:
        assert chained(row["previous_hash"], row["content"]) == row["hash"]
    return [msgspec.json.decode(row["content"]) for row in rows if row["entity"] == "override"]


async def told(services: Services) -> list[tuple[str, Any]]:
    return [(name, data) for name, data in await outbox_events(services) if name.startswith("override.")]


async def listed(ctx: Context, **fields: Any) -> list[tuple[str, str]]:
    found = await list_overrides(ctx, ListOverrides(**fields))
    return [(o.override_id, o.status) for o in found.overrides]


# Asking ---------------------------------------------------------------------------------------------------------------


async def test_a_raise_is_asked_for_and_waits(ctx: Context, services: Services) -> None:
    budget = await new_budget(ctx)
    version = await services.database.fetchval("SELECT version FROM org_catalogue")
    asked = await ask(ctx, budget, amount="12.50")
    assert (asked.status, asked.amount, asked.unit, asked.currency) == ("pending", "12.5", "cost", "USD")
    assert (asked.requested_by, asked.entity_id, asked.starts_at, asked.reviewed_by) == ("alice", "*", None, None)
    assert asked.percent is None
    ((name, data),) = await told(services)
    assert (name, data["actor"], data["override"]["override_id"]) == ("override.requested", "alice", asked.override_id)
    (entry,) = await trail(services)
    assert (entry["action"], entry["actor"], entry["entity"], entry["entity_id"], entry["reason"]) == (
        "requested", "alice", "override", asked.override_id, "the launch",
    )  # fmt: skip
    assert entry["before"] is None
    assert entry["after"]["amount"] == "12.5"
    # What only waits changes no decision: no agent has to read its catalogue again.
    assert await services.database.fetchval("SELECT version FROM org_catalogue") == version


@pytest.mark.parametrize(
    ("unit", "limit", "fields", "expected"),
    [
        ("cost", "33.333333333", {"percent": 10}, "3.333333333"),
        ("tokens", "999", {"percent": 10}, "99"),
        ("requests", "10", {"amount": "5"}, "5"),
        ("cost", "0.000000002", {"percent": 50}, "0.000000001"),
    ],
)
async def test_amounts_are_in_the_unit_of_the_budget_and_percents_of_its_base_limit(
    ctx: Context, unit: Any, limit: str, fields: dict[str, Any], expected: str
) -> None:
    budget = await new_budget(ctx, unit=unit, limit=limit, overage_percent=100)
    asked = await ask(ctx, budget, **fields)
    assert (asked.amount, asked.unit, asked.percent) == (expected, unit, fields.get("percent"))


NOBODY = "00000000-0000-7000-8000-000000000000"
REFUSALS: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("both", {}, {"amount": "1", "percent": 1}, "invalid_request", "percent"),
    ("neither", {}, {"amount": None}, "invalid_request", "amount"),
    ("no number", {}, {"amount": "ten"}, "invalid_request", "amount"),
    ("negative", {}, {"amount": "-1"}, "invalid_request", "amount"),
    ("nothing", {}, {"amount": "0"}, "invalid_request", "amount"),
    ("below a nano", {}, {"amount": "0.0000000001"}, "invalid_request", "amount"),
    ("half a token", {"unit": "tokens"}, {"amount": "1.5"}, "invalid_request", "amount"),
    ("percent of little", {"unit": "tokens", "limit": "9"}, {"percent": 10}, "invalid_request", "percent"),
    ("blank reason", {}, {"reason": " \n\t"}, "invalid_request", "reason"),
    ("now", {}, {"until": timedelta(0)}, "invalid_request", "until"),
    ("the past", {}, {"until": -HOUR}, "invalid_request", "until"),
    ("too long", {}, {"until": 72 * HOUR + timedelta(minutes=1)}, "invalid_request", "until"),
    ("out of range", {}, {"until": datetime.max.replace(tzinfo=timezone(-HOUR))}, "invalid_request", "until"),
    ("the end of time", {}, {"until": datetime.max.replace(tzinfo=UTC)}, "invalid_request", "until"),
    ("above the policy", {}, {"amount": "50.000000001"}, "invalid_request", "amount"),
    ("percent above the policy", {}, {"percent": 51}, "invalid_request", "percent"),
    ("a raise of nothing", {"limit": "0"}, {"amount": "0.000000001"}, "invalid_request", "amount"),
    ("beyond all amounts", {"limit": "999999999"}, {"amount": "1.1"}, "invalid_request", "amount"),
    (
        "beyond with overage",
        {"limit": "900000000", "overage_percent": 11},
        {"percent": 1},
        "invalid_request",
        "percent",
    ),
    ("warns only", {"enforcement": "warn"}, {}, "invalid_request", "budget_id"),
    ("shadow", {"enforcement": "shadow"}, {}, "invalid_request", "budget_id"),
    ("inactive", {"active": False}, {}, "invalid_request", "budget_id"),
    ("no id", {}, {"budget_id": "b"}, "invalid_request", "budget_id"),
    ("no budget", {}, {"budget_id": NOBODY}, "not_found", "budget_id"),
    ("which user", {"type": "user"}, {}, "invalid_request", "entity_id"),
    ("every user", {"type": "user"}, {"entity_id": "*"}, "invalid_request", "entity_id"),
    ("another team", {"type": "team", "entity_id": "t1"}, {"entity_id": "t2"}, "invalid_request", "entity_id"),
    ("entity of a global", {}, {"entity_id": "t2"}, "invalid_request", "entity_id"),
]


@pytest.mark.parametrize(
    ("fields", "request_fields", "code", "field"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS]
)
async def test_what_makes_no_sense_is_refused_by_field(
    ctx: Context, services: Services, fields: dict[str, Any], request_fields: dict[str, Any], code: str, field: str
) -> None:
    budget = await new_budget(ctx, **fields)
    values: dict[str, Any] = {"budget_id": budget.budget_id, "reason": "the launch", "until": HOUR}
    values |= {} if "percent" in request_fields else {"amount": "1"}
    values |= request_fields
    if isinstance(values["until"], timedelta):
        values["until"] = services.clock() + values["until"]
    error = await refusal(request_override(ctx, RequestOverride(**values)))
    assert (error.code, error.field) == (code, field), error.message
    assert await listed(ctx) == []
    assert (await told(services), await trail(services)) == ([], [])


async def test_a_throttled_budget_is_raised_but_not_its_rate(ctx: Context, services: Services) -> None:
    """Calls go on at a rate once it is used up: a raise says when that begins."""
    budget = await new_budget(ctx, enforcement="throttle", rate=Rate(limit="1"))
    rate_id = await services.database.fetchval("SELECT budget_id FROM budget WHERE gate_id IS NOT NULL")
    fields: dict[str, Any] = {"amount": "1", "reason": "the launch", "until": ctx.now() + HOUR}
    error = await refusal(request_override(ctx, RequestOverride(budget_id=str(rate_id), **fields)))
    assert (error.code, error.field) == ("invalid_request", "budget_id")
    assert (await ask(ctx, budget)).status == "pending"


async def test_a_deleted_budget_is_raised_no_more(ctx: Context, services: Services) -> None:
    budget = await new_budget(ctx)
    waiting, live = await ask(ctx, budget, amount="1"), await ask(ctx, budget, amount="2")
    await review(approver(services), live)
    await delete_budget(ctx, DeleteBudget(budget_id=budget.budget_id, version=1))
    assert (await refusal(ask(ctx, budget))).code == "not_found"
    assert (await refusal(review(approver(services), waiting))).code == "conflict"
    assert (await review(approver(services), waiting, "deny")).status == "denied"
    assert (await review(approver(services), live, "revoke")).status == "revoked"
    assert len(await listed(ctx)) == 2


async def test_the_most_that_a_policy_allows_is_exact_and_counts_what_was_approved(
    ctx: Context, services: Services
) -> None:
    policy = OverridePolicy(max_percent=33)
    budget = await new_budget(ctx, policy, limit="0.000000010", type="user")
    assert (await refusal(ask(ctx, budget, entity_id="u1", amount="0.000000004"))).field == "amount"
    asked = await ask(ctx, budget, entity_id="u1", amount="0.000000003")
    other = await ask(context(services, user="carl"), budget, entity_id="u1", amount="0.000000001")
    await review(approver(services), asked)
    error = await refusal(ask(ctx, budget, entity_id="u1", amount="0.000000001"))
    assert error.field == "amount"
    assert "0.000000003 in all, 0.000000003 of it approved already" in error.message
    # Pending requests are looked at again when somebody approves them.
    error = await refusal(review(approver(services), other))
    assert (error.code, error.field) == ("conflict", "override_id")
    await ask(ctx, budget, entity_id="u2", amount="0.000000003")
    await review(approver(services), asked, "revoke")
    assert (await review(approver(services), other)).status == "approved"


async def test_the_largest_limit_there_is_leaves_no_room_for_a_raise(ctx: Context, services: Services) -> None:
    budget = await new_budget(ctx, OverridePolicy(max_percent=1000), limit="500000000")
    asked = await ask(ctx, budget, percent=100)
    assert (await review(approver(services), asked)).amount == "500000000"
    error = await refusal(ask(ctx, budget, amount="0.000000001"))
    assert (error.field, "larger than any amount" in error.message) == ("amount", True)
    assert await services.database.fetchval("SELECT sum(amount) FROM override") * 2 == COST_NANOS_MAX


async def test_a_user_is_raised_behind_the_surrogate_that_is_charged(ctx: Context, services: Services) -> None:
    everybody, one = await new_budget(ctx, type="user"), await new_budget(ctx, name="one", type="user", entity_id="u1")
    key = services.vault.surrogate("default", "u1")
    asked = await ask(ctx, everybody, entity_id="u1")
    assert asked.entity_id == key
    assert (await ask(ctx, one)).entity_id == (await ask(ctx, one, entity_id="u1", amount="11")).entity_id == key
    await review(approver(services), asked)
    assert [len(await listed(ctx, entity_id=name)) for name in ("u1", key, "u2")] == [3, 3, 0]
    answer = await checked(services, user_id="u1", estimated_cost="1")
    assert {b["name"]: b["limit"] for b in answer["budgets"]} == {"b": "110", "one": "100"}


async def test_the_same_request_twice_is_a_conflict(ctx: Context, services: Services) -> None:
    budget = await new_budget(ctx, type="user")
    until = ctx.now() + HOUR
    first = await ask(ctx, budget, entity_id="u1", until=until)
    error = await refusal(ask(ctx, budget, entity_id="u1", until=until + HOUR))
    assert error.code == "conflict"
    await ask(ctx, budget, entity_id="u1", amount="11")
    await ask(ctx, budget, entity_id="u2")
    await ask(context(services, user="carl"), budget, entity_id="u1")
    await review(approver(services), first)
    # Whoever heard no answer and asks again is not given it twice; for another time it is another raise.
    assert (await refusal(ask(ctx, budget, entity_id="u1", until=until))).code == "conflict"
    await ask(ctx, budget, entity_id="u1", until=until + HOUR)
    assert len(await listed(ctx)) == 5


async def test_the_same_request_from_many_at_once_is_taken_once(ctx: Context, services: Services) -> None:
    budget = await new_budget(ctx)
    results = await asyncio.gather(*(ask(ctx, budget) for _ in range(5)), return_exceptions=True)
    assert sorted(type(r).__name__ for r in results) == ["Override", *["SignalError"] * 4]
    assert len(await told(services)) == 1


async def test_open_overrides_are_bounded_for_each_requester_and_for_the_org(
    database_url: str, sink: RecordingSink
) -> None:
    limits = Limits(override_requester_open_max=2, override_open_max=3)
    async with services_for(database_url, limits=limits, sink=sink) as services:
        alice, carl, dora = (context(services, user=user) for user in ("alice", "carl", "dora"))
        budget = await new_budget(alice)
        first = await ask(alice, budget, amount="1")
        await ask(alice, budget, amount="2")
        assert (await refusal(ask(alice, budget, amount="3"))).code == "rate_limited"
        await ask(carl, budget, amount="3")
        assert (await refusal(ask(dora, budget, amount="4"))).code == "rate_limited"
        await review(carl, first)
        assert (await refusal(ask(dora, budget, amount="4"))).code == "rate_limited"
        await review(carl, first, "revoke")
        await ask(dora, budget, amount="4")
        assert (await refusal(ask(alice, budget, amount="5"))).code == "rate_limited"
        assert len(await listed(alice, budget_id=budget.budget_id, status="pending")) == 3


# Approved by policy ---------------------------------------------------------------------------------------------------


async def test_what_a_policy_approves_by_itself_counts_at_once(ctx: Context, services: Services) -> None:
    budget = await new_budget(ctx, OverridePolicy(auto_approve_percent=10))
    assert not (await checked(services, estimated_cost="110"))["approved"]
    before = await services.database.fetchval("SELECT version FROM org_catalogue")
    asked = await ask(ctx, budget, amount="10")
    assert await services.database.fetchval("SELECT version FROM org_catalogue") == before + 1
    assert (asked.status, asked.reviewed_by, asked.starts_at) == ("approved", "policy", asked.requested_at)
    requested, approved = await told(services)
    assert (requested[0], requested[1]["actor"], requested[1]["override"]["status"]) == (
        "override.requested", "alice", "pending",
    )  # fmt: skip
    assert (approved[0], approved[1]["actor"], approved[1]["override"]["status"]) == (
        "override.approved", "policy", "approved",
    )  # fmt: skip
    first, second = await trail(services)
    assert [(e["action"], e["actor"], e["reason"]) for e in (first, second)] == [
        ("requested", "alice", "the launch"),
        ("approved", "policy", "at or below what the budget's policy approves by itself"),
    ]
    assert (second["before"], second["after"]["status"]) == (first["after"], "approved")
    answer = await checked(services, estimated_cost="110")
    assert (answer["approved"], answer["budgets"][0]["limit"]) == (True, "110")


async def test_many_small_requests_do_not_add_up_beyond_what_a_policy_approves(
    ctx: Context, services: Services
) -> None:
    budget = await new_budget(ctx, OverridePolicy(auto_approve_percent=10), type="user")
    people = [context(services, user=f"p{n}") for n in range(4)]
    asked = [await ask(person, budget, entity_id="u1", amount="4") for person in people]
    assert [o.status for o in asked] == ["approved", "approved", "pending", "pending"]
    # What was taken back is not given again by nobody.
    await review(approver(services), asked[0], "revoke")
    assert (await ask(ctx, budget, entity_id="u1", amount="4.5")).status == "pending"
    assert (await ask(ctx, budget, entity_id="u1", amount="2")).status == "approved"
    assert (await ask(ctx, budget, entity_id="u1", amount="0.000000001")).status == "pending"
    # What people approved is not counted against the policy, and other entities have their own.
    await review(approver(services), asked[2])
    assert (await ask(ctx, budget, entity_id="u2", amount="10")).status == "approved"


async def test_small_requests_at_once_do_not_add_up_either(ctx: Context, services: Services) -> None:
    budget = await new_budget(ctx, OverridePolicy(auto_approve_percent=10))
    people = [context(services, user=f"p{n}") for n in range(8)]
    asked = await asyncio.gather(*(ask(person, budget, amount="3") for person in people))
    assert sorted(o.status for o in asked) == ["approved"] * 3 + ["pending"] * 5


async def test_a_policy_without_automatic_approval_approves_nothing(ctx: Context) -> None:
    budget = await new_budget(ctx, OverridePolicy(auto_approve_percent=0))
    assert (await ask(ctx, budget, amount="0.000000001")).status == "pending"


async def test_a_policy_approves_no_more_than_it_allows_at_all(ctx: Context) -> None:
    budget = await new_budget(ctx, OverridePolicy(max_percent=5, auto_approve_percent=100))
    assert (await refusal(ask(ctx, budget, amount="6"))).field == "amount"
    assert (await ask(ctx, budget, amount="5")).status == "approved"


# Reviewing ------------------------------------------------------------------------------------------------------------


async def test_somebody_else_approves_and_the_very_next_check_knows(ctx: Context, services: Services) -> None:
    budget = await new_budget(ctx)
    asked = await ask(ctx, budget, amount="50")
    assert not (await checked(services, estimated_cost="100.1"))["approved"]
    approved = await review(approver(services), asked, comment="go")
    assert (approved.status, approved.reviewed_by, approved.comment) == ("approved", "bob", "go")
    assert approved.starts_at == approved.reviewed_at
    assert approved.starts_at is not None and approved.starts_at > asked.requested_at
    answer = msgspec.convert(await checked(services, estimated_cost="150"), BudgetDecision)
    assert (answer.approved, answer.budgets[0].limit, answer.budgets[0].base_limit) == (True, "150", "100")
    _, (name, data) = await told(services)
    assert (name, data["actor"], data["override"]["comment"]) == ("override.approved", "bob", "go")
    _, entry = await trail(services)
    assert (entry["action"], entry["actor"], entry["reason"]) == ("approved", "bob", "go")
    assert (entry["before"]["status"], entry["after"]["status"]) == ("pending", "approved")


async def test_a_denied_request_raises_nothing(ctx: Context, services: Services) -> None:
    budget = await new_budget(ctx)
    denied = await review(approver(services), await ask(ctx, budget), "deny", "not now")
    assert (denied.status, denied.starts_at, denied.comment) == ("denied", None, "not now")
    assert not (await checked(services, estimated_cost="100.1"))["approved"]
    assert [name for name, _ in await told(services)] == ["override.requested", "override.denied"]


async def test_a_revoked_override_raises_nothing_from_then_on(ctx: Context, services: Services) -> None:
    budget = await new_budget(ctx)
    asked = await ask(ctx, budget)
    approved = await review(approver(services), asked)
    await checked(services, estimated_cost="105")
    revoked = await review(approver(services, "carl"), asked, "revoke", "over")
    assert (revoked.status, revoked.starts_at, revoked.reviewed_by) == ("revoked", approved.starts_at, "carl")
    answer = await checked(services, estimated_cost="0.01")
    assert (answer["approved"], answer["budgets"][0]["limit"]) == (False, "100")
    assert [name for name, _ in await told(services)] == [
        "override.requested", "override.approved", "override.revoked",
    ]  # fmt: skip


@pytest.mark.parametrize("decision", ["approve", "deny", "revoke"])
async def test_nobody_reviews_their_own(ctx: Context, services: Services, decision: str) -> None:
    budget = await new_budget(ctx, OverridePolicy(auto_approve_percent=1))
    asked = await ask(ctx, budget, amount="1" if decision == "revoke" else "10")
    error = await refusal(review(ctx, asked, decision))
    assert error.code == "forbidden"
    assert (await listed(ctx))[0] == (asked.override_id, asked.status)


async def test_nobody_reviews_their_own_under_another_form_of_their_name(ctx: Context, services: Services) -> None:
    """The trail knows people by name or by surrogate; whoever asked as one may not approve as the other."""
    budget = await new_budget(ctx)
    surrogate = services.vault.surrogate("default", "alice")
    behind = Context(services, Caller("default", "alice", frozenset({"admin"}), key=surrogate))
    for asker, reviewer, amount in ((ctx, behind, "1"), (behind, ctx, "2")):
        asked = await ask(asker, budget, amount=amount)
        assert (await refusal(review(reviewer, asked))).code == "forbidden"


async def test_nobody_without_a_name_reviews_what_somebody_without_a_name_asked(
    ctx: Context, services: Services
) -> None:
    budget = await new_budget(ctx)
    nobody = context(services, user=None)
    asked = await ask(nobody, budget)
    assert asked.requested_by == "anonymous"
    assert (await refusal(review(nobody, asked))).code == "forbidden"
    assert (await review(approver(services), asked)).status == "approved"
    named = await ask(ctx, budget)
    assert (await review(nobody, named)).reviewed_by == "anonymous"


@pytest.mark.parametrize(
    ("needed", "held", "may"),
    [
        (["approver"], ["approver"], True),
        (["approver"], ["finance", "manager"], False),
        (["finance"], ["approver"], False),
        (["finance"], ["approver", "finance"], True),
        (["finance"], ["admin"], True),
        ([], ["approver"], False),
        ([], ["admin"], True),
    ],
)
async def test_the_budget_says_who_approves(
    ctx: Context, services: Services, needed: list[str], held: list[str], may: bool
) -> None:
    budget = await new_budget(ctx, OverridePolicy(approver_roles=needed))
    asked = await ask(ctx, budget)
    work = review(approver(services, "bob", *held), asked)
    if may:
        assert (await work).status == "approved"
    else:
        assert (await refusal(work)).code == "forbidden"
        assert (await listed(ctx))[0][1] == "pending"


STEPS: dict[str, list[Any]] = {
    "pending": [],
    "approved": ["approve"],
    "denied": ["deny"],
    "revoked": ["approve", "revoke"],
}


@pytest.mark.parametrize("status", STEPS)
@pytest.mark.parametrize("decision", ["approve", "deny", "revoke"])
async def test_only_what_waits_is_decided_and_only_what_is_approved_revoked(
    ctx: Context, services: Services, status: str, decision: Any
) -> None:
    asked = await ask(ctx, await new_budget(ctx))
    for step in STEPS[status]:
        await review(approver(services), asked, step)
    count = len(await told(services))
    if (status, decision) in (("pending", "approve"), ("pending", "deny"), ("approved", "revoke")):
        await review(approver(services, "carl"), asked, decision)
        return
    error = await refusal(review(approver(services, "carl"), asked, decision))
    assert (error.code, error.field) == ("conflict", "override_id")
    assert await listed(ctx) == [(asked.override_id, status)]
    assert len(await told(services)) == len(await trail(services)) == count


async def test_of_approvers_at_once_one_wins(ctx: Context, services: Services) -> None:
    budget = await new_budget(ctx)
    for round_ in range(5):
        asked = await ask(ctx, budget, amount=f"1.{round_}")
        decisions: list[Any] = ["approve", "deny", "approve", "deny"]
        reviews = [review(approver(services, f"r{n}"), asked, d) for n, d in enumerate(decisions)]
        results = await asyncio.gather(*reviews, return_exceptions=True)
        won = [r for r in results if isinstance(r, Override)]
        lost = [r for r in results if isinstance(r, SignalError)]
        assert (len(won), [e.code for e in lost]) == (1, ["conflict"] * 3)
        assert (await listed(ctx))[0] == (asked.override_id, won[0].status)
    assert len(await told(services)) == len(await trail(services)) == 10


async def test_what_has_changed_since_it_was_asked_for_is_looked_at_again(ctx: Context, services: Services) -> None:
    changes: list[dict[str, Any]] = [
        {"limit": "10"},
        {"enforcement": "warn"},
        {"active": False},
        {"override_policy": OverridePolicy(max_percent=5)},
        {"override_policy": OverridePolicy(max_hours=1)},
    ]
    for n, change in enumerate(changes):
        budget = await new_budget(ctx, name=f"b{n}")
        asked = await ask(ctx, budget, until=ctx.now() + 2 * HOUR)
        await update_budget(ctx, UpdateBudget(budget_id=budget.budget_id, version=1, **change))
        error = await refusal(review(approver(services), asked))
        assert (error.code, error.field) == ("conflict", "override_id"), change
        assert (await review(approver(services), asked, "deny")).status == "denied"


async def test_what_is_no_override_is_not_found(ctx: Context, services: Services) -> None:
    asked = await ask(ctx, await new_budget(ctx))
    error = await refusal(review_override(ctx, ReviewOverride(override_id="x", decision="deny")))
    assert (error.code, error.field) == ("invalid_request", "override_id")
    error = await refusal(review_override(ctx, ReviewOverride(override_id=NOBODY, decision="deny")))
    assert (error.code, error.field) == ("not_found", "override_id")
    upper = ReviewOverride(override_id=asked.override_id.upper(), decision="deny")
    assert (await review_override(approver(services), upper)).status == "denied"


async def test_another_org_sees_and_touches_nothing(ctx: Context, services: Services) -> None:
    budget = await new_budget(ctx)
    asked = await ask(ctx, budget)
    other = context(services, org="other", user="bob")
    assert (await refusal(ask(other, budget))).code == "not_found"
    assert (await refusal(review(other, asked))).code == "not_found"
    assert await listed(other) == []
    assert await listed(ctx) == [(asked.override_id, "pending")]


# Ending and history ---------------------------------------------------------------------------------------------------


async def _ended(services: Services, *overrides: Override) -> None:
    ids = [o.override_id for o in overrides]
    await services.database.execute(
        "UPDATE override SET ends_at = ledger_clock() WHERE override_id = ANY ($1::uuid[])", ids
    )


async def test_what_has_ended_is_marked_once_whoever_comes_first(database_url: str, sink: RecordingSink) -> None:
    async with services_for(database_url, limits=Limits(override_expiry_batch_max=4), sink=sink) as services:
        ctx = context(services)
        other = context(services, org="other")
        budgets = {c.org: await new_budget(c) for c in (ctx, other)}
        asked = [await ask(c, budgets[c.org], amount=f"1.{n}") for c in (ctx, other) for n in range(7)]
        await review(approver(services), asked[0])
        await review(approver(services), asked[1], "deny")
        await _ended(services, *asked[:-1])
        before = len(await told(services))
        counts = await asyncio.gather(*(expire_overrides(services) for _ in range(4)))
        assert sum(counts) == 12
        events = (await told(services))[before:]
        assert {name for name, _ in events} == {"override.expired"}
        assert {data["actor"] for _, data in events} == {"policy:expiry"}
        ended = {o.override_id for o in (asked[0], *asked[2:-1])}
        assert len(events) == 12 and {data["override"]["override_id"] for _, data in events} == ended
        entries = [e for e in await trail(services) if e["action"] == "expired"]
        assert {(e["actor"], e["before"]["status"], e["after"]["status"]) for e in entries} == {
            ("policy:expiry", "pending", "expired"),
            ("policy:expiry", "approved", "expired"),
        }
        assert len(entries) == 12
        assert await expire_overrides(services) == 0
        assert await listed(ctx, status="denied") == [(asked[1].override_id, "denied")]
        assert await listed(other, status="pending") == [(asked[-1].override_id, "pending")]


async def test_what_has_ended_cannot_be_decided_whether_it_says_so_or_not(ctx: Context, services: Services) -> None:
    budget = await new_budget(ctx)
    waiting, live = await ask(ctx, budget, amount="1"), await ask(ctx, budget, amount="2")
    await review(approver(services), live)
    await _ended(services, waiting, live)
    cases: list[tuple[Override, Any]] = [(waiting, "approve"), (waiting, "deny"), (live, "revoke")]
    for asked, decision in cases:
        assert (await refusal(review(approver(services), asked, decision))).code == "conflict"
    assert await expire_overrides(services) == 2
    for asked, decision in cases:
        assert (await refusal(review(approver(services), asked, decision))).code == "conflict"


async def test_a_review_and_the_expiry_never_both_decide(ctx: Context, services: Services) -> None:
    budget = await new_budget(ctx)
    for n in range(6):
        asked = await ask(ctx, budget, amount=f"1.{n}")
        await _ended(services, *[asked] * (n % 2))
        result, count = await asyncio.gather(
            review(approver(services), asked), expire_overrides(services), return_exceptions=True
        )
        assert isinstance(result, Override) != bool(count)
    names = [name for name, _ in await told(services)]
    assert names.count("override.approved") == names.count("override.expired") == 3


async def test_the_list_is_newest_first_in_pages_with_all_that_happened(ctx: Context, services: Services) -> None:
    budget, users = await new_budget(ctx), await new_budget(ctx, name="users", type="user")
    first = await ask(ctx, budget, amount="1")
    second = await ask(ctx, users, entity_id="u1")
    third = await ask(ctx, users, entity_id="u2")
    await review(approver(services), first, comment="yes")
    await review(approver(services, "carl"), first, "revoke", "no more")
    page = await list_overrides(ctx, ListOverrides(limit=2))
    assert [o.override_id for o in page.overrides] == [third.override_id, second.override_id]
    rest = await list_overrides(ctx, ListOverrides(limit=2, cursor=page.next_cursor))
    assert rest.next_cursor is None
    (found,) = rest.overrides
    assert [(s.actor, s.action, s.reason) for s in found.history] == [
        ("alice", "requested", "the launch"),
        ("bob", "approved", "yes"),
        ("carl", "revoked", "no more"),
    ]
    assert (found.status, found.reviewed_by, found.comment) == ("revoked", "carl", "no more")
    assert [s.at for s in found.history] == sorted(s.at for s in found.history)
    assert await listed(ctx, budget_id=users.budget_id, entity_id="u2") == [(third.override_id, "pending")]
    assert await listed(ctx, status="revoked") == [(first.override_id, "revoked")]
    assert await listed(ctx, status="approved") == []
    assert (await refusal(list_overrides(ctx, ListOverrides(cursor="nonsense")))).field == "cursor"
    assert (await refusal(list_overrides(ctx, ListOverrides(budget_id="nonsense")))).field == "budget_id"
