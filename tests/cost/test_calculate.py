"""``calculate_cost`` and ``get_pricing`` as a caller sees them: JSON in, JSON out."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from agent.ids import new_id
from handlers.context import Caller, Context, Services
from handlers.cost.calculate import ROUTES, calculate_cost, get_pricing
from handlers.cost.resolve import RateCards
from schemas.cost import CalculateCost, GetPricing
from schemas.errors import SignalError
from signals.cost import CALCULATE_COST, GET_PRICING
from store.pool import Database
from tests.support.vault import TEST_VAULT

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


# Neither signal touches the database; the clock stands still.
SERVICES = Services(
    database=Database("postgresql://unused"),
    rate_cards=RateCards(),
    clock=lambda: NOW,
    new_id=new_id,
    vault=TEST_VAULT,
)
CTX = Context(SERVICES, Caller("default", None, frozenset({"viewer"})))


def cost_of(**request: Any) -> dict[str, Any]:
    decoded = msgspec.json.decode(msgspec.json.encode(request), type=CalculateCost)
    return msgspec.to_builtins(asyncio.run(calculate_cost(CTX, decoded)))


def pricing_of(**request: Any) -> dict[str, Any]:
    decoded = msgspec.json.decode(msgspec.json.encode(request), type=GetPricing)
    return msgspec.to_builtins(asyncio.run(get_pricing(CTX, decoded)))


def test_counts_are_priced_with_their_line_items() -> None:
    reply = cost_of(
        provider="openai",
        model="gpt-4o-2024-08-06",
        prompt_tokens=2006,
        completion_tokens=300,
        cache_read_tokens=1920,
        reasoning_tokens=128,
    )

    assert reply.pop("price_version").startswith("genai-prices 0.2.")
    assert reply == {
        "prompt_tokens": 2006,
        "completion_tokens": 300,
        "total_tokens": 2306,
        "cost": "0.005615",
        "list_cost": "0.005615",
        "currency": "USD",
        "cost_status": "priced",
        "price_rules": [],
        "line_items": [
            {"kind": "input", "tokens": 86, "rate_per_million": "2.5", "cost": "0.000215"},
            {"kind": "cache_read", "tokens": 1920, "rate_per_million": "1.25", "cost": "0.0024"},
            {"kind": "output", "tokens": 172, "rate_per_million": "10", "cost": "0.00172"},
            {"kind": "reasoning", "tokens": 128, "rate_per_million": "10", "cost": "0.00128"},
        ],
        "priced_at": "2026-11-22T12:00:00Z",
        "price_source": "genai-prices",
        "priced_model": "openai/gpt-4o",
        "unpriced_kinds": [],
        "reported_cost": None,
        "context_used": 2306,
        "context_limit": 128000,
        "count": None,
        "warnings": [],
    }


def test_a_raw_usage_object_is_priced_like_its_counts() -> None:
    usage = {
        "input_tokens": 504,
        "cache_creation_input_tokens": 123,
        "cache_read_input_tokens": 2000,
        "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 23},
        "output_tokens": 97,
        "server_tool_use": {"web_search_requests": 2},
    }
    raw = cost_of(provider="anthropic", model="claude-sonnet-4-5", usage=usage)
    stated = cost_of(
        provider="anthropic",
        model="claude-sonnet-4-5",
        prompt_tokens=2627,
        completion_tokens=97,
        cache_read_tokens=2000,
        cache_write_tokens=123,
        cache_write_1h_tokens=23,
        web_searches=2,
    )

    assert raw == stated
    assert raw["cost"] == "0.02408"


def test_the_price_is_the_one_in_force_at_the_timestamp() -> None:
    counts = {"provider": "openai", "model": "o3", "prompt_tokens": 1_000_000, "completion_tokens": 1_000_000}

    assert cost_of(**counts, timestamp="2025-05-01T00:00:00Z")["cost"] == "50"
    assert cost_of(**counts, timestamp="2025-07-01T02:00:00+02:00")["cost"] == "10"
    assert cost_of(**counts)["cost"] == "10"


@pytest.mark.parametrize(("provider", "model"), [("openai", "gpt-99"), ("ollama", "llama3"), ("openai", "whisper-1")])
def test_an_unknown_model_is_unpriced_and_not_nought(provider: str, model: str) -> None:
    reply = cost_of(provider=provider, model=model, prompt_tokens=10, completion_tokens=1)

    assert (reply["cost"], reply["cost_status"], reply["line_items"]) == (None, "unpriced", [])
    assert (reply["total_tokens"], reply["price_source"]) == (11, None)


def test_a_kind_without_a_rate_is_unpriced_and_named() -> None:
    reply = cost_of(provider="openai", model="gpt-4o", prompt_tokens=10, completion_tokens=1, audio_input_tokens=4)

    assert (reply["cost"], reply["cost_status"], reply["unpriced_kinds"]) == (None, "unpriced", ["audio_input"])
    assert {"kind": "audio_input", "tokens": 4, "rate_per_million": None, "cost": None} in reply["line_items"]


def test_the_payload_s_own_tier_counts_unless_the_request_names_one() -> None:
    usage = {"input_tokens": 1_000_000, "output_tokens": 0, "service_tier": "batch"}
    opus = {"provider": "anthropic", "model": "claude-opus-5"}

    assert cost_of(**opus, usage=usage)["cost"] == "2.5"
    assert cost_of(**opus, usage=usage, service_tier="standard")["cost"] == "5"
    assert cost_of(**opus, usage={**usage, "service_tier": "golden"})["warnings"] == ["service_tier_unknown"]


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({}, "prompt_tokens"),
        ({"prompt_tokens": 1, "usage": {"prompt_tokens": 1}}, "prompt_tokens"),
        ({"completion_tokens": 1, "usage": {"prompt_tokens": 1}}, "completion_tokens"),
        ({"usage": {"prompt_tokens": -1}}, "usage.prompt_tokens"),
        ({"usage": {"seconds": 1}}, "usage"),
        ({"usage": {"prompt_tokens": 1}, "api": "openai.telepathy"}, "api"),
        ({"prompt_tokens": 5, "cache_read_tokens": 6}, "cache_read_tokens"),
        ({"prompt_tokens": 5, "system_tokens": 6}, "system_tokens"),
        ({"completion_tokens": 5, "reasoning_tokens": 6}, "reasoning_tokens"),
    ],
)
def test_impossible_counts_are_refused_by_field(request_fields: dict[str, Any], field: str) -> None:
    with pytest.raises(SignalError) as refusal:
        cost_of(provider="openai", model="gpt-4o", **request_fields)
    assert (refusal.value.code, refusal.value.field) == ("invalid_request", field)


def test_pricing_is_the_card_in_decimal_strings() -> None:
    reply = pricing_of(provider="anthropic", model="claude-sonnet-4-5", timestamp="2025-11-06T00:00:00Z")

    assert reply["rates"] == {
        "input": "3",
        "output": "15",
        "cache_read": "0.3",
        "cache_write": "3.75",
        "cache_write_1h": "6",
        "web_search": "10000",
    }
    assert reply["tiers"][0]["above_prompt_tokens"] == 200_000
    assert reply["tiers"][0]["rates"]["output"] == "22.5"
    assert (reply["model"], reply["currency"], reply["price_source"]) == ("claude-sonnet-4-5", "USD", "genai-prices")


def test_pricing_of_an_unknown_model_is_refused_as_unpriced() -> None:
    with pytest.raises(SignalError) as refusal:
        pricing_of(provider="openai", model="gpt-99")
    assert (refusal.value.code, refusal.value.field) == ("unpriced", "model")


def test_both_signals_are_routed_and_open_to_providers_and_viewers() -> None:
    assert [r.signal for r in ROUTES] == [CALCULATE_COST, GET_PRICING]
    for signal in (CALCULATE_COST, GET_PRICING):
        assert signal.allows(frozenset({"provider"}))
        assert signal.allows(frozenset({"viewer"}))
        assert not signal.allows(frozenset({"approver"}))


def test_rates_of_the_request_take_the_place_of_every_known_price() -> None:
    reply = cost_of(
        provider="openai",
        model="gpt-4o",
        prompt_tokens=1000,
        completion_tokens=100,
        cache_read_tokens=400,
        rates={"input": "1", "output": "10"},
        currency="EUR",
    )

    # 600 and 400 at 1 and 100 at 10 per million; cached tokens without a rate of their own are ordinary input.
    assert (reply["cost"], reply["currency"], reply["price_source"]) == ("0.002", "EUR", "request")
    unpriced = cost_of(provider="x", model="y", prompt_tokens=1, completion_tokens=1, rates={"input": "1"})
    assert (unpriced["cost"], unpriced["unpriced_kinds"]) == (None, ["output"])


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"rates": {"input": "-1"}}, "rates.input"), ({"rates": {"input": "1"}, "currency": "XXY"}, "currency")],
)
def test_rates_of_the_request_that_are_none_are_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(SignalError) as refused:
        cost_of(provider="x", model="y", prompt_tokens=1, completion_tokens=1, **fields)
    assert (refused.value.code, refused.value.field) == ("invalid_request", field)


def test_what_is_processed_in_a_region_costs_what_it_costs_there() -> None:
    usage = {"input_tokens": 1000, "output_tokens": 100, "inference_geo": "us"}
    reply = cost_of(provider="anthropic", model="claude-opus-4-6", usage=usage)

    # (1,000 x 5 + 100 x 25) x 1.1 = 8,250 millionths
    assert reply["cost"] == "0.00825"
    assert reply["price_rules"] == ["anthropic us inference@2026-11-22"]
    there = pricing_of(provider="openai", model="gpt-5.4", region="eu")
    assert there["rates"]["input"] == there["list_rates"]["input"] == "2.75"
    assert there["rules"] == ["openai eu residency gpt-5.4*@2026-11-22"]
    assert pricing_of(provider="openai", model="gpt-5.4")["rules"] == []


def test_a_card_says_that_its_model_is_gone_or_was_guessed() -> None:
    assert "deprecated" in pricing_of(provider="google", model="gemini-2.0-flash")["notes"]
    warnings = cost_of(provider="anthropic", model="claude-sonnet-4-5-FAKE", prompt_tokens=1, completion_tokens=1)[
        "warnings"
    ]
    assert warnings == ["model_guessed:claude-sonnet-4-5"]
