"""Price rules: what an org pays beside, or instead of, public list prices. Dated; never overwritten."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from .base import Amount, Currency, Name, Reply, Request, Text, Time, Tokens

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
Clock = Annotated[
    str, Meta(max_length=5, pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$", description="A time of day, HH:MM.")
]
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


RuleVersion = Annotated[
    int, Meta(ge=0, le=1_000_000, description="The newest version read; 0 or left out: there is none yet.")
]
PageLimit = Annotated[int, Meta(ge=1, le=1000)]


class PriceRuleDraft(PriceRule, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A rule to be set, with the ``version`` of it that was read. Without ``valid_from`` it holds from now on."""

    version: RuleVersion = 0


class EndPriceRule(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ends a rule ``at`` a time (now if left out); what it has priced stays."""

    name: Name
    version: RuleVersion
    at: Time | None = None


class PreviewPeriod(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Past usage to try a change on, half-open; left out: the last 30 days."""

    start: Time
    end: Time


class UpdatePricing(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Set price rules or end them, all or nothing. ``dry_run`` writes nothing and says what past usage would have cost.

    A date in the past needs ``backdate``, and changes no cost that is recorded: that is what ``reprice_usage`` does.
    """

    rules: Annotated[tuple[PriceRuleDraft, ...], Meta(max_length=100)] = ()
    end: Annotated[tuple[EndPriceRule, ...], Meta(max_length=100)] = ()
    backdate: bool = False
    dry_run: bool = False
    preview: PreviewPeriod | None = None
    reason: Text | None = None


RuleOrigin = Annotated[
    Literal["org", "agent", "default"],
    Meta(description="org: set by update_pricing; agent: the operator's file; default: shipped corrections."),
]
RuleState = Annotated[
    Literal["in_force", "scheduled", "over", "superseded"],
    Meta(description="At the time asked for. over: it has ended; superseded: a later version holds."),
]


class PriceRuleVersion(Reply, frozen=True, kw_only=True):
    """One version of a rule; ``rule`` null: this version says that the rule ends."""

    name: str
    version: int
    origin: RuleOrigin
    layer: Layer
    state: RuleState
    rule: PriceRule | None
    valid_from: Time | None
    valid_to: Time | None
    set_at: Time | None = None
    set_by: str | None = None
    reason: str | None = None


class PreviewedModel(Reply, frozen=True, kw_only=True):
    """Past usage of one model. A cost is null where none of it is priced; ``unpriced`` counts calls without one."""

    provider: str
    model: str
    currency: str
    events: int
    changed_events: int
    cost_before: str | None
    cost_after: str | None
    difference: str
    unpriced_before: int
    unpriced_after: int


class PreviewedLine(Reply, frozen=True, kw_only=True):
    """One kind of tokens of one model that costs otherwise; the largest differences are shown."""

    provider: str
    model: str
    currency: str
    kind: str
    quantity: int
    cost_before: str
    cost_after: str
    difference: str


class PreviewedBudget(Reply, frozen=True, kw_only=True):
    """What the open window of a budget would show as spent, in the budget's currency."""

    budget_id: str
    name: str
    entity_id: str
    currency: str
    window_start: Time | None
    resets_at: Time | None
    limit: str
    spent: str
    spent_after: str
    difference: str


class PricingPreview(Reply, frozen=True, kw_only=True):
    """What usage of a past period would have cost. ``complete`` false: the period has more events than are looked at.

    Rules that begin now or later are tried as if they had held throughout; those dated back, from their date on.
    Events that were voided, and costs that providers reported, cost what they cost.
    """

    start: Time
    end: Time
    events: int
    changed_events: int
    complete: bool
    until: Time
    models: list[PreviewedModel]
    lines: list[PreviewedLine]
    budgets: list[PreviewedBudget]
    truncated: bool = False
    warnings: list[str] = []


class PricingUpdate(Reply, frozen=True, kw_only=True):
    """The versions written, or that would be. ``revision`` counts changes of the org's rules and aliases."""

    applied: bool
    revision: int
    rules: list[PriceRuleVersion]
    warnings: list[str]
    preview: PricingPreview | None = None


class PricingChanged(Reply, frozen=True, kw_only=True):
    """Event ``pricing.changed``: what changed of an org's prices, as it was and as it is."""

    actor: str
    entity: Literal["price_rule", "model_alias", "price_snapshot"]
    entity_id: str
    action: Literal["created", "updated", "ended", "reverted"]
    before: Any
    after: Any
    revision: int
    reason: str | None = None


class ListPriceRules(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Price rules: those in force ``at`` a time (now), or in force or to come if it is left out; ``history``: all."""

    name: Name | None = None
    layer: Layer | None = None
    origin: RuleOrigin | None = None
    at: Time | None = None
    history: bool = False
    limit: PageLimit = 100
    cursor: Text | None = None


class PriceRuleList(Reply, frozen=True, kw_only=True):
    """Rules of the org by name, then the agent's, then the defaults."""

    rules: list[PriceRuleVersion]
    next_cursor: str | None


class SetModelAlias(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Calls of ``alias`` at ``provider`` (names, or patterns with '*') are calls of another model, e.g. a deployment.

    ``to_provider`` left out: the same provider. Without ``to_model`` the alias ends.
    """

    provider: Pattern
    alias: Pattern
    to_provider: Name | None = None
    to_model: Name | None = None
    valid_from: Time | None = None
    backdate: bool = False
    version: RuleVersion = 0
    reason: Text | None = None


class ModelAlias(Reply, frozen=True, kw_only=True):
    """One version of an alias; ``to_model`` null: it ends."""

    provider: str
    alias: str
    version: int
    state: RuleState
    to_provider: str | None
    to_model: str | None
    valid_from: Time | None
    set_at: Time
    set_by: str
    reason: str | None = None


class ModelAliasReply(Reply, frozen=True, kw_only=True):
    """The version written."""

    alias: ModelAlias
    revision: int
    warnings: list[str]


class ListModelAliases(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Aliases in force or to come; ``history``: every version."""

    provider: Pattern | None = None
    history: bool = False
    limit: PageLimit = 100
    cursor: Text | None = None


class ModelAliasList(Reply, frozen=True, kw_only=True):
    """By provider, alias and version."""

    aliases: list[ModelAlias]
    next_cursor: str | None
