"""Every payload shape to inclusive counts; what is not a count is refused by its path."""

from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.cost.price import Quantities, contradiction
from handlers.payloads.normalise import Normalised, normalise
from handlers.payloads.reader import PayloadError, other_case
from handlers.payloads.shapes import SHAPES as APIS

Usage = dict[str, Any]

OPENAI_CHAT: Usage = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920, "cache_write_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 128, "audio_tokens": 0, "rejected_prediction_tokens": 0},
}
OPENAI_RESPONSES: Usage = {
    "input_tokens": 2006,
    "input_tokens_details": {"cached_tokens": 1920, "cache_write_tokens": 6},
    "output_tokens": 300,
    "output_tokens_details": {"reasoning_tokens": 128},
    "total_tokens": 2306,
}
ANTHROPIC: Usage = {
    "input_tokens": 504,
    "cache_creation_input_tokens": 123,
    "cache_read_input_tokens": 2000,
    "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 23},
    "output_tokens": 97,
    "output_tokens_details": {"thinking_tokens": 0},
    "server_tool_use": {"web_search_requests": 2},
    "service_tier": "standard",
}
GEMINI: Usage = {
    "promptTokenCount": 1000,
    "cachedContentTokenCount": 600,
    "candidatesTokenCount": 50,
    "thoughtsTokenCount": 200,
    "toolUsePromptTokenCount": 30,
    "totalTokenCount": 1280,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 742}, {"modality": "AUDIO", "tokenCount": 258}],
    "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 129}],
}
GEMINI_SDK: Usage = {
    "prompt_token_count": 1000,
    "cached_content_token_count": None,
    "candidates_token_count": 50,
    "thoughts_token_count": 200,
    "total_token_count": 1250,
}
BEDROCK: Usage = {
    "inputTokens": 14,
    "outputTokens": 120,
    "totalTokens": 2134,
    "cacheReadInputTokens": 1800,
    "cacheWriteInputTokens": 200,
    "cacheDetails": [{"ttl": "5m", "inputTokens": 150}, {"ttl": "1h", "inputTokens": 50}],
}
COHERE: Usage = {
    "billed_units": {"input_tokens": 5.0, "output_tokens": 418.0, "search_units": 0},
    "tokens": {"input_tokens": 71.0, "output_tokens": 418.0},
    "cached_tokens": 32.0,
}
DEEPSEEK: Usage = {
    "prompt_tokens": 1000,
    "completion_tokens": 20,
    "total_tokens": 1020,
    "prompt_cache_hit_tokens": 896,
    "prompt_cache_miss_tokens": 104,
}
OPENROUTER: Usage = {
    "prompt_tokens": 294,
    "completion_tokens": 27,
    "total_tokens": 321,
    "cost": 0.001287,
    "is_byok": False,
    "cost_details": {"upstream_inference_cost": 0.001287},
}
XAI: Usage = {
    "prompt_tokens": 10120,
    "completion_tokens": 1499,
    "total_tokens": 14428,
    "completion_tokens_details": {"reasoning_tokens": 2809},
    "cost_in_usd_ticks": 373_500_005,
}
MOONSHOT: Usage = {"prompt_tokens": 2006, "completion_tokens": 300, "total_tokens": 2306, "cached_tokens": 1920}
TITAN: Usage = {"inputTextTokenCount": 11, "results": [{"tokenCount": 9, "outputText": "..."}]}
INTERACTIONS: Usage = {
    "total_input_tokens": 1000,
    "total_output_tokens": 50,
    "total_thought_tokens": 200,
    "total_cached_tokens": 600,
    "total_tool_use_tokens": 30,
    "total_tokens": 1280,
}
PERPLEXITY: Usage = {
    "prompt_tokens": 33,
    "completion_tokens": 7163,
    "total_tokens": 7196,
    "citation_tokens": 19045,
    "num_search_queries": 21,
    "reasoning_tokens": 281743,
}

