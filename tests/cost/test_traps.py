"""The 21 traps of counting and pricing, each tested once: here, or where ``ELSEWHERE`` says.

What is tested elsewhere is looked up by name, so that no trap loses its test unnoticed.
"""

import ast
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from handlers.context import Limits
from handlers.cost.price import Quantities, price
from handlers.cost.resolve import RateCards
from handlers.org_settings import OrgSettings
from handlers.payloads.normalise import normalise
from handlers.tracker.priced import ORG_DEFAULTS, PricedEvent, priced
from schemas.usage import UsageEvent

TESTS = Path(__file__).resolve().parents[1]
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)

ELSEWHERE: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("counting/test_text.py", ("test_hostile_text_is_counted_in_bounded_time_and_says_how_sure_it_is",)),
    2: ("counting/test_count.py", ("test_special_tokens_in_a_text_are_text",)),
    3: ("counting/test_count.py", ("test_a_lone_surrogate_is_counted",)),
    4: ("counting/test_count.py", ("test_no_socket_is_ever_touched",)),
    5: ("counting/test_count.py", ("test_corrupt_ranks_fail_loudly",)),
    6: (
        "counting/test_count.py",
        ("test_the_cookbooks_messages_count_what_the_api_said", "test_the_cookbooks_tools_count_what_the_api_said"),
    ),
    13: (
        "cost/test_calculate.py",
        ("test_an_unknown_model_is_unpriced_and_not_nought", "test_a_kind_without_a_rate_is_unpriced_and_named"),
    ),
    14: ("cost/test_defaults.py", ("test_resold_batches_cost_half_by_a_rule_and_listed_ones_what_is_listed",)),
    16: ("cost/test_defaults.py", ("test_a_twelve_hour_cache_write_costs_twice_the_ordinary_one",)),
    17: ("cost/test_resolve.py", ("test_a_dated_price_is_the_one_of_its_day_in_any_order",)),
    18: (
        "handlers/test_price_refresh.py",
        (
            "test_an_older_file_is_refused",
            "test_a_file_older_than_the_one_in_use_is_refused_and_so_is_the_bundled_one",
        ),
    ),
    19: ("cost/test_defaults.py", ("test_retired_models_are_flagged",)),
    20: ("cost/test_exchange.py", ("test_a_weekend_takes_the_last_rate_before_it_and_an_old_one_is_stale",)),
    21: (
        "cost/test_price_properties.py",
        ("test_twenty_thousand_model_names_do_not_grow_memory_under_rules_and_guesses",),
    ),
}


def charged(provider: str, model: str, usage: Any, settings: OrgSettings = ORG_DEFAULTS) -> PricedEvent:
    """The event that such usage becomes, at list prices."""
    event = UsageEvent(provider=provider, model=model, usage=usage)
    return priced(
        event,
        org="default",
        event_id="1",
        arrived_at=NOW,
        cards=RateCards(),
        limits=Limits(),
        settings=settings,
    ).event


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("trap", sorted(ELSEWHERE))
def test_a_trap_of_another_part_is_tested_there(trap: int) -> None:
    path, names = ELSEWHERE[trap]

    assert set(names) <= names_in(path), f"trap {trap} has lost its test in {path}"


def test_every_trap_has_a_test() -> None:
    here = {int(name.split("_")[2]) for name in names_in("cost/test_traps.py") if name.startswith("test_trap_")}

    assert here | set(ELSEWHERE) == set(range(1, 22))
    assert not here & set(ELSEWHERE)


@pytest.mark.parametrize(
    ("provider", "model", "usage"),
    [
        (
            "anthropic",
            "claude-sonnet-4-5",
            {
                "input_tokens": 504,
                "cache_creation_input_tokens": 123,
                "cache_read_input_tokens": 2000,
                "cache_creation": {"ephemeral_5m_input_tokens": 123, "ephemeral_1h_input_tokens": 0},
                "output_tokens": 97,
            },
        ),
        (
            "bedrock",
            "global.anthropic.claude-sonnet-4-5-20250929-v1:0",
            {
                "inputTokens": 504,
                "cacheWriteInputTokens": 123,
                "cacheReadInputTokens": 2000,
                "outputTokens": 97,
                "totalTokens": 2724,
            },
        ),
    ],
)
def test_trap_07_cached_tokens_of_anthropic_and_bedrock_are_neither_lost_nor_doubled(
    provider: str, model: str, usage: dict[str, Any]
) -> None:
    event = charged(provider, model, usage)

    assert (event.prompt_tokens, event.cache_read_tokens, event.cache_write_tokens) == (2627, 2000, 123)
    # 504 x 3 + 2000 x 0.3 + 123 x 3.75 + 97 x 15 = 4028.25 millionths
    assert event.cost == 4_028_250


