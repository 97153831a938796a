"""list_dead_letters and retry_dead_letter: nothing is dropped, and sending twice is harmless."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from handlers.context import Context, Services
from handlers.tracker.apply import Applier
from handlers.tracker.dead_letters import list_dead_letters, retry_dead_letter
from handlers.tracker.ingest import Ingest, StreamMessage
from schemas.usage import DeadLetter, ListDeadLetters, RetryDeadLetter
from tests.support.services import RecordingSink, apply_usage, context, gpt, refusal

SUBJECT = "tm.ingest.default.openai.chat"
GOOD: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 10, "completion_tokens": 1}


async def received(services: Services, message: Any, *, key: str = "k-1", subject: str = SUBJECT) -> None:
    data = message if isinstance(message, bytes) else msgspec.json.encode(message)
    await Ingest(services, Applier(services)).apply([StreamMessage(subject, data, key, services.clock())])


async def letters(ctx: Context, **fields: Any) -> list[DeadLetter]:
    return (await list_dead_letters(ctx, ListDeadLetters(**fields))).dead_letters


async def test_letters_are_listed_newest_first_in_pages(ctx: Context, services: Services) -> None:
    for n in range(3):
        await received(services, {"provider": "openai"}, key=f"k-{n}")
    first = await list_dead_letters(ctx, ListDeadLetters(limit=2))
    rest = await list_dead_letters(ctx, ListDeadLetters(limit=2, cursor=first.next_cursor))
    assert (len(first.dead_letters), len(rest.dead_letters), rest.next_cursor) == (2, 1, None)
    times = [letter.arrived_at for letter in first.dead_letters + rest.dead_letters]
    assert times == sorted(times, reverse=True)
    letter = first.dead_letters[0]
    assert (letter.reason, letter.field, letter.subject, letter.status) == ("invalid_request", "model", SUBJECT, "open")
    assert letter.payload == '{"provider":"openai"}'
    assert await letters(ctx, status="retried") == await letters(ctx, reason="conflict") == []
    assert await letters(context(services, org="other")) == []
    error = await refusal(list_dead_letters(ctx, ListDeadLetters(cursor="x")))
    assert (error.code, error.field) == ("invalid_request", "cursor")


async def test_what_is_not_text_is_listed_as_base64(ctx: Context, services: Services) -> None:
    await received(services, b"\xff\xfe")
    (letter,) = await letters(ctx)
    assert letter.payload == "base64://4="


async def test_a_corrected_letter_is_applied_under_the_id_and_time_it_had(
    ctx: Context, services: Services, sink: RecordingSink
) -> None:
    await received(services, GOOD | {"prompt_tokens": -1}, key="k-7")
    (letter,) = await letters(ctx)
    reply = await retry_dead_letter(ctx, RetryDeadLetter(dead_letter_id=letter.dead_letter_id, payload=GOOD))
    assert (reply.status, reply.usage_id) == ("retried", "k-7")
    ((org, message, subject),) = sink.resent
    assert (org, subject) == ("default", SUBJECT)
    assert isinstance(message, dict)
    assert {k: message[k] for k in GOOD} == GOOD
    for key in ("k-8", "k-9"):
        await received(services, message, key=key)
    rows = await services.database.fetch('SELECT id, "timestamp" FROM usage_event')
    assert [(r["id"], r["timestamp"]) for r in rows] == [("k-7", letter.arrived_at)]
    assert await letters(ctx) == []
    (retried,) = await letters(ctx, status="retried")
    assert retried.retried_at is not None

    error = await refusal(retry_dead_letter(ctx, RetryDeadLetter(dead_letter_id=letter.dead_letter_id)))
    assert (error.code, error.field) == ("conflict", "dead_letter_id")
    assert len(sink.resent) == 1


async def test_what_the_sender_stamped_stays(ctx: Context, services: Services, sink: RecordingSink) -> None:
    await received(services, {"provider": "openai", "id": "mine", "timestamp": "2025-01-02T03:04:05Z"})
    (letter,) = await letters(ctx)
    reply = await retry_dead_letter(ctx, RetryDeadLetter(dead_letter_id=letter.dead_letter_id.upper()))
    assert reply.usage_id == "mine"
    assert sink.resent[0][1] == {"provider": "openai", "id": "mine", "timestamp": "2025-01-02T03:04:05Z"}


async def test_every_event_of_a_batch_gets_its_id(ctx: Context, services: Services, sink: RecordingSink) -> None:
    await received(services, {"events": [GOOD], "extra": 1}, key="k-2")
    (letter,) = await letters(ctx)
    batch = {"events": [GOOD, GOOD | {"id": "own"}]}
    reply = await retry_dead_letter(ctx, RetryDeadLetter(dead_letter_id=letter.dead_letter_id, payload=batch))
    assert reply.usage_id is None
    message = sink.resent[0][1]
    assert isinstance(message, dict)
    assert [event["id"] for event in message["events"]] == ["k-2-0", "own"]


async def test_what_is_no_usage_at_all_is_sent_as_it_is(ctx: Context, services: Services, sink: RecordingSink) -> None:
    envelope = {"specversion": "1.0", "id": "e", "source": "s", "type": "t", "data": {"provider": "openai"}}
    for key, message in (("a", b"\xff\xfe"), ("b", {"events": "none", "x": 1}), ("c", envelope | {"specversion": "9"})):
        await received(services, message, key=key)
    for letter in await letters(ctx):
        await retry_dead_letter(ctx, RetryDeadLetter(dead_letter_id=letter.dead_letter_id))
    sent = [message for _, message, _ in sink.resent]
    assert b"\xff\xfe" in sent
    assert envelope | {"specversion": "9"} in sent


async def test_a_letter_of_a_conflict_can_be_sent_under_a_new_id(
    ctx: Context, services: Services, sink: RecordingSink
) -> None:
    effects = await apply_usage(services, gpt(id="one"), gpt(id="one", prompt=2_000))
    assert effects == ["applied", "conflict"]
    (letter,) = await letters(ctx, reason="conflict")
    assert letter.usage_id == "one"
    payload = msgspec.json.decode(letter.payload) | {"id": "two"}
    reply = await retry_dead_letter(ctx, RetryDeadLetter(dead_letter_id=letter.dead_letter_id, payload=payload))
    assert reply.usage_id == "two"
    await received(services, sink.resent[0][1], key="k-5")
    assert await services.database.fetchval("SELECT count(*) FROM usage_event") == 2


async def test_a_correction_that_is_wrong_too_is_refused_and_the_letter_stays_open(
    ctx: Context, services: Services, sink: RecordingSink
) -> None:
    await received(services, {"provider": "openai"})
    (letter,) = await letters(ctx)
    future = (services.clock() + timedelta(days=1)).isoformat()
    for payload, field in (
        ({"provider": "openai"}, "payload.model"),
        (GOOD | {"promt_tokens": 1}, "payload.promt_tokens"),
        (GOOD | {"timestamp": future}, "payload.timestamp"),
        ({"events": [GOOD, {}]}, "payload.events[1].provider"),
    ):
        request = RetryDeadLetter(dead_letter_id=letter.dead_letter_id, payload=payload)
        error = await refusal(retry_dead_letter(ctx, request))
        assert (error.code, error.field) == ("invalid_request", field)
    assert len(await letters(ctx)) == 1
    assert sink.resent == []


@pytest.mark.parametrize("without_sink", [True, False])
async def test_a_stream_that_is_away_leaves_the_letter_open(
    ctx: Context, services: Services, sink: RecordingSink, without_sink: bool
) -> None:
    await received(services, {"provider": "openai"})
    (letter,) = await letters(ctx)
    sink.down = True
    if without_sink:
        services.sink = None
    error = await refusal(retry_dead_letter(ctx, RetryDeadLetter(dead_letter_id=letter.dead_letter_id)))
    assert error.code == "unavailable"
    assert len(await letters(ctx)) == 1


async def test_a_letter_that_is_not_there(ctx: Context, services: Services) -> None:
    error = await refusal(retry_dead_letter(ctx, RetryDeadLetter(dead_letter_id=services.new_id())))
    assert (error.code, error.field) == ("not_found", "dead_letter_id")
    error = await refusal(retry_dead_letter(ctx, RetryDeadLetter(dead_letter_id="x")))
    assert (error.code, error.field) == ("invalid_request", "dead_letter_id")
    await received(services, {"provider": "openai"})
    (letter,) = await letters(ctx)
    request = RetryDeadLetter(dead_letter_id=letter.dead_letter_id)
    error = await refusal(retry_dead_letter(context(services, org="other"), request))
    assert error.code == "not_found"
