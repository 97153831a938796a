"""Sums of a batch of events by quarter hour and dimensions. Pure."""

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from handlers.tracker.priced import PricedEvent
from store.rollups import HISTOGRAM_BUCKETS

Key = tuple[Any, ...]
_PACK = msgspec.msgpack.Encoder().encode
_BUCKET_MINUTES = 15


def bucket_of(at: datetime) -> datetime:
    """Start of the quarter hour (UTC) that holds ``at``."""
    return at.replace(minute=at.minute - at.minute % _BUCKET_MINUTES, second=0, microsecond=0)


def rollup_rows(events: Iterable[tuple[PricedEvent, bool]]) -> list[tuple[Any, ...]]:
    """Rows for ``store.rollups.add``, sorted by key; each event comes with whether it was reserved first."""
    groups: dict[Key, _Sums] = {}
    for event, reserved in events:
        key = _key(event, reserved)
        sums = groups.get(key)
        if sums is None:
            sums = groups[key] = _Sums()
        sums.add(event)
    return _rows(groups)


def posted_rows(postings: Iterable[tuple[PricedEvent, bool, int]]) -> list[tuple[Any, ...]]:
    """The same for what adjustments post: each event comes with whether it was reserved first, and its sign."""
    groups: dict[Key, _Sums] = {}
    for event, reserved, sign in postings:
        one = _Sums()
        one.add(event)
        groups.setdefault(_key(event, reserved), _Sums()).add_all(one, sign)
    return _rows(groups)


def _key(event: PricedEvent, reserved: bool) -> Key:
    return (
        bucket_of(event.timestamp),
        event.provider,
        event.model,
        event.user_id,
        event.team_id,
        event.project_id,
        event.feature,
        event.agent_id,
        event.environment,
        event.cost_center,
        event.service_tier,
        event.status,
        event.cost_status,
        event.currency,
        reserved,
    )


def _rows(groups: "dict[Key, _Sums]") -> list[tuple[Any, ...]]:
    rows = [(key[0], dimension_key(key[1:]), *key[1:], *sums.columns()) for key, sums in groups.items()]
    rows.sort(key=lambda row: (row[0], row[1]))
    return rows


def dimension_key(dimensions: Key) -> str:
    """128 bits of all dimensions, as a UUID."""
    digest = hashlib.blake2b(_PACK(dimensions), digest_size=16).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:]}"


class _Sums:
    """Sums of one group. Histograms count by power of two: of milliseconds, and of total tokens."""

    __slots__ = ("counts", "latency", "size")

    def __init__(self) -> None:
        self.counts = [0] * 10
        self.latency = [0] * HISTOGRAM_BUCKETS
        self.size = [0] * HISTOGRAM_BUCKETS

    def add(self, event: PricedEvent) -> None:
        counts = self.counts
        counts[0] += event.final
        counts[1] += event.prompt_tokens
        counts[2] += event.completion_tokens
        counts[3] += event.cache_read_tokens
        counts[4] += event.cache_write_tokens
        counts[5] += event.reasoning_tokens
        counts[6] += event.cost or 0
        counts[9] += (event.cost if event.list_cost is None else event.list_cost) or 0
        if event.latency_ms is not None:
            counts[7] += 1
            counts[8] += round(event.latency_ms * 1000)
            self.latency[min(int(event.latency_ms).bit_length(), HISTOGRAM_BUCKETS - 1)] += 1
        size = event.prompt_tokens + event.completion_tokens
        self.size[min(size.bit_length(), HISTOGRAM_BUCKETS - 1)] += 1

    def add_all(self, other: "_Sums", sign: int) -> None:
        """Add other sums, or with ``sign`` -1 take them away."""
        for mine, theirs in ((self.counts, other.counts), (self.latency, other.latency), (self.size, other.size)):
            for i, count in enumerate(theirs):
                mine[i] += sign * count

    def columns(self) -> tuple[Any, ...]:
        return (*self.counts, _array(self.latency), _array(self.size))


def _array(values: list[int]) -> str:
    return "{" + ",".join(map(str, values)) + "}"
