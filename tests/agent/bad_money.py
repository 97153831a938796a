"""What signals about budgets, policies, overrides and kill switches refuse for reasons of their own."""

from collections.abc import Iterator
from typing import Any

from tests.agent.bad_policies import DOCUMENTS, POLICIES
from tests.agent.good_requests import (
    BRAKE,
    BUDGET,
    FUTURE,
    GOOD,
    NAMELESS_ORG,
    RAISE,
    RATE_RULE,
    RULE,
    Refused,
)


def amounts() -> Iterator[Refused]:
    """Amounts in every place where one stands."""
    places: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("create_budget", BUDGET, "limit"),
        ("update_budget", GOOD["update_budget"], "limit"),
        ("request_override", {k: v for k, v in RAISE.items() if k != "percent"}, "amount"),
        ("extend_reservation", GOOD["extend_reservation"], "estimated_cost"),
        ("check_budget", GOOD["check_budget"], "estimated_cost"),
        ("track_usage", GOOD["track_usage"], "reported_cost"),
        ("adjust_usage", GOOD["adjust_usage"], "amount"),
        ("adjust_usage", {"usage_id": "u1", "kind": "correct", "reason": "r"}, "cost"),
    )
    wrong = (
        "-1",
        "1e3",
        "NaN",
        "Infinity",
        "0x10",
        "1,5",
        " 1",
        "\u0661",
        "1.0000000001",
        "$5",
        "9" * 30,
        "1" + "0" * 10,
    )
    for text in wrong:
        what = f"amount `{text}`" if len(text) < 20 else "amount of 30 digits"
        for signal, body, field in places:
            yield Refused(what, signal, {**body, field: text}, field)
        yield Refused(what, "create_budget", {**BUDGET, **_throttled(limit=text)}, "rate.limit")
        yield Refused(
            what, "update_budget", {**_update("$throttled"), "rate": {"limit": text, "unit": "cost"}}, "rate.limit"
        )
        yield Refused(what, "set_alert_rule", {**RULE, "parameters": {"limit": text}}, "parameters.limit")
        yield Refused(what, "set_alert_rule", {**RATE_RULE, "parameters": {"limit": text}}, "parameters.limit")
        yield Refused(what, "set_alert_rule", {**RULE, "actions": [_slower(text)]}, "actions[0].rate.limit")
    for text in ("1.5", "0.1", "1" + "0" * 16):
        what = f"`{text}` tokens"
        yield Refused(what, "create_budget", {**BUDGET, "unit": "tokens", "limit": text}, "limit")
        yield Refused(what, "update_budget", {**_update("$tokens"), "limit": text}, "limit")
        yield Refused(what, "request_override", {**_raise("$tokens"), "amount": text}, "amount")
        yield Refused(what, "create_budget", {**BUDGET, **_throttled(limit=text, unit="requests")}, "rate.limit")
        rule = {"name": "many", "kind": "absolute_tokens", "parameters": {"limit": text}}
        yield Refused(what, "set_alert_rule", rule, "parameters.limit")
    other = {"estimated_cost": "2", "team_id": "ops", "request_id": "r1"}
    yield Refused("an id of another request", "check_budget", other, "request_id", "conflict")
    yield Refused("more than any call costs", "check_budget", {"estimated_cost": "1000001"}, "estimated_cost")
    call = {**GOOD["extend_reservation"], "estimated_cost": "1000001"}
    yield Refused("more than any call costs", "extend_reservation", call, "estimated_cost")
    yield Refused("an amount of 0", "request_override", {**_raise("$budget"), "amount": "0"}, "amount")
    for kind in ("hourly_rate", "absolute_tokens"):
        rule = {"name": "n", "kind": kind, "parameters": {"limit": "0"}}
        yield Refused("an amount of 0", "set_alert_rule", rule, "parameters.limit")


def _throttled(**rate: str) -> dict[str, Any]:
    return {"enforcement": "throttle", "rate": {"unit": "cost", "period": "hourly", **rate}}


def _slower(limit: str) -> dict[str, Any]:
    return {"do": "rate_limit", "rate": {"limit": limit, "unit": "cost"}}


