"""One request of every signal that is served, and what a request with one mistake is told, as data.

A text that begins with `$` stands for the id of something that `tests.agent.seeds` has made in the org.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.agent.bad_fields import INVALID

NOBODY: Final = "00000000-0000-7000-8000-000000000000"
ORG: Final = "acme"
# An org that refuses plain user names.
NAMELESS_ORG: Final = "globex"
CALL: Final[dict[str, Any]] = {"provider": "openai", "model": "gpt-4o"}
COUNTS: Final[dict[str, Any]] = {"prompt_tokens": 1000, "completion_tokens": 100}
PRICE: Final[dict[str, Any]] = {
    "name": "local models",
    "layer": "operator",
    "op": "rates",
    "provider": "local",
    "rates": {"input": "0.5", "output": "1"},
}
SPAN: Final[dict[str, Any]] = {"start": "2026-01-01T00:00:00Z", "end": "2026-02-01T00:00:00Z"}
FUTURE: Final = "2999-01-01T00:00:00Z"
SECRET: Final = "whsec_" + "A" * 32
HOOK: Final[dict[str, Any]] = {"name": "new", "kind": "webhook", "url": "https://8.8.8.8/hook", "secret": SECRET}
QUIET: Final[dict[str, Any]] = {"start": "22:00", "end": "06:00"}
# The NKey of a user that nobody has.
NKEY: Final = "UAAACAQDAQCQMBYIBEFAWDANBYHRAEISCMKBKFQXDAMRUGY4DUPB63NN"
RULE: Final[dict[str, Any]] = {"name": "dear", "kind": "request_cost", "parameters": {"limit": "1"}}
RATE_RULE: Final[dict[str, Any]] = {"name": "fast", "kind": "hourly_rate", "parameters": {"limit": "1"}}
KEY: Final[dict[str, Any]] = {"name": "ci", "user": "ada"}
PLAN: Final[dict[str, Any]] = {"name": "weekly", "cron": "0 9 * * 1", "signal": "list_budgets"}
RAISE: Final[dict[str, Any]] = {
    "budget_id": "$budget", "percent": 20, "reason": "a demo", "until": "$tomorrow",
}  # fmt: skip
BRAKE: Final[dict[str, Any]] = {"scope": "team", "entity_id": "ops", "on": True, "reason": "a leak"}
BUDGET: Final[dict[str, Any]] = {"name": "research", "type": "team", "entity_id": "research", "limit": "1"}
BILL: Final[dict[str, Any]] = {
    "bill_id": "january",
    "provider": "openai",
    "csv": "day,cost\n2026-01-01,1.5\n",
    "columns": {"date": "day", "cost": "cost"},
}

SHARED: Final[dict[str, Any]] = {"name": "platform", "shared": {"project_id": "platform"}, "split": "by_cost"}
PROJECT: Final[dict[str, Any]] = {
    "conversations_per_day": 1000,
    "messages_per_conversation": 10,
    "tokens": {"prompt": 200, "completion": 100},
    "models": [{**CALL, "percent": "100"}],
}

# One request of every signal that is served as it stands. Those that end something name what is there for them.
GOOD: Final[Mapping[str, dict[str, Any]]] = {
    "track_usage": {**CALL, **COUNTS},
    "count_tokens": {**CALL, "text": "hello"},
    "set_model_limit": {"provider": "openai", "model": "new", "context_window": 1000},
    "list_model_limits": {},
    "adjust_usage": {"usage_id": "u1", "kind": "refund", "amount": "0.000001", "reason": "given back"},
    "list_adjustments": {},
    "reprice_usage": SPAN,
    "get_usage": {},
    "aggregate_usage": SPAN,
    "list_dead_letters": {},
    "retry_dead_letter": {"dead_letter_id": "$letter"},
    "check_budget": {**CALL, "prompt_tokens": 1000, "max_completion_tokens": 100, "reserve": False},
    "release_reservation": {"reservation_id": "$reservation"},
    "extend_reservation": {"reservation_id": "$kept", "ttl_s": 600},
    "get_budget_status": {"budget_id": "$budget"},
    "list_budgets": {},
    "list_reservations": {},
    "create_budget": BUDGET,
    "update_budget": {"budget_id": "$budget", "version": 1, "limit": "200"},
    "delete_budget": {"budget_id": "$doomed", "version": 1},
    "apply_policies": {"document": "[{name: sales, scope: 'team:sales', limit: $5/day}]"},
    "request_override": RAISE,
    "review_override": {"override_id": "$asked", "decision": "approve"},
    "list_overrides": {},
    "set_brake": BRAKE,
    "list_brakes": {},
    "calculate_cost": {**CALL, **COUNTS},
    "get_pricing": CALL,
    "update_pricing": {
        "rules": [PRICE],
        "end": [{"name": "half", "version": 1}],
        "dry_run": True,
        "preview": SPAN,
    },
    "list_price_rules": {},
    "set_model_alias": {"provider": "local", "alias": "fast", "to_provider": "openai", "to_model": "gpt-4o"},
    "list_model_aliases": {},
    "refresh_prices": {"source": "bundled"},
    "allocate_costs": {**SPAN, "by": "team"},
    "set_allocation_rules": {"by": "team", "rules": [SHARED]},
    "list_allocation_rules": {},
    "project_costs": PROJECT,
    "prepare_invoice": SPAN,
    "void_invoice": {"invoice_id": "$doomedinvoice", "reason": "a demo"},
    "list_invoices": {},
    "get_invoice": {"invoice_id": "$invoice"},
    "get_exchange_rates": {"base": "EUR"},
    "update_exchange_rates": {"rates": [{"base": "USD", "quote": "VND", "rate": "25400"}], "source": "a bank"},
    "export_usage": SPAN,
    "reconcile_bill": BILL,
    "list_bills": {},
    "set_channel": HOOK,
    "list_channels": {},
    "delete_channel": {"name": "doomed"},
    "test_channel": {"name": "mail"},
    "list_deliveries": {},
    "retry_delivery": {"delivery_id": "$dead"},
    "set_alert_rule": RULE,
    "list_alert_rules": {},
    "delete_alert_rule": {"name": "doomed", "version": 1},
    "list_alerts": {},
    "acknowledge_alert": {"alert_id": "$alert"},
    "get_status": {},
    "describe": {},
    "configure_manager": {"pressure_percent": 90},
    "get_configuration": {},
    "get_audit_trail": {},
    "anonymize_user": {"user_id": "somebody", "reason": "asked for it"},
    "set_user": {"name": "eve", "roles": ["viewer"]},
    "list_users": {},
    "delete_user": {"name": "doomed"},
    "set_team": {"team_id": "ops", "members": ["ada"]},
    "list_teams": {},
    "create_api_key": KEY,
    "list_api_keys": {},
    "revoke_api_key": {"key_id": "$key"},
    "set_schedule": PLAN,
    "list_schedules": {},
    "delete_schedule": {"name": "doomed"},
}
READING: Final = ("allocate_", "project_", "get_", "list_", "aggregate_", "calculate_", "describe")


@dataclass(frozen=True, slots=True)
class Refused:
    """One request, and the code and the field of its refusal."""

    what: str
    signal: str
    body: Any
    field: str | None
    code: str = INVALID
    org: str = ORG
