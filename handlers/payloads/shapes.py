"""Every payload shape by the name of its API, with what it does to the totals, and how a shape is told."""

from collections.abc import Callable
from typing import NamedTuple

from handlers.payloads import chat as chats
from handlers.payloads import vendors
from handlers.payloads.draft import Draft
from handlers.payloads.reader import PayloadError, PayloadReader


class Shape(NamedTuple):
    """A payload's shape: who reads it, and for people: whose it is and what the provider's totals contain."""

    read: Callable[[PayloadReader], Draft]
    whose: str
    cache: str = "inside"
    reasoning: str = "inside"


SHAPES: dict[str, Shape] = {
    "openai.chat": Shape(chats.chat, "OpenAI chat completions, and every API that copies them"),
    "openai.responses": Shape(chats.responses, "OpenAI responses, realtime, images, transcriptions; xAI responses"),
    "openai.embeddings": Shape(chats.embeddings, "OpenAI embeddings", "-", "-"),
    "azure.chat": Shape(chats.chat, "Azure OpenAI chat completions"),
    "azure.responses": Shape(chats.responses, "Azure OpenAI responses"),
    "anthropic.messages": Shape(
        vendors.anthropic, "Anthropic messages, also by way of Bedrock, Vertex AI and Azure", "beside"
    ),
    "google.generate_content": Shape(vendors.google, "Gemini, also by way of Vertex AI", reasoning="beside"),
    "google.interactions": Shape(vendors.interactions, "Gemini interactions", reasoning="the total decides"),
    "bedrock.converse": Shape(vendors.bedrock, "Amazon Bedrock Converse", "beside"),
    "bedrock.invoke": Shape(vendors.bedrock_invoke, "Amazon Bedrock InvokeModel: Llama, Titan, metrics", "beside", "-"),
    "mistral.chat": Shape(chats.mistral, "Mistral"),
    "cohere.chat": Shape(vendors.cohere, "Cohere v1 and v2; billed units are billed", "-", "-"),
    "deepseek.chat": Shape(chats.deepseek, "DeepSeek"),
    "openrouter.chat": Shape(chats.openrouter, "OpenRouter, with its own charge"),
    "xai.chat": Shape(chats.xai, "xAI chat completions, with its own charge", reasoning="beside; the total decides"),
    "groq.chat": Shape(chats.chat, "Groq"),
    "fireworks.chat": Shape(chats.chat, "Fireworks"),
    "moonshot.chat": Shape(chats.chat, "Moonshot AI"),
    "cerebras.chat": Shape(chats.chat, "Cerebras"),
    "zai.chat": Shape(chats.chat, "Z.AI (Zhipu)"),
    "perplexity.chat": Shape(chats.perplexity, "Perplexity, with its own charge", reasoning="beside"),
    "together.chat": Shape(chats.chat, "Together AI"),
    "ollama.chat": Shape(vendors.ollama, "Ollama chat and generate", "-", "-"),
    "voyage.embeddings": Shape(chats.embeddings, "Voyage AI embeddings and rerankers", "-", "-"),
}

