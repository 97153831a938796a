"""R10-R13 and R17: which events count, when, where they are kept, and what becomes of those that cannot be."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest

from agent.backoff import Backoff
from agent.bus.stored import PubAck, StoredPublisher, StreamUnavailable
from agent.relay import Relay
from handlers.tracker.ingest import Ingest, StreamMessage
from handlers.tracker.intake import BATCH_VERSION, StoredBatch
from handlers.tracker.priced import PricedEvent
from schemas.errors import SignalError
from store import partitions
from tests.support.ledger import CENT, START, World, world_of
from tests.support.polling import eventually


async def _letters(world: World) -> Sequence[Any]:
    sql = "SELECT reason, field, message, usage_id, source_key FROM dead_letter WHERE org_id = $1 ORDER BY arrived_at"
    return await world.fetch(sql, world.org)


def _published(world: World, *items: dict[str, Any], key: str = "s1-1", kind: str = "m") -> StreamMessage:
    data = msgspec.json.encode(items[0] if len(items) == 1 else {"events": items})
    return StreamMessage(f"tm.ingest.{world.org}.acme.{kind}", data, key, world.now())


# R10 --------------------------------------------------------------------------------------------------------------


async def test_r10_an_event_counts_once_however_often_and_wherever_it_is_delivered(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=10)
    events = [one.event(completion_tokens=n, tags={"a": "1", "b": "2"}) for n in range(1, 21)]
    again = [msgspec.structs.replace(event) for event in events[:10]]

    effects = await asyncio.gather(
        *(agent.apply(batch) for agent in (one, two) for batch in (events, events[::-1], events[5:] + again))
    )

    applied = [e for effect in effects for e in effect.values()]
    assert applied.count("applied") == 20
    assert set(applied) == {"applied", "duplicate"}
    assert await world.sums(budget) == (210 * CENT, 0, 0)
    assert await _letters(world) == []


async def test_r10_the_same_id_with_another_payload_is_a_conflict_and_kept_with_its_reason(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=10)
    assert await one.track(id="x", completion_tokens=1) == "applied"

    for agent in (one, two, two):
        assert await agent.track(id="x", completion_tokens=2) == "conflict"
    effects = await two.apply([one.event(id="y", completion_tokens=n) for n in (3, 4, 3)])

    assert effects == {0: "applied", 1: "conflict", 2: "duplicate"}
    assert await world.sums(budget) == (4 * CENT, 0, 0)
    assert [(le["reason"], le["field"], le["usage_id"]) for le in await _letters(world)] == [
        ("conflict", "id", "x"),
        ("conflict", "id", "y"),
    ]


async def test_r10_the_same_payload_in_another_order_of_keys_is_a_retry(world: World) -> None:
    one, two = world.agents
    assert await one.track(id="x", completion_tokens=1, tags={"a": "1", "b": "2"}, metadata={"k": [1], "l": {}})
    assert await two.track(metadata={"l": {}, "k": [1]}, tags={"b": "2", "a": "1"}, id="x", completion_tokens=1) == (
        "duplicate"
    )


async def test_r10_ids_belong_to_their_org(world: World) -> None:
    await world.agents[0].track(id="x", completion_tokens=1)
    async with world_of(world.url, org="elsewhere") as other:
        assert await other.agents[0].track(id="x", completion_tokens=2) == "applied"


async def test_r10_without_an_id_the_place_in_the_stream_is_the_id(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=10)
    event = {"provider": "acme", "model": "cent", "completion_tokens": 1}
    messages = [_published(world, event, key="s7-1"), _published(world, event, event, key="s7-2")]
    loops = [Ingest(agent.services, agent.applier) for agent in (one, two)]

    await asyncio.gather(*(loop.apply(messages) for loop in loops))
    await loops[0].apply(messages)

    ids = await world.fetch("SELECT id FROM usage_event WHERE org_id = $1 ORDER BY id", world.org)
    assert [row["id"] for row in ids] == ["s7-1", "s7-2-0", "s7-2-1"]
    assert await world.sums(budget) == (3 * CENT, 0, 0)


async def test_r10_what_arrives_by_request_and_by_stream_is_the_same_event(world: World) -> None:
    one, two = world.agents
    fields = {"id": "x", "provider": "acme", "model": "cent", "prompt_tokens": 0, "completion_tokens": 1}
    batch = msgspec.msgpack.encode(StoredBatch(BATCH_VERSION, [one.event(**fields)]))
    stored = StreamMessage("tm.batch.0", batch, "s1-1", world.now())
    ingest = Ingest(two.services, two.applier)

    await ingest.apply([stored, _published(world, fields, key="s1-2"), stored])
    assert await one.track(**fields) == "duplicate"

    assert (ingest.counts.applied, ingest.counts.duplicates, ingest.counts.conflicts) == (1, 2, 0)


# R11 --------------------------------------------------------------------------------------------------------------


async def test_r11_a_time_more_than_five_minutes_ahead_is_refused(world: World) -> None:
    one, _ = world.agents
    with pytest.raises(SignalError) as error:
        one.event(completion_tokens=1, timestamp=world.now() + timedelta(minutes=5, seconds=5))
    assert (error.value.code, error.value.field) == ("invalid_request", "timestamp")
    assert await one.track(completion_tokens=1, timestamp=world.now() + timedelta(minutes=4)) == "applied"


async def test_r11_unreserved_usage_older_than_35_days_is_charged_to_the_window_of_its_arrival(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=10, period="daily", counting_since=START - timedelta(days=100))
    young, old = START - timedelta(days=34), START - timedelta(days=36)

    await one.track(completion_tokens=1, timestamp=young)
    await one.track(completion_tokens=2, timestamp=old)

    windows = [(w["starts_at"].date(), w["spent"]) for w in await world.windows(budget)]
    assert windows == [(young.date(), CENT), (START.date(), 2 * CENT)]
    times = await world.fetch('SELECT "timestamp" FROM usage_event WHERE org_id = $1 ORDER BY 1', world.org)
    assert [row["timestamp"] for row in times] == [old, young]


async def test_r11_a_time_is_kept_in_utc_whatever_its_offset(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=10, period="daily", counting_since=START - timedelta(days=9))
    await one.track(completion_tokens=1, timestamp=datetime.fromisoformat("2030-03-13T01:30:00+05:00"))

    assert [w["starts_at"] for w in await world.windows(budget)] == [datetime(2030, 3, 12, tzinfo=UTC)]


# R12 --------------------------------------------------------------------------------------------------------------


async def _bounds(world: World) -> dict[str, str]:
    sql = """SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) AS bound FROM pg_inherits i
             JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'usage_event'::regclass"""
    return {row["relname"]: row["bound"] for row in await world.fetch(sql)}


async def test_r12_a_day_without_a_partition_is_attached_by_the_apply_loop(own_world: World) -> None:
    one, two = own_world.agents
    day = await partitions.first_day(one.services.database)
    await own_world.go_to(datetime(day.year, day.month, day.day, 12, tzinfo=UTC) + timedelta(days=400))
    now = own_world.now()
    events = [one.event(completion_tokens=1, timestamp=now - timedelta(days=n)) for n in (0, 1, 2)]

    effects = await asyncio.gather(one.apply(events), two.apply(events), two.apply(events[1:]))

    assert sum(e == "applied" for effect in effects for e in effect.values()) == 3
    names = {partitions.name_of((now - timedelta(days=n)).date()) for n in (0, 1, 2)}
    assert set(await _bounds(own_world)) == {"usage_event_history", *names}
    assert await _letters(own_world) == []


async def test_r12_everything_before_the_installation_lies_in_one_static_partition_and_nothing_is_a_default(
    own_world: World,
) -> None:
    one, _ = own_world.agents
    day = await partitions.first_day(one.services.database)
    await own_world.go_to(datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(days=1000))
    await one.track(completion_tokens=1)

    rows = await own_world.fetch("SELECT tableoid::regclass::text AS part FROM usage_event")
    assert [row["part"] for row in rows] == [partitions.HISTORY]
    assert "DEFAULT" not in (await _bounds(own_world)).values()


async def test_r12_days_are_attached_while_usage_is_applied_and_by_two_agents_at_once(own_world: World) -> None:
    one, two = own_world.agents
    days = [START.date() + timedelta(days=n) for n in range(8)]

    created = await asyncio.gather(
        partitions.ensure(one.services.database, days),
        partitions.ensure(two.services.database, reversed(days)),
        one.apply([one.event(completion_tokens=1) for _ in range(50)]),
    )

    assert set(created[0] + created[1]) <= set(days)
    assert set(await _bounds(own_world)) == {partitions.HISTORY, *map(partitions.name_of, days)}


async def test_r12_an_old_day_is_detached_and_dropped_and_the_others_stay(own_world: World) -> None:
    one, _ = own_world.agents
    days = await _three_days(own_world)

    assert await partitions.drop_before(one.services.database, days[1]) == [partitions.name_of(days[0])]

    assert set(await _bounds(own_world)) == {partitions.HISTORY, *map(partitions.name_of, days[1:])}
    assert await partitions.drop_before(one.services.database, days[1]) == []


async def test_r12_a_day_whose_dropping_was_interrupted_is_dropped_next_time(own_world: World) -> None:
    """Killed between detaching and dropping: the table is nobody's partition any more."""
    one, _ = own_world.agents
    days = await _three_days(own_world)
    name = partitions.name_of(days[0])
    await own_world.fetch(f"ALTER TABLE usage_event DETACH PARTITION {name} CONCURRENTLY")

    await partitions.drop_before(one.services.database, days[1])

    assert await own_world.fetch("SELECT FROM pg_class WHERE relname = $1", name) == []


