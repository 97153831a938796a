"""Finding and opening windows. A missing window is created in an earlier, committed transaction (R1)."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from handlers.enforcer.calendar import bounds, periods_between
from handlers.enforcer.catalogue import EVERY, Catalogue, Match
from handlers.enforcer.ledger import carry_over, effective_limit
from store import budgets as budget_store
from store import windows as window_store
from store.budgets import BudgetRow
from store.pool import Connection, Database
from store.windows import NewWindow, WindowRow

# All of a batch ask about the same few periods at one time; in UTC, where equal times are the same instant.
_bounds = lru_cache(maxsize=256)(bounds)
# So many new windows are news to PostgreSQL's planner, and then twice as many, and so on.
ANALYZE_FIRST = 200
Key = tuple[str, str, datetime]
# What is to be opened: the budget of each key, and a time within the window.
Wanted = dict[Key, tuple[BudgetRow, datetime]]


@dataclass(frozen=True, slots=True)
class WindowRef:
    """A window that exists: its id, its bounds and the revision of its exchange rates never change."""

    window_id: int
    budget_id: str
    entity_id: str
    starts_at: datetime
    ends_at: datetime | None
    fx_revision: int | None = None

    @classmethod
    def of(cls, row: WindowRow) -> "WindowRef":
        """The identity of a stored window."""
        return cls(row.window_id, row.budget_id, row.entity_id, row.starts_at, row.ends_at, row.fx_revision)

    def holds(self, at: datetime) -> bool:
        """Whether ``at`` lies in the window."""
        return self.starts_at <= at and (self.ends_at is None or at < self.ends_at)


class StaleCatalogue(Exception):
    """The catalogue changed since it was read; read it again."""


class WindowIndex:
    """Ids of the windows of one org that this agent has seen; bounded by ``limit``."""

    def __init__(self, limit: int = 200_000) -> None:
        self._refs: dict[Key, WindowRef] = {}
        self._by_id: dict[int, WindowRef] = {}
        self._latest: dict[tuple[str, str], WindowRef] = {}
        self._limit = limit
        self._created = 0
        self._analyze_at = ANALYZE_FIRST

    def outgrown(self, created: int) -> bool:
        """Whether, with these new windows, there are so many more that PostgreSQL should count them anew.

        Autovacuum would, a minute later: until then every look for a window would go through all of its budget's.
        """
        self._created += created
        if self._created < self._analyze_at:
            return False
        self._analyze_at = 2 * self._created
        return True

    def find(self, match: Match, at: datetime) -> WindowRef | None:
        """The window of a match that holds ``at``, if this agent knows it."""
        latest = self._latest.get((match.budget.budget_id, match.entity_id))
        if latest is not None and latest.holds(at):
            return latest
        return self._refs.get(key_of(match, at))

    def by_id(self, window_id: int) -> WindowRef | None:
        """A window by id, if this agent knows it."""
        return self._by_id.get(window_id)

    def add(self, rows: Iterable[WindowRow]) -> None:
        """Remember windows."""
        for row in rows:
            ref = WindowRef.of(row)
            if len(self._refs) >= self._limit:
                self._refs.clear()
                self._by_id.clear()
                self._latest.clear()
            self._refs[row.budget_id, row.entity_id, row.starts_at] = ref
            self._by_id[ref.window_id] = ref
            pair = (row.budget_id, row.entity_id)
            newest = self._latest.get(pair)
            if newest is None or newest.starts_at <= ref.starts_at:
                self._latest[pair] = ref


def key_of(match: Match, at: datetime) -> Key:
    """What identifies the window of a match at a time."""
    start, _ = _bounds(match.budget.period, match.budget.timezone, at)
    return match.budget.budget_id, match.entity_id, start


async def open_missing(
    database: Database,
    catalogue: Catalogue,
    index: WindowIndex,
    wanted: Iterable[tuple[Match, datetime]],
    *,
    new_entities_max: int = 0,
) -> list[WindowRow]:
    """Create the windows of ``wanted`` that do not exist and remember all of them; returns them.

    ``new_entities_max`` (0: any number) bounds how many entities without an earlier window an org's ``*`` budgets may
    open in an hour (R16); the windows of those beyond it are not created. Raises StaleCatalogue where one of the
    budgets is gone; nothing was created then.
    """
    keys = {key_of(match, at): (match.budget, at) for match, at in wanted}
    async with database.transaction() as connection:
        if await budget_store.lock_shared(connection, catalogue.org) != catalogue.version:
            keys = await _present(connection, catalogue.org, keys)
        found = await window_store.find(connection, catalogue.org, sorted(keys))
        lacking = sorted(set(keys) - set(found))
        if new_entities_max:
            lacking = await _within_cap(connection, catalogue.org, keys, lacking, new_entities_max)
        if lacking:
            rolling = [key for key in lacking if rolls_over(keys[key][0])]
            before = await window_store.lock_before(connection, catalogue.org, rolling) if rolling else {}
            new = [_new(keys[key][0], key[1], keys[key][1], before.get(key)) for key in lacking]
            found |= await window_store.create(connection, catalogue.org, new)
            if others := [key for key in lacking if key not in found]:
                found |= await window_store.find(connection, catalogue.org, others)
    index.add(found.values())
    if index.outgrown(len(lacking)):
        await window_store.analyze(database)
    return list(found.values())


async def _present(connection: Connection, org: str, keys: Wanted) -> Wanted:
    """The same keys with the budgets as they are now; what identifies a window never changes. Raises StaleCatalogue."""
    wanted = sorted({key[0] for key in keys})
    budgets = {row.budget_id: row for row in await budget_store.some(connection, org, wanted) if row.active}
    if len(budgets) < len(wanted):
        raise StaleCatalogue
    return {key: (budgets[key[0]], at) for key, (_, at) in keys.items()}


async def _within_cap(connection: Connection, org: str, keys: Wanted, lacking: list[Key], most: int) -> list[Key]:
    """Those of ``lacking`` that may be opened: all but new entities of ``*`` budgets for which the hour has no room."""
    every = [key for key in lacking if keys[key][0].entity_id == EVERY and key[1] != EVERY]
    if not every:
        return lacking
    pairs = sorted({key[:2] for key in every})
    known = await window_store.known_entities(connection, org, pairs)
    if len(known) == len(pairs):
        return lacking
    before = await window_store.lock_new_entities(connection, org)
    # Another agent may have opened them while this one waited for the counter.
    known = await window_store.known_entities(connection, org, pairs)
    new = [pair for pair in pairs if pair not in known]
    room = max(0, min(len(new), most - before))
    await window_store.add_new_entities(connection, org, room)
    refused = set(new[room:])
    return [key for key in lacking if key[:2] not in refused]


def rolls_over(budget: BudgetRow) -> bool:
    """Whether the next window gets anything from the one before."""
    return budget.rollover_policy != "none" and budget.period != "total"


def _new(budget: BudgetRow, entity_id: str, at: datetime, last: WindowRow | None) -> NewWindow:
    """The window of ``at``, with what the ``last`` one before it leaves (R14: computed once)."""
    start, end = _bounds(budget.period, budget.timezone, at)
    carry = _carry(budget, start, last)
    limit = effective_limit(budget, carry) if budget.blocking else None
    return NewWindow(budget.budget_id, entity_id, start, end, carry, limit)


async def carry_into(connection: Connection, budget: BudgetRow, entity_id: str, start: datetime) -> int:
    """What a new window would get now from those before it, which are not locked."""
    if not rolls_over(budget):
        return 0
    last = await window_store.latest_before(connection, budget.org_id, budget.budget_id, entity_id, start)
    return _carry(budget, start, last)


def _carry(budget: BudgetRow, start: datetime, last: WindowRow | None) -> int:
    """What is left of the ``last`` window that was opened before ``start``, if any was.

    Windows that nobody opened had nothing spent in them; the first one counts from the budget's own start.
    """
    if not rolls_over(budget):
        return 0
    if last is not None:
        remaining = budget.base_limit + last.carry - last.spent - last.reserved
        idle = periods_between(budget.period, budget.timezone, last.starts_at, start) - 1
        return carry_over(budget, remaining, max(0, idle))
    first, _ = bounds(budget.period, budget.timezone, budget.counting_since)
    idle = max(0, periods_between(budget.period, budget.timezone, first, start)) if first < start else 0
    return carry_over(budget, 0, idle)
