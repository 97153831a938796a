"""The order of lines on the wire, and the parser against every way bytes may be cut."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from nats import errors

from agent.bus.client import BusClient, BusListeners, BusSettings, connect
from agent.bus.wire import DirectCallback, DirectParser, header_block, header_value, publish_command, status_of
from tests.bus.fake_server import FakeServer
from tests.support.polling import eventually

SETTINGS = BusSettings(ping_interval_s=60, reconnect_wait_s=0.01, close_timeout_s=1.0, pending_bytes=4096)


def ignore(subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
    del subject, reply, data, headers


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[FakeServer]:
    server = FakeServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def errors_seen() -> list[BaseException]:
    return []


@pytest_asyncio.fixture
async def client(fake: FakeServer, errors_seen: list[BaseException]) -> AsyncIterator[BusClient]:
    client = await connect(fake.url, settings=SETTINGS, listeners=BusListeners(error=[errors_seen.append]))
    fake.lines.clear()
    fake.chunks.clear()
    yield client
    await client.close()


async def test_defect_1_a_ping_takes_its_place_behind_what_was_queued(client: BusClient, fake: FakeServer) -> None:
    await client.subscribe_direct("a.b", ignore, "q")
    client.publish_now("c", b"1", b"r")
    await client.publish("d", b"2")
    await client.flush()
    assert fake.lines == [b"SUB a.b q 1", b"PUB c r 1", b"1", b"PUB d  1", b"2", b"PING"]


async def test_defect_2_draining_sends_unsub_before_its_ping_and_hears_until_the_pong(
    client: BusClient, fake: FakeServer
) -> None:
    heard: list[bytes] = []
    subscription = await client.subscribe_direct("a", lambda _s, _r, data, _h: heard.append(data))
    await client.flush()
    fake.lines.clear()
    fake.answers_pings = False
    drain = asyncio.ensure_future(subscription.drain(5))
    await eventually(lambda: b"PING" in fake.lines)
    assert fake.lines == [b"UNSUB 1", b"PING"]
    fake.send(b"MSG a 1 5\r\nearly\r\n")
    fake.answer_held_pings()
    await drain
    fake.send(b"MSG a 1 4\r\nlate\r\nPING\r\n")
    await eventually(lambda: b"PONG" in fake.lines, message="the late message has been read")
    assert heard == [b"early"]


async def test_replies_of_one_turn_leave_in_one_write(client: BusClient, fake: FakeServer) -> None:
    await client.subscribe_direct("a", lambda _s, reply, data, _h: client.respond(reply, data))
    await client.flush()
    fake.chunks.clear()
    fake.send(b"".join(b"MSG a 1 r%d 2\r\n%02d\r\n" % (number, number) for number in range(50)))
    await eventually(lambda: len(b"".join(fake.chunks).split(b"PUB")) == 51)
    assert len(fake.chunks) == 1


async def test_a_late_pong_of_a_barrier_given_up_does_no_harm(client: BusClient, fake: FakeServer) -> None:
    fake.answers_pings = False
    with pytest.raises(errors.FlushTimeoutError):
        await client.barrier(0.01)
    fake.answer_held_pings()
    fake.answers_pings = True
    await client.barrier(5)
    assert fake.connections == 1


async def test_a_ping_of_the_lost_connection_is_not_sent_on_the_new_one(client: BusClient, fake: FakeServer) -> None:
    heard: list[bytes] = []
    await client.subscribe_direct("a.*", lambda _s, _r, data, _h: heard.append(data), "q")
    await client.flush()
    fake.lines.clear()
    fake.answers_pings = False
    waiting = asyncio.ensure_future(client.barrier(5))
    await eventually(lambda: fake.lines == [b"PING"])
    fake.lines.clear()
    fake.answers_pings = True
    fake.send(b"-ERR 'Server Shutdown'\r\n")
    with pytest.raises(errors.ConnectionReconnectingError):
        await waiting
    client.publish_now("kept", b"x")
    await eventually(lambda: fake.connections == 2 and b"x" in fake.lines and fake.lines[-1] == b"PING")
    # The first PING belongs to CONNECT, the second is the one nats-py sends after a reconnect.
    assert [line for line in fake.lines if not line.startswith(b"CONNECT")] == [
        b"PING",
        b"SUB a.* q 1",
        b"PUB kept  1",
        b"x",
        b"PING",
    ]
    await client.barrier(5)
    fake.send(b"MSG a.b 1 5\r\nagain\r\n")
    await eventually(lambda: heard == [b"again"], message="the same callback hears on")


@pytest.mark.parametrize("text", [b'Permissions Violation for Publish to "x"', b"Invalid Subject"])
async def test_some_refusals_keep_the_connection(
    client: BusClient, fake: FakeServer, errors_seen: list[BaseException], text: bytes
) -> None:
    fake.send(b"-ERR '" + text + b"'\r\n")
    await eventually(lambda: errors_seen)
    await client.barrier(5)
    assert fake.connections == 1


@pytest.mark.parametrize("text", [b"User Authentication Expired", b"maximum connections exceeded", b"Slow Consumer"])
async def test_defect_10_other_refusals_lead_to_a_reconnect_not_to_a_closed_client(
    client: BusClient, fake: FakeServer, text: bytes
) -> None:
    fake.send(b"-ERR '" + text + b"'\r\n")
    await eventually(lambda: fake.connections == 2 and client.is_connected)
    await client.barrier(5)


@pytest.mark.parametrize(
    "garbage",
    [b"WHAT IS THIS\r\n", b"MSG a\r\n", b"MSG a 1 x\r\n", b"INFO {not json}\r\n", b"HMSG a 1 5 3\r\nabc\r\n"],
)
async def test_defect_9_bytes_that_are_not_nats_lead_to_a_reconnect(
    client: BusClient, fake: FakeServer, garbage: bytes
) -> None:
    fake.send(garbage)
    await eventually(lambda: fake.connections == 2 and client.is_connected)
    await client.barrier(5)


async def test_defect_9_a_read_loop_that_ends_is_noticed(client: BusClient, fake: FakeServer) -> None:
    reader = client._reading_task  # pyright: ignore[reportPrivateUsage]
    assert reader is not None
    reader.cancel()
    await eventually(lambda: fake.connections == 2 and client.is_connected)
    await client.barrier(5)


async def test_defect_12_replies_are_dropped_and_publishes_refused_beyond_the_bound(
    client: BusClient, fake: FakeServer
) -> None:
    await fake.stop()
    await eventually(lambda: not client.is_connected)
    while client.pending_data_size <= SETTINGS.pending_bytes:
        client.publish_now("a", b"x" * 1000)
    with pytest.raises(errors.OutboundBufferLimitError):
        client.publish_now("a", b"x")
    size = client.pending_data_size
    client.respond(b"r", b"x")
    assert (client.pending_data_size, client.replies_dropped) == (size, 1)


async def test_bad_subjects_and_large_payloads_never_reach_the_wire(client: BusClient, fake: FakeServer) -> None:
    for subject in ("", "a b", "a\r\nPING", "a\t"):
        with pytest.raises(errors.BadSubjectError):
            client.publish_now(subject, b"")
        with pytest.raises(errors.BadSubjectError):
            await client.subscribe_direct(subject, ignore)
    with pytest.raises(errors.BadSubjectError):
        client.publish_now("a", b"", b"r\r\nPING")
    for size, headers in ((1048577, None), (1048570, header_block({"a": "b"}))):
        with pytest.raises(errors.MaxPayloadError):
            client.publish_now("a", b"x" * size, headers=headers)
        with pytest.raises(errors.MaxPayloadError):
            client.respond(b"a", b"x" * size, headers)
    await client.flush()
    assert fake.lines == [b"PING"]


def test_header_blocks_cannot_be_split_and_are_read_without_regard_to_case() -> None:
    block = header_block({"Nats-Msg-Id": "b:1", "X": "one\r\nY: two"})
    assert block == b"NATS/1.0\r\nNats-Msg-Id: b:1\r\nX: one  Y: two\r\n\r\n"
    assert header_value(block, "nats-MSG-id") == "b:1"
    assert header_value(block, "Y") is None
    assert header_value(None, "Y") is None
    assert status_of(block) == (0, "")
    assert status_of(b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 1\r\n\r\n") == (408, "Request Timeout")
    assert status_of(b"NATS/1.0 503\r\n\r\n") == (503, "")
    assert publish_command(b"a", b"r", b"xy", b"NATS/1.0\r\n\r\n") == b"HPUB a r 12 14\r\nNATS/1.0\r\n\r\nxy\r\n"


class Collector:
    """Stands in for the client behind the parser."""

    def __init__(self) -> None:
        self.got: list[object] = []
        self.direct = {b"1": self}
        self.received = 0
        self.callback: DirectCallback = self.hear

    def hear(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.got.append((subject, reply, data, headers))

    def report(self, error: BaseException) -> None:
        self.got.append(error)

    async def control(self, line: bytes) -> None:
        self.got.append(line)

    async def indirect(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.got.append((sid, subject, reply, data, headers))


BODY = st.binary(max_size=40) | st.sampled_from([b"\r\n", b"MSG a 1 3\r\n", b"PING\r\n"])
HEADERS = st.sampled_from([None, b"NATS/1.0 100 Idle\r\n\r\n", b"NATS/1.0\r\nA: b\r\n\r\n"])
MESSAGE = st.tuples(st.sampled_from([1, 2]), st.sampled_from([b"", b"r.1"]), BODY, HEADERS) | st.just(None)


@given(messages=st.lists(MESSAGE, max_size=8), cuts=st.lists(st.integers(1, 30), max_size=40))
def test_however_the_bytes_are_cut_the_same_messages_come_out(
    messages: list[tuple[int, bytes, bytes, bytes | None] | None], cuts: list[int]
) -> None:
    wire, expected = b"", list[object]()
    for message in messages:
        if message is None:
            wire += b"PING\r\n"
            expected.append(b"PING")
            continue
        sid, reply, data, headers = message
        expected.append((b"s", reply, data, headers) if sid == 1 else (sid, b"s", reply, data, headers))
        size = b"%d" % len(data) if headers is None else b"%d %d" % (len(headers), len(headers) + len(data))
        words = [b"MSG" if headers is None else b"HMSG", b"s", b"%d" % sid, *([reply] if reply else []), size]
        wire += b" ".join(words) + b"\r\n" + (headers or b"") + data + b"\r\n"
    collector = Collector()

    async def feed() -> None:
        parser, at = DirectParser(collector), 0
        for cut in [*cuts, len(wire)]:
            await parser.parse(wire[at : at + cut])
            at += cut

    asyncio.run(feed())
    assert collector.got == expected
