"""The pull loop: everything arrives, nothing beyond the bounds, through every kind of trouble."""

from collections import Counter

import pytest

from agent.bus.client import BusClient, connect
from agent.bus.pull import PulledMessage, PullLoop, PullSettings
from agent.bus.streams import StreamSettings, ensure_streams, publish_stored, stream_state
from tests.bus.servers import PrivateServer
from tests.support.polling import eventually

QUICK = PullSettings(batch=20, expires_s=1.0, heartbeat_s=0.2, max_pending_messages=100, backoff_s=0.02)


class Taker:
    """Collects messages, acknowledging each at once unless told to hold."""

    def __init__(self, bus: BusClient, settings: PullSettings = QUICK, *, hold: bool = False) -> None:
        self.seen: list[PulledMessage] = []
        self.idle = 0
        self.problems: list[tuple[int, str]] = []
        self.hold = hold
        self.most_in_flight = 0
        self.loop = PullLoop(
            bus,
            stream="TM_USAGE",
            consumer="apply",
            on_message=self.take,
            on_idle=self.on_idle,
            on_problem=lambda code, text: self.problems.append((code, text)),
            settings=settings,
        )

    def take(self, message: PulledMessage) -> None:
        self.seen.append(message)
        self.most_in_flight = max(self.most_in_flight, self.loop.in_flight)
        if not self.hold:
            self.loop.ack(message)

    def on_idle(self) -> None:
        self.idle += 1

    def sequences(self) -> Counter[int]:
        return Counter(message.stream_seq for message in self.seen)


async def fill(bus: BusClient, count: int) -> None:
    for number in range(count - 1):
        bus.publish_now("tm.batch.0", b"%d" % number)
    await publish_stored(bus, "tm.batch.0", b"last", timeout_s=10)


async def is_empty(bus: BusClient) -> bool:
    return (await stream_state(bus, "TM_USAGE")).messages == 0


async def test_everything_arrives_once_in_order_and_is_acknowledged(bus: BusClient) -> None:
    await ensure_streams(bus)
    await fill(bus, 1000)
    taker = Taker(bus)
    taker.loop.start()
    await eventually(lambda: is_empty(bus), message="all acknowledged")
    assert [message.stream_seq for message in taker.seen] == list(range(1, 1001))
    assert taker.loop.in_flight == 0
    await eventually(lambda: taker.idle, message="idle is told")
    first = taker.seen[0]
    assert (first.subject, first.data, first.num_delivered, first.headers) == (b"tm.batch.0", b"0", 1, None)
    assert first.timestamp_ns > 1_700_000_000 * 10**9
    await fill(bus, 7)
    await eventually(lambda: len(taker.seen) == 1007, message="later messages arrive too")
    await taker.loop.stop()


async def test_no_more_than_the_bound_is_in_flight_until_something_is_settled(bus: BusClient) -> None:
    await ensure_streams(bus)
    await fill(bus, 500)
    taker = Taker(bus, hold=True)
    taker.loop.start()
    await eventually(lambda: len(taker.seen) >= 90, message="the bound is nearly reached")
    await bus.barrier(5)
    assert taker.loop.in_flight == len(taker.seen) <= 100
    taker.hold = False
    for message in list(taker.seen):
        taker.loop.ack(message)
        taker.loop.ack(message)  # a second time changes nothing
    await eventually(lambda: is_empty(bus), message="the rest follows")
    assert taker.most_in_flight <= 100
    assert max(taker.sequences().values()) == 1
    await taker.loop.stop()


async def test_nak_redelivers_term_does_not_abandon_waits_for_the_ack_wait(bus: BusClient) -> None:
    await ensure_streams(bus, StreamSettings(ack_wait_s=1))
    await fill(bus, 3)
    taker = Taker(bus, hold=True)
    taker.loop.start()
    await eventually(lambda: len(taker.seen) == 3)
    one, two, three = taker.seen
    taker.loop.nak(one, delay_s=0.05)
    taker.loop.term(two, "not usage")
    taker.loop.abandon(three)
    taker.hold = False
    await eventually(lambda: is_empty(bus), message="one and three come again")
    assert taker.sequences() == {1: 2, 2: 1, 3: 2}
    assert taker.seen[3].num_delivered == 2
    assert (await stream_state(bus, "TM_DLQ")).messages == 1, "a terminated message leaves an advisory"
    await taker.loop.stop()


async def test_in_progress_restarts_the_ack_wait(bus: BusClient) -> None:
    await ensure_streams(bus, StreamSettings(ack_wait_s=1))
    await fill(bus, 2)
    taker = Taker(bus, hold=True)
    taker.loop.start()
    await eventually(lambda: len(taker.seen) == 2)
    kept, left = taker.seen

    def left_came_again() -> bool:
        taker.loop.in_progress(kept)
        return taker.sequences()[left.stream_seq] == 2

    await eventually(left_came_again, message="the message nobody works on comes again")
    assert taker.sequences()[kept.stream_seq] == 1
    await taker.loop.stop()


async def test_pause_leaves_messages_in_the_stream_and_resume_takes_them(bus: BusClient) -> None:
    await ensure_streams(bus)
    taker = Taker(bus)
    taker.loop.start()
    await fill(bus, 10)
    await eventually(lambda: len(taker.seen) == 10)
    taker.loop.pause()
    await bus.barrier(5)
    await fill(bus, 10)
    await bus.barrier(5)
    assert len(taker.seen) == 10
    assert taker.loop.paused
    taker.loop.resume()
    await eventually(lambda: is_empty(bus))
    assert max(taker.sequences().values()) == 1
    await taker.loop.stop()