def _update(budget: str, **fields: Any) -> dict[str, Any]:
    return {"budget_id": budget, "version": 1, **fields}


def _raise(budget: str, **fields: Any) -> dict[str, Any]:
    return {"budget_id": budget, "reason": "a demo", "until": "$tomorrow", **fields}


def budgets() -> Iterator[Refused]:
    def new(what: str, field: str, **fields: Any) -> Refused:
        return Refused(what, "create_budget", {**BUDGET, **fields}, field)

    yield new("throttle over a month without a rate", "rate", enforcement="throttle")
    yield new("a rate on a blocking budget", "rate", rate={"limit": "60"})
    yield new("a rate on a throttle that is one", "rate", enforcement="throttle", period="minute", rate={"limit": "6"})
    yield new("a rate over a day", "rate.period", enforcement="throttle", rate={"limit": "60", "period": "daily"})
    yield new("a rate without a limit", "rate.limit", enforcement="throttle", rate={})
    yield new("an entity of everybody", "entity_id", type="global", entity_id="ops")
    yield new("rollover of one window", "rollover", period="total", rollover={"policy": "full"})
    yield new("101 percent of rollover", "rollover.percent", rollover={"policy": "capped", "percent": 101})
    yield new("a limit that overage makes too large", "overage_percent", limit="1000000000", overage_percent=10)
    yield new("threshold 0", "alert_thresholds[0]", alert_thresholds=[0])
    yield new("21 thresholds", "alert_thresholds", alert_thresholds=[*range(1, 22)])
    yield new("no currency", "currency", currency="EUX")
    yield new(
        "an approver of no role", "override_policy.approver_roles[0]", override_policy={"approver_roles": ["boss"]}
    )
    yield new("an override of 0 hours", "override_policy.max_hours", override_policy={"max_hours": 0})
    yield Refused("a name that is taken", "create_budget", {**BUDGET, "name": "ops"}, "name", "conflict")
    rated = {**BUDGET, "name": "thin", **_throttled(limit="1")}
    yield Refused("a name whose rate's is taken", "create_budget", rated, "name", "conflict")
    yield Refused(
        "a plain user name, refused", "create_budget", {**BUDGET, "type": "user"}, "entity_id", org=NAMELESS_ORG
    )
    for zone in ("Mars/Base", "../../etc/passwd", "localtime"):
        yield new(f"time zone `{zone}`", "timezone", timezone=zone)

    def change(what: str, field: str, budget: str = "$budget", **fields: Any) -> Refused:
        return Refused(what, "update_budget", _update(budget, **fields), field)

    yield change("throttle over a month without a rate", "rate", enforcement="throttle")
    yield change("a rate on a blocking budget", "rate", rate={"limit": "60"})
    yield change("block and a rate", "rate", "$throttled", enforcement="block", rate={"limit": "6"})
    yield change("identity (R4)", "period", period="daily")
    yield change("identity (R4)", "entity_id", entity_id="other")
    yield change("the rate of a budget", "budget_id", "$rate", limit="1")
    yield change("a limit that overage makes too large", "overage_percent", limit="1000000000", overage_percent=10)
    yield change("threshold 0", "alert_thresholds[0]", alert_thresholds=[0])
    yield change(
        "an approver of no role", "override_policy.approver_roles[0]", override_policy={"approver_roles": ["x"]}
    )
    for signal in ("update_budget", "delete_budget"):
        stale = {"budget_id": "$budget", "version": 9}
        yield Refused("a version that nobody read", signal, stale, "version", "conflict")
    yield Refused("a name that is taken", "update_budget", _update("$budget", name="each"), "name", "conflict")
    yield Refused("the rate of a budget", "delete_budget", _update("$rate"), "budget_id")
    yield Refused("an id of another org", "update_budget", _update("$budget"), "budget_id", "not_found", NAMELESS_ORG)
    yield Refused("a plain user name, refused", "get_budget_status", {"user_id": "ada"}, "user_id", org=NAMELESS_ORG)


