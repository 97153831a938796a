"""The resolved, immutable rates of one model at one time. It never looks anything up and never computes a cost.

Every rate is an integer of nanos per million units, also for searches and requests (10 USD per thousand searches is
10_000_000_000_000). ``None`` means the source states no rate, which is not the same as a rate of nought.
"""

from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache

import msgspec

from schemas.money import NANOS

# Above a billion USD per million units a figure is a slip in the source, and sums would outgrow their bounds.
RATE_NANOS_MAX = 1_000_000_000 * NANOS


class RateError(ValueError):
    """A rate is negative, not finite, or beyond any real price."""


class Rates(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Nanos per million units of each kind. ``cache_write`` is the ordinary (5 minute) write."""

    input: int | None = None
    output: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    cache_write_1h: int | None = None
    cache_write_12h: int | None = None
    reasoning: int | None = None
    audio_input: int | None = None
    audio_cache_read: int | None = None
    audio_output: int | None = None
    image_input: int | None = None
    image_output: int | None = None
    video_input: int | None = None
    web_search: int | None = None
    request: int | None = None


class Tier(msgspec.Struct, frozen=True):
    """Rates that re-price the whole call once its inclusive prompt exceeds ``above`` tokens."""

    above: int
    rates: Rates
    list_rates: Rates | None = None


class RateCard(msgspec.Struct, frozen=True, kw_only=True):
    """Rates of a model as resolved; ``rates`` is the base, ``tiers`` ascend and are complete in themselves.

    ``rates`` are what the org pays. ``list_rates`` are what it would pay without contracts of its own; None: the same.
    ``rules`` names the price rules that made the difference between the source and these rates.
    ``notes`` are codes of what was assumed, e.g. ``service_tier_unknown`` when the standard rates stand in.
    """

    provider: str
    model: str
    source: str
    version: str
    rates: Rates
    list_rates: Rates | None = None
    tiers: tuple[Tier, ...] = ()
    rules: tuple[str, ...] = ()
    context_window: int | None = None
    max_output_tokens: int | None = None
    currency: str = "USD"
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a caller should hear: assumptions about this call, not what the source prices besides."""
        return _told(self.notes)

    def rates_for(self, prompt_tokens: int) -> Rates:
        """The rates of a call whose inclusive prompt is this long; a prompt exactly at a threshold pays the base."""
        found = self.rates
        for tier in self.tiers:
            if prompt_tokens <= tier.above:
                break
            found = tier.rates
        return found


@lru_cache(maxsize=1024)
def _told(notes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(note for note in notes if not note.startswith("unit_ignored:"))


def rate_nanos(per_million: Decimal) -> int:
    """Nanos per million of a rate in currency units per million.

    Exact for up to nine decimals, which every published price has. Sources that went through floating point carry
    artefacts (0.18000000000000002); those are rounded half-even here, once, so that the stored rate is the rate used.
    """
    if not per_million.is_finite() or per_million < 0:
        raise RateError("a rate must be a finite number, not negative")
    nanos = int((per_million * NANOS).to_integral_value(ROUND_HALF_EVEN))
    if nanos > RATE_NANOS_MAX:
        raise RateError("a rate is larger than any real price")
    return nanos


def halved(rates: Rates) -> Rates:
    """Half of every token rate (half-even); searches and requests cost what they cost."""
    whole = ("web_search", "request")
    fields = msgspec.structs.asdict(rates).items()
    return Rates(**{k: v if v is None or k in whole else _half_even(v) for k, v in fields})


def _half_even(value: int) -> int:
    half, odd = divmod(value, 2)
    return half + (odd & half & 1)
