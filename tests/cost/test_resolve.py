"""Which card is in force: by name, date, hour and tier, without growing."""

import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from genai_prices.data_snapshot import get_snapshot

from handlers.cost.bundled import BundledPrices
from handlers.cost.layer import Answer, PriceQuery, Validity
from handlers.cost.price import Quantities, price
from handlers.cost.rate_card import RateCard, Rates
from handlers.cost.resolve import RateCards

BEDROCK_SONNET = "anthropic.claude-sonnet-4-5-20250929-v1:0"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def rate_cards() -> RateCards:
    cards = RateCards()
    cards.warm()
    return cards


def found(
    rate_cards: RateCards,
    provider: str,
    model: str,
    at: datetime = NOW,
    *,
    tier: str | None = None,
    batch: bool = False,
) -> RateCard:
    card = rate_cards.resolve(provider, model, at, service_tier=tier, batch=batch)
    assert card is not None, f"{provider}/{model}"
    return card


def test_a_card_says_where_it_comes_from(rate_cards: RateCards) -> None:
    card = found(rate_cards, "openai", "gpt-4o-2024-08-06")

    assert (card.provider, card.model, card.source, card.currency) == ("openai", "gpt-4o", "genai-prices", "USD")
    assert card.version.startswith("genai-prices 0.2.")
    assert len(card.version.rpartition("+")[2]) == 8
    assert card.rates.input == 2_500_000_000
    assert card.rates.web_search == 10_000_000_000_000
    assert card.context_window == 128_000


@pytest.mark.parametrize(
    ("provider", "model", "canonical"),
    [
        ("google", "models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("azure", "azure/gpt-4o", "gpt-4o"),
        ("  OpenAI ", " gpt-4o ", "gpt-4o"),
        ("anthropic", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("vertex_ai", "claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        (
            "bedrock",
            "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "regional.anthropic.claude-sonnet-4-5-20250929-v1:0",
        ),
        ("litellm", "azure/gpt-4o", "gpt-4o"),
        # A card's own model name, where the data's matcher does not know it.
        ("aws", f"regional.{BEDROCK_SONNET}", f"regional.{BEDROCK_SONNET}"),
    ],
)
def test_spellings_resolve_to_the_canonical_model(
    rate_cards: RateCards, provider: str, model: str, canonical: str
) -> None:
    assert found(rate_cards, provider, model).model == canonical


@pytest.mark.parametrize(
    ("spelling", "provider", "model"),
    [
        ("az.ai.openai", "azure", "gpt-4o"),
        ("azure_openai", "azure", "gpt-4o"),
        ("vertex_ai", "google", "gemini-2.5-flash"),
        ("amazon-bedrock", "aws", "amazon.nova-lite-v1:0"),
        ("xai", "x-ai", "grok-4.3"),
    ],
)
def test_other_tools_names_of_a_provider_resolve(
    rate_cards: RateCards, spelling: str, provider: str, model: str
) -> None:
    assert found(rate_cards, spelling, model).provider == provider


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-99"),
        ("ollama", "llama3"),
        ("", "gpt-4o"),
        ("openai", ""),
        ("openai", "x" * 300),
        # Priced by the second, the page or not at all: a token count says nothing about their cost.
        ("openai", "whisper-1"),
        ("mistral", "mistral-ocr-2503"),
        ("github-copilot", "gpt-4o"),
    ],
)
def test_what_is_not_priced_is_none_and_never_nought(rate_cards: RateCards, provider: str, model: str) -> None:
    assert rate_cards.resolve(provider, model, NOW) is None


@pytest.mark.parametrize("order", [("2025-05-01", "2025-07-01"), ("2025-07-01", "2025-05-01")])
def test_a_dated_price_is_the_one_of_its_day_in_any_order(order: tuple[str, str]) -> None:
    rate_cards = RateCards()
    # 1M + 1M: 10 + 40 = 50 USD before June 2025, 2 + 8 = 10 USD after
    expected = {"2025-05-01": 50, "2025-07-01": 10}

    for _ in range(2):
        for day in order:
            card = found(rate_cards, "openai", "o3", datetime.fromisoformat(f"{day}T00:00:00Z"))
            assert price(card, Quantities(1_000_000, 1_000_000)).cost_nanos == expected[day] * 10**9


@pytest.mark.parametrize(
    ("clock", "input_rate"),
    # 2026-11-23, a Monday, USD per million: 0.15 off peak, 0.30 from 01:00 to 04:00 and from 06:00 to 10:00 UTC
    [
        ("00:59:59", 150_000_000),
        ("01:00:00", 300_000_000),
        ("03:59:59.999999", 300_000_000),
        ("04:00:00", 150_000_000),
        ("06:00:00", 300_000_000),
        ("10:00:00", 150_000_000),
        ("23:59:59", 150_000_000),
    ],
)
def test_a_daily_window_opens_and_closes_to_the_second(rate_cards: RateCards, clock: str, input_rate: int) -> None:
    at = datetime.fromisoformat(f"2026-11-23T{clock}Z")

    assert found(rate_cards, "deepseek", "deepseek-v4-flash", at).rates.input == input_rate


def test_cached_answers_equal_fresh_ones_over_a_day_of_windows() -> None:
    cached, models = RateCards(), ("deepseek-chat", "deepseek-v4-flash", "deepseek-v4-pro")

    for minute in range(0, 3 * 24 * 60, 15):
        at = datetime(2026, 11, 20, tzinfo=UTC) + timedelta(minutes=minute)
        for model in models:
            assert cached.resolve("deepseek", model, at) == RateCards().resolve("deepseek", model, at)


