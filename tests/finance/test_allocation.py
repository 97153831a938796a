"""Allocation: parts that sum to the total to the nano, rules in their order, and what is left told."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.adjustments.adjust import adjust_usage
from handlers.context import Context, Services
from handlers.finance.allocate import allocate_costs
from handlers.finance.allocation import allocate, shares_of
from handlers.finance.rules import list_allocation_rules, set_allocation_rules
from handlers.finance.shares import apportion, percent_text, whole
from handlers.management.audit import get_audit_trail
from schemas.adjustment import AdjustUsage
from schemas.allocation import (
    AllocateCosts,
    Allocation,
    AllocationRule,
    ListAllocationRules,
    SetAllocationRules,
    SharedUsage,
)
from schemas.audit import GetAuditTrail
from store.finance import BorneSum
from tests.finance.books import posted, text
from tests.finance.test_invoice import put_rate
from tests.support.ledger import examples
from tests.support.services import apply_usage, context, gpt, refusal, user

JAN = datetime(2026, 1, 1, tzinfo=UTC)
FEB = datetime(2026, 2, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
PLATFORM = SharedUsage(project_id="platform")
NOBODYS = SharedUsage(team_id=None)


async def allocated(ctx: Context, **fields: Any) -> Allocation:
    """An allocation of January, in full, that adds up."""
    values: dict[str, Any] = {"month": "2026-01", "by": "team"} | fields
    found = await allocate_costs(ctx, AllocateCosts(**values))
    if found.next_cursor is None and "cursor" not in fields:
        for cost, total in (("cost", found.total), ("list_cost", found.total_list)):
            parts = [Decimal(getattr(item, cost)) for item in found.allocations]
            assert sum(parts) + Decimal(getattr(found.unallocated, cost)) == Decimal(total)
        for item in found.allocations:
            assert Decimal(item.direct) + sum(Decimal(share.cost) for share in item.shares) == Decimal(item.cost)
        for shared in found.shared:
            assert Decimal(shared.allocated) + Decimal(shared.unallocated) == Decimal(shared.cost)
            given_ = [s.cost for item in found.allocations for s in item.shares if s.rule == shared.rule]
            assert sum(map(Decimal, given_)) == Decimal(shared.allocated)
    return found


async def spend(services: Services) -> None:
    """red 3 calls, blue 1, of 0.0035 each; the platform 2, of nobody's team; one of nobody at all."""
    teams = ["red", "red", "red", "blue"]
    events = [
        gpt(id=f"e{i}", timestamp=JAN + i * HOUR, team_id=team, environment="prod") for i, team in enumerate(teams)
    ]
    events += [gpt(id=f"s{i}", timestamp=JAN + i * HOUR, project_id="platform") for i in range(2)]
    events += [
        gpt(id="n", timestamp=JAN, feature="chat", tags={"k": "v"}),
        gpt(id="after", timestamp=FEB, team_id="red"),
    ]
    await apply_usage(services, *events)


def rule(split: str, shared: SharedUsage = PLATFORM, name: str = "platform", **fields: Any) -> AllocationRule:
    return AllocationRule(name=name, shared=shared, split=split, **fields)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("split", "fields", "red", "blue"),
    [
        ("even", {}, "0.0035", "0.0035"),
        ("by_cost", {}, "0.00525", "0.00175"),
        ("by_requests", {}, "0.00525", "0.00175"),
        ("by_tokens", {}, "0.00525", "0.00175"),
        ("fixed", {"percents": {"red": "33.333333", "blue": "66.666667"}}, "0.002333333", "0.004666667"),
        ("even", {"among": ["blue"]}, None, "0.007"),
    ],
)
async def test_a_shared_cost_is_split(
    ctx: Context, split: str, fields: dict[str, Any], red: str | None, blue: str
) -> None:
    await spend(ctx.services)
    found = await allocated(ctx, shared=[rule(split, **fields)])
    shares = {item.entity_id: [share.cost for share in item.shares] for item in found.allocations}
    assert shares == {"red": [] if red is None else [red], "blue": [blue]}
    assert {item.entity_id: item.direct for item in found.allocations} == {"red": "0.0105", "blue": "0.0035"}
    assert found.total == text((await posted(ctx.services, JAN, FEB))["cost"]) == "0.0245"
    assert (found.unallocated.cost, found.unallocated.requests) == ("0.0035", 1)


