"""apply_policies: a document as a whole or nothing, shown first, the same twice; and what a new org begins with."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from agent.default_policies import BadPolicies, for_new_orgs
from handlers.context import Caller, Context, Services
from handlers.enforcer.budgets import create_budget, list_budgets, update_budget
from handlers.enforcer.policies import apply_policies, revert_policies
from handlers.enforcer.status import get_budget_status
from schemas.budget import Budget, CreateBudget, GetBudgetStatus, ListBudgets, UpdateBudget
from schemas.policy import AppliedPolicies, ApplyPolicies
from store import budgets as budget_store
from tests.handlers.test_policy_file import budgets as any_budget
from tests.handlers.test_policy_file import draft
from tests.support.ledger import examples
from tests.support.services import apply_usage, context, gpt, outbox_events, refusal, services_for, user

ROOT = Path(__file__).parent.parent.parent
DEFAULTS = ROOT / "deploy" / "policies" / "default.yaml"
DOCUMENT = """
version: 1
defaults: {alerts: [50%, 90%]}
policies:
  - {name: engineering, scope: team:engineering, limit: $500/month, enforcement: block}
  - {name: each user, scope: "user:*", limit: 2M tokens/day, enforcement: notify_only}
  - {name: research, scope: team:research, limit: $50/day, enforcement: rate_limit, rate: 60 requests/minute}
"""


@pytest_asyncio.fixture
async def agents(database_url: str) -> AsyncIterator[list[Services]]:
    """Four agents on one database."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(services_for(database_url)) for _ in range(4)]


async def applied(ctx: Context, document: str = DOCUMENT, **fields: Any) -> AppliedPolicies:
    return await apply_policies(ctx, ApplyPolicies(document=document, **fields))


async def listed(ctx: Context, **fields: Any) -> dict[str, Budget]:
    return {b.name: b for b in (await list_budgets(ctx, ListBudgets(**fields))).budgets}


def actions(reply: AppliedPolicies) -> dict[str, str]:
    return {change.name: change.action for change in reply.diff}


async def audit_entries(services: Services) -> list[dict[str, Any]]:
    rows = await services.database.fetch("SELECT content FROM audit ORDER BY org_id, seq")
    return [json.loads(row["content"]) for row in rows]


async def footprint(services: Services) -> dict[str, Any]:
    """Everything that a change would change."""
    tables = ("budget", "budget_window", "policy_document", "audit", "outbox", "org_catalogue")
    return {t: await services.database.fetch(f"SELECT * FROM {t} ORDER BY 1, 2") for t in tables}


async def test_a_dry_run_shows_the_diff_and_changes_nothing(ctx: Context, services: Services) -> None:
    reply = await applied(ctx, dry_run=True)
    assert (reply.applied, reply.version, reply.counts) == (False, 0, {"create": 3})
    research = reply.diff[2]
    assert (research.name, research.action, research.budget_id) == ("research", "create", None)
    assert {key: change.after for key, change in research.changes.items()} == {
        "name": "research",
        "scope": "team:research",
        "limit": "$50/day",
        "enforcement": "throttle",
        "rate": "60 requests/minute",
        "alerts": [50, 90],
    }
    assert await footprint(services) == {name: [] for name in await footprint(services)}


async def test_a_document_is_applied_told_audited_and_kept(ctx: Context, services: Services) -> None:
    reply = await applied(ctx, reason="first")
    assert (reply.applied, reply.version, reply.errors) == (True, 1, [])
    found = await listed(ctx)
    assert set(found) == {"engineering", "each user", "research", "research (rate)"}
    assert all(budget.managed for budget in found.values())
    research, rate = found["research"], found["research (rate)"]
    assert research.rate is not None
    assert (research.rate.limit, research.rate.unit, research.rate.period) == ("60", "requests", "minute")
    assert (rate.gate_id, rate.enforcement, rate.limit) == (research.budget_id, "throttle", "60")
    events = await outbox_events(services)
    assert [(name, data["action"], data["after"]["name"]) for name, data in events] == [
        ("budget.changed", "created", name) for name in ("engineering", "each user", "research")
    ]
    *budgets, policy = await audit_entries(services)
    assert [(e["entity"], e["action"], e["reason"], e["actor"]) for e in budgets] == [
        ("budget", "created", "first", "alice")
    ] * 3
    assert (policy["entity"], policy["entity_id"], policy["action"]) == ("policy", "1", "applied")
    assert policy["before"] == {"version": 0, "policies": []}
    assert {e["name"] for e in policy["after"]["policies"]} == {"engineering", "each user", "research"}
    (kept,) = await services.database.fetch("SELECT * FROM policy_document")
    assert (kept["version"], kept["document"], kept["applied_by"]) == (1, DOCUMENT, "alice")
    assert kept["sha256"] == policy["after"]["sha256"]


