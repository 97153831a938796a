"""Payload shapes of vendors with a form of their own: one small function per shape."""

from collections.abc import Mapping
from typing import Any, cast

from handlers.payloads.draft import Draft
from handlers.payloads.reader import PayloadReader

# Values of ``inference_geo`` that name no place.
_NO_REGION = (None, "not_available", "global")
# Google's ``trafficType`` where it is a service tier.
_TRAFFIC_TIERS = {"on_demand_priority": "priority", "on_demand_flex": "flex"}


def anthropic(read: PayloadReader) -> Draft:
    """Anthropic messages: input excludes both cache counts; ``cache_creation`` breaks down, it does not add."""
    draft = _anthropic_step(read)
    held = (draft.prompt or 0) + draft.cache_read + draft.cache_write + (draft.completion or 0)
    for step in _objects(read.value("iterations")):
        kind = step.text("type")
        if kind == "compaction":
            # Summarising the conversation is billed, and left out of the counts at the top.
            _add(draft, _anthropic_step(step))
            draft.context_tokens = held
        elif kind == "advisor_message":
            draft.flags.append("advisor_not_priced")
    draft.reasoning = read.tokens("output_tokens_details.thinking_tokens")
    draft.web_searches = read.tokens("server_tool_use.web_search_requests")
    tier = read.text("service_tier")
    draft.batch = tier == "batch"
    draft.service_tier = "fast" if read.text("speed") == "fast" else None if draft.batch else tier
    geo = read.text("inference_geo")
    draft.region = None if geo in _NO_REGION else geo
    draft.flags = sorted(set(draft.flags))
    return draft


def _anthropic_step(read: PayloadReader) -> Draft:
    written = read.part("cache_creation")
    hour = written.tokens("ephemeral_1h_input_tokens")
    parts = hour + written.tokens("ephemeral_5m_input_tokens")
    return Draft(
        prompt=read.count("input_tokens"),
        completion=read.count("output_tokens"),
        cache_read=read.tokens("cache_read_input_tokens"),
        cache_write=max(read.tokens("cache_creation_input_tokens"), parts),
        cache_write_1h=hour,
        cache_inside=False,
        total_decides=False,
    )


def _add(draft: Draft, more: Draft) -> None:
    draft.prompt = (draft.prompt or 0) + (more.prompt or 0)
    draft.completion = (draft.completion or 0) + (more.completion or 0)
    draft.cache_read += more.cache_read
    draft.cache_write += more.cache_write
    draft.cache_write_1h += more.cache_write_1h
    draft.flags.append("compaction_added")


def google(read: PayloadReader) -> Draft:
    """Gemini: cached inside the prompt; thoughts and tool prompts beside it."""
    prompt = read.count("promptTokenCount")
    tool = read.tokens("toolUsePromptTokenCount")
    thoughts = read.tokens("thoughtsTokenCount")
    said = read.count("candidatesTokenCount", "responseTokenCount")
    prompts = ("promptTokensDetails", "promptTokenDetails")
    said_in = ("candidatesTokensDetails", "responseTokensDetails")
    traffic = read.text("trafficType")
    draft = Draft(
        prompt=prompt if prompt is None and not tool else (prompt or 0) + tool,
        completion=said if said is not None or not thoughts else 0,
        total=read.count("totalTokenCount"),
        cache_read=read.tokens("cachedContentTokenCount"),
        reasoning=thoughts,
        audio_input=_both(read, "audio", *prompts),
        image_input=_both(read, "image", *prompts) + _both(read, "document", *prompts),
        video_input=_both(read, "video", *prompts),
        audio_cache_read=read.modality("audio", "cacheTokensDetails"),
        audio_output=read.modality("audio", *said_in),
        image_output=read.modality("image", *said_in) + read.modality("document", *said_in),
        reasoning_inside=False,
        service_tier=read.text("serviceTier") or _TRAFFIC_TIERS.get(traffic or ""),
    )
    _google_flags(draft, video=read.modality("video", *said_in), traffic=traffic)
    return draft


def _both(read: PayloadReader, modality: str, *names: str) -> int:
    """Tokens of a modality in the prompt and in what tools put into it."""
    return read.modality(modality, *names) + read.modality(modality, "toolUsePromptTokensDetails")


