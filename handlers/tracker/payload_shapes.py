"""One small function per payload shape, stating what the provider states. No totals are made here.

Field lists as of the official client packages of November 2026.
"""

from collections.abc import Callable

import msgspec

from handlers.tracker.payload_reader import PayloadReader, nanos, whole


class Draft(msgspec.Struct, kw_only=True):
    """Counts as the provider states them, before the total check and the clamping."""

    prompt: int | None
    completion: int | None
    total: int | None = None
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    reasoning: int = 0
    audio_input: int = 0
    audio_cache_read: int = 0
    audio_output: int = 0
    web_searches: int = 0
    cache_inside: bool = True
    reasoning_inside: bool = True
    # Whether the total may overrule the two above.
    total_decides: bool = True
    # What else the provider counts in its total, apart from prompt and completion.
    context_tokens: int | None = None
    reported_cost_nanos: int | None = None
    service_tier: str | None = None
    flags: list[str] = msgspec.field(default_factory=lambda: [])


def _chat(read: PayloadReader) -> Draft:
    """OpenAI chat completions and everything that copies them: both totals inclusive."""
    draft = Draft(
        prompt=read.count("prompt_tokens"),
        completion=read.count("completion_tokens"),
        total=read.count("total_tokens"),
        cache_read=read.tokens("prompt_tokens_details.cached_tokens", "cached_tokens"),
        cache_write=read.tokens("prompt_tokens_details.cache_write_tokens"),
        audio_input=read.tokens("prompt_tokens_details.audio_tokens"),
        reasoning=read.tokens("completion_tokens_details.reasoning_tokens", "reasoning_tokens"),
        audio_output=read.tokens("completion_tokens_details.audio_tokens"),
        audio_cache_read=read.tokens("prompt_tokens_details.cached_tokens_details.audio_tokens"),
        service_tier=read.text("service_tier"),
    )
    if read.tokens("completion_tokens_details.image_tokens"):
        draft.flags.append("image_output")
    return draft


def _responses(read: PayloadReader) -> Draft:
    """OpenAI responses, also its realtime and transcription usage, which say ``token`` in the singular."""
    draft = Draft(
        prompt=read.count("input_tokens"),
        completion=read.count("output_tokens"),
        total=read.count("total_tokens"),
        cache_read=read.tokens("input_tokens_details.cached_tokens", "input_token_details.cached_tokens"),
        cache_write=read.tokens("input_tokens_details.cache_write_tokens"),
        audio_input=read.tokens("input_tokens_details.audio_tokens", "input_token_details.audio_tokens"),
        audio_cache_read=read.tokens("input_token_details.cached_tokens_details.audio_tokens"),
        reasoning=read.tokens("output_tokens_details.reasoning_tokens"),
        audio_output=read.tokens("output_tokens_details.audio_tokens", "output_token_details.audio_tokens"),
        reported_cost_nanos=_ticks(read),
    )
    if read.tokens("input_tokens_details.cache_write_tokens_details.ttl_12h_tokens"):
        # Twice the ordinary write price at OpenAI; there is no kind for it yet.
        draft.flags.append("cache_write_12h")
    if read.tokens("output_tokens_details.image_tokens"):
        draft.flags.append("image_output")
    return draft


def _anthropic(read: PayloadReader) -> Draft:
    """Anthropic messages: input excludes both cache counts; ``cache_creation`` breaks down, it does not add."""
    hour = read.tokens("cache_creation.ephemeral_1h_input_tokens")
    parts = hour + read.tokens("cache_creation.ephemeral_5m_input_tokens")
    draft = Draft(
        prompt=read.count("input_tokens"),
        completion=read.count("output_tokens"),
        cache_read=read.tokens("cache_read_input_tokens"),
        cache_write=max(read.tokens("cache_creation_input_tokens"), parts),
        cache_write_1h=hour,
        reasoning=read.tokens("output_tokens_details.thinking_tokens"),
        web_searches=read.tokens("server_tool_use.web_search_requests"),
        cache_inside=False,
        total_decides=False,
        service_tier="fast" if read.text("speed") == "fast" else read.text("service_tier"),
    )
    if read.text("inference_geo") not in (None, "not_available", "global"):
        draft.flags.append("regional_inference")
    return draft


