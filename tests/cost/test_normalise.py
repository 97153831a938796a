"""Every payload shape to inclusive counts; what is not a count is refused by its path."""

from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.cost.price import Quantities, contradiction
from handlers.tracker.normalise import Normalised, normalise
from handlers.tracker.payload_reader import PayloadError
from handlers.tracker.payload_shapes import READERS

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
    ("moonshotai", "openai.chat", OPENAI_CHAT, Quantities(2006, 300, 1920, reasoning_tokens=128)),
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
    assert {api for _, api, _, _ in SHAPES} == set(READERS)


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


def test_a_subset_larger_than_its_total_is_clamped_and_flagged() -> None:
    told = normalise(
        "openai", {"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 12}}
    )

    assert told.quantities == Quantities(10, 1, 10)
    assert told.flags == ("subset_clamped",)


def test_what_is_noticed_on_the_way_is_flagged() -> None:
    assert normalise("anthropic", {"output_tokens": 9}).flags == ("prompt_missing",)
    assert normalise("anthropic", {**ANTHROPIC, "inference_geo": "us"}).flags == ("regional_inference",)
    assert normalise("anthropic", {**ANTHROPIC, "speed": "fast"}).service_tier == "fast"
    assert normalise("cohere", COHERE).context_tokens == 489
    assert "citations_as_output" in normalise("perplexity", PERPLEXITY).flags
    drawn = {**GEMINI, "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 50}]}
    assert normalise("google", drawn).flags == ("image_output",)
    long_write = {"cached_tokens": 0, "cache_write_tokens": 5, "cache_write_tokens_details": {"ttl_12h_tokens": 5}}
    assert normalise("openai", {**OPENAI_RESPONSES, "input_tokens_details": long_write}).flags == ("cache_write_12h",)


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


@given(st.sampled_from(sorted(READERS)), st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=8))
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
