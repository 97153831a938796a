"""Rows of ``budget_window``: one period of one budget for one entity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from fractions import Fraction
from operator import attrgetter
from typing import Any

from store.budgets import BudgetRow
from store.exchange import rate_columns
from store.pool import Connection, Database
from store.sql import like_pattern, queries

_SQL = queries("windows")
# The attributes a budget may filter on, in the order the statement ``charged`` takes them.
FILTER_FIELDS = ("provider", "model", "feature", "environment", "agent_id")


@dataclass(frozen=True, slots=True)
class WindowRow:
    """Sums of a window in the budget's integer measure."""

    org_id: str
    window_id: int
    budget_id: str
    entity_id: str
    starts_at: datetime
    ends_at: datetime | None
    carry: int
    backfilled: int
    spent: int
    reserved: int
    overrun: int
    high_limit: int | None
    thresholds_fired: tuple[int, ...]
    exceeded_at: datetime | None
    shadow_denied: int = 0
    # The newest revision of exchange rates that was visible at its creation; None: older than exchange rates.
    fx_revision: int | None = None


@dataclass(frozen=True, slots=True)
class NewWindow:
    """A window to create; ``backfilled`` is what was spent in it before its budget existed."""

    budget_id: str
    entity_id: str
    starts_at: datetime
    ends_at: datetime | None
    carry: int
    high_limit: int | None
    backfilled: int = 0
    overrun: int = 0
    # Of its exchange rates; None: the newest there is.
    fx_revision: int | None = None


# Not astuple: it copies every value deeply, which is most of what opening a window would cost.
_columns_of = attrgetter(*(field.name for field in fields(NewWindow)))


def _row(record: Any) -> WindowRow:
    values = dict(record)
    values["budget_id"] = str(values["budget_id"])
    values["thresholds_fired"] = tuple(values["thresholds_fired"])
    return WindowRow(**values)


@dataclass(slots=True)
class Opened:
    """What ``admission_open`` returns: the clock, the catalogue version and, if current, the locked sums."""

    decided_at: datetime
    version: int
    window_ids: list[int]
    spent: list[int]
    reserved: list[int]
    overrun: list[int]
    high_limits: list[int | None]
    carries: list[int]
    exceeded: list[bool]


async def open_admission(connection: Connection, org: str, version: int, window_ids: Sequence[int]) -> Opened:
    """Lock the catalogue as a reader, then the windows in key order, and read the clock; one round trip."""
    record = await connection.fetchrow(_SQL["open_admission"], org, version, window_ids)
    assert record is not None
    decided_at, at_version, *columns = record
    lists: list[list[Any]] = [column or [] for column in columns]
    return Opened(decided_at, at_version, *lists)


async def lock(connection: Connection, org: str, window_ids: Sequence[int]) -> list[WindowRow]:
    """Lock windows in key order; the last class of locks in every transaction (R1)."""
    return [_row(r) for r in await connection.fetch(_SQL["lock"], org, sorted(window_ids))]


async def write_sums(
    connection: Connection,
    org: str,
    *,
    window_ids: Sequence[int],
    spent: Sequence[int],
    reserved: Sequence[int],
    overrun: Sequence[int],
    high_limits: Sequence[int | None],
) -> None:
    """Replace the sums of locked windows."""
    await connection.execute(_SQL["write_sums"], org, window_ids, spent, reserved, overrun, high_limits)


async def mark_fired(connection: Connection, org: str, window_id: int, thresholds: Sequence[int]) -> None:
    """Remember thresholds that fired in a locked window."""
    await connection.execute(_SQL["mark_fired"], org, window_id, thresholds)


async def mark_exceeded(connection: Connection, org: str, window_ids: Sequence[int]) -> list[int]:
    """Remember that windows are full; returns those for which this is news."""
    return [r["window_id"] for r in await connection.fetch(_SQL["mark_exceeded"], org, window_ids)]


async def add_shadow_denied(connection: Connection, org: str, counts: Mapping[int, int]) -> None:
    """Count what locked windows in shadow enforcement would have denied."""
    await connection.execute(_SQL["add_shadow_denied"], org, list(counts), list(counts.values()))


async def find(
    connection: Connection, org: str, keys: Sequence[tuple[str, str, datetime]]
) -> dict[tuple[str, str, datetime], WindowRow]:
    """Windows by (budget, entity, start)."""
    records = await connection.fetch(
        _SQL["find"], org, [k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys]
    )
    rows = [_row(record) for record in records]
    return {(row.budget_id, row.entity_id, row.starts_at): row for row in rows}