async def test_r12_a_day_that_was_detached_but_not_dropped_takes_events_again(own_world: World) -> None:
    one, _ = own_world.agents
    days = await _three_days(own_world)
    name = partitions.name_of(days[0])
    await own_world.fetch(f"ALTER TABLE usage_event DETACH PARTITION {name} CONCURRENTLY")
    noon = datetime(days[0].year, days[0].month, days[0].day, 12, tzinfo=UTC)
    await own_world.go_to(noon + timedelta(days=2))

    assert await one.track(completion_tokens=1, timestamp=noon) == "applied"


async def test_r12_a_detach_that_was_interrupted_is_finished_next_time(own_world: World) -> None:
    """A concurrent detach commits half-way; what is killed then stays pending until somebody finalizes it."""
    one, _ = own_world.agents
    days = await _three_days(own_world)
    await _interrupt_detach(own_world, partitions.name_of(days[0]))

    await partitions.drop_before(one.services.database, days[2])

    assert set(await _bounds(own_world)) == {partitions.HISTORY, partitions.name_of(days[2])}


async def _three_days(world: World) -> list[date]:
    database = world.agents[0].services.database
    first = await partitions.first_day(database)
    days = [first + timedelta(days=n) for n in range(3)]
    await partitions.ensure(database, days)
    return days


