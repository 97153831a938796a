"""Recorded rates and usages in the product's own words: price rules applied by its rules, counts as it counts."""

from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, cast

import msgspec

from handlers.cost.bundled import PRICE_KEYS
from handlers.cost.layer import Answer, PriceQuery
from handlers.cost.price import Quantities
from handlers.cost.rate_card import RateCard
from handlers.cost.rules import Rules, compiled
from handlers.payloads.normalise import Normalised
from schemas.pricing import PriceRule
from tests.cases.case import Row

KINDS = {key: (kind, scale) for kind, (key, scale) in PRICE_KEYS.items()}
COUNTS = {
    "input_tokens": "prompt_tokens",
    "output_tokens": "completion_tokens",
    "cache_read_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "cache_write_1h_tokens": "cache_write_1h_tokens",
    "output_reasoning_tokens": "reasoning_tokens",
    "input_audio_tokens": "audio_input_tokens",
    "output_audio_tokens": "audio_output_tokens",
    "cache_audio_read_tokens": "audio_cache_read_tokens",
    "input_image_tokens": "image_input_tokens",
    "output_image_tokens": "image_output_tokens",
    "input_video_tokens": "video_input_tokens",
    "web_searches": "web_searches",
}
# Parts that say again what the totals and the other parts say: they change no cost.
REDUNDANT = frozenset({
    *("cache_write_5m_tokens", "input_text_tokens", "output_text_tokens", "cache_text_read_tokens"),
    *("input_tool_tokens", "input_text_tool_tokens"),
})  # fmt: skip
# Cached images and video cost what cached text costs, unless images or video have rates of their own.
CACHED_SEEN = frozenset({"cache_image_read_tokens", "cache_video_read_tokens"})
SEEN_RATES = frozenset({"input_image_mtok", "input_video_mtok", "cache_image_read_mtok", "cache_video_read_mtok"})
_QUERY = PriceQuery("recorded", "recorded", "", False, datetime(2025, 11, 6, 12, tzinfo=UTC))


def card_of(rates: Row) -> RateCard | None:
    """The card of recorded rates, as a price rule makes it; None if a unit is priced that no event carries.

    Raises ValueError where a rate is none.
    """
    if not rates.keys() <= KINDS.keys():
        return None
    rule = PriceRule(name="recorded", layer="operator", op="rates", provider="recorded", model="recorded")
    tiered = {key: cast("Row", rate) for key, rate in rates.items() if isinstance(rate, dict)}
    starts = sorted({int(tier["start"]) for rate in tiered.values() for tier in rate["tiers"]})
    tiers = [
        {
            "above_prompt_tokens": start,
            "rates": {KINDS[key][0]: _stated(key, _at(rate, start)) for key, rate in tiered.items()},
        }
        for start in starts
    ]
    base = {KINDS[key][0]: _stated(key, _at(rate, -1)) for key, rate in rates.items()}
    stated = msgspec.convert({**msgspec.to_builtins(rule), "rates": base, "tiers": tiers}, PriceRule)
    answer = Rules("operator", [compiled(stated, version=1)]).apply(_QUERY, Answer(None))
    assert answer.card is not None, "a rule that states rates makes a card"
    return answer.card


def _at(rate: str | Row, start: int) -> str:
    if isinstance(rate, str):
        return rate
    prices = [str(tier["price"]) for tier in rate["tiers"] if tier["start"] <= start]
    return prices[-1] if prices else str(rate["base"])


def _stated(key: str, rate: str) -> str:
    scale = KINDS[key][1]
    return rate if scale == 1 else str(Decimal(rate) * scale)


def not_carried(usage: Row, rates: Row) -> list[str]:
    """The counts of a recorded usage that bear on the cost and that no event carries, or that are no whole numbers."""
    known = {*COUNTS, *REDUNDANT, *(() if SEEN_RATES & rates.keys() else CACHED_SEEN)}
    unknown = [key for key, count in usage.items() if count and key not in known]
    return unknown + [key for key, count in usage.items() if key in COUNTS and count != int(count)]


def used_of(usage: Row) -> Quantities:
    """A recorded usage in our counts."""
    return Quantities(**{COUNTS[key]: int(value) for key, value in usage.items() if key in COUNTS})


def same_counts(told: Normalised, usage: Row) -> bool:
    """Whether every count that both know is the same."""
    return not other_counts(told, usage)


def other_counts(told: Normalised, usage: Row) -> dict[str, tuple[int, Any]]:
    """The counts that are not the same: ours and theirs."""
    ours = {theirs: getattr(told.quantities, name) for theirs, name in COUNTS.items()}
    return {key: (count, usage.get(key, 0)) for key, count in ours.items() if count != usage.get(key, 0)}


def nanos(amount: str | Decimal) -> int:
    """Nanos of an amount, rounded half-even as a cost is."""
    return int((Decimal(amount) * 10**9).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))
