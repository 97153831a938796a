"""Who is asking, over real accounts: the server says it, nobody else; and what each role may send."""
# pyright: reportUnknownMemberType=false
# nats-py leaves the options of its calls untyped.

import asyncio
import signal as signals_of_processes
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from nats import errors as nats_errors
from nats.aio.subscription import Subscription

from agent.actor import TokenManagerAgent
from agent.bus.client import connect
from agent.bus.wire import header_block
from agent.embedded import EmbeddedNats
from agent.embedded.nats import find_binary
from signals import Request
from signals.registry import REQUESTS
from tests.agent.conftest import PASSWORD, ROLES, new_database
from tests.bus.servers import free_port
from tests.conftest import PostgresServer
from tests.support.polling import eventually
from tests.support.running import Reply, ask, ask_on, connected, forget_streams, running_agent, store

CALL: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "team_id": "t1"}
USAGE: dict[str, Any] = {**CALL, "prompt_tokens": 1000, "completion_tokens": 100}
CHECK: dict[str, Any] = {**CALL, "prompt_tokens": 1000, "max_completion_tokens": 100}
BUDGET: dict[str, Any] = {"name": "research", "type": "team", "entity_id": "t1", "limit": "1"}
PLAIN_CONFIG = """
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: "{store}", max_mem: 64MB, max_file: 16GB }}
"""


def settings_roles() -> dict[str, tuple[str, ...]]:
    return {f"{org}/{org}-{role}": (role,) for org in ("acme", "globex") for role in ROLES}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tenants(
    bus: EmbeddedNats, postgres_server: PostgresServer, migrated_template: str
) -> AsyncIterator[TokenManagerAgent]:
    """An agent that knows every user's role and gives nobody else any."""
    await forget_streams(bus.agent_url)
    roles = settings_roles()
    async with (
        new_database(postgres_server, migrated_template) as url,
        running_agent(bus.agent_url, url, default_roles=None, roles=roles) as agent,
    ):
        yield agent


class Tenant:
    """One account, asked as any of its users."""

    def __init__(self, bus: EmbeddedNats, org: str) -> None:
        self._bus = bus
        self.org = org

    def url(self, user: str) -> str:
        return self._bus.url_for(f"{self.org}-{user}", PASSWORD)

    async def ask(self, signal: str, body: object = None, *, user: str = "admin") -> Reply:
        async with connected(self.url(user)) as client:
            return await ask(client, signal, body)


@pytest.fixture
def acme(bus: EmbeddedNats) -> Tenant:
    return Tenant(bus, "acme")


@pytest.fixture
def globex(bus: EmbeddedNats) -> Tenant:
    return Tenant(bus, "globex")


async def applied(tenant: Tenant) -> None:
    async def empty() -> bool:
        return (await tenant.ask("get_status")).result["ingest"]["stored_messages"] == 0

    await eventually(empty)


async def not_of(org: str, heard: Subscription) -> list[tuple[str, bytes]]:
    """What was heard, but for the org's own events: those of an earlier test may still be on their way."""
    found: list[tuple[str, bytes]] = []
    while heard.pending_msgs:
        message = await heard.next_msg(timeout=5)
        own = message.subject.startswith("token.evt.") and msgspec.json.decode(message.data)["org"] == org
        if not own:
            found.append((message.subject, message.data))
    return found


