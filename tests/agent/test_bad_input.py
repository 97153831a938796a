"""Hostile and careless input: each gets its code and field, and whoever asks next is served as if nothing had been."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from nats.aio.client import Client

from agent.actor import TokenManagerAgent
from agent.embedded import EmbeddedNats
from schemas.errors import STATUS
from schemas.subjects import DEAD_LETTER_STREAM
from tests.agent.bad_input import BUDGET, CHECK, DOCUMENT, PUBLISHED, REFUSED, SERVED, USAGE, Case, document
from tests.agent.conftest import PASSWORD, new_database
from tests.conftest import PostgresServer
from tests.support.polling import eventually
from tests.support.running import Reply, ask, connected, forget_streams, running_agent, store

pytestmark = pytest.mark.asyncio(loop_scope="module")
PAYLOAD_MAX = 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    bus: EmbeddedNats, postgres_server: PostgresServer, migrated_template: str
) -> AsyncIterator[TokenManagerAgent]:
    """One agent for the whole table: what one row breaks, the next one sees."""
    await forget_streams(bus.agent_url)
    async with new_database(postgres_server, migrated_template) as url, running_agent(bus.agent_url, url) as agent:
        yield agent
        assert agent._dispatch.open_requests == 0, "a request was not answered"  # pyright: ignore[reportPrivateUsage]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(bus: EmbeddedNats, shared: TokenManagerAgent) -> AsyncIterator[Client]:
    async with connected(bus.url) as client:
        yield client


def label(case: Any) -> str:
    return f"{case.signal}: {case.what}" if isinstance(case, Case) else case.what


async def still_served(client: Client) -> None:
    """The signals with queues of their own, and one without, answer at once."""
    assert (await ask(client, "track_usage", USAGE, timeout_s=5)).result["cost"] == "0.0035"
    assert (await ask(client, "check_budget", {**CHECK, "reserve": False}, timeout_s=5)).result["approved"]
    assert (await ask(client, "calculate_cost", USAGE, timeout_s=5)).result["cost"] == "0.0035"


def check_error(reply: Reply, *, code: str, field: str | None) -> None:
    error = reply.body["error"]
    assert (error["code"], error["field"]) == (code, field), error
    assert error.keys() == {"code", "message", "field", "correlation_id"} and error["correlation_id"]
    assert reply.status == STATUS[code]
    assert reply.headers.keys() == {"Nats-Service-Error", "Nats-Service-Error-Code"}
    assert reply.headers["Nats-Service-Error"]
    assert 0 < len(error["message"]) <= 2000


@pytest.mark.parametrize("case", REFUSED, ids=label)
async def test_is_refused_with_its_code_and_field(caller: Client, case: Case) -> None:
    assert case.code is not None
    check_error(await ask(caller, case.signal, case.body), code=case.code, field=case.field)
    await still_served(caller)


@pytest.mark.parametrize("case", SERVED, ids=label)
async def test_is_taken_as_it_stands(caller: Client, case: Case) -> None:
    result = (await ask(caller, case.signal, case.body)).result
    assert {name: result[name] for name, _ in case.reply} == dict(case.reply)
    await still_served(caller)


async def test_an_unknown_field_names_the_nearest_known_one(caller: Client) -> None:
    reply = await ask(caller, "track_usage", {**USAGE, "promt_tokens": 1})
    assert reply.body["error"]["message"] == "unknown field `promt_tokens`; did you mean `prompt_tokens`?"


async def test_what_was_taken_can_be_read_again(caller: Client) -> None:
    async def drained() -> bool:
        return (await ask(caller, "get_status")).result["ingest"]["stored_messages"] == 0

    await eventually(drained)
    cursor: str | None = None
    while True:
        page = (await ask(caller, "get_usage", {"limit": 50, "cursor": cursor})).result
        cursor = page["next_cursor"]
        if cursor is None:
            break
    status = (await ask(caller, "get_status", {"reconcile": True})).result
    assert status["reconciliation"]["ok"] and status["healthy"], status
    assert status["ingest"]["dead_letters_open"] == 0


async def test_each_bad_event_of_a_batch_has_its_own_error(caller: Client) -> None:
    bad: list[Any] = [1, None, "x", [], {}, {**USAGE, "prompt_tokens": -1}, {**USAGE, "x" * 500_000: 1}]
    reply = (await ask(caller, "track_usage", {"events": [USAGE, *bad, USAGE]})).result
    assert (reply["accepted"], reply["rejected"]) == (2, len(bad))
    errors = [event["error"] for event in reply["events"] if not event["accepted"]]
    assert [error["code"] for error in errors] == ["invalid_request"] * len(bad)
    assert [error["field"] for error in errors[:6]] == [
        *(f"events[{i}]" for i in range(1, 5)),
        "events[5].provider",
        "events[6].prompt_tokens",
    ]


async def test_a_batch_whose_receipts_are_too_long_is_answered_without_warnings(caller: Client) -> None:
    events = [
        {"provider": "p" * 256, "model": "m" * 256, "prompt_tokens": 1, "id": f"{i:04d}" + "i" * 252}
        for i in range(1000)
    ]
    reply = (await ask(caller, "track_usage", {"events": events})).result
    assert reply["accepted"] == 1000 and reply["events"][0]["warnings"] == []


async def test_a_thousand_misspelled_fields_hold_nobody_up(caller: Client) -> None:
    events = [{**USAGE, f"prompt_token_{i}": 1} for i in range(1000)]
    flood = asyncio.ensure_future(ask(caller, "track_usage", {"events": events}))
    await still_served(caller)
    assert (await flood).result["rejected"] == 1000


async def test_a_message_of_exactly_the_limit_is_answered(caller: Client) -> None:
    body = b'{"provider":"x","model":"y","prompt_tokens":1,"metadata":{"a":"' + b"x" * PAYLOAD_MAX
    body = body[: PAYLOAD_MAX - 3] + b'"}}'
    assert len(body) == PAYLOAD_MAX
    check_error(await ask(caller, "track_usage", body), code="invalid_request", field="metadata")
    await still_served(caller)


@pytest.mark.parametrize("size", [PAYLOAD_MAX + 1, 10 * PAYLOAD_MAX])
async def test_a_message_above_the_limit_is_refused_by_the_server(caller: Client, bus: EmbeddedNats, size: int) -> None:
    before = (await ask(caller, "get_status")).result["requests"]["track_usage"]["requests"]
    reader, writer = await asyncio.open_connection("127.0.0.1", bus.port)
    # The size alone is enough. A server that closes with unread data resets the connection, and its answer is lost.
    writer.write(b'CONNECT {"verbose":false}\r\nPUB token.track_usage inbox %d\r\n' % size)
    answer = b""
    while b"-ERR" not in answer:
        line = await asyncio.wait_for(reader.readline(), 10)
        assert line, "the server closed without a word"
        answer += line
    assert b"Maximum Payload" in answer
    writer.close()
    await still_served(caller)
    after = (await ask(caller, "get_status")).result["requests"]["track_usage"]["requests"]
    assert after == before + 1, "the agent has not noticed"


async def test_a_reply_too_large_for_the_bus_is_an_error(caller: Client, shared: TokenManagerAgent) -> None:
    requests = shared._clients[0]  # pyright: ignore[reportPrivateUsage]
    limit = requests._max_payload  # pyright: ignore[reportPrivateUsage]
    requests._max_payload = 10_000  # pyright: ignore[reportPrivateUsage]
    try:
        check_error(await ask(caller, "describe"), code="too_large", field=None)
    finally:
        requests._max_payload = limit  # pyright: ignore[reportPrivateUsage]
    await still_served(caller)


async def test_an_unpriced_model_is_a_denial_where_the_org_rejects_them(
    bus: EmbeddedNats, shared: TokenManagerAgent
) -> None:
    await shared.services.database.execute(
        "INSERT INTO setting (org_id, key, value) VALUES ('acme', 'on_unpriced', '\"reject\"')"
    )
    async with connected(bus.url_for("acme-admin", PASSWORD)) as client:
        unknown = {**CHECK, "model": "no-such-model", "team_id": "t1"}
        await ask(client, "create_budget", BUDGET)
        decision = (await ask(client, "check_budget", unknown)).result
        assert (decision["approved"], decision["reservation_id"]) == (False, None)
        assert decision["reason"]["code"] == "unpriced" and decision["reason"]["message"]
        assert (await ask(client, "check_budget", CHECK)).result["approved"]


async def test_bad_messages_of_the_stream_become_dead_letters(bus: EmbeddedNats, caller: Client) -> None:
    for i, letter in enumerate(PUBLISHED):
        await store(caller, f"usage.bad.n{i}", letter.body)
    await store(caller, "usage.good.one", {**USAGE, "id": "after-them-all"})

    async def applied() -> bool:
        status = (await ask(caller, "get_status")).result
        return status["ingest"]["stored_messages"] == 0 and status["outbox_pending"] == 0

    await eventually(applied, 15)
    found: dict[str, tuple[str, str | None]] = {}
    cursor: str | None = None
    while True:
        page = (await ask(caller, "list_dead_letters", {"limit": 7, "cursor": cursor})).result
        found |= {item["subject"]: (item["reason"], item["field"]) for item in page["dead_letters"]}
        cursor = page["next_cursor"]
        if cursor is None:
            break
    expected = {f"tm.ingest.default.bad.n{i}": (c.reason, c.field) for i, c in enumerate(PUBLISHED)}
    assert found == expected
    assert (await ask(caller, "get_usage", {"limit": 1})).result["events"][0]["id"] == "after-them-all"
    async with connected(bus.agent_url) as inside:
        info = msgspec.json.decode((await inside.request(f"$JS.API.STREAM.INFO.{DEAD_LETTER_STREAM}", b"")).data)
    assert info["state"]["messages"] == len(PUBLISHED)
    await still_served(caller)


async def test_the_document_says_what_the_tests_do() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run: python -m tests.agent.bad_input"
