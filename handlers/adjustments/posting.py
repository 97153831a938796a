"""Adjustments into PostgreSQL: postings, rollups and windows follow by the difference, in one transaction (R15).

The caller holds the catalogue shared and the claims of the events; what comes here is decided. Order of locks (R1):
rollups, windows, then the new rows; the caller's audit entry comes last.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from handlers.adjustments.recharge import Recharge, Recharger, with_flags
from handlers.adjustments.standing import History, Stand, written
from handlers.context import Services
from handlers.enforcer.alerts import alerts
from handlers.enforcer.catalogue import Catalogue
from handlers.enforcer.charging import Unconvertible
from handlers.enforcer.settle import Move, beyond, book_each
from handlers.enforcer.transaction import LockedWindows, MissingWindows
from handlers.enforcer.windows import WindowRef, key_of
from handlers.events import cloud_event
from handlers.tracker.observe import NO_CURRENCY
from handlers.tracker.rollup import posted_rows
from handlers.tracker.unpriced import tell_unpriced
from schemas.adjustment import UsageAdjusted
from schemas.errors import conflict, invalid
from schemas.money import format_cost
from signals import adjustment as signals
from store import adjustments as adjustment_store
from store import outbox as outbox_store
from store import rollups
from store import sizing as sizing_store
from store import windows as window_store
from store.adjustments import AdjustmentRow
from store.pool import Connection
from store.sizing import Overrun

_FROM_EVENT: Final = (
    *("provider", "model", "user_id", "team_id", "project_id", "feature", "agent_id", "session_id", "task_id"),
    *("environment", "cost_center", "tags", "service_tier", "region", "batch", "status", "cost_status"),
    *("price_source", "price_version", "line_items", "currency", "latency_ms"),
)
_SIGNED: Final = (
    *("prompt_tokens", "completion_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens"),
    *("cost", "list_cost"),
)
_OWN: Final = ("org_id", "adjustment_id", "position", "usage_id", "timestamp", "posted_at", "charged_at", "reserved")
_ENTRY: Final = (*_OWN, "requests", *_FROM_EVENT, *_SIGNED)


@dataclass(slots=True)
class Decided:
    """One adjustment that will be made: what the event stands for before and after."""

    history: History
    adjustment_id: str
    sequence: int
    kind: str
    reason: str
    body_hash: bytes
    before: Stand
    after: Stand
    recharge: Recharge = field(default_factory=Recharge)
    # What found no room, by window.
    overruns: dict[int, int] = field(default_factory=dict[int, int])

    def audited(self, stand: Stand) -> dict[str, Any]:
        """One of its two states for the audit trail."""
        return {"adjustment_id": self.adjustment_id, **json.loads(written(stand))}


class Posting:
    """The adjustments of one transaction, of one org, made by one person at one time."""

    def __init__(
        self, services: Services, connection: Connection, catalogue: Catalogue, *, made_by: str, made_at: datetime
    ) -> None:
        self.decided: list[Decided] = []
        self.refs: dict[int, WindowRef] = {}
        self._services = services
        self._connection = connection
        self._catalogue = catalogue
        self._made_by = made_by
        self._made_at = made_at
        org = catalogue.org
        self._recharger = Recharger(catalogue, services.index(org), lambda name: services.vault.surrogate(org, name))

    async def learn(self, histories: Sequence[History]) -> None:
        """Read which of the windows that these events charged are still there."""
        await self._learn({window_id for history in histories for window_id in history.charged})

    async def learn_charged(self, rows: Sequence[AdjustmentRow]) -> None:
        """The same of adjustments that were made before."""
        await self._learn({window_id for row in rows for window_id in row.charge_windows})

    async def _learn(self, window_ids: set[int]) -> None:
        wanted = sorted(window_ids - self.refs.keys())
        if wanted:
            rows = await window_store.by_id(self._connection, self._catalogue.org, wanted)
            self.refs |= {window_id: WindowRef.of(row) for window_id, row in rows.items()}

    async def moves(self, made: Decided) -> bool:
        """Whether a decision would change what windows hold, or needs a window that is not there yet."""
        found = await self._recharge(made)
        return bool(found.amounts or found.missing)

    async def decide(self, made: Decided) -> None:
        """Take in the next adjustment; ``history`` stands for its outcome from here on.

        Raises SignalError where a budget could not count the cost, which only one that was stated comes to.
        """
        made.recharge = await self._recharge(made)
        made.after = with_flags(made.after, made.recharge)
        made.history.add(self._made_at, made.after, made.recharge.amounts)
        self.decided.append(made)

    async def _recharge(self, made: Decided) -> Recharge:
        recharger = self._recharger
        try:
            found = recharger.recharge(made.history, made.after, self.refs)
            if found.unknown:
                keys = sorted({key_of(*wanted) for wanted in found.unknown})
                rows = await window_store.find(self._connection, self._catalogue.org, keys)
                self._services.index(self._catalogue.org).add(rows.values())
                recharger.absent.update(key for key in keys if key not in rows)
                found = recharger.recharge(made.history, made.after, self.refs)
        except Unconvertible as error:
            raise invalid(str(error), field="cost") from None
        return found

    async def post(self, *, dry_run: bool) -> list[AdjustmentRow]:
        """Book everything and write it down; with ``dry_run`` only find out what would be booked.

        Raises MissingWindows before anything is written.
        """
        missing = [wanted for made in self.decided for wanted in made.recharge.missing]
        if missing:
            raise MissingWindows(missing)
        if not dry_run:
            postings = [posting for made in self.decided for posting in _postings(made)]
            await rollups.add(self._connection, self._catalogue.org, posted_rows(postings))
        await self._book(dry_run=dry_run)
        rows = [self._row(made) for made in self.decided]
        if not dry_run and rows:
            await adjustment_store.append(self._connection, rows)
            await adjustment_store.append_entries(
                self._connection, _ENTRY, [entry for made in self.decided for entry in self._entries(made)]
            )
            await self._tell(rows)
        return rows

    async def _book(self, *, dry_run: bool) -> None:
        """Windows follow in the order of the adjustments: what comes up takes free room, then is overrun."""
        org, catalogue = self._catalogue.org, self._catalogue
        wanted = {window_id for made in self.decided for window_id in made.recharge.amounts}
        if not wanted:
            return
        await self._learn(wanted)
        windows = await LockedWindows.lock(self._connection, catalogue, wanted, self._services.beliefs(org))
        for made in self.decided:
            gone = [window_id for window_id in made.recharge.amounts if window_id not in windows.sums]
            for window_id in gone:  # Its window was removed since this agent saw it.
                del made.recharge.amounts[window_id]
            made.recharge.gone += len(gone)
            moves: list[Move] = [(window_id, 0, amount, 0) for window_id, amount in made.recharge.amounts.items()]
            over = book_each(moves, windows.sums)
            made.overruns = {move[0]: amount for move, amount in zip(moves, over, strict=True) if amount}
        if full := beyond(windows.rows, windows.sums):
            name = catalogue.by_id[self.refs[min(full)].budget_id].name
            raise conflict(f"budget '{name}' cannot count as much", field="cost")
        if dry_run:
            return
        overrun: dict[int, int] = {}
        for made in self.decided:
            for window_id, amount in made.overruns.items():
                overrun[window_id] = overrun.get(window_id, 0) + amount
        await windows.write(self._connection, org)
        await alerts(self._services, self._connection, org, catalogue.by_id, windows.rows, windows.sums, overrun)
        await sizing_store.count_overrun(self._connection, org, self._causes())

    def _causes(self) -> list[Overrun]:
        sums: dict[tuple[str, str], tuple[int, int]] = {}
        for made in self.decided:
            for window_id, amount in made.overruns.items():
                budget = self._catalogue.by_id[self.refs[window_id].budget_id]
                key = budget.unit, budget.currency or NO_CURRENCY
                total, charges = sums.get(key, (0, 0))
                sums[key] = (total + amount, charges + 1)
        return [Overrun("correction", unit, *found, currency) for (unit, currency), found in sums.items()]

    def _row(self, made: Decided) -> AdjustmentRow:
        amounts = made.recharge.amounts
        return AdjustmentRow(
            org_id=self._catalogue.org,
            adjustment_id=made.adjustment_id,
            usage_id=made.history.event.id,
            sequence=made.sequence,
            kind=made.kind,
            reason=made.reason,
            made_by=self._made_by,
            made_at=self._made_at,
            body_hash=made.body_hash,
            before=written(made.before),
            after=written(made.after),
            charge_windows=list(amounts),
            charge_amounts=list(amounts.values()),
            charge_overruns=[made.overruns.get(window_id, 0) for window_id in amounts],
            windows_gone=made.recharge.gone,
        )

    def _entries(self, made: Decided) -> list[tuple[Any, ...]]:
        """The reversal of what it stood for, and what it stands for now; what is void posts nothing."""
        event = made.history.event
        entries: list[tuple[Any, ...]] = []
        for position, stand in enumerate((made.before, made.after)):
            if stand.void:
                continue
            sign, now = (-1, 1)[position], stand.event
            own = (
                *(self._catalogue.org, made.adjustment_id, position, event.id, event.timestamp, self._made_at),
                *(made.history.charged_at, made.history.reserved),
            )
            signed = (None if (v := getattr(now, name)) is None else sign * v for name in _SIGNED)
            entries.append((*own, sign * int(now.final), *(getattr(now, name) for name in _FROM_EVENT), *signed))
        return entries

    async def _tell(self, rows: Sequence[AdjustmentRow]) -> None:
        org = self._catalogue.org
        told = [
            cloud_event(self._services, org, signals.ADJUSTED, adjusted(row, made), subject=row.usage_id)
            for row, made in zip(rows, self.decided, strict=True)
        ]
        await outbox_store.add(self._connection, org, told)
        news = [m.after.event for m in self.decided if not m.after.void and m.before.cost is not None]
        unpriced = [event for event in news if event.cost is None]
        await tell_unpriced(self._services, self._connection, org, unpriced, self._made_at)


def _postings(made: Decided) -> list[tuple[Any, bool, int]]:
    stands = ((made.before, -1), (made.after, 1))
    return [(stand.event, made.history.reserved, sign) for stand, sign in stands if not stand.void]


def adjusted(row: AdjustmentRow, made: Decided) -> UsageAdjusted:
    """The event ``usage.adjusted`` of one adjustment."""
    return UsageAdjusted(
        usage_id=row.usage_id,
        adjustment_id=row.adjustment_id,
        sequence=row.sequence,
        kind=made.kind,  # pyright: ignore[reportArgumentType]
        reason=row.reason,
        made_by=row.made_by,
        currency=made.after.event.currency,
        cost_before=None if made.before.cost is None else format_cost(made.before.cost),
        cost_after=None if made.after.cost is None else format_cost(made.after.cost),
        total_tokens_before=made.before.measures[1],
        total_tokens_after=made.after.measures[1],
    )
