"""Budgets, reservations and the question a router asks: may this call be made?"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .base import Amount, Attribution, Currency, Name, Reply, Request, Text, Time, Tokens
from .exchange import ExchangeRate
from .tokens import ContextUse, RawText, TokenCount

BudgetType = Literal[
    "global",
    "team",
    "user",
    "project",
    "feature",
    "agent",
    "session",
    "task",
    "environment",
    "cost_center",
]
Unit = Literal["cost", "tokens", "requests"]
Period = Literal["minute", "hourly", "daily", "weekly", "monthly", "yearly", "total"]
Enforcement = Literal["block", "throttle", "downgrade", "warn", "shadow"]
OnExpiry = Literal["release", "settle"]
# What a budget does to a call that does not fit now.
Effect = Literal["blocks", "downgrades", "throttles", "warns", "records", "nothing"]
ReservationStatus = Literal["live", "settled", "released", "expired"]
Ttl = Annotated[int, Meta(ge=1, le=86_400, description="Seconds.")]
Percent = Annotated[int, Meta(ge=0, le=1000)]


class CheckBudget(Attribution, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """May this call be made? With ``reserve`` the approved amount is set aside in every matching window.

    Without ``prompt_tokens`` the texts are counted: ``prompt`` or ``messages``, and ``tools``.
    """

    provider: Name | None = None
    model: Name | None = None
    request_id: Name | None = None
    prompt_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    estimated_cost: Amount | None = None
    currency: Currency = "USD"
    prompt: RawText = msgspec.UNSET
    messages: RawText = msgspec.UNSET
    tools: RawText = msgspec.UNSET
    tool_choice: RawText = msgspec.UNSET
    service_tier: Name | None = None
    batch: bool = False
    reserve: bool = True
    ttl_s: Ttl | None = None
    sizing: Literal["worst", "learned"] | None = None
    region: Name | None = None


class BudgetWindow(Reply, frozen=True, kw_only=True):
    """One budget's present window. ``limit`` is the effective one, ``remaining`` is never below 0."""

    budget_id: str
    name: str
    type: str
    entity_id: str
    unit: str
    currency: str | None
    enforcement: str
    base_limit: str
    limit: str
    spent: str
    overrun: str
    reserved: str
    remaining: str
    percent_used: float
    window_start: Time
    resets_at: Time | None


class DenialReason(Reply, frozen=True, kw_only=True):
    """Why not. Of several budgets that deny, the one that resets last."""

    code: Literal[
        "budget_exceeded",
        "throttled",
        "unpriced",
        "no_exchange_rate",
        "context_window_exceeded",
        "input_limit_exceeded",
        "output_limit_exceeded",
        "kill_switch",
        "missing_attribution",
        "attribution_mismatch",
        "too_many_entities",
    ]
    message: str
    budget_id: str | None = None
    budgets: list[str] = []


class Alternative(Reply, frozen=True, kw_only=True):
    """A call that would fit now. ``kind`` says what differs from the call that was asked for."""

    provider: str
    model: str
    max_completion_tokens: int
    estimated_cost: str
    kind: Literal["smaller", "preferred", "fallback"] = "smaller"
    currency: str = "USD"


class BudgetDecision(Reply, frozen=True, kw_only=True):
    """The answer. A denial is a normal reply; ``retry_after_s`` is when the denying budget resets."""

    approved: bool
    request_id: str
    reservation_id: str | None
    expires_at: Time | None
    estimated_cost: str | None
    currency: str
    budgets: list[BudgetWindow]
    warnings: list[str] = []
    reason: DenialReason | None = None
    retry_after_s: int | None = None
    alternatives: list[Alternative] = []
    context: ContextUse | None = None
    count: TokenCount | None = None


