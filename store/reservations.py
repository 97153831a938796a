"""Rows of ``reservation``: an amount set aside before a call, with an owner and an expiry."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from store.pool import Connection
from store.sql import queries

_SQL = queries("reservations")


@dataclass(frozen=True, slots=True)
class ReservationRow:
    """A reservation as stored. ``held`` is aligned with ``window_ids``; amounts in each window's own measure."""

    org_id: str
    reservation_id: str
    request_id: str
    body_hash: bytes
    status: str
    superseded: bool
    presumed: bool
    decided_at: datetime
    expires_at: datetime
    closed_at: datetime | None
    provider: str | None
    model: str | None
    attribution: dict[str, Any]
    estimated_cost: int | None
    estimated_tokens: int
    window_ids: list[int]
    held: list[int]
    caller: str | None
    # What earlier parts of the call took (final: false); None: not known.
    used_cost: int | None = 0
    used_tokens: int | None = 0
    # Of estimated_cost and used_cost.
    currency: str = "USD"


def _row(record: Any) -> ReservationRow:
    values = dict(record)
    values["reservation_id"] = str(values["reservation_id"])
    values["attribution"] = json.loads(values["attribution"])
    return ReservationRow(**values)


# What many calls have in common: provider, model, attribution as JSON, window ids as a PostgreSQL array, caller, and
# the currency of their cost.
Kind = tuple[str | None, str | None, str, str, str | None, str]


@dataclass(slots=True)
class NewReservations:
    """Reservations to insert, one list per column; ``kinds`` numbers the distinct kinds of call from 1."""

    kinds: dict[Kind, int] = field(default_factory=dict[Kind, int])
    kind: list[int] = field(default_factory=list[int])
    ids: list[str] = field(default_factory=list[str])
    request_ids: list[str] = field(default_factory=list[str])
    body_hashes: list[bytes] = field(default_factory=list[bytes])
    ttls_s: list[int] = field(default_factory=list[int])
    costs: list[int | None] = field(default_factory=list[int | None])
    tokens: list[int] = field(default_factory=list[int])
    held: list[str] = field(default_factory=list[str])

    def number_of(self, kind: Kind) -> int:
        """The number of a kind of call."""
        return self.kinds.setdefault(kind, len(self.kinds) + 1)


