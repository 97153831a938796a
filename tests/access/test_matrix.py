"""Who may do what, over real accounts: every signal x every role x own and other team x own and other org.

MATRIX is written out on purpose: a declaration that changes must be changed here, too, by somebody who means it.
"""
# pyright: reportUnknownMemberType=false
# nats-py leaves the options of its calls untyped.

import base64
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from nats import errors as nats_errors
from nats.aio.client import Client

from agent.actor import TokenManagerAgent
from agent.embedded import EmbeddedNats
from agent.signed import KEY_HEADER
from signals.registry import REQUESTS
from tests.access.conftest import ORGS, PASSWORD, PEOPLE
from tests.agent.conftest import new_database
from tests.conftest import PostgresServer
from tests.support.polling import eventually
from tests.support.running import Reply, ask, ask_on, connected, forget_streams, running_agent, store

ROLES = ("provider", "viewer", "manager", "approver", "finance", "admin")
ADMIN = "admin"
MATRIX: dict[str, str] = {
    "track_usage": "provider",
    "count_tokens": "provider",
    "set_model_limit": "",
    "list_model_limits": "viewer",
    "adjust_usage": "",
    "list_adjustments": "viewer finance",
    "reprice_usage": "finance",
    "get_usage": "viewer",
    "aggregate_usage": "viewer",
    "list_dead_letters": "",
    "retry_dead_letter": "",
    "check_budget": "provider",
    "release_reservation": "provider",
    "extend_reservation": "provider",
    "get_budget_status": "viewer",
    "list_budgets": "viewer",
    "list_reservations": "viewer",
    "create_budget": "manager",
    "update_budget": "manager",
    "delete_budget": "manager",
    "apply_policies": "manager",
    "request_override": "provider viewer manager",
    "review_override": "approver",
    "list_overrides": "provider viewer manager approver",
    "set_brake": "manager",
    "list_brakes": "viewer manager",
    "calculate_cost": "provider viewer",
    "get_pricing": "provider viewer",
    "update_pricing": "finance",
    "list_price_rules": "viewer finance",
    "set_model_alias": "finance",
    "list_model_aliases": "viewer finance",
    "refresh_prices": "finance",
    "export_usage": "viewer",
    "reconcile_bill": "finance",
    "list_bills": "finance",
    "allocate_costs": "viewer finance",
    "set_allocation_rules": "finance",
    "list_allocation_rules": "viewer finance",
    "project_costs": "provider viewer finance",
    "prepare_invoice": "finance",
    "void_invoice": "finance",
    "list_invoices": "viewer finance",
    "get_invoice": "viewer finance",
    "get_exchange_rates": "provider viewer finance",
    "update_exchange_rates": "finance",
    "set_channel": "",
    "list_channels": "",
    "delete_channel": "",
    "test_channel": "",
    "list_deliveries": "",
    "retry_delivery": "",
    "set_alert_rule": "",
    "list_alert_rules": "",
    "delete_alert_rule": "",
    "list_alerts": "viewer manager",
    "acknowledge_alert": "viewer manager",
    "get_status": "anyone",
    "describe": "anyone",
    "configure_manager": "",
    "get_configuration": "viewer",
    "get_audit_trail": "",
    "anonymize_user": "",
    "set_user": "",
    "list_users": "",
    "delete_user": "",
    "set_team": "",
    "list_teams": "",
    "create_api_key": "",
    "list_api_keys": "",
    "revoke_api_key": "",
    "set_schedule": "",
    "list_schedules": "",
    "delete_schedule": "",
}
"""Signal -> roles that may send it, besides admin, who may send all; "anyone": a role is not needed."""

TEAMS = {"red": "ann", "blue": "bob"}  # Each with a user who is its only member. Managers manage red.
TEAM_SCOPED = ("create_budget", "update_budget", "delete_budget", "apply_policies", "set_brake")
_numbers = itertools.count(1)


