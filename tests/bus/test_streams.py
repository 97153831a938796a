"""The streams the agent needs, and publishing into them."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from agent.bus.client import BusClient
from agent.bus.streams import (
    PublishFailed,
    StoredPublisher,
    StreamConflict,
    StreamFull,
    StreamSettings,
    StreamUnavailable,
    ensure_streams,
    publish_stored,
    stream_state,
)
from tests.bus.servers import PrivateServer


async def api(client: BusClient, subject: str, body: object = None) -> dict[str, object]:
    payload = b"" if body is None else json.dumps(body).encode()
    return json.loads((await client.request(f"$JS.API.{subject}", payload, timeout=5)).data)


async def test_streams_and_consumer_are_made_once_with_the_settings_of_the_design(bus: BusClient) -> None:
    created = await ensure_streams(bus)
    again = await ensure_streams(bus)
    assert created == again
    assert abs(datetime.now(UTC) - created) < timedelta(minutes=1)
    usage = (await api(bus, "STREAM.INFO.TM_USAGE"))["config"]
    assert isinstance(usage, dict)
    assert usage["subjects"] == ["tm.ingest.>", "tm.batch.*"]
    assert (usage["retention"], usage["discard"], usage["duplicate_window"]) == ("workqueue", "new", 100_000_000)
    consumer = (await api(bus, "CONSUMER.INFO.TM_USAGE.apply"))["config"]
    assert isinstance(consumer, dict)
    assert (consumer["max_deliver"], consumer["ack_wait"]) == (-1, 15_000_000_000)
    assert (consumer["max_ack_pending"], consumer["max_waiting"]) == (20_000, 512)


async def test_changeable_settings_are_corrected_and_nothing_stored_is_lost(bus: BusClient) -> None:
    await ensure_streams(bus)
    await publish_stored(bus, "tm.ingest.acme.a.b", b"x", timeout_s=5)
    created = await ensure_streams(bus, StreamSettings(usage_bytes_max=1024**2, max_ack_pending=7))
    usage = (await api(bus, "STREAM.INFO.TM_USAGE"))["config"]
    consumer = (await api(bus, "CONSUMER.INFO.TM_USAGE.apply"))["config"]
    assert isinstance(usage, dict) and isinstance(consumer, dict)
    assert (usage["max_bytes"], consumer["max_ack_pending"]) == (1024**2, 7)
    state = await stream_state(bus, "TM_USAGE")
    assert (state.messages, state.first_seq, state.last_seq, state.created) == (1, 1, 1, created)
    assert state.first_timestamp is not None
    assert abs(datetime.now(UTC) - state.first_timestamp) < timedelta(minutes=1)


async def test_many_agents_may_start_at_once(server: PrivateServer, bus: BusClient) -> None:
    assert len(set(await asyncio.gather(*(ensure_streams(bus) for _ in range(8))))) == 1


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"name": "TM_USAGE", "subjects": ["tm.ingest.>"], "retention": "limits", "storage": "file"}, "retention is"),
        ({"name": "OTHER", "subjects": ["tm.ingest.acme.>"], "storage": "file"}, "subjects overlap"),
    ],
)
async def test_a_foreign_stream_in_the_way_is_named(bus: BusClient, config: dict[str, object], text: str) -> None:
    await api(bus, f"STREAM.CREATE.{config['name']}", config)
    with pytest.raises(StreamConflict, match=rf"stream TM_USAGE: .*{text}"):
        await ensure_streams(bus)


async def test_a_foreign_consumer_in_the_way_is_named(bus: BusClient) -> None:
    await ensure_streams(bus)
    await api(bus, "CONSUMER.DELETE.TM_USAGE.apply")
    config = {"durable_name": "apply", "ack_policy": "explicit", "filter_subject": "tm.batch.*"}
    await api(bus, "CONSUMER.CREATE.TM_USAGE.apply.tm.batch.*", {"stream_name": "TM_USAGE", "config": config})
    with pytest.raises(StreamConflict, match="consumer apply of TM_USAGE must be"):
        await ensure_streams(bus)


async def test_state_of_an_empty_and_of_a_missing_stream(bus: BusClient) -> None:
    await ensure_streams(bus)
    state = await stream_state(bus, "TM_USAGE")
    assert (state.messages, state.first_timestamp, state.last_seq) == (0, None, 0)
    with pytest.raises(StreamConflict, match="stream NONE: stream not found"):
        await stream_state(bus, "NONE")


async def test_the_same_id_is_stored_once_within_the_window(bus: BusClient) -> None:
    await ensure_streams(bus, StreamSettings(duplicate_window_s=30))
    first = await publish_stored(bus, "tm.batch.0", b"a", "b:1", timeout_s=5)
    second = await publish_stored(bus, "tm.batch.0", b"a", "b:1", timeout_s=5)
    assert (first.stream, first.seq, first.duplicate) == ("TM_USAGE", 1, False)
    assert (second.seq, second.duplicate) == (1, True)


async def test_a_full_stream_refuses_and_forgets_the_id(bus: BusClient) -> None:
    await ensure_streams(bus, StreamSettings(usage_bytes_max=2048, duplicate_window_s=30))
    await publish_stored(bus, "tm.batch.0", b"x" * 1500, timeout_s=5)
    with pytest.raises(StreamFull) as refused:
        await publish_stored(bus, "tm.batch.0", b"x" * 1500, "b:2", timeout_s=5)
    assert refused.value.code == 10077
    await ensure_streams(bus, StreamSettings(usage_bytes_max=8192, duplicate_window_s=30))
    assert not (await publish_stored(bus, "tm.batch.0", b"x" * 1500, "b:2", timeout_s=5)).duplicate


async def test_no_stream_and_too_large_are_told_at_once(bus: BusClient) -> None:
    with pytest.raises(StreamUnavailable, match="no stream listens"):
        await publish_stored(bus, "tm.batch.0", b"a", timeout_s=5)
    with pytest.raises(PublishFailed, match="more than the bus takes"):
        await publish_stored(bus, "tm.batch.0", b"a" * 2_000_000, timeout_s=5)


async def test_defect_8_unanswered_publishes_time_out_and_free_their_slots(
    server: PrivateServer, bus: BusClient
) -> None:
    await ensure_streams(bus)
    publisher = StoredPublisher(bus, waiting_max=3)
    server.freeze()
    attempts = [asyncio.ensure_future(publisher.publish("tm.batch.0", b"a", timeout_s=0.3)) for _ in range(3)]
    await asyncio.wait(attempts, timeout=0.05)
    assert publisher.waiting == 3
    with pytest.raises(PublishFailed, match="3 publishes are waiting"):
        await publisher.publish("tm.batch.0", b"a", timeout_s=5)
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StreamUnavailable] * 3
    assert publisher.waiting == 0
    server.thaw()
    cancelled = asyncio.ensure_future(publisher.publish("tm.batch.0", b"a", timeout_s=5))
    await asyncio.wait([cancelled], timeout=0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert publisher.waiting == 0
    assert (await publisher.publish("tm.batch.0", b"b", timeout_s=10)).stream == "TM_USAGE"


async def test_jetstream_away_is_unavailable(tenant: BusClient) -> None:
    with pytest.raises(StreamUnavailable, match="JetStream does not answer"):
        await stream_state(tenant, "TM_USAGE", timeout_s=1)
