"""Rules: what is refused by field, versions, the audit trail, pages, and that no org sees another's."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from handlers.alerts.rules import delete_alert_rule, list_alert_rules, set_alert_rule
from handlers.context import Caller, Context, Limits, Services
from schemas.alert import DeleteAlertRule, ListAlertRules, SetAlertRule
from signals import alert as signals
from store import budgets as budget_store
from tests.alerts.scene import audited, rule
from tests.support.ledger import World
from tests.support.services import refusal


def wanted(name: str, kind: str, **fields: Any) -> SetAlertRule:
    return msgspec.convert({"name": name, "kind": kind, **fields}, SetAlertRule)


_RATE = {"parameters": {"limit": "1"}}


_REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("threshold", {"scope": {"budget": "b", "type": "team"}}, "scope.type"),
    ("threshold", {"scope": {"entity_id": "t1"}}, "scope.entity_id"),
    ("threshold", {"scope": {"type": "global", "entity_id": "t1"}}, "scope.entity_id"),
    ("threshold", {"scope": {"type": "team", "filters": {"model": "m"}}}, "scope.filters"),
    ("threshold", {"parameters": {"limit": "1"}}, "parameters.limit"),
    ("exceeded", {"parameters": {"percents": [50]}}, "parameters.percents"),
    ("pacing", {"parameters": {"timezone": "UTC"}}, "parameters.timezone"),
    ("hourly_rate", {}, "parameters.limit"),
    ("hourly_rate", {"parameters": {"limit": "0"}}, "parameters.limit"),
    ("hourly_rate", {"parameters": {"limit": "1.5", "unit": "tokens"}}, "parameters.limit"),
    ("hourly_rate", {"scope": {"type": "session"}, **_RATE}, "scope.type"),
    ("absolute_tokens", {"parameters": {"limit": "1.5"}}, "parameters.limit"),
    ("absolute_tokens", {"parameters": {"limit": "1", "unit": "cost"}}, "parameters.unit"),
    ("absolute_tokens", {"parameters": {"limit": "1", "timezone": "Mars"}}, "parameters.timezone"),
    ("absolute_tokens", {"scope": {"type": "task"}, **_RATE}, "scope.type"),
    ("request_cost", {"parameters": {"limit": "1000001"}}, "parameters.limit"),
    ("request_cost", {**_RATE, "channels": ["c"], "renotify_s": 60}, "renotify_s"),
    ("threshold", {"renotify_s": 60}, "renotify_s"),
    ("threshold", {"actions": [{"do": "notify"}]}, "actions[0].channels"),
    ("threshold", {"actions": [{"do": "log"}, {"do": "callback", "channels": []}]}, "actions[1].channels"),
    ("threshold", {"actions": [{"do": "log", "minutes": 5}]}, "actions[0].minutes"),
    ("threshold", {"actions": [{"do": "rate_limit"}]}, "actions[0].rate"),
    ("threshold", {"actions": [{"do": "rate_limit", "rate": {"limit": "x"}}]}, "actions[0].rate.limit"),
    ("threshold", {"actions": [{"do": "switch_model"}]}, "actions[0].model"),
    (
        "threshold",
        {"actions": [{"do": "switch_model", "model": "m", "minutes": 5, "until_reset": True}]},
        "actions[0].until_reset",
    ),
    ("hourly_rate", {**_RATE, "actions": [{"do": "switch_model", "model": "m"}]}, "actions[0].do"),
    ("threshold", {"actions": [{"do": "rollback", "entities": ["budget"]}]}, "actions[0].do"),
    ("hourly_rate", {**_RATE, "actions": [{"do": "rollback"}]}, "actions[0].entities"),
    ("hourly_rate", {**_RATE, "actions": [{"do": "rollback", "entities": ["org"]}]}, "actions[0].entities[0]"),
]


@pytest.mark.parametrize(("kind", "fields", "field"), _REFUSED)
async def test_what_makes_no_sense_is_refused_by_field(
    ctx: Context, kind: str, fields: dict[str, Any], field: str
) -> None:
    error = await refusal(set_alert_rule(ctx, wanted("r", kind, **fields)))
    assert (error.code, error.field) == ("invalid_request", field)
    assert (await list_alert_rules(ctx, ListAlertRules())).rules == []


async def test_a_budget_that_is_not_there_is_not_found(ctx: Context) -> None:
    by_name = await refusal(set_alert_rule(ctx, wanted("r", "threshold", scope={"budget": "none"})))
    by_id = await refusal(set_alert_rule(ctx, wanted("r", "pacing", scope={"budget_id": ctx.new_id()})))
    assert (by_name.code, by_name.field) == ("not_found", "scope.budget")
    assert (by_id.code, by_id.field) == ("not_found", "scope.budget_id")


async def test_a_budget_of_sessions_has_no_rate(world: World) -> None:
    await world.budget(limit="1", type="session", name="sessions")
    for kind in ("hourly_rate", "absolute_tokens"):
        request = wanted("r", kind, scope={"budget": "sessions"}, parameters={"limit": "1"})
        error = await refusal(set_alert_rule(world.agents[0].context, request))
        assert (error.code, error.field) == ("invalid_request", "scope.budget")


async def test_a_rule_is_replaced_only_by_who_has_read_it(world: World) -> None:
    agent = world.agents[0]
    made = await rule(agent, "r", "threshold", scope={"type": "team"}, channels=["a", "b", "a"], level="critical")
    assert (made.version, made.channels, made.level, made.scope.type) == (1, ["a", "b"], "critical", "team")
    twice = await refusal(rule(agent, "r", "threshold"))
    stale = await refusal(rule(agent, "r", "threshold", version=2))
    nobody = await refusal(rule(agent, "other", "threshold", version=1))
    assert [(e.code, e.field) for e in (twice, stale, nobody)] == [
        ("conflict", "version"),
        ("conflict", "version"),
        ("not_found", "name"),
    ]
    changed = await rule(agent, "r", "overrun", version=1, active=False)
    assert (changed.rule_id, changed.version, changed.kind, changed.active) == (made.rule_id, 2, "overrun", False)
    assert (changed.channels, changed.scope.type, changed.created_at) == ([], None, made.created_at)

    stale = await refusal(delete_alert_rule(agent.context, DeleteAlertRule(name="r", version=1)))
    assert (stale.code, stale.field) == ("conflict", "version")
    gone = await delete_alert_rule(agent.context, DeleteAlertRule(name="r", version=2, reason="no use"))
    assert gone.rule_id == made.rule_id
    missing = await refusal(delete_alert_rule(agent.context, DeleteAlertRule(name="r", version=2)))
    assert (missing.code, missing.field) == ("not_found", "name")
    assert await audited(world, "alert_rule") == [("tester", a) for a in ("created", "updated", "deleted")]


async def test_every_change_of_a_rule_is_a_new_version_of_the_catalogue(world: World) -> None:
    agent = world.agents[0]
    async with world.connection() as connection:
        before = await budget_store.version(connection, world.org)
        await rule(agent, "r", "threshold")
        await delete_alert_rule(agent.context, DeleteAlertRule(name="r", version=1))
        assert await budget_store.version(connection, world.org) == before + 2


async def test_rules_come_in_pages_by_name(ctx: Context) -> None:
    for name in ("c", "a", "b"):
        await set_alert_rule(ctx, wanted(name, "threshold", active=name != "b"))
    first = await list_alert_rules(ctx, ListAlertRules(limit=2))
    rest = await list_alert_rules(ctx, ListAlertRules(limit=2, cursor=first.next_cursor))
    assert [r.name for r in first.rules + rest.rules] == ["a", "b", "c"]
    assert rest.next_cursor is None
    active = await list_alert_rules(ctx, ListAlertRules(active=True, kind="threshold"))
    assert [r.name for r in active.rules] == ["a", "c"]


async def test_another_org_sees_and_touches_nothing(ctx: Context) -> None:
    await set_alert_rule(ctx, wanted("r", "threshold"))
    other = Context(ctx.services, Caller("other", "mallory", frozenset({"admin"})))
    assert (await list_alert_rules(other, ListAlertRules())).rules == []
    error = await refusal(delete_alert_rule(other, DeleteAlertRule(name="r", version=1)))
    assert error.code == "not_found"
    assert (await set_alert_rule(other, wanted("r", "overrun"))).version == 1
    assert [r.kind for r in (await list_alert_rules(ctx, ListAlertRules())).rules] == ["threshold"]


async def test_an_org_has_a_bounded_number_of_rules(ctx: Context, services: Services) -> None:
    services.limits = replace(Limits(), alert_rules_max=2)
    await set_alert_rule(ctx, wanted("a", "threshold"))
    await set_alert_rule(ctx, wanted("b", "threshold"))
    error = await refusal(set_alert_rule(ctx, wanted("c", "threshold")))
    assert (error.code, error.field) == ("conflict", "name")
    assert (await set_alert_rule(ctx, wanted("b", "overrun", version=1))).kind == "overrun"


def test_only_an_admin_sets_rules_and_viewers_and_managers_see_alerts() -> None:
    for signal in (signals.SET_ALERT_RULE, signals.DELETE_ALERT_RULE, signals.LIST_ALERT_RULES):
        assert [role for role in ("viewer", "manager", "approver", "admin") if signal.allows(frozenset({role}))] == [
            "admin"
        ]
    for signal in (signals.LIST_ALERTS, signals.ACKNOWLEDGE_ALERT):
        allowed = [role for role in ("provider", "viewer", "manager", "admin") if signal.allows(frozenset({role}))]
        assert allowed == ["viewer", "manager", "admin"]
