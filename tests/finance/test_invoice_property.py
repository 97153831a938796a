"""Whatever is used, adjusted, invoiced and taken back, in whatever order: nothing is billed twice, nothing is lost."""

import itertools
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from handlers.adjustments.adjust import adjust_usage
from handlers.context import Context, Services
from handlers.finance.invoice import prepare_invoice, void_invoice
from schemas.adjustment import AdjustUsage
from schemas.errors import SignalError
from schemas.invoice import Payer, PrepareInvoice, VoidInvoice
from tests.support.ledger import examples
from tests.support.services import apply_usage, context, gpt

MONTHS = tuple(datetime(2026, month, 1, tzinfo=UTC) for month in (1, 2, 3, 4))
PAYERS = (Payer(), Payer(type="team", entity_id="red"), Payer(type="team", entity_id="blue"))
MODELS = ("gpt-4o", "gpt-4o-mini", "nobody-knows")
_orgs = itertools.count(1)

# Few months and payers, so that they meet: a month is corrected on the next invoice, taken back, and invoiced again.
use = st.tuples(
    st.just("use"),
    st.sampled_from([0, 0, 1, 2]),
    st.sampled_from(["red", "blue", None]),
    st.sampled_from(MODELS),
    st.integers(0, 999),
)
adjustment = st.tuples(st.just("adjust"), st.integers(0, 3), st.sampled_from(["void", "refund", "correct"]))
invoicing = st.tuples(st.just("issue"), st.sampled_from([0, 1, 1, 2]), st.sampled_from([0, 0, 0, 1]))
voiding = st.tuples(st.just("void"), st.integers(0, 2))
steps = st.lists(st.one_of(use, use, adjustment, invoicing, invoicing, voiding), min_size=8, max_size=40)


class Books:
    """One org that everything happens in."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.ctx: Context = context(services, org=f"org{next(_orgs)}")
        self.used: list[str] = []
        self.issued: list[str] = []

    async def use(self, month: int, team: str | None, model: str, tokens: int) -> None:
        name = f"e{len(self.used)}"
        at = MONTHS[month] + timedelta(minutes=7 * len(self.used))
        event = gpt(tokens, tokens // 3, id=name, timestamp=at, team_id=team, model=model)
        assert await apply_usage(self.services, event, org=self.ctx.org) == ["applied"]
        self.used.append(name)

    async def adjust(self, number: int, kind: Any) -> None:
        """Where there is nothing to adjust it is refused, which is as good."""
        fields: dict[str, Any] = {"refund": {"amount": "0.000000001"}, "correct": {"model": "gpt-4o"}}.get(kind, {})
        if self.used:
            name = self.used[number % len(self.used)]
            await self.may(adjust_usage(self.ctx, AdjustUsage(usage_id=name, kind=kind, reason="x", **fields)))

    async def issue(self, month: int, payer: int) -> None:
        request = PrepareInvoice(
            month=f"{MONTHS[month]:%Y-%m}",
            payer=PAYERS[payer],
            status="final",
            request_id=f"r{len(self.issued)}-{month}-{payer}",
        )
        found = await self.may(prepare_invoice(self.ctx, request))
        if found is not None:
            self.issued.append(found.number)
            # Every month up to this one that has an invoice is paid for exactly.
            billed, posted = await self.billed(PAYERS[payer]), await self.posted(PAYERS[payer])
            own = {key for key in (*billed, *posted) if key[0] == MONTHS[month]}
            assert {key: billed[key] for key in own} == {key: posted[key] for key in own}

    async def void(self, number: int) -> None:
        if self.issued:
            name = self.issued[number % len(self.issued)]
            await self.may(void_invoice(self.ctx, VoidInvoice(invoice_id=name, reason="x")))

    async def may(self, work: Any) -> Any:
        try:
            return await work
        except SignalError as error:
            assert error.code in ("conflict", "not_found", "invalid_request"), error
            return None

    async def posted(self, payer: Payer) -> Counter[Any]:
        """What calls stand for, by month and model, each measure by itself."""
        where = "true" if payer.entity_id is None else f"team_id = '{payer.entity_id}'"
        rows = await self.services.database.fetch(
            f"""SELECT date_trunc('month', "timestamp") AS month, model, sum(cost)::bigint AS cost,
                sum(requests)::bigint AS requests, sum(prompt_tokens)::bigint AS tokens FROM usage_posting
                WHERE org_id = $1 AND {where} GROUP BY 1, 2""",
            self.ctx.org,
        )
        return _counted(rows)

    async def billed(self, payer: Payer) -> Counter[Any]:
        """What invoices less credit notes have billed, alike."""
        rows = await self.services.database.fetch(
            """SELECT l.period_start AS month, l.model, sum(l.cost)::bigint AS cost,
                sum(l.requests)::bigint AS requests,
                sum(l.prompt_tokens)::bigint AS tokens
                FROM invoice i JOIN invoice_line l USING (org_id, invoice_id)
                WHERE i.org_id = $1 AND i.payer_type = $2 AND i.payer_id = $3 GROUP BY 1, 2""",
            self.ctx.org,
            payer.type,
            payer.entity_id or "",
        )
        return _counted(rows)


def _counted(rows: list[Any]) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for row in rows:
        for measure in ("cost", "requests", "tokens"):
            found[row["month"], row["model"], measure] += row[measure] or 0
    return Counter({key: value for key, value in found.items() if value})


USED = ("use", 0, "red", "gpt-4o", 900)


@examples(30)
@given(steps)
@example([USED, ("issue", 0, 0), USED, ("use", 1, None, "gpt-4o", 5), ("issue", 1, 0), ("void", 0)])
@example([USED, ("issue", 0, 0), ("adjust", 0, "void"), ("issue", 1, 0), ("void", 1), ("void", 0), USED])
@example([USED, ("use", 0, "red", "nobody-knows", 9), ("issue", 0, 1), ("adjust", 1, "correct"), ("issue", 1, 1)])
async def test_what_is_billed_is_what_was_used(services: Services, todo: list[Any]) -> None:
    books = Books(services)
    for kind, *given_ in todo:
        await getattr(books, kind)(*given_)
    for payer in range(len(PAYERS)):
        # Months without an invoice are invoiced now; then a month that has nothing takes up what is left.
        for month in range(3):
            await books.issue(month, payer)
        await books.issue(3, payer)
        assert await books.billed(PAYERS[payer]) == await books.posted(PAYERS[payer])
    numbers = await services.database.fetch(
        "SELECT series, array_agg(sequence ORDER BY sequence) AS found FROM invoice WHERE org_id = $1 GROUP BY 1",
        books.ctx.org,
    )
    assert all(row["found"] == list(range(1, len(row["found"]) + 1)) for row in numbers)