async def test_the_same_document_again_changes_nothing_at_all(ctx: Context, services: Services) -> None:
    await applied(ctx)
    before = await footprint(services)
    for prune, dry_run in ((False, False), (True, False), (True, True)):
        reply = await applied(ctx, prune=prune, dry_run=dry_run)
        assert (reply.version, reply.counts) == (1, {"unchanged": 3})
    commented = await applied(ctx, "# the same\n" + DOCUMENT)
    assert (commented.applied, commented.counts) == (True, {"unchanged": 3})
    assert await footprint(services) == before


async def test_what_may_change_is_updated_and_what_may_not_is_replaced(ctx: Context, services: Services) -> None:
    await applied(ctx)
    before = await listed(ctx)
    await apply_usage(services, gpt(team_id="engineering", user_id="u1"))
    changed = (
        DOCUMENT.replace("$500/month", "$600/month")
        .replace("2M tokens/day", "2M tokens/week")
        .replace("60 requests/minute", "90 requests/minute")
    )
    reply = await applied(ctx, changed)
    assert actions(reply) == {"engineering": "update", "each user": "replace", "research": "update"}
    assert [{k: (c.before, c.after) for k, c in d.changes.items()} for d in reply.diff] == [
        {"limit": ("$500/month", "$600/month")},
        {"limit": ("2000000 tokens/day", "2000000 tokens/week")},
        {"rate": ("60 requests/minute", "90 requests/minute")},
    ]
    after = await listed(ctx)
    assert after["engineering"].budget_id == before["engineering"].budget_id
    assert (after["engineering"].version, after["engineering"].limit) == (2, "600")
    window = after["engineering"].window
    assert window is not None and window.spent == "0.0035"  # What was spent under the old limit still counts.
    assert after["each user"].budget_id != before["each user"].budget_id
    assert after["research (rate)"].budget_id == before["research (rate)"].budget_id
    assert after["research (rate)"].limit == "90"
    gone = [b for b in (await list_budgets(ctx, ListBudgets(deleted=True))).budgets if b.deleted_at is not None]
    assert [(b.budget_id, b.active) for b in gone] == [(before["each user"].budget_id, False)]
    told = [(d["action"], d["after"]["name"]) for _, d in (await outbox_events(services))[3:] if "action" in d]
    assert told == [
        ("updated", "engineering"),
        ("deleted", "each user"),
        ("created", "each user"),
        ("updated", "research"),
    ]
    assert actions(await applied(ctx, changed)) == dict.fromkeys(actions(reply), "unchanged")


async def test_a_throttle_that_becomes_a_block_loses_its_rate(ctx: Context) -> None:
    await applied(ctx)
    blocked = DOCUMENT.replace("enforcement: rate_limit, rate: 60 requests/minute", "enforcement: block")
    assert actions(await applied(ctx, blocked))["research"] == "update"
    assert "research (rate)" not in await listed(ctx)
    assert actions(await applied(ctx))["research"] == "update"
    found = await listed(ctx)
    assert found["research (rate)"].gate_id == found["research"].budget_id


BAD = [
    "  - {name: bad, scope: org, limit: unlimited}\n",
    "  - {name: engineering, scope: org, limit: $5/day}\n",
    "  - {name: bad, scope: org, limit: $5/day, enforcement: throttle}\n",
    "  - {name: bad, scope: org, limit: $5/day, colour: red}\n",
    "  - {name: by hand, scope: org, limit: $5/day}\n",
]


