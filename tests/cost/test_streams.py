"""Streams: the last value of each field holds, whatever the pieces; what broke off is counted and says so."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.context import Limits
from handlers.cost.price import Quantities, contradiction
from handlers.cost.resolve import RateCards
from handlers.counting.count import Job
from handlers.counting.counter import Counted, InlineCounter
from handlers.payloads.counts import counted, counts_of
from handlers.payloads.events import received
from handlers.payloads.normalise import Uncounted, normalise, normalise_received
from handlers.payloads.reader import PayloadError
from handlers.payloads.shapes import SHAPES
from handlers.tracker.priced import priced
from schemas.errors import SignalError
from schemas.usage import UsageEvent
from tests.cases.case import DATA, rows
from tests.cases.exchanges import counted as counted_exchange

Event = dict[str, Any]
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
EXACT_CHARS = 4_000_000

STARTED: Event = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "usage": {"input_tokens": 11, "cache_read_input_tokens": 2000, "output_tokens": 1, "service_tier": "standard"},
    },
}


def claude(text: str, kind: str = "text") -> Event:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": f"{kind}_delta", kind: text}}


def claude_delta(output: int) -> Event:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": output}}


def chunk(text: str | None = None, *, usage: Event | None = None, finish: str | None = None) -> Event:
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "choices": [] if usage else [choice], "usage": usage}


def gemini(text: str, said: int, thought: int = 0) -> Event:
    usage = {"promptTokenCount": 7, "candidatesTokenCount": said, "totalTokenCount": 7 + said + thought}
    parts = [{"text": text}]
    return {"candidates": [{"content": {"parts": parts}}], "usageMetadata": usage | {"thoughtsTokenCount": thought}}


LAST = {"prompt_tokens": 84, "completion_tokens": 9, "total_tokens": 93, "prompt_tokens_details": {"cached_tokens": 64}}

STREAMS: list[tuple[str, str, list[Event], Quantities]] = [
    (
        "anthropic",
        "anthropic.messages",
        [STARTED, claude("Hel"), claude("lo"), claude_delta(4), claude_delta(6), {"type": "message_stop"}],
        Quantities(2011, 6, 2000),
    ),
    ("openai", "openai.chat", [chunk("Hel"), chunk("lo", finish="stop"), chunk(usage=LAST)], Quantities(84, 9, 64)),
    # Cumulative in every chunk: xAI, Perplexity, vLLM.
    ("xai", "xai.chat", [{**chunk("a"), "usage": {**LAST, "completion_tokens": 1}}, {**chunk("b"), "usage": LAST}],
        Quantities(84, 9, 64)),
    ("moonshot", "moonshot.chat", [chunk("a"), {"choices": [{"delta": {}, "finish_reason": "stop", "usage": LAST}]}],
        Quantities(84, 9, 64)),
    ("groq", "groq.chat", [chunk("a"), {"choices": [], "x_groq": {"id": "r", "usage": LAST}}], Quantities(84, 9, 64)),
    ("google", "google.generate_content", [gemini("a", 2), gemini("b", 5, 8), gemini("", 9, 8)],
        Quantities(7, 17, reasoning_tokens=8)),
    (
        "openai",
        "openai.responses",
        [
            {"type": "response.created", "response": {"usage": None, "service_tier": "auto"}},
            {"type": "response.output_text.delta", "delta": "Hello"},
            {"type": "response.completed", "response": {"service_tier": "flex", "usage": {
                "input_tokens": 11, "output_tokens": 8, "total_tokens": 19}}},
        ],
        Quantities(11, 8),
    ),
    (
        "bedrock",
        "bedrock.converse",
        [
            {"messageStart": {"role": "assistant"}},
            {"contentBlockDelta": {"delta": {"text": "Hello"}, "contentBlockIndex": 0}},
            {"messageStop": {"stopReason": "end_turn"}},
            {"metadata": {"usage": {"inputTokens": 14, "outputTokens": 3, "totalTokens": 17}, "metrics": {}}},
        ],
        Quantities(14, 3),
    ),
    (
        "cohere",
        "cohere.chat",
        [
            {"type": "content-delta", "delta": {"message": {"content": {"text": "Hello"}}}},
            {"type": "message-end", "delta": {"usage": {
                "billed_units": {"input_tokens": 62, "output_tokens": 28},
                "tokens": {"input_tokens": 968, "output_tokens": 83}}}},
        ],
        Quantities(62, 28),
    ),
    (
        "ollama",
        "ollama.chat",
        [{"message": {"content": "Hi"}, "done": False},
         {"message": {"content": ""}, "done": True, "prompt_eval_count": 17, "eval_count": 50}],
        Quantities(17, 50),
    ),
    ("mistral", "mistral.chat", [{"data": chunk("a")}, {"data": chunk(usage=LAST)}], Quantities(84, 9, 64)),
    (
        "google",
        "google.interactions",
        [{"event_type": "content.delta", "delta": {"text": "Hi"}},
         {"event_type": "interaction.complete", "interaction": {"usage": {
             "total_input_tokens": 7, "total_output_tokens": 9, "total_tokens": 16}}}],
        Quantities(7, 9),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "api", "events", "expected"), STREAMS)
def test_the_last_value_of_each_field_of_a_stream_holds(
    provider: str, api: str, events: list[Event], expected: Quantities
) -> None:
    told = normalise(provider, events)

    assert (told.api, told.quantities, told.flags) == (api, expected, ())
    assert normalise("", events, api).quantities == expected
    assert told.count_method is None


def test_a_stream_s_service_tier_is_the_last_one_stated() -> None:
    assert normalise("openai", STREAMS[6][2]).service_tier == "flex"


counts = st.integers(0, 10_000)
FIELDS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")


@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), counts | st.none(), max_size=4), min_size=1, max_size=8))
def test_however_a_stream_splits_its_counts_the_last_of_each_field_is_taken(usages: list[Event]) -> None:
    last = {name: value for usage in usages for name, value in usage.items() if value is not None}
    events: list[Event] = [STARTED, *({"type": "message_delta", "usage": usage} for usage in usages)]
    if not any(usages):
        return
    whole = {**STARTED["message"]["usage"], **last}

    assert normalise("anthropic", events) == normalise("anthropic", whole)
    assert received(events).usage == whole


@given(st.integers(0, 5), st.integers(0, 5))
def test_a_stream_repeated_or_interleaved_with_pings_is_counted_once(again: int, pings: int) -> None:
    events = STREAMS[0][2] * (again + 1) + [{"type": "ping"}] * pings

    assert normalise("anthropic", events).quantities == STREAMS[0][3]


def partial(*events: Event, provider: str = "anthropic", model: str = "claude-sonnet-4-5", **more: Any) -> UsageEvent:
    return UsageEvent(provider=provider, model=model, usage=list(events), **more)


class Told:
    """Counts as it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    async def count(self, job: Job) -> Counted:
        self.jobs.append(job)
        return await InlineCounter().count(job)


