"""The agent about itself: health, lag, reconciliation, and the contract it speaks."""

from typing import Any, Literal

from .base import Reply, Request, Time
from .exchange import ExchangeRate


class GetStatus(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the agent is. ``reconcile`` also recomputes the sums of the org (reads every open window).

    ``reconcile`` and the reply's ``compliance`` are for viewers, managers, approvers, finance and admins.
    """

    reconcile: bool = False


class IngestStatus(Reply, frozen=True, kw_only=True):
    """How far PostgreSQL is behind the stream."""

    stream: str
    stored_messages: int | None
    oldest_unapplied: Time | None
    lag_s: float | None
    applied_events: int
    duplicates: int
    dead_letters_open: int | None


class ReservationCounts(Reply, frozen=True, kw_only=True):
    """Live reservations of the org and what they hold."""

    live: int
    oldest_expires_at: Time | None


class ReconciledCurrency(Reply, frozen=True, kw_only=True):
    """Costs in one currency: of events with their adjustments, and of rollups."""

    currency: str
    event_cost: str
    rollup_cost: str


class Reconciliation(Reply, frozen=True, kw_only=True):
    """Sums that must be equal. Those of events include adjustments. Cost is in USD; ``currencies`` has every one."""

    ok: bool
    events: int
    event_cost: str
    rollup_cost: str
    event_tokens: int
    rollup_tokens: int
    window_spent: str
    window_charges: str
    windows_checked: int
    windows_differing: int
    reserved: str
    live_held: str
    adjustments: int = 0
    currencies: list[ReconciledCurrency] = []


class Part(Reply, frozen=True, kw_only=True):
    """One dependency or loop."""

    name: str
    ok: bool
    detail: str | None = None


class DecisionCount(Reply, frozen=True, kw_only=True):
    """Checks decided one way: ``approved``, or a denial by its code."""

    name: str
    count: int


class NeverSettled(Reply, frozen=True, kw_only=True):
    """Reservations of one caller (``name``) that expired: nobody said what their calls took; at most ``cost``."""

    name: str
    count: int
    cost: str
    currency: str = "USD"


class OverrunCause(Reply, frozen=True, kw_only=True):
    """What found no room, over all windows of a unit, and why it was not reserved. ``charges`` counts the times."""

    name: str
    cause: str
    unit: str
    amount: str
    charges: int
    currency: str | None = None


class Compliance(Reply, frozen=True, kw_only=True):
    """How well the org asks first, since a day. Percentages are null where there was nothing to share.

    Costs are in the org's own currency, those in others converted at ``rates``; ``missing_rates`` are the pairs without
    one, whose costs are left out.
    """

    since: Time
    requests: int
    reserved_requests: int
    reserved_first_percent: float | None
    checks: int
    approved: int
    within_budget_percent: float | None
    decisions: list[DecisionCount]
    never_settled: list[NeverSettled]
    overrun: list[OverrunCause]
    rates: list[ExchangeRate] = []
    missing_rates: list[str] = []


class Status(Reply, frozen=True, kw_only=True):
    """Health, version, lag, live reservations, reconciliation results."""

    healthy: bool
    version: str
    contract: str
    instance: str
    org: str
    started_at: Time
    now: Time
    parts: list[Part]
    ingest: IngestStatus
    reservations: ReservationCounts | None
    requests: dict[str, Any]
    outbox_pending: int | None
    reconciliation: Reconciliation | None = None
    compliance: Compliance | None = None


class Describe(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contract: an AsyncAPI 3 document with JSON Schemas, or the schemas of one signal."""

    format: Literal["asyncapi", "signals"] = "asyncapi"
    signal: str | None = None


class Description(Reply, frozen=True, kw_only=True):
    """``document`` is the AsyncAPI document, or the list of signals with their schemas."""

    contract: str
    format: str
    document: dict[str, Any]
