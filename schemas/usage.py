"""Usage: what an LLM call used, and the questions asked about it."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .base import Amount, Attribution, Count, Currency, Name, Reply, Request, Text, Time, Tokens
from .exchange import ExchangeRate

EVENTS_MAX = 1_000

Ack = Literal["stored", "applied"]
CostStatus = Literal["priced", "unpriced"]
CountMethod = Literal["reported", "counted", "estimated"]
CallStatus = Literal["ok", "error", "cancelled"]
Interval = Literal["minute", "hour", "day", "week", "month", "total"]
Dimension = Literal[
    "provider",
    "model",
    "user_id",
    "team_id",
    "project_id",
    "feature",
    "agent_id",
    "environment",
    "cost_center",
    "service_tier",
    "status",
    "cost_status",
]


# A provider's usage object, a response that holds one, or the events of a stream in the order in which they came.
RawUsage = Annotated[
    dict[str, Any] | list[dict[str, Any]],
    Meta(description="A provider's usage object, a response with one, or a stream's events in order."),
]


class UsageEvent(Attribution, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One LLM call. Prompt and completion tokens are inclusive totals; the other counts are contained in them."""

    provider: Name
    model: Name
    id: Name | None = None
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
    web_searches: Count = 0
    service_tier: Name | None = None
    region: Name | None = None
    batch: bool = False
    count_method: CountMethod = "reported"
    usage: RawUsage | None = None
    api: Name | None = None
    reported_cost: Amount | None = None
    currency: Currency = "USD"
    request_id: Name | None = None
    reservation_id: Name | None = None
    trace_id: Name | None = None
    latency_ms: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    status: CallStatus = "ok"
    error_code: Name | None = None
    final: bool = True
    prefix_hashes: Annotated[list[Name], Meta(max_length=4096)] | None = None
    parent_id: Name | None = None
    task_status: Name | None = None
    metadata: dict[str, Any] | None = None
    audio_cache_read_tokens: Tokens = 0
    cache_write_12h_tokens: Tokens = 0
    image_input_tokens: Tokens = 0
    image_output_tokens: Tokens = 0
    video_input_tokens: Tokens = 0


class TrackUsage(UsageEvent, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """``track_usage`` of one event; ``ack`` says what the reply waits for."""

    ack: Ack = "stored"


class TrackUsageBatch(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``track_usage`` of many events; each is decoded by itself, so one bad event is its own item's error."""

    events: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=EVENTS_MAX)]
    ack: Ack = "stored"


class EventError(Reply, frozen=True, kw_only=True):
    """Why one event of a batch was refused."""

    code: str
    message: str
    field: str | None = None


class TrackedUsage(Reply, frozen=True, kw_only=True):
    """One event's receipt. ``duplicate`` is known only with ack ``applied``; unpriced means ``cost`` null."""

    id: str | None
    accepted: bool
    duplicate: bool | None = None
    conflict: bool | None = None
    total_tokens: int | None = None
    cost: str | None = None
    currency: str = "USD"
    cost_status: CostStatus | None = None
    price_source: str | None = None
    context_used: int | None = None
    context_limit: int | None = None
    warnings: list[str] = []
    error: EventError | None = None


class TrackedUsageBatch(Reply, frozen=True, kw_only=True):
    """The receipts of a batch, in the order sent."""

    events: list[TrackedUsage]
    accepted: int
    rejected: int


