"""Usage into PostgreSQL with exactly-once effect: ids, events, rollups, settlement, windows and alerts in one
transaction per org. Only ids that nobody had before have any effect, so the same batch may come any number of times.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal

import asyncpg
import msgspec

from handlers.alerts.expensive import raise_expensive
from handlers.context import Services
from handlers.currency.exchange import Rate
from handlers.enforcer.alerts import alerts
from handlers.enforcer.catalogue import Catalogue, Match
from handlers.enforcer.charging import charge, converts, flags_of, window_rate
from handlers.enforcer.plan import UNITS, Plan, Planner, call_key
from handlers.enforcer.settle import (
    Charges,
    Holding,
    Move,
    beyond,
    book_each,
    by_window,
    charged_at,
    settle,
    unreserved,
)
from handlers.enforcer.transaction import LockedWindows, MissingWindows, ledger_transaction
from handlers.tracker.dead import conflict_letter, poison_letter, tell
from handlers.tracker.observe import Observations
from handlers.tracker.priced import COLUMNS, PricedEvent, columns_of
from handlers.tracker.repriced import at_present_prices
from handlers.tracker.rollup import rollup_rows
from handlers.tracker.unpriced import tell_unpriced
from schemas.base import ATTRIBUTION_FIELDS
from schemas.errors import unavailable
from store import budgets as budget_store
from store import dead_letters as dead_letter_store
from store import outbox as outbox_store
from store import partitions, rollups
from store import reservations as reservation_store
from store import sizing as sizing_store
from store import usage as usage_store
from store import windows as window_store
from store.dead_letters import DeadLetterRow
from store.pool import Connection, is_unavailable
from store.reservations import ReservationRow

Effect = Literal["applied", "duplicate", "conflict", "dead"]
# PostgreSQL refuses the data (R13). Anything else that fails says nothing about the events, and they are tried again.
_REFUSED = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    ValueError,
    OverflowError,
    TypeError,
)
# What an event is flagged with that a budget did not count because its window holds as much as any sum can.
BEYOND: Final = "beyond_budget"
_ALL_COLUMNS = (*COLUMNS, "charged_at", "reserved", "charge_windows", "charge_amounts")


class _Beyond(Exception):
    """Windows that cannot hold what a batch would charge them: it goes on without these."""

    def __init__(self, window_ids: set[int]) -> None:
        super().__init__()
        self.window_ids = window_ids


@dataclass(slots=True)
class _Entry:
    """One new event on its way: its reservation if it names one, and what it is charged to."""

    event: PricedEvent
    row: ReservationRow | None = None
    charged_at: datetime | None = None
    reserved: bool = False
    charges: Charges = field(default_factory=Charges)


class Applier:
    """Applies usage of one org at a time; several may run at once, in this and other agents."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._planners: dict[str, Planner] = {}

    async def apply(self, org: str, events: Sequence[PricedEvent]) -> dict[int, Effect]:
        """Apply events; returns each position's effect once it is committed.

        Raises what ``store.pool.is_unavailable`` recognises where PostgreSQL is away, and then nothing is lost: the
        caller has not acknowledged anything. An event that PostgreSQL refuses is found by bisection and dead-lettered.
        """
        if not events:
            return {}
        try:
            return await self._retrying(org, events)
        except _REFUSED as error:
            if is_unavailable(error):
                raise
            if len(events) > 1:
                return await self._bisect(org, events)
            await self._bury(org, [poison_letter(self._services, events[0], error)])
            return {0: "dead"}

    async def _bisect(self, org: str, events: Sequence[PricedEvent]) -> dict[int, Effect]:
        middle = len(events) // 2
        effects = await self.apply(org, events[:middle])
        for position, effect in (await self.apply(org, events[middle:])).items():
            effects[middle + position] = effect
        return effects

    async def _bury(self, org: str, letters: list[DeadLetterRow]) -> None:
        async with self._services.database.transaction() as connection:
            await dead_letter_store.keep(connection, letters)
            await outbox_store.add(connection, org, [tell(self._services, letter) for letter in letters])
        self._services.outbox_ready.set()

    async def _retrying(self, org: str, events: Sequence[PricedEvent]) -> dict[int, Effect]:
        services = self._services
        full: set[int] = set()

        async def work(connection: Connection, catalogue: Catalogue) -> dict[int, Effect]:
            effects, fresh = await self._claim(connection, org, events)
            if fresh:
                await _Application(services, self._planner(catalogue), connection, org, full).run(fresh)
            return effects

        for _ in range(services.limits.apply_attempts_max):
            try:
                effects = await ledger_transaction(services, org, work)
            except _Beyond as error:
                full |= error.window_ids
            except asyncpg.CheckViolationError as error:
                if error.constraint_name is not None:
                    raise
                # No partition holds one of the events; its day is missing.
                await partitions.ensure(services.database, {e.timestamp.date() for e in events})
            else:
                services.outbox_ready.set()
                return effects
        raise unavailable("the ledger is too busy")

    def _planner(self, catalogue: Catalogue) -> Planner:
        known = self._planners.get(catalogue.org)
        if known is None or known.catalogue is not catalogue:
            index = self._services.index(catalogue.org)
            known = Planner(catalogue, index, self._services.limits.match_cache_max)
            self._planners[catalogue.org] = known
        return known

    async def _claim(
        self, connection: Connection, org: str, events: Sequence[PricedEvent]
    ) -> tuple[dict[int, Effect], list[PricedEvent]]:
        """Who is new, who is a repeat, and who uses an id that belongs to another payload (kept as a dead letter)."""
        first: dict[str, PricedEvent] = {}
        for event in events:
            first.setdefault(event.id, event)
        ids = sorted(first)
        new = await usage_store.claim_ids(
            connection,
            org,
            ids=ids,
            hashes=[first[i].payload_hash for i in ids],
            arrived_at=max(event.arrived_at for event in events),
        )
        known = {i: e.payload_hash for i, e in first.items()}
        if len(new) < len(ids):
            known |= await usage_store.hashes_of(connection, org, [i for i in ids if i not in new])
        effects: dict[int, Effect] = {}
        letters: list[DeadLetterRow] = []
        for position, event in enumerate(events):
            if event.id in new and first[event.id] is event:
                effects[position] = "applied"
            elif known.get(event.id) == event.payload_hash:
                effects[position] = "duplicate"
            else:
                effects[position] = "conflict"
                letters.append(conflict_letter(self._services, event))
        if letters:
            kept = await dead_letter_store.keep(connection, letters)
            told = [tell(self._services, letter) for letter in letters if letter.source_key in kept]
            await outbox_store.add(connection, org, told)
        return effects, [first[i] for i in first if i in new]