async def settle(event: UsageEvent, counter: Told | None = None) -> Any:
    with pytest.raises(Uncounted) as stream:
        counts_of(event)
    return await counted(counter or Told(), event, stream.value, exact_chars=EXACT_CHARS)


async def test_an_anthropic_stream_that_broke_off_has_its_own_prompt_and_a_counted_answer() -> None:
    found = await settle(partial(STARTED, claude("Hello there, how are you today?")))

    assert (found.quantities.prompt_tokens, found.quantities.cache_read_tokens) == (2011, 2000)
    assert 8 <= found.quantities.completion_tokens <= 12
    # The vocabulary of Claude is not public, so nobody calls this count exact.
    assert (found.count_method, found.flags) == ("estimated", ("partial_stream",))


async def test_an_openai_stream_that_broke_off_is_counted_with_the_model_s_own_vocabulary() -> None:
    text = ["Hello", " there", ",", " how", " are", " you", "?"]
    counter = Told()
    event = partial(*map(chunk, text), provider="openai", model="gpt-4o", prompt_tokens=12)
    found = await settle(event, counter)

    assert found.quantities == Quantities(12, 7)
    assert (found.count_method, found.flags) == ("counted", ("partial_stream",))
    assert [job.texts["completion"] for job in counter.jobs] == [b'"Hello there, how are you?"']
    receipt = priced(
        event, org="default", event_id="1", arrived_at=NOW, cards=RateCards(), limits=Limits(), found=found
    )
    # 12 x 2.5 + 7 x 10 = 100
    assert (receipt.event.cost, receipt.event.count_method) == (100_000, "counted")
    assert receipt.warnings == ["partial_stream"]