SHAPES = [
    ("openai", "openai.chat", OPENAI_CHAT, Quantities(2006, 300, 1920, reasoning_tokens=128)),
    ("azure", "azure.chat", OPENAI_CHAT, Quantities(2006, 300, 1920, reasoning_tokens=128)),
    ("groq", "groq.chat", OPENAI_CHAT, Quantities(2006, 300, 1920, reasoning_tokens=128)),
    ("together", "together.chat", OPENAI_CHAT, Quantities(2006, 300, 1920, reasoning_tokens=128)),
    ("fireworks_ai", "fireworks.chat", OPENAI_CHAT, Quantities(2006, 300, 1920, reasoning_tokens=128)),
    ("moonshotai", "moonshot.chat", MOONSHOT, Quantities(2006, 300, 1920)),
    ("cerebras", "cerebras.chat", OPENAI_CHAT, Quantities(2006, 300, 1920, reasoning_tokens=128)),
    ("z.ai", "zai.chat", OPENAI_CHAT, Quantities(2006, 300, 1920, reasoning_tokens=128)),
    ("a company", "openai.chat", OPENAI_CHAT, Quantities(2006, 300, 1920, reasoning_tokens=128)),
    ("ollama", "ollama.chat", {"prompt_eval_count": 17, "eval_count": 50}, Quantities(17, 50)),
    ("voyageai", "voyage.embeddings", {"total_tokens": 12}, Quantities(12)),
    ("aws", "bedrock.invoke", {"prompt_token_count": 8, "generation_token_count": 35}, Quantities(8, 35)),
    ("aws", "bedrock.invoke", TITAN, Quantities(11, 9)),
    ("google", "google.interactions", INTERACTIONS, Quantities(1030, 250, 600, reasoning_tokens=200)),
    ("openai", "openai.responses", OPENAI_RESPONSES, Quantities(2006, 300, 1920, 6, reasoning_tokens=128)),
    ("azure_openai", "azure.responses", OPENAI_RESPONSES, Quantities(2006, 300, 1920, 6, reasoning_tokens=128)),
    ("openai", "openai.embeddings", {"prompt_tokens": 8, "total_tokens": 8}, Quantities(8)),
    ("anthropic", "anthropic.messages", ANTHROPIC, Quantities(2627, 97, 2000, 123, 23, web_searches=2)),
    ("bedrock", "anthropic.messages", {"input_tokens": 5, "output_tokens": 7}, Quantities(5, 7)),
    (
        "google",
        "google.generate_content",
        GEMINI,
        Quantities(1030, 250, 600, reasoning_tokens=200, audio_input_tokens=258, audio_cache_read_tokens=129),
    ),
    ("vertex_ai", "google.generate_content", GEMINI_SDK, Quantities(1000, 250, reasoning_tokens=200)),
    ("bedrock", "bedrock.converse", BEDROCK, Quantities(2014, 120, 1800, 200, 50)),
    (
        "mistral",
        "mistral.chat",
        {"prompt_tokens": 64, "completion_tokens": 6, "total_tokens": 70, "num_cached_tokens": 32},
        Quantities(64, 6, 32),
    ),
    ("cohere", "cohere.chat", COHERE, Quantities(5, 418)),
    ("deepseek", "deepseek.chat", DEEPSEEK, Quantities(1000, 20, 896)),
    ("openrouter", "openrouter.chat", OPENROUTER, Quantities(294, 27)),
    ("xai", "xai.chat", XAI, Quantities(10120, 4308, reasoning_tokens=2809)),
    (
        "perplexity",
        "perplexity.chat",
        PERPLEXITY,
        Quantities(33, 7163 + 19045 + 281743, reasoning_tokens=281743, web_searches=21),
    ),
]


@pytest.mark.parametrize(("provider", "api", "usage", "expected"), SHAPES)
def test_each_shape_becomes_inclusive_counts_and_is_told_by_its_keys(
    provider: str, api: str, usage: Usage, expected: Quantities
) -> None:
    told, named = normalise(provider, usage), normalise("", usage, api)

    assert told.quantities == expected
    assert told.api == api
    assert named == told
    assert "total_mismatch" not in told.flags
    assert contradiction(told.quantities) is None


def test_the_shapes_above_are_all_there_are() -> None:
    assert {api for _, api, _, _ in SHAPES} == set(APIS)


@pytest.mark.parametrize(
    "wrapped",
    [
        {"model": "gpt-4o", "usage": OPENAI_CHAT},
        {"type": "response.completed", "response": {"id": "r", "usage": OPENAI_RESPONSES}},
        {"type": "message_start", "message": {"id": "m", "usage": ANTHROPIC}},
        {"modelVersion": "gemini", "usageMetadata": GEMINI},
        {"meta": {"billed_units": {"input_tokens": 4}}},
    ],
)
def test_a_whole_response_is_taken_for_its_usage(wrapped: Usage) -> None:
    assert normalise("", wrapped).quantities.prompt_tokens > 0


