"""The connection against a real server: direct subscriptions, draining under load, trouble of every kind."""

import asyncio
import gc
import json
from collections import Counter

import pytest
from nats import errors

from agent.bus.client import BusClient, BusListeners, BusSettings, ConnectFailed, connect
from agent.bus.streams import ensure_streams
from agent.bus.wire import header_block, header_value
from tests.bus.conftest import FAST
from tests.bus.servers import PrivateServer, free_port
from tests.support.polling import eventually


def echo_on(bus: BusClient):
    def echo(subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        del subject, headers
        bus.respond(reply, data)

    return echo


async def test_a_direct_subscription_answers_requests_of_another_account(bus: BusClient, tenant: BusClient) -> None:
    seen: list[tuple[bytes, bytes | None]] = []

    def answer(subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        seen.append((subject, headers))
        bus.respond(reply, data, header_block({"Nats-Service-Error-Code": "404"}))

    await bus.subscribe_direct("tm.req.*.describe", answer, "q")
    await bus.barrier(5)
    reply = await tenant.request("token.describe", b"hello", timeout=5)
    assert (reply.data, reply.headers) == (b"hello", {"Nats-Service-Error-Code": "404"})
    subject, headers = seen[0]
    assert subject == b"tm.req.acme.describe"
    assert json.loads(header_value(headers, "nats-request-info") or "")["user"] == "local"


async def test_defect_14_headers_of_a_request_do_not_come_back(bus: BusClient, tenant: BusClient) -> None:
    await bus.subscribe_direct("tm.req.*.describe", echo_on(bus), "q")
    await bus.barrier(5)
    reply = await tenant.request("token.describe", b"x", timeout=5, headers={"Nats-Service-Error": "mine"})
    assert not reply.headers


async def test_defect_1_a_request_right_after_subscribe_and_flush_finds_the_subscription(server: PrivateServer) -> None:
    caller = await connect(server.url)
    for number in range(30):
        agent = await connect(server.url)
        await agent.subscribe_direct(f"fresh.{number}", echo_on(agent))
        await agent.flush()
        assert (await caller.request(f"fresh.{number}", b"x", timeout=5)).data == b"x"
        await agent.close()
    await caller.close()


async def test_defect_2_no_message_is_lost_while_a_queue_member_drains_under_load(server: PrivateServer) -> None:
    sender, one, two = [await connect(server.url) for _ in range(3)]
    got: Counter[bytes] = Counter()
    sent = 0

    def take(_subject: bytes, _reply: bytes, data: bytes, _headers: bytes | None) -> None:
        got[data] += 1

    await one.subscribe_direct("work", take, "q")
    await one.flush()
    for _ in range(10):
        member = await two.subscribe_direct("work", take, "q")
        await two.flush()
        drain = None
        for chunk in range(15):
            for _ in range(20):
                sender.publish_now("work", b"%d" % sent)
                sent += 1
            await sender.flush()
            if chunk == 5:
                drain = asyncio.ensure_future(member.drain(5))
        assert drain is not None
        await drain
    await eventually(lambda: sum(got.values()) == sent, message="everything sent has been taken")
    assert len(got) == sent == 3000
    for client in (sender, one, two):
        await client.close()


async def test_after_a_drain_no_callback_comes_and_a_second_drain_does_nothing(bus: BusClient) -> None:
    got: list[bytes] = []
    subscription = await bus.subscribe_direct("a", lambda _s, _r, data, _h: got.append(data))
    for number in range(100):
        bus.publish_now("a", b"%d" % number)
    await subscription.drain(5)
    assert len(got) == 100
    bus.publish_now("a", b"late")
    await bus.barrier(5)
    await subscription.drain(5)
    assert len(got) == 100
    assert not bus.direct


async def test_draining_the_whole_client_hears_everything_and_closes(server: PrivateServer) -> None:
    client = await connect(server.url, settings=FAST)
    got: list[bytes] = []
    await client.subscribe_direct("a", lambda _s, _r, data, _h: got.append(data))
    for number in range(100):
        client.publish_now("a", b"%d" % number)
    await client.drain()
    assert len(got) == 100
    assert client.is_closed


async def test_defect_4_slow_work_started_by_a_callback_does_not_hold_up_the_next_message(bus: BusClient) -> None:
    release = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    async def work(reply: bytes) -> None:
        await release.wait()
        bus.respond(reply, b"done")

    def start(_subject: bytes, reply: bytes, _data: bytes, _headers: bytes | None) -> None:
        tasks.add(asyncio.ensure_future(work(reply)))

    await bus.subscribe_direct("slow", start)
    requests = [asyncio.ensure_future(bus.request("slow", b"", timeout=5)) for _ in range(5)]
    await eventually(lambda: len(tasks) == 5, message="all five run at once")
    release.set()
    assert len(await asyncio.gather(*requests)) == 5


async def test_defect_5_a_task_may_still_request_while_the_intake_drains(bus: BusClient) -> None:
    await ensure_streams(bus)
    subscription = await bus.subscribe_direct("a", echo_on(bus))
    drain = asyncio.ensure_future(subscription.drain(5))
    assert (await bus.request("$JS.API.INFO", b"", timeout=5)).data
    await drain
    assert (await bus.request("$JS.API.INFO", b"", timeout=5)).data


async def test_defect_9_errors_of_callbacks_are_reported_and_cost_nothing(
    bus: BusClient, reported: list[BaseException]
) -> None:
    def fail(_subject: bytes, _reply: bytes, data: bytes, _headers: bytes | None) -> None:
        if data == b"cancelled":
            raise asyncio.CancelledError
        raise ValueError(data.decode())

    await bus.subscribe_direct("bad", fail)
    await bus.subscribe_direct("good", echo_on(bus))
    for data in (b"one", b"cancelled", b"two"):
        bus.publish_now("bad", data)
    assert (await bus.request("good", b"x", timeout=5)).data == b"x"
    assert [str(error) for error in reported] == ["one", "", "two"]
    assert bus.errors_reported == 3


def fail_as_callback(subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
    raise ValueError(f"cannot take {subject!r} {reply!r} {data!r} {headers!r}")


async def test_defect_9_a_listener_that_fails_does_no_harm(server: PrivateServer) -> None:
    def fail(error: BaseException) -> None:
        raise RuntimeError("listener") from error

    bus = await connect(server.url, settings=FAST, listeners=BusListeners(error=[fail]))
    await bus.subscribe_direct("bad", fail_as_callback)
    bus.publish_now("bad", b"")
    await bus.barrier(5)
    await bus.barrier(5)
    await bus.close()


async def test_callbacks_survive_a_killed_server_and_publishes_wait_for_it(server: PrivateServer) -> None:
    told: list[str] = []
    listeners = BusListeners(
        disconnected=[lambda: told.append("disconnected")],
        reconnected=[lambda: told.append("reconnected")],
        closed=[lambda: told.append("closed")],
        error=[lambda error: None],
    )
    bus = await connect(server.url, settings=FAST, listeners=listeners)
    got: list[bytes] = []
    await bus.subscribe_direct("a.*", lambda _s, _r, data, _h: got.append(data), "q")
    await bus.flush()
    await server.kill()
    await eventually(lambda: not bus.is_connected)
    bus.publish_now("a.b", b"kept")
    with pytest.raises(errors.ConnectionReconnectingError):
        await bus.barrier(1)
    await server.start()
    await eventually(lambda: got == [b"kept"], message="heard after the reconnect")
    await eventually(lambda: told == ["disconnected", "reconnected"])
    await bus.close()
    assert told[-1] == "closed"
    assert told.count("closed") == 1
    with pytest.raises(errors.ConnectionClosedError):
        bus.publish_now("a", b"")
    bus.respond(b"a", b"")
    assert bus.replies_dropped == 1


async def test_defect_11_a_frozen_server_is_noticed_within_the_ping_interval(server: PrivateServer) -> None:
    bus = await connect(server.url, settings=FAST, listeners=BusListeners(error=[lambda error: None]))
    server.freeze()
    await eventually(lambda: not bus.is_connected, timeout_s=5, message="noticed")
    server.thaw()
    await eventually(lambda: bus.is_connected, message="back")
    await bus.barrier(5)
    await bus.close()


async def test_closing_while_the_server_is_frozen_ends_in_time_and_tells(server: PrivateServer) -> None:
    told: list[str] = []
    bus = await connect(
        server.url,
        settings=BusSettings(close_timeout_s=0.2, pending_bytes=64 * 1024 * 1024),
        listeners=BusListeners(closed=[lambda: told.append("closed")], error=[lambda error: None]),
    )
    server.freeze()
    for _ in range(20):
        bus.publish_now("a", b"x" * 1_000_000)
    async with asyncio.timeout(5):
        await bus.close()
    assert told == ["closed"]


async def test_defect_13_a_burst_beyond_any_queue_is_delivered_whole(server: PrivateServer, bus: BusClient) -> None:
    sender = await connect(server.url)
    got = 0

    def count(_subject: bytes, _reply: bytes, _data: bytes, _headers: bytes | None) -> None:
        nonlocal got
        got += 1

    await bus.subscribe_direct("burst", count)
    await bus.flush()
    for _ in range(10):
        for _ in range(5_000):
            sender.publish_now("burst", b"x" * 20)
        await sender.flush()
    await eventually(lambda: got == 50_000)
    await sender.close()


async def test_ordinary_subscriptions_of_nats_py_work_beside_direct_ones(bus: BusClient) -> None:
    subscription = await bus.subscribe("a")  # pyright: ignore[reportUnknownMemberType]
    bus.publish_now("a", b"1", headers=header_block({"X": "y"}))
    message = await subscription.next_msg(timeout=5)
    assert (message.data, message.headers) == (b"1", {"X": "y"})


async def test_a_refused_publish_leaves_the_connection(server: PrivateServer) -> None:
    heard: list[BaseException] = []
    url = server.tenant_url.replace("local:local", "muted:muted")
    client = await connect(url, settings=FAST, listeners=BusListeners(error=[heard.append]))
    client.publish_now("forbidden.a", b"")
    await client.barrier(5)
    assert "permissions violation" in str(heard[0])
    assert client.is_connected
    await client.close()


async def test_wrong_credentials_and_no_server_fail_at_once_or_in_time(server: PrivateServer) -> None:
    quiet = BusListeners(error=[lambda error: None])
    async with asyncio.timeout(5):
        with pytest.raises(ConnectFailed, match="Authorization"):
            await connect(server.url.replace("secret", "wrong"), settings=BusSettings(), listeners=quiet)
    settings = BusSettings(connect_deadline_s=0.2)
    with pytest.raises(ConnectFailed, match="no connection to the bus"):
        await connect(f"nats://127.0.0.1:{free_port()}", settings=settings, listeners=quiet)


async def test_every_connection_has_an_inbox_and_a_name_of_its_own(server: PrivateServer) -> None:
    one = await connect(server.url, instance="one")
    two = await connect(server.url)
    assert one.new_inbox().startswith("_INBOX_TM.one.")
    assert one.options["name"] == "token-manager/one"
    assert two.new_inbox().split(".")[1] != "one"
    await one.close()
    await two.close()


@pytest.mark.parametrize("size", [0, 1, 100_000, 1_048_000])
async def test_payloads_of_any_size_come_back_whole(bus: BusClient, size: int) -> None:
    await bus.subscribe_direct("a", echo_on(bus))
    payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert (await bus.request("a", payload, timeout=5)).data == payload


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_client_that_is_shut_down_with_its_loop_does_not_reconnect(server: PrivateServer) -> None:
    told: list[BaseException] = []

    async def forget_to_close() -> None:
        await connect(server.url, listeners=BusListeners(error=[told.append]))

    await asyncio.to_thread(asyncio.run, forget_to_close())
    gc.collect()
    assert told == []
