"""Streams without their counts, sent as usage: counted, stored once, and nobody else waits for them."""

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from handlers.context import Context, Inbound, Services
from handlers.cost.calculate import calculate_cost
from handlers.counting.count import Job
from handlers.counting.counter import Counted, InlineCounter
from handlers.tracker.apply import Applier
from handlers.tracker.dead_letters import list_dead_letters
from handlers.tracker.ingest import Ingest, StreamMessage
from handlers.tracker.intake import Intake
from handlers.tracker.query import get_usage
from schemas.cost import CalculateCost
from schemas.errors import SignalError
from schemas.usage import GetUsage, ListDeadLetters, UsageRecord
from tests.support.services import RecordingSink, context

SUBJECT = "tm.ingest.default.openai.chat"
CHUNKS = [{"choices": [{"delta": {"content": text}}]} for text in ("Hello", " there", ",", " how", " are", " you", "?")]
BROKEN: dict[str, Any] = {
    "id": "broken",
    "provider": "openai",
    "model": "gpt-4o",
    "prompt_tokens": 12,
    "usage": CHUNKS,
    "ack": "applied",
}
WHOLE: dict[str, Any] = {"id": "whole", "provider": "openai", "model": "gpt-4o", "prompt_tokens": 10, "ack": "applied"}


class HeldCounter:
    """Counts once it is let."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def count(self, job: Job) -> Counted:
        await self.go.wait()
        return await InlineCounter().count(job)


def sent(services: Services, intake: Intake, request: Any) -> asyncio.Future[bytes]:
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    inbound = Inbound(context(services).caller, msgspec.json.encode(request), answer.set_result, answer.set_exception)
    intake.submit(inbound)
    return answer


async def tracked(services: Services, request: Any) -> Any:
    return msgspec.json.decode(await sent(services, Intake(services, Applier(services)), request))


async def stored(ctx: Context, usage_id: str) -> UsageRecord:
    events = (await get_usage(ctx, GetUsage())).events
    return next(event for event in events if event.id == usage_id)


async def test_a_broken_stream_is_counted_priced_and_stored_once(ctx: Context, services: Services) -> None:
    first = await tracked(services, BROKEN)
    again = await tracked(services, BROKEN)

    # 12 x 2.5 + 7 x 10 = 100
    assert (first["cost"], first["total_tokens"], first["warnings"]) == ("0.0001", 19, ["partial_stream"])
    assert (first["duplicate"], again["duplicate"], again["conflict"]) == (False, True, False)
    event = await stored(ctx, "broken")
    assert (event.count_method, event.flags, event.completion_tokens) == ("counted", ["partial_stream"], 7)


async def test_others_do_not_wait_for_a_stream_that_is_being_counted(services: Services) -> None:
    services.counter = held = HeldCounter()
    intake = Intake(services, Applier(services))
    broken = sent(services, intake, BROKEN)
    whole = msgspec.json.decode(await sent(services, intake, WHOLE))

    assert (whole["accepted"], broken.done()) == (True, False)
    held.go.set()
    await intake.drain()
    assert msgspec.json.decode(broken.result())["accepted"] is True


async def test_in_a_batch_only_the_stream_that_cannot_be_counted_is_refused(services: Services) -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": -1}}}
    wrong = {**BROKEN, "id": "wrong", "usage": [*CHUNKS, start]}
    events = [{k: v for k, v in event.items() if k != "ack"} for event in (WHOLE, wrong, BROKEN)]
    reply = await tracked(services, {"events": events, "ack": "applied"})

    assert [event["accepted"] for event in reply["events"]] == [True, False, True]
    assert reply["events"][1]["error"]["field"] == "events[1].usage.input_tokens"
    alone = sent(services, Intake(services, Applier(services)), wrong)
    with pytest.raises(SignalError) as refused:
        await alone
    assert refused.value.field == "usage.input_tokens"


async def test_more_than_can_wait_are_told_to_come_again(services: Services) -> None:
    services.counter = held = HeldCounter()
    services.limits = replace(services.limits, count_requests_max=1)
    intake = Intake(services, Applier(services))
    first, second = sent(services, intake, BROKEN), sent(services, intake, {**BROKEN, "id": "second"})

    assert getattr(second.exception(), "code", None) == "unavailable"
    held.go.set()
    assert msgspec.json.decode(await first)["accepted"] is True


async def test_a_broken_stream_that_was_published_is_counted_when_it_is_applied(
    ctx: Context, services: Services, sink: RecordingSink
) -> None:
    event = {key: value for key, value in BROKEN.items() if key != "ack"}
    ingest = Ingest(services, Applier(services))
    message = StreamMessage(SUBJECT, msgspec.json.encode(event), "k-1", services.clock())
    await ingest.apply([message])
    await ingest.apply([message])

    assert (ingest.counts.applied, ingest.counts.duplicates, ingest.counts.dead) == (1, 1, 0)
    assert (await stored(ctx, "broken")).cost == "0.0001"
    assert sink.stored == []


async def test_a_published_stream_that_cannot_be_counted_is_kept_as_a_dead_letter(
    ctx: Context, services: Services
) -> None:
    bad = {"type": "message_start", "message": {"usage": {"input_tokens": "many"}}}
    event = {"provider": "anthropic", "model": "claude-sonnet-4-5", "usage": [bad, *CHUNKS]}
    message = StreamMessage(SUBJECT, msgspec.json.encode({"events": [event]}), "k-2", services.clock())
    await Ingest(services, Applier(services)).apply([message])

    (letter,) = (await list_dead_letters(ctx, ListDeadLetters())).dead_letters
    assert (letter.field, letter.reason) == ("events[0].usage.input_tokens", "invalid_request")


async def test_what_a_broken_stream_costs_can_be_asked(ctx: Context) -> None:
    reply = await calculate_cost(ctx, CalculateCost(provider="openai", model="gpt-4o", prompt_tokens=12, usage=CHUNKS))

    assert (reply.cost, reply.completion_tokens, reply.warnings) == ("0.0001", 7, ["partial_stream"])