class ReleaseReservation(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Free what a reservation holds. Idempotent."""

    reservation_id: Name


class ExtendReservation(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keep a reservation longer, optionally with a new estimate; decided like a check, all or nothing.

    The size of a new prompt is stated, or its texts are counted.
    """

    reservation_id: Name
    ttl_s: Ttl
    provider: Name | None = None
    model: Name | None = None
    prompt_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    prompt: RawText = msgspec.UNSET
    messages: RawText = msgspec.UNSET
    tools: RawText = msgspec.UNSET
    tool_choice: RawText = msgspec.UNSET
    estimated_cost: Amount | None = None
    currency: Annotated[Currency, Meta(description="Of estimated_cost; left out: the reservation's.")] | None = None


class ReservationReply(Reply, frozen=True, kw_only=True):
    """A reservation after release or extend; ``approved`` false means that the change did not fit and nothing moved."""

    reservation_id: str
    status: ReservationStatus
    expires_at: Time | None
    approved: bool = True
    estimated_cost: str | None = None
    currency: str = "USD"
    reason: DenialReason | None = None
    retry_after_s: int | None = None


class Rollover(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of an unused limit carries into the next window; ``capped`` at most ``percent`` of the limit."""

    policy: Literal["none", "full", "capped"] = "none"
    percent: Annotated[int, Meta(ge=0, le=100)] = 0


class OverridePolicy(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may approve a temporary raise, and how far."""

    approver_roles: Annotated[list[Name], Meta(max_length=16)] = msgspec.field(default_factory=lambda: ["approver"])
    max_percent: Percent = 50
    max_hours: Annotated[int, Meta(ge=1, le=8784)] = 72
    auto_approve_percent: Percent = 0


class Rate(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rate at which calls go on once a throttled budget is used up; of cost in ``currency``, else the budget's."""

    limit: Amount
    unit: Unit = "requests"
    period: Literal["minute", "hourly"] = "minute"
    currency: Currency | None = None


class BudgetFilters(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which calls a budget counts; ``*`` at the end of a value matches any rest."""

    provider: Name | None = None
    model: Name | None = None
    feature: Name | None = None
    environment: Name | None = None
    agent_id: Name | None = None


class CreateBudget(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A limit on cost, tokens or requests for a scope over a period. ``entity_id`` ``*`` gives each entity its own.

    ``enforcement`` ``throttle`` over a minute or hourly is a rate itself; over a longer period it needs ``rate``, at
    which calls go on once the budget is used up. ``reason`` goes to the audit trail.
    """

    name: Name
    type: BudgetType
    entity_id: Name = "*"
    filters: BudgetFilters = BudgetFilters()
    unit: Unit = "cost"
    period: Period = "monthly"
    timezone: Name = "UTC"
    limit: Amount
    currency: Currency = "USD"
    overage_percent: Percent = 0
    enforcement: Enforcement = "block"
    rate: Rate | None = None
    alert_thresholds: Annotated[list[Annotated[int, Meta(ge=1, le=1000)]], Meta(max_length=20)] = msgspec.field(
        default_factory=lambda: [50, 75, 90, 100]
    )
    rollover: Rollover = Rollover()
    override_policy: OverridePolicy = OverridePolicy()
    on_expiry: OnExpiry = "release"
    backfill: bool = False
    preferred_models: Annotated[list[Name], Meta(max_length=50)] = []
    fallback_model: Name | None = None
    active: bool = True
    reason: Text | None = None


class UpdateBudget(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Change what may change; ``version`` is the one that was read. Identity (R4) is immutable: create anew.

    What is left out stays; ``fallback_model`` null takes it away. ``reason`` goes to the audit trail.
    """

    budget_id: Name
    version: Annotated[int, Meta(ge=1)]
    name: Name | None = None
    limit: Amount | None = None
    overage_percent: Percent | None = None
    enforcement: Enforcement | None = None
    rate: Rate | None = None
    alert_thresholds: Annotated[list[Annotated[int, Meta(ge=1, le=1000)]], Meta(max_length=20)] | None = None
    rollover: Rollover | None = None
    override_policy: OverridePolicy | None = None
    on_expiry: OnExpiry | None = None
    preferred_models: Annotated[list[Name], Meta(max_length=50)] | None = None
    fallback_model: Name | msgspec.UnsetType | None = msgspec.UNSET
    active: bool | None = None
    reason: Text | None = None


class DeleteBudget(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Take a budget away for good; ``version`` is the one that was read. Its history and reservations stay."""

    budget_id: Name
    version: Annotated[int, Meta(ge=1)]
    reason: Text | None = None


class Budget(Reply, frozen=True, kw_only=True):
    """A budget as stored, with its present window (null for ``*`` budgets, which have one per entity).

    ``rate`` is how calls go on beyond a throttled limit; it is kept as a budget of its own, whose ``gate_id`` is this
    one. ``managed`` budgets belong to the org's policies.
    """

    budget_id: str
    version: int
    name: str
    type: str
    entity_id: str
    filters: BudgetFilters
    unit: str
    currency: str | None
    period: str
    timezone: str
    limit: str
    overage_percent: int
    enforcement: str
    alert_thresholds: list[int]
    rate: Rate | None = None
    gate_id: str | None = None
    rollover: Rollover
    override_policy: OverridePolicy
    on_expiry: str
    preferred_models: list[str]
    fallback_model: str | None
    active: bool
    counting_since: Time
    created_at: Time
    updated_at: Time
    deleted_at: Time | None = None
    managed: bool = False
    window: BudgetWindow | None = None


class GetBudgetStatus(Attribution, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One budget by id (for ``*`` budgets with an attribution or all windows), or all that apply to an attribution."""

    budget_id: Name | None = None
    provider: Name | None = None
    model: Name | None = None


class AppliedBudget(Reply, frozen=True, kw_only=True):
    """A budget, one of its windows, why it applies, and what it does to a call that does not fit.

    ``gate_id``: a throttle goes on at the rate of that budget, or is the rate beyond that budget. ``raised`` is by how
    much overrides raise the limit now. ``exchange_rates`` are those at which this window converts costs in dollars and
    in the org's own currency as long as it lasts; ``stale`` says whether they were old when it began.
    """

    budget: Budget
    window: BudgetWindow
    why: str
    effect: Effect
    effect_text: str
    gate_id: str | None = None
    raised: str = "0"
    exchange_rates: list[ExchangeRate] = []


class NotApplied(Reply, frozen=True, kw_only=True):
    """A budget for this entity that does not apply to this call, and the reason."""

    budget_id: str
    name: str
    type: str
    entity_id: str
    reason: str


class BudgetStatus(Reply, frozen=True, kw_only=True):
    """The budgets asked for: global ones first, then by type, then by name.

    ``denying`` lists those that would refuse any further call now, ``not_applied`` the near misses of an attribution.
    ``team_id`` is what the directory says where the attribution leaves it out; ``refusal`` is why such a call is
    denied whatever the budgets say.
    """

    budgets: list[AppliedBudget]
    denying: list[str] = []
    not_applied: list[NotApplied] = []
    team_id: str | None = None
    refusal: DenialReason | None = None


class ListBudgets(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Budgets of the org by name; with ``deleted`` also those that were deleted."""

    type: BudgetType | None = None
    entity_id: Name | None = None
    active: bool | None = None
    deleted: bool = False
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class BudgetList(Reply, frozen=True, kw_only=True):
    """One page of budgets."""

    budgets: list[Budget]
    next_cursor: str | None


class ListReservations(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reservations, newest first."""

    status: ReservationStatus | None = "live"
    request_id: Name | None = None
    budget_id: Name | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class Held(Reply, frozen=True, kw_only=True):
    """What a reservation holds, or held, in one window."""

    budget_id: str
    entity_id: str
    window_start: Time
    unit: str
    amount: str


class Reservation(Reply, frozen=True, kw_only=True):
    """An amount set aside before a call."""

    reservation_id: str
    request_id: str
    status: ReservationStatus
    provider: str | None
    model: str | None
    attribution: dict[str, Any]
    estimated_cost: str | None
    estimated_tokens: int
    currency: str
    caller: str | None
    decided_at: Time
    expires_at: Time
    closed_at: Time | None
    holds: list[Held]


class ReservationList(Reply, frozen=True, kw_only=True):
    """One page of reservations."""

    reservations: list[Reservation]
    next_cursor: str | None


class BudgetThreshold(Reply, frozen=True, kw_only=True):
    """Event ``budget.threshold``: spent reached a threshold; once per window and threshold."""

    threshold: int
    window: BudgetWindow


class BudgetExceeded(Reply, frozen=True, kw_only=True):
    """Event ``budget.exceeded``: the first denial in a window, or spent at the limit; once per window."""

    cause: Literal["denied", "spent", "shadow"]
    window: BudgetWindow


class BudgetOverrun(Reply, frozen=True, kw_only=True):
    """Event ``budget.overrun``: spending that found no room under the limit."""

    amount: str
    window: BudgetWindow


class BudgetChanged(Reply, frozen=True, kw_only=True):
    """Event ``budget.changed``: a person or policy created, changed or deleted a budget."""

    action: Literal["created", "updated", "deleted"]
    actor: str
    before: Budget | None
    after: Budget
