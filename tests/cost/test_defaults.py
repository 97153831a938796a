"""What the shipped corrections make of the list prices, each worked out by hand, and what they leave alone."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from handlers.cost.defaults import DEFAULTS, FLAGGED, default_rules
from handlers.cost.price import Quantities, price
from handlers.cost.rate_card import RateCard, rate_nanos
from handlers.cost.resolve import RateCards
from handlers.pricing.checks import check
from schemas.pricing import PriceRule

MONDAY = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def cards() -> RateCards:
    return RateCards()


def usd(text: str) -> int:
    return rate_nanos(Decimal(text))


def found(cards: RateCards, provider: str, model: str, at: datetime = MONDAY, **how: object) -> RateCard:
    card = cards.resolve(provider, model, at, **how)  # pyright: ignore[reportArgumentType]
    assert card is not None, (provider, model)
    return card


def test_every_correction_is_a_rule_that_anybody_could_set_and_says_where_it_is_from() -> None:
    for rule in DEFAULTS:
        check(rule)
        assert rule.layer == "operator" and rule.source and "read 2026-" in rule.source
    assert len({rule.name for rule in DEFAULTS}) == len(DEFAULTS)
    assert all(flagged.why for flagged in FLAGGED)
    assert len(default_rules().rules) == len(DEFAULTS) + len(FLAGGED)


def test_a_twelve_hour_cache_write_costs_twice_the_ordinary_one(cards: RateCards) -> None:
    card = found(cards, "openai", "gpt-5.6-terra")
    assert card.rates.cache_write == usd("2.5") and card.rates.cache_write_12h == usd("5")
    assert card.tiers[0].rates.cache_write_12h == usd("10")
    # 1,000 ordinary at 2.5 and 1,000 for 12 hours at 5
    used = Quantities(prompt_tokens=2000, cache_write_tokens=2000, cache_write_12h_tokens=1000)
    assert price(card, used).cost_nanos == 2_500_000 + 5_000_000
    # Nobody knows what one costs elsewhere: no cost rather than too little.
    assert price(found(cards, "anthropic", "claude-opus-5"), used).unpriced_kinds == ("cache_write_12h",)


@pytest.mark.parametrize(
    ("provider", "model", "region", "factor"),
    [
        ("openai", "gpt-5.4", "eu", "1.1"),
        ("openai", "gpt-5.5-2026-04-23", "US", "1.1"),
        ("openai", "gpt-6-sol", "eu", "1.1"),
        ("openai", "gpt-5.2", "eu", "1"),  # Released before 2026-03-05.
        ("openai", "gpt-5.4", "eu-west-1", "1"),  # A place, not a data residency.
        ("openai", "gpt-5.4", None, "1"),
        ("azure", "gpt-4o", "eu", "1"),
        ("anthropic", "claude-opus-4-6", "us", "1.1"),
        ("anthropic", "claude-opus-4-6", "global", "1"),
        ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "us", "1"),
    ],
)
def test_what_is_processed_in_a_region_costs_more_only_where_that_is_known(
    cards: RateCards, provider: str, model: str, region: str | None, factor: str
) -> None:
    plain, there = found(cards, provider, model), found(cards, provider, model, region=region)
    assert plain.rates.input is not None and there.rates.input is not None
    assert Decimal(there.rates.input) == plain.rates.input * Decimal(factor)
    assert there.rates.web_search == plain.rates.web_search
    assert bool(there.rules) == (factor != "1" or bool(plain.rules))


def test_resold_batches_cost_half_by_a_rule_and_listed_ones_what_is_listed(cards: RateCards) -> None:
    azure = found(cards, "azure", "o4-mini", batch=True)
    assert azure.rates.input == usd("0.55") and azure.rules == ("azure batch@2026-11-22",)
    assert azure.notes == ()
    listed = found(cards, "openai", "gpt-5.4", batch=True)
    assert listed.rates.input == usd("1.25") and not listed.rules
    assert found(cards, "aws", "anthropic.claude-3-haiku-20240307-v1:0", batch=True).rules == ("aws batch@2026-11-22",)
    # Of others nobody says that batches are cheaper.
    together = found(cards, "together", "meta-llama/Llama-3.3-70B-Instruct-Turbo", batch=True)
    assert "batch_unknown" in together.notes and not together.rules


@pytest.mark.parametrize(
    ("clock", "input_rate"),
    [
        ("2026-11-20T02:00:00Z", "0.30"),  # Friday, peak
        ("2026-11-21T02:00:00Z", "0.15"),  # Saturday
        ("2026-11-22T09:59:59Z", "0.15"),  # Sunday
        ("2026-11-23T09:59:59Z", "0.30"),  # Monday, peak
        ("2026-11-23T12:00:00Z", "0.15"),  # Monday, off peak
    ],
)
def test_deepseek_is_off_peak_all_weekend(cards: RateCards, clock: str, input_rate: str) -> None:
    at = datetime.fromisoformat(clock)
    assert found(cards, "deepseek", "deepseek-v4-flash", at).rates.input == usd(input_rate)


def test_a_cache_read_of_codestral_has_its_price(cards: RateCards) -> None:
    card = found(cards, "mistral", "codestral-latest")
    assert card.rates.cache_read == usd("0.03") and card.rates.input == usd("0.3")
    assert card.rules == ("codestral-latest cache read@2026-11-22",)


def test_what_sources_disagree_about_is_flagged_and_not_changed(cards: RateCards) -> None:
    card = found(cards, "mistral", "mistral-large-latest")
    assert card.rates.input == usd("2") and "price_disputed" in card.warnings
    assert "price_disputed" not in found(cards, "mistral", "mistral-large-2411").notes


def test_retired_models_are_flagged(cards: RateCards) -> None:
    # 71 entries of the data, and aliases that are gone but still listed.
    assert "deprecated" in found(cards, "google", "gemini-2.0-flash").warnings
    assert "deprecated" in found(cards, "deepseek", "deepseek-chat").warnings
    assert "deprecated" not in found(cards, "deepseek", "deepseek-chat", datetime(2026, 7, 23, tzinfo=UTC)).notes


def test_an_operator_s_own_rules_come_over_the_corrections() -> None:
    cards = RateCards()
    before = cards.resolve("mistral", "mistral-large-latest", MONDAY)
    rule = PriceRule(
        name="ours",
        layer="operator",
        op="rates",
        provider="mistral",
        model="mistral-large-latest",
        rates={"input": "0.5", "output": "1.5"},
    )
    cards.use_rules([rule])
    card = found(cards, "mistral", "mistral-large-latest")

    assert before is not None and before.rates.input == usd("2")
    assert (card.source, card.rates.input, card.rules, card.notes) == ("operator-file", usd("0.5"), ("ours@file",), ())
    cards.use_rules([])
    assert cards.resolve("mistral", "mistral-large-latest", MONDAY) == before


@pytest.mark.parametrize(
    ("provider", "model", "guessed"),
    [
        ("anthropic", "claude-sonnet-4-5-FAKE", "claude-sonnet-4-5"),
        ("anthropic", "claude-sonnet-4-5", None),
        ("anthropic", "claude-sonnet-4-5-20250929", None),
        ("anthropic", "claude-3-5-haiku-latest", None),
        ("anthropic", "claude-3-5-haiku-latset", "claude-3-5-haiku-latest"),
        ("openai", "gpt-5.2-20251211", None),
        ("openai", "ft:gpt-4o-2024-08-06:acme::x", None),
        ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", None),
        ("google", "models/gemini-2.5-flash", None),
        ("vertex_ai", "publishers/anthropic/models/claude-sonnet-4-5@20250929", None),
        ("azure", "gpt-35-turbo", None),
    ],
)
def test_a_typing_error_is_priced_as_what_it_resembles_and_says_so(
    cards: RateCards, provider: str, model: str, guessed: str | None
) -> None:
    notes = [note for note in found(cards, provider, model).warnings if note.startswith("model_guessed")]
    assert notes == ([] if guessed is None else [f"model_guessed:{guessed}"])


def test_the_dearest_rates_of_a_provider_are_at_least_those_of_any_model(cards: RateCards) -> None:
    dearest = cards.dearest("OpenAI", MONDAY)
    assert dearest is not None and dearest.rates.input is not None and dearest.rates.output is not None
    for model in ("gpt-4o", "gpt-5.4", "o1-pro", "gpt-6-astra"):
        card = found(cards, "openai", model)
        assert (card.rates.input or 0) <= dearest.rates.input and (card.rates.output or 0) <= dearest.rates.output
    assert cards.dearest("nobody", MONDAY) is None
