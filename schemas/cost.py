"""Cost: what a call costs or would cost, and the rates it is priced at. Nothing here records anything."""

from typing import Annotated, Any

from msgspec import Meta

from .base import Count, Name, Reply, Request, Time, Tokens
from .usage import CostStatus, UsageLineItem

Rate = Annotated[str, Meta(description="A decimal string per million tokens, searches or requests.")]


class CalculateCost(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a call costs as of ``timestamp`` (now if left out): counts, or the provider's raw ``usage`` object."""

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
    usage: dict[str, Any] | None = None
    api: Name | None = None


class CalculateCostReply(Reply, frozen=True, kw_only=True):
    """A cost with its parts. Unpriced (no known rate) means ``cost`` null, never nought."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost: str | None
    currency: str
    cost_status: CostStatus
    line_items: list[UsageLineItem]
    priced_at: Time
    price_source: str | None = None
    price_version: str | None = None
    priced_model: str | None = None
    unpriced_kinds: list[str] = []
    reported_cost: str | None = None
    context_used: int | None = None
    context_limit: int | None = None
    warnings: list[str] = []


class GetPricing(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The rates of a model as of ``timestamp`` (now if left out)."""

    provider: Name
    model: Name
    timestamp: Time | None = None
    service_tier: Name | None = None
    batch: bool = False


class PricingTier(Reply, frozen=True, kw_only=True):
    """Rates of the whole call once its inclusive prompt exceeds ``above_prompt_tokens``."""

    above_prompt_tokens: int
    rates: dict[str, Rate]


class Pricing(Reply, frozen=True, kw_only=True):
    """A rate card. ``rates`` holds only the kinds that have one, per million units of the kind."""

    provider: str
    model: str
    priced_at: Time
    currency: str
    rates: dict[str, Rate]
    tiers: list[PricingTier]
    price_source: str
    price_version: str
    context_window: int | None = None
    notes: list[str] = []
