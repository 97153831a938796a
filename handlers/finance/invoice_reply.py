"""An invoice as it stands on the wire, made of its lines. Pure."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from handlers.enforcer.calendar import zone
from handlers.finance.statement import totals_of
from schemas.invoice import (
    Invoice,
    InvoiceLine,
    InvoiceRate,
    InvoiceSubtotal,
    InvoiceSummary,
    InvoiceTotals,
    OpenPoint,
)
from schemas.money import format_cost
from store.invoices import InvoiceRow, LineRow, PricedSum

_ADJUSTED = {
    "void": "Voided calls",
    "correct": "Corrected calls",
    "refund": "Refunds",
    "reprice": "Calls priced anew",
    "usage": "Late usage",
}


def shown_line(position: int, line: LineRow) -> InvoiceLine:
    """One line; tokens are split into disjoint kinds."""
    return InvoiceLine(
        position=position,
        section=line.section,  # pyright: ignore[reportArgumentType]
        kind=line.kind,
        description=_description(line),
        period_start=line.period_start,
        period_end=line.period_end,
        provider=line.provider,
        model=line.model,
        project_id=line.project_id,
        rule=line.rule,
        requests=line.requests,
        input_tokens=line.prompt_tokens - line.cache_read_tokens - line.cache_write_tokens,
        cache_read_tokens=line.cache_read_tokens,
        cache_write_tokens=line.cache_write_tokens,
        output_tokens=line.completion_tokens,
        reasoning_tokens=line.reasoning_tokens,
        unpriced_requests=line.unpriced_requests,
        currency=line.currency,
        cost=format_cost(line.cost),
        list_price=format_cost(line.list_net),
        discount=format_cost(line.list_net - line.net),
        net=format_cost(line.net),
        corrects=line.corrects,
    )


def _description(line: LineRow) -> str:
    name = " ".join(part for part in (line.provider, line.model) if part)
    if line.kind == "share":
        name = f"Share of {line.rule}"
    elif line.kind == "commitment":
        name = f"Commitment {line.rule}, not reached"
    if line.section == "earlier" and line.kind not in ("share", "commitment"):
        return f"{_ADJUSTED.get(line.kind, line.kind)}: {name}"
    if line.section == "billed":
        return f"Billed already: {name}"
    return f"{_ADJUSTED.get(line.kind, line.kind)}: {name}" if line.section == "adjustment" else name


def subtotals(
    lines: Sequence[LineRow], key: Callable[[LineRow], tuple[str | None, ...]], most: int
) -> list[InvoiceSubtotal]:
    """Sums by provider, model and project as ``key`` has them, dearest first; beyond ``most`` the rest is one sum."""
    groups: dict[tuple[str | None, ...], list[LineRow]] = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    ordered = sorted(groups.items(), key=lambda g: (-sum(line.net for line in g[1]), [name or "" for name in g[0]]))
    shown = [_subtotal(names, own) for names, own in ordered[:most]]
    if rest := ordered[most:]:
        shown.append(_subtotal((None, None, None), [line for _, own in rest for line in own], others=len(rest)))
    return shown


def _subtotal(names: tuple[str | None, ...], own: Sequence[LineRow], others: int = 0) -> InvoiceSubtotal:
    provider, model, project_id = names
    net, list_net = sum(line.net for line in own), sum(line.list_net for line in own)
    return InvoiceSubtotal(
        provider=provider,
        model=model,
        project_id=project_id,
        requests=sum(line.requests for line in own),
        total_tokens=sum(line.prompt_tokens + line.completion_tokens for line in own),
        list_price=format_cost(list_net),
        discount=format_cost(list_net - net),
        net=format_cost(net),
        others=others,
    )


def shown_totals(lines: Sequence[LineRow], currency: str, markup: str, tax: str, label: str) -> InvoiceTotals:
    """What is owed."""
    found = totals_of(lines, currency, markup, tax)
    return InvoiceTotals(
        list_price=format_cost(found.list_net),
        discount=format_cost(found.list_net - found.net),
        subtotal=format_cost(found.net),
        markup_percent=markup,
        markup=format_cost(found.markup),
        tax_label=label,
        tax_percent=tax,
        tax=format_cost(found.tax),
        total=format_cost(found.total),
        rounding=format_cost(found.rounding),
        due=format_cost(found.due),
    )


def shown_rate(found: PricedSum) -> InvoiceRate:
    """Units of a kind at a rate."""
    return InvoiceRate(
        provider=found.provider,
        model=found.model,
        kind=found.kind,
        currency=found.currency,
        quantity=found.quantity,
        rate_per_million=None if found.rate is None else format_cost(found.rate),
        list_rate_per_million=None if found.list_rate is None else format_cost(found.list_rate),
        cost=format_cost(found.cost),
    )


def open_points(lines: Sequence[LineRow]) -> list[OpenPoint]:
    """Usage that has no price yet, by model and project: requests that are, on balance, still open."""
    groups: dict[tuple[str, str, str | None], list[LineRow]] = {}
    for line in lines:
        if line.unpriced_requests and line.provider is not None and line.model is not None:
            groups.setdefault((line.provider, line.model, line.project_id), []).append(line)
    return [
        OpenPoint(
            provider=provider,
            model=model,
            project_id=project,
            requests=requests,
            total_tokens=sum(line.unpriced_tokens for line in own),
        )
        for (provider, model, project), own in sorted(groups.items(), key=lambda g: [name or "" for name in g[0]])
        if (requests := sum(line.unpriced_requests for line in own)) > 0
    ]


def issued(draft: Invoice, row_id: str, number: str, at: Any, timezone: str, due_days: int) -> Invoice:
    """A draft that has become a document."""
    day = at.astimezone(zone(timezone)).date()
    return msgspec.structs.replace(
        draft,
        invoice_id=row_id,
        number=number,
        status="final",
        issued_at=at,
        issued_on=day,
        due_on=day + timedelta(days=due_days),
    )


def stored(row: InvoiceRow, lines: Sequence[InvoiceLine], cursor: str | None) -> Invoice:
    """A document as it was issued, with one page of its lines, and whether it was taken back since."""
    found = msgspec.convert(row.document["invoice"], Invoice)
    return msgspec.structs.replace(
        found,
        status="void" if row.credited_by is not None else "final",
        credited_by=row.credited_by,
        lines=list(lines),
        next_cursor=cursor,
    )


def summary(row: InvoiceRow) -> InvoiceSummary:
    """One document in a list."""
    return InvoiceSummary(
        invoice_id=row.invoice_id,
        number=row.number,
        kind="invoice" if row.series == "INV" else "credit_note",
        status="final" if row.credited_by is None else "void",
        payer_type=row.payer_type,  # pyright: ignore[reportArgumentType]
        entity_id=row.payer_id or None,
        allocated=row.allocated,
        period_start=row.period_start,
        period_end=row.period_end,
        issued_at=row.issued_at,
        issued_by=row.issued_by,
        currency=row.currency,
        subtotal=format_cost(row.net),
        due=format_cost(row.due),
        corrects=row.corrects_number,
        credited_by=row.credited_by,
    )
