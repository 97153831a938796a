"""Every signal once, over a real NATS server and a real PostgreSQL, the way callers use them."""
# pyright: reportUnknownMemberType=false
# nats-py leaves the options of its calls untyped.

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from agent.actor import TokenManagerAgent
from agent.embedded import EmbeddedNats
from schemas.budget import BudgetDecision
from schemas.subjects import DEAD_LETTER_STREAM, EVENTS_STREAM
from signals import contract
from signals.registry import REQUESTS
from tests.support.polling import eventually
from tests.support.running import (
    agent_process,
    ask,
    ask_on,
    connected,
    forget_streams,
    running_agent,
    store,
)

# gpt-4o costs 2.50 and 10 USD a million: 1,000 and 100 tokens are 0.0035 USD.
CALL: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "team_id": "t1"}
USAGE: dict[str, Any] = {**CALL, "prompt_tokens": 1000, "completion_tokens": 100}
CHECK: dict[str, Any] = {**CALL, "prompt_tokens": 1000, "max_completion_tokens": 100}
BUDGET: dict[str, Any] = {"name": "research", "type": "team", "entity_id": "t1", "limit": "1"}
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


class Heard:
    """The events a tenant receives on `token.evt.>`."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    async def take(self, message: Msg) -> None:
        self.events.append((message.subject, msgspec.json.decode(message.data)))

    def of(self, name: str) -> list[dict[str, Any]]:
        """The data of every event of this name."""
        return [event["data"] for subject, event in self.events if subject == f"token.evt.{name}"]


@asynccontextmanager
async def listening(client: Client) -> AsyncGenerator[Heard]:
    heard = Heard()
    subscription = await client.subscribe("token.evt.>", cb=heard.take)
    await client.flush()
    yield heard
    await subscription.unsubscribe()


async def settled(client: Client) -> None:
    """Return when everything stored is applied and every event is out."""

    async def quiet() -> bool:
        status = (await ask(client, "get_status")).result
        return status["ingest"]["stored_messages"] == 0 and status["outbox_pending"] == 0

    await eventually(quiet, 15, "usage is not applied, or events are not published")


async def stream_messages(bus: EmbeddedNats, stream: str) -> list[Any]:
    """Everything a stream holds, decoded."""
    async with connected(bus.agent_url) as client:
        info = msgspec.json.decode((await client.request(f"$JS.API.STREAM.INFO.{stream}", b"")).data)
        found: list[Any] = []
        for seq in range(info["state"]["first_seq"], info["state"]["last_seq"] + 1):
            message = await client.request(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode({"seq": seq}))
            found.append(msgspec.json.decode(message.data))
        return found


async def reconciled(client: Client) -> dict[str, Any]:
    status = (await ask(client, "get_status", {"reconcile": True})).result
    assert status["reconciliation"]["ok"], status["reconciliation"]
    return status["reconciliation"]


async def test_a_call_from_the_budget_to_the_report(agent: TokenManagerAgent, client: Client) -> None:
    budget = (await ask(client, "create_budget", BUDGET)).result
    assert (budget["limit"], budget["version"], budget["window"]["spent"]) == ("1", 1, "0")

    decision = (await ask(client, "check_budget", CHECK)).result
    assert decision["approved"] and decision["estimated_cost"] == "0.0035"
    assert decision["reservation_id"] and UUID.fullmatch(decision["reservation_id"])
    (window,) = decision["budgets"]
    assert (window["name"], window["reserved"], window["remaining"]) == ("research", "0.0035", "0.9965")

    listed = (await ask(client, "list_reservations")).result["reservations"]
    assert [r["reservation_id"] for r in listed] == [decision["reservation_id"]]

    usage = {**USAGE, "completion_tokens": 50, "reservation_id": decision["reservation_id"], "ack": "applied"}
    receipt = (await ask(client, "track_usage", usage)).result
    assert (receipt["cost"], receipt["total_tokens"], receipt["duplicate"]) == ("0.003", 1050, False)
    assert (receipt["cost_status"], receipt["price_source"]) == ("priced", "genai-prices")

    (applied,) = (await ask(client, "get_budget_status", {"budget_id": budget["budget_id"]})).result["budgets"]
    assert (applied["window"]["spent"], applied["window"]["reserved"]) == ("0.003", "0")
    by_call = (await ask(client, "get_budget_status", CALL)).result["budgets"]
    assert [found["budget"]["name"] for found in by_call] == ["research"] and by_call[0]["why"]
    assert [b["name"] for b in (await ask(client, "list_budgets")).result["budgets"]] == ["research"]

    now = datetime.now(UTC)
    day = {"start": (now - timedelta(days=1)).isoformat(), "end": (now + timedelta(days=1)).isoformat()}
    sums = (await ask(client, "aggregate_usage", {**day, "group_by": ["team_id", "model"]})).result
    assert [row["group"] for row in sums["rows"]] == [{"team_id": "t1", "model": "gpt-4o"}]
    assert (sums["totals"]["cost"], sums["totals"]["requests"], sums["totals"]["reserved_requests"]) == ("0.003", 1, 1)
    (event,) = (await ask(client, "get_usage", {"filters": {"team_id": "t1"}})).result["events"]
    assert (event["id"], event["cost"], event["charged_budgets"]) == (receipt["id"], "0.003", 1)
    assert [item["kind"] for item in event["line_items"]] == ["input", "output"]

    cost = (await ask(client, "calculate_cost", {k: v for k, v in USAGE.items() if k != "team_id"})).result
    assert (cost["cost"], cost["cost_status"]) == ("0.0035", "priced")
    pricing = (await ask(client, "get_pricing", {"provider": "openai", "model": "gpt-4o"})).result
    assert (pricing["rates"]["input"], pricing["rates"]["output"]) == ("2.5", "10")
    await reconciled(client)


async def test_release_and_extend_are_idempotent(agent: TokenManagerAgent, client: Client) -> None:
    await ask(client, "create_budget", BUDGET)
    decision = (await ask(client, "check_budget", {**CHECK, "ttl_s": 30})).result
    mine = {"reservation_id": decision["reservation_id"]}
    longer = (await ask(client, "extend_reservation", {**mine, "ttl_s": 600})).result
    assert longer["approved"] and longer["status"] == "live" and longer["expires_at"] > decision["expires_at"]
    larger = (await ask(client, "extend_reservation", {**mine, "ttl_s": 1, "estimated_cost": "0.5"})).result
    assert larger["approved"] and larger["estimated_cost"] == "0.5" and larger["expires_at"] == longer["expires_at"]
    too_large = (await ask(client, "extend_reservation", {**mine, "ttl_s": 1, "estimated_cost": "1.5"})).result
    assert not too_large["approved"] and too_large["estimated_cost"] == "0.5"
    assert too_large["reason"]["code"] == "budget_exceeded"
    for _ in range(2):
        assert (await ask(client, "release_reservation", mine)).result["status"] == "released"
    assert (await ask(client, "extend_reservation", {**mine, "ttl_s": 1})).code == "conflict"
    (found,) = (await ask(client, "get_budget_status", CALL)).result["budgets"]
    assert found["window"]["reserved"] == "0"


async def test_a_check_is_idempotent_by_its_request_id(agent: TokenManagerAgent, client: Client) -> None:
    await ask(client, "create_budget", BUDGET)
    first = (await ask(client, "check_budget", {**CHECK, "request_id": "r1"})).result
    again = (await ask(client, "check_budget", {**CHECK, "request_id": "r1"})).result
    assert again["reservation_id"] == first["reservation_id"] and again["budgets"][0]["reserved"] == "0.0035"
    other = await ask(client, "check_budget", {**CHECK, "prompt_tokens": 1001, "request_id": "r1"})
    assert (other.code, other.field) == ("conflict", "request_id")


async def test_replies_of_check_budget_have_exactly_the_declared_fields(
    agent: TokenManagerAgent, client: Client
) -> None:
    await ask(client, "create_budget", BUDGET)
    approved = await client.request("token.check_budget", msgspec.json.encode(CHECK), timeout=5)
    denied = await client.request("token.check_budget", msgspec.json.encode({**CHECK, "estimated_cost": "0.9999"}))
    declared = {field.encode_name for field in msgspec.structs.fields(BudgetDecision)}
    for message, outcome in ((approved, True), (denied, False)):
        decision = msgspec.json.decode(message.data, type=BudgetDecision)
        assert decision.approved is outcome
        assert msgspec.json.decode(message.data).keys() == declared
        again = msgspec.json.decode(msgspec.json.encode(decision))
        assert again == msgspec.json.decode(message.data), "the hand-written reply is what the struct would say"
    reason = msgspec.json.decode(denied.data)
    assert reason["reason"]["code"] == "budget_exceeded" and "research" in reason["reason"]["message"]
    assert reason["retry_after_s"] > 0 and reason["reservation_id"] is None


async def test_each_event_reaches_the_tenant_exactly_once(
    agent: TokenManagerAgent, client: Client, bus: EmbeddedNats
) -> None:
    async with listening(client) as heard:
        budget = (await ask(client, "create_budget", {**BUDGET, "limit": "0.01"})).result
        changed = {"budget_id": budget["budget_id"], "version": 1, "alert_thresholds": [30, 60, 100]}
        assert (await ask(client, "update_budget", changed)).result["version"] == 2
        stale = await ask(client, "update_budget", changed)
        assert (stale.code, stale.field) == ("conflict", "version")
        for _ in range(4):  # 35 %, 70 %, 105 %, 140 % of the limit
            await ask(client, "track_usage", {**USAGE, "ack": "applied"})
        for _ in range(3):
            assert not (await ask(client, "check_budget", CHECK)).result["approved"]
        for _ in range(2):
            await ask(client, "track_usage", {**USAGE, "model": "no-such-model", "ack": "applied"})
        await settled(client)
        stored = len(await stream_messages(bus, EVENTS_STREAM))
        await eventually(lambda: len(heard.events) >= stored, message="events are missing")

    assert [event["threshold"] for event in heard.of("budget.threshold")] == [30, 60, 100]
    (exceeded,) = heard.of("budget.exceeded")
    assert exceeded["cause"] == "spent" and exceeded["window"]["name"] == "research"
    assert [event["amount"] for event in heard.of("budget.overrun")] == ["0.0005", "0.0035"]
    created, updated = heard.of("budget.changed")
    assert (created["action"], created["before"], updated["action"]) == ("created", None, "updated")
    assert updated["actor"] == "local" and updated["after"]["alert_thresholds"] == [30, 60, 100]
    (unpriced,) = heard.of("usage.unpriced")
    assert (unpriced["provider"], unpriced["model"]) == ("openai", "no-such-model")
    # What they cross is raised as alerts besides, each with the event that raised it.
    assert len([subject for subject, _ in heard.events if subject != "token.evt.alert.raised"]) == 9

    for subject, event in heard.events:
        assert event["specversion"] == "1.0" and event["type"] == f"token.{subject.removeprefix('token.evt.')}"
        assert UUID.fullmatch(event["id"]) and event["source"].startswith("/token-manager/")
        assert event["datacontenttype"] == "application/json" and event["subject"]
        assert datetime.fromisoformat(event["time"]).tzinfo is not None
        assert all(re.fullmatch("[a-z0-9]+", name) for name in event), "CloudEvents attribute names"
    assert len({event["id"] for _, event in heard.events}) == len(heard.events)


async def test_durable_publish_is_answered_by_the_stream_and_applied(agent: TokenManagerAgent, client: Client) -> None:
    ack = await store(client, "usage.openai.chat", {**USAGE, "id": "e1"})
    assert ack["stream"] == "TM_USAGE" and ack["seq"] >= 1
    await store(client, "usage.openai.chat", {"events": [{**USAGE, "id": "e2"}, {"model": "m"}, USAGE]})
    await settled(client)
    events = (await ask(client, "get_usage")).result["events"]
    assert len(events) == 3 and {"e1", "e2"} < {event["id"] for event in events}
    (letter,) = (await ask(client, "list_dead_letters")).result["dead_letters"]
    assert (letter["reason"], letter["field"]) == ("invalid_request", "events[1].provider")
    assert (await reconciled(client))["events"] == 3


async def test_usage_published_while_no_agent_runs_is_applied_later(bus: EmbeddedNats, database_url: str) -> None:
    await forget_streams(bus.agent_url)
    async with running_agent(bus.agent_url, database_url):
        pass  # The first agent makes the stream; from then on it is there.
    async with connected(bus.url) as client:
        for i in range(20):
            await store(client, "usage.openai.chat", {**USAGE, "id": f"e{i}"})
        async with running_agent(bus.agent_url, database_url):
            await settled(client)
            assert (await reconciled(client))["event_cost"] == "0.07"
            assert len((await ask(client, "get_usage")).result["events"]) == 20


async def test_one_bad_event_of_a_batch_is_its_own_error(agent: TokenManagerAgent, client: Client) -> None:
    batch = {"events": [USAGE, {**USAGE, "prompt_tokens": -1}, {**USAGE, "id": "e3"}], "ack": "applied"}
    reply = (await ask(client, "track_usage", batch)).result
    assert (reply["accepted"], reply["rejected"]) == (2, 1)
    assert [event["accepted"] for event in reply["events"]] == [True, False, True]
    error = reply["events"][1]["error"]
    assert (error["code"], error["field"]) == ("invalid_request", "events[1].prompt_tokens")
    assert reply["events"][2]["id"] == "e3"
    assert len((await ask(client, "get_usage")).result["events"]) == 2


async def test_a_repeat_is_a_duplicate_and_another_payload_a_conflict(
    agent: TokenManagerAgent, client: Client, bus: EmbeddedNats
) -> None:
    mine = {**USAGE, "id": "e1", "timestamp": datetime.now(UTC).isoformat(), "ack": "applied"}
    assert (await ask(client, "track_usage", mine)).result["duplicate"] is False
    assert (await ask(client, "track_usage", mine)).result["duplicate"] is True
    other = (await ask(client, "track_usage", {**mine, "prompt_tokens": 9})).result
    assert (other["accepted"], other["conflict"], other["error"]["code"]) == (False, True, "conflict")
    (event,) = (await ask(client, "get_usage")).result["events"]
    assert event["prompt_tokens"] == 1000, "never overwritten"

    # The same over the stream, where nobody waits for an answer.
    await store(client, "usage.openai.chat", {k: v for k, v in mine.items() if k != "ack"} | {"prompt_tokens": 8})
    await settled(client)
    letters = (await ask(client, "list_dead_letters", {"reason": "conflict"})).result["dead_letters"]
    assert [msgspec.json.decode(letter["payload"])["prompt_tokens"] for letter in letters] == [8, 9]
    in_stream = await stream_messages(bus, DEAD_LETTER_STREAM)
    assert {letter["dead_letter_id"] for letter in in_stream} == {letter["dead_letter_id"] for letter in letters}
    assert {letter["reason"] for letter in in_stream} == {"conflict"}
    await reconciled(client)


async def test_a_dead_letter_is_listed_corrected_and_retried_once(agent: TokenManagerAgent, client: Client) -> None:
    await store(client, "usage.openai.chat", {**USAGE, "prompt_tokns": 5})
    await settled(client)
    (letter,) = (await ask(client, "list_dead_letters")).result["dead_letters"]
    assert letter["field"] == "prompt_tokns" and "`prompt_tokens`" in letter["message"]
    mine = {"dead_letter_id": letter["dead_letter_id"]}
    wrong = await ask(client, "retry_dead_letter", {**mine, "payload": {**USAGE, "prompt_tokens": "x"}})
    assert (wrong.code, wrong.field) == ("invalid_request", "payload.prompt_tokens")
    assert (await ask(client, "retry_dead_letter", {**mine, "payload": USAGE})).result["status"] == "retried"
    again = await ask(client, "retry_dead_letter", {**mine, "payload": USAGE})
    assert again.code == "conflict"
    await settled(client)
    assert (await ask(client, "list_dead_letters")).result["dead_letters"] == []
    (retried,) = (await ask(client, "list_dead_letters", {"status": "retried"})).result["dead_letters"]
    assert retried["retried_at"] is not None
    (event,) = (await ask(client, "get_usage")).result["events"]
    assert event["prompt_tokens"] == 1000


async def test_a_publish_without_reply_subject_is_recorded(agent: TokenManagerAgent, client: Client) -> None:
    await client.publish("token.track_usage", msgspec.json.encode({**USAGE, "id": "quiet"}))
    await client.publish("token.track_usage", b"not json")
    await client.publish("token.check_budget", msgspec.json.encode(CHECK))
    await client.publish("token.get_status", b"{}")

    async def recorded() -> bool:
        return [e["id"] for e in (await ask(client, "get_usage")).result["events"]] == ["quiet"]

    await eventually(recorded)


@pytest.mark.parametrize("version", ["1.0", "1.0.2"])
async def test_cloud_events_are_accepted_around_requests(
    agent: TokenManagerAgent, client: Client, version: str
) -> None:
    envelope: dict[str, Any] = {
        "specversion": version,
        "id": "17",
        "source": "/gateway",
        "type": "token.request",
        "time": "2026-03-04T05:06:07Z",
        "jido_dispatch": {"adapter": "pid"},
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    assert (await ask(client, "create_budget", {**envelope, "data": BUDGET})).result["name"] == "research"
    checked = (await ask(client, "check_budget", {**envelope, "data": CHECK})).result
    assert checked["approved"] and checked["request_id"] == "/gateway#17"
    tracked = (await ask(client, "track_usage", {**envelope, "data": {**USAGE, "ack": "applied"}})).result
    assert tracked["id"] == "/gateway#17" and tracked["duplicate"] is False
    batch = (await ask(client, "track_usage", {**envelope, "data": {"events": [USAGE, USAGE]}})).result
    assert batch["accepted"] == 2
    await store(client, "usage.openai.chat", {**envelope, "id": "18", "data": USAGE})
    await store(client, "usage.openai.chat", {**envelope, "id": "19", "data": {"events": [USAGE]}})
    await settled(client)
    events = {event["id"]: event for event in (await ask(client, "get_usage")).result["events"]}
    assert len(events) == 5 and events["/gateway#18"]["timestamp"] == "2026-03-04T05:06:07Z"
    assert (await ask(client, "list_dead_letters")).result["dead_letters"] == []


async def test_a_cloud_event_redelivered_is_counted_once(agent: TokenManagerAgent, client: Client) -> None:
    envelope = {"specversion": "1.0", "id": "1", "source": "/g", "type": "t", "time": "2026-03-04T05:06:07Z"}
    for _ in range(3):
        await store(client, "usage.openai.chat", {**envelope, "data": USAGE})
    await settled(client)
    assert len((await ask(client, "get_usage")).result["events"]) == 1
    assert (await ask(client, "get_status")).result["ingest"]["duplicates"] == 2


async def test_get_status_tells_health_and_lag(agent: TokenManagerAgent, client: Client) -> None:
    status = (await ask(client, "get_status")).result
    assert status["healthy"] and status["org"] == "default" and status["instance"] == agent.instance
    assert {part["name"] for part in status["parts"]} >= {"stream", "ingest", "outbox", "postgresql"}
    assert (status["ingest"]["stored_messages"], status["ingest"]["lag_s"]) == (0, 0.0)
    assert status["requests"].keys() == {signal.name for signal in REQUESTS}


async def test_get_status_shows_a_backlog(bus: EmbeddedNats, database_url: str) -> None:
    await forget_streams(bus.agent_url)
    async with running_agent(bus.agent_url, database_url) as agent, connected(bus.url) as client:
        release = asyncio.Event()
        apply = agent._ingest.apply  # pyright: ignore[reportPrivateUsage]

        async def held(messages: Any) -> None:
            await release.wait()
            await apply(messages)

        agent._ingest.apply = held  # pyright: ignore[reportPrivateUsage]
        for _ in range(5):
            await store(client, "usage.openai.chat", USAGE)
        ingest = (await ask(client, "get_status")).result["ingest"]
        assert ingest["stored_messages"] == 5 and ingest["oldest_unapplied"] is not None
        assert ingest["lag_s"] > 0
        release.set()
        await settled(client)
        assert (await ask(client, "get_status")).result["ingest"]["lag_s"] == 0.0


async def test_describe_is_the_checked_in_contract(agent: TokenManagerAgent, client: Client) -> None:
    served = (await ask(client, "describe")).result
    assert served["format"] == "asyncapi"
    assert served["document"] == msgspec.json.decode((contract.FOLDER / "asyncapi.json").read_bytes())
    listed = (await ask(client, "describe", {"format": "signals"})).result["document"]
    assert [signal["name"] for signal in listed["signals"]] == [signal.name for signal in REQUESTS]
    for signal in REQUESTS:
        (one,) = (await ask(client, "describe", {"signal": signal.name})).result["document"]["signals"]
        folder = contract.FOLDER / "schemas"
        expected = msgspec.json.decode((folder / f"{signal.name}.request.json").read_bytes())
        assert one["request_schema"] == expected and one["subject"] == signal.subject


async def test_nobody_answers_what_is_no_signal(agent: TokenManagerAgent, client: Client) -> None:
    answer = await client.request("$SRV.PING", b"", timeout=5)
    assert msgspec.json.decode(answer.data)["id"] == agent.instance
    for subject in ("token.nonsense", "token.check_budget.more", "token"):
        with pytest.raises(Exception, match=r"no responders|NoResponders"):
            await ask_on(client, subject)


async def test_the_whole_product_as_a_process_survives_kill_9(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    # What the killed agent had in hand comes again after this time.
    environment = {"TOKEN_MANAGER_INGEST_ACK_WAIT_S": "3"}
    async with agent_process(folder, environment=environment) as first:
        async with connected(first.nats_url) as client:
            await ask(client, "create_budget", BUDGET)
            decision = (await ask(client, "check_budget", CHECK)).result
            sent = (ask(client, "track_usage", {**USAGE, "id": f"e{i}"}) for i in range(50))
            assert all(reply.result["accepted"] for reply in await asyncio.gather(*sent))
        await first.kill()
    async with agent_process(folder, environment=environment) as second:
        assert second.nats_url == first.nats_url, "the port is kept"
        async with connected(second.nats_url) as client:
            await settled(client)
            assert (await reconciled(client))["events"] == 50
            live = (await ask(client, "list_reservations")).result["reservations"]
            assert [r["reservation_id"] for r in live] == [decision["reservation_id"]]
        assert await second.stop() == 0
    assert not (folder / "runtime.json").exists()
