"""What somebody owes for a period: ``prepare_invoice`` and what becomes of invoices."""

from datetime import date
from typing import Annotated, Literal

from msgspec import Meta

from .base import Name, Reply, Request, Text, Time
from .finance import ConvertedAmount, Percent, PeriodRequest

PayerType = Literal["org", "team", "project", "cost_center", "user"]
InvoiceKind = Literal["invoice", "credit_note"]
Section = Annotated[
    Literal["usage", "adjustment", "share", "commitment", "earlier", "billed"],
    Meta(
        description="usage of the period; adjustment of it; share of a shared cost; commitment not reached; earlier: "
        "what changed in a period that was invoiced already; billed: part of this period that an invoice had."
    ),
]
Page = Annotated[int, Meta(ge=1, le=10_000)]
LongText = Annotated[str, Meta(max_length=2_048, description="Free text, lines as they stand.")]


class Payer(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Whose usage is invoiced; ``org``: all of it. ``allocated``: with its shares by the org's allocation rules."""

    type: PayerType = "org"
    entity_id: Name | None = None
    allocated: bool = False


class PrepareInvoice(PeriodRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Draft an invoice, or issue it (``status`` final: numbered, stored, never changed; needs a ``request_id``)."""

    payer: Payer = Payer()
    status: Literal["draft", "final"] = "draft"
    request_id: Name | None = None
    markup_percent: Percent = "0"
    tax_percent: Percent = "0"
    tax_label: Annotated[str, Meta(min_length=1, max_length=64)] = "Tax"
    bill_to: LongText = ""
    note: LongText = ""
    due_days: Annotated[int, Meta(ge=0, le=365)] = 30
    limit: Page = 1_000
    cursor: Text | None = None


class VoidInvoice(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Take an invoice back by a credit note; ``invoice_id`` is its id or its number."""

    invoice_id: Name
    reason: Annotated[str, Meta(min_length=1, max_length=2_048)]


class ListInvoices(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Invoices and credit notes, newest first."""

    kind: InvoiceKind | None = None
    payer_type: PayerType | None = None
    entity_id: Name | None = None
    year: Annotated[int, Meta(ge=2000, le=2999)] | None = None
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 100
    cursor: Text | None = None


class GetInvoice(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One invoice or credit note by its id or number. ``lines`` are paged; a file comes in parts, by ``cursor``."""

    invoice_id: Name
    format: Literal["document", "json", "csv", "html", "pdf"] = "document"
    limit: Page = 1_000
    cursor: Text | None = None


class InvoiceLine(Reply, frozen=True, kw_only=True):
    """One line. ``list_price`` less ``discount`` is ``net``, in the invoice's currency; ``cost``: in ``currency``.

    ``input_tokens`` are neither read from nor written to a cache; ``output_tokens`` include ``reasoning_tokens``.
    ``unpriced_requests`` of ``requests`` have no cost yet. ``corrects``: the number of the invoice it changes.
    """

    position: int
    section: Section
    kind: str
    description: str
    period_start: Time
    period_end: Time
    provider: str | None
    model: str | None
    project_id: str | None
    rule: str | None
    requests: int
    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    unpriced_requests: int
    currency: str
    cost: str
    list_price: str
    discount: str
    net: str
    corrects: str | None = None


class InvoiceSubtotal(Reply, frozen=True, kw_only=True):
    """Everything of one model, or of one project; null: what has none. Each list of subtotals sums to the subtotal.

    ``others`` above 0: the last of a long list, which sums so many more.
    """

    provider: str | None
    model: str | None
    project_id: str | None
    requests: int
    total_tokens: int
    list_price: str
    discount: str
    net: str
    others: int = 0


class InvoiceRate(Reply, frozen=True, kw_only=True):
    """What calls of the period were priced at: units of one kind at one rate per million; null: as reported."""

    provider: str
    model: str
    kind: str
    currency: str
    quantity: int
    rate_per_million: str | None
    list_rate_per_million: str | None
    cost: str


class OpenPoint(Reply, frozen=True, kw_only=True):
    """Usage without a price: not free, it will be on a later invoice once it is priced."""

    provider: str
    model: str
    project_id: str | None
    requests: int
    total_tokens: int


class InvoiceTotals(Reply, frozen=True, kw_only=True):
    """``subtotal`` is the sum of the lines; with markup, tax and rounding to what can be paid it is ``due``."""

    list_price: str
    discount: str
    subtotal: str
    markup_percent: str
    markup: str
    tax_label: str
    tax_percent: str
    tax: str
    total: str
    rounding: str
    due: str


class Invoice(Reply, frozen=True, kw_only=True):
    """An invoice, a credit note or a draft. ``lines`` is one page of ``line_count`` lines.

    A draft has no number and is stored nowhere. ``status`` void: a credit note (``credited_by``) took it back.
    """

    invoice_id: str | None
    number: str | None
    kind: InvoiceKind
    status: Literal["draft", "final", "void"]
    org: str
    issuer: str
    payer_type: PayerType
    entity_id: str | None
    allocated: bool
    bill_to: str
    period_start: Time
    period_end: Time
    timezone: str
    first_day: date
    last_day: date
    issued_at: Time
    issued_on: date
    due_on: date
    issued_by: str
    currency: str
    line_count: int
    lines: list[InvoiceLine]
    by_model: list[InvoiceSubtotal]
    by_project: list[InvoiceSubtotal]
    totals: InvoiceTotals
    rates: list[InvoiceRate]
    open_points: list[OpenPoint]
    exchange_rates: list[ConvertedAmount]
    notes: list[str]
    note: str
    corrects: str | None = None
    reason: str | None = None
    credited_by: str | None = None
    next_cursor: str | None = None


class InvoiceSummary(Reply, frozen=True, kw_only=True):
    """One invoice in a list."""

    invoice_id: str
    number: str
    kind: InvoiceKind
    status: Literal["final", "void"]
    payer_type: PayerType
    entity_id: str | None
    allocated: bool
    period_start: Time
    period_end: Time
    issued_at: Time
    issued_by: str
    currency: str
    subtotal: str
    due: str
    corrects: str | None = None
    credited_by: str | None = None


class InvoiceList(Reply, frozen=True, kw_only=True):
    """One page of invoices."""

    invoices: list[InvoiceSummary]
    next_cursor: str | None


class InvoiceFile(Reply, frozen=True, kw_only=True):
    """A part of an invoice as a file. ``content`` is text, or base64 as ``encoding`` says; append the parts in order.

    ``size_bytes`` and ``sha256`` are those of the whole file.
    """

    invoice_id: str
    number: str
    format: str
    media_type: str
    filename: str
    encoding: Literal["utf-8", "base64"]
    content: str
    size_bytes: int
    sha256: str
    next_cursor: str | None = None


class FoundInvoice(Reply, frozen=True, kw_only=True):
    """The invoice, or a part of it as a file where a format was asked for."""

    invoice: Invoice | None = None
    file: InvoiceFile | None = None

    @property
    def verbatim(self) -> bool:
        """Names are written into a file when it is made, escaped as its format needs it."""
        return self.file is not None