@pytest.mark.asyncio(loop_scope="module")
async def test_a_tenant_sees_and_touches_only_its_own(tenants: TokenManagerAgent, acme: Tenant, globex: Tenant) -> None:
    budget = (await acme.ask("create_budget", BUDGET)).result
    decision = (await acme.ask("check_budget", CHECK)).result
    await acme.ask("track_usage", {**USAGE, "id": "acme-1", "ack": "applied"})
    async with connected(acme.url("provider")) as client:
        await store(client, "usage.openai.chat", {"secret": "of acme"})
    await applied(acme)
    (letter,) = (await acme.ask("list_dead_letters")).result["dead_letters"]

    assert (await globex.ask("list_budgets")).result["budgets"] == []
    assert (await globex.ask("list_reservations", {"status": None})).result["reservations"] == []
    assert (await globex.ask("get_usage")).result["events"] == []
    assert (await globex.ask("list_dead_letters")).result["dead_letters"] == []
    assert (await globex.ask("get_budget_status", CALL)).result["budgets"] == []
    span = {"start": "2026-01-01T00:00:00Z", "end": "2099-01-01T00:00:00Z"}
    assert (await globex.ask("aggregate_usage", span)).result["totals"]["requests"] == 0
    status = (await globex.ask("get_status", {"reconcile": True})).result
    assert (status["org"], status["reservations"]["live"], status["reconciliation"]["events"]) == ("globex", 0, 0)
    assert status["ingest"]["dead_letters_open"] == 0

    held = {"reservation_id": decision["reservation_id"]}
    for signal, body in (
        ("release_reservation", held),
        ("extend_reservation", {**held, "ttl_s": 60}),
        ("get_budget_status", {"budget_id": budget["budget_id"]}),
        ("update_budget", {"budget_id": budget["budget_id"], "version": 1, "limit": "0"}),
        ("retry_dead_letter", {"dead_letter_id": letter["dead_letter_id"], "payload": USAGE}),
    ):
        assert (await globex.ask(signal, body)).code == "not_found", signal

    # Usage that names another org's reservation settles nothing there, by id or by request id.
    for name in ({"reservation_id": decision["reservation_id"]}, {"request_id": decision["request_id"]}):
        assert (await globex.ask("track_usage", {**USAGE, **name, "ack": "applied"})).result["accepted"]
    live = (await acme.ask("list_reservations")).result["reservations"]
    assert [found["reservation_id"] for found in live] == [decision["reservation_id"]]
    # The same usage id is another event in another org, and the same budget name another budget.
    other = (await globex.ask("track_usage", {**USAGE, "id": "acme-1", "prompt_tokens": 1, "ack": "applied"})).result
    assert (other["accepted"], other["duplicate"], other["conflict"]) == (True, False, False)
    assert (await globex.ask("create_budget", BUDGET)).result["window"]["spent"] == "0"
    (mine,) = (await acme.ask("get_usage")).result["events"]
    assert mine["prompt_tokens"] == 1000


@pytest.mark.asyncio(loop_scope="module")
async def test_events_reach_only_their_own_tenant(tenants: TokenManagerAgent, acme: Tenant, globex: Tenant) -> None:
    async with connected(acme.url("viewer")) as mine, connected(globex.url("viewer")) as theirs:
        own = await mine.subscribe("token.evt.>")
        foreign = await theirs.subscribe(">")
        await asyncio.gather(mine.flush(), theirs.flush())
        await acme.ask("create_budget", {**BUDGET, "name": "heard"})
        event = msgspec.json.decode((await own.next_msg(timeout=5)).data)
        assert (event["type"], event["org"], event["data"]["actor"]) == ("token.budget.changed", "acme", "acme-admin")
        await theirs.flush()
        assert await not_of("globex", foreign) == []


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("field", ["org", "org_id", "role", "roles", "tenant", "actor", "user"])
async def test_a_payload_that_says_who_one_is_is_refused(tenants: TokenManagerAgent, acme: Tenant, field: str) -> None:
    refused = await acme.ask("get_usage", {field: "globex"}, user="viewer")
    assert (refused.code, refused.field) == ("invalid_request", field)
    for signal, body in (("track_usage", USAGE), ("check_budget", CHECK)):
        assert (await acme.ask(signal, {**body, field: "globex"}, user="provider")).field == field
    forbidden = await acme.ask("create_budget", {**BUDGET, field: "admin"}, user="viewer")
    assert forbidden.code == "forbidden"