class UsageFilters(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which usage; every given field must match exactly, ``*`` at the end of a value matches any rest."""

    provider: Name | None = None
    model: Name | None = None
    user_id: Name | None = None
    team_id: Name | None = None
    project_id: Name | None = None
    feature: Name | None = None
    agent_id: Name | None = None
    session_id: Name | None = None
    task_id: Name | None = None
    environment: Name | None = None
    cost_center: Name | None = None
    service_tier: Name | None = None
    status: Name | None = None
    cost_status: CostStatus | None = None


class GetUsage(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Raw events of a half-open time range, newest first, in pages."""

    start: Time | None = None
    end: Time | None = None
    filters: UsageFilters = UsageFilters()
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class UsageLineItem(Reply, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens of one kind times one rate; a null rate marks the kind that has no price.

    The list rate and cost are told where they differ: what it would be without the org's own contracts.
    """

    kind: str
    tokens: int
    rate_per_million: str | None
    cost: str | None
    list_rate_per_million: str | None = None
    list_cost: str | None = None


class UsageRecord(Reply, frozen=True, kw_only=True):
    """A stored event as it was applied, and what it stands for since: ``cost`` is its own for ever, ``standing_cost``
    (0 where it is void) what it counts for after its ``adjustments``.
    """

    id: str
    timestamp: Time
    arrived_at: Time
    provider: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    reasoning_tokens: int
    cost: str | None
    currency: str
    cost_status: str
    price_source: str | None
    price_version: str | None
    line_items: list[UsageLineItem]
    count_method: str
    status: str
    user_id: str | None = None
    team_id: str | None = None
    project_id: str | None = None
    feature: str | None = None
    agent_id: str | None = None
    session_id: str | None = None
    task_id: str | None = None
    environment: str | None = None
    cost_center: str | None = None
    tags: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    request_id: str | None = None
    reservation_id: str | None = None
    latency_ms: float | None = None
    charged_budgets: int = 0
    flags: list[str] = []
    context_used: int | None = None
    context_limit: int | None = None
    context_utilisation_percent: float | None = None
    adjusted: bool = False
    adjustments: int = 0
    void: bool = False
    standing_cost: str | None = None
    standing_currency: str = "USD"


class UsagePage(Reply, frozen=True, kw_only=True):
    """One page of raw events; ``next_cursor`` is null on the last one."""

    events: list[UsageRecord]
    next_cursor: str | None


class AggregateUsage(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sums of a half-open time range by interval and dimensions; weeks start on Monday, calendar in ``timezone``."""

    start: Time
    end: Time
    interval: Interval = "total"
    group_by: Annotated[list[Dimension], Meta(max_length=6)] = []
    filters: UsageFilters = UsageFilters()
    timezone: Name = "UTC"
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1_000


class UsageRow(Reply, frozen=True, kw_only=True):
    """Sums of one window and group. ``cost`` is in the org's own currency; where others are in it, ``costs`` are the
    exact sums of each.
    """

    window: str
    group: dict[str, str | None]
    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    unpriced_requests: int
    reserved_requests: int
    cost: str
    currency: str
    latency_ms_mean: float | None = None
    costs: dict[str, str] = {}


class UsageSums(Reply, frozen=True, kw_only=True):
    """``truncated`` says that rows beyond ``limit`` were left out; ``totals`` always cover everything.

    Costs in other currencies than the org's are converted at ``rates``, those of the last day asked about; what has no
    rate is only in ``costs``, and ``missing_rates`` names the pairs.
    """

    rows: list[UsageRow]
    totals: UsageRow
    truncated: bool = False
    source: Literal["rollups", "events"] = "rollups"
    rates: list[ExchangeRate] = []
    missing_rates: list[str] = []


class ListDeadLetters(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Messages that could not be applied, newest first."""

    status: Literal["open", "retried"] | None = "open"
    reason: Name | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class DeadLetter(Reply, frozen=True, kw_only=True):
    """One message that could not be applied, with its reason; nothing is dropped."""

    dead_letter_id: str
    status: str
    reason: str
    message: str
    field: str | None
    subject: str
    usage_id: str | None
    payload: str
    arrived_at: Time
    retried_at: Time | None


class DeadLetters(Reply, frozen=True, kw_only=True):
    """One page of dead letters."""

    dead_letters: list[DeadLetter]
    next_cursor: str | None


class RetryDeadLetter(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send the stored message through ingest again, optionally corrected."""

    dead_letter_id: Name
    payload: dict[str, Any] | None = None


class RetriedDeadLetter(Reply, frozen=True, kw_only=True):
    """The message is in the stream again; ``usage_id`` is the id it will be stored under, if it names one."""

    dead_letter_id: str
    status: Literal["retried"]
    usage_id: str | None


class UnpricedUsage(Reply, frozen=True, kw_only=True):
    """Event ``usage.unpriced``: the first event of a day whose provider and model have no price."""

    provider: str
    model: str
    usage_id: str
    day: str
    unpriced_kinds: list[str]