def test_trap_08_reasoning_of_xai_comes_on_top_of_the_completion() -> None:
    usage = {
        "prompt_tokens": 10120,
        "completion_tokens": 1499,
        "total_tokens": 14428,
        "completion_tokens_details": {"reasoning_tokens": 2809},
    }
    event = charged("xai", "grok-4", usage)

    assert (event.completion_tokens, event.reasoning_tokens) == (4308, 2809)
    # 10120 x 3 + 4308 x 15 = 94980 millionths
    assert event.cost == 94_980_000


def test_trap_09_thoughts_of_gemini_are_output_beside_the_candidates() -> None:
    usage = {
        "promptTokenCount": 1000,
        "candidatesTokenCount": 50,
        "thoughtsTokenCount": 200,
        "toolUsePromptTokenCount": 30,
        "totalTokenCount": 1280,
    }
    event = charged("google", "gemini-2.5-flash", usage)

    assert (event.prompt_tokens, event.completion_tokens, event.reasoning_tokens) == (1030, 250, 200)
    # 1030 x 0.3 + 250 x 2.5 = 934 millionths
    assert event.cost == 934_000


def test_trap_10_deepseek_tells_its_cache_as_hits_and_misses_only() -> None:
    hits = {"prompt_cache_hit_tokens": 896, "prompt_cache_miss_tokens": 104, "completion_tokens": 20}
    told = normalise("deepseek", {"prompt_tokens": 1000, "total_tokens": 1020, **hits})

    assert told.quantities == Quantities(1000, 20, 896)
    assert normalise("deepseek", hits).quantities == Quantities(1000, 20, 896)
    assert normalise("deepseek", {**hits, "prompt_tokens_details": {"cached_tokens": 896}}) == told


def test_trap_11_the_cost_that_openrouter_reports_is_the_cost_where_it_is_believed() -> None:
    believing = OrgSettings(reported_cost_providers=("OpenRouter",))
    usage = {"prompt_tokens": 294, "completion_tokens": 27, "total_tokens": 321, "cost": 0.0012345678}
    event = charged("openrouter", "anthropic/claude-sonnet-4.5", usage, believing)
    listed = charged("openrouter", "anthropic/claude-sonnet-4.5", usage)

    assert (event.cost, event.price_source, event.reported_cost) == (1_234_568, "reported", 1_234_568)
    # An org that lists nobody pays what is listed, 294 x 3 + 27 x 15 = 1287 millionths, and keeps the other beside it.
    assert (listed.cost, listed.price_source, listed.reported_cost) == (1_287_000, "genai-prices", 1_234_568)


def test_trap_12_cohere_counts_in_floats_and_bills_less_than_it_reads() -> None:
    usage = {
        "billed_units": {"input_tokens": 5.0, "output_tokens": 418.0},
        "tokens": {"input_tokens": 71.0, "output_tokens": 418.0},
    }
    event = charged("cohere", "command-r-plus", usage)

    assert (event.prompt_tokens, event.completion_tokens, event.context_used) == (5, 418, 489)
    # 5 x 2.5 + 418 x 10 = 4192.5 millionths
    assert event.cost == 4_192_500


@pytest.mark.parametrize(
    ("provider", "model", "threshold", "base", "above"),
    [
        ("openai", "gpt-5.4", 272_000, "2.5", "5"),
        ("google", "gemini-2.5-pro", 200_000, "1.25", "2.5"),
    ],
)
def test_trap_15_at_the_threshold_is_base_and_one_token_more_prices_all_of_them_higher(
    provider: str, model: str, threshold: int, base: str, above: str
) -> None:
    card = RateCards().resolve(provider, model, NOW)
    assert card is not None
    rates = [int(float(rate) * 1000) for rate in (base, above)]

    assert price(card, Quantities(threshold)).cost_nanos == threshold * rates[0]
    assert price(card, Quantities(threshold + 1)).cost_nanos == (threshold + 1) * rates[1]