async def _interrupt_detach(world: World, name: str) -> None:
    """The second phase waits for transactions that may still use the partition; it is cancelled while it waits."""
    async with world.connection() as reader, world.connection() as worker, reader.transaction():
        await reader.fetch("SELECT FROM usage_event")
        await worker.execute("SET statement_timeout = '300 ms'")
        with pytest.raises(asyncpg.QueryCanceledError):
            await worker.execute(f"ALTER TABLE usage_event DETACH PARTITION {name} CONCURRENTLY")
    assert await world.fetch("SELECT FROM pg_inherits WHERE inhdetachpending")


# R13 --------------------------------------------------------------------------------------------------------------


def _poison(event: PricedEvent, **fields: Any) -> PricedEvent:
    return msgspec.structs.replace(event, **fields)


@pytest.mark.parametrize(
    "fields",
    [{"user_id": "a\x00b"}, {"cost": 2**63}, {"prompt_tokens": -(2**70)}, {"line_items": "{"}, {"provider": None}],
    ids=["nul", "cost beyond a bigint", "count beyond a bigint", "not json", "null"],
)
async def test_r13_one_poisoned_event_is_found_and_buried_and_its_batch_is_applied(
    world: World, fields: dict[str, Any]
) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=10)
    events = [one.event(completion_tokens=1) for _ in range(33)]
    events[17] = _poison(events[17], **fields)

    effects = await one.apply(events)

    assert [n for n, effect in effects.items() if effect != "applied"] == [17]
    assert effects[17] == "dead"
    assert await world.sums(budget) == (32 * CENT, 0, 0)
    (letter,) = await _letters(world)
    assert letter["usage_id"] == events[17].id
    assert await one.apply(events) == {n: "dead" if n == 17 else "duplicate" for n in range(33)}
    assert len(await _letters(world)) == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"user_id": "a\x00b"}, "user_id"),
        ({"model": "m" * 257}, "model"),
        ({"completion_tokens": 1_000_000_001}, "completion_tokens"),
        ({"completion_tokens": -1}, "completion_tokens"),
        ({"completion_tokens": 1_000_000_000}, "completion_tokens"),
        ({"tags": {f"t{n}": "x" for n in range(65)}}, "tags"),
        ({"prompt_tokens": 1, "cache_read_tokens": 2}, "cache_read_tokens"),
        ({"reported_cost": "1e3"}, "reported_cost"),
        ({"colour": "blue"}, "colour"),
    ],
    ids=["nul", "name", "count", "negative", "cost", "tags", "subset", "reported", "unknown"],
)
async def test_r13_what_is_beyond_bounds_is_refused_at_the_edge_with_its_field(
    world: World, fields: dict[str, Any], field: str
) -> None:
    one, _ = world.agents
    good = {"provider": "acme", "model": "cent", "completion_tokens": 1}
    messages = [_published(world, {**good, **fields}, key="s1-1"), _published(world, good, key="s1-2")]
    ingest = Ingest(one.services, one.applier)

    for _ in range(2):
        await ingest.apply(messages)

    (letter,) = await _letters(world)
    assert (letter["reason"], letter["field"], letter["source_key"]) == ("invalid_request", field, "s1-1")
    assert ingest.counts.applied == 1


