"""Counts how checks are decided: in memory, so that a decision pays nothing, and added to PostgreSQL now and then.

An agent that is killed loses the counts of the last interval; they are figures for people, no promise rests on them.
"""

from collections import Counter
from typing import Final

from store import compliance as compliance_store
from store.pool import Database

APPROVED: Final = "approved"


class Tally:
    """Decisions by (org, code) that are not stored yet; as many keys as orgs times codes."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, org: str, code: str, count: int = 1) -> None:
        """Count decisions."""
        self._counts[org, code] += count

    async def flush(self, database: Database) -> None:
        """Store what was counted since the last time. Raises where PostgreSQL is away; the counts are kept then."""
        if not self._counts:
            return
        taken, self._counts = self._counts, Counter()
        try:
            async with database.transaction() as connection:
                await compliance_store.count_decisions(connection, taken)
        except BaseException:
            self._counts.update(taken)
            raise
