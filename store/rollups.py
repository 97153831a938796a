"""Rows of ``usage_rollup``: 15-minute sums by every dimension except session, task and tags."""

from collections.abc import Sequence
from typing import Any

from store.pool import Connection
from store.sql import queries

_SQL = queries("rollups")
HISTOGRAM_BUCKETS = 24


async def add(connection: Connection, org: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Add sums; ``rows`` are sorted by (bucket, dimension key) and hold the columns after ``org_id`` in order.

    The two histograms come last, as PostgreSQL array text.
    """
    if rows:
        await connection.execute(_SQL["add"], org, *[list(column) for column in zip(*rows, strict=True)])