@pytest.mark.parametrize(
    ("provider", "usage", "nanos", "flags"),
    [
        ("openrouter", OPENROUTER, 1_287_000, ()),
        ("openrouter", {**OPENROUTER, "cost": "0.0000000015"}, 2, ()),
        # With one's own key: 5 % fee on top of what the vendor charges.
        ("openrouter", {**OPENROUTER, "is_byok": True, "cost": 0.00006435}, 1_351_350, ("own_key",)),
        ("openrouter", {**OPENROUTER, "cost": 0}, 0, ()),
        ("openrouter", {**OPENROUTER, "cost": None}, None, ()),
        # 373,500,005 ticks of 1e-10: 37,350,000.5 nanos, half to even
        ("xai", XAI, 37_350_000, ()),
        ("perplexity", {"prompt_tokens": 1, "completion_tokens": 1, "cost": {"total_cost": 0.006}}, 6_000_000, ()),
        ("openai", {**OPENAI_CHAT, "cost": 1}, None, ()),
    ],
)
def test_a_provider_s_own_charge_is_kept_exactly(
    provider: str, usage: Usage, nanos: int | None, flags: tuple[str, ...]
) -> None:
    told = normalise(provider, usage)

    assert (told.reported_cost_nanos, told.flags) == (nanos, flags)


def _chat(prompt: int, completion: int, total: int, **details: int) -> Usage:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": details.get("cached", 0)},
        "completion_tokens_details": {"reasoning_tokens": details.get("reasoning", 0)},
    }


@pytest.mark.parametrize(
    ("provider", "usage", "totals", "flags"),
    [
        # The total says reasoning is on top, whatever the provider.
        ("openai", _chat(100, 20, 170, reasoning=50), (100, 70), ()),
        ("xai", _chat(100, 80, 180, reasoning=50), (100, 80), ()),
        (
            "xai",
            {"prompt_tokens": 9, "completion_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 5}},
            (9, 6),
            (),
        ),
        # The total says the cache is on top.
        ("openai", _chat(100, 20, 1020, cached=900), (1000, 20), ()),
        ("openai", _chat(100, 20, 999), (100, 20), ("total_mismatch",)),
        (
            "bedrock",
            {"inputTokens": 10, "outputTokens": 5, "cacheReadInputTokens": 90, "totalTokens": 15},
            (100, 5),
            (),
        ),
        ("bedrock", {"inputTokens": 10, "outputTokens": 5, "totalTokens": 16}, (10, 5), ("total_mismatch",)),
        ("openai", _chat(100, 20, 120, reasoning=50), (100, 70), ()),
    ],
)
def test_the_total_decides_what_is_inside_what(
    provider: str, usage: Usage, totals: tuple[int, int], flags: tuple[str, ...]
) -> None:
    told = normalise(provider, usage)

    assert (told.quantities.prompt_tokens, told.quantities.completion_tokens) == totals
    assert told.flags == flags


small = st.integers(0, 500)


@given(small, small, small, small, st.sampled_from(["inside", "reasoning", "cache", "other"]))
def test_the_total_is_compared_in_its_order_for_any_counts(
    prompt: int, completion: int, reasoning: int, cached: int, stated: str
) -> None:
    both = prompt + completion
    total = {
        "inside": both,
        "reasoning": both + reasoning,
        "cache": both + cached,
        "other": both + reasoning + cached + 1,
    }
    usage = _chat(prompt, completion, total[stated], reasoning=reasoning, cached=cached)
    told = normalise("openai", usage)

    found = (told.quantities.prompt_tokens, told.quantities.completion_tokens)
    if total[stated] == both:
        expected = (prompt, completion if reasoning <= completion else completion + reasoning)
    elif total[stated] == both + reasoning:
        expected = (prompt, completion + reasoning)
    elif total[stated] == both + cached:
        expected = (prompt + cached, completion)
    else:
        expected = (prompt, completion)
    assert found == expected
    assert ("total_mismatch" in told.flags) == (stated == "other")
    assert contradiction(told.quantities) is None


def test_a_subset_larger_than_its_total_is_clamped_and_flagged() -> None:
    told = normalise(
        "openai", {"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 12}}
    )

    assert told.quantities == Quantities(10, 1, 10)
    assert told.flags == ("subset_clamped",)


def test_what_is_noticed_on_the_way_is_flagged() -> None:
    assert normalise("anthropic", {"output_tokens": 9}).flags == ("prompt_missing",)
    assert normalise("cohere", COHERE).context_tokens == 489
    assert "citations_as_output" in normalise("perplexity", PERPLEXITY).flags
    filmed = {**GEMINI, "candidatesTokensDetails": [{"modality": "VIDEO", "tokenCount": 50}]}
    assert normalise("google", filmed).flags == ("video_output_as_text",)
    assert normalise("google", {**GEMINI, "trafficType": "PROVISIONED_THROUGHPUT"}).flags == ("provisioned_throughput",)
    heard = {**OPENAI_CHAT, "prompt_audio_seconds": 12}
    assert normalise("mistral", heard).flags == ("audio_seconds",)
    grounded = {**INTERACTIONS, "grounding_tool_count": [{"type": "google_search", "count": 2}]}
    assert normalise("google", grounded).flags == ("grounding_not_priced",)
    assert normalise("cohere", {**COHERE, "billed_units": {"input_tokens": 1, "search_units": 1}}).flags == (
        "search_units",
    )
    assert normalise("xai", {**XAI, "num_sources_used": 4}).flags == ("search_sources",)


@pytest.mark.parametrize(
    ("provider", "usage", "told"),
    [
        ("anthropic", {**ANTHROPIC, "inference_geo": "us"}, ("standard", "us", False)),
        ("anthropic", {**ANTHROPIC, "inference_geo": "global"}, ("standard", None, False)),
        ("anthropic", {**ANTHROPIC, "speed": "fast"}, ("fast", None, False)),
        ("anthropic", {**ANTHROPIC, "service_tier": "batch"}, (None, None, True)),
        ("anthropic", {**ANTHROPIC, "service_tier": "priority"}, ("priority", None, False)),
        # OpenAI states the tier that served the call beside the usage, not in it.
        ("openai", {"service_tier": "flex", "usage": OPENAI_CHAT}, ("flex", None, False)),
        ("openai", {"response": {"service_tier": "priority", "usage": OPENAI_RESPONSES}}, ("priority", None, False)),
        ("google", {**GEMINI, "serviceTier": "flex"}, ("flex", None, False)),
        ("google", {**GEMINI, "trafficType": "ON_DEMAND_PRIORITY"}, ("priority", None, False)),
        ("google", {**GEMINI, "trafficType": "ON_DEMAND"}, (None, None, False)),
    ],
)  # fmt: skip
def test_service_tier_region_and_batch_are_told_where_the_payload_states_them(
    provider: str, usage: Usage, told: tuple[str | None, str | None, bool]
) -> None:
    found = normalise(provider, usage)

    assert (found.service_tier, found.region, found.batch) == told


def test_images_video_and_half_day_writes_are_counted_apart() -> None:
    writes = {"cache_write_tokens": 900, "cache_write_tokens_details": {"ttl_30m_tokens": 100, "ttl_12h_tokens": 800}}
    assert normalise("openai", {**OPENAI_RESPONSES, "input_tokens_details": writes}).quantities == Quantities(
        2006, 300, 0, 900, cache_write_12h_tokens=800, reasoning_tokens=128
    )
    seen = [{"modality": "IMAGE", "tokenCount": 258}, {"modality": "DOCUMENT", "tokenCount": 42}]
    shown = {
        **GEMINI,
        "promptTokensDetails": [*seen, {"modality": "VIDEO", "tokenCount": 100}],
        "cacheTokensDetails": None,
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 40}],
    }
    assert normalise("google", shown).quantities == Quantities(
        1030, 250, 600, reasoning_tokens=200, image_input_tokens=300, image_output_tokens=40, video_input_tokens=100
    )


