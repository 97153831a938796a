"""Chats and tools, by the rules of OpenAI's cookbook, into a meter. Pure.

Sources: openai-cookbook, How_to_count_tokens_with_tiktoken (messages: 129 of gpt-4, 124 of gpt-4o; tools: 105 and 101,
as the API said). Of other vendors' frames nothing is published: theirs is an estimate by the same rule.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import msgspec

from handlers.counting.images import image_tokens, size_in
from handlers.counting.models import Family
from handlers.counting.text import Meter
from handlers.counting.tools import (
    AROUND_TOKENS,
    CHOICE_TOKENS,
    NO_CHOICE_TOKENS,
    SPREAD_TOKENS,
    SYSTEM_TOKENS,
    chosen,
    tools_text,
)

Json = Mapping[str, Any]
Walk = Generator[None, None, None]
# Per message, per name, and once for the answer that follows.
OVERHEADS: Final = {"openai": (3, 1, 3), "openai-0301": (4, -1, 3), "openai-gpt5": (3, 1, 2), "none": (0, 0, 0)}
CALL_TOKENS: Final = 3
RESULT_TOKENS: Final = -2
HIDDEN_TOKENS: Final = 81
BYTES_PER_TOKEN: Final = 3
_TEXT_PARTS: Final = ("text", "input_text", "output_text", "refusal", "thinking", "summary_text")


@dataclass(slots=True)
class Sums:
    """What a chat has besides text: frames, tools, images and files, each with its bounds."""

    overhead: int = 0
    tools_text: int = 0
    tools_overhead: int = 0
    images: int = 0
    files: int = 0
    low: int = 0
    high: int = 0
    # Only roles, names and text: what the formula was proven on.
    plain: bool = True
    notes: dict[str, None] = field(default_factory=dict[str, None])

    def note(self, text: str) -> None:
        """Say something once; only plain chats have nothing to say."""
        self.plain = False
        self.notes[text] = None


def count_messages(
    messages: list[dict[str, Any]], family: Family, model: str, meter: Meter, sums: Sums, *, tools: bool
) -> Walk:
    """Add a chat to ``meter`` (its text) and ``sums`` (the rest); with ``tools`` its system message ends its line."""
    message_tokens, name_tokens, priming = OVERHEADS[family.overhead]
    sums.overhead += priming
    for message in messages:
        sums.overhead += message_tokens
        if message.get("role") in ("tool", "function"):
            sums.note("tool_calls_estimated")
            sums.overhead += RESULT_TOKENS
        for key, value in message.items():
            if key == "name" and isinstance(value, str):
                sums.overhead += name_tokens
            if key == "content" and isinstance(value, str) and tools and message.get("role") == "system":
                tools = False
                yield from meter.text(value + "\n")
            elif key == "tool_calls" and isinstance(value, list):
                yield from _calls(cast("list[Any]", value), meter, sums)
            elif key == "tool_call_id":
                continue
            elif key in ("content", "parts") and isinstance(value, list):
                for part in cast("list[Any]", value):
                    yield from _part(part, family, model, meter, sums)
            elif value is not None and value != []:
                yield from _value(value, meter, sums)


def _calls(calls: list[Any], meter: Meter, sums: Sums) -> Walk:
    """Calls an earlier answer made: the function and its arguments."""
    sums.note("tool_calls_estimated")
    for call in calls:
        inner = cast("Json", call).get("function") if isinstance(call, Mapping) else None
        sums.overhead += CALL_TOKENS
        if isinstance(inner, Mapping):
            for key in ("name", "arguments"):
                yield from _value(cast("Json", inner).get(key) or "", meter, sums)
        else:
            yield from _value(call, meter, sums)


def _value(value: Any, meter: Meter, sums: Sums) -> Walk:
    """Text as it is; whatever else, as JSON."""
    if isinstance(value, str):
        yield from meter.text(value)
        return
    if not isinstance(value, (bool, int, float)):
        sums.note("structure_estimated")
    yield from meter.text(msgspec.json.encode(value).decode("utf-8", "replace"))


def _part(part: Any, family: Family, model: str, meter: Meter, sums: Sums) -> Walk:
    if not isinstance(part, Mapping):
        yield from _value(part, meter, sums)
        return
    found = cast("Json", part)
    kind = found.get("type")
    text = found.get("text", found.get("thinking", found.get("refusal")))
    if isinstance(text, str) and (kind is None or kind in _TEXT_PARTS):
        yield from meter.text(text)
    elif kind in ("image_url", "input_image", "image") or _mime(found).startswith("image/"):
        _image(found, family, model, sums)
    elif kind in ("input_audio", "audio", "video", "input_video") or _mime(found).startswith(("audio/", "video/")):
        sums.note("media_not_counted")
    elif kind in ("file", "input_file", "document") or _mime(found):
        yield from _file(found, meter, sums)
    elif kind == "tool_result" and isinstance(found.get("content"), list):
        for inner in found["content"]:
            yield from _part(inner, family, model, meter, sums)
    else:
        yield from _value(dict(found), meter, sums)


def _inline(part: Json) -> Json:
    """Where a part keeps its data: Anthropic's source, Gemini's inline data, OpenAI's file."""
    for key in ("source", "inline_data", "inlineData", "file"):
        inner = part.get(key)
        if isinstance(inner, Mapping):
            return cast("Json", inner)
    return part