async def lock_before(
    connection: Connection, org: str, keys: Sequence[tuple[str, str, datetime]]
) -> dict[tuple[str, str, datetime], WindowRow]:
    """The newest window of each (budget, entity) before a start, by that key: all locked, in the order of their ids."""
    columns = ([k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys])
    found: dict[tuple[str, str, datetime], WindowRow] = {}
    for record in await connection.fetch(_SQL["lock_before"], org, *columns):
        values = dict(record)
        before = values.pop("before")
        row = _row(values)
        found[row.budget_id, row.entity_id, before] = row
    return found


async def latest_before(
    connection: Connection, org: str, budget_id: str, entity_id: str, starts_at: datetime
) -> WindowRow | None:
    """The newest window of a budget and entity before ``starts_at``, not locked."""
    record = await connection.fetchrow(_SQL["latest_before"], org, budget_id, entity_id, starts_at)
    return _row(record) if record else None


async def create(
    connection: Connection, org: str, windows: Sequence[NewWindow]
) -> dict[tuple[str, str, datetime], WindowRow]:
    """Create windows, in one statement; one that exists stays as it is: whoever comes first decides its carry.

    Returns those that were created, by (budget, entity, start).
    """
    columns = zip(*map(_columns_of, windows), strict=True)
    rows = [_row(record) for record in await connection.fetch(_SQL["create"], org, *map(list, columns))]
    return {(row.budget_id, row.entity_id, row.starts_at): row for row in rows}


async def analyze(database: Database) -> None:
    """Let PostgreSQL's planner know how many windows there are, unless somebody is counting them now."""
    await database.execute(_SQL["analyze"])


async def known_entities(connection: Connection, org: str, pairs: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of the (budget, entity) pairs that have a window of any time."""
    records = await connection.fetch(_SQL["known_entities"], org, [p[0] for p in pairs], [p[1] for p in pairs])
    return {(str(record["budget_id"]), record["entity_id"]) for record in records}


async def lock_new_entities(connection: Connection, org: str) -> int:
    """How many new entities were counted in this hour, locked: who else meets any waits."""
    return await connection.fetchval(_SQL["lock_new_entities"], org)


async def add_new_entities(connection: Connection, org: str, count: int) -> None:
    """Count new entities; the counter is locked."""
    await connection.execute(_SQL["add_new_entities"], org, count)


async def of_budget(connection: Connection, org: str, budget_id: str, at: datetime, limit: int) -> list[WindowRow]:
    """The windows of a budget that hold ``at``, by entity."""
    return [_row(r) for r in await connection.fetch(_SQL["of_budget"], org, budget_id, at, limit)]


async def by_id(connection: Connection, org: str, window_ids: Sequence[int]) -> dict[int, WindowRow]:
    """Windows by id, not locked."""
    rows = [_row(r) for r in await connection.fetch(_SQL["by_id"], org, window_ids)]
    return {row.window_id: row for row in rows}


async def set_blocking(connection: Connection, org: str, budget_id: str, *, limit: int | None) -> None:
    """Give every window of a budget a high limit (it blocks from now on), or none where ``limit`` is null."""
    await connection.execute(_SQL["set_blocking"], org, budget_id, limit)


@dataclass(frozen=True, slots=True)
class Charged:
    """What applied events of one entity took from a budget; ``later_at`` is the minute of those after the window.

    ``lacking`` are the currencies of costs that could not be converted; they are not in ``amount``.
    """

    entity_id: str
    later_at: datetime | None
    amount: int
    lacking: list[str]


async def charged(
    connection: Connection,
    budget: BudgetRow,
    *,
    starts_at: datetime,
    ends_at: datetime | None,
    rates: Mapping[str, Fraction],
) -> list[Charged]:
    """Sums of the events charged since ``starts_at`` that a budget matches, whoever applied them.

    ``rates`` is what one unit of each currency is in the budget's; each cost is converted and rounded by itself.
    """
    patterns = {name: like_pattern(pattern) for name, pattern in budget.filters.items()}
    records = await connection.fetch(
        _SQL["charged"],
        budget.org_id,
        budget.type,
        budget.entity_id,
        budget.unit,
        starts_at,
        ends_at,
        *[patterns.get(name) for name in FILTER_FIELDS],
        *rate_columns(rates),
    )
    return [Charged(r["entity_id"], r["later_at"], int(r["amount"]), r["lacking"]) for r in records]