@pytest.mark.parametrize("bad", BAD)
async def test_one_bad_entry_and_nothing_changes(ctx: Context, services: Services, bad: str) -> None:
    await create_budget(ctx, CreateBudget(name="by hand", type="global", limit="1"))
    before = await footprint(services)
    error = await refusal(applied(ctx, DOCUMENT + bad))
    assert error.code == "invalid_request" and error.field is not None
    assert error.field.startswith("policies[3].")
    reply = await applied(ctx, DOCUMENT + bad, dry_run=True)
    assert not reply.applied
    assert [e.field for e in reply.errors] == [error.field]
    assert await footprint(services) == before


async def test_an_apply_counts_the_errors_and_a_dry_run_lists_them(ctx: Context) -> None:
    document = "[{name: a, scope: x, limit: y}, {name: b}]"
    error = await refusal(applied(ctx, document))
    assert error.field == "policies[0].scope" and "3 more errors" in error.message
    assert len((await applied(ctx, document, dry_run=True)).errors) == 4


@pytest.mark.parametrize("fields", [{}, {"document": "[]", "policies": []}])
async def test_a_request_has_a_document_or_policies(ctx: Context, fields: dict[str, Any]) -> None:
    error = await refusal(apply_policies(ctx, ApplyPolicies(**fields)))
    assert (error.code, error.field) == ("invalid_request", "document")


async def test_policies_as_json_are_the_same_as_their_text(ctx: Context) -> None:
    policies = [{"name": "engineering", "scope": "team:engineering", "limit": "$500/month", "alerts": [50, 90]}]
    await apply_policies(ctx, ApplyPolicies(policies=policies))
    assert (await applied(ctx)).counts == {"unchanged": 1, "create": 2}
    huge = [{"name": "x", "scope": "org", "limit": "$5/day", "prefer": ["m" * 256] * 1_200}]
    assert (await refusal(apply_policies(ctx, ApplyPolicies(policies=huge)))).code == "too_large"


async def test_a_document_that_names_a_user_is_kept_without_the_name(ctx: Context, services: Services) -> None:
    document = "# for ann\n- {name: one user, scope: user:ann, limit: $5/day}"
    reply = await applied(ctx, document)
    assert reply.diff[0].changes["scope"].after == f"user:{user('ann')}"
    assert (await applied(ctx, document)).counts == {"unchanged": 1}
    rows = await services.database.fetch("SELECT document FROM policy_document")
    assert [json.loads(row["document"])["policies"][0]["scope"] for row in rows] == [f"user:{user('ann')}"]
    assert "ann" not in str(await footprint(services)).replace("channel", "")
    last = (await audit_entries(services))[-1]
    await applied(ctx, "[]", prune=True)
    await revert_policies(ctx, last["after"], reason="back")
    assert set(await listed(ctx, type="user", entity_id="ann")) == {"one user"}


async def test_where_plain_user_names_are_refused_policies_cannot_name_one(ctx: Context, services: Services) -> None:
    async with services.database.transaction() as connection:
        await budget_store.put_setting(connection, "default", "user_names", "refuse")
        await budget_store.bump(connection, "default")
    error = await refusal(applied(ctx, "- {name: one user, scope: user:ann, limit: $5/day}"))
    assert (error.code, error.field) == ("invalid_request", "policies[0].scope")
    await applied(ctx, f"- {{name: one user, scope: user:{user('ann')}, limit: $5/day}}")


async def test_what_the_audit_trail_no_longer_holds_is_not_taken_for_nothing(ctx: Context) -> None:
    await applied(ctx)
    error = await refusal(revert_policies(ctx, {"omitted_bytes": 200_000, "sha256": "x"}, reason="back"))
    assert (error.code, error.field) == ("invalid_request", "before")
    assert len(await listed(ctx)) == 4