def allowed(signal: str, role: str) -> bool:
    granted = MATRIX[signal].split()
    return role == ADMIN or role in granted or "anyone" in granted


class House:
    """A running agent, and everybody of both orgs connected to the bus."""

    def __init__(self, agent: TokenManagerAgent, people: dict[tuple[str, str], Client], bus: EmbeddedNats) -> None:
        self.agent = agent
        self.people = people
        self.bus = bus

    async def ask(self, who: str, signal: str, body: object = None, *, org: str = "acme") -> Reply:
        return await ask(self.people[org, who], signal, body)


async def populate(house: House, org: str) -> None:
    root = house.people[org, "root"]
    for name, (roles, teams) in PEOPLE.items():
        body = {"name": f"{org}-{name}", "roles": roles, "teams": teams, "active": name != "gone"}
        await ask(root, "set_user", body)
    for team, member in TEAMS.items():
        assert (await ask(root, "set_team", {"team_id": team, "members": [member]})).result

    async def known() -> bool:
        replies = [await house.ask(name, "get_audit_trail", org=org) for name in PEOPLE]
        return [r.code for r in replies] == [None if n == "admin" else "forbidden" for n in PEOPLE]

    await eventually(known)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(
    tenants_bus: EmbeddedNats, postgres_server: PostgresServer, migrated_template: str
) -> AsyncIterator[House]:
    await forget_streams(tenants_bus.agent_url)
    roots: dict[str, Any] = {f"{org}/{org}-root": ("admin",) for org in ORGS}
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(new_database(postgres_server, migrated_template))
        agent = await stack.enter_async_context(
            running_agent(tenants_bus.agent_url, url, default_roles=None, roles=roots)
        )
        people: dict[tuple[str, str], Client] = {}
        for org in ORGS:
            for name in (*PEOPLE, "root"):
                client = connected(tenants_bus.url_for(f"{org}-{name}", PASSWORD))
                people[org, name] = await stack.enter_async_context(client)
        found = House(agent, people, tenants_bus)
        for org in ORGS:
            await populate(found, org)
        yield found


def test_the_table_names_every_signal_and_no_other() -> None:
    assert set(MATRIX) == {signal.name for signal in REQUESTS}


def test_the_declarations_say_what_the_table_says() -> None:
    for signal in REQUESTS:
        for role in ROLES:
            assert signal.allows(frozenset({role})) is allowed(signal.name, role), f"{signal.name} {role}"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("org", ORGS)
@pytest.mark.parametrize("who", [*ROLES, "nobody", "gone"])
async def test_every_signal_is_for_its_roles_alone(house: House, who: str, org: str) -> None:
    for signal in REQUESTS:
        reply = await house.ask(who, signal.name, {"no_such_field": 1}, org=org)
        role = who if who in ROLES else ""
        assert reply.code == ("invalid_request" if allowed(signal.name, role) else "forbidden"), signal.name


async def team_request(house: House, signal: str, kind: str, entity_id: str) -> dict[str, Any]:
    """A request that changes something of this scope, valid but for who sends it."""
    name = f"m{next(_numbers)}"
    budget = {"name": name, "type": kind, "entity_id": entity_id, "limit": "5"}
    if signal == "create_budget":
        return budget
    if signal == "apply_policies":
        scope = "org" if kind == "global" else f"{kind}:{entity_id}"
        return {"policies": [{"name": name, "scope": scope, "limit": "$5/day"}]}
    if signal == "set_brake":
        return {"scope": kind, "entity_id": entity_id, "on": True, "reason": "a test"}
    found = (await house.ask("admin", "create_budget", budget)).result
    more = {"limit": "6"} if signal == "update_budget" else {}
    return {"budget_id": found["budget_id"], "version": found["version"], **more}


