"""An agent that is asked to end, ends, at whatever moment it is asked."""

import asyncio
from typing import Any

from agent.actor import TokenManagerAgent
from agent.embedded import EmbeddedNats
from agent.settings import Settings
from handlers.cost.resolve import RateCards
from tests.support.vault import TEST_VAULT

STARTS = 30
BOUND_S = 10.0


async def test_an_agent_ends_at_whatever_moment_it_is_asked(bus: EmbeddedNats, database_url: str) -> None:
    # Python 3.11 loses a cancellation that meets the end of what asyncio.wait_for waits for; jobs hung by it for ever.
    cards = RateCards()
    hurried: dict[str, Any] = {"expiry_interval_s": 0.001, "outbox_poll_s": 0.001}
    for number in range(STARTS):
        agent = TokenManagerAgent(
            Settings(**hurried),
            nats_url=bus.agent_url,
            database_url=database_url,
            rate_cards=cards,
            vault=TEST_VAULT,
        )
        await agent.start()
        for _ in range(number):
            await asyncio.sleep(0)
        async with asyncio.timeout(BOUND_S):
            await agent.drain()
