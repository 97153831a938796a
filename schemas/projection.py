"""What a plan would cost: ``project_costs``."""

from typing import Annotated, Literal

from msgspec import Meta

from .base import Attribution, Count, Currency, Name, Reply, Request, Time, Tokens
from .finance import ConvertedAmount, Percent
from .usage import UsageFilters

MONTHS_MAX = 36
MODELS_MAX = 10
MESSAGES_MAX = 200
GrowthPercent = Annotated[
    str,
    Meta(
        pattern=r"^-?[0-9]{1,4}(\.[0-9]{1,6})?$(?!\n)",
        description="Percent a month, e.g. '5' or '-2.5'; not below -100.",
    ),
]
Statistic = Literal["mean", "p50", "p95"]


class MessageTokens(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Tokens of one message and its answer. ``system`` is sent again with every message."""

    prompt: Tokens
    completion: Tokens
    system: Tokens = 0
    reasoning: Tokens = 0


class ObservedTokens(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Tokens of a message as calls of [``start``, ``end``) had them (the last 30 days, if left out).

    Their prompts hold their history already.
    """

    start: Time | None = None
    end: Time | None = None
    filters: UsageFilters = UsageFilters()
    statistic: Statistic = "mean"


class ModelShare(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Percent of the conversations that a model answers, and how it is called."""

    provider: Name
    model: Name
    percent: Percent
    service_tier: Name | None = None
    region: Name | None = None
    batch_percent: Percent = "0"


class ProjectCosts(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A plan: conversations a day, messages in each, tokens in each message, and which models answer.

    ``history`` growing: each message sends the conversation so far again. ``cached_percent`` of what is sent again (the
    system prompt, and history that grows) is read from the cache; ``cache_write_percent`` of the rest is written to it.
    ``hours``: hours of the day with traffic, in ``timezone``; all, evenly, if left out. ``scope``: for the budgets,
    whose calls they are.
    """

    conversations_per_day: Count
    messages_per_conversation: Annotated[int, Meta(ge=1, le=MESSAGES_MAX)] = 1
    tokens: MessageTokens | None = None
    observed: ObservedTokens | None = None
    history: Literal["none", "growing"] = "none"
    cached_percent: Percent = "0"
    cache_write_percent: Percent = "0"
    models: Annotated[list[ModelShare], Meta(min_length=1, max_length=MODELS_MAX)]
    growth_percent_per_month: GrowthPercent = "0"
    start: Time | None = None
    months: Annotated[int, Meta(ge=1, le=MONTHS_MAX)] | None = None
    days: Annotated[int, Meta(ge=1, le=31 * MONTHS_MAX)] | None = None
    hours: Annotated[list[Annotated[int, Meta(ge=0, le=23)]], Meta(max_length=24)] = []
    timezone: Name = "UTC"
    currency: Currency | None = None
    scope: Attribution = Attribution()


class ProjectedItem(Reply, frozen=True, kw_only=True):
    """Units of one kind at one rate; the costs of all items of a model sum to its cost, exactly.

    Quantities are rounded to whole units. Rates are per million, in ``rate_currency``.
    """

    kind: str
    quantity: int
    rate_per_million: str
    list_rate_per_million: str
    rate_currency: str
    cost: str
    list_cost: str


class ProjectedModel(Reply, frozen=True, kw_only=True):
    """One model's part of the whole plan. ``cost`` null: it has no price, and ``unpriced_kinds`` says of what."""

    provider: str
    model: str
    percent: str
    requests: str
    prompt_tokens: int
    completion_tokens: int
    cost: str | None
    list_cost: str | None
    cost_per_conversation: str | None
    price_source: str | None
    price_version: str | None
    rules: list[str]
    items: list[ProjectedItem]
    unpriced_kinds: list[str] = []
    notes: list[str] = []


class ProjectedPeriod(Reply, frozen=True, kw_only=True):
    """One calendar month of the plan, or the part of it that the plan covers; of the priced models."""

    start: Time
    end: Time
    days: int
    conversations: str
    requests: str
    cost: str
    list_cost: str


class ProjectedBudget(Reply, frozen=True, kw_only=True):
    """A budget the calls would be charged to. ``needed``: for the plan's dearest full period, beside other usage."""

    budget_id: str
    name: str
    type: str
    entity_id: str
    unit: str
    currency: str | None
    period: str
    enforcement: str
    limit: str
    needed: str
    would_break: bool
    models: list[str]


class Projection(Reply, frozen=True, kw_only=True):
    """What the plan costs. ``cost`` is null where a model has no price; ``priced_cost`` is that of the others.

    ``per_day``, ``per_month`` (365/12 days) and ``per_year`` (365 days) are at the plan's first day, without growth.
    The costs of models, of periods and of their items each sum to ``priced_cost``, exactly.
    """

    start: Time
    end: Time
    currency: str
    cost: str | None
    priced_cost: str
    list_cost: str | None
    discount: str
    per_day: str
    per_month: str
    per_year: str
    per_conversation: str
    conversations: str
    requests: str
    models: list[ProjectedModel]
    periods: list[ProjectedPeriod]
    unpriced: list[str]
    budgets: list[ProjectedBudget]
    currencies: list[ConvertedAmount]
    assumptions: list[str]
    observed_calls: int | None = None
