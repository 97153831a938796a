"""``payloads/real_usage_payloads``: what providers sent, counted as another tool counts and priced as it prices.

Every price there is made again by the product's engine: from our counts where they are the same, and else from the
counts of that tool, so that its arithmetic is compared even where its reading of the payload is not ours.
"""

import json
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Literal, NamedTuple

import msgspec

from handlers.cost.price import Quantities, price
from handlers.payloads.normalise import normalise
from tests.cases.case import DATA, Result, Row, rows, short
from tests.cases.engine import card_of, nanos, not_carried, other_counts, same_counts, used_of

PAYLOADS = "payloads/real_usage_payloads.jsonl.gz"
RATES = "payloads/rates_2025-11-06.json"

# Where our counts or prices are not the other tool's, whose documentation says why.
MISTRAL = (
    "num_cached_tokens are cached tokens, billed at a tenth; the other tool does not read that field "
    "(Mistral, 'Prompt caching', docs.mistral.ai, read November 2026)"
)
COMPACTION = (
    "tokens of a compaction are billed and stand in usage.iterations only; the other tool leaves them out "
    "(Anthropic, 'Compaction', usage, October 2026: an additional sampling step that contributes to billing)"
)
VIDEO_TOKENS = (
    "video_tokens of the prompt are read here and not by the other tool; they cost what text costs on that model "
    "(OpenRouter, 'Usage accounting', prompt_tokens_details)"
)
AUDIO_AS_TEXT = (
    "the recorded rates lack audio, so audio was charged as text there; here it is unpriced, never guessed "
    "(OpenAI, 'Pricing', audio tokens of gpt-4o-audio-preview: 40 USD per million, not 2.5)"
)
NO_RATES = "recorded without any rate, at a cost of nought; here that is unpriced, never free (DESIGN, promise P5)"

Verdict = Literal["same", "other", "audio as text", "no rates", "cannot be carried"]


class Compared(NamedTuple):
    """One recorded price and what the engine makes of it."""

    verdict: Verdict
    told: str


def results() -> Iterator[Result]:
    """Every payload in order."""
    if not (DATA / RATES).exists():
        return
    rates: Row = json.loads((DATA / RATES).read_bytes())
    for number, row in enumerate(rows(PAYLOADS), 1):
        yield _result(f"{number}: {row['model']} ({short(row['recorded_from'])})", row, rates)


def prices() -> Counter[Verdict]:
    """The verdicts on every recorded price whose rates were recorded, too."""
    rates: Row = json.loads((DATA / RATES).read_bytes())
    return Counter(found.verdict for row in rows(PAYLOADS) for found in _compared(row, rates))


def _result(name: str, row: Row, rates: Row) -> Result:
    told = normalise(row["provider_hint"] or "", row["payload"])
    if {"total_mismatch", "subset_clamped"} & set(told.flags):
        return Result(name, "failed", f"flags {told.flags}")
    compared = {found.verdict: found.told for found in _compared(row, rates)}
    for wrong in ("other", "cannot be carried"):
        if wrong in compared:
            return Result(name, "failed", compared[wrong])
    if not any(same_counts(told, entry["usage"]) for entry in row["expected"]):
        if told.api == "mistral.chat" and "num_cached_tokens" in row["payload"]["usage"]:
            return Result(name, "differs", MISTRAL)
        if "compaction_added" in told.flags:
            return Result(name, "differs", COMPACTION)
        others = other_counts(told, row["expected"][0]["usage"])
        if told.api == "openrouter.chat" and others.keys() == {"input_video_tokens"}:
            return Result(name, "differs", VIDEO_TOKENS)
        return Result(name, "failed", f"counts (ours, theirs): {others}")
    if "audio as text" in compared:
        return Result(name, "differs", AUDIO_AS_TEXT)
    return Result(name, "differs", NO_RATES) if "no rates" in compared else Result(name, "passed")


def _compared(row: Row, rates: Row) -> Iterator[Compared]:
    told = normalise(row["provider_hint"] or "", row["payload"])
    for entry in row["expected"]:
        used = told.quantities if same_counts(told, entry["usage"]) else used_of(entry["usage"])
        for recorded in entry["prices"]:
            named = rates.get(f"{recorded['provider_id']}|{row['model']}")
            if named is not None and "input_price" in recorded:
                yield _compare(named["rates"], entry["usage"], used, recorded)


def _compare(rates: Row, usage: Row, used: Quantities, recorded: Row) -> Compared:
    card = card_of(rates)
    missing = not_carried(usage, rates)
    if card is None or missing:
        return Compared("cannot be carried", f"{missing or sorted(rates)}")
    # What was recorded leaves out searches and fees per request.
    found = price(card, msgspec.structs.replace(used, web_searches=0, requests=0))
    total = nanos(Decimal(recorded["input_price"]) + Decimal(recorded.get("output_price", "0")))
    if found.unpriced_kinds == ("audio_input",):
        return Compared("audio as text", "")
    if found.unpriced_kinds and not rates:
        return Compared("no rates", "")
    told = f"{recorded['provider_id']}: {found.cost_nanos} is not {total} nanos, unpriced {found.unpriced_kinds}"
    return Compared("same" if found.cost_nanos == total else "other", told)