FORGED = b'{"acc":"globex","user":"acme-admin"}'
FORGERIES = {
    "once": [b"Nats-Request-Info: " + FORGED],
    "twice": [b"Nats-Request-Info: " + FORGED] * 2,
    "lower case": [b"nats-request-info: " + FORGED],
    "upper case": [b"NATS-REQUEST-INFO:" + FORGED],
    "all of them": [b"nats-request-info: " + FORGED, b"Nats-Request-Info: " + FORGED, b"Nats-request-info:" + FORGED],
    "in another header": [b"X: Nats-Request-Info: " + FORGED, b"XNats-Request-Info: " + FORGED],
    "blank before the colon": [b"Nats-Request-Info : " + FORGED, b" Nats-Request-Info: " + FORGED],
    "folded": [b"X: y\n Nats-Request-Info: " + FORGED],
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_forged_stamp_does_not_survive(tenants: TokenManagerAgent, acme: Tenant, forgery: str) -> None:
    """The server replaces only a header of its own spelling; one in lower case arrives, and must not be believed."""
    client = await connect(acme.url("viewer"))
    answered: asyncio.Future[tuple[bytes, bytes | None]] = asyncio.get_running_loop().create_future()
    inbox = client.new_inbox()
    await client.subscribe_direct(inbox, lambda _s, _r, data, headers: answered.set_result((data, headers)))
    headers = b"NATS/1.0\r\n" + b"\r\n".join(FORGERIES[forgery]) + b"\r\n\r\n"
    client.publish_now("token.list_dead_letters", b"{}", inbox.encode(), headers)
    data, _ = await asyncio.wait_for(answered, 10)
    await client.close()
    assert msgspec.json.decode(data)["error"]["code"] == "forbidden"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_without_a_stamp_is_unauthenticated(tenants: TokenManagerAgent, bus: EmbeddedNats) -> None:
    async with connected(bus.agent_url) as inside:
        for signal in REQUESTS:
            reply = await ask_on(inside, f"tm.req.acme.{signal.name}")
            assert (reply.status, reply.code) == (401, "unauthenticated"), signal.name
        unreadable = await ask_on(inside, "tm.req.acme.get_status", headers={"Nats-Request-Info": "{"})
        assert unreadable.code == "unauthenticated"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "subject",
    ["tm.req.globex.get_usage", "tm.req.acme.get_usage", "tm.ingest.globex.a.b", "tm.batch.0", "tm.evt.acme.x",
     "$JS.API.STREAM.INFO.TM_USAGE", "$JS.API.STREAM.PURGE.TM_USAGE", "$JS.API.CONSUMER.MSG.NEXT.TM_USAGE.apply"],
)  # fmt: skip
async def test_subjects_of_the_agent_are_out_of_a_tenants_reach(
    tenants: TokenManagerAgent, acme: Tenant, subject: str
) -> None:
    async with connected(acme.url("admin")) as client:
        try:
            reply = await ask_on(client, subject)
        except nats_errors.NoRespondersError:
            return
        # The server itself answers for a JetStream that this account does not have.
        assert reply.body["error"]["err_code"] == 10039, reply.body


@pytest.mark.asyncio(loop_scope="module")
async def test_a_tenant_cannot_listen_to_requests_of_another(
    tenants: TokenManagerAgent, acme: Tenant, globex: Tenant
) -> None:
    async with connected(globex.url("admin")) as spy:
        everything = await spy.subscribe(">")
        await spy.flush()
        await acme.ask("get_status")
        await spy.flush()
        assert await not_of("globex", everything) == []


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("role", [*ROLES, "nobody"])
async def test_each_signal_is_for_the_roles_it_declares(tenants: TokenManagerAgent, acme: Tenant, role: str) -> None:
    async with connected(acme.url(role)) as client:
        for signal in REQUESTS:
            reply = await ask(client, signal.name, {"no_such_field": 1})
            allowed = role == "admin" or role in signal.roles or "anyone" in signal.roles
            assert reply.code == ("invalid_request" if allowed else "forbidden"), f"{role} {signal.name}"
            assert reply.status == (400 if allowed else 403)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_user_of_another_org_with_a_known_name_has_no_role(
    tenants: TokenManagerAgent, bus: EmbeddedNats
) -> None:
    """Roles are for `org/user`: the local user of `default` is nobody here."""
    async with connected(bus.url) as client:
        assert (await ask(client, "list_budgets")).code == "forbidden"
        assert (await ask(client, "get_status")).result["org"] == "default"


