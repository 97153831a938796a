"""Cost: what a call costs or would cost, and the rates it is priced at. Nothing here records anything."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .base import Amount, Count, Currency, Name, Reply, Request, Time, Tokens
from .pricing import RateKind
from .tokens import RawText, TokenCount
from .usage import CostStatus, RawUsage, UsageLineItem

Rate = Annotated[str, Meta(description="A decimal string per million tokens, searches or requests.")]


class CalculateCost(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a call costs as of ``timestamp`` (now if left out): counts, the provider's raw ``usage`` object, or texts.

    Texts are counted: ``text``, ``prompt``, ``messages`` and ``tools`` as the prompt, ``completion`` as the answer.
    ``rates`` (per million, in ``currency``) take the place of every known price.
    """

    provider: Name
    model: Name
    timestamp: Time | None = None
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    cache_read_tokens: Tokens = 0
    cache_write_tokens: Tokens = 0
    cache_write_1h_tokens: Tokens = 0
    reasoning_tokens: Tokens = 0
    system_tokens: Tokens = 0
    audio_input_tokens: Tokens = 0
    audio_output_tokens: Tokens = 0
    audio_cache_read_tokens: Tokens = 0
    cache_write_12h_tokens: Tokens = 0
    image_input_tokens: Tokens = 0
    image_output_tokens: Tokens = 0
    video_input_tokens: Tokens = 0
    web_searches: Count = 0
    service_tier: Name | None = None
    region: Name | None = None
    batch: bool = False
    usage: RawUsage | None = None
    api: Name | None = None
    text: RawText = msgspec.UNSET
    prompt: RawText = msgspec.UNSET
    messages: RawText = msgspec.UNSET
    tools: RawText = msgspec.UNSET
    tool_choice: RawText = msgspec.UNSET
    completion: RawText = msgspec.UNSET
    rates: Annotated[dict[RateKind, Amount], Meta(max_length=20)] = {}
    currency: Currency = "USD"


class CalculateCostReply(Reply, frozen=True, kw_only=True):
    """A cost with its parts. Unpriced (no known rate) means ``cost`` null, never nought."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost: str | None
    list_cost: str | None = None
    currency: str
    cost_status: CostStatus
    line_items: list[UsageLineItem]
    priced_at: Time
    price_source: str | None = None
    price_version: str | None = None
    priced_model: str | None = None
    price_rules: list[str] = []
    unpriced_kinds: list[str] = []
    reported_cost: str | None = None
    context_used: int | None = None
    context_limit: int | None = None
    warnings: list[str] = []
    count: TokenCount | None = None


class GetPricing(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The rates of a model as of ``timestamp`` (now if left out)."""

    provider: Name
    model: Name
    timestamp: Time | None = None
    service_tier: Name | None = None
    batch: bool = False
    region: Name | None = None


class PricingTier(Reply, frozen=True, kw_only=True):
    """Rates of the whole call once its inclusive prompt exceeds ``above_prompt_tokens``."""

    above_prompt_tokens: int
    rates: dict[str, Rate]
    list_rates: dict[str, Rate] = {}


class VolumeStep(Reply, frozen=True, kw_only=True):
    """What lies above ``above`` of the month's volume costs ``factor`` times the rate."""

    above: str
    factor: str


class VolumePricing(Reply, frozen=True, kw_only=True):
    """A rule that depends on what the calendar month (UTC) has seen so far: ``used`` of tokens or list cost."""

    rule: str
    unit: Literal["tokens", "list_cost"]
    kinds: list[str]
    steps: list[VolumeStep]
    used: str


class Pricing(Reply, frozen=True, kw_only=True):
    """A rate card. ``rates`` are what the org pays, per million units of each kind that has a rate.

    ``list_rates`` are what it would pay without contracts. ``rules`` names the price rules that made them, each with
    its version; ``volumes`` those that depend on the month so far, which the rates leave out.
    """

    provider: str
    model: str
    priced_at: Time
    currency: str
    rates: dict[str, Rate]
    list_rates: dict[str, Rate] = {}
    tiers: list[PricingTier]
    rules: list[str] = []
    volumes: list[VolumePricing] = []
    price_source: str
    price_version: str
    context_window: int | None = None
    max_output_tokens: int | None = None
    notes: list[str] = []
