"""Price rules: what an org pays beside, or instead of, public list prices. Dated; never overwritten."""

from typing import Annotated, Literal

from msgspec import Meta

from .base import Amount, Currency, Name, Request, Text, Time, Tokens

RateKind = Literal[
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
    "web_search",
    "request",
]
Layer = Annotated[
    Literal["contract", "operator"],
    Meta(description="contract: what this org has agreed, its net price; operator: a list price that holds here."),
]
RuleOp = Annotated[
    Literal["rates", "multiply", "add", "volume", "commitment"],
    Meta(description="rates: the rates themselves; the others change the rates that a layer below states."),
]
Pattern = Annotated[str, Meta(min_length=1, max_length=256, description="A name; '*' stands for any text.")]
Clock = Annotated[str, Meta(pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$", description="A time of day, HH:MM.")]
Weekday = Annotated[int, Meta(ge=1, le=7, description="1 is Monday.")]
Rates = dict[RateKind, Amount]


class RateTier(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates of the whole call once its inclusive prompt exceeds ``above_prompt_tokens``; other kinds keep the base."""

    above_prompt_tokens: Tokens
    rates: Rates


class VolumeTier(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What lies above ``above`` of a calendar month's volume costs ``factor`` times the rate (marginal, not cliff)."""

    above: Amount
    factor: Amount


class DailyWindow(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hours of the day, half-open; an end before the start is on the next day. No weekdays: every day."""

    start: Clock
    end: Clock
    timezone: Name = "UTC"
    weekdays: Annotated[tuple[Weekday, ...], Meta(max_length=7)] = ()


class PriceRule(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One price rule. ``name`` is its identity in the org: setting it again adds a version that holds from its date.

    ``rates``: states rates per million (``partial``: only of these kinds, the others come from the layer below).
    ``multiply``: rates times ``factor``. ``add``: ``rates`` are added (per million). ``volume``: by the month's volume,
    ``tiers_by`` tokens or list cost. ``commitment``: ``factor`` on the first ``amount`` of list cost in a month.
    Within a layer the rule with the longest patterns states the rates; changes apply in the order of ``position``.
    """

    name: Name
    layer: Layer
    op: RuleOp
    provider: Pattern = "*"
    model: Pattern = "*"
    kinds: Annotated[tuple[RateKind, ...], Meta(max_length=20)] = ()
    service_tier: Name | None = None
    region: Pattern | None = None
    batch: bool | None = None
    rates: Rates = {}
    tiers: Annotated[tuple[RateTier, ...], Meta(max_length=10)] = ()
    partial: bool = False
    currency: Currency = "USD"
    context_window: Tokens | None = None
    factor: Amount | None = None
    tiers_by: Literal["tokens", "list_cost"] = "tokens"
    volume: Annotated[tuple[VolumeTier, ...], Meta(max_length=20)] = ()
    amount: Amount | None = None
    valid_from: Time | None = None
    valid_to: Time | None = None
    daily: DailyWindow | None = None
    position: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    source: Text | None = None
