"""Finds the usage object in a response, and makes one of a stream's events; what a broken stream said is kept apart.

A stream's counts are cumulative: of each field the last value that was stated holds, nothing is added up.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from handlers.payloads.reader import PayloadReader

Payload = Mapping[str, Any]

_USAGE: Final = ("usage", "usageMetadata", "token_usage", "amazon-bedrock-invocationMetrics")
# What may stand around a usage object, outermost first.
_AROUND: Final = ("response", "message", "metadata", "delta", "interaction", "x_groq", "data", "meta")
_DEPTH_MAX: Final = 3
# Only a usage object itself has one of these.
_COUNTS: Final = (
    *("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens", "promptTokenCount"),
    *("totalTokenCount", "total_input_tokens", "total_output_tokens", "billed_units", "prompt_eval_count"),
    *("eval_count", "prompt_token_count", "generation_token_count", "inputTextTokenCount"),
    *("prompt_cache_hit_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "cache_creation"),
)
# By which a bare usage object is told at once.
_PLAIN: Final = frozenset({"prompt_tokens", "input_tokens", "inputTokens", "promptTokenCount", "billed_units"})
# Stated beside the usage by the APIs that have them.
_BESIDE: Final = ("service_tier",)
_MERGE_DEPTH_MAX: Final = 8


class Received(msgspec.Struct, frozen=True):
    """What came of a stream: its last counts, and what was said and thought as far as text tells.

    ``settled``: the counts are the provider's own for all of it. ``ended``: the stream said that it was over.
    """

    usage: dict[str, Any]
    said: str = ""
    thought: str = ""
    settled: bool = False
    ended: bool = False


def unwrapped(payload: Payload) -> Payload:
    """The usage object itself where a whole response, or a streaming event around one, was given."""
    if "usage" not in payload and not _PLAIN.isdisjoint(payload):
        return payload
    found = usage_in(payload)
    return payload if found is None else found


def usage_in(payload: Payload, depth: int = 0) -> Payload | None:
    """The usage object in a response or an event, with the service tier that stands beside it; None if it has none."""
    read = PayloadReader(payload)
    for name in _USAGE:
        inner = read.value(name)
        if isinstance(inner, Mapping) and inner:
            return _with_beside(cast("Payload", inner), read)
    if read.has(*_COUNTS) or _is_cohere(read):
        return payload
    if depth < _DEPTH_MAX:
        for around in (*map(read.value, _AROUND), _first_choice(read)):
            if isinstance(around, Mapping):
                found = usage_in(cast("Payload", around), depth + 1)
                if found is not None:
                    return _with_beside(found, read)
    return None


def received(events: Sequence[Payload]) -> Received:
    """What a stream's events tell, in the order in which they came."""
    usage: dict[str, Any] = {}
    settled = ended = False
    said: list[str] = []
    thought: list[str] = []
    for event in events:
        found = usage_in(event)
        if found is not None:
            _merge(usage, found)
            # Anthropic's first event states the prompt, and an output that has only begun.
            settled = settled or event.get("type") != "message_start"
        if not settled:
            for text, thinking in texts_in(event):
                (thought if thinking else said).append(text)
        ended = ended or _ends(event)
    return Received(usage, "".join(said), "".join(thought), settled, ended)


def texts_in(event: Payload) -> Iterator[tuple[str, bool]]:
    """Pieces of output in one event of a stream, and whether each is reasoning. Arguments of tool calls are output."""
    inner = event.get("data")
    if isinstance(inner, Mapping):
        # Mistral's client library puts every chunk into one.
        event = cast("Payload", inner)
    read = PayloadReader(event)
    kind = read.value("type") or read.value("event_type")
    for choice in _readers(read.value("choices")):
        yield from _pieces(choice, ("text", "delta.content", "delta.refusal"), ("delta.reasoning_content",))
        yield from _pieces(choice, (), ("delta.reasoning",))
        for call in _readers(choice.value("delta.tool_calls")):
            yield from _pieces(call, ("function.name", "function.arguments"), ())
    for candidate in _readers(read.value("candidates")):
        for part in _readers(candidate.value("content.parts")):
            yield from _pieces(part, ("text",), (), thinking=part.value("thought") is True)
    yield from _pieces(read, ("contentBlockDelta.delta.text", "contentBlockDelta.delta.toolUse.input"), ())
    yield from _pieces(read, ("generation",), ("contentBlockDelta.delta.reasoningContent.text",))
    if kind == "content_block_delta":
        yield from _pieces(read, ("delta.text", "delta.partial_json"), ("delta.thinking",))
    elif isinstance(kind, str) and kind.startswith("response.") and kind.endswith(".delta"):
        yield from _pieces(read, ("delta",), (), thinking="reasoning" in kind)
    elif kind in ("text-generation", "tool-calls-chunk"):
        yield from _pieces(read, ("text",), ())
    elif kind in ("content-delta", "tool-call-delta", "tool-plan-delta"):
        yield from _pieces(read, ("delta.message.content.text", "delta.message.tool_plan"), ())
        yield from _pieces(read, ("delta.message.tool_calls.function.arguments",), ("delta.message.content.thinking",))
    elif read.value("object") == "thread.message.delta":
        for part in _readers(read.value("delta.content")):
            yield from _pieces(part, ("text.value",), ())
    elif read.has("done"):
        yield from _pieces(read, ("response", "message.content"), ("message.thinking", "thinking"))


def _pieces(
    read: PayloadReader, said: tuple[str, ...], thought: tuple[str, ...], *, thinking: bool = False
) -> Iterator[tuple[str, bool]]:
    for path in (*said, *thought):
        text = read.value(path)
        if isinstance(text, str) and text:
            yield text, thinking or path in thought


def _ends(event: Payload) -> bool:
    read = PayloadReader(event)
    if any(choice.value("finish_reason") for choice in _readers(read.value("choices"))):
        return True
    if any(candidate.value("finishReason") for candidate in _readers(read.value("candidates"))):
        return True
    kind = read.value("type") or read.value("event_type")
    over = ("message_stop", "response.completed", "response.incomplete", "message-end", "stream-end")
    return kind in over or read.value("done") is True or read.has("messageStop")


def _with_beside(usage: Payload, read: PayloadReader) -> Payload:
    beside = {n: v for n in _BESIDE if usage.get(n) is None and isinstance(v := read.value(n), str)}
    return {**usage, **beside} if beside else usage


def _merge(into: dict[str, Any], more: Payload, depth: int = 0) -> None:
    for name, value in more.items():
        known = into.get(name)
        if isinstance(value, Mapping) and depth < _MERGE_DEPTH_MAX:
            inner = cast("dict[str, Any]", known) if isinstance(known, dict) else {}
            into[name] = inner
            _merge(inner, cast("Payload", value), depth + 1)
        elif value is not None:
            into[name] = value


def _is_cohere(read: PayloadReader) -> bool:
    return read.value("tokens.input_tokens") is not None or read.value("tokens.output_tokens") is not None


def _first_choice(read: PayloadReader) -> object:
    """Moonshot ends a stream with the usage inside its only choice."""
    choices = read.value("choices")
    return {"usage": choices[0]["usage"]} if _has_usage(choices) else None


def _has_usage(choices: object) -> bool:
    first = cast("list[Any]", choices)[0] if isinstance(choices, list) and choices else None
    return isinstance(first, Mapping) and isinstance(cast("Payload", first).get("usage"), Mapping)


def _readers(value: object) -> list[PayloadReader]:
    items = cast("list[Any]", value) if isinstance(value, list) else []
    return [PayloadReader(cast("Payload", item)) for item in items if isinstance(item, Mapping)]