async def test_pruning_takes_what_is_no_longer_named_and_nothing_made_by_hand(ctx: Context) -> None:
    await applied(ctx)
    hand = await create_budget(ctx, CreateBudget(name="by hand", type="global", limit="1"))
    one = "- {name: engineering, scope: team:engineering, limit: $500/month, alerts: [50, 90]}"
    assert (await applied(ctx, one)).counts == {"unchanged": 1}
    assert len(await listed(ctx)) == 5
    shown = await applied(ctx, one, prune=True, dry_run=True)
    assert actions(shown) == {"engineering": "unchanged", "each user": "delete", "research": "delete"}
    await applied(ctx, one, prune=True)
    assert set(await listed(ctx)) == {"engineering", "by hand"}
    await applied(ctx, "[]", prune=True)
    assert [b.budget_id for b in (await listed(ctx)).values()] == [hand.budget_id]


async def test_what_was_changed_by_hand_is_put_right_again(ctx: Context) -> None:
    await applied(ctx)
    found = (await listed(ctx))["engineering"]
    await update_budget(ctx, UpdateBudget(budget_id=found.budget_id, version=1, limit="1", fallback_model="m"))
    reply = await applied(ctx)
    changes = next(d.changes for d in reply.diff if d.name == "engineering")
    assert {k: (c.before, c.after) for k, c in changes.items()} == {
        "limit": ("$1/month", "$500/month"),
        "fallback": ("m", None),
    }
    assert (await listed(ctx))["engineering"].fallback_model is None


async def test_a_manager_applies_policies_of_own_teams_only(services: Services, ctx: Context) -> None:
    caller = Caller("default", "mia", frozenset({"manager"}), frozenset({"engineering"}))
    manager = Context(services, caller)
    own = "- {name: engineering, scope: team:engineering, limit: $500/month}"
    await applied(manager, own)
    await applied(ctx, own + "\n- {name: research, scope: team:research, limit: $5/day}")
    before = await footprint(services)
    for document in (DOCUMENT, own.replace("$500", "$600").replace("team:engineering", "org")):
        for dry_run in (True, False):
            assert (await refusal(applied(manager, document, dry_run=dry_run))).code == "forbidden"
    assert await footprint(services) == before
    # What a manager prunes is what a manager may change.
    assert actions(await applied(manager, "[]", prune=True)) == {"engineering": "delete"}
    assert set(await listed(ctx)) == {"research"}


async def test_agents_that_apply_at_once_change_everything_once(agents: list[Services]) -> None:
    results = await asyncio.gather(*(applied(context(agent)) for agent in agents))
    assert {r.version for r in results} == {1}
    found = await listed(context(agents[0]))
    assert {b.version for b in found.values()} == {1} and len(found) == 4
    events = await outbox_events(agents[0])
    assert len(events) == 3
    for agent in agents:
        assert (await applied(context(agent), dry_run=True)).counts == {"unchanged": 3}


async def test_of_two_documents_applied_at_once_one_comes_after_the_other(agents: list[Services]) -> None:
    documents = [DOCUMENT.replace("$500", f"${n}00") for n in (6, 7, 8, 9)]
    await asyncio.gather(*(applied(context(a), d, prune=True) for a, d in zip(agents, documents, strict=True)))
    history = [e for e in await audit_entries(agents[0]) if e["entity"] == "policy"]
    assert [e["before"]["version"] for e in history] == [0, 1, 2, 3]
    for earlier, later in itertools.pairwise(history):
        assert later["before"]["policies"] == earlier["after"]["policies"]
    assert len(await listed(context(agents[0]))) == 4


async def test_a_revert_restores_what_the_audit_trail_says_was_before(ctx: Context, services: Services) -> None:
    hand = await create_budget(ctx, CreateBudget(name="by hand", type="global", limit="1"))
    await applied(ctx)
    # Not pruned, so what was before is more than the document that was applied before.
    await applied(ctx, "- {name: more, scope: org, limit: $9/day}")
    await applied(ctx, '- {name: each user, scope: "user:*", limit: $1/day}', prune=True)
    last = [e for e in await audit_entries(services) if e["entity"] == "policy"][-1]
    assert len(last["before"]["policies"]) == 4
    reply = await revert_policies(ctx, last["before"], reason="spending doubled")
    assert reply.applied
    assert set(await listed(ctx)) == {"engineering", "each user", "research", "research (rate)", "more", "by hand"}
    again = [e for e in await audit_entries(services) if e["entity"] == "policy"][-1]
    assert again["after"]["policies"] == last["before"]["policies"]
    assert (again["reason"], again["before"]["policies"]) == ("spending doubled", last["after"]["policies"])
    await revert_policies(ctx, None, reason="to the beginning")
    assert [b.budget_id for b in (await listed(ctx)).values()] == [hand.budget_id]


