"""Prices and payloads recorded elsewhere: what providers really sent, and what other tools made of it."""

import csv
import gzip
import io
from collections import Counter
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from handlers.cost.bundled import PRICE_KEYS
from handlers.cost.price import Quantities, price
from handlers.cost.rate_card import RateCard, RateError, Rates, Tier, rate_nanos
from handlers.cost.resolve import RateCards
from handlers.tracker.normalise import Normalised, normalise
from schemas.money import format_cost

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the recorded data is not beside the repository")

Row = dict[str, Any]
USAGE_KEYS = {
    "input_tokens": "prompt_tokens",
    "output_tokens": "completion_tokens",
    "cache_read_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "cache_write_1h_tokens": "cache_write_1h_tokens",
    "output_reasoning_tokens": "reasoning_tokens",
    "input_audio_tokens": "audio_input_tokens",
    "output_audio_tokens": "audio_output_tokens",
    "cache_audio_read_tokens": "audio_cache_read_tokens",
    "web_searches": "web_searches",
}
# Parts that change no cost here: they say again what the totals and the other parts say.
REDUNDANT = {
    "cache_write_5m_tokens",
    "input_text_tokens",
    "output_text_tokens",
    "cache_text_read_tokens",
    "input_tool_tokens",
}


def rows(path: str) -> list[Row]:
    raw = (DATA / path).read_bytes()
    lines = (gzip.decompress(raw) if path.endswith(".gz") else raw).splitlines()
    return [msgspec.json.decode(line) for line in lines]


def recorded_card(rates: Row) -> RateCard | None:
    """A card of recorded rates; None if they hold a unit no usage event carries."""
    kinds = {key: (kind, scale) for kind, (key, scale) in PRICE_KEYS.items()}
    if not rates.keys() <= kinds.keys():
        return None
    tiered = [cast("Row", rate) for rate in rates.values() if isinstance(rate, dict)]
    starts = sorted({int(tier["start"]) for rate in tiered for tier in rate["tiers"]})

    def above(start: int) -> Rates:
        flat = {kinds[key][0]: rate_nanos(_at(rate, start) * kinds[key][1]) for key, rate in rates.items()}
        return Rates(**flat)

    tiers = tuple(Tier(start, above(start)) for start in starts)
    return RateCard(provider="p", model="m", source="recorded", version="1", rates=above(-1), tiers=tiers)


def _at(rate: str | Row, start: int) -> Decimal:
    if isinstance(rate, str):
        return Decimal(rate)
    prices = [tier["price"] for tier in rate["tiers"] if tier["start"] <= start]
    return Decimal(prices[-1] if prices else rate["base"])


def recorded_use(usage: Row) -> Quantities | None:
    """Our counts of a recorded usage; None if it counts something we do not, or parts of a token."""
    if not usage.keys() <= USAGE_KEYS.keys() | REDUNDANT or any(count != int(count) for count in usage.values()):
        return None
    return Quantities(**{USAGE_KEYS[key]: int(value) for key, value in usage.items() if key in USAGE_KEYS})


