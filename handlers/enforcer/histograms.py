"""How much of their worst case calls really take: ratios in buckets, their percentiles, and what this agent remembers.

Integers only. The buckets are part of what is stored: changing them needs a migration that rewrites ``sizing``.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from typing import Final

from store import sizing as sizing_store
from store.pool import Database
from store.sizing import Key, SizingRow

# Ratios are counted in parts per million of the worst case.
WHOLE: Final = 1_000_000


def _edges() -> Iterator[int]:
    """Upper edges of the buckets: relative steps of an eighth where little is used, fine ones towards the whole."""
    yield 0
    edge = 200
    while edge < 250_000:
        yield edge
        edge += edge // 8
    yield from range(250_000, 900_000, 20_000)
    yield from range(900_000, WHOLE + 1, 5_000)


EDGES: Final = tuple(_edges())
OVER: Final = len(EDGES)  # the bucket of calls that took more than their worst case
BUCKETS: Final = OVER + 1


def bucket_of(actual: int, worst: int) -> int:
    """The bucket of ``actual / worst``: the first whose upper edge is not below it. ``worst`` is positive."""
    return bisect_left(EDGES, -(-actual * WHOLE // worst))


def part(worst: int, edge: int) -> int:
    """``edge`` millionths of a worst case, rounded up; at least 1 of what is not nothing, at most all of it."""
    return min(worst, max(1, -(-worst * edge // WHOLE))) if worst else 0


def rank(total: int, percentile: int) -> int:
    """Which of ``total`` ratios, in ascending order from 1, the next one exceeds in at most 100 - ``percentile`` %.

    The plain percentile's rank among ``total + 1``: the next call is one of them, so whatever the distribution, its
    chance to lie above is no larger as long as calls stay alike. Above ``total``: too few were seen to say.
    """
    return -(-(total + 1) * percentile // 100)


def edge_at(counts: Sequence[int], percentile: int) -> int | None:
    """The upper edge of the bucket that holds the percentile; None where it is the overflow, or too few were seen."""
    wanted = rank(sum(counts), percentile)
    for bucket, below in enumerate(accumulate(counts)):
        if below >= wanted:
            return EDGES[bucket] if bucket < OVER else None
    return None


@dataclass(slots=True)
class Histogram:
    """One key's ratios. ``edges`` remembers percentiles that were asked for."""

    cost: list[int]
    tokens: list[int]
    cost_total: int
    tokens_total: int
    edges: dict[tuple[bool, int], int | None] = field(default_factory=dict[tuple[bool, int], int | None])

    @classmethod
    def of(cls, row: SizingRow) -> "Histogram":
        """The histogram of a stored row."""
        return cls(row.cost, row.tokens, sum(row.cost), sum(row.tokens))

    def edge(self, *, cost: bool, percentile: int) -> int | None:
        """``edge_at`` of the cost ratios, else of the token ratios."""
        asked = (cost, percentile)
        if asked not in self.edges:
            self.edges[asked] = edge_at(self.cost if cost else self.tokens, percentile)
        return self.edges[asked]


def levels(key: Key) -> tuple[Key, ...]:
    """A key, then the same without its agent, then without its feature; each once."""
    provider, model, feature, _ = key
    return tuple(dict.fromkeys((key, (provider, model, feature, ""), (provider, model, "", ""))))


@dataclass(slots=True)
class _Org:
    """What is remembered of one org. ``asked`` counts the refreshes since somebody asked."""

    known: dict[Key, Histogram] = field(default_factory=dict[Key, Histogram])
    until: datetime | None = None
    idle: int = 0


class Histograms:
    """Copies of the histograms, refreshed between decisions and never during one.

    Only orgs that size by observation are remembered, and those that have not asked for ``idle_max`` refreshes are
    forgotten. Bounded by ``orgs_max`` orgs, and by the keys that a refresh allows.
    """

    def __init__(self, *, orgs_max: int = 10_000, idle_max: int = 150) -> None:
        self._orgs: dict[str, _Org] = {}
        self._orgs_max = orgs_max
        self._idle_max = idle_max

    def ask(self, org: str) -> dict[Key, Histogram]:
        """What is known of an org now; nothing until the refresh after the first call that asks."""
        found = self._orgs.get(org)
        if found is None:
            if len(self._orgs) >= self._orgs_max:
                return {}
            found = self._orgs[org] = _Org()
        found.idle = 0
        return found.known

    @property
    def keys(self) -> int:
        """How many histograms are remembered."""
        return sum(len(org.known) for org in self._orgs.values())

    async def refresh(self, database: Database, *, keys_max: int, cache_max: int) -> None:
        """Read what changed of the orgs that ask. Raises what the database raises; what is known stays.

        Remembers at most ``cache_max`` keys in all. An org that has its ``keys_max`` keys loses the tenth of them that
        has not changed for longest, so that new ones are learned.
        """
        for org, found in list(self._orgs.items()):
            found.idle += 1
            if found.idle > self._idle_max:
                del self._orgs[org]
                continue
            async with database.connection() as connection:
                rows, found.until = await sizing_store.changed(connection, org, since=found.until, limit=keys_max)
                if len(rows) + len(found.known) >= keys_max:
                    await sizing_store.forget(connection, org, keys_max=keys_max, keep=keys_max * 9 // 10)
            self._put(found, rows, cache_max)

    def _put(self, org: _Org, rows: Iterable[SizingRow], cache_max: int) -> None:
        """Newest last; the key that has not changed for longest goes first where there are too many."""
        for row in rows:
            org.known.pop(row.key, None)
            org.known[row.key] = Histogram.of(row)
        for key in list(org.known)[: max(0, min(len(org.known), self.keys - cache_max))]:
            del org.known[key]