async def test_rules_take_usage_in_their_order_and_what_nobody_takes_is_told(ctx: Context) -> None:
    await spend(ctx.services)
    found = await allocated(ctx, shared=[rule("even"), rule("by_cost", NOBODYS, name="the rest")])
    assert [(s.rule, s.cost, s.requests) for s in found.shared] == [("platform", "0.007", 2), ("the rest", "0.0035", 1)]
    assert found.unallocated.cost == "0"
    turned = await allocated(ctx, shared=[rule("by_cost", NOBODYS, name="the rest"), rule("even")])
    assert [(s.rule, s.cost) for s in turned.shared] == [("the rest", "0.0105"), ("platform", "0")]
    nobody = await allocated(
        ctx, by="cost_center", shared=[rule("by_cost"), rule("even", SharedUsage(team_id="red"), "r")]
    )
    assert nobody.entities == 0 and nobody.unallocated.cost == nobody.total
    assert all(shared.reason and shared.unallocated == shared.cost for shared in nobody.shared)


@pytest.mark.parametrize(
    ("by", "tag", "entities"),
    [
        ("project", None, {"platform": "0.007"}),
        ("feature", None, {"chat": "0.0035"}),
        ("environment", None, {"prod": "0.014"}),
        ("tag", "k", {"v": "0.0035"}),
        ("tag", "other", {}),
    ],
)
async def test_by_every_dimension(ctx: Context, by: str, tag: str | None, entities: dict[str, str]) -> None:
    await spend(ctx.services)
    found = await allocated(ctx, by=by, tag=tag)
    assert {item.entity_id: item.cost for item in found.allocations} == entities


async def test_stored_rules_are_used_versioned_and_audited(ctx: Context) -> None:
    await spend(ctx.services)
    assert (await allocated(ctx)).rules_version is None
    stored = await set_allocation_rules(ctx, SetAllocationRules(by="team", rules=[rule("even")], reason="agreed"))
    assert (stored.version, stored.updated_by) == (1, "alice")
    found = await allocated(ctx)
    assert found.rules_version == 1 and found.unallocated.cost == "0.0035"
    stale = await refusal(set_allocation_rules(ctx, SetAllocationRules(by="team", rules=[], version=0)))
    assert (stale.code, stale.field) == ("conflict", "version")
    await set_allocation_rules(ctx, SetAllocationRules(by="tag", tag="k", rules=[]))
    page = await list_allocation_rules(ctx, ListAllocationRules(limit=1))
    assert page.rule_sets[0].by == "tag" and page.rule_sets[0].tag == "k" and page.next_cursor
    rest = await list_allocation_rules(ctx, ListAllocationRules(cursor=page.next_cursor))
    assert rest.rule_sets == [stored] and rest.next_cursor is None
    trail = (await get_audit_trail(ctx, GetAuditTrail(entity="allocation_rules", entity_id="team"))).entries
    assert [(entry.action, entry.reason) for entry in trail] == [("created", "agreed")]
    other = context(ctx.services, org="globex")
    assert (await list_allocation_rules(other, ListAllocationRules())).rule_sets == []


async def test_users_are_surrogates_in_rules_as_everywhere(ctx: Context) -> None:
    await apply_usage(ctx.services, gpt(timestamp=JAN, user_id="ann"), gpt(timestamp=JAN, user_id="robot"))
    shared = rule("fixed", SharedUsage(user_id="robot"), percents={"ann": "60", "ben": "40"})
    await set_allocation_rules(ctx, SetAllocationRules(by="user", rules=[shared]))
    found = await allocated(ctx, by="user")
    assert {i.entity_id: i.cost for i in found.allocations} == {user("ann"): "0.0056", user("ben"): "0.0014"}
    stored = await ctx.database.fetchval("SELECT rules::text FROM allocation_rules")
    assert "ann" not in stored and "robot" not in stored


