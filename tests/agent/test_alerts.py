"""Alerts over the bus: a rule set by a caller, a crossing that is heard as an event and queued for delivery."""
# pyright: reportUnknownMemberType=false
# nats-py leaves the options of its calls untyped.

import time
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from agent.actor import TokenManagerAgent
from tests.support.polling import eventually
from tests.support.running import ask

BOUND_S = 10.0
USAGE: dict[str, Any] = {
    "provider": "openai",
    "model": "gpt-4o",
    "prompt_tokens": 1000,
    "completion_tokens": 100,
    "ack": "applied",
}


async def test_every_kind_of_crossing_is_queued_for_delivery_within_ten_seconds(
    agent: TokenManagerAgent, client: Client
) -> None:
    """0.0035 USD cross a threshold, a rate, a sum of tokens and the limit of one call; the rate switches the model."""
    raised: list[Msg] = []

    async def take(message: Msg) -> None:
        raised.append(message)

    await client.subscribe("token.evt.alert.raised", cb=take)
    budget = {"name": "b", "type": "global", "limit": "0.005", "alert_thresholds": [50], "preferred_models": ["big"]}
    budget_id = (await ask(client, "create_budget", budget)).result["budget_id"]
    rules: dict[str, dict[str, Any]] = {
        "threshold": {},
        "hourly_rate": {
            "scope": {"budget_id": budget_id},
            "parameters": {"limit": "0.0035"},
            "actions": [{"do": "switch_model", "model": "small"}],
        },
        "absolute_tokens": {"parameters": {"limit": "1100", "period": "daily"}},
        "request_cost": {"parameters": {"limit": "0.003"}},
    }
    for kind, fields in rules.items():
        await ask(client, "set_alert_rule", {"name": kind, "kind": kind, "channels": ["ops"], **fields})
    assert [r["name"] for r in (await ask(client, "list_alert_rules")).result["rules"]] == sorted(rules)

    crossed_at = time.monotonic()
    await ask(client, "track_usage", USAGE)

    async def queued() -> set[str]:
        sql = "SELECT a.kind FROM delivery d JOIN alert a USING (org_id, alert_id) WHERE d.channel = 'ops'"
        kinds = [row["kind"] for row in await agent.services.database.fetch(sql)]
        assert sorted(kinds) == sorted(rules)
        return set(kinds)

    await eventually(queued, timeout_s=BOUND_S)
    assert time.monotonic() - crossed_at < BOUND_S

    async def switched() -> bool:
        status = (await ask(client, "get_budget_status", {"budget_id": budget_id})).result
        return status["budgets"][0]["budget"]["preferred_models"] == ["small", "big"]

    await eventually(switched, timeout_s=BOUND_S)
    await eventually(lambda: len(raised) == len(rules))
    alerts = (await ask(client, "list_alerts", {"state": "open"})).result["alerts"]
    assert sorted(alert["kind"] for alert in alerts) == sorted(rules)
    done = await ask(client, "acknowledge_alert", {"alert_id": alerts[0]["alert_id"], "comment": "seen"})
    assert done.result["comment"] == "seen"
    assert len((await ask(client, "list_alerts", {"state": "open"})).result["alerts"]) == len(rules) - 1
