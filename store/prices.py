"""Rows of ``price_rule``, ``model_alias``, ``price_book`` and ``price_volume``: an org's prices, every version kept.

Whoever adds a version holds the exclusive catalogue lock; the book's revision grows with it (R2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import msgspec

from store.pool import Connection
from store.sql import queries

_SQL = queries("prices")
VolumeKey = tuple[str, date]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRuleRow:
    """A version of a rule: ``definition`` is a schemas.pricing.PriceRule on the wire, None where the rule ends.

    It holds in [``valid_from``, ``valid_to``), None: unbounded, or until a later version of the name holds.
    """

    org_id: str
    name: str
    version: int
    rule_id: str
    layer: str
    definition: dict[str, Any] | None
    valid_from: datetime | None
    valid_to: datetime | None
    created_at: datetime
    created_by: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAliasRow:
    """A version of an alias: calls of ``provider`` and ``alias`` (patterns) are calls of ``to_provider``, ``to_model``.

    It holds from ``valid_from`` on, None: always; one without a model ends the alias.
    """

    org_id: str
    provider: str
    alias: str
    version: int
    to_provider: str | None
    to_model: str | None
    valid_from: datetime | None
    created_at: datetime
    created_by: str
    reason: str | None = None


async def revision(connection: Connection, org: str) -> int:
    """How often the org's rules and aliases have changed; 0: it never had any."""
    return await connection.fetchval(_SQL["revision"], org) or 0


async def history_since(connection: Connection, days: int) -> datetime:
    """The time so many days ago, by the ledger's clock."""
    return await connection.fetchval(_SQL["history_since"], days)


async def load_rules(connection: Connection, org: str, *, since: datetime) -> list[PriceRuleRow]:
    """The versions that prices from ``since`` on are made of, by name and version."""
    return [rule_row(record) for record in await connection.fetch(_SQL["load_rules"], org, since)]


def rule_row(record: Any) -> PriceRuleRow:
    """The version in a record of ``price_rule``, in which JSON is text."""
    values: dict[str, Any] = dict(record)
    if values["definition"] is not None:
        values["definition"] = msgspec.json.decode(values["definition"])
    return PriceRuleRow(**values)


async def load_aliases(connection: Connection, org: str, *, since: datetime) -> list[ModelAliasRow]:
    """The versions that names from ``since`` on are read by, by provider, alias and version."""
    return [ModelAliasRow(**dict(record)) for record in await connection.fetch(_SQL["load_aliases"], org, since)]


async def add_rules(connection: Connection, org: str, rows: Sequence[PriceRuleRow]) -> int:
    """Add versions of rules; returns the book's new revision. The exclusive catalogue lock is held."""
    await connection.executemany(_SQL["add_rule"], [_rule_values(org, row) for row in rows])
    return await connection.fetchval(_SQL["bump"], org)


async def add_aliases(connection: Connection, org: str, rows: Sequence[ModelAliasRow]) -> int:
    """Add versions of aliases; returns the book's new revision. The exclusive catalogue lock is held."""
    values = [
        (org, r.provider, r.alias, r.version, r.to_provider, r.to_model, r.valid_from, r.created_at, r.created_by,
         r.reason) for r in rows
    ]  # fmt: skip
    await connection.executemany(_SQL["add_alias"], values)
    return await connection.fetchval(_SQL["bump"], org)


async def lock_volumes(connection: Connection, org: str, keys: Sequence[VolumeKey]) -> dict[VolumeKey, int]:
    """Lock the counters of rules in months, in their order, making those that are missing: what each has seen."""
    names, months = _arrays(keys)
    await connection.execute(_SQL["open_volumes"], org, names, months)
    records = await connection.fetch(_SQL["lock_volumes"], org, names, months)
    return {(r["name"], r["month"]): r["used"] for r in records}


async def volumes(connection: Connection, org: str, keys: Sequence[VolumeKey]) -> dict[VolumeKey, int]:
    """What rules have seen of months so far, without a lock; one that has seen nothing is left out."""
    records = await connection.fetch(_SQL["volumes"], org, *_arrays(keys))
    return {(r["name"], r["month"]): r["used"] for r in records}


async def write_volumes(connection: Connection, org: str, used: Mapping[VolumeKey, int]) -> None:
    """What locked counters have seen by now."""
    names, months = _arrays(sorted(used))
    await connection.execute(_SQL["write_volumes"], org, names, months, [used[k] for k in sorted(used)])


def _arrays(keys: Sequence[VolumeKey]) -> tuple[list[str], list[date]]:
    ordered = sorted(keys)
    return [name for name, _ in ordered], [month for _, month in ordered]


def _rule_values(org: str, row: PriceRuleRow) -> tuple[Any, ...]:
    definition = None if row.definition is None else msgspec.json.encode(row.definition).decode()
    return (org, row.name, row.version, row.rule_id, row.layer, definition, row.valid_from, row.valid_to,
            row.created_at, row.created_by, row.reason)  # fmt: skip
