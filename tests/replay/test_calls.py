"""The load generator's own calls: each is what the service takes, and users are spread as said."""

from collections import Counter

import msgspec
import pytest

from bench.payloads import Call, maker
from bench.trees import EIGHT, FOUR, SIXTEEN, Node, Tree, per_user, with_more, with_period
from schemas.budget import CheckBudget, CreateBudget
from schemas.usage import UsageEvent

TREES = [Tree("a-tree", nodes) for nodes in (FOUR, EIGHT, SIXTEEN, per_user(FOUR), with_period(FOUR, "minute"))]


@pytest.mark.parametrize("tree", TREES)
def test_a_tree_is_as_many_budgets_as_it_says_and_its_calls_name_them_all(tree: Tree) -> None:
    budgets = [msgspec.convert(body, CreateBudget) for body in tree.requests()]
    call = msgspec.json.decode(maker("check", "r1", 1, tree.call())(7), type=CheckBudget)

    assert len({budget.name for budget in budgets}) == len(tree.nodes)
    for budget in budgets:
        named = {call.environment if budget.type == "environment" else getattr(call, f"{budget.type}_id", None)}
        named |= {call.feature, call.cost_center} if budget.type in ("feature", "cost_center") else set()
        assert budget.entity_id == "*" or budget.entity_id in named


@pytest.mark.parametrize("kind", ["check", "track"])
def test_calls_are_what_the_service_takes(kind: str) -> None:
    call = Tree("a-tree", FOUR).call(users=3, first=5, more={"metadata": {}} if kind == "track" else {"reserve": False})
    make, type_ = maker(kind, "r1", 1, call), CheckBudget if kind == "check" else UsageEvent

    calls = [msgspec.json.decode(make(number), type=type_) for number in range(6)]

    assert [c.user_id for c in calls] == ["u5", "u6", "u7", "u5", "u6", "u7"]
    assert {c.environment for c in calls} == {"a-tree"}


def test_users_are_spread_evenly_or_by_zipf() -> None:
    even, zipf = (Call(scope={}, users=100, spread=spread).choose() for spread in ("uniform", "zipf"))
    evenly, zipfly = (Counter(choose(number) for number in range(50_000)) for choose in (even, zipf))

    assert len(evenly) == len(zipfly) == 100
    assert 400 < min(evenly.values()) <= max(evenly.values()) < 600
    assert zipfly[0] / zipfly[9] == pytest.approx(10, rel=0.2)


def test_what_a_type_of_budget_is_created_with_adds_up() -> None:
    nodes = with_more(with_more((Node("team"), Node("user")), "team", limit="1"), "team", enforcement="warn")

    assert [node.more for node in nodes] == [{"limit": "1", "enforcement": "warn"}, {}]
