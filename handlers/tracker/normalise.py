"""Turns a provider's raw usage object into inclusive counts. Pure; knows no prices.

Providers disagree on whether the input count contains cached tokens and the output count contains reasoning. Here both
totals are inclusive. The provider's own rule comes first; where the payload carries a total, that has the last word on
what is ambiguous.
"""

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from handlers.cost.price import Quantities
from handlers.tracker.payload_reader import PayloadError, PayloadReader
from handlers.tracker.payload_shapes import READERS, Draft
from schemas.base import TOKENS_MAX


class Normalised(msgspec.Struct, frozen=True, kw_only=True):
    """Canonical counts of one payload and what was noticed on the way.

    ``context_tokens`` is what the context window held, which is more than the billed counts where a provider does not
    bill its own prompt. ``service_tier`` is set where the payload names it. ``reported_cost_nanos`` is in USD.
    """

    api: str
    quantities: Quantities
    context_tokens: int
    system_tokens: int = 0
    reported_cost_nanos: int | None = None
    service_tier: str | None = None
    flags: tuple[str, ...] = ()


def normalise(provider: str, usage: Mapping[str, Any], api: str | None = None) -> Normalised:
    """Canonical counts of a raw usage object, or of a response that holds one. Raises PayloadError."""
    read = PayloadReader(_unwrapped(usage))
    if api is None:
        api = tell_api(provider, read)
    reader = READERS.get(api)
    if reader is None:
        raise PayloadError("api", f"is unknown; known are {', '.join(READERS)}")
    draft = reader(read)
    if draft.prompt is None and draft.completion is None:
        raise PayloadError("usage", f"holds no token counts of {api}")
    if draft.prompt is None:
        draft.flags.append("prompt_missing")
    return _settled(api, draft)


def tell_api(provider: str, read: PayloadReader) -> str:
    """The payload's shape told from the provider and the keys. Raises PayloadError if nothing fits."""
    vendor = _vendor(provider)
    if read.has("promptTokenCount", "prompt_token_count", "totalTokenCount", "total_token_count", "total_input_tokens"):
        return "google.generate_content"
    if read.has("inputTokens", "outputTokens"):
        return "bedrock.converse"
    if read.has("billed_units") or (vendor == "cohere" and read.has("tokens")):
        return "cohere.chat"
    if read.has("prompt_tokens"):
        if not read.has("completion_tokens") and vendor in ("openai", "azure"):
            return "openai.embeddings"
        return f"{vendor}.chat" if f"{vendor}.chat" in READERS else "openai.chat"
    anthropic_keys = ("cache_creation_input_tokens", "cache_read_input_tokens", "cache_creation", "server_tool_use")
    resells_anthropic = vendor in ("anthropic", "aws", "google") and not read.has("total_tokens")
    if read.has(*anthropic_keys) or (resells_anthropic and read.has("input_tokens", "output_tokens")):
        return "anthropic.messages"
    if read.has("input_tokens", "output_tokens"):
        return "azure.responses" if vendor == "azure" else "openai.responses"
    raise PayloadError("usage", "holds no token counts of any known shape")


def _unwrapped(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """The usage object itself where a whole response, or a streaming event around one, was given."""
    for name in WRAPPERS:
        inner = usage.get(name)
        if isinstance(inner, Mapping):
            inner = cast("Mapping[str, Any]", inner)
            return inner if name not in ("response", "message") else _usage_in(inner)
    return usage


def _usage_in(response: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = response.get("usage")
    return cast("Mapping[str, Any]", inner) if isinstance(inner, Mapping) else response


def _vendor(provider: str) -> str:
    name = provider.strip().lower()
    for mark, vendor in VENDOR_MARKS:
        if mark in name:
            return vendor
    return name


def _settled(api: str, draft: Draft) -> Normalised:
    """Inclusive totals by rule and total check, subsets clamped into them."""
    _check_total(draft)
    cached = draft.cache_read + draft.cache_write
    prompt = (draft.prompt or 0) + (0 if draft.cache_inside else cached)
    completion = (draft.completion or 0) + (0 if draft.reasoning_inside else draft.reasoning)
    if prompt > TOKENS_MAX or completion > TOKENS_MAX:
        raise PayloadError("usage", "is larger than any call")
    read = min(draft.cache_read, prompt)
    write = min(draft.cache_write, prompt - read)
    reasoning = min(draft.reasoning, completion)
    audio = min(draft.audio_input, prompt - write)
    quantities = Quantities(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=min(draft.cache_write_1h, write),
        reasoning_tokens=reasoning,
        audio_input_tokens=audio,
        audio_output_tokens=min(draft.audio_output, completion - reasoning),
        web_searches=draft.web_searches,
        audio_cache_read_tokens=min(draft.audio_cache_read, audio, read),
    )
    if _subsets(quantities) != _stated_subsets(draft):
        draft.flags.append("subset_clamped")
    return Normalised(
        api=api,
        quantities=quantities,
        context_tokens=draft.context_tokens or prompt + completion,
        reported_cost_nanos=draft.reported_cost_nanos,
        service_tier=draft.service_tier,
        flags=tuple(draft.flags),
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
    cached = (q.cache_read_tokens, q.cache_write_tokens, q.cache_write_1h_tokens)
    return (*cached, q.reasoning_tokens, q.audio_input_tokens, q.audio_output_tokens, q.audio_cache_read_tokens)


def _stated_subsets(draft: Draft) -> tuple[int, ...]:
    cached = (draft.cache_read, draft.cache_write, draft.cache_write_1h)
    return (*cached, draft.reasoning, draft.audio_input, draft.audio_output, draft.audio_cache_read)


WRAPPERS = ("usage", "usageMetadata", "usage_metadata", "meta", "response", "message")

# The first mark found in a provider's name names the vendor.
VENDOR_MARKS = (
    ("azure", "azure"),
    ("openrouter", "openrouter"),
    ("bedrock", "aws"),
    ("amazon", "aws"),
    ("aws", "aws"),
    ("vertex", "google"),
    ("gemini", "google"),
    ("google", "google"),
    ("anthropic", "anthropic"),
    ("x-ai", "xai"),
    ("xai", "xai"),
    ("deepseek", "deepseek"),
    ("mistral", "mistral"),
    ("perplexity", "perplexity"),
    ("cohere", "cohere"),
    ("groq", "groq"),
    ("together", "together"),
    ("openai", "openai"),
)
