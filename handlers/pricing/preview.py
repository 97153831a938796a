"""What past usage would have cost with price rules that are not set yet: each event by the engine that prices it.

An event becomes what ``reprice_usage`` would make of it, and windows follow as they would then. Nothing is written, the
number of events and the time are bounded, and the loop gets its turn every few events.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from handlers.adjustments.corrections import GIVEN, anew
from handlers.adjustments.recharge import Recharger
from handlers.adjustments.standing import History, Stand
from handlers.context import Context
from handlers.cost.org_prices import OrgPrices, Prices
from handlers.cost.price import price
from handlers.cost.price_book import PriceBook
from handlers.cost.rate_card import RateCard
from handlers.enforcer.catalogue import Catalogue, Match
from handlers.enforcer.shown import Present, existing, raised_now
from handlers.enforcer.windows import WindowRef, key_of
from handlers.moment import in_utc
from handlers.tracker.priced import PricedEvent, card_of, quantities_of, seen_before
from handlers.tracker.repriced import month_of
from schemas.codec import prefixed
from schemas.errors import SignalError, invalid
from schemas.money import format_cost
from schemas.pricing import PreviewedBudget, PreviewedLine, PreviewedModel, PreviewPeriod, PricingPreview
from store import adjustments as adjustment_store
from store import prices as price_store
from store import usage as usage_store
from store import windows as window_store
from store.pool import Connection
from store.prices import PriceRuleRow, VolumeKey
from store.usage import UsageQuery

LINES_SHOWN: Final = 10
# Events between two turns of the loop: some 2 ms.
_SLICE: Final = 40
Key = tuple[str, str, str]


@dataclass(slots=True)
class _Model:
    """Sums of one model in one currency, in nanos."""

    events: int = 0
    changed: int = 0
    before: int = 0
    after: int = 0
    priced_before: int = 0
    priced_after: int = 0
    unpriced_before: int = 0
    unpriced_after: int = 0


@dataclass(slots=True)
class _Line:
    """Sums of one kind of tokens of a model."""

    quantity: int = 0
    before: int = 0
    after: int = 0


@dataclass(slots=True)
class Tally:
    """What was found so far."""

    events: int = 0
    changed: int = 0
    kept: int = 0
    models: dict[Key, _Model] = field(default_factory=dict[Key, _Model])
    lines: dict[tuple[str, str, str, str], _Line] = field(default_factory=dict[tuple[str, str, str, str], _Line])
    windows: dict[int, int] = field(default_factory=dict[int, int])
    no_rate: set[str] = field(default_factory=set[str])

    def add(self, before: Stand, after: Stand, *, unpriced: bool) -> None:
        """Take in one event; ``unpriced``: nothing would price it, and what it cost stays."""
        self.events += 1
        changed = before.cost != after.cost or before.event.currency != after.event.currency
        self.changed += changed
        self.kept += unpriced and before.cost is not None
        old, new = self._model(before), self._model(after)
        old.events += 1
        old.changed += changed
        if new is not old:
            new.events += 1
            new.changed += 1
        old.before += before.cost or 0
        old.priced_before += before.cost is not None
        old.unpriced_before += before.cost is None
        new.after += after.cost or 0
        new.priced_after += after.cost is not None
        new.unpriced_after += unpriced or after.cost is None
        if changed:
            self._lines(before, "before")
            self._lines(after, "after")

    def _model(self, stand: Stand) -> _Model:
        event = stand.event
        return self.models.setdefault((event.provider, event.model, event.currency), _Model())

    def _lines(self, stand: Stand, side: str) -> None:
        event = stand.event
        items: list[list[Any]] = [] if stand.void else msgspec.json.decode(event.line_items)
        for kind, quantity, _, cost, *_ in items:
            line = self.lines.setdefault((event.provider, event.model, event.currency, kind), _Line())
            if side == "before":
                line.before += cost or 0
            else:
                line.quantity += quantity
                line.after += cost or 0


async def preview(
    ctx: Context, connection: Connection, period: PreviewPeriod | None, rows: Sequence[PriceRuleRow], now: datetime
) -> PricingPreview:
    """What usage of ``period`` would have cost with these versions, and what open budgets would show.

    Versions that begin now or later are tried as if they had held since the beginning of the period.
    ``connection`` is in a repeatable-read transaction. Raises SignalError ``invalid_request`` naming ``preview``.
    """
    start, end = _period(ctx, period, now)
    tried = [replace(row, valid_from=start) if row.valid_from is None or row.valid_from >= now else row for row in rows]
    prices = await _prices_with(ctx, connection, tried, start)
    catalogue = await ctx.services.catalogue(ctx.org)
    tally = Tally()
    walk = _Walk(ctx, connection, catalogue, prices, tally, now)
    until, complete = await walk.run(start, end)
    budgets = await _budgets(connection, catalogue, tally.windows, now)
    return _reply(ctx, tally, budgets, start=start, end=end, until=until, complete=complete)


def _period(ctx: Context, period: PreviewPeriod | None, now: datetime) -> tuple[datetime, datetime]:
    limits = ctx.services.limits
    if period is None:
        return now - timedelta(days=limits.price_preview_days), now
    try:
        start, end = in_utc(period.start, "start"), in_utc(period.end, "end")
    except SignalError as error:
        raise prefixed(error, "preview") from None
    assert start is not None and end is not None, "both are required"
    if end <= start:
        raise invalid("must be after start", field="preview.end")
    if end - start > timedelta(days=limits.price_preview_days_max):
        raise invalid(f"is more than {limits.price_preview_days_max} days before end", field="preview.start")
    return start, end


async def _prices_with(
    ctx: Context, connection: Connection, rows: Sequence[PriceRuleRow], since: datetime
) -> OrgPrices:
    """The org's prices as they would be with further versions."""
    stored = await price_store.load_rules(connection, ctx.org, since=since)
    aliases = await price_store.load_aliases(connection, ctx.org, since=since)
    changes = await price_store.revision(connection, ctx.org)
    settings = ctx.services.org_settings(ctx.org)
    book = PriceBook([*stored, *rows], aliases, changes=changes + 1, settings=settings, complete_since=since)
    return OrgPrices(await ctx.services.snapshots.cards(connection, ctx.org), book)


