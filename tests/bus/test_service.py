"""Discovery: the answers to `$SRV`, from inside and from an importing account."""

import asyncio
import json
from typing import Any

import pytest

from agent.bus.client import BusClient, connect
from agent.bus.service import Endpoint, Service, endpoint_of
from signals.budget import CHECK_BUDGET
from signals.registry import REQUESTS
from tests.bus.servers import PrivateServer
from tests.bus.srv_schemas import SCHEMAS
from tests.bus.validity import complaints
from tests.support.polling import eventually


def service_on(bus: BusClient, instance: str = "one") -> Service:
    return Service(bus, instance=instance, version="1.2.3", endpoints=[endpoint_of(signal) for signal in REQUESTS])


async def ask(client: BusClient, subject: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    message = await client.request(subject, b"", timeout=5, headers=headers)
    assert not message.headers, "the headers of the request are not copied"
    return json.loads(message.data)


@pytest.mark.parametrize("verb", list(SCHEMAS))
async def test_every_answer_has_exactly_the_fields_of_the_adr(bus: BusClient, tenant: BusClient, verb: str) -> None:
    service = service_on(bus)
    await service.start()
    await bus.barrier(5)
    for client in (bus, tenant):
        for suffix in ("", ".token-manager", ".token-manager.one"):
            answer = await ask(client, f"$SRV.{verb}{suffix}", {"Nats-Service-Error": "x"})
            assert complaints(SCHEMAS[verb], answer) == []
            assert (answer["id"], answer["version"]) == ("one", "1.2.3")
            assert answer["metadata"]["protocol"] == "token-manager/1"
    await service.stop()


async def test_endpoints_name_their_subject_schemas_and_roles(bus: BusClient) -> None:
    endpoints = {endpoint["name"]: endpoint for endpoint in service_on(bus).info()["endpoints"]}
    assert endpoints.keys() == {signal.name for signal in REQUESTS}
    assert endpoints["check_budget"] == {
        "name": "check_budget",
        "subject": "tm.req.*.check_budget",
        "queue_group": "q",
        "metadata": {
            "schema.request": "urn:token-manager:schema:check_budget.request:1.0.0",
            "schema.response": "urn:token-manager:schema:check_budget.response:1.0.0",
            "idempotent": "true",
            "roles": "provider",
        },
    }
    assert endpoint_of(CHECK_BUDGET, subject_prefix="token").subject == "token.check_budget"


async def test_statistics_are_those_dispatch_counted(bus: BusClient) -> None:
    service = service_on(bus)
    stats = service.stats("check_budget")
    stats.count(100)
    stats.count(301, "unavailable: PostgreSQL is away")
    shown = {endpoint["name"]: endpoint for endpoint in service.statistics()["endpoints"]}
    assert shown["check_budget"]["num_requests"] == 2
    assert shown["check_budget"]["num_errors"] == 1
    assert shown["check_budget"]["last_error"] == "unavailable: PostgreSQL is away"
    assert (shown["check_budget"]["processing_time"], shown["check_budget"]["average_processing_time"]) == (401, 200)
    assert shown["track_usage"]["num_requests"] == 0


async def test_every_instance_answers_and_a_stopped_one_is_silent(server: PrivateServer, bus: BusClient) -> None:
    other = await connect(server.url)
    one, two = service_on(bus), service_on(other, "two")
    await one.start()
    await two.start()
    await bus.barrier(5)
    await other.barrier(5)
    heard: list[str] = []
    await bus.subscribe_direct("answers", lambda _s, _r, data, _h: heard.append(json.loads(data)["id"]))
    bus.publish_now("$SRV.PING", b"", b"answers")
    await eventually(lambda: sorted(heard) == ["one", "two"])
    await two.stop()
    heard.clear()
    bus.publish_now("$SRV.PING", b"", b"answers")
    await eventually(lambda: heard == ["one"])
    await bus.barrier(5)
    assert heard == ["one"]
    assert (await ask(bus, "$SRV.PING.token-manager.one"))["id"] == "one"
    await one.stop()
    await other.close()


async def test_a_ping_without_a_reply_subject_is_ignored(bus: BusClient, reported: list[BaseException]) -> None:
    service = service_on(bus)
    await service.start()
    bus.publish_now("$SRV.PING", b"")
    assert (await ask(bus, "$SRV.PING"))["id"] == "one"
    assert reported == []
    await service.stop()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"version": "1.2"}, "semantic version"),
        ({"name": "token manager"}, "service or endpoint name"),
        ({"instance": "a.b"}, "one subject token"),
        ({"endpoints": [Endpoint(name="a.b", subject="s")]}, "service or endpoint name"),
    ],
)
def test_what_the_adr_does_not_allow_is_refused(changes: dict[str, Any], text: str) -> None:
    arguments: dict[str, Any] = {"instance": "one", "version": "1.0.0", "endpoints": [], **changes}
    with pytest.raises(ValueError, match=text):
        Service(BusClient(), **arguments)


async def test_defect_3_stopping_answers_what_was_asked_before(server: PrivateServer, bus: BusClient) -> None:
    caller = await connect(server.url)
    service = service_on(bus)
    await service.start()
    await bus.barrier(5)
    asked = [asyncio.ensure_future(caller.request("$SRV.INFO", b"", timeout=5)) for _ in range(50)]
    await asyncio.wait(asked, timeout=0)
    await caller.barrier(5)
    await service.stop()
    assert len(await asyncio.gather(*asked)) == 50
    await caller.close()