def test_the_offset_of_a_time_does_not_matter(rate_cards: RateCards) -> None:
    at = datetime(2026, 11, 22, 3, tzinfo=UTC)
    shifted = at.astimezone(timezone(timedelta(hours=9)))

    assert rate_cards.resolve("deepseek", "deepseek-v4-flash", at) == RateCards().resolve(
        "deepseek", "deepseek-v4-flash", shifted
    )
    with pytest.raises(ValueError, match="offset"):
        rate_cards.resolve("openai", "gpt-4o", at.replace(tzinfo=None))


def test_service_tiers_and_batches_have_their_own_rates(rate_cards: RateCards) -> None:
    # gpt-5.4 at 2026-11-22, input per million: standard 2.5, flex and batch 1.25, priority 5
    def input_rate(tier: str | None = None, *, batch: bool = False) -> int | None:
        return found(rate_cards, "openai", "gpt-5.4", tier=tier, batch=batch).rates.input

    assert input_rate() == input_rate("standard") == input_rate("default") == input_rate("auto") == 2_500_000_000
    assert input_rate("flex") == input_rate(batch=True) == input_rate("batch") == 1_250_000_000
    assert input_rate("priority") == 5_000_000_000
    assert found(rate_cards, "anthropic", "claude-opus-5", tier="fast").rates.input == 10_000_000_000


def test_a_tier_without_rates_of_its_own_is_noted_at_the_standard_rate(rate_cards: RateCards) -> None:
    card = found(rate_cards, "openai", "gpt-5.4", tier="platinum")

    assert "service_tier_unknown" in card.notes
    assert card.rates == found(rate_cards, "openai", "gpt-5.4").rates


def test_resold_batches_cost_half_where_the_data_has_no_batch_rates(rate_cards: RateCards) -> None:
    bedrock = "anthropic.claude-3-haiku-20240307-v1:0"
    standard, batch = found(rate_cards, "aws", bedrock), found(rate_cards, "aws", bedrock, batch=True)

    assert batch.rules == ("aws batch@2026-11-22",)
    assert not batch.notes
    assert standard.rates.output is not None
    assert batch.rates.output == standard.rates.output // 2
    assert found(rate_cards, "azure", "gpt-4o", batch=True).rates.input == 1_250_000_000
    # Not known to sell batches cheaper: the standard rates, and it says so.
    unknown = found(rate_cards, "together", "meta-llama/Llama-3.3-70B-Instruct-Turbo", batch=True)
    assert "batch_unknown" in unknown.notes


def test_twenty_thousand_model_names_do_not_grow_any_cache() -> None:
    rate_cards = RateCards(cached_names_max=100)
    snapshot = get_snapshot()
    before = (len(snapshot._lookup_cache), len(snapshot._provider_cache), len(snapshot._provider_misses))  # pyright: ignore

    for number in range(10_000):
        assert rate_cards.resolve("openai", f"gpt-99-{number}", NOW) is None
        assert rate_cards.resolve("anthropic", f"claude-sonnet-4-5-{number}", NOW) is not None

    assert len(rate_cards._answers) == 100  # pyright: ignore[reportPrivateUsage]
    assert before == (len(snapshot._lookup_cache), len(snapshot._provider_cache), len(snapshot._provider_misses))  # pyright: ignore


def test_one_name_keeps_a_bounded_number_of_answers() -> None:
    rate_cards = RateCards()

    for day in range(60):
        rate_cards.resolve("deepseek", "deepseek-v4-flash", NOW - timedelta(days=day))

    assert max(map(len, rate_cards._answers._kept.values())) <= 8  # pyright: ignore[reportPrivateUsage]


def _contract(query: PriceQuery) -> Answer | None:
    if query.model != "gpt-4o":
        return None
    year = Validity(datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    if not year.covers(query.at):
        return Answer(None, Validity(year.until, datetime.max.replace(tzinfo=UTC)))
    rates = Rates(input=1, output=2)
    return Answer(RateCard(provider="openai", model="gpt-4o", source="contract", version="7", rates=rates), year)


def test_the_first_layer_that_prices_a_model_wins_while_it_does() -> None:
    rate_cards = RateCards((_contract, BundledPrices()))

    assert found(rate_cards, "openai", "gpt-4o").source == "contract"
    assert found(rate_cards, "openai", "gpt-4o-mini").source == "genai-prices"
    assert found(rate_cards, "openai", "gpt-4o", datetime(2027, 1, 1, tzinfo=UTC)).source == "genai-prices"
    assert found(rate_cards, "openai", "gpt-4o", datetime(2026, 12, 31, tzinfo=UTC)).source == "contract"


def test_a_changed_layer_is_asked_again_after_forget() -> None:
    answers = [None, Rates(input=1, output=1)]

    def changing(query: PriceQuery) -> Answer:
        rates = answers[0]
        card = rates and RateCard(provider="p", model=query.model, source="s", version="1", rates=rates)
        return Answer(card)

    rate_cards = RateCards((changing,))

    assert rate_cards.resolve("p", "m", NOW) is None
    answers.reverse()
    assert rate_cards.resolve("p", "m", NOW) is None
    rate_cards.forget()
    assert rate_cards.resolve("p", "m", NOW) is not None


def test_warming_in_a_thread_is_enough() -> None:
    rate_cards = RateCards()
    thread = threading.Thread(target=rate_cards.warm)
    thread.start()
    thread.join()

    assert rate_cards.context_window("openai", "gpt-4o", NOW) == 128_000
    assert rate_cards.context_window("openai", "gpt-99", NOW) is None