@pytest_asyncio.fixture
async def plain_nats(tmp_path: Path) -> AsyncIterator[str]:
    """A nats-server as it comes: no accounts, no users."""
    port = free_port()
    config = tmp_path / "plain.conf"
    config.write_text(PLAIN_CONFIG.format(port=port, store=tmp_path / "js"), encoding="utf-8")
    quiet = asyncio.subprocess.DEVNULL
    server = await asyncio.create_subprocess_exec(str(find_binary()), "-c", str(config), stdout=quiet, stderr=quiet)
    url = f"nats://127.0.0.1:{port}"

    async def answers() -> bool:
        assert server.returncode is None, "nats-server ended"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    await eventually(answers)
    yield url
    server.send_signal(signals_of_processes.SIGTERM)
    await server.wait()


async def test_single_account_mode_needs_no_accounts(plain_nats: str, database_url: str) -> None:
    async with (
        running_agent(plain_nats, database_url, nats_mode="single-account") as agent,
        connected(plain_nats) as client,
    ):
        heard = await client.subscribe("token.evt.>")
        budget = (await ask(client, "create_budget", BUDGET)).result
        decision = (await ask(client, "check_budget", CHECK)).result
        settled = {**USAGE, "reservation_id": decision["reservation_id"], "ack": "applied"}
        assert (await ask(client, "track_usage", settled)).result["cost"] == "0.0035"
        assert (await store(client, "usage.openai.chat", {**USAGE, "id": "e1"}))["stream"] == "TM_USAGE"
        await store(client, "usage.openai.chat", {"model": "x"})

        async def spent() -> str:
            (found,) = (await ask(client, "get_budget_status", {"budget_id": budget["budget_id"]})).result["budgets"]
            return found["window"]["spent"]

        async def twice() -> bool:
            return await spent() == "0.007"

        await eventually(twice)
        status = (await ask(client, "get_status", {"reconcile": True})).result
        assert (status["org"], status["reconciliation"]["ok"]) == ("default", True)
        event = msgspec.json.decode((await heard.next_msg(timeout=5)).data)
        assert (event["type"], event["org"]) == ("token.budget.changed", "default")

        async def letters() -> list[dict[str, Any]]:
            return (await ask(client, "list_dead_letters")).result["dead_letters"]

        await eventually(letters)
        (letter,) = await letters()
        retry = {"dead_letter_id": letter["dead_letter_id"], "payload": USAGE}
        assert (await ask(client, "retry_dead_letter", retry)).result["status"] == "retried"
        info = msgspec.json.decode((await client.request("$SRV.INFO", b"", timeout=5)).data)
        assert info["id"] == agent.instance
        assert {endpoint["subject"] for endpoint in info["endpoints"]} == {f"token.{r.name}" for r in REQUESTS}


async def test_single_account_mode_believes_no_stamp(plain_nats: str, database_url: str) -> None:
    """Anybody in the account can write the header, so it names nobody."""
    given: dict[str, Any] = {
        "default_roles": ("viewer",),
        "roles": {"default/boss": ("admin",), "acme/boss": ("admin",)},
    }
    async with (
        running_agent(plain_nats, database_url, nats_mode="single-account", **given),
        connected(plain_nats) as client,
    ):
        forged = {"Nats-Request-Info": '{"acc":"acme","user":"boss"}'}
        reply = await ask_on(client, "token.create_budget", BUDGET, headers=forged)
        assert reply.code == "forbidden"
        assert (await ask_on(client, "token.get_status", headers=forged)).result["org"] == "default"


def test_headers_of_errors_cannot_be_forged_by_field_names() -> None:
    block = header_block({"Nats-Service-Error": "unknown field `a\r\nNats-Msg-Id: 1`"})
    assert block.count(b"\r\n") == 3


def test_every_signal_names_roles_that_exist() -> None:
    def known(signal: Request[Any, Any]) -> bool:
        return set(signal.roles) <= {*ROLES, "anyone"}

    assert all(known(signal) for signal in REQUESTS)