async def test_a_stream_whose_prompt_nobody_states_says_so() -> None:
    found = await settle(partial(chunk("Hello"), chunk(finish="stop"), provider="openai", model="gpt-4o"))

    assert found.quantities == Quantities(0, 1)
    assert found.flags == ("stream_without_usage", "prompt_missing")


async def test_reasoning_and_the_arguments_of_tools_are_output_too() -> None:
    events = [STARTED, claude("Let me think about it.", "thinking"), claude("Hello"), claude('{"a":', "partial_json")]
    events[-1]["delta"] = {"type": "input_json_delta", "partial_json": '{"city": "Paris"}'}
    found = await settle(partial(*events))

    used = found.quantities
    assert 0 < used.reasoning_tokens < used.completion_tokens
    assert contradiction(used) is None


async def test_a_stream_that_broke_off_before_it_said_anything_has_what_its_start_states() -> None:
    counter = Told()
    found = await settle(partial(STARTED), counter)

    assert (found.quantities, counter.jobs) == (Quantities(2011, 1, 2000), [])


def test_counts_beside_a_stream_and_streams_of_nothing_are_refused() -> None:
    with pytest.raises(SignalError) as both:
        counts_of(partial(chunk("a"), completion_tokens=3))
    assert both.value.field == "completion_tokens"
    with pytest.raises(SignalError) as nothing:
        counts_of(partial({"type": "ping"}))
    assert nothing.value.field == "usage"
    with pytest.raises(SignalError) as unknown:
        counts_of(partial(chunk("a"), api="openai.telepathy"))
    assert unknown.value.field == "api"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**13) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PARTS = (
    *("type", "message", "usage", "usageMetadata", "choices", "delta", "response", "metadata", "data", "candidates"),
    *("input_tokens", "output_tokens", "prompt_tokens", "content", "text", "done"),
)
KINDS = st.sampled_from(["message_start", "message_delta", "content_block_delta", "response.completed"])
nested = st.recursive(
    json_values | KINDS,
    lambda inner: st.dictionaries(st.sampled_from(PARTS), inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=12,
)
events_of_anything = st.lists(st.dictionaries(st.sampled_from(PARTS), nested, max_size=4), max_size=5)


@given(events_of_anything, st.none() | st.sampled_from(sorted(SHAPES)))
def test_any_stream_is_normalised_counted_or_refused_and_nothing_else(events: list[Event], api: str | None) -> None:
    try:
        told = normalise("anyone", events, api)
    except Uncounted as stream:
        try:
            told = normalise_received("anyone", stream.stream, api, said_tokens=5, thought_tokens=2, prompt_tokens=3)
        except PayloadError:
            return
        assert told.quantities.completion_tokens >= 7
    except PayloadError:
        return
    assert contradiction(told.quantities) is None


OVER = ("response.completed",)


@pytest.mark.skipif(not DATA.is_dir(), reason="the recorded data is not beside the repository")
def test_recorded_openai_streams_cut_before_their_counts_are_counted_to_the_token() -> None:
    compared = 0
    for row in rows("payloads/provider_exchanges.jsonl.gz"):
        if row["provider"] != "openai" or not row["stream"] or "/threads/" in row["endpoint"]:
            continue
        events = [event for event in row["response"] if not event.get("usage") and event.get("type") not in OVER]
        if any("tool_calls" in str(e.get("choices")) or "function_call" in str(e.get("type")) for e in events):
            continue
        with pytest.raises(Uncounted) as broken:
            normalise("openai", events)
        if len(events) == len(row["response"]):
            continue
        # The token that ends an answer shows in no text, and was not there yet when a stream broke off.
        reported = normalise("openai", row["response"]).quantities.completion_tokens
        assert counted_exchange(row, broken.value.stream.said) == reported - 1, row["source"]
        compared += 1
    assert compared == 6