def interactions(read: PayloadReader) -> Draft:
    """Gemini interactions: nobody documents what contains what, so the total decides; else as Gemini otherwise."""
    prompt, tool = read.count("total_input_tokens"), read.tokens("total_tool_use_tokens")
    said, thoughts = read.count("total_output_tokens"), read.tokens("total_thought_tokens")
    total = read.count("total_tokens")
    both = (prompt or 0) + (said or 0)
    beside = tool and total not in (both, both + thoughts)
    draft = Draft(
        prompt=(prompt or 0) + tool if beside else prompt,
        completion=said if said is not None or not thoughts else 0,
        total=total,
        cache_read=read.tokens("total_cached_tokens"),
        reasoning=thoughts,
        audio_input=read.modality("audio", "input_tokens_by_modality"),
        image_input=read.modality("image", "input_tokens_by_modality")
        + read.modality("document", "input_tokens_by_modality"),
        video_input=read.modality("video", "input_tokens_by_modality"),
        audio_cache_read=read.modality("audio", "cached_tokens_by_modality"),
        audio_output=read.modality("audio", "output_tokens_by_modality"),
        image_output=read.modality("image", "output_tokens_by_modality"),
        reasoning_inside=False,
        service_tier=read.text("service_tier"),
    )
    _google_flags(draft, video=read.modality("video", "output_tokens_by_modality"), traffic=None)
    if _objects(read.value("grounding_tool_count")):
        draft.flags.append("grounding_not_priced")
    return draft


def _google_flags(draft: Draft, *, video: int, traffic: str | None) -> None:
    if video:
        draft.flags.append("video_output_as_text")
    if traffic == "provisioned_throughput":
        draft.flags.append("provisioned_throughput")


def bedrock(read: PayloadReader) -> Draft:
    """Bedrock Converse: input excludes the cache, and the total may or may not contain it."""
    write = read.tokens("cacheWriteInputTokens", "cacheWriteInputTokenCount")
    return Draft(
        prompt=read.count("inputTokens"),
        completion=read.count("outputTokens"),
        total=read.count("totalTokens"),
        cache_read=read.tokens("cacheReadInputTokens", "cacheReadInputTokenCount"),
        cache_write=write,
        cache_write_1h=min(write, read.of_list("cacheDetails", "ttl", "1h", "inputTokens")),
        cache_inside=False,
        total_decides=False,
        service_tier=read.text("service_tier"),
    )


def bedrock_invoke(read: PayloadReader) -> Draft:
    """Bedrock InvokeModel of vendors that count in the body (Llama, Titan), and the metrics that end any stream."""
    said = read.count("generation_token_count", "totalOutputTextTokenCount", "outputTokenCount")
    results = _objects(read.value("results"))
    if said is None and results:
        said = sum(result.tokens("tokenCount") for result in results)
    return Draft(
        prompt=read.count("prompt_token_count", "inputTextTokenCount", "inputTokenCount"),
        completion=said,
        cache_read=read.tokens("cacheReadInputTokenCount"),
        cache_write=read.tokens("cacheWriteInputTokenCount"),
        cache_inside=False,
        total_decides=False,
    )


def cohere(read: PayloadReader) -> Draft:
    """Cohere bills ``billed_units``; ``tokens`` also counts its own prompt, which fills the context."""
    images = read.tokens("billed_units.image_tokens")
    prompt = read.count("billed_units.input_tokens", "tokens.input_tokens")
    draft = Draft(
        prompt=prompt if prompt is None and not images else (prompt or 0) + images,
        completion=read.count("billed_units.output_tokens", "tokens.output_tokens"),
        image_input=images,
    )
    held = read.tokens("tokens.input_tokens") + read.tokens("tokens.output_tokens")
    draft.context_tokens = held or None
    if read.tokens("billed_units.search_units"):
        draft.flags.append("search_units")
    return draft


def ollama(read: PayloadReader) -> Draft:
    """Ollama: leaves out the prompt where it was cached whole."""
    return Draft(prompt=read.count("prompt_eval_count"), completion=read.count("eval_count"))


def _objects(value: object) -> list[PayloadReader]:
    items = cast("list[Any]", value) if isinstance(value, list) else []
    return [PayloadReader(cast("Mapping[str, Any]", item)) for item in items if isinstance(item, dict)]