async def test_stop_sees_what_was_delivered_and_takes_nothing_after(bus: BusClient) -> None:
    await ensure_streams(bus)
    await fill(bus, 500)
    taker = Taker(bus)
    taker.loop.start()
    await eventually(lambda: taker.seen)
    await taker.loop.stop()
    await bus.barrier(5)
    seen = len(taker.seen)
    assert (await stream_state(bus, "TM_USAGE")).messages == 500 - seen
    await fill(bus, 10)
    await bus.barrier(5)
    assert len(taker.seen) == seen


async def test_it_goes_on_after_the_server_is_killed(server: PrivateServer, bus: BusClient) -> None:
    await ensure_streams(bus)
    taker = Taker(bus)
    taker.loop.start()
    await fill(bus, 50)
    await eventually(lambda: len(taker.seen) == 50)
    await bus.barrier(5)
    await server.kill()
    await server.start()
    await eventually(lambda: bus.is_connected, message="reconnected")
    await fill(bus, 50)
    await eventually(lambda: is_empty(bus), message="pulled after the restart")
    await taker.loop.stop()


async def test_a_deleted_consumer_is_told_and_pulled_from_again_when_it_is_back(bus: BusClient) -> None:
    await ensure_streams(bus)
    taker = Taker(bus)
    taker.loop.start()
    await bus.barrier(5)
    await bus.request("$JS.API.CONSUMER.DELETE.TM_USAGE.apply", b"", timeout=5)
    await eventually(lambda: (409, "Consumer Deleted") in taker.problems, message="told")
    await eventually(lambda: any(code == 503 for code, _ in taker.problems), message="nobody answers the next pull")
    await ensure_streams(bus)
    await fill(bus, 5)
    await eventually(lambda: is_empty(bus), message="pulled again")
    await taker.loop.stop()


async def test_a_request_the_server_refuses_is_told_and_not_repeated_in_a_hurry(bus: BusClient) -> None:
    await ensure_streams(bus)
    settings = PullSettings(batch=5, expires_s=0.1, heartbeat_s=0.2, backoff_s=60, backoff_max_s=60)
    taker = Taker(bus, settings)
    taker.loop.start()
    await eventually(lambda: len(taker.problems) == 2, message="one refusal for each of the two requests")
    assert {code for code, _ in taker.problems} == {400}
    await taker.loop.stop()


async def test_defect_6_a_lost_request_is_replaced_after_missed_heartbeats(bus: BusClient) -> None:
    await ensure_streams(bus)
    taker = Taker(bus, PullSettings(batch=20, expires_s=60, heartbeat_s=0.1))
    taker.loop.start()
    await bus.barrier(5)
    # Cut off both requests as an orphaned pull would be: their inboxes lead nowhere any more.
    for subscription in list(bus.direct.values()):
        await subscription.unsubscribe()
    await fill(bus, 5)
    await eventually(lambda: len(taker.seen) >= 5 or len(taker.sequences()) == 5, timeout_s=5, message="replaced")
    await taker.loop.stop()


async def test_a_failing_callback_costs_nothing_but_the_wait(bus: BusClient, reported: list[BaseException]) -> None:
    await ensure_streams(bus, StreamSettings(ack_wait_s=1))
    await fill(bus, 3)
    seen: list[int] = []

    def take(message: PulledMessage) -> None:
        seen.append(message.stream_seq)
        if len(seen) == 1:
            raise RuntimeError("broken")
        loop.ack(message)

    loop = PullLoop(bus, stream="TM_USAGE", consumer="apply", on_message=take, settings=QUICK)
    loop.start()
    await eventually(lambda: is_empty(bus), message="the failed one comes again")
    assert Counter(seen) == {1: 2, 2: 1, 3: 1}
    assert loop.in_flight == 0
    assert [str(error) for error in reported] == ["broken"]
    await loop.stop()


@pytest.mark.parametrize(
    "reply",
    [
        b"$JS.ACK.TM_USAGE.apply.3.42.7.1700000000000000000.9",
        b"$JS.ACK._.ACCHASH.TM_USAGE.apply.3.42.7.1700000000000000000.9",
        b"$JS.ACK.hub.ACCHASH.TM_USAGE.apply.3.42.7.1700000000000000000.9.rAnDoM",
    ],
)
def test_both_versions_of_the_ack_subject_are_read(reply: bytes) -> None:
    message = PulledMessage(b"s", b"d", reply, None)
    assert (message.num_delivered, message.stream_seq, message.pending) == (3, 42, 9)
    assert message.timestamp_ns == 1_700_000_000_000_000_000


@pytest.mark.parametrize("reply", [b"", b"_INBOX.x", b"$JS.ACK.a.b", b"$JS.ACK.a.b.x.y.z.t.p", b"$JS.FC.a.b.c.d.e.f.g"])
def test_anything_else_is_no_ack_subject(reply: bytes) -> None:
    with pytest.raises(ValueError, match=r"ack subject|invalid literal"):
        PulledMessage(b"s", b"d", reply, None)


async def test_pulling_works_with_the_second_version_of_ack_subjects(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = PrivateServer(tmp_path_factory.mktemp("v2"), ack_v2=True)
    await server.start()
    bus = await connect(server.url)
    try:
        await ensure_streams(bus)
        await fill(bus, 30)
        taker = Taker(bus)
        taker.loop.start()
        await eventually(lambda: is_empty(bus))
        assert len(taker.seen) == 30
        assert len(taker.seen[0].reply.split(b".")) > 9, "the flag makes the server use the new form"
        await taker.loop.stop()
    finally:
        await bus.close()
        await server.kill()


def test_the_default_settings_are_what_the_server_accepts() -> None:
    settings = PullSettings()
    assert settings.expires_s >= 2 * settings.heartbeat_s
    assert settings.batch_bytes > StreamSettings().message_bytes_max