SCOPES = {
    "own team": ("team", "red", True),
    "other team": ("team", "blue", False),
    "unknown team": ("team", "green", False),
    "every team": ("team", "*", False),
    "member of own team": ("user", "ann", True),
    "member of other team": ("user", "bob", False),
    "every user": ("user", "*", False),
    "project of the name of own team": ("project", "red", False),
    "everything": ("global", "*", False),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("signal", TEAM_SCOPED)
async def test_a_manager_changes_what_is_of_own_teams_and_an_admin_everything(
    house: House, signal: str, scope: str
) -> None:
    kind, entity_id, own = SCOPES[scope]
    if signal == "set_brake" and kind != "team":
        kind, own = {"user": "model", "project": "provider", "global": "org"}[kind], False
    for who in (*ROLES, "nobody", "gone"):
        may = who == "admin" or (who == "manager" and own)
        reply = await house.ask(who, signal, await team_request(house, signal, kind, entity_id))
        if signal == "set_brake" and "*" in entity_id and reply.code == "invalid_request":
            continue  # A team or provider called "*" is refused before anything else is asked.
        assert (reply.code == "forbidden") is not may, f"{who}: {reply.body}"
        if signal == "set_brake" and may and reply.status is None:
            assert (await house.ask("admin", signal, {**off(kind, entity_id)})).result


def off(kind: str, entity_id: str) -> dict[str, Any]:
    return {"scope": kind, "entity_id": entity_id, "on": False, "reason": "a test"}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("signal", TEAM_SCOPED)
async def test_what_a_manager_was_refused_has_not_happened(house: House, signal: str) -> None:
    body = await team_request(house, signal, "team", "blue")
    before = await everything_of(house)
    assert (await house.ask("manager", signal, body)).code == "forbidden"
    assert await everything_of(house) == before


async def everything_of(house: House) -> tuple[Any, ...]:
    budgets = (await house.ask("admin", "list_budgets", {"limit": 1000})).result["budgets"]
    brakes = (await house.ask("admin", "list_brakes")).result["brakes"]
    trail = (await house.ask("admin", "get_audit_trail", {"limit": 1})).result["entries"]
    return [b["version"] for b in budgets], brakes, [entry["seq"] for entry in trail]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_manager_manages_follows_the_users_table(house: House) -> None:
    body = {"name": "acme-manager", "roles": ["manager"], "teams": ["blue"]}
    assert (await house.ask("admin", "set_user", body)).result

    async def moved() -> bool:
        red = await house.ask("manager", "create_budget", await team_request(house, "create_budget", "team", "red"))
        return red.code == "forbidden"

    await eventually(moved)
    blue = await house.ask("manager", "create_budget", await team_request(house, "create_budget", "team", "blue"))
    assert blue.code is None
    assert (await house.ask("admin", "set_user", body | {"teams": ["red"]})).result

    async def back() -> bool:
        red = await house.ask("manager", "create_budget", await team_request(house, "create_budget", "team", "red"))
        return red.code is None

    await eventually(back)


def tomorrow() -> str:
    return (datetime.now(UTC) + timedelta(hours=24)).isoformat()


MARK = "markedacme"
SECRET = f"whsec_{base64.b64encode(bytes(32)).decode()}"
CALL: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "team_id": MARK, "user_id": MARK, "project_id": MARK}
USAGE = {**CALL, "prompt_tokens": 1000, "completion_tokens": 100}
JANUARY = "2026-01-05T12:00:00Z"
SPAN = {"start": "2026-01-01T00:00:00Z", "end": "2099-01-01T00:00:00Z"}
PLAN: dict[str, Any] = {
    "conversations_per_day": 1000,
    "tokens": {"prompt": 1000, "completion": 100},
    "models": [{"provider": "openai", "model": "gpt-4o", "percent": "100"}],
    "scope": {"team_id": MARK},
}

