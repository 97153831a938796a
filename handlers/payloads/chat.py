"""OpenAI's payload shapes and those of everybody who copies them: one small function per shape."""

from handlers.payloads.draft import Draft, ticks
from handlers.payloads.reader import PayloadReader, nanos


def chat(read: PayloadReader) -> Draft:
    """OpenAI chat completions and everything that copies them: both totals inclusive."""
    prompt = read.part("prompt_tokens_details", "prompt_token_details")
    completion = read.part("completion_tokens_details", "completion_token_details")
    draft = Draft(
        prompt=read.count("prompt_tokens"),
        completion=read.count("completion_tokens"),
        total=read.count("total_tokens"),
        cache_read=prompt.tokens("cached_tokens") or read.tokens("cached_tokens"),
        reasoning=completion.tokens("reasoning_tokens") or read.tokens("reasoning_tokens"),
        service_tier=read.text("service_tier"),
    )
    _parts(draft, prompt, completion)
    return draft


def responses(read: PayloadReader) -> Draft:
    """OpenAI responses, also its realtime, image and transcription usage, which say ``token`` in the singular."""
    prompt = read.part("input_tokens_details", "input_token_details")
    completion = read.part("output_tokens_details", "output_token_details")
    draft = Draft(
        prompt=read.count("input_tokens"),
        completion=read.count("output_tokens"),
        total=read.count("total_tokens"),
        cache_read=prompt.tokens("cached_tokens"),
        reasoning=completion.tokens("reasoning_tokens"),
        reported_cost_nanos=ticks(read),
        service_tier=read.text("service_tier"),
    )
    _parts(draft, prompt, completion)
    _flag_sources(read, draft)
    return draft


def _parts(draft: Draft, prompt: PayloadReader, completion: PayloadReader) -> None:
    """What the details of a prompt and a completion tell besides cache reads and reasoning."""
    written = prompt.part("cache_write_tokens_details")
    draft.cache_write_12h = written.tokens("ttl_12h_tokens")
    both = draft.cache_write_12h + written.tokens("ttl_30m_tokens")
    draft.cache_write = max(prompt.tokens("cache_write_tokens"), both)
    draft.audio_input = prompt.tokens("audio_tokens")
    draft.image_input = prompt.tokens("image_tokens")
    draft.video_input = prompt.tokens("video_tokens")
    draft.audio_cache_read = prompt.part("cached_tokens_details").tokens("audio_tokens")
    draft.audio_output = completion.tokens("audio_tokens")
    draft.image_output = completion.tokens("image_tokens")


def embeddings(read: PayloadReader) -> Draft:
    """Embeddings: a prompt and nothing else; some state only the total."""
    return Draft(
        prompt=read.count("prompt_tokens", "total_tokens"),
        completion=0,
        total=read.count("total_tokens"),
        service_tier=read.text("service_tier"),
    )


def deepseek(read: PayloadReader) -> Draft:
    """DeepSeek: as chat, but older payloads tell cached tokens only as cache hits."""
    draft = chat(read)
    draft.cache_read = draft.cache_read or read.tokens("prompt_cache_hit_tokens")
    if draft.prompt is None and read.has("prompt_cache_hit_tokens", "prompt_cache_miss_tokens"):
        draft.prompt = read.tokens("prompt_cache_hit_tokens") + read.tokens("prompt_cache_miss_tokens")
    return draft


def mistral(read: PayloadReader) -> Draft:
    """Mistral: as chat, with the cached tokens in one of two places; audio may be billed by the second."""
    draft = chat(read)
    draft.cache_read = draft.cache_read or read.tokens("num_cached_tokens")
    if read.value("prompt_audio_seconds") not in (None, 0):
        draft.flags.append("audio_seconds")
    return draft


def openrouter(read: PayloadReader) -> Draft:
    """OpenRouter: as chat, with its own charge; with one's own key the vendor's charge comes on top."""
    draft = chat(read)
    cost = read.value("cost")
    if cost is not None:
        draft.reported_cost_nanos = nanos(cost, field="cost")
        upstream = read.value("cost_details.upstream_inference_cost")
        if read.value("is_byok") is True and upstream is not None:
            draft.reported_cost_nanos += nanos(upstream, field="cost_details.upstream_inference_cost")
            draft.flags.append("own_key")
    return draft


def xai(read: PayloadReader) -> Draft:
    """xAI chat: reasoning comes on top of the completion, unless the total says otherwise."""
    draft = chat(read)
    draft.reasoning_inside = False
    draft.cache_read = draft.cache_read or read.tokens("cached_prompt_text_tokens")
    _flag_sources(read, draft)
    draft.reported_cost_nanos = ticks(read)
    return draft


def perplexity(read: PayloadReader) -> Draft:
    """Perplexity: reasoning and citations are billed beside the completion, and its total contains neither."""
    draft = chat(read)
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


def _flag_sources(read: PayloadReader, draft: Draft) -> None:
    """Sources cited, not searches made: nothing here prices them."""
    if read.tokens("num_sources_used"):
        draft.flags.append("search_sources")
