"""Corrections of usage that happened (R15): ``adjust_usage``, ``reprice_usage``, ``list_adjustments``.

An adjustment is a new row against one event, never an edit: sums, windows and invoices follow by its difference.
"""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from .base import ATTRIBUTION_FIELDS, Amount, Count, Currency, Name, Reply, Request, Text, Time, Tokens
from .usage import EventError, UsageFilters, UsageLineItem

ADJUSTMENTS_MAX = 1_000

AdjustmentKind = Literal["void", "correct", "refund"]
PostedKind = Literal["void", "correct", "refund", "reprice"]
Reason = Annotated[str, Meta(min_length=1, max_length=2048, description="Why, for auditors.")]


class _Changes(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What may be changed of an event. ``correct`` takes the counts, what the price depends on, and a stated cost;
    ``refund`` takes an amount. Attribution and time are never changed.
    """

    # What callers may look for here, and why it is not.
    NOT_FIELDS: ClassVar[dict[str, str]] = dict.fromkeys(
        (*ATTRIBUTION_FIELDS, "tags", "timestamp"),
        "attribution and time are not adjusted: void the event and record it anew",
    )

    adjustment_id: Annotated[Name, Meta(description="Makes a repeat harmless: the same id is done once.")] | None = None
    provider: Name | None = None
    model: Name | None = None
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    cache_read_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    cache_write_1h_tokens: Tokens | None = None
    cache_write_12h_tokens: Tokens | None = None
    reasoning_tokens: Tokens | None = None
    system_tokens: Tokens | None = None
    audio_input_tokens: Tokens | None = None
    audio_output_tokens: Tokens | None = None
    audio_cache_read_tokens: Tokens | None = None
    image_input_tokens: Tokens | None = None
    image_output_tokens: Tokens | None = None
    video_input_tokens: Tokens | None = None
    web_searches: Count | None = None
    service_tier: Name | None = None
    region: Name | None = None
    batch: bool | None = None
    cost: Annotated[Amount, Meta(description="What the call costs altogether, instead of its price.")] | None = None
    currency: Annotated[Currency, Meta(description="Of cost; left out: that of the event.")] | None = None
    amount: Annotated[Amount, Meta(description="Refund: at most what the event stands for.")] | None = None


class Adjustment(_Changes, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One adjustment of a batch."""

    usage_id: Name
    kind: AdjustmentKind
    reason: Reason


class AdjustUsage(_Changes, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One adjustment (``usage_id``, ``kind`` and ``reason`` are required then), or many under ``adjustments``.

    With ``dry_run`` the reply says what would happen, and nothing does.
    """

    usage_id: Name | None = None
    kind: AdjustmentKind | None = None
    reason: Reason | None = None
    adjustments: Annotated[list[Adjustment], Meta(max_length=ADJUSTMENTS_MAX)] = []
    dry_run: bool = False


class AdjustedWindow(Reply, frozen=True, kw_only=True):
    """What an adjustment changed in one window, signed, in the budget's unit; ``overrun`` is what found no room."""

    budget_id: str
    name: str
    type: str
    entity_id: str
    unit: str
    currency: str | None
    window_start: Time
    amount: str
    overrun: str


class AdjustedUsage(Reply, frozen=True, kw_only=True):
    """The outcome of one adjustment. ``duplicate``: it was made before, and this is the same answer."""

    usage_id: str
    accepted: bool
    kind: str
    adjustment_id: str | None = None
    sequence: int | None = None
    duplicate: bool = False
    currency: str | None = None
    cost_before: str | None = None
    cost_after: str | None = None
    total_tokens_before: int | None = None
    total_tokens_after: int | None = None
    budgets: list[AdjustedWindow] = []
    windows_gone: int = 0
    warnings: list[str] = []
    error: EventError | None = None


class AdjustedUsages(Reply, frozen=True, kw_only=True):
    """The outcomes in the order asked. A single adjustment that is refused is answered by its error instead."""

    adjustments: list[AdjustedUsage]
    accepted: int
    rejected: int
    dry_run: bool


class Standing(Reply, frozen=True, kw_only=True):
    """What an event counts for: as recorded, or after an adjustment. ``void``: for nothing."""

    void: bool
    provider: str
    model: str
    service_tier: str | None
    region: str | None
    batch: bool
    requests: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    counts: dict[str, int]
    cost: str | None
    currency: str
    cost_status: str
    refunded: str
    price_source: str | None
    price_version: str | None
    line_items: list[UsageLineItem]


class AdjustmentRecord(Reply, frozen=True, kw_only=True):
    """One adjustment as it was made; those of an event are numbered from 1."""

    adjustment_id: str
    usage_id: str
    sequence: int
    kind: PostedKind
    reason: str
    made_by: str
    made_at: Time
    before: Standing
    after: Standing
    budgets: list[AdjustedWindow]
    windows_gone: int


class ListAdjustments(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Adjustments by when they were made, newest first, in pages; ``usage_id``: those of one event."""

    usage_id: Name | None = None
    kind: PostedKind | None = None
    start: Time | None = None
    end: Time | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class AdjustmentList(Reply, frozen=True, kw_only=True):
    """One page of adjustments; ``next_cursor`` is null on the last one."""

    adjustments: list[AdjustmentRecord]
    next_cursor: str | None


class RepriceUsage(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Price events of a half-open time range again, each at the present prices of its own time.

    ``only`` ``unpriced``: those without a cost, or with one that a budget could not count for want of an exchange rate;
    ``all``: the others, too. ``limit`` is how many events are looked at before the reply says where to go on.
    """

    start: Time
    end: Time
    filters: UsageFilters = UsageFilters()
    only: Literal["unpriced", "all"] = "unpriced"
    dry_run: bool = True
    limit: Annotated[int, Meta(ge=1, le=1_000_000)] = 100_000
    cursor: Text | None = None
    reason: Reason = "priced again"


class StillUnpriced(Reply, frozen=True, kw_only=True):
    """A model whose events still have no cost, and why."""

    provider: str
    model: str
    events: int
    reason: str


class CostChange(Reply, frozen=True, kw_only=True):
    """Sums of the repriced events in one currency: what they stood for, and what they stand for now."""

    currency: str
    before: str
    after: str


class RepricedUsage(Reply, frozen=True, kw_only=True):
    """What was done, or with ``dry_run`` what would be. ``next_cursor``: go on there; null where the range is done.

    ``looked_at`` = ``repriced`` + ``unchanged`` + ``left_alone`` (void, or at a cost that somebody stated or reported)
    + ``unpriced``. ``usage_ids`` are the first of those repriced, ``unpriced_models`` the most frequent ones.
    """

    dry_run: bool
    looked_at: int
    repriced: int
    unchanged: int
    left_alone: int
    unpriced: int
    unpriced_models: list[StillUnpriced]
    costs: list[CostChange]
    usage_ids: list[str]
    next_cursor: str | None


class UsageAdjusted(Reply, frozen=True, kw_only=True):
    """Event ``usage.adjusted``: what an event counted for, and what it counts for now."""

    usage_id: str
    adjustment_id: str
    sequence: int
    kind: PostedKind
    reason: str
    made_by: str
    currency: str
    cost_before: str | None
    cost_after: str | None
    total_tokens_before: int
    total_tokens_after: int