async def test_r13_a_failure_that_says_nothing_about_the_events_buries_none_of_them(own_world: World) -> None:
    one, _ = own_world.agents
    events = [one.event(completion_tokens=1) for _ in range(3)]
    await own_world.fetch("ALTER TABLE usage_rollup RENAME TO elsewhere")

    with pytest.raises(asyncpg.UndefinedTableError):
        await one.apply(events)

    await own_world.fetch("ALTER TABLE elsewhere RENAME TO usage_rollup")
    assert await _letters(own_world) == []
    assert set((await one.apply(events)).values()) == {"applied"}


async def test_events_are_append_only(world: World) -> None:
    one, _ = world.agents
    await one.track(completion_tokens=1)
    for sql in ("UPDATE usage_event SET cost = 0", "DELETE FROM usage_event"):
        with pytest.raises(asyncpg.RestrictViolationError):
            await world.fetch(f"{sql} WHERE org_id = $1", world.org)


# R17 --------------------------------------------------------------------------------------------------------------


class _Stream(StoredPublisher):
    """Confirms or refuses what is published, as told."""

    def __init__(self) -> None:
        self.stored: list[tuple[str, str | None]] = []
        self.refuse: set[int] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = 0

    async def publish(self, subject: str, payload: bytes, *, msg_id: str | None = None, timeout_s: float) -> PubAck:
        del payload, timeout_s
        self.asked += 1
        asked = self.asked
        await self.gate.wait()
        if asked in self.refuse:
            raise StreamUnavailable("away")
        self.stored.append((subject, msg_id))
        return PubAck("TM_EVENTS", len(self.stored), duplicate=False)