class _Months:
    """What rules with volume tiers have seen of each month: as recorded, else in the order of the events looked at."""

    def __init__(self) -> None:
        self._seen: dict[VolumeKey, int] = {}

    def before(self, event: PricedEvent, card: RateCard) -> dict[str, int]:
        """What each rule of an event's card had seen before it; the event is taken in."""
        month = month_of(event)
        recorded = seen_before(event, card)
        seen = {v.name: recorded.get(v.name, self._seen.get((v.name, month), 0)) for v in card.volumes}
        for name, before, amount in price(card, quantities_of(event), seen).counted:
            self._seen[name, month] = before + amount
        return seen


class _Walk:
    """Goes through the events of a period in the order of their times."""

    def __init__(
        self, ctx: Context, connection: Connection, catalogue: Catalogue, prices: Prices, tally: Tally, now: datetime
    ) -> None:
        self._ctx = ctx
        self._connection = connection
        self._prices = prices
        self._tally = tally
        self._now = now
        self._catalogue = catalogue
        self._index = ctx.services.index(ctx.org)
        self._recharger = Recharger(catalogue, self._index, lambda name: ctx.services.vault.surrogate(ctx.org, name))
        self._refs: dict[int, WindowRef] = {}
        self._months = _Months()
        self._looked = 0

    async def run(self, start: datetime, end: datetime) -> tuple[datetime, bool]:
        """Until when it looked, and whether that is the end; fewer where there are too many or time is up."""
        limits = self._ctx.services.limits
        stop = self._ctx.now() + timedelta(seconds=limits.price_preview_time_s)
        # What a month has seen before the period decides what its events cost.
        since = start.replace(day=1, hour=0, minute=0, second=0, microsecond=0) if self._prices.has_volumes else start
        query = UsageQuery(org=self._ctx.org, start=since, end=end, filters={})
        after: tuple[datetime, str] | None = None
        while (room := limits.price_preview_events_max - self._looked) > 0 and self._ctx.now() < stop:
            limit = min(limits.price_preview_chunk_max, room)
            looked = await usage_store.look(self._connection, query, unpriced=False, after=after, limit=limit)
            self._looked += looked.looked_at
            if looked.last is not None:
                await self._chunk(looked.rows, start)
                after = looked.last
            if looked.looked_at < limit:
                return end, True
        return (start if after is None else max(start, after[0])), False

    def _would_be(self, stand: Stand) -> tuple[Stand, bool]:
        """What an event would stand for after ``reprice_usage``, and whether nothing would price it."""
        if stand.void:
            return stand, False
        counts = self._prices.has_volumes and stand.event.price_source not in GIVEN
        card = card_of(stand.event, self._prices) if counts else None
        seen = None if card is None or not card.volumes else self._months.before(stand.event, card)
        after = anew(stand, self._prices, self._catalogue.org_settings, seen=seen)
        if after is None:
            return stand, False
        return (stand, True) if after.event.cost is None else (after, False)

    async def _chunk(self, rows: Sequence[Mapping[str, Any]], start: datetime) -> None:
        ids = [row["id"] for row in rows]
        made = await adjustment_store.of_events(self._connection, self._ctx.org, ids)
        moved: list[tuple[History, Stand]] = []
        for n, row in enumerate(rows):
            history = History(row, made.get(row["id"], ()))
            after, unpriced = self._would_be(history.stand)
            if history.event.timestamp >= start:
                self._tally.add(history.stand, after, unpriced=unpriced)
                if after is not history.stand and not after.same(history.stand):
                    moved.append((history, after))
            if n % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
        await self._recharge(moved)

    async def _recharge(self, moved: Sequence[tuple[History, Stand]]) -> None:
        """What windows would hold more or less, as an adjustment would have it."""
        await self._learn({window_id for history, _ in moved for window_id in history.charged})
        unknown: list[tuple[Match, datetime]] = []
        for n, (history, after) in enumerate(moved):
            unknown += self._recharger.recharge(history, after, self._refs).missing
            if n % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
        if unknown:  # Windows that other agents have opened.
            keys = sorted({key_of(match, at) for match, at in unknown})
            self._index.add((await window_store.find(self._connection, self._ctx.org, keys)).values())
        for n, (history, after) in enumerate(moved):
            found = self._recharger.recharge(history, after, self._refs)
            self._tally.no_rate |= found.no_rate
            for window_id, amount in found.amounts.items():
                self._tally.windows[window_id] = self._tally.windows.get(window_id, 0) + amount
            if n % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)

    async def _learn(self, window_ids: Iterable[int]) -> None:
        wanted = sorted(set(window_ids) - self._refs.keys())
        if wanted:
            rows = await window_store.by_id(self._connection, self._ctx.org, wanted)
            self._refs |= {window_id: WindowRef.of(row) for window_id, row in rows.items()}


