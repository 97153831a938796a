"""The budgets of number 10: each load has trees of its own, told apart by the environment its calls name.

All of them stand beside each other in one org, so loads can take turns on one agent.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from bench.payloads import Call

LIMIT = "900000000"
MODELS = ["gpt-4o-mini", "gpt-4.1-mini", "gpt-4.1-nano"]
SCOPE = {
    "team_id": "t1",
    "user_id": "u1",
    "project_id": "p1",
    "feature": "f1",
    "agent_id": "a1",
    "cost_center": "c1",
}
ENTITY_FIELDS = {
    "team": "team_id",
    "user": "user_id",
    "project": "project_id",
    "feature": "feature",
    "agent": "agent_id",
    "cost_center": "cost_center",
}


@dataclass(frozen=True)
class Node:
    """One budget of a tree. ``entity`` none: the one that the calls name; ``more``: what else it is created with."""

    kind: str
    unit: str = "cost"
    period: str = "monthly"
    entity: str | None = None
    filters: dict[str, str] = field(default_factory=dict[str, str])
    more: dict[str, Any] = field(default_factory=dict[str, Any])

    def request(self, environment: str) -> dict[str, Any]:
        """What ``create_budget`` is sent."""
        entity = self.entity or SCOPE.get(ENTITY_FIELDS.get(self.kind, ""), environment)
        parts = (environment, self.kind, self.unit, self.period, *self.filters.values())
        return {
            "name": "-".join(parts),
            "type": self.kind,
            "entity_id": "*" if self.kind == "global" else entity,
            "unit": self.unit,
            "period": self.period,
            "filters": {"environment": environment, **self.filters},
            "limit": LIMIT,
            **self.more,
        }


FOUR = (Node("global"), Node("team"), Node("user"), Node("project"))
EIGHT = (
    *FOUR,
    Node("global", "tokens", "daily"),
    Node("team", "tokens", "daily"),
    Node("user", "requests", "hourly"),
    Node("feature"),
)
SIXTEEN = (
    *EIGHT,
    Node("environment"),
    Node("cost_center", "cost", "yearly"),
    Node("agent", "tokens", "daily"),
    Node("agent", "requests", "hourly"),
    Node("project", "tokens"),
    Node("global", filters={"provider": "openai"}),
    Node("team", filters={"model": "gpt-4o*"}),
    Node("feature", "requests", "daily"),
)


@dataclass(frozen=True)
class Tree:
    """Budgets that every call of one environment counts in, and those calls."""

    environment: str
    nodes: tuple[Node, ...]

    def call(self, **options: Any) -> Call:
        """A call that counts in all of them."""
        return Call(scope={**SCOPE, "environment": self.environment}, **options)

    def requests(self) -> Iterable[dict[str, Any]]:
        """What creates them."""
        return (node.request(self.environment) for node in self.nodes)


def per_user(nodes: tuple[Node, ...], **changes: Any) -> tuple[Node, ...]:
    """The same tree with a budget for each user instead of that for one."""
    return tuple(replace(node, entity="*", **changes) if node.kind == "user" else node for node in nodes)


def with_period(nodes: tuple[Node, ...], period: str) -> tuple[Node, ...]:
    """The same tree over another period."""
    return tuple(replace(node, period=period) for node in nodes)


def with_more(nodes: tuple[Node, ...], kind: str, **more: Any) -> tuple[Node, ...]:
    """The same tree, where budgets of a type are created with something more."""
    return tuple(replace(node, more={**node.more, **more}) if node.kind == kind else node for node in nodes)