def _mime(part: Json) -> str:
    inner = _inline(part)
    found = inner.get("mime_type", inner.get("mimeType", inner.get("media_type", "")))
    return found if isinstance(found, str) else ""


def _image(part: Json, family: Family, model: str, sums: Sums) -> None:
    at = part.get("image_url", part.get("source"))
    link = cast("Json", at) if isinstance(at, Mapping) else {"url": at}
    inner = _inline(part)
    data = next((v for v in (link.get("url"), link.get("data"), inner.get("data")) if isinstance(v, str)), "")
    if data.startswith("data:"):
        data = data[data.find(",", 0, 256) + 1 :]
    size = None if data.startswith(("http:", "https:")) else size_in(data)
    detail = part.get("detail", link.get("detail"))
    found = image_tokens(family.name, model, size, detail=detail if isinstance(detail, str) else None)
    sums.images += found.tokens
    sums.low += found.low - found.tokens
    sums.high += found.high - found.tokens
    sums.note("image_estimated" if size is not None else "image_size_unknown")


def _file(part: Json, meter: Meter, sums: Sums) -> Walk:
    inner = _inline(part)
    data = next((v for k in ("data", "file_data") if isinstance(v := inner.get(k), str)), "")
    if inner.get("type") == "text" or _mime(part).startswith("text/plain"):
        sums.note("file_as_text")
        yield from meter.text(data)
        return
    # Base64: four characters are three bytes.
    found = len(data) * 3 // 4 // BYTES_PER_TOKEN
    sums.files += found
    sums.low -= found
    sums.note("file_estimated_from_size" if data else "file_not_counted")


def count_tools(
    tools: list[dict[str, Any]], choice: Any, family: Family, meter: Meter, sums: Sums, *, system: bool
) -> Walk:
    """Add tools; ``system`` says that the chat has a system message, which then holds them."""
    if not tools:
        return
    text, known = tools_text(tools)
    sums.note("tools_estimated" if known else "tools_as_json")
    before = meter.tokens
    yield from meter.text(text)
    name = chosen(choice)
    sums.tools_overhead += AROUND_TOKENS + (SYSTEM_TOKENS if system else 0)
    if name is not None:
        sums.tools_overhead += CHOICE_TOKENS if name else NO_CHOICE_TOKENS
        yield from meter.text(name)
    sums.tools_text += meter.tokens - before
    sums.low -= SPREAD_TOKENS
    sums.high += SPREAD_TOKENS
    if family.overhead == "openai-gpt5":
        # Two recorded calls had 81 and 85 tokens more than older models would have.
        sums.tools_overhead += HIDDEN_TOKENS
        sums.low -= HIDDEN_TOKENS


def has_system(messages: list[dict[str, Any]] | None) -> bool:
    """Whether a chat has a system message."""
    return any(message.get("role") in ("system", "developer") for message in messages or ())
