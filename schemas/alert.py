"""Alerts: what was noticed about money, the rules that want to hear of it, and what happens then."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from .base import Amount, Currency, Name, Reply, Request, Text, Time
from .budget import BudgetFilters, BudgetType, Rate

AlertLevel = Literal["info", "warning", "critical", "exceeded"]
AlertKind = Literal[
    "threshold", "exceeded", "overrun", "hourly_rate", "absolute_tokens", "request_cost", "pacing"
]  # fmt: skip
RulePercent = Annotated[int, Meta(ge=1, le=1000)]
Minutes = Annotated[int, Meta(ge=1, le=44_640, description="Minutes; at most 31 days.")]
Names = Annotated[list[Name], Meta(max_length=20)]


class AlertScope(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a rule watches: one budget (by id or by name), or a type with an entity; nothing: everything.

    For ``threshold``, ``exceeded``, ``overrun`` and ``pacing`` a type means the budgets of that type; for the others
    the calls of that entity, ``*`` each entity for itself, narrowed by ``filters``. A budget stands there for the
    calls it counts.
    """

    budget_id: Name | None = None
    budget: Name | None = None
    type: BudgetType | None = None
    entity_id: Name = "*"
    filters: BudgetFilters = BudgetFilters()


class AlertParameters(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a rule fires; which of these a rule takes depends on its kind.

    ``threshold``: ``percents`` (those of the budget that matter; left out: all). ``hourly_rate``: ``limit`` in
    ``unit``, reached within 60 minutes. ``absolute_tokens``: ``limit`` tokens since the start of ``period`` in
    ``timezone``. ``request_cost``: ``limit``, exceeded by one call. ``pacing``: ``min_elapsed_percent`` of the window
    must have passed (10). A ``limit`` of cost is in ``currency``, left out: the org's; costs in others are converted,
    and those without an exchange rate do not count.
    """

    percents: Annotated[list[RulePercent], Meta(min_length=1, max_length=20)] | None = None
    limit: Amount | None = None
    currency: Currency | None = None
    unit: Literal["cost", "tokens"] | None = None
    period: Literal["daily", "weekly", "monthly", "yearly"] | None = None
    timezone: Name | None = None
    min_elapsed_percent: Annotated[int, Meta(ge=1, le=99)] | None = None


class AlertAction(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens, once, when a rule has raised an alert.

    ``log``: a line in the agent's log. ``notify`` and ``callback``: ``channels`` are told. ``rate_limit``: calls of the
    scope go on at ``rate`` for ``minutes``. ``switch_model``: ``model`` becomes the budget's first preferred model, or
    with ``place`` its fallback; for ``minutes``, until the window resets (``until_reset``), or for good. ``rollback``:
    the newest change of one of ``entities`` in the last ``within_hours``, after which the hourly rate rose above the
    rule's limit, is taken back.
    """

    do: Literal["log", "notify", "callback", "rate_limit", "switch_model", "rollback"]
    channels: Names | None = None
    rate: Rate | None = None
    minutes: Minutes | None = None
    model: Name | None = None
    place: Literal["preferred", "fallback"] | None = None
    until_reset: bool | None = None
    entities: Names | None = None
    within_hours: Annotated[int, Meta(ge=1, le=720)] | None = None


class SetAlertRule(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Create a rule, or replace the one of this name: then ``version`` is the one that was read.

    ``level`` overrides the one that follows from the kind. ``channels`` are told; with ``renotify_s`` again and again
    while it is true and nobody has acknowledged it. ``reason`` goes to the audit trail.
    """

    name: Name
    kind: AlertKind
    scope: AlertScope = AlertScope()
    parameters: AlertParameters = AlertParameters()
    level: AlertLevel | None = None
    channels: Names = []
    actions: Annotated[list[AlertAction], Meta(max_length=10)] = []
    renotify_s: Annotated[int, Meta(ge=60, le=2_592_000, description="Seconds.")] | None = None
    active: bool = True
    version: Annotated[int, Meta(ge=1)] | None = None
    reason: Text | None = None


class AlertRule(Reply, frozen=True, kw_only=True):
    """A rule as stored."""

    rule_id: str
    version: int
    name: str
    kind: str
    scope: AlertScope
    parameters: AlertParameters
    level: AlertLevel | None
    channels: list[str]
    actions: list[AlertAction]
    renotify_s: int | None
    active: bool
    created_at: Time
    updated_at: Time


class ListAlertRules(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules of the org by name."""

    kind: AlertKind | None = None
    active: bool | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class AlertRuleList(Reply, frozen=True, kw_only=True):
    """One page of rules."""

    rules: list[AlertRule]
    next_cursor: str | None


class DeleteAlertRule(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Take a rule away; ``version`` is the one that was read. Alerts it has raised stay."""

    name: Name
    version: Annotated[int, Meta(ge=1)]
    reason: Text | None = None


class DeletedAlertRule(Reply, frozen=True, kw_only=True):
    """The rule that is gone."""

    rule_id: str
    name: str


class Alert(Reply, frozen=True, kw_only=True):
    """Something that was noticed, once. Amounts in ``details`` are decimal strings in its ``unit``.

    ``rules`` is how many rules wanted it, ``rule`` the first of them. ``ended_at`` is when it was seen to be no longer
    true, or its rule watched no longer.
    """

    alert_id: str
    kind: str
    level: AlertLevel
    title: str
    message: str
    rule: str | None
    rules: int
    budget_id: str | None
    entity_id: str | None
    details: dict[str, Any]
    created_at: Time
    notified_at: Time | None
    renotify_at: Time | None
    ended_at: Time | None
    acknowledged_by: str | None
    acknowledged_at: Time | None
    comment: str | None


class ListAlerts(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Alerts, newest first."""

    level: AlertLevel | None = None
    kind: Name | None = None
    budget_id: Name | None = None
    state: Literal["open", "acknowledged"] | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class AlertList(Reply, frozen=True, kw_only=True):
    """One page of alerts."""

    alerts: list[Alert]
    next_cursor: str | None


class AcknowledgeAlert(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody looks after it: nobody is told again. Repeating it changes nothing; the first one counts."""

    alert_id: Name
    comment: Text | None = None
