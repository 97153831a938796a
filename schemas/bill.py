"""Providers' bills beside the org's own usage: ``reconcile_bill``, ``list_bills``."""

from datetime import date
from typing import Annotated, Any, Literal

from msgspec import Meta

from .base import Amount, Currency, Name, Reply, Request, Text, Time, Tokens
from .usage import UsageFilters

BillFormat = Literal["openai_usage", "openai_costs", "anthropic_usage", "anthropic_cost", "generic"]
ReasonCode = Literal[
    "usage_not_tracked",
    "not_billed",
    "token_count_differs",
    "price_differs",
    "cache_priced_differently",
    "batch_or_tier",
    "unpriced_here",
    "adjusted",
    "day_boundary",
    "currency",
    "rounding",
    "unexplained",
]


class BillColumns(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the columns of a ``generic`` file are called there. Some cost or token column is needed besides ``date``."""

    date: Name
    model: Name | None = None
    calls: Name | None = None
    input_tokens: Name | None = None
    output_tokens: Name | None = None
    cache_read_tokens: Name | None = None
    cache_write_tokens: Name | None = None
    cost: Name | None = None
    currency: Name | None = None
    tier: Name | None = None


class ReconcileBill(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Import a provider's usage or cost CSV and compare it with usage, by day (UTC) and model.

    Larger files, and files of several kinds, come in parts from 1 on, each with the header; the comparison is made when
    the ``last`` one has come. The same part again changes nothing; another one under its number is a ``conflict``,
    unless part 1 says ``replace``. Without ``csv`` a complete bill is compared again with the present usage, and with
    ``cursor`` the next page of the stored comparison is read. ``input_includes_cache`` is for ``generic`` files.
    """

    bill_id: Name
    provider: Name | None = None
    csv: Annotated[str, Meta(max_length=700_000)] | None = None
    part: Annotated[int, Meta(ge=1, le=1_000)] = 1
    last: bool = True
    replace: bool = False
    format: Literal["auto", BillFormat] = "auto"
    columns: BillColumns | None = None
    input_includes_cache: bool = True
    currency: Annotated[Currency, Meta(description="Of costs whose currency the file does not state.")] = "USD"
    filters: Annotated[UsageFilters, Meta(description="Which usage the bill is for.")] = UsageFilters()
    compare: Annotated[Literal["net", "list"], Meta(description="Which of our costs is compared.")] = "net"
    tolerance: Annotated[Amount, Meta(description="Of the cost of one day and model.")] = "0.01"
    token_tolerance: Tokens = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class Compared(Reply, frozen=True, kw_only=True):
    """A count of ours and of theirs; null: not stated. ``difference`` is theirs less ours."""

    ours: int | None
    theirs: int | None
    difference: int | None


class ComparedCost(Reply, frozen=True, kw_only=True):
    """As ``Compared``, amounts. The difference is null where currencies differ."""

    ours: str | None
    theirs: str | None
    difference: str | None


class ComparedKind(Reply, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens (or searches, or requests) of one kind; rates per million, theirs as their amounts imply it."""

    kind: str
    quantity: Compared
    cost: ComparedCost | None = None
    our_rate: str | None = None
    their_rate: str | None = None


class Why(Reply, frozen=True, kw_only=True, omit_defaults=True):
    """One cause of a difference. ``amount`` is the part of the cost difference it explains, where that is known."""

    code: ReasonCode
    message: str
    amount: str | None = None
    evidence: dict[str, Any] = {}


class BillRow(Reply, frozen=True, kw_only=True):
    """One day and model, as we name it; ``model`` null: a cost that the bill does not break down by model."""

    day: date
    model: str | None
    our_names: list[str]
    their_names: list[str]
    calls: Compared
    kinds: list[ComparedKind]
    cost: ComparedCost
    currency: str
    matched: bool
    reasons: list[Why]


class Suggestion(Reply, frozen=True, kw_only=True):
    """A request that would settle a difference, ready to be sent by whoever agrees. Nothing is sent by itself."""

    signal: str
    body: dict[str, Any]
    why: str


class ReasonSum(Reply, frozen=True, kw_only=True):
    """How many rows have a cause, and how much of the cost difference it explains where that is known."""

    code: ReasonCode
    rows: int
    amount: str


class BillSummary(Reply, frozen=True, kw_only=True):
    """The whole comparison. Costs are in ``currency``, the one that the bill is in."""

    period_start: date | None
    period_end: date | None
    currency: str
    rows: int
    matched: int
    calls: Compared
    tokens: Compared
    cost: ComparedCost
    reasons: list[ReasonSum]
    suggestions: list[Suggestion]


class Bill(Reply, frozen=True, kw_only=True):
    """An imported bill. ``summary`` is null until it is complete and has been compared."""

    bill_id: str
    provider: str
    status: Literal["open", "complete"]
    parts: int
    formats: list[BillFormat]
    lines: int
    imported_at: Time
    imported_by: str
    compared_at: Time | None
    summary: BillSummary | None


class ReconciledBill(Reply, frozen=True, kw_only=True):
    """A bill and a page of its rows, the largest cost differences first. ``duplicate``: this part was there already."""

    bill: Bill
    duplicate: bool
    rows: list[BillRow]
    next_cursor: str | None


class ListBills(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Imported bills, newest first, in pages."""

    provider: Name | None = None
    status: Literal["open", "complete"] | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class BillList(Reply, frozen=True, kw_only=True):
    """One page of bills; ``next_cursor`` is null on the last one."""

    bills: list[Bill]
    next_cursor: str | None
