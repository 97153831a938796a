"""One org's event that is larger than the bus takes is told in less, and keeps nobody's events waiting."""

from typing import Any

import msgspec
import pytest
from nats.aio.client import Client

from agent.actor import TokenManagerAgent
from store import outbox as outbox_store
from tests.support.polling import eventually
from tests.support.running import ask

NAME = "n" * 250


@pytest.mark.parametrize("larger", ["by its names", "in itself"])
async def test_an_event_that_is_too_large_is_told_in_less(
    agent: TokenManagerAgent, client: Client, larger: str
) -> None:
    services = agent.services
    key = services.actor_key("default", NAME)
    data: dict[str, Any] = {"users": [key] * 10_000} if larger == "by its names" else {"text": "x" * 1_200_000}
    heard = await client.subscribe("token.evt.>")  # pyright: ignore[reportUnknownMemberType]
    await client.flush()
    events = [
        ("schedule.ran", msgspec.json.encode({"specversion": "1.0", "type": "t", "org": "default", "data": data}))
    ]
    async with services.database.transaction() as connection:
        await outbox_store.add(connection, "default", events)
    await ask(client, "create_budget", {"name": "b", "type": "global", "limit": "1"})
    told = {m.subject: msgspec.json.decode(m.data) for m in [await heard.next_msg(timeout=5) for _ in range(2)]}
    assert told["token.evt.budget.changed"]["data"]["action"] == "created"
    small = told["token.evt.schedule.ran"]["data"]
    assert small == (data if larger == "by its names" else {"omitted_bytes": len(events[0][1])})

    async def empty() -> bool:
        return (await ask(client, "get_status")).result["outbox_pending"] == 0

    await eventually(empty)
