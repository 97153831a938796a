"""Gathers what an invoice is made of: sums of the period and of what was invoiced before, as of one moment."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

import msgspec

from handlers.context import Context
from handlers.finance.allocate import borne_sums
from handlers.finance.allocation import shares_of
from handlers.finance.aside import aside
from handlers.finance.commitments import shortfalls
from handlers.finance.conversion import Conversion
from handlers.finance.invoice_reply import open_points, shown_rate, shown_totals, subtotals
from handlers.finance.period import Period
from handlers.finance.rules import conditions, stored_rules
from handlers.finance.statement import Owed, lines_of
from schemas.allocation import AllocationRule
from schemas.base import to_builtins
from schemas.errors import SignalError, conflict, invalid, not_found
from schemas.invoice import Invoice, InvoiceRate, Payer, PrepareInvoice
from schemas.money import format_cost
from store import invoices as invoice_store
from store.invoices import InvoiceRow, LineKey, LineRow, Measures, PayerKey
from store.pool import Connection


@dataclass(frozen=True, slots=True)
class Sheet:
    """A draft without its lines, the lines, and what later invoices need to know of this one."""

    draft: Invoice
    lines: list[LineRow]
    exact_rates: dict[str, str]
    rules: list[Any]


def payer_of(ctx: Context, payer: Payer) -> PayerKey:
    """Whose invoices they are, a user as a surrogate. Raises SignalError naming the field below ``payer``."""
    if payer.type == "org":
        if payer.entity_id is not None:
            raise invalid("is not wanted where the org pays", field="payer.entity_id")
        if payer.allocated:
            raise invalid("the org has all cost: there is nothing to allocate to it", field="payer.allocated")
        return PayerKey("org", "", allocated=False)
    if payer.entity_id is None:
        raise invalid(f"names the {payer.type}", field="payer.entity_id")
    entity = payer.entity_id
    if payer.type == "user":
        try:
            entity = ctx.user_key(entity)
        except SignalError as error:
            raise invalid(error.message, field="payer.entity_id") from None
    return PayerKey(payer.type, entity, payer.allocated)


async def sheet_of(
    ctx: Context,
    connection: Connection,
    payer: PayerKey,
    period: Period,
    request: PrepareInvoice,
    conversion: Conversion,
    at: datetime,
) -> Sheet:
    """The invoice as it would be now. Raises SignalError where the period is invoiced already, or nobody is known."""
    limits = ctx.services.limits
    standing = await invoice_store.standing(connection, ctx.org, payer, limits.invoice_corrected_max)
    await _refuse_overlap(connection, ctx.org, payer, period)
    earlier = [row for row in standing if row.period_end <= period.start]
    rules: list[AllocationRule] = []
    if payer.allocated:
        rules, _ = await stored_rules(connection, ctx.org, payer.type)
    gather = _Gathering(ctx, connection, payer)
    owed = [await gather.owed(period, rules, conversion, None)]
    owed += [await gather.owed_again(row, period.timezone, conversion) for row in earlier]
    lines = await aside(ctx, lambda: lines_of(owed))
    if len(lines) > limits.invoice_lines_max:
        text = f"more than {limits.invoice_lines_max} lines: take a shorter period"
        raise SignalError("too_large", text, field=period.field)
    if not lines and not standing and payer.type != "org":
        raise not_found(f"no usage of {payer.type} '{payer.entity_id}' in this period", field="payer.entity_id")
    for line in lines:
        if line.section != "earlier":
            conversion.saw(line.currency, line.cost)
    rates, notes = await _rates(ctx, connection, payer, period, rules, owed[0])
    notes += gather.notes
    notes += await _notes(ctx, connection, payer, period, standing, lines, conversion)
    draft = await aside(ctx, lambda: _draft(ctx, payer, period, request, conversion, lines, rates, notes, at))
    return Sheet(draft, lines, conversion.exact(), [to_builtins(rule) for rule in rules])


async def _refuse_overlap(connection: Connection, org: str, payer: PayerKey, period: Period) -> None:
    bounds = {"start": period.start, "end": period.end}
    if (number := await invoice_store.overlapping(connection, org, payer, **bounds)) is not None:
        raise conflict(f"{number} has invoiced this payer for part of this period: void it first", field=period.field)
    if (across := await invoice_store.billed_across(connection, org, payer, **bounds)) is not None:
        first, last = map(_day, across)
        text = f"later invoices have corrected what was invoiced from {first} to {last}: invoice that period as a whole"
        raise conflict(text, field=period.field)


class _Gathering:
    """Sums of one payer, period by period."""

    def __init__(self, ctx: Context, connection: Connection, payer: PayerKey) -> None:
        self._ctx = ctx
        self._connection = connection
        self._payer = payer
        self.notes: list[str] = []

    async def owed(
        self, period: Period, rules: list[AllocationRule], conversion: Conversion, corrects: str | None
    ) -> Owed:
        """What is owed for one period."""
        org, payer, connection = self._ctx.org, self._payer, self._connection
        most = self._ctx.services.limits.invoice_lines_max
        now = await invoice_store.used_sums(
            connection, org, payer, start=period.start, end=period.end, shared=conditions(rules), limit=most
        )
        if rules:
            sums = await borne_sums(self._ctx, connection, period, payer.type, None, rules)
            shares = await aside(self._ctx, lambda: shares_of(payer.entity_id, sums, rules, conversion.rate))
            for (rule, currency), part in shares.items():
                now[LineKey("share", None, None, None, rule, currency)] = Measures(
                    cost=part.cost, list_cost=part.list_cost
                )
        if payer.type == "org":
            missing, unjudged = await shortfalls(connection, org, period.start, period.end)
            now |= missing
            if unjudged and corrects is None:
                self.notes.append("Commitments are counted by calendar months (UTC), and are not part of this period.")
        billed = await invoice_store.billed_sums(connection, org, payer, start=period.start, end=period.end)
        return Owed(period.start, period.end, now, billed, conversion, corrects)

    async def owed_again(self, row: InvoiceRow, timezone: str, conversion: Conversion) -> Owed:
        """What has changed in a period that was invoiced before, by the rules and at the rates it was invoiced by."""
        rules = msgspec.convert(row.document.get("rules", []), list[AllocationRule])
        if row.currency == conversion.currency:
            frozen = {currency: Fraction(rate) for currency, rate in row.document["rates"].items()}
            conversion = conversion.at_rates(frozen)
        period = Period(row.period_start, row.period_end, timezone, "start")
        return await self.owed(period, rules, conversion, row.number)


async def _rates(
    ctx: Context,
    connection: Connection,
    payer: PayerKey,
    period: Period,
    rules: list[AllocationRule],
    owed: Owed,
) -> tuple[list[InvoiceRate], list[str]]:
    """What the period's calls were priced at, where that can be said in bounded time, or a note."""
    limits = ctx.services.limits
    usage = {key: measures for key, measures in owed.now.items() if key.provider is not None}
    if sum(measures.requests for measures in usage.values()) > limits.invoice_rates_requests_max:
        return [], ["The rates are left out: there are too many calls to list them with the invoice."]
    found = await invoice_store.price_sums(
        connection,
        ctx.org,
        payer,
        start=period.start,
        end=period.end,
        shared=conditions(rules),
        limit=limits.invoice_rates_max,
    )
    found = found[: limits.invoice_rates_max]
    notes: list[str] = []
    for currency in sorted({key.currency for key in usage} | {rate.currency for rate in found}):
        lines = sum(measures.cost for key, measures in usage.items() if key.currency == currency)
        rated = sum(rate.cost for rate in found if rate.currency == currency)
        if lines != rated:
            notes.append(
                f"The rates listed cover {format_cost(rated)} of {format_cost(lines)} {currency}: "
                "there are more, not every call is kept in full, or usage arrived meanwhile."
            )
    return [shown_rate(rate) for rate in found], notes


