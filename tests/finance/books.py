"""What invoices are compared with: sums over ``usage_posting``, asked of PostgreSQL by hand."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from handlers.context import Services
from schemas.invoice import Invoice
from schemas.money import format_cost
from tests.support.services import ORG


async def posted(services: Services, start: datetime, end: datetime, where: str = "true", *args: Any) -> dict[str, Any]:
    """Sums of every posting of a half-open time range, costs in nanos."""
    row = await services.database.fetch(
        f"""SELECT coalesce(sum(cost), 0)::bigint AS cost,
            coalesce(sum(coalesce(list_cost, cost)), 0)::bigint AS list_cost,
            coalesce(sum(requests), 0)::bigint AS requests, coalesce(sum(prompt_tokens), 0)::bigint AS prompt_tokens,
            coalesce(sum(completion_tokens), 0)::bigint AS completion_tokens,
            coalesce(sum(requests) FILTER (WHERE cost_status = 'unpriced'), 0)::bigint AS unpriced
            FROM usage_posting WHERE org_id = $1 AND "timestamp" >= $2 AND "timestamp" < $3 AND {where}""",
        ORG,
        start,
        end,
        *args,
    )
    return dict(row[0])


async def billed(services: Services, payer_type: str = "org", payer_id: str = "") -> int:
    """Nanos that all invoices and credit notes of a payer come to, in the currency of the usage."""
    return await services.database.fetchval(
        """SELECT coalesce(sum(l.cost), 0)::bigint FROM invoice i JOIN invoice_line l USING (org_id, invoice_id)
            WHERE i.org_id = $1 AND i.payer_type = $2 AND i.payer_id = $3""",
        ORG,
        payer_type,
        payer_id,
    )


def text(nanos: int) -> str:
    """As an amount stands on the wire."""
    return format_cost(nanos)


def adds_up(invoice: Invoice) -> None:
    """Lines, subtotals and totals say the same, to the last decimal."""
    totals = invoice.totals
    assert len(invoice.lines) == invoice.line_count
    for line in invoice.lines:
        assert Decimal(line.list_price) - Decimal(line.discount) == Decimal(line.net)
    for name in ("list_price", "discount", "net"):
        total = Decimal(totals.subtotal if name == "net" else getattr(totals, name))
        for parts in (invoice.lines, invoice.by_model, invoice.by_project):
            assert sum((Decimal(getattr(part, name)) for part in parts), Decimal(0)) == total
    total = Decimal(totals.subtotal) + Decimal(totals.markup) + Decimal(totals.tax)
    assert total == Decimal(totals.total)
    assert total + Decimal(totals.rounding) == Decimal(totals.due)
