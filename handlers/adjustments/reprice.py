"""``reprice_usage``: past usage at the present prices of its own time, so that what had no price gets its cost (P5).

Only differences become adjustments, so running it twice changes nothing. Voids, and costs that a person stated or a
trusted provider reported, are left alone; a known cost never becomes unknown.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

import msgspec

from handlers.adjustments.adjust import record_many
from handlers.adjustments.corrections import GIVEN, anew
from handlers.adjustments.posting import Decided, Posting
from handlers.adjustments.recharge import lacks_rate
from handlers.adjustments.standing import History, Stand
from handlers.context import Context
from handlers.cursor import decode_cursor, encode_cursor
from handlers.enforcer.catalogue import Catalogue
from handlers.enforcer.transaction import ledger_transaction
from handlers.tracker.query import usage_query
from schemas.adjustment import CostChange, RepricedUsage, RepriceUsage, StillUnpriced
from schemas.errors import SignalError
from schemas.money import format_cost
from signals import adjustment as signals
from signals import route
from store import adjustments as adjustment_store
from store import budgets as budget_store
from store import usage as usage_store
from store.pool import Connection
from store.usage import Looked

_AT = Annotated[datetime, msgspec.Meta(tz=True)]
_NO_PRICE: Final = "there is no price for this model at that time"


@dataclass(slots=True)
class _Found:
    """What was found so far. Costs in nanos by currency."""

    looked_at: int = 0
    repriced: int = 0
    unchanged: int = 0
    left_alone: int = 0
    unpriced: Counter[tuple[str, str, str]] = field(default_factory=Counter[tuple[str, str, str]])
    before: Counter[str] = field(default_factory=Counter[str])
    after: Counter[str] = field(default_factory=Counter[str])
    ids: list[str] = field(default_factory=list[str])

    def add(self, other: "_Found", ids_max: int) -> None:
        """Take in what a batch found."""
        self.repriced += other.repriced
        self.unchanged += other.unchanged
        self.left_alone += other.left_alone
        for mine, theirs in ((self.unpriced, other.unpriced), (self.before, other.before), (self.after, other.after)):
            mine.update(theirs)  # pyright: ignore[reportArgumentType, reportCallIssue]
        self.ids += other.ids[: ids_max - len(self.ids)]


async def reprice_usage(ctx: Context, request: RepriceUsage) -> RepricedUsage:
    """Price events again, oldest first, in bounded transactions, until the range, the limit or the time ends."""
    query = usage_query(ctx, request.start, request.end, request.filters)
    after = decode_cursor(request.cursor, tuple[_AT, str])
    limits = ctx.services.limits
    until = ctx.now() + timedelta(seconds=limits.reprice_time_s)
    found = _Found()
    while found.looked_at < request.limit:
        most = min(limits.reprice_scan_max, request.limit - found.looked_at)
        async with ctx.database.connection() as connection:
            looked = await usage_store.look(
                connection, query, unpriced=request.only == "unpriced", after=after, limit=most
            )
        after = await _look_at(ctx, request, looked, found, until)
        if after is None or ctx.now() >= until:
            break
    return _reply(ctx, request, found, None if after is None else encode_cursor(*after))


async def _look_at(
    ctx: Context, request: RepriceUsage, looked: Looked, found: _Found, until: datetime
) -> tuple[datetime, str] | None:
    """Price what was looked for in batches, as long as there is time; returns where to go on, None at the end."""
    limits = ctx.services.limits
    done = 0
    for start in range(0, len(looked.rows), limits.adjust_batch_max):
        rows = looked.rows[start : start + limits.adjust_batch_max]
        found.add(await _batch(ctx, request, rows), limits.reprice_ids_max)
        done += len(rows)
        if ctx.now() >= until and done < len(looked.rows):
            found.looked_at += rows[-1]["n"]
            found.unchanged += rows[-1]["n"] - done
            return rows[-1]["timestamp"], rows[-1]["id"]
    found.looked_at += looked.looked_at
    found.unchanged += looked.looked_at - done
    return looked.last


async def _batch(ctx: Context, request: RepriceUsage, rows: Sequence[dict[str, Any]]) -> _Found:
    ids = sorted(row["id"] for row in rows)

    async def work(connection: Connection, catalogue: Catalogue) -> _Found:
        if not request.dry_run:
            await adjustment_store.lock_claims(connection, ctx.org, ids)
        made = await adjustment_store.of_events(connection, ctx.org, ids)
        histories = [History(row, made.get(row["id"], ())) for row in rows]
        at = await budget_store.clock(connection)
        posting = Posting(ctx.services, connection, catalogue, made_by=ctx.caller.actor, made_at=at)
        await posting.learn(histories)
        found = _Found()
        for history in histories:
            await _reprice(ctx, request, history, posting, found, catalogue)
        if not request.dry_run:
            await posting.post(dry_run=False)
            if posting.decided:
                await record_many(connection, ctx, posting.decided, reason=request.reason)
        return found

    found = await ledger_transaction(ctx.services, ctx.org, work)
    ctx.services.outbox_ready.set()
    return found


async def _reprice(
    ctx: Context, request: RepriceUsage, history: History, posting: Posting, found: _Found, catalogue: Catalogue
) -> None:
    """Decide on one event: the difference, if there is one, is taken in by ``posting``."""
    prices, settings = ctx.services.prices_of(catalogue), catalogue.org_settings
    stand = history.stand
    after = None if stand.void else anew(stand, prices, settings)
    if after is None or (after.event.cost is None and stand.event.cost is not None):
        found.left_alone += 1  # What it cost was known: a price that is gone since does not make it unknown.
        return
    if after.event.cost is None:
        found.unpriced[stand.event.provider, stand.event.model, _why(after)] += 1
        return
    decided = Decided(
        history=history,
        adjustment_id=ctx.new_id(),
        sequence=history.sequence + 1,
        kind="reprice",
        reason=request.reason,
        body_hash=hashlib.blake2b(history.event.id.encode(), digest_size=16).digest(),
        before=stand,
        after=after,
    )
    try:
        if after.same(stand) and not (lacks_rate(stand) and await posting.moves(decided)):
            given = stand.event.price_source in GIVEN
            found.left_alone, found.unchanged = found.left_alone + given, found.unchanged + (not given)
            return
        await posting.decide(decided)
    except SignalError:
        found.left_alone += 1
        return
    found.repriced += 1
    found.before[stand.event.currency] += stand.cost or 0
    found.after[after.event.currency] += after.cost or 0
    found.ids.append(history.event.id)


def _why(stand: Stand) -> str:
    items = msgspec.json.decode(stand.event.line_items, type=list[list[Any]])
    kinds = [item[0] for item in items if item[2] is None]
    return f"no rate for {', '.join(kinds)}" if kinds else _NO_PRICE


def _reply(ctx: Context, request: RepriceUsage, found: _Found, next_cursor: str | None) -> RepricedUsage:
    most = ctx.services.limits.reprice_models_max
    ranked = sorted(found.unpriced.items(), key=lambda item: (-item[1], item[0]))[:most]
    return RepricedUsage(
        dry_run=request.dry_run,
        looked_at=found.looked_at,
        repriced=found.repriced,
        unchanged=found.unchanged,
        left_alone=found.left_alone,
        unpriced=found.unpriced.total(),
        unpriced_models=[
            StillUnpriced(provider=provider, model=model, events=count, reason=why)
            for (provider, model, why), count in ranked
        ],
        costs=[
            CostChange(currency=c, before=format_cost(found.before[c]), after=format_cost(found.after[c]))
            for c in sorted(found.before.keys() | found.after.keys())
        ],
        usage_ids=found.ids,
        next_cursor=next_cursor,
    )


ROUTES = (route(signals.REPRICE_USAGE, reprice_usage),)