async def test_the_ledger_keeps_what_a_policy_replaced(ctx: Context, services: Services) -> None:
    await applied(ctx)
    old = (await listed(ctx))["engineering"]
    await apply_usage(services, gpt(team_id="engineering"))
    await applied(ctx, DOCUMENT.replace("$500/month", "$500/week"))
    (kept,) = (await get_budget_status(ctx, GetBudgetStatus(budget_id=old.budget_id))).budgets
    assert (kept.window.spent, kept.why.endswith(", deleted"), kept.effect) == ("0.0035", True, "nothing")
    assert kept.budget.deleted_at is not None


@given(st.lists(any_budget(), max_size=5, unique_by=lambda b: b.name))
@examples(12)
def test_whatever_is_applied_is_unchanged_the_second_time(database_url: str, wanted: list[CreateBudget]) -> None:
    from handlers.enforcer.policy_file import complete

    async def twice() -> None:
        async with services_for(database_url) as services:
            ctx = context(services, org=services.new_id())
            policies = [complete(draft(request)) for request in wanted]
            first = await apply_policies(ctx, ApplyPolicies(policies=policies, prune=True))
            assert first.counts == ({"create": len(wanted)} if wanted else {})
            before = await footprint(services)
            second = await apply_policies(ctx, ApplyPolicies(policies=policies, prune=True))
            assert second.counts == ({"unchanged": len(wanted)} if wanted else {})
            assert await footprint(services) == before

    asyncio.run(twice())


async def test_a_new_org_begins_with_the_default_policies_once(agents: list[Services]) -> None:
    for agent in agents:
        agent.on_new_org = for_new_orgs(DEFAULTS)
    await asyncio.gather(*(agent.catalogue(org) for agent in agents for org in ("acme", "globex")))
    for org in ("acme", "globex"):
        found = await listed(context(agents[1], org=org))
        assert set(found) == {"tokens a day", "tokens a month", "cost a month"}
        assert {b.enforcement for b in found.values()} == {"warn"} and all(b.managed for b in found.values())
    entries = [e for e in await audit_entries(agents[0]) if e["entity"] == "policy"]
    assert [(e["org"], e["actor"], e["before"]["version"]) for e in entries] == [
        ("acme", "policy:default", 0),
        ("globex", "policy:default", 0),
    ]
    assert len(await outbox_events(agents[0])) == 6
    assert {known.version for a in agents if (known := a.catalogues.known("acme")) is not None} == {1}


async def test_the_defaults_come_before_the_first_change_and_never_back(services: Services) -> None:
    services.on_new_org = for_new_orgs(DEFAULTS)
    ctx = context(services)
    await create_budget(ctx, CreateBudget(name="mine", type="global", limit="1"))
    assert len(await listed(ctx)) == 4
    await applied(ctx, "[]", prune=True)
    async with services_for_same(services) as other:
        other.on_new_org = services.on_new_org
        assert set(await listed(context(other))) == {"mine"}


def services_for_same(services: Services) -> Any:
    return services_for(services.database._dsn)  # pyright: ignore[reportPrivateUsage]


async def test_defaults_that_could_not_be_given_are_given_later(services: Services) -> None:
    real, calls = for_new_orgs(DEFAULTS), 0

    async def failing_once(given_to: Services, org: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("away")
        await real(given_to, org)

    services.on_new_org = failing_once
    with pytest.raises(OSError, match="away"):
        await services.catalogue("acme")
    assert len((await services.catalogue("acme")).by_id) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {name: a, scope: org, limit: lots}", "policies[0].limit"),
        ("[", "line"),
        ("x" * 300_000, "characters"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_file_of_default_policies_says_why(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "policies.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadPolicies) as refused:
        for_new_orgs(path)
    assert said in str(refused.value) and str(path) in str(refused.value)
