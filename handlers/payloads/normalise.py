"""Turns a provider's raw usage object, response or stream into inclusive counts. Pure; knows no prices.

Providers disagree on whether the input count contains cached tokens and the output count contains reasoning. Here both
totals are inclusive. The provider's own rule comes first; where the payload carries a total, that has the last word on
what is ambiguous.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from handlers.cost.price import Quantities
from handlers.payloads.draft import Draft
from handlers.payloads.events import Received, received, unwrapped
from handlers.payloads.reader import PayloadError, PayloadReader
from handlers.payloads.shapes import SHAPES, default_api, tell_api
from schemas.base import TOKENS_MAX

# One usage object or response, or the events of a stream in the order in which they came.
Usage = Mapping[str, Any] | Sequence[Mapping[str, Any]]
CountMethod = Literal["reported", "counted", "estimated"]


class Normalised(msgspec.Struct, frozen=True, kw_only=True):
    """Canonical counts of one payload and what was noticed on the way.

    ``context_tokens`` is what the context window held, which is more than the billed counts where a provider does not
    bill its own prompt. ``service_tier``, ``region`` and ``batch`` are set where the payload names them.
    ``reported_cost_nanos`` is in USD. ``count_method`` None: as whoever sent it says.
    """

    api: str
    quantities: Quantities
    context_tokens: int
    system_tokens: int = 0
    reported_cost_nanos: int | None = None
    service_tier: str | None = None
    region: str | None = None
    batch: bool = False
    flags: tuple[str, ...] = ()
    count_method: CountMethod | None = None

    def was_batch(self, *, stated: bool, tier: str | None) -> bool:
        """Whether the call was part of a batch: as its sender says, or the payload where no tier is stated besides."""
        return stated or (self.batch and tier is None)


class Uncounted(PayloadError):
    """A stream without its final counts: somebody has to count what it said, then ``normalise_received`` goes on."""

    def __init__(self, stream: Received) -> None:
        super().__init__("usage", "is a stream without counts, and has to be counted")
        self.stream = stream


def normalise(provider: str, usage: Usage, api: str | None = None) -> Normalised:
    """Canonical counts of a usage object, a response that holds one, or a stream. Raises PayloadError.

    ``Uncounted`` is raised for a stream whose output nobody has counted.
    """
    if isinstance(usage, Mapping):
        return _read(provider, unwrapped(usage), api)
    stream = received(usage)
    if stream.settled:
        return _read(provider, stream.usage, api)
    if not stream.usage and not stream.said and not stream.thought:
        raise PayloadError("usage", "is a stream that holds neither token counts nor text")
    _checked_api(api)
    raise Uncounted(stream)


def normalise_received(
    provider: str,
    stream: Received,
    api: str | None = None,
    *,
    said_tokens: int,
    thought_tokens: int,
    prompt_tokens: int | None = None,
    method: CountMethod = "counted",
) -> Normalised:
    """Counts of a stream that ended before its own came: the prompt as it states it, the output as counted.

    ``prompt_tokens`` is taken where the stream states none. Raises PayloadError.
    """
    api = _checked_api(api) or _stream_api(provider, stream)
    draft = SHAPES[api].read(PayloadReader(stream.usage))
    draft.completion = max(draft.completion or 0, said_tokens + thought_tokens)
    draft.reasoning, draft.reasoning_inside, draft.total = thought_tokens, True, None
    draft.flags.append("stream_without_usage" if stream.ended else "partial_stream")
    if draft.prompt is None:
        draft.prompt = prompt_tokens
    return msgspec.structs.replace(_settled(api, draft), count_method=method)


def _stream_api(provider: str, stream: Received) -> str:
    return tell_api(provider, PayloadReader(stream.usage)) if stream.usage else default_api(provider)


def _checked_api(api: str | None) -> str | None:
    if api is not None and api not in SHAPES:
        raise PayloadError("api", f"is unknown; known are {', '.join(SHAPES)}")
    return api


def _read(provider: str, usage: Mapping[str, Any], api: str | None) -> Normalised:
    read = PayloadReader(usage)
    api = _checked_api(api) or tell_api(provider, read)
    draft = SHAPES[api].read(read)
    if draft.prompt is None and draft.completion is None:
        raise PayloadError("usage", f"holds no token counts of {api}")
    return _settled(api, draft)


def _settled(api: str, draft: Draft) -> Normalised:
    """Inclusive totals by rule and total check, subsets clamped into them."""
    if draft.prompt is None:
        draft.flags.append("prompt_missing")
    _check_total(draft)
    cached = draft.cache_read + draft.cache_write
    prompt = (draft.prompt or 0) + (0 if draft.cache_inside else cached)
    completion = (draft.completion or 0) + (0 if draft.reasoning_inside else draft.reasoning)
    if prompt > TOKENS_MAX or completion > TOKENS_MAX:
        raise PayloadError("usage", "is larger than any call")
    quantities = _clamped(draft, prompt, completion)
    if _subsets(quantities) != _stated_subsets(draft):
        draft.flags.append("subset_clamped")
    return Normalised(
        api=api,
        quantities=quantities,
        context_tokens=draft.context_tokens or prompt + completion,
        reported_cost_nanos=draft.reported_cost_nanos,
        service_tier=draft.service_tier,
        region=draft.region,
        batch=draft.batch,
        flags=tuple(draft.flags),
    )


def _clamped(draft: Draft, prompt: int, completion: int) -> Quantities:
    """Counts whose parts fit into the totals; what comes first here is kept first."""
    read = min(draft.cache_read, prompt)
    write = min(draft.cache_write, prompt - read)
    hour = min(draft.cache_write_1h, write)
    reasoning = min(draft.reasoning, completion)
    audio = min(draft.audio_input, prompt - write)
    image = min(draft.image_input, prompt - write - audio)
    spoken = min(draft.audio_output, completion - reasoning)
    return Quantities(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=hour,
        cache_write_12h_tokens=min(draft.cache_write_12h, write - hour),
        reasoning_tokens=reasoning,
        audio_input_tokens=audio,
        audio_output_tokens=spoken,
        web_searches=draft.web_searches,
        audio_cache_read_tokens=min(draft.audio_cache_read, audio, read),
        image_input_tokens=image,
        image_output_tokens=min(draft.image_output, completion - reasoning - spoken),
        video_input_tokens=min(draft.video_input, prompt - write - audio - image),
    )


def _check_total(draft: Draft) -> None:
    """Let the stated total decide what is inside what, in the order inclusive, reasoning beside, cache beside."""
    if draft.total is None:
        return
    both = (draft.prompt or 0) + (draft.completion or 0)
    cached = draft.cache_read + draft.cache_write
    if not draft.total_decides:
        if draft.total not in (both, both + cached):
            draft.flags.append("total_mismatch")
    elif draft.total == both:
        # More reasoning than completion cannot be inside it, whatever the total says.
        draft.reasoning_inside = draft.reasoning <= (draft.completion or 0)
    elif draft.total == both + draft.reasoning:
        draft.reasoning_inside = False
    elif draft.total == both + cached:
        draft.cache_inside = False
        draft.reasoning_inside = True
    else:
        draft.flags.append("total_mismatch")


def _subsets(q: Quantities) -> tuple[int, ...]:
    cached = (q.cache_read_tokens, q.cache_write_tokens, q.cache_write_1h_tokens, q.cache_write_12h_tokens)
    seen = (q.image_input_tokens, q.image_output_tokens, q.video_input_tokens)
    return (*cached, *seen, q.reasoning_tokens, q.audio_input_tokens, q.audio_output_tokens, q.audio_cache_read_tokens)


def _stated_subsets(d: Draft) -> tuple[int, ...]:
    cached = (d.cache_read, d.cache_write, d.cache_write_1h, d.cache_write_12h)
    seen = (d.image_input, d.image_output, d.video_input)
    return (*cached, *seen, d.reasoning, d.audio_input, d.audio_output, d.audio_cache_read)