async def _budgets(
    connection: Connection, catalogue: Catalogue, amounts: Mapping[int, int], now: datetime
) -> list[tuple[Present, int]]:
    """Open windows of active budgets of cost that would show something else, those that change most first."""
    changed = sorted(window_id for window_id, amount in amounts.items() if amount)
    if not changed:
        return []
    raised = await raised_now(connection, catalogue.org, now)
    found: list[tuple[Present, int]] = []
    for window_id, row in (await window_store.by_id(connection, catalogue.org, changed)).items():
        budget = catalogue.by_id[row.budget_id]
        is_open = row.starts_at <= now and (row.ends_at is None or now < row.ends_at)
        if budget.active and budget.unit == "cost" and is_open:
            found.append((existing(budget, row, raised), amounts[window_id]))
    return sorted(found, key=lambda one: (-abs(one[1]), one[0].budget.name, one[0].ref.entity_id))


def _reply(
    ctx: Context,
    tally: Tally,
    budgets: Sequence[tuple[Present, int]],
    *,
    start: datetime,
    end: datetime,
    until: datetime,
    complete: bool,
) -> PricingPreview:
    most = ctx.services.limits.price_preview_rows_max
    models = sorted(tally.models.items(), key=lambda item: (-abs(item[1].after - item[1].before), item[0]))
    lines = sorted(tally.lines.items(), key=lambda item: (-abs(item[1].after - item[1].before), item[0]))
    return PricingPreview(
        start=start,
        end=end,
        events=tally.events,
        changed_events=tally.changed,
        complete=complete,
        until=until,
        models=[_model(key, model) for key, model in models[:most]],
        lines=[_line(key, line) for key, line in lines[:LINES_SHOWN] if line.before != line.after],
        budgets=[_budget(present, amount) for present, amount in budgets[:most]],
        truncated=len(models) > most or len(budgets) > most,
        warnings=_warnings(tally),
    )


def _warnings(tally: Tally) -> list[str]:
    found = [f"no_exchange_rate: {pair}: budgets in it do not follow" for pair in sorted(tally.no_rate)]
    if tally.kept:
        found.append(f"{tally.kept} events that have a cost would have no price; they keep it")
    return found


def _model(key: Key, model: _Model) -> PreviewedModel:
    provider, name, currency = key
    return PreviewedModel(
        provider=provider,
        model=name,
        currency=currency,
        events=model.events,
        changed_events=model.changed,
        cost_before=format_cost(model.before) if model.priced_before else None,
        cost_after=format_cost(model.after) if model.priced_after else None,
        difference=format_cost(model.after - model.before),
        unpriced_before=model.unpriced_before,
        unpriced_after=model.unpriced_after,
    )


def _line(key: tuple[str, str, str, str], line: _Line) -> PreviewedLine:
    provider, model, currency, kind = key
    return PreviewedLine(
        provider=provider,
        model=model,
        currency=currency,
        kind=kind,
        quantity=line.quantity,
        cost_before=format_cost(line.before),
        cost_after=format_cost(line.after),
        difference=format_cost(line.after - line.before),
    )


def _budget(present: Present, amount: int) -> PreviewedBudget:
    shown = present.reply
    return PreviewedBudget(
        budget_id=shown.budget_id,
        name=shown.name,
        entity_id=shown.entity_id,
        currency=shown.currency or "",
        window_start=shown.window_start,
        resets_at=shown.resets_at,
        limit=shown.limit,
        spent=shown.spent,
        spent_after=format_cost(present.sums.spent + amount),
        difference=format_cost(amount),
    )