# What is noticed in a payload, and what it means. Flags are warnings of the reply, and are stored with the event.
FLAGS: dict[str, str] = {
    "prompt_missing": "the payload states no prompt tokens; only the completion is counted",
    "total_mismatch": "the provider's total is none of the sums that its counts allow; its own rule was taken",
    "subset_clamped": "a part was larger than the total that contains it, and was cut down to it",
    "own_key": "OpenRouter with one's own key: the reported cost is its fee and the vendor's charge",
    "citations_as_output": "Perplexity's citation tokens are counted as output",
    "search_sources": "sources were cited (xAI); they are not searches, and nothing prices them",
    "search_units": "Cohere bills search units besides tokens; nothing prices them",
    "audio_seconds": "Mistral bills seconds of audio besides tokens; nothing prices them",
    "compaction_added": "Anthropic summarised the conversation: those tokens are billed and were added",
    "advisor_not_priced": "another Anthropic model advised: its tokens are no part of these counts; report them apart",
    "grounding_not_priced": "Google billed grounding tools by the call; nothing prices them",
    "video_output_as_text": "tokens of video that was made are priced as output; no kind of their own",
    "provisioned_throughput": "Google served it from capacity that is paid for already; the cost is what it would be",
    "partial_stream": "the stream broke off before its counts came: what had been received was counted",
    "stream_without_usage": "the stream ended without counts: what it said was counted",
}

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
    ("grok", "xai"),
    ("deepseek", "deepseek"),
    ("mistral", "mistral"),
    ("perplexity", "perplexity"),
    ("cohere", "cohere"),
    ("groq", "groq"),
    ("together", "together"),
    ("fireworks", "fireworks"),
    ("moonshot", "moonshot"),
    ("kimi", "moonshot"),
    ("cerebras", "cerebras"),
    ("z.ai", "zai"),
    ("z-ai", "zai"),
    ("zai", "zai"),
    ("zhipu", "zai"),
    ("ollama", "ollama"),
    ("voyage", "voyage"),
    ("openai", "openai"),
)
_OTHER_APIS = {"anthropic": "anthropic.messages", "aws": "bedrock.converse", "google": "google.generate_content"}
_ANTHROPIC_KEYS = ("cache_creation_input_tokens", "cache_read_input_tokens", "cache_creation", "server_tool_use")
_INVOKE_KEYS = ("generation_token_count", "inputTextTokenCount", "inputTokenCount", "outputTokenCount")
_RESPONSES_KEYS = ("input_tokens_details", "output_tokens_details", "input_token_details", "output_token_details")


def vendor_of(provider: str) -> str:
    """Whose payloads a provider by this name sends; its name where nobody is known by it."""
    name = provider.strip().lower()
    for mark, vendor in VENDOR_MARKS:
        if mark in name:
            return vendor
    return name


def default_api(provider: str) -> str:
    """The shape to expect of a provider where a payload shows nothing of it."""
    vendor = vendor_of(provider)
    return _OTHER_APIS.get(vendor) or (f"{vendor}.chat" if f"{vendor}.chat" in SHAPES else "openai.chat")


def tell_api(provider: str, read: PayloadReader) -> str:
    """The payload's shape told from the provider and the keys. Raises PayloadError if nothing fits."""
    vendor = vendor_of(provider)
    if read.has("generation_token_count", "inputTextTokenCount"):
        return "bedrock.invoke"
    if read.has("promptTokenCount", "totalTokenCount"):
        return "google.generate_content"
    if read.has("total_input_tokens", "total_output_tokens"):
        return "google.interactions"
    if read.has("billed_units") or (vendor == "cohere" and read.has("tokens")):
        return "cohere.chat"
    if read.has("prompt_tokens", "prompt_cache_hit_tokens"):
        if not read.has("completion_tokens") and vendor in ("openai", "azure"):
            return "openai.embeddings"
        return f"{vendor}.chat" if f"{vendor}.chat" in SHAPES else "openai.chat"
    if read.has("input_tokens", "output_tokens", *_ANTHROPIC_KEYS):
        return _tell_input_tokens(vendor, read)
    if read.has("prompt_eval_count", "eval_count"):
        return "ollama.chat"
    if read.has(*_INVOKE_KEYS):
        return "bedrock.invoke"
    if read.has("total_tokens"):
        return "voyage.embeddings" if vendor == "voyage" else "openai.embeddings"
    raise PayloadError("usage", "holds no token counts of any known shape")


def _tell_input_tokens(vendor: str, read: PayloadReader) -> str:
    """``input_tokens`` is Anthropic's or OpenAI's; in camel case it may be Bedrock's as well."""
    if read.has("cacheWriteInputTokens", "cacheDetails"):
        return "bedrock.converse"
    openai = "azure.responses" if vendor == "azure" else "openai.responses"
    if read.has(*_RESPONSES_KEYS) and read.value("output_tokens_details.thinking_tokens") is None:
        return openai
    if read.is_spelled("inputTokens") or read.is_spelled("outputTokens"):
        if vendor == "anthropic" or read.has("cache_creation_input_tokens", "cache_creation"):
            return "anthropic.messages"
        return openai if vendor in ("openai", "azure", "xai") else "bedrock.converse"
    resells_anthropic = vendor in ("anthropic", "aws", "google") and not read.has("total_tokens")
    return "anthropic.messages" if read.has(*_ANTHROPIC_KEYS) or resells_anthropic else openai
