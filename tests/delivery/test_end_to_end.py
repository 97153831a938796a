"""From usage that crosses a threshold to the mailbox: through a running agent, and under load from four of them."""

import asyncio
import contextlib
import time
from typing import Any

from handlers.alerts.rules import set_alert_rule
from handlers.context import Services
from handlers.enforcer.budgets import create_budget
from schemas.alert import SetAlertRule
from schemas.budget import CreateBudget
from tests.conftest import NatsServer
from tests.delivery.conftest import SECRET, all_are, delivering, delivering_services, new_channel
from tests.delivery.servers import MailServer, Receiver
from tests.support.polling import eventually
from tests.support.running import ask, connected, forget_streams, running_agent
from tests.support.services import apply_usage, context, gpt

SECONDS_MAX = 10.0


async def test_from_a_call_to_the_mailbox_and_the_receiver_through_a_running_agent(
    nats_server: NatsServer, database_url: str, mail: MailServer, receiver: Receiver
) -> None:
    await forget_streams(nats_server.agent_url)
    settings: dict[str, Any] = {"delivery_allowed_hosts": ("127.0.0.1",), "public_url": "https://tokens.example.com"}
    async with (
        running_agent(nats_server.agent_url, database_url, **settings) as agent,
        connected(nats_server.url) as client,
    ):
        for name, fields in (
            ("mail", {"kind": "apprise", "url": mail.url()}),
            ("hook", {"kind": "webhook", "url": receiver.url(), "secret": SECRET}),
        ):
            shown = (await ask(client, "set_channel", {"name": name, **fields})).result
            assert "secret" not in shown
            assert (await ask(client, "test_channel", {"name": name})).result["delivered"]
        rule = {"name": "tell", "kind": "threshold", "channels": ["mail", "hook"]}
        await ask(client, "set_alert_rule", rule)
        budget = {"name": "all", "type": "global", "limit": "1", "alert_thresholds": [50]}
        assert (await ask(client, "create_budget", budget)).status is None
        usage = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 200_000, "completion_tokens": 10_000}
        started = time.monotonic()
        assert (await ask(client, "track_usage", usage | {"feature": "chat"})).status is None
        await eventually(lambda: len(mail.messages) == len(receiver.posts) == 2, SECONDS_MAX)
        seconds = time.monotonic() - started

        async def both_sent() -> bool:
            listed = (await ask(client, "list_deliveries", {"status": "sent"})).result["deliveries"]
            return sorted(item["channel"] for item in listed) == ["hook", "mail"]

        await eventually(both_sent)
        status = (await ask(client, "get_status")).result
        assert {part["name"]: part["ok"] for part in status["parts"]}["deliveries"]
        assert agent.ready
    assert seconds < SECONDS_MAX
    body = mail.messages[1].get_body(("plain",))
    assert body is not None
    text = body.get_content()
    assert "60% of the limit is used" in text and "- chat: 0.60 USD (100%)" in text
    assert "https://tokens.example.com/?alert=" in text


async def test_ten_thousand_settlements_that_cross_four_thresholds_are_four_messages(
    services: Services, database_url: str, mail: MailServer
) -> None:
    ctx = context(services)
    await new_channel(services, "mail", kind="apprise", url=mail.url())
    await set_alert_rule(ctx, SetAlertRule(name="tell", kind="threshold", channels=["mail"]))
    # Each call costs 0.0035 USD; all of them 35 USD.
    await create_budget(ctx, CreateBudget(name="all", type="global", limit="34", alert_thresholds=[50, 75, 90, 100]))
    async with contextlib.AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(delivering_services(database_url)) for _ in range(4)]
        await stack.enter_async_context(delivering(*agents, poll_s=0.2))

        async def settle(agent: Services) -> None:
            for _ in range(25):
                await apply_usage(agent, *(gpt() for _ in range(100)))

        await asyncio.gather(*(settle(agent) for agent in agents))
        await eventually(all_are(services, "sent", 4), 20.0)
    assert len(mail.messages) == 4
    assert sorted(int(subject.split("% of")[0].rsplit(" ", 1)[1]) for subject in mail.subjects) == [50, 75, 90, 100]
    rows = await services.database.fetch(
        "SELECT d.sent_at - a.created_at AS took FROM delivery d JOIN alert a USING (org_id, alert_id)"
    )
    assert max(row["took"].total_seconds() for row in rows) < SECONDS_MAX
