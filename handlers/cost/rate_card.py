"""The resolved, immutable rates of one model at one time. It never looks anything up and never computes a cost.

Every rate is an integer of nanos per million units, also for searches and requests (10 USD per thousand searches is
10_000_000_000_000). ``None`` means the source states no rate, which is not the same as a rate of nought.
"""

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
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


def stated(rates: Rates) -> dict[str, int]:
    """The kinds that have a rate, with it."""
    return {kind: rate for kind, rate in msgspec.structs.asdict(rates).items() if rate is not None}


KINDS = tuple(field.name for field in msgspec.structs.fields(Rates))
# What is counted in tokens; searches and requests are counted as they are.
TOKEN_KINDS = tuple(kind for kind in KINDS if kind not in ("web_search", "request"))
# Names of the ordinary service tier.
STANDARD_TIERS = frozenset({"", "standard", "default", "auto", "on_demand"})
# What a kind without a rate of its own is billed as.
BILLED_AS = {
    "cache_read": "input",
    "cache_write": "input",
    "cache_write_1h": "cache_write",
    "reasoning": "output",
    "audio_cache_read": "audio_input",
    "image_input": "input",
    "video_input": "input",
}


class Volume(msgspec.Struct, frozen=True):
    """A discount by what a calendar month has seen so far: marginal, and known only in the order of events.

    ``steps`` ascend: what lies above ``above`` (tokens, or nanos of list cost) costs ``factor`` times the rate; before
    the first step it costs the rate. ``net_only``: a contract's, which leaves the list price alone.
    """

    name: str
    label: str
    kinds: frozenset[str]
    by_cost: bool
    steps: tuple[tuple[int, Fraction], ...]
    net_only: bool = True

    @property
    def dearest(self) -> Fraction:
        """The largest factor that can apply."""
        below = () if self.steps and self.steps[0][0] == 0 else (Fraction(1),)
        return max((*below, *(factor for _, factor in self.steps)))


class Tier(msgspec.Struct, frozen=True):
    """Rates that re-price the whole call once its inclusive prompt exceeds ``above`` tokens."""

    above: int
    rates: Rates
    list_rates: Rates | None = None


class RateCard(msgspec.Struct, frozen=True, kw_only=True):
    """Rates of a model as resolved; ``rates`` is the base, ``tiers`` ascend and are complete in themselves.

    ``rates`` are what the org pays. ``list_rates`` are what it would pay without contracts of its own; None: the same,
    in every tier too. ``rules`` names the price rules that made the difference between the source and these rates,
    ``volumes`` those that depend on the month so far.
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
    volumes: tuple[Volume, ...] = ()

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

    def list_rates_for(self, prompt_tokens: int) -> Rates:
        """The list rates of such a call."""
        found = self.list_rates or self.rates
        for tier in self.tiers:
            if prompt_tokens <= tier.above:
                break
            found = tier.list_rates or tier.rates
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


def times(rate: int, factor: Fraction) -> int:
    """A rate times a factor, rounded half-even to a whole number of nanos per million."""
    return round(rate * factor)