async def _notes(
    ctx: Context,
    connection: Connection,
    payer: PayerKey,
    period: Period,
    standing: list[InvoiceRow],
    lines: list[LineRow],
    conversion: Conversion,
) -> list[str]:
    notes: list[str] = []
    before = [row for row in standing if row.period_end <= period.start]
    if len(standing) >= ctx.services.limits.invoice_corrected_max:
        notes.append(f"Changes of usage before {_day(standing[-1].period_start)} are not looked for any more.")
    if before and before[0].period_end < period.start:
        notes.append(f"Usage from {_day(before[0].period_end)} to {_day(period.start)} is on no invoice.")
    if any(line.section == "earlier" for line in lines):
        notes.append("Lines of earlier periods are what changed since their invoices were issued, at rates of these.")
    others = await invoice_store.overlapping_payers(connection, ctx.org, payer, start=period.start, end=period.end)
    if others:
        notes.append(f"Other payers have been invoiced in this period, maybe for the same usage: {', '.join(others)}.")
    notes += [
        f"The rate {rate.currency}/{conversion.currency} is of {rate.as_of}, the newest there was."
        for rate in conversion.told()
        if rate.stale
    ]
    unpriced = sum(line.unpriced_requests for line in lines)
    if unpriced > 0:
        notes.append(f"{unpriced} requests have no price yet. They are not free: see the open points.")
    return notes


def _day(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def _draft(
    ctx: Context,
    payer: PayerKey,
    period: Period,
    request: PrepareInvoice,
    conversion: Conversion,
    lines: list[LineRow],
    rates: list[InvoiceRate],
    notes: list[str],
    at: datetime,
) -> Invoice:
    today = Period(at, at + timedelta(seconds=1), period.timezone, "").first_day
    currency = conversion.currency
    most = ctx.services.limits.invoice_subtotals_max
    points = open_points(lines)
    if len(points) > most:
        notes = [*notes, f"The open points are the first {most} of {len(points)}."]
    return Invoice(
        invoice_id=None,
        number=None,
        kind="invoice",
        status="draft",
        org=ctx.org,
        issuer=ctx.services.org_settings(ctx.org).invoice_issuer,
        payer_type=payer.type,  # pyright: ignore[reportArgumentType]
        entity_id=payer.entity_id or None,
        allocated=payer.allocated,
        bill_to=request.bill_to,
        period_start=period.start,
        period_end=period.end,
        timezone=period.timezone,
        first_day=period.first_day,
        last_day=period.last_day,
        issued_at=at,
        issued_on=today,
        due_on=today + timedelta(days=request.due_days),
        issued_by=ctx.caller.actor,
        currency=currency,
        line_count=len(lines),
        lines=[],
        by_model=subtotals(lines, lambda line: (line.provider, line.model, None), most),
        by_project=subtotals(lines, lambda line: (None, None, line.project_id), most),
        totals=shown_totals(lines, currency, request.markup_percent, request.tax_percent, request.tax_label),
        rates=rates,
        open_points=points[:most],
        exchange_rates=conversion.told(),
        notes=notes,
        note=request.note,
    )