def test_tokens_of_an_anthropic_compaction_are_added_and_do_not_fill_the_context() -> None:
    compacted = {"type": "compaction", "input_tokens": 55_196, "output_tokens": 125, "cache_read_input_tokens": 40}
    advice = {"type": "advisor_message", "model": "another", "input_tokens": 2_529, "output_tokens": 38}
    message = {"type": "message", "input_tokens": 220, "output_tokens": 8}
    told = normalise(
        "anthropic",
        {"input_tokens": 220, "output_tokens": 8, "iterations": [compacted, message, advice]},
    )

    assert told.quantities == Quantities(220 + 55_196 + 40, 8 + 125, 40)
    assert told.context_tokens == 228
    assert told.flags == ("advisor_not_priced", "compaction_added")


def _camel(value: Any) -> Any:
    """As the other half of the client libraries would write it."""
    if isinstance(value, dict):
        return {other_case(k) or k: _camel(v) for k, v in cast("Usage", value).items()}
    return [_camel(item) for item in cast("list[Any]", value)] if isinstance(value, list) else value


def _dumped(value: Any) -> Any:
    """As a client library dumps its models: counts as text, and a null for everything unset."""
    if isinstance(value, dict):
        return {k: _dumped(v) for k, v in cast("Usage", value).items()} | {"unset": None, "prompt_audio_seconds": None}
    if isinstance(value, list):
        return [_dumped(item) for item in cast("list[Any]", value)]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _responded(usage: Usage) -> Usage:
    return {"id": "r", "model": "m", "usage": usage}