READS: dict[str, list[dict[str, Any]]] = {
    "get_usage": [{}],
    "list_adjustments": [{}],
    "aggregate_usage": [{**SPAN, "group_by": ["team_id"]}],
    "export_usage": [{**SPAN, "format": kind, "limit": 10} for kind in ("csv", "jsonl", "focus-csv")],
    "list_bills": [{}],
    "list_dead_letters": [{}],
    "get_budget_status": [CALL],
    "list_budgets": [{"limit": 1000}],
    "list_reservations": [{"status": None}, {}],
    "list_overrides": [{}],
    "list_brakes": [{}],
    "list_model_limits": [{}],
    "list_price_rules": [{}, {"history": True}],
    "list_model_aliases": [{}, {"history": True}],
    "list_channels": [{}],
    "list_deliveries": [{}],
    "list_alert_rules": [{}],
    "list_alerts": [{}],
    "get_exchange_rates": [{"base": "USD", "quotes": ["VND"]}],
    "allocate_costs": [{**SPAN, "by": "team"}],
    "list_allocation_rules": [{}],
    "project_costs": [PLAN],
    "list_invoices": [{}],
    "get_configuration": [{}],
    "get_audit_trail": [{}, {"format": "jsonl"}],
    "list_users": [{}],
    "list_teams": [{}],
    "list_api_keys": [{"revoked": True}],
    "list_schedules": [{}],
}
NOTHING_OF_AN_ORG = {"get_status", "describe", "calculate_cost", "get_pricing", "get_provider_health"}
# What acme's own admin does not see marked in a test this small: nothing has been sent, and settings have no names.
UNMARKED = {"list_deliveries", "list_alerts", "get_configuration"}
# What another org is told is not there, by its id.
BY_ID = {"get_invoice"}
READING = (
    "allocate_",
    "project_",
    "get_",
    "list_",
    "aggregate_",
    "calculate_",
    "describe",
    "forecast_",
    "detect_",
    "export_",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(house: House) -> dict[str, str]:
    """One of everything in acme, marked; the ids by which it could be touched."""

    async def put(signal: str, body: dict[str, Any]) -> dict[str, Any]:
        return (await house.ask("admin", signal, body)).result

    budget = await put(
        "create_budget", {"name": MARK, "type": "team", "entity_id": MARK, "limit": "100", "alert_thresholds": [1]}
    )
    check = {**CALL, "prompt_tokens": 1000, "max_completion_tokens": 100, "request_id": MARK}
    decision = await put("check_budget", check)
    await put("track_usage", {**USAGE, "id": MARK, "ack": "applied"})
    await store(house.people["acme", "admin"], "usage.openai.chat", {"secret": MARK})
    await put("adjust_usage", {"usage_id": MARK, "kind": "refund", "amount": "0.000001", "reason": MARK})
    rates = [{"base": "USD", "quote": "VND", "rate": "25400"}]
    await put("update_exchange_rates", {"rates": rates, "source": MARK})
    override = await put(
        "request_override",
        {"budget_id": budget["budget_id"], "amount": "1", "reason": MARK, "until": tomorrow()},
    )
    await put("set_brake", {"scope": "team", "entity_id": f"{MARK}-t", "on": True, "reason": MARK})
    price = {"name": MARK, "layer": "contract", "op": "multiply", "provider": MARK, "factor": "0.5"}
    await put("update_pricing", {"rules": [price]})
    await put("set_model_alias", {"provider": MARK, "alias": MARK, "to_provider": "openai", "to_model": "gpt-4o"})
    costs = {"csv": "day,cost\n2026-01-01,1\n", "columns": {"date": "day", "cost": "cost"}}
    await put("reconcile_bill", {"bill_id": MARK, "provider": "openai", **costs})
    await put("set_user", {"name": MARK, "roles": ["viewer"], "display_name": MARK})
    await put("set_team", {"team_id": MARK, "members": [MARK]})
    key = await put("create_api_key", {"name": MARK, "user": MARK})
    await put("set_schedule", {"name": MARK, "cron": "0 0 1 1 *", "signal": "list_budgets"})
    await put("set_model_limit", {"provider": MARK, "model": MARK, "context_window": 1000})
    await put("set_channel", {"name": MARK, "kind": "webhook", "url": f"https://example.com/{MARK}", "secret": SECRET})
    rule = await put("set_alert_rule", {"name": MARK, "kind": "threshold", "scope": {"budget": MARK}})

    await put("track_usage", {**USAGE, "id": f"{MARK}-january", "timestamp": JANUARY, "ack": "applied"})
    split = {"name": MARK, "shared": {"project_id": MARK}, "split": "even"}
    await put("set_allocation_rules", {"by": "team", "rules": [split]})
    request = {"month": "2026-01", "payer": {"type": "team", "entity_id": MARK}, "status": "final", "request_id": MARK}
    invoice = await put("prepare_invoice", request)

    async def dead() -> list[dict[str, Any]]:
        return (await house.ask("admin", "list_dead_letters")).result["dead_letters"]

    await eventually(dead)
    (letter,) = await dead()
    return {
        "budget_id": budget["budget_id"],
        "reservation_id": decision["reservation_id"],
        "override_id": override["override_id"],
        "key_id": key["key"]["key_id"],
        "rule_id": rule["rule_id"],
        "invoice_id": invoice["invoice_id"],
        "dead_letter_id": letter["dead_letter_id"],
        "secret": key["secret"],
    }


def test_every_signal_that_reads_is_tried_from_another_org() -> None:
    reading = {signal.name for signal in REQUESTS if signal.name.startswith(READING)}
    assert reading - NOTHING_OF_AN_ORG - BY_ID == set(READS)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("signal", READS)
async def test_another_org_sees_nothing(house: House, made: dict[str, str], signal: str) -> None:
    ours = [await house.ask("admin", signal, body) for body in READS[signal]]
    if signal not in UNMARKED:
        assert any(MARK in str(reply.result) for reply in ours), f"the test itself would see nothing: {ours}"
    theirs = [await house.ask("admin", signal, body, org="globex") for body in READS[signal]]
    for reply in theirs:
        assert MARK not in str(reply.result)
        assert not any(made_id in str(reply.result) for made_id in made.values())


def touching(made: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Requests about something of acme, by its id or its name."""
    held = {"reservation_id": made["reservation_id"]}
    return {
        "get_budget_status": {"budget_id": made["budget_id"]},
        "update_budget": {"budget_id": made["budget_id"], "version": 1, "limit": "0"},
        "delete_budget": {"budget_id": made["budget_id"], "version": 1},
        "release_reservation": held,
        "extend_reservation": {**held, "ttl_s": 60},
        "request_override": {
            "budget_id": made["budget_id"], "amount": "1", "reason": "x", "until": tomorrow(),
        },
        "review_override": {"override_id": made["override_id"], "decision": "approve"},
        "retry_dead_letter": {"dead_letter_id": made["dead_letter_id"], "payload": USAGE},
        "get_invoice": {"invoice_id": made["invoice_id"]},
        "void_invoice": {"invoice_id": made["invoice_id"], "reason": "x"},
        "delete_user": {"name": MARK},
        "revoke_api_key": {"key_id": made["key_id"]},
        "create_api_key": {"name": "x", "user": MARK},
        "delete_schedule": {"name": MARK},
        "reconcile_bill": {"bill_id": MARK},
        "delete_channel": {"name": MARK},
        "test_channel": {"name": MARK},
        "delete_alert_rule": {"name": MARK, "version": 1},
    }  # fmt: skip


@pytest.mark.asyncio(loop_scope="module")
async def test_another_org_touches_nothing(house: House, made: dict[str, str]) -> None:
    before = await everything_of(house)
    for signal, body in touching(made).items():
        reply = await house.ask("admin", signal, body, org="globex")
        assert reply.code == "not_found", f"{signal}: {reply.body}"
    # What has no id is made in the own org, and is another thing.
    own: tuple[tuple[str, dict[str, Any]], ...] = (
        ("set_user", {"name": MARK, "roles": []}),
        ("set_team", {"team_id": MARK, "members": []}),
        ("set_brake", {"scope": "team", "entity_id": MARK, "on": True, "reason": "x"}),
        ("set_brake", {"scope": "org", "on": True, "reason": "x"}),
        ("track_usage", {**USAGE, "reservation_id": made["reservation_id"], "ack": "applied"}),
    )
    for signal, body in own:
        assert (await house.ask("admin", signal, body, org="globex")).result
    assert await everything_of(house) == before
    check = {**CALL, "prompt_tokens": 1, "max_completion_tokens": 1}
    assert (await house.ask("provider", "check_budget", check)).result["approved"]
    (user,) = [u for u in (await house.ask("admin", "list_users")).result["users"] if u["name"] == MARK]
    assert user["roles"] == ["viewer"]
    live = (await house.ask("viewer", "list_reservations")).result["reservations"]
    assert made["reservation_id"] in [r["reservation_id"] for r in live]
    for body in (off("org", "*"), off("team", MARK)):
        assert (await house.ask("admin", "set_brake", body, org="globex")).result


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["org", "org_id", "account", "role", "roles", "tenant"])
async def test_an_org_or_role_in_a_payload_is_refused(house: House, name: str) -> None:
    for signal in REQUESTS:
        if name == "roles" and signal.name in ("set_user", "create_api_key"):
            continue  # These are about the roles of users, not about the caller's.
        if name == "role" and signal.name == "list_users":
            continue
        reply = await house.ask("admin", signal.name, {name: "globex"})
        assert reply.code == "invalid_request", signal.name
        assert name in str(reply.body), signal.name


FORGED = '{"acc":"globex","user":"acme-admin"}'


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("header", ["Nats-Request-Info", "nats-request-info", "NATS-REQUEST-INFO"])
async def test_a_forged_stamp_gives_no_role_and_no_org(house: House, header: str) -> None:
    viewer = house.people["acme", "viewer"]
    for signal in REQUESTS:
        if not allowed(signal.name, "viewer"):
            reply = await ask_on(viewer, signal.subject, {}, headers={header: FORGED})
            assert reply.code == "forbidden", signal.name
    reply = await ask_on(viewer, "token.get_status", headers={header: FORGED})
    assert reply.result["org"] == "acme"


@pytest.mark.asyncio(loop_scope="module")
async def test_the_subject_of_another_org_cannot_be_reached(house: House) -> None:
    for signal in REQUESTS:
        for subject in (f"tm.req.globex.{signal.name}", f"tm.req.acme.{signal.name}"):
            with pytest.raises(nats_errors.NoRespondersError):
                await house.people["acme", "admin"].request(subject, b"{}", timeout=5)


@pytest.mark.asyncio(loop_scope="module")
async def test_an_api_key_gives_nothing_where_the_server_says_who_one_is(house: House, made: dict[str, str]) -> None:
    root = house.people["acme", "root"]
    key = (await ask(root, "create_api_key", {"name": "k", "user": "acme-admin"})).result["secret"]
    for who, org in (("viewer", "acme"), ("nobody", "acme"), ("viewer", "globex")):
        client = house.people[org, who]
        for secret in (key, made["secret"], "tm_0_0"):
            reply = await ask_on(client, "token.list_users", {}, headers={KEY_HEADER: secret})
            assert reply.code == "forbidden"


@pytest.mark.asyncio(loop_scope="module")
async def test_roles_that_were_taken_away_are_gone_for_a_connection_that_stays(house: House) -> None:
    async def replies(code: str | None) -> bool:
        return (await house.ask("finance", "list_users")).code == code

    for roles, code in ((["admin"], None), (["finance"], "forbidden")):
        assert (await house.ask("admin", "set_user", {"name": "acme-finance", "roles": roles})).result
        await eventually(lambda code=code: replies(code))
