"""What an org has before bad input reaches it: one of everything that can be named, so that nothing is refused for its
absence, and a look at every row there is.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from nats.aio.client import Client

from handlers.access.nkeys import encode_user_key
from store.pool import Database
from tests.agent.good_requests import CALL, HOOK, PLAN, QUIET
from tests.support.polling import eventually
from tests.support.running import ask, store

TEAM: Final[dict[str, Any]] = {"type": "team", "entity_id": "ops", "limit": "100"}
ALWAYS_QUIET: Final = {**QUIET, "start": "00:00", "end": "00:00", "except_level": None}
# Everything that people and policies change. What is not here is written by jobs, or by what is served in between.
TABLES: Final = (
    *(
        "adjustment",
        "adjustment_entry",
        "alert",
        "alert_action",
        "alert_rule",
        "api_key",
        "app_user",
        "audit",
        "audit_head",
        "bill",
        "bill_line",
        "bill_part",
        "bill_row",
        "brake",
        "budget",
    ),
    *("budget_window", "channel", "dead_letter", "delivery", "exchange_rate", "org_catalogue", "override"),
    "overrun_cause",
    *("allocation_rules", "invoice", "invoice_line", "invoice_number"),
    *("model_alias", "price_book", "price_rule", "price_snapshot", "price_snapshot_use"),
    *("model_limit", "policy_document", "reservation", "schedule", "setting", "team_member", "usage_event", "usage_id"),
)
# A window without sums is none: the next decision opens it when a minute has passed.
_ONLY: Final = {"budget_window": "WHERE spent <> 0 OR reserved <> 0 OR overrun <> 0"}


async def contents(database: Database) -> dict[str, tuple[int, int]]:
    """How many rows each table has, and a hash of all that is in them."""
    parts = [
        f"SELECT '{t}' AS name, count(*) AS rows, sum(hashtext(t::text)) AS hash FROM {t} AS t {_ONLY.get(t, '')}"
        for t in TABLES
    ]
    async with database.connection() as connection:
        rows = await connection.fetch(" UNION ALL ".join(parts))
    return {row["name"]: (row["rows"], row["hash"] or 0) for row in rows}


async def sow(client: Client, other: Client) -> dict[str, str]:
    """Make one of everything; ``other`` is another person of the same org. Returns ids by name."""
    ids = {"tomorrow": (datetime.now(UTC) + timedelta(hours=24)).isoformat(), "nkey": encode_user_key(bytes(32))}

    async def made(name: str, signal: str, field: str, body: dict[str, Any], who: Client = client) -> None:
        ids[name] = (await ask(who, signal, body)).result[field]

    for name, changes in _BUDGETS.items():
        await made(name, "create_budget", "budget_id", {**TEAM, "name": _NAMES.get(name, name), **changes})
    await ask(client, "delete_budget", {"budget_id": ids["deleted"], "version": 1})
    applied = {"policies": [{"name": "managed", "scope": "team:ops", "limit": "$100/month"}]}
    assert (await ask(client, "apply_policies", applied)).result["applied"]
    listed = (await ask(client, "list_budgets", {"limit": 1000})).result["budgets"]
    (ids["rate"],) = [b["budget_id"] for b in listed if b["gate_id"] == ids["throttled"]]
    for i, name in enumerate(("reservation", "kept", "released")):
        await made(
            name, "check_budget", "reservation_id", {"estimated_cost": "1", "team_id": "ops", "request_id": f"r{i}"}
        )
    await ask(client, "release_reservation", {"reservation_id": ids["released"]})
    for name, percent, who in (("own", 5, client), ("asked", 6, other), ("denied", 7, other)):
        body = {"budget_id": ids["budget"], "percent": percent, "reason": "a demo", "until": ids["tomorrow"]}
        await made(name, "request_override", "override_id", body, who)
    await ask(client, "review_override", {"override_id": ids["denied"], "decision": "deny"})
    await _sow_prices(client)
    await _sow_invoices(client, ids)
    await _sow_access(client, ids)
    await _sow_alerts(client, ids)
    await _sow_bills(client)
    await _sow_letters(client, ids)
    return ids


_NAMES: Final = {"budget": "ops", "throttled": "wide"}
_BUDGETS: Final[dict[str, dict[str, Any]]] = {
    "budget": {},
    "each": {"type": "user", "entity_id": "*"},
    "shadow": {"enforcement": "shadow"},
    "inactive": {"active": False},
    "tokens": {"unit": "tokens", "limit": "1000000"},
    "throttled": {"enforcement": "throttle", "rate": {"limit": "60"}},
    "thin (rate)": {},
    "doomed": {},
    "deleted": {},
}


async def _sow_invoices(client: Client, ids: dict[str, str]) -> None:
    """Invoices of two teams for June of last year, one of them taken back, and one to be taken back."""
    usage = {**CALL, "prompt_tokens": 1000, "timestamp": "2025-06-15T12:00:00Z", "ack": "applied"}
    for team in ("ops", "sales", "support"):
        body = {**usage, "id": f"june-{team}", "team_id": team}
        assert (await ask(client, "track_usage", body)).result["accepted"]
    asked = {"month": "2025-06", "status": "final"}
    for name, team in (("invoice", "ops"), ("voided", "sales"), ("doomedinvoice", "support")):
        body = {**asked, "payer": {"type": "team", "entity_id": team}, "request_id": f"june-{team}"}
        ids[name] = (await ask(client, "prepare_invoice", body)).result["invoice_id"]
    note = await ask(client, "void_invoice", {"invoice_id": ids["voided"], "reason": "a demo"})
    ids["creditnote"] = note.result["invoice_id"]


async def _sow_prices(client: Client) -> None:
    """A rule and an alias, and one of each that has ended; they price nothing that is tested."""
    rules = [
        {"name": name, "layer": "contract", "op": "multiply", "provider": "nobody", "model": name, "factor": "0.5"}
        for name in ("half", "over")
    ]
    assert (await ask(client, "update_pricing", {"rules": rules})).result["applied"]
    assert (await ask(client, "update_pricing", {"end": [{"name": "over", "version": 1}]})).result["applied"]
    for alias in ("ours", "over"):
        body = {"provider": "azure", "alias": alias, "to_model": "gpt-4o"}
        assert (await ask(client, "set_model_alias", body)).result
    over = {"provider": "azure", "alias": "over", "version": 1}
    assert (await ask(client, "set_model_alias", over)).result


async def _sow_bills(client: Client) -> None:
    """A bill that is complete, and one of which parts are still to come."""
    for name, last in (("known", True), ("open", False)):
        text = "day,cost\n2026-01-02,2\n2026-01-03,1\n"
        body = {"bill_id": name, "provider": "openai", "csv": text, "columns": {"date": "day", "cost": "cost"}}
        assert (await ask(client, "reconcile_bill", {**body, "last": last})).result


async def _sow_access(client: Client, ids: dict[str, str]) -> None:
    for name, roles in (("acme-admin", ["admin"]), ("ada", ["viewer"]), ("gone", ["viewer"]), ("doomed", [])):
        key = {"public_key": ids["nkey"]} if name == "ada" else {}
        (await ask(client, "set_user", {"name": name, "roles": roles, **key})).result  # noqa: B018
    await ask(client, "delete_user", {"name": "gone"})
    ids["key"] = (await ask(client, "create_api_key", {"name": "k", "user": "ada"})).result["key"]["key_id"]
    assert (await ask(client, "set_schedule", {**PLAN, "name": "doomed", "active": False})).result


async def _sow_alerts(client: Client, ids: dict[str, str]) -> None:
    """An alert with two deliveries: one that waits, and one that is dead because nobody knows its channel."""
    for name in ("quiet", "doomed"):
        assert (await ask(client, "set_channel", {**HOOK, "name": name, "quiet_hours": ALWAYS_QUIET})).result
    mail = {
        "name": "mail",
        "kind": "apprise",
        "url": "mailto://u:p@mail.invalid?from=b@example.com&to=a@example.com",
        "active": False,
    }
    assert (await ask(client, "set_channel", mail)).result
    rule = {"kind": "request_cost", "parameters": {"limit": "0"}, "scope": {"type": "team", "entity_id": "ops"}}
    for name, channels in (("standing", ["quiet", "nowhere"]), ("doomed", [])):
        assert (await ask(client, "set_alert_rule", {"name": name, **rule, "channels": channels})).result
    usage = {**CALL, "prompt_tokens": 1000, "team_id": "ops", "ack": "applied", "id": "u1"}
    assert (await ask(client, "track_usage", usage)).result["accepted"]

    assert (await ask(client, "track_usage", {**usage, "id": "void", "team_id": None})).result["accepted"]
    void = {"usage_id": "void", "kind": "void", "reason": "a demo", "adjustment_id": "done"}
    assert (await ask(client, "adjust_usage", void)).result["accepted"] == 1

    async def told(status: str) -> list[dict[str, Any]]:
        return (await ask(client, "list_deliveries", {"status": status})).result["deliveries"]

    async def decided() -> bool:
        pending = await told("pending")
        return len(pending) == 1 and bool(pending[0]["postponed"]) and len(await told("dead")) == 1

    await eventually(decided)
    ids["alert"] = (await ask(client, "list_alerts")).result["alerts"][0]["alert_id"]
    ids["dead"] = (await told("dead"))[0]["delivery_id"]
    ids["waiting"] = (await told("pending"))[0]["delivery_id"]


async def _sow_letters(client: Client, ids: dict[str, str]) -> None:
    """Two messages nobody could apply, of which one was sent again, corrected."""
    await sow_letter(client, ids, "letter")
    await sow_letter(client, ids, "retried")
    good = {**CALL, "prompt_tokens": 1, "completion_tokens": 1}
    await ask(client, "retry_dead_letter", {"dead_letter_id": ids["retried"], "payload": good})

    async def applied() -> bool:
        status = (await ask(client, "get_status")).result
        return status["ingest"]["stored_messages"] == 0

    await eventually(applied)


async def sow_letter(client: Client, ids: dict[str, str], name: str) -> None:
    """A message nobody could apply."""
    await store(client, f"usage.openai.{name}", {"model": name})

    async def found() -> bool:
        letters = (await ask(client, "list_dead_letters")).result["dead_letters"]
        ids.update({letter["subject"].rpartition(".")[2]: letter["dead_letter_id"] for letter in letters})
        return name in ids

    await eventually(found)
