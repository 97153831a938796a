"""The stock tooling of NATS finds the agent from a tenant's account: what it offers, to whom, and how it is doing."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client

from agent.actor import TokenManagerAgent
from agent.embedded import EmbeddedNats
from agent.version import VERSION
from signals.contract import request_schema_id, response_schema_id
from signals.registry import EVENTS, REQUESTS
from tests.agent.conftest import PASSWORD
from tests.bus.srv_schemas import SCHEMAS
from tests.bus.validity import complaints
from tests.support.polling import eventually
from tests.support.running import ask, connected, running_agent

README = Path(__file__).resolve().parents[2] / "README.md"
MARK = "<!-- signals -->"


async def discover(client: Client, verb: str, suffix: str = "") -> dict[str, Any]:
    found = msgspec.json.decode((await client.request(f"$SRV.{verb}{suffix}", b"", timeout=5)).data)
    assert complaints(SCHEMAS[verb], found) == []
    return found


async def test_every_endpoint_is_listed_to_every_tenant(agent: TokenManagerAgent, bus: EmbeddedNats) -> None:
    for url in (bus.url, bus.url_for("acme-nobody", PASSWORD), bus.agent_url):
        async with connected(url) as client:
            for suffix in ("", ".token-manager", f".token-manager.{agent.instance}"):
                ping = await discover(client, "PING", suffix)
                assert (ping["name"], ping["id"], ping["version"]) == ("token-manager", agent.instance, VERSION)
            info = await discover(client, "INFO")
            assert info["metadata"]["cloudevents"] == "1.0" and info["metadata"]["asyncapi"] == "token.describe"
            endpoints = {endpoint["name"]: endpoint for endpoint in info["endpoints"]}
            assert list(endpoints) == list(dict.fromkeys(endpoints))
            assert endpoints.keys() == {signal.name for signal in REQUESTS}
            for signal in REQUESTS:
                endpoint = endpoints[signal.name]
                assert endpoint["subject"] == f"tm.req.*.{signal.name}"
                assert endpoint["metadata"] == {
                    "schema.request": request_schema_id(signal),
                    "schema.response": response_schema_id(signal),
                    "idempotent": "true" if signal.idempotent else "false",
                    "roles": ",".join(signal.roles),
                }


async def test_statistics_count_requests_and_errors(agent: TokenManagerAgent, client: Client) -> None:
    denied = {"estimated_cost": "2", "team_id": "t1"}
    await ask(client, "create_budget", {"name": "b", "type": "team", "limit": "1"})
    assert not (await ask(client, "check_budget", denied)).result["approved"]
    await ask(client, "check_budget", b"not json")
    await ask(client, "check_budget", {"estimated_cost": "-1"})
    await ask(client, "get_status")
    stats = {endpoint["name"]: endpoint for endpoint in (await discover(client, "STATS"))["endpoints"]}
    check = stats["check_budget"]
    assert (check["num_requests"], check["num_errors"]) == (3, 2), "a denial is an answer, not an error"
    assert check["last_error"].startswith("invalid_request: ")
    assert check["average_processing_time"] * 3 <= check["processing_time"] < 60_000_000_000
    assert (stats["get_status"]["num_requests"], stats["get_status"]["num_errors"]) == (1, 0)
    assert stats["update_budget"]["num_requests"] == 0
    status = (await ask(client, "get_status")).result
    assert status["requests"]["check_budget"] == {"requests": 3, "errors": 2}


def test_the_readme_lists_every_signal_and_event() -> None:
    text = README.read_text(encoding="utf-8") if README.exists() else ""
    if MARK not in text:
        pytest.skip(f"README.md has no {MARK}")
    table = text.partition(MARK)[2].partition("<!--")[0]
    for signal in REQUESTS:
        rows = [line for line in table.splitlines() if re.search(rf"\b{signal.name}\b", line)]
        assert rows, f"README.md does not list {signal.name}"
        for role in signal.roles:
            assert any(role in row for row in rows), f"README.md does not say that {role} may send {signal.name}"
    for event in EVENTS:
        assert event.name in text, f"README.md does not list event {event.name}"


async def test_an_agent_that_cannot_start_leaves_no_connection(bus: EmbeddedNats) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    with pytest.raises(OSError, match="Connect"):
        async with running_agent(bus.agent_url, nowhere, instance="stillborn"):
            pass
    async with connected(bus.system_url) as system:

        async def gone() -> bool:
            answer = await system.request("$SYS.REQ.SERVER.PING.CONNZ", b"{}", timeout=5)
            return b"stillborn" not in answer.data

        await eventually(gone)