async def admit(
    connection: Connection,
    org: str,
    *,
    decided_at: datetime,
    window_ids: Sequence[int],
    reserved: Sequence[int],
    high_limits: Sequence[int | None],
    new: NewReservations,
) -> None:
    """Write a decided batch: the windows' reserved sums and the reservations. One statement.

    Raises asyncpg.UniqueViolationError where a request id already has a reservation.
    """
    await connection.execute(
        _SQL["admit"],
        org,
        window_ids,
        reserved,
        high_limits,
        decided_at,
        *_columns(new),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Premises:
    """What a decision was made from: the windows (by id, ascending) with their sums, and the time they are of."""

    version: int
    since: datetime
    until: datetime | None
    window_ids: list[int]
    spent: list[int]
    reserved: list[int]
    overrun: list[int]
    limits: list[int]


async def commit_admission(
    connection: Connection, org: str, premises: Premises, *, more: Sequence[int], new: NewReservations
) -> datetime | None:
    """Write and commit a decision if its premises hold, in one round trip; returns its time, or None: nothing happened.

    Raises asyncpg.UniqueViolationError where a request id already has a reservation.
    """
    return await connection.fetchval(
        _SQL["commit_admission"],
        org,
        premises.version,
        premises.since,
        premises.until,
        premises.window_ids,
        premises.spent,
        premises.reserved,
        premises.overrun,
        more,
        premises.limits,
        *_columns(new),
    )


def _columns(new: NewReservations) -> list[Sequence[object]]:
    kinds = [list(column) for column in zip(*new.kinds, strict=True)] or [[], [], [], [], [], []]
    return [
        *kinds,
        new.kind,
        new.ids,
        new.request_ids,
        new.body_hashes,
        new.ttls_s,
        new.costs,
        new.tokens,
        new.held,
    ]


async def lock_requests(connection: Connection, org: str, request_ids: Sequence[str]) -> dict[str, ReservationRow]:
    """The newest reservation of each request id, locked in key order."""
    rows = [_row(r) for r in await connection.fetch(_SQL["lock_requests"], org, sorted(request_ids))]
    return {row.request_id: row for row in rows}


async def any_request(connection: Connection, org: str, request_ids: Sequence[str]) -> bool:
    """Whether any of these request ids has a reservation."""
    return bool(await connection.fetchval(_SQL["any_request"], org, request_ids))


async def supersede(connection: Connection, org: str, reservation_ids: Sequence[str]) -> None:
    """Let a newer reservation take the request id of closed ones."""
    await connection.execute(_SQL["supersede"], org, reservation_ids)


async def find_ids(
    connection: Connection, org: str, reservation_ids: Sequence[str], request_ids: Sequence[str]
) -> list[ReservationRow]:
    """Reservations by id or by request id (the newest of it), not locked: what identifies them never changes."""
    return [_row(r) for r in await connection.fetch(_SQL["find_ids"], org, reservation_ids, request_ids)]


async def lock(connection: Connection, org: str, reservation_ids: Sequence[str]) -> dict[str, ReservationRow]:
    """Reservations by id, locked in key order."""
    rows = [_row(r) for r in await connection.fetch(_SQL["lock"], org, sorted(set(reservation_ids)))]
    return {row.reservation_id: row for row in rows}


async def close(connection: Connection, org: str, *, ids: Sequence[str], status: str, closed_at: datetime) -> list[str]:
    """Close live reservations; returns those that were live. Their ``held`` stays as the record of what it was."""
    records = await connection.fetch(_SQL["close"], org, ids, status, closed_at)
    return [str(record["reservation_id"]) for record in records]


async def expire(
    connection: Connection,
    org: str,
    *,
    ids: Sequence[str],
    presumed: Sequence[bool],
    held: Sequence[Sequence[int]],
    closed_at: datetime,
) -> None:
    """Expire locked live reservations; ``held`` becomes what was presumed spent where ``presumed``."""
    texts = [_array(amounts) for amounts in held]
    await connection.execute(_SQL["expire"], org, ids, presumed, texts, closed_at)


async def settle_presumed(connection: Connection, org: str, ids: Sequence[str]) -> None:
    """The outcome of expired reservations is known now: the presumed charge was replaced."""
    await connection.execute(_SQL["settle_presumed"], org, ids)


async def write_held(
    connection: Connection,
    org: str,
    *,
    ids: Sequence[str],
    held: Sequence[Sequence[int]],
    used: Sequence[tuple[int | None, int | None]],
) -> None:
    """Replace what live reservations hold, and what parts of their calls used so far (nanos, tokens)."""
    costs, tokens = [cost for cost, _ in used], [count for _, count in used]
    await connection.execute(_SQL["write_held"], org, ids, [_array(amounts) for amounts in held], costs, tokens)


async def extend(
    connection: Connection,
    org: str,
    reservation_id: str,
    *,
    expires_at: datetime,
    provider: str | None,
    model: str | None,
    cost: int | None,
    currency: str,
    tokens: int,
    window_ids: Sequence[int],
    held: Sequence[int],
) -> None:
    """Store a decided change of a locked live reservation."""
    await connection.execute(
        _SQL["extend"],
        org,
        reservation_id,
        expires_at,
        provider,
        model,
        cost,
        tokens,
        list(window_ids),
        list(held),
        currency,
    )


async def expired(connection: Connection, org: str, before: datetime, limit: int) -> list[str]:
    """Ids of live reservations that expired before ``before``, oldest first."""
    return [str(r["reservation_id"]) for r in await connection.fetch(_SQL["expired"], org, before, limit)]


async def orgs_with_expired(connection: Connection, before: datetime) -> list[str]:
    """Orgs that have live reservations which expired before ``before``."""
    return [r["org_id"] for r in await connection.fetch(_SQL["orgs_with_expired"], before)]


async def listing(
    connection: Connection,
    org: str,
    *,
    status: str | None,
    request_id: str | None,
    budget_id: str | None,
    before_id: str,
    limit: int,
) -> list[ReservationRow]:
    """Reservations by id, newest first (ids are time-ordered), before ``before_id``."""
    records = await connection.fetch(_SQL["listing"], org, status, request_id, budget_id, before_id, limit)
    return [_row(record) for record in records]


async def live_counts(connection: Connection, org: str) -> tuple[int, datetime | None]:
    """How many reservations are live, and the earliest expiry among them."""
    record = await connection.fetchrow(_SQL["live_counts"], org)
    assert record is not None
    return record["live"], record["oldest"]


def _array(amounts: Sequence[int]) -> str:
    return "{" + ",".join(map(str, amounts)) + "}"
