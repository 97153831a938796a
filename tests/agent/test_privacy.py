"""Names over the bus: replies and events speak of users by name, and after `anonymize_user` nobody does."""

from typing import Any

import msgspec
from nats.aio.client import Client

from agent.actor import TokenManagerAgent
from tests.support.polling import eventually
from tests.support.running import ask
from tests.support.vault import TEST_VAULT

NAME = "Grace Hopper"
KEY = TEST_VAULT.surrogate("default", NAME)
CALL: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "user_id": NAME}


async def test_names_leave_as_they_came_until_they_are_deleted(agent: TokenManagerAgent, client: Client) -> None:
    heard: list[dict[str, Any]] = []

    async def hear(message: Any) -> None:
        heard.append(msgspec.json.decode(message.data))

    await client.subscribe("token.evt.>", cb=hear)  # pyright: ignore[reportUnknownMemberType]
    await client.flush()
    await ask(client, "create_budget", {"name": "each", "type": "user", "limit": "0.01"})
    held = (await ask(client, "check_budget", {**CALL, "prompt_tokens": 1000, "max_completion_tokens": 100})).result
    assert held["budgets"][0]["entity_id"] == NAME
    used = {**CALL, "prompt_tokens": 2000, "completion_tokens": 200, "reservation_id": held["reservation_id"]}
    await ask(client, "track_usage", {**used, "ack": "applied"})

    async def answers() -> list[str]:
        requests: list[tuple[str, dict[str, Any]]] = [
            ("get_usage", {"filters": {"user_id": NAME}}),
            ("list_reservations", {"status": "settled"}),
            ("get_budget_status", {"user_id": NAME}),
            ("list_alerts", {}),
        ]
        return [msgspec.json.encode((await ask(client, signal, body)).result).decode() for signal, body in requests]

    assert [NAME in answer and KEY not in answer for answer in await answers()] == [True] * 4
    await eventually(lambda: any(e["type"] == "token.budget.threshold" for e in heard), message="no threshold was told")
    told = next(e for e in heard if e["type"] == "token.budget.threshold")
    assert told["data"]["window"]["entity_id"] == NAME

    reply = (await ask(client, "anonymize_user", {"user_id": NAME, "reason": "asked"})).result
    assert reply["user_key"] == KEY
    after = await answers()
    assert all(KEY in answer for answer in after)
    assert not any(NAME in answer for answer in after)
    entry = (await ask(client, "get_audit_trail", {"entity": "identity"})).result["entries"][0]
    assert (entry["action"], entry["entity_id"], entry["actor"]) == ("anonymized", KEY, "local")


async def test_compliance_figures_count_what_became_of_calls(agent: TokenManagerAgent, client: Client) -> None:
    await ask(client, "create_budget", {"name": "cap", "type": "global", "limit": "0.01"})
    call = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 1000, "max_completion_tokens": 100}
    held = (await ask(client, "check_budget", call)).result
    kept = (await ask(client, "check_budget", {**call, "ttl_s": 1})).result
    assert held["approved"] and kept["approved"]
    assert not (await ask(client, "check_budget", {**call, "prompt_tokens": 4_000})).result["approved"]
    used = {"provider": "openai", "model": "gpt-4o", "ack": "applied", "prompt_tokens": 1000, "completion_tokens": 100}
    await ask(client, "track_usage", {**used, "reservation_id": held["reservation_id"]})
    await ask(client, "track_usage", {**used, "prompt_tokens": 10_000})

    async def complete() -> dict[str, Any] | None:
        await agent.services.tally.flush(agent.services.database)
        figures = (await ask(client, "get_status")).result["compliance"]
        return figures if figures["never_settled"] else None

    figures: Any = await eventually(complete, message="the second reservation did not expire")
    assert (figures["requests"], figures["reserved_requests"], figures["reserved_first_percent"]) == (2, 1, 50.0)
    assert (figures["checks"], figures["approved"]) == (3, 2)
    assert figures["within_budget_percent"] == 66.6667
    assert {d["name"]: d["count"] for d in figures["decisions"]} == {"approved": 2, "budget_exceeded": 1}
    assert [(n["name"], n["count"], n["cost"]) for n in figures["never_settled"]] == [("local", 1, "0.0035")]
    (overrun,) = figures["overrun"]
    assert (overrun["cause"], overrun["unit"], overrun["charges"]) == ("unreserved", "cost", 1)
    # 0.0035 is settled and as much was held when 0.026 came unreserved to a limit of 0.01.
    assert overrun["amount"] == "0.023"
