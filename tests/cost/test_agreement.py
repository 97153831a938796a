"""Our arithmetic against genai-prices' own, on random usages. Same data, two calculations, no difference allowed."""

import random
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot

from handlers.cost.bundled import PRICE_KEYS
from handlers.cost.price import Quantities, price
from handlers.cost.rate_card import RateCard
from handlers.cost.resolve import RateCards

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
MODELS = [
    ("openai", "gpt-4o"),
    ("openai", "gpt-5.4"),  # tier above 272,000
    ("openai", "gpt-5.6-sol"),  # tier and cache writes
    ("openai", "o3"),
    ("anthropic", "claude-sonnet-4-5"),  # tier above 200,000, hour-long writes
    ("anthropic", "claude-opus-5"),
    ("anthropic", "claude-haiku-5-5"),  # tier above 100,000
    ("google", "gemini-2.5-pro"),  # tier above 200,000
    ("google", "gemini-2.5-flash"),  # audio and cached audio
    ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    ("azure", "gpt-4o"),
    ("deepseek", "deepseek-v4-flash"),
    ("x-ai", "grok-4.3"),
    ("mistral", "mistral-large-2512"),
    ("perplexity", "sonar-deep-research"),  # reasoning at its own rate
    ("perplexity", "sonar-pro"),  # a fee per request
    ("groq", "openai/gpt-oss-120b"),
]
THRESHOLDS = (100_000, 128_000, 200_000, 272_000)


def theirs(provider: str, model: str, used: Quantities, *, context: dict[str, str] | None = None) -> int:
    reported: dict[str, Any] = {
        "input_tokens": used.prompt_tokens,
        "output_tokens": used.completion_tokens,
        "cache_read_tokens": used.cache_read_tokens,
        "cache_write_tokens": used.cache_write_tokens,
        "cache_write_1h_tokens": used.cache_write_1h_tokens,
        "output_reasoning_tokens": used.reasoning_tokens,
        "input_audio_tokens": used.audio_input_tokens,
        "output_audio_tokens": used.audio_output_tokens,
        "cache_audio_read_tokens": used.audio_cache_read_tokens,
        "web_searches": used.web_searches,
    }
    total = calc_price(
        Usage(**reported), model, provider_id=provider, genai_request_timestamp=NOW, price_context=context
    ).total_price
    return int((total * 10**9).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def usages(card: RateCard, dice: random.Random) -> Iterator[Quantities]:
    """Random usages of what the card prices. Without a rate for audio or searches theirs is nought, ours unpriced."""
    rates = card.rates
    while True:
        prompt = dice.choice(
            (dice.randint(0, 3000), dice.randint(0, 400_000), dice.choice(THRESHOLDS) + dice.randint(-1, 1))
        )
        output = dice.randint(0, 9000) if rates.output is not None else 0
        read = dice.randint(0, prompt)
        write = dice.randint(0, prompt - read)
        # An hour-long write without a rate: theirs and ours are both the ordinary write.
        hour = dice.randint(0, write)
        reasoning = dice.randint(0, output)
        audio = dice.randint(0, prompt - read - write) if rates.audio_input is not None else 0
        # Cached audio without a rate is cached text there and audio here.
        both = dice.randint(0, min(read, 500)) if rates.audio_cache_read is not None else 0
        spoken = dice.randint(0, output - reasoning) if rates.audio_output is not None else 0
        searches = dice.randint(0, 3) if rates.web_search is not None else 0
        yield Quantities(prompt, output, read, write, hour, reasoning, audio + both, spoken, searches, both)


@pytest.mark.parametrize(("provider", "model"), MODELS)
def test_three_hundred_random_usages_cost_the_same(provider: str, model: str) -> None:
    card = RateCards().resolve(provider, model, NOW)
    assert card is not None
    dice = random.Random(zlib.crc32(f"{provider}/{model}".encode()))

    for _, used in zip(range(300), usages(card, dice), strict=False):
        assert price(card, used).cost_nanos == theirs(provider, model, used), used


@pytest.mark.parametrize(
    ("model", "tier", "batch", "context"),
    [
        ("gpt-5.4", "flex", False, {"service_tier": "flex"}),
        ("gpt-5.4", "priority", False, {"service_tier": "priority"}),
        ("gpt-5.4", None, True, {"processing": "batch"}),
        ("gpt-4o", None, True, {"processing": "batch"}),
    ],
)
def test_tiers_and_batches_cost_the_same(model: str, tier: str | None, batch: bool, context: dict[str, str]) -> None:
    card = RateCards().resolve("openai", model, NOW, service_tier=tier, batch=batch)
    assert card is not None

    for _, used in zip(range(100), usages(card, random.Random(7)), strict=False):
        assert price(card, used).cost_nanos == theirs("openai", model, used, context=context), used


def test_every_bundled_model_costs_the_same() -> None:
    """One long and one short call of every model of every provider; what is left out is counted."""
    dice = random.Random(11)
    rate_cards = RateCards(cached_names_max=1)
    compared, unpriced, foreign, artefacts = 0, 0, 0, 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            card = rate_cards.resolve(provider.id, model.id, NOW)
            if card is None:
                unpriced += 1
                continue
            if provider.find_model(model.id) is not model or card.rates.input is None:
                # There its own id finds another model or none, or it is priced by output alone.
                foreign += 1
                continue
            if not _exact(model.get_prices(NOW)):
                artefacts += 1
                continue
            for _, used in zip(range(2), usages(card, dice), strict=False):
                assert price(card, used).cost_nanos == theirs(provider.id, model.id, used), (
                    provider.id,
                    model.id,
                    used,
                )
                compared += 1
    print(compared, unpriced, foreign, artefacts)
    assert compared > 4000
    # 161 ":free" names and 18 more without any rate, 26 priced by the hour, page or character alone.
    assert unpriced < 250
    assert foreign < 150
    assert artefacts < 60


def _exact(prices: Any) -> bool:
    values = [prices.__dict__.get(key) for key, _ in PRICE_KEYS.values()]
    flat = [value for value in values if isinstance(value, Decimal)]
    tiers = [value for value in values if value is not None and not isinstance(value, Decimal)]
    flat += [amount for tiered in tiers for amount in (tiered.base, *(tier.price for tier in tiered.tiers))]
    return all(value * 10**9 == int(value * 10**9) for value in flat)