@pytest.mark.parametrize(("provider", "api", "usage", "expected"), SHAPES)
@pytest.mark.parametrize("written", [_camel, _dumped, _responded])
def test_either_case_style_a_dump_with_nulls_and_a_whole_response_are_the_same_counts(
    written: Any, provider: str, api: str, usage: Usage, expected: Quantities
) -> None:
    assert normalise(provider, written(usage), api).quantities == expected
    assert normalise(provider, written(usage)).quantities == expected


NOT_COUNTS: list[object] = [
    -1,
    -1.0,
    1.5,
    float("nan"),
    float("inf"),
    True,
    False,
    "1.5",
    "-3",
    "NaN",
    "",
    "ten",
    "\u0661",
    [],
    {},
    10**13,
]


@pytest.mark.parametrize("value", NOT_COUNTS)
@pytest.mark.parametrize(
    ("path", "field"),
    [
        (("prompt_tokens",), "prompt_tokens"),
        (("prompt_tokens_details", "cached_tokens"), "prompt_tokens_details.cached_tokens"),
        (("total_tokens",), "total_tokens"),
    ],
)
def test_what_is_not_a_count_is_refused_by_its_path(value: object, path: tuple[str, ...], field: str) -> None:
    usage: Usage = {**OPENAI_CHAT, path[0]: value if len(path) == 1 else {path[1]: value}}

    with pytest.raises(PayloadError) as refusal:
        normalise("openai", usage)
    assert refusal.value.field == field


@pytest.mark.parametrize("value", [10, 10.0, "10"])
def test_whole_numbers_are_counts_in_any_json_form(value: object) -> None:
    assert normalise("openai", {"prompt_tokens": value, "completion_tokens": 0}).quantities == Quantities(10)


@pytest.mark.parametrize("cost", [-0.1, float("nan"), True, "a lot", [], 1e30, "9" * 50])
def test_a_charge_that_is_no_amount_is_refused(cost: object) -> None:
    with pytest.raises(PayloadError) as refusal:
        normalise("openrouter", {**OPENROUTER, "cost": cost})
    assert refusal.value.field == "cost"


@pytest.mark.parametrize(
    ("usage", "api", "field"),
    [
        ({}, None, "usage"),
        ({"tokens": 3}, None, "usage"),
        ({"type": "duration", "seconds": 12}, None, "usage"),
        (OPENAI_CHAT, "openai.telepathy", "api"),
        (OPENAI_CHAT, "anthropic.messages", "usage"),
        ({"prompt_tokens": None, "completion_tokens": None}, "openai.chat", "usage"),
    ],
)
def test_a_payload_without_counts_is_refused(usage: Usage, api: str | None, field: str) -> None:
    with pytest.raises(PayloadError) as refusal:
        normalise("openai", usage, api)
    assert refusal.value.field == field


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**13) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
counts = st.none() | st.integers(0, 5000)


def _fields(usage: Usage) -> list[str]:
    return [*usage, *(field for inner in _objects(usage) for field in inner)]


def _objects(usage: Usage) -> list[Usage]:
    return [cast("Usage", value) for value in usage.values() if isinstance(value, dict)]


FIELDS = sorted({field for _, _, usage, _ in SHAPES for field in _fields(usage)})


@given(st.sampled_from(sorted(APIS)), st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=8))
def test_any_payload_is_normalised_or_refused_and_nothing_else(api: str, usage: Usage) -> None:
    try:
        told = normalise("anyone", usage, api)
    except PayloadError:
        return
    _assert_sound(told)


@given(st.data(), st.sampled_from(SHAPES))
def test_counts_of_any_size_keep_subsets_within_totals(
    data: st.DataObject, shape: tuple[str, str, Usage, object]
) -> None:
    provider, api, usage, _ = shape
    drawn: Usage = msgspec.json.decode(msgspec.json.encode(usage))
    for target in (drawn, *_objects(drawn)):
        for field, value in list(target.items()):
            if isinstance(value, int | float) and not isinstance(value, bool):
                target[field] = data.draw(counts)
    try:
        _assert_sound(normalise(provider, drawn, api))
    except PayloadError as error:
        assert error.field == "usage"


def _assert_sound(told: Normalised) -> None:
    assert contradiction(told.quantities) is None
    assert all(value >= 0 for value in msgspec.structs.astuple(told.quantities))
    assert told.reported_cost_nanos is None or told.reported_cost_nanos >= 0