def nanos(amount: Decimal) -> int:
    return int((amount * 10**9).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def same_counts(told: Normalised, usage: Row) -> bool:
    ours = {theirs: getattr(told.quantities, name) for theirs, name in USAGE_KEYS.items()}
    return all(count == usage.get(key, 0) for key, count in ours.items())


def test_the_azure_trace_priced_call_by_call_sums_exactly() -> None:
    # 18,059,974 x 2.5 + 245,896 x 10 millionths = 45.149935 + 2.45896
    card = RateCards().resolve("azure", "gpt-4o", datetime(2026, 11, 22, tzinfo=UTC))
    assert card is not None
    with gzip.open(DATA / "traces" / "azure_llm_2023_code.csv.gz", "rt") as file:
        calls = [
            (int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(io.StringIO(file.read()))
        ]

    costs = [price(card, Quantities(prompt, output)).cost_nanos or 0 for prompt, output in calls]

    assert len(calls) == 8819
    assert (sum(prompt for prompt, _ in calls), sum(output for _, output in calls)) == (18_059_974, 245_896)
    assert format_cost(sum(costs)) == "47.608895"


def test_every_recorded_payload_normalises_as_its_provider_counts() -> None:
    other = Counter[str]()
    for row in rows("payloads/real_usage_payloads.jsonl.gz"):
        told = normalise(row["provider_hint"] or "", row["payload"])
        assert not {"total_mismatch", "subset_clamped"} & set(told.flags), row
        if not any(same_counts(told, expected["usage"]) for expected in row["expected"]):
            other[told.api] += 1

    # Mistral's older field for cached tokens, which the other tool does not read.
    assert other == {"mistral.chat": 23}


def test_recorded_payloads_cost_what_was_recorded_with_the_rates_of_the_day() -> None:
    rates = msgspec.json.decode((DATA / "payloads" / "rates_2025-11-06.json").read_bytes())
    compared = Counter[str]()
    for row in rows("payloads/real_usage_payloads.jsonl.gz"):
        told = normalise(row["provider_hint"] or "", row["payload"])
        for expected in row["expected"]:
            if not same_counts(told, expected["usage"]):
                continue
            for recorded in expected["prices"]:
                named = rates.get(f"{recorded['provider_id']}|{row['model']}")
                if named is None or "input_price" not in recorded:
                    continue
                compared[_compare(named["rates"], told.quantities, recorded)] += 1

    # Left out: rates of units no usage event carries; audio on a card without an audio rate, which is charged there
    # as text; two models recorded without any rate, at a cost of nought.
    assert compared["same"] >= 1388, compared
    left_out = {"unit unknown here", "unpriced ('audio_input',)", "unpriced ('input', 'output')"}
    assert set(compared) <= {"same", *left_out}, compared
    assert sum(compared[reason] for reason in left_out) <= 11, compared


def _compare(rates: Row, used: Quantities, recorded: Row) -> str:
    card = recorded_card(rates)
    if card is None:
        return "unit unknown here"
    # What was recorded leaves out searches and fees per request.
    tokens_only = msgspec.structs.replace(used, web_searches=0, requests=0)
    priced = price(card, tokens_only)
    total = Decimal(recorded["input_price"]) + Decimal(recorded.get("output_price", "0"))
    if priced.unpriced_kinds:
        return f"unpriced {priced.unpriced_kinds}"
    return "same" if priced.cost_nanos == nanos(total) else f"{priced.cost_nanos} is not {nanos(total)}"


def test_other_tools_cost_cases_come_out_the_same() -> None:
    seen = Counter[str]()
    for case in rows("cost/cost_cases.jsonl"):
        outcome = _case(case)
        seen[outcome] += 1

    assert seen["same"] >= 62, seen
    # Left out: images, video, durations, pages and citations; prices given by text; usages priced there at nought or
    # as text, which are unpriced here; and one that is refused there for want of a rate for cached audio, which is
    # charged as audio here.
    left_out = {"refused", "no such unit", "no rates and usage", "unpriced here", "charged here"}
    assert set(seen) <= {"same", *left_out}, seen
    assert seen["refused"] >= 7, seen
    assert seen["unpriced here"] <= 3, seen
    assert seen["charged here"] <= 1, seen


def _case(case: Row) -> str:
    if "rates" not in case or "usage" not in case:
        return "no rates and usage"
    used = recorded_use(case["usage"])
    try:
        card = recorded_card(case["rates"])
        if used is None or card is None:
            return "no such unit"
        if "total_price" not in case.get("expected", {}) and "expected_error" not in case:
            return "no rates and usage"
        priced = price(card, used)
    except (RateError, ValueError):
        assert "expected_error" in case, case
        return "refused"
    if priced.unpriced_kinds:
        return "unpriced here"
    if "expected_error" in case:
        return "charged here"
    expected = nanos(Decimal(case["expected"]["total_price"]))
    return "same" if priced.cost_nanos == expected else f"{priced.cost_nanos} is not {expected}: {case['source']}"


def test_recorded_spellings_find_the_recorded_model() -> None:
    rate_cards = RateCards()
    at = datetime(2026, 11, 22, tzinfo=UTC)
    checked = 0
    for case in rows("cost/model_name_cases.jsonl"):
        if "model_id" not in case["expected"]:
            continue
        card = rate_cards.resolve(case["provider_id"], case["model_ref"], at)
        assert card is not None, case
        assert (card.provider, card.model) == (case["expected"]["provider_id"], case["expected"]["model_id"])
        checked += 1

    assert checked >= 20