class _Application:
    """One transaction's work on new events, in lock order: volumes, reservations, rollups, sizing, windows, causes.

    What is observed is known only once the reservations are locked, and shared by every agent like the rollups: so it
    follows those, before the windows. Overrun is known only under the windows' locks: its causes follow them.
    """

    def __init__(self, services: Services, planner: Planner, connection: Connection, org: str, full: Set[int]) -> None:
        self._services = services
        self._planner = planner
        self._full = full
        self._connection = connection
        self._org = org
        self._seen = Observations()

    async def run(self, fresh: list[PricedEvent]) -> None:
        catalogue = self._planner.catalogue
        prices = self._services.prices_of(catalogue)
        await at_present_prices(self._connection, self._org, fresh, prices, catalogue.org_settings)
        entries = [_Entry(event) for event in fresh]
        await self._find_reservations(entries)
        holdings = await self._lock_reservations(entries)
        moves = self._plan_moves(entries, holdings)
        await usage_store.insert_events(self._connection, _ALL_COLUMNS, [_record(entry) for entry in entries])
        # After the events, whose insertion nobody waits for: rollup rows are shared by every agent.
        await rollups.add(self._connection, self._org, rollup_rows((e.event, e.reserved) for e in entries))
        limits = self._services.limits
        await sizing_store.add(
            self._connection,
            self._org,
            self._seen.by_key,
            keys_max=limits.sizing_keys_max,
            samples_max=limits.sizing_samples_max,
        )
        await self._write_reservations(holdings)
        await self._book(moves)
        await raise_expensive(self._services, self._connection, self._planner.catalogue, [e.event for e in entries])
        await tell_unpriced(self._services, self._connection, self._org, fresh)

    async def _find_reservations(self, entries: list[_Entry]) -> None:
        """Fill attribution that the event lacks from the reservation it names (R7)."""
        ids = sorted({e.event.reservation_id for e in entries if e.event.reservation_id})
        requests = sorted({e.event.request_id for e in entries if e.event.request_id and not e.event.reservation_id})
        if not ids and not requests:
            return
        rows = await reservation_store.find_ids(self._connection, self._org, ids, requests)
        by_id = {row.reservation_id: row for row in rows}
        by_request = {row.request_id: row for row in rows if not row.superseded}
        for entry in entries:
            event = entry.event
            row = by_id.get(event.reservation_id) if event.reservation_id else by_request.get(event.request_id or "")
            if row is not None:
                entry.row = row
                entry.event = _filled(event, row)

    async def _lock_reservations(self, entries: list[_Entry]) -> dict[str, Holding]:
        named = sorted({entry.row.reservation_id for entry in entries if entry.row is not None})
        if not named:
            return {}
        rows = await reservation_store.lock(self._connection, self._org, named)
        holdings = {reservation_id: Holding.of(row) for reservation_id, row in rows.items()}
        await self._learn_windows(holdings)
        return holdings

    async def _learn_windows(self, holdings: dict[str, Holding]) -> None:
        """Windows in which another agent has reserved; what identifies them never changes."""
        index = self._services.index(self._org)
        held = {window_id for holding in holdings.values() for window_id in holding.held}
        unknown = sorted(window_id for window_id in held if index.by_id(window_id) is None)
        if unknown:
            index.add((await window_store.by_id(self._connection, self._org, unknown)).values())

    def _plan_moves(self, entries: list[_Entry], holdings: dict[str, Holding]) -> list[Move]:
        """Decide every event in order. Raises MissingWindows before anything is written to a window."""
        moves: list[Move] = []
        missing: list[tuple[Match, datetime]] = []
        too_old = timedelta(days=self._services.limits.unreserved_age_max_days)
        for entry in entries:
            event = entry.event
            holding = holdings.get(entry.row.reservation_id) if entry.row is not None else None
            if holding is not None and not holding.claimable:
                holding = None
            entry.reserved = holding is not None
            at = charged_at(holding.row if holding else None, event.timestamp, event.arrived_at, too_old=too_old)
            entry.charged_at = at
            plan = self._planner.plan(call_key(event))
            if plan.team_id is not None or plan.mismatch:
                entry.event = event = _directed(event, plan)
            window_ids, units, lacking = self._planner.charged(plan, at)
            missing += [(match, at) for match in lacking]
            measures = (event.cost or 0, event.prompt_tokens + event.completion_tokens, int(event.final))
            unit_of = dict(zip(window_ids, units, strict=True))
            charges = {window_id: measures[unit] for window_id, unit in unit_of.items()}
            if measures[0] and converts(plan, event.currency):
                charges, unknown = self._converted(entry, plan, at, measures)
                missing += [(match, at) for match in unknown]
            if self._full and not self._full.isdisjoint(charges):
                charges = {window_id: amount for window_id, amount in charges.items() if window_id not in self._full}
                entry.event = msgspec.structs.replace(entry.event, flags=[*entry.event.flags, BEYOND])
            if 0 in measures:
                charges = {window_id: amount for window_id, amount in charges.items() if amount}
            entry.charges = charges
            if holding is None:
                moves += unreserved(charges)
                self._seen.unreserved([unit_of[window_id] for window_id in charges])
            else:
                moves += self._settling(entry, holding, measures, unit_of)
        if missing:
            raise MissingWindows(missing)
        return moves

    def _converted(
        self, entry: _Entry, plan: Plan, at: datetime, measures: tuple[int, int, int]
    ) -> tuple[Charges, list[Match]]:
        """The charges of a cost in another currency, and the matches whose window this agent has forgotten.

        The event tells for which pairs of currencies there is no rate (R18).
        """
        pairs, missing = self._planner.windows_of(plan, at)
        found = charge(pairs, measures, entry.event.currency, self._planner.catalogue.exchange)
        if found.lacking:
            flags = [*entry.event.flags, *flags_of(found.lacking.values())]
            entry.event = msgspec.structs.replace(entry.event, flags=flags)
        return found.amounts, missing

    def _settling(
        self, entry: _Entry, holding: Holding, measures: tuple[int, int, int], units: dict[int, int]
    ) -> list[Move]:
        self._charge_inactive(holding, entry, measures, units)
        held = dict(holding.held)
        moves = settle(holding, entry.charges, final=entry.event.final)
        rates = self._rates(holding) if self._planner.catalogue.differs(holding.row.currency) else {}
        self._seen.settled(holding, entry.event, held, moves, units, rates)
        return moves

    def _rates(self, holding: Holding) -> dict[int, Rate]:
        """What the worst case of a reservation is converted with, by window of another currency."""
        currency, exchange = holding.row.currency, self._planner.catalogue.exchange
        windows = [
            (match, ref)
            for match, ref in self._planner.windows(holding.held)
            if match.budget.unit == "cost" and match.budget.currency != currency
        ]
        found = {ref.window_id: window_rate(exchange, match, ref, currency) for match, ref in windows}
        return {window_id: rate for window_id, rate in found.items() if rate is not None}

    def _charge_inactive(
        self, holding: Holding, entry: _Entry, measures: tuple[int, int, int], units: dict[int, int]
    ) -> None:
        """A budget deactivated since the reservation was made settles it normally (R4)."""
        event, exchange = entry.event, self._planner.catalogue.exchange
        for match, ref in self._planner.windows(w for w in holding.held if w not in entry.charges):
            units[ref.window_id] = UNITS.index(match.budget.unit)
            if not match.budget.active:
                entry.charges |= charge([(match, ref)], measures, event.currency, exchange).amounts

    async def _write_reservations(self, holdings: dict[str, Holding]) -> None:
        changed = [h for h in holdings.values() if h.status != h.row.status or h.presumed != h.row.presumed]
        settled = sorted(h.row.reservation_id for h in changed if h.row.status == "live")
        presumed = sorted(h.row.reservation_id for h in changed if h.row.status == "expired")
        if settled:
            at = await budget_store.clock(self._connection)
            await reservation_store.close(self._connection, self._org, ids=settled, status="settled", closed_at=at)
        if presumed:
            await reservation_store.settle_presumed(self._connection, self._org, presumed)
        partial = [h for h in holdings.values() if h.live and h.taken_from]
        if partial:
            partial.sort(key=lambda h: h.row.reservation_id)
            ids = [h.row.reservation_id for h in partial]
            held = [list(h.held.values()) for h in partial]
            used = [h.used for h in partial]
            await reservation_store.write_held(self._connection, self._org, ids=ids, held=held, used=used)

    async def _book(self, moves: list[Move]) -> None:
        if not moves:
            return
        catalogue = self._planner.catalogue
        beliefs = self._services.beliefs(self._org)
        windows = await LockedWindows.lock(self._connection, catalogue, (move[0] for move in moves), beliefs)
        over = book_each(moves, windows.sums)
        if full := beyond(windows.rows, windows.sums):
            raise _Beyond(full)
        overrun = by_window(moves, over)
        await windows.write(self._connection, self._org)
        await alerts(self._services, self._connection, self._org, catalogue.by_id, windows.rows, windows.sums, overrun)
        of_window = {row.window_id: catalogue.by_id[row.budget_id].currency for row in windows.rows}
        overruns = self._seen.overruns(over, (of_window[move[0]] for move in moves))
        await sizing_store.count_overrun(self._connection, self._org, overruns)


def _filled(event: PricedEvent, row: ReservationRow) -> PricedEvent:
    lacking = {f: row.attribution[f] for f in ATTRIBUTION_FIELDS if getattr(event, f) is None and f in row.attribution}
    if event.reservation_id is None:
        lacking["reservation_id"] = row.reservation_id
    return msgspec.structs.replace(event, **lacking) if lacking else event


def _directed(event: PricedEvent, plan: Plan) -> PricedEvent:
    """What the directory adds (R16): the team that the event leaves out, or that its team is not its user's."""
    flags = [*event.flags, "attribution_mismatch"] if plan.mismatch else event.flags
    return msgspec.structs.replace(event, team_id=plan.team_id or event.team_id, flags=flags)


def _record(entry: _Entry) -> tuple[object, ...]:
    values = columns_of(entry.event)
    charges = entry.charges
    return (*values, entry.charged_at, entry.reserved, list(charges), list(charges.values()))
