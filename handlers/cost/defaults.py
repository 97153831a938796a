"""Corrections that every org has: what the list prices leave out or state wrongly, as rules of the operator's layer.

Each says where it is from and when that was read. What sources disagree about is not corrected but flagged: the list
price stands, and the card says ``price_disputed``. Models that are gone but still priced are flagged ``deprecated``.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Final

from handlers.cost.layer import ALWAYS, Validity
from handlers.cost.rules import Rule, Rules, compiled, noting
from schemas.pricing import DailyWindow, PriceRule, RateKind

LAYER: Final = "defaults"
# The version of each: the day the sources were read.
VERSION: Final = "2026-11-22"
_TOKENS: Final[tuple[RateKind, ...]] = (
    "input",
    "output",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "cache_write_12h",
    "reasoning",
    "audio_input",
    "audio_cache_read",
    "audio_output",
    "image_input",
    "image_output",
    "video_input",
)
# Released on or after 2026-03-05.
_OPENAI_UPLIFTED: Final = ("gpt-5.4*", "gpt-5.5*", "gpt-5.6*", "gpt-6*")
_OPENAI_RESIDENCY: Final = (
    "OpenAI pricing and data residency guide, read 2026-11-22: endpoints of a region cost 10 % more for models "
    "released on or after 2026-03-05"
)
_ANTHROPIC_GEO: Final = (
    "Anthropic data residency documentation, read 2026-11-22: inference_geo 'us' costs 1.1 times all token prices, "
    "Claude Opus 4.6, Sonnet 4.6 and later (earlier models refuse it)"
)
_HALF_DAY: Final = "OpenAI prompt caching, read 2026-11-22: a 12 hour cache write costs twice the ordinary write"
_BATCH: Final = "{} batch pricing, read 2026-11-22: half the price of every token; the list prices state no batch rates"
_OFF_PEAK: Final = (
    "DeepSeek pricing, read 2026-11-22: off-peak (half the price) is also the whole weekend; the list prices know the "
    "daily hours only"
)
_CODESTRAL: Final = (
    "Mistral pricing, read 2026-11-22: codestral-latest reads its cache at 0.03; left out of the list prices"
)


def _uplift(name: str, provider: str, model: str, region: str, source: str) -> PriceRule:
    return PriceRule(
        name=name,
        layer="operator",
        op="multiply",
        provider=provider,
        model=model,
        kinds=_TOKENS,
        region=region,
        factor="1.1",
        source=source,
    )


def _half_batch(provider: str, vendor: str) -> PriceRule:
    return PriceRule(
        name=f"{provider} batch",
        layer="operator",
        op="multiply",
        provider=provider,
        kinds=_TOKENS,
        batch=True,
        factor="0.5",
        source=_BATCH.format(vendor),
    )


def _weekend(model: str, since: datetime, start: str, end: str) -> PriceRule:
    return PriceRule(
        name=f"{model} weekend {start}-{end}",
        layer="operator",
        op="multiply",
        provider="deepseek",
        model=f"{model}*",
        kinds=_TOKENS,
        factor="0.5",
        valid_from=since,
        daily=DailyWindow(start=start, end=end, weekdays=(6, 7)),
        source=_OFF_PEAK,
    )


_FLASH_PEAKS: Final = datetime(2026, 9, 10, tzinfo=UTC)
_PRO_PEAKS: Final = datetime(2026, 8, 17, tzinfo=UTC)

CORRECTIONS: Final[tuple[PriceRule, ...]] = (
    PriceRule(
        name="codestral-latest cache read",
        layer="operator",
        op="rates",
        provider="mistral",
        model="codestral-latest",
        rates={"cache_read": "0.03"},
        partial=True,
        source=_CODESTRAL,
    ),
    PriceRule(
        name="openai 12 hour cache write",
        layer="operator",
        op="multiply",
        provider="openai",
        kinds=("cache_write_12h",),
        factor="2",
        source=_HALF_DAY,
    ),
    *(
        _weekend(model, since, start, end)
        for model, since in (
            ("deepseek-v4-flash", _FLASH_PEAKS),
            ("deepseek-flash", _FLASH_PEAKS),
            ("deepseek-v4-pro", _PRO_PEAKS),
        )
        for start, end in (("01:00", "04:00"), ("06:00", "10:00"))
    ),
    *(
        _uplift(f"openai {region} residency {model}", "openai", model, region, _OPENAI_RESIDENCY)
        for model in _OPENAI_UPLIFTED
        for region in ("us", "eu")
    ),
    _uplift("anthropic us inference", "anthropic", "*", "us", _ANTHROPIC_GEO),
)
# Applied only where the list prices know no batch rates of the model.
BATCHES: Final[tuple[PriceRule, ...]] = (
    _half_batch("openai", "OpenAI"),
    _half_batch("azure", "Azure OpenAI"),
    _half_batch("anthropic", "Anthropic"),
    _half_batch("aws", "Amazon Bedrock"),
)
DEFAULTS: Final = (*CORRECTIONS, *BATCHES)


@dataclass(frozen=True, slots=True)
class Flagged:
    """A listed model that a caller should hear about: ``note`` on its card from ``since`` on."""

    provider: str
    model: str
    note: str
    why: str
    since: datetime | None = None


_RETIRED: Final = datetime(2026, 7, 24, tzinfo=UTC)
FLAGGED: Final[tuple[Flagged, ...]] = (
    Flagged(
        "mistral",
        "mistral-large-latest",
        "price_disputed",
        "2/6 here (Large 2); other sources say 0.5/1.5 (Large 3) and, from 2026-10-06, 1.36/4.18 (Large 4)",
    ),
    Flagged("together", "meta-llama/*3.3-70b-instruct-turbo", "price_disputed", "0.88/0.88 here; 1.04/1.04 elsewhere"),
    Flagged("deepseek", "deepseek-chat", "deprecated", "the alias was retired on 2026-07-24", _RETIRED),
    Flagged("deepseek", "deepseek-chat", "price_disputed", "0.27/1.10 here; 0.28/0.42 and 0.14/0.28 elsewhere"),
    Flagged("deepseek", "deepseek-reasoner", "deprecated", "the alias was retired on 2026-07-24", _RETIRED),
    Flagged("deepseek", "deepseek-reasoner", "price_disputed", "0.55/2.19 here; 0.28/0.42 elsewhere"),
    Flagged("x-ai", "grok-code-fast*", "deprecated", "retired on 2026-05-15", datetime(2026, 5, 15, tzinfo=UTC)),
)


@cache
def default_rules() -> Rules:
    """The corrections, ready to be applied over the list prices."""
    batches = [compiled(rule, version=VERSION, instead_of="batch_unknown") for rule in BATCHES]
    corrections = [compiled(rule, version=VERSION, validity=_validity(rule)) for rule in CORRECTIONS]
    return Rules(LAYER, (*corrections, *batches, *map(_flag, FLAGGED)))


def _validity(rule: PriceRule) -> Validity:
    return Validity(rule.valid_from or ALWAYS.since, rule.valid_to or ALWAYS.until)


def _flag(flagged: Flagged) -> Rule:
    validity = Validity(flagged.since or ALWAYS.since, ALWAYS.until)
    return noting(flagged.note, provider=flagged.provider, model=flagged.model, validity=validity)