async def test_adjustments_are_in_the_period_of_their_usage(ctx: Context) -> None:
    await spend(ctx.services)
    await adjust_usage(ctx, AdjustUsage(usage_id="e0", kind="void", reason="x"))
    await adjust_usage(ctx, AdjustUsage(usage_id="s0", kind="refund", amount="0.0005", reason="x"))
    found = await allocated(ctx, shared=[rule("even")])
    assert found.total == text((await posted(ctx.services, JAN, FEB))["cost"]) == "0.0205"
    assert {item.entity_id: (item.direct, item.requests) for item in found.allocations} == {
        "red": ("0.007", 2), "blue": ("0.0035", 1),
    }  # fmt: skip


async def test_another_currency_is_converted_once_and_told(ctx: Context) -> None:
    await spend(ctx.services)
    await put_rate(ctx, "EUR", "USD", "1.3", datetime(2026, 1, 30, tzinfo=UTC))
    found = await allocated(ctx, currency="EUR", shared=[rule("even")])
    (rate,) = found.currencies
    assert (rate.currency, rate.cost, rate.rate, rate.stale) == ("USD", "0.0245", "0.769230769231", False)
    assert found.total == rate.converted == "0.018846154"


async def test_pages_are_the_whole(ctx: Context) -> None:
    await apply_usage(ctx.services, *(gpt(timestamp=JAN, team_id=f"t{i}") for i in range(7)))
    names: list[str] = []
    cursor: str | None = None
    while True:
        page = await allocated(ctx, limit=3, cursor=cursor)
        names += [item.entity_id for item in page.allocations]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert names == [f"t{i}" for i in range(7)] and page.entities == 7


fractions = st.fractions(min_value=-(10**12), max_value=10**12, max_denominator=10**6)


@examples(100)
@given(st.lists(fractions, max_size=40))
def test_parts_sum_to_the_whole_and_are_off_by_less_than_one(parts: list[Fraction]) -> None:
    found = apportion(parts)
    assert sum(found) == whole(sum(parts, Fraction(0)))
    assert all(abs(a - b) < 1 for a, b in zip(found, parts, strict=True))
    assert all(a == b for a, b in zip(found, parts, strict=True) if b.denominator == 1)


sums = st.lists(
    st.builds(
        BorneSum,
        st.sampled_from(["a", "b", "c", "d", None]),
        st.sampled_from([None, None, 0, 1, 2]),
        st.sampled_from(["USD", "EUR", "JPY"]),
        st.integers(-(10**10), 10**12),
        st.integers(-(10**10), 10**12),
        st.integers(-5, 1000),
        st.integers(-5, 10**6),
        st.integers(0, 5),
    ),
    max_size=30,
)
RATES = {"USD": Fraction(1), "EUR": Fraction(10_837, 10_000), "JPY": Fraction(1, 157)}
RULES = [
    rule("by_cost", name="0"),
    rule("even", name="1", among=["a", "b", "e"]),
    rule("fixed", name="2", percents={"a": "33.33", "z": "66.67"}),
]


@examples(100)
@given(sums, st.permutations(RULES))
def test_whatever_is_split_sums_to_the_total(found: list[BorneSum], rules: list[AllocationRule]) -> None:
    result = allocate(found, rules, RATES.__getitem__)
    for field, total in (("cost", result.total), ("list_cost", result.total_list)):
        exact = sum((getattr(s, field) * RATES[s.currency] for s in found), Fraction(0))
        assert total == whole(exact)
        borne = sum(getattr(bearer, field) for bearer in result.bearers.values())
        rest = getattr(result.unattributed, field) + sum(getattr(pool.rest, field) for pool in result.pools)
        assert borne + rest == total
    # In its own currency each shared cost is split to the nano, too: what the payers' invoices say.
    for number, each in enumerate(rules):
        for currency in RATES:
            own = [s for s in found if s.rule == number and s.currency == currency]
            parts = [shares_of(e, found, rules, RATES.__getitem__).get((each.name, currency)) for e in result.bearers]
            pool = result.pools[number]
            if own and pool.weights and not pool.left:
                assert sum(part.cost for part in parts if part is not None) == sum(s.cost for s in own)


def test_percentages_are_told_rounded() -> None:
    assert percent_text(1, 3) == "33.3333" and percent_text(-1, 8) == "-12.5" and percent_text(5, 0) == "0"