def overrides() -> Iterator[Refused]:
    def ask(what: str, field: str, budget: str = "$budget", **fields: Any) -> Refused:
        return Refused(what, "request_override", _raise(budget, **fields), field)

    yield ask("amount and percent", "percent", amount="5", percent=20)
    yield ask("neither amount nor percent", "amount")
    yield ask("more percent than the policy allows", "percent", percent=51)
    yield ask("a larger amount than the policy allows", "amount", amount="50.000000001")
    yield ask("in the past", "until", percent=20, until="2026-01-01T00:00:00Z")
    yield ask("longer than the policy allows", "until", percent=20, until=FUTURE)
    yield ask("a reason of spaces", "reason", percent=20, reason="  \n")
    yield ask("no entity, where each has its own", "entity_id", "$each", percent=20)
    yield ask("everybody, where each has its own", "entity_id", "$each", percent=20, entity_id="*")
    yield ask("another entity than the budget's", "entity_id", percent=20, entity_id="sales")
    yield ask("a budget that refuses nothing", "budget_id", "$shadow", percent=20)
    yield ask("a budget that is off", "budget_id", "$inactive", percent=20)
    yield ask("the rate of a budget", "budget_id", "$rate", percent=20)
    again = _raise("$budget", percent=10, until="$tomorrow")
    yield Refused("asked for already", "request_override", {**again, "percent": 5}, "budget_id", "conflict")
    for decision in ("approve", "deny"):
        own = {"override_id": "$own", "decision": decision}
        yield Refused("one's own request", "review_override", own, "override_id", "forbidden")
        over = {"override_id": "$denied", "decision": decision}
        yield Refused("decided already", "review_override", over, "override_id", "conflict")
    early = {"override_id": "$asked", "decision": "revoke"}
    yield Refused("to take back what nobody approved", "review_override", early, "override_id", "conflict")
    theirs = {"override_id": "$asked", "decision": "approve"}
    yield Refused("an id of another org", "review_override", theirs, "override_id", "not_found", NAMELESS_ORG)


def brakes() -> Iterator[Refused]:
    for reason in (" ", "\t\n"):
        yield Refused("a reason of spaces", "set_brake", {**BRAKE, "reason": reason}, "reason")
    yield Refused("an entity of everybody", "set_brake", {**BRAKE, "scope": "org"}, "entity_id")
    for scope in ("team", "provider"):
        for entity in ("*", "op*"):
            body = {**BRAKE, "scope": scope, "entity_id": entity}
            yield Refused("a pattern, where one is named", "set_brake", body, "entity_id")
    everything = {k: v for k, v in BRAKE.items() if k != "entity_id"}
    yield Refused("no team", "set_brake", everything, "entity_id")


def policies() -> Iterator[Refused]:
    for what, document, field in DOCUMENTS:
        yield Refused(what, "apply_policies", {"document": document}, field)
    for what, policies, field in POLICIES:
        yield Refused(what, "apply_policies", {"policies": policies}, field)
    for dry_run in (False, True):
        both: dict[str, Any] = {"document": "[]", "policies": [], "dry_run": dry_run}
        yield Refused("document and policies", "apply_policies", both, "document")
        yield Refused("neither document nor policies", "apply_policies", {"dry_run": dry_run}, "document")
    taken = [{"name": "new", "scope": "org", "limit": "$1/day"}, {"name": "ops", "scope": "org", "limit": "$1/day"}]
    yield Refused("a name of a budget made by hand", "apply_policies", {"policies": taken}, "policies[1].name")
    large = [{"name": f"n{i}", "scope": "org", "limit": "$1/day", "prefer": ["x" * 250] * 50} for i in range(30)]
    yield Refused("policies of 400 KB", "apply_policies", {"policies": large}, "policies", "too_large")
    user = [{"name": "new", "scope": "org", "limit": "$1/day"}, {"name": "u", "scope": "user:ada", "limit": "$1/day"}]
    yield Refused(
        "a plain user name, refused", "apply_policies", {"policies": user}, "policies[1].scope", org=NAMELESS_ORG
    )
