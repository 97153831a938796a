"""Number 11: what it takes to price one event, beside the library whose list prices are used."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from genai_prices import Usage, calc_price

from bench.figures import median, ratio, spread, table
from bench.sizes import Sizes
from handlers.context import Limits
from handlers.cost.org_prices import OrgPrices, Prices
from handlers.cost.price import Quantities, price
from handlers.cost.price_book import PriceBook
from handlers.cost.resolve import RateCards
from handlers.tracker.priced import priced
from schemas.pricing import PriceRule, VolumeTier
from schemas.usage import UsageEvent
from store.prices import PriceRuleRow

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
# As many orders of one call as a second of traffic has: times differ, names repeat.
ROUND = 2_000
CALLS = (
    ("openai", "gpt-4o", Quantities(prompt_tokens=2_006, completion_tokens=300, cache_read_tokens=1_920)),
    (
        "anthropic",
        "claude-sonnet-4-5",
        Quantities(
            prompt_tokens=2_627,
            completion_tokens=97,
            cache_read_tokens=2_000,
            cache_write_tokens=123,
            cache_write_1h_tokens=23,
            web_searches=2,
        ),
    ),
)
DISCOUNT = PriceRule(name="discount", layer="contract", op="multiply", factor="0.85")
VOLUME = PriceRule(name="volume", layer="contract", op="volume", volume=(VolumeTier(above="1000", factor="0.9"),))
_READ = msgspec.json.Decoder(UsageEvent).decode


async def measure(folder: Path, sizes: Sizes) -> str:
    """A Markdown section."""
    cards = RateCards()
    orgs = (
        ("list price", OrgPrices(cards)),
        ("contract: list and net", _org(cards, DISCOUNT)),
        ("contract and volume tiers", _org(cards, DISCOUNT, VOLUME)),
        ("beside 2,000 rules for other models", _org(cards, DISCOUNT, *_others(2_000))),
    )
    rows: list[list[str]] = []
    for provider, model, used in CALLS:
        theirs = [_per_call_us(_library(provider, model, used)) for _ in range(sizes.runs)]
        rows.append([f"{model}: genai_prices.calc_price", spread(theirs, 1), "1.00x"])
        for name, prices in orgs:
            ours = [_per_call_us(_engine(prices, provider, model, used)) for _ in range(sizes.runs)]
            rows.append([f"{model}: {name}", spread(ours, 1), ratio(median(ours), median(theirs))])
        whole = [_per_call_us(_intake(orgs[1][1], provider, model)) for _ in range(sizes.runs)]
        rows.append([f"{model}: decoded, counted, priced, as it is stored", spread(whole, 1), "-"])
    return (
        "### 11. Price calculation per event\n\nThe rate card is found for the time of the call and every line item is"
        " worked out; the library makes one sum. Aim: at most 5 µs at list price.\n\n"
        + table(("", "µs, median (low-high)", "of the library's"), rows)
    )


def _org(cards: RateCards, *rules: PriceRule) -> OrgPrices:
    rows = [
        PriceRuleRow(
            org_id="bench",
            name=rule.name,
            version=1,
            rule_id=rule.name,
            layer=rule.layer,
            definition=msgspec.to_builtins(rule),
            valid_from=None,
            valid_to=None,
            created_at=AT,
            created_by="bench",
        )
        for rule in rules
    ]
    return OrgPrices(cards, PriceBook(rows, changes=1))


def _others(count: int) -> list[PriceRule]:
    return [
        PriceRule(
            name=f"other-{i}", layer="contract", op="multiply", provider="openai", model=f"other-{i}*", factor="2"
        )
        for i in range(count)
    ]


def _engine(prices: Prices, provider: str, model: str, used: Quantities) -> Callable[[datetime], object]:
    def once(at: datetime) -> object:
        card = prices.resolve(provider, model, at)
        assert card is not None
        return price(card, used)

    return once


def _library(provider: str, model: str, used: Quantities) -> Callable[[datetime], object]:
    usage = Usage(
        input_tokens=used.prompt_tokens,
        output_tokens=used.completion_tokens,
        cache_read_tokens=used.cache_read_tokens,
        cache_write_tokens=used.cache_write_tokens,
    )

    def once(at: datetime) -> object:
        return calc_price(usage, model, provider_id=provider, genai_request_timestamp=at)

    return once


def _intake(prices: Prices, provider: str, model: str) -> Callable[[datetime], object]:
    text = msgspec.json.encode(
        {"provider": provider, "model": model, "prompt_tokens": 2_006, "completion_tokens": 300, "user_id": "u1"}
    )
    limits = Limits()

    def once(at: datetime) -> object:
        return priced(_READ(text), org="bench", event_id="e", arrived_at=at, cards=prices, limits=limits)

    return once


def _per_call_us(once: Callable[[datetime], object]) -> float:
    times = [AT + timedelta(milliseconds=i) for i in range(ROUND)]
    once(AT)
    began = time.perf_counter()
    for at in times:
        once(at)
    return (time.perf_counter() - began) / ROUND * 1e6