def _relay(world: World, agent: int, stream: _Stream, batch_max: int = 100) -> Relay:
    services = world.agents[agent].services
    return Relay(
        services.database,
        stream,
        services.outbox_ready,
        services.identities,
        batch_max=batch_max,
        poll_s=60.0,
        backoff=Backoff(0.01, 0.02),
    )


async def _some_events(world: World, count: int) -> None:
    one, _ = world.agents
    await world.budget(limit=1, alert_thresholds=tuple(range(1, count + 1)))
    await one.track(completion_tokens=count)
    # Each threshold is an alert besides; these tests count rows, so one kind of event is enough.
    await world.execute("DELETE FROM outbox WHERE event = 'alert.raised'")


async def _ids(world: World) -> list[int]:
    return [row["outbox_id"] for row in await world.fetch("SELECT outbox_id FROM outbox ORDER BY 1")]


async def test_r17_only_what_the_stream_confirmed_leaves_the_outbox(own_world: World) -> None:
    await _some_events(own_world, 6)
    ids = await _ids(own_world)
    stream = _Stream()
    stream.refuse = {2, 5}

    with pytest.raises(StreamUnavailable):
        await _relay(own_world, 0, stream).publish_some()
    assert await _ids(own_world) == [ids[1], ids[4]]

    assert await _relay(own_world, 1, stream).publish_some() == 2
    assert await _ids(own_world) == []
    assert sorted(message_id or "" for _, message_id in stream.stored) == sorted(f"o:{n}" for n in ids)
    assert {subject for subject, _ in stream.stored} == {"tm.evt.default.budget.threshold"}


async def test_r17_two_relays_share_the_outbox_and_publish_nothing_twice(own_world: World) -> None:
    await _some_events(own_world, 40)
    ids = await _ids(own_world)
    slow, quick = _Stream(), _Stream()
    slow.gate.clear()

    waiting = asyncio.create_task(_relay(own_world, 0, slow, batch_max=10).publish_some())
    await eventually(lambda: slow.asked == 10)
    while await _relay(own_world, 1, quick, batch_max=10).publish_some():
        pass
    assert await _ids(own_world) == ids[:10]
    slow.gate.set()
    assert await waiting == 10

    published = [message_id for stream in (slow, quick) for _, message_id in stream.stored]
    assert sorted(published, key=str) == sorted((f"o:{n}" for n in ids), key=str)


async def test_r17_a_relay_that_dies_while_it_publishes_leaves_the_rows_for_another(own_world: World) -> None:
    await _some_events(own_world, 5)
    stream = _Stream()
    stream.gate.clear()
    dying = asyncio.create_task(_relay(own_world, 0, stream).publish_some())
    await eventually(lambda: stream.asked == 5)
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)

    other = _Stream()
    assert await _relay(own_world, 1, other).publish_some() == 5
    assert await _ids(own_world) == []


async def test_r17_no_event_of_a_transaction_that_did_not_commit_is_ever_published(own_world: World) -> None:
    one, _ = own_world.agents
    await own_world.budget(limit=1)
    event = one.event(completion_tokens=100)
    await own_world.execute(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'internal_error'; END $$;
           CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON usage_id DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW EXECUTE FUNCTION refuse()"""
    )

    with pytest.raises(asyncpg.InternalServerError):
        await one.apply([event])

    assert await _ids(own_world) == []
    await own_world.fetch("DROP TRIGGER refuse ON usage_id")
    await one.apply([event])
    assert [len(await own_world.told(name)) for name in ("budget.threshold", "budget.exceeded")] == [2, 1]