def _google(read: PayloadReader) -> Draft:
    """Gemini: cached inside the prompt; thoughts and tool prompts beside it. Camel case or the SDK's snake case."""
    prompt = read.count("promptTokenCount", "prompt_token_count", "total_input_tokens")
    tool = read.tokens("toolUsePromptTokenCount", "tool_use_prompt_token_count", "total_tool_use_tokens")
    thoughts = read.tokens("thoughtsTokenCount", "thoughts_token_count", "total_thought_tokens")
    said = read.count("candidatesTokenCount", "candidates_token_count", *LIVE_AND_INTERACTIONS)
    draft = Draft(
        prompt=prompt if prompt is None and not tool else (prompt or 0) + tool,
        completion=said if said is not None or not thoughts else 0,
        total=read.count("totalTokenCount", "total_token_count", "total_tokens"),
        cache_read=read.tokens("cachedContentTokenCount", "cached_content_token_count", "total_cached_tokens"),
        reasoning=thoughts,
        audio_input=read.modality("audio", "promptTokensDetails", "prompt_tokens_details"),
        audio_cache_read=read.modality("audio", "cacheTokensDetails", "cache_tokens_details"),
        audio_output=read.modality("audio", "candidatesTokensDetails", "candidates_tokens_details"),
        reasoning_inside=False,
        service_tier=read.text("serviceTier") or read.text("service_tier"),
    )
    if read.modality("image", "candidatesTokensDetails", "candidates_tokens_details"):
        draft.flags.append("image_output")
    return draft


def _bedrock(read: PayloadReader) -> Draft:
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
    )


def _cohere(read: PayloadReader) -> Draft:
    """Cohere bills ``billed_units``; ``tokens`` also counts its own prompt, which fills the context."""
    draft = Draft(
        prompt=read.count("billed_units.input_tokens", "tokens.input_tokens"),
        completion=read.count("billed_units.output_tokens", "tokens.output_tokens"),
    )
    held = read.tokens("tokens.input_tokens") + read.tokens("tokens.output_tokens")
    draft.context_tokens = held or None
    if read.tokens("billed_units.search_units"):
        draft.flags.append("search_units")
    return draft


def _deepseek(read: PayloadReader) -> Draft:
    """DeepSeek: as chat, but older payloads tell cached tokens only as cache hits."""
    draft = _chat(read)
    draft.cache_read = draft.cache_read or read.tokens("prompt_cache_hit_tokens")
    return draft


def _mistral(read: PayloadReader) -> Draft:
    """Mistral: as chat, with the cached tokens in one of two places."""
    draft = _chat(read)
    draft.cache_read = draft.cache_read or read.tokens("num_cached_tokens")
    return draft


def _openrouter(read: PayloadReader) -> Draft:
    """OpenRouter: as chat, with its own charge; with one's own key the vendor's charge comes on top."""
    draft = _chat(read)
    cost = read.value("cost")
    if cost is not None:
        draft.reported_cost_nanos = nanos(cost, field="cost")
        upstream = read.value("cost_details.upstream_inference_cost")
        if read.value("is_byok") is True and upstream is not None:
            draft.reported_cost_nanos += nanos(upstream, field="cost_details.upstream_inference_cost")
            draft.flags.append("own_key")
    return draft


def _xai(read: PayloadReader) -> Draft:
    """xAI chat: reasoning comes on top of the completion, unless the total says otherwise."""
    draft = _chat(read)
    draft.reasoning_inside = False
    draft.cache_read = draft.cache_read or read.tokens("cached_prompt_text_tokens")
    if read.tokens("num_sources_used"):
        # Sources cited, not searches made: nothing here prices them.
        draft.flags.append("search_sources")
    draft.reported_cost_nanos = _ticks(read)
    return draft


def _perplexity(read: PayloadReader) -> Draft:
    """Perplexity: reasoning and citations are billed beside the completion, and its total contains neither."""
    draft = _chat(read)
    draft.total = None
    draft.reasoning_inside = False
    draft.web_searches = read.tokens("num_search_queries")
    citations = read.tokens("citation_tokens")
    if citations:
        # They have a rate of their own on one model; as output they cost no less.
        draft.completion = (draft.completion or 0) + citations
        draft.flags.append("citations_as_output")
    cost = read.value("cost.total_cost")
    if cost is not None:
        draft.reported_cost_nanos = nanos(cost, field="cost.total_cost")
    return draft


def _embeddings(read: PayloadReader) -> Draft:
    return Draft(prompt=read.count("prompt_tokens", "total_tokens"), completion=0, total=read.count("total_tokens"))


def _ticks(read: PayloadReader) -> int | None:
    """xAI's charge, in ten-billionths of a dollar; half-even to nanos."""
    value = read.value("cost_in_usd_ticks")
    if value is None:
        return None
    ticks, rest = divmod(whole(value, field="cost_in_usd_ticks"), 10)
    return ticks + (rest > 5 or (rest == 5 and ticks & 1))


LIVE_AND_INTERACTIONS = ("responseTokenCount", "response_token_count", "total_output_tokens")

READERS: dict[str, Callable[[PayloadReader], Draft]] = {
    "openai.chat": _chat,
    "openai.responses": _responses,
    "openai.embeddings": _embeddings,
    "azure.chat": _chat,
    "azure.responses": _responses,
    "anthropic.messages": _anthropic,
    "google.generate_content": _google,
    "bedrock.converse": _bedrock,
    "mistral.chat": _mistral,
    "cohere.chat": _cohere,
    "deepseek.chat": _deepseek,
    "openrouter.chat": _openrouter,
    "xai.chat": _xai,
    "groq.chat": _chat,
    "perplexity.chat": _perplexity,
    "together.chat": _chat,
}
