"""Which public list prices an org's rules stand on: those bundled with the agent, or a price file the org has applied.

A file is read once for each digest, in a thread, before anything is priced with it; what was read is kept, bounded.
"""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

from handlers.cost.bundled import BundledPrices
from handlers.cost.resolve import RateCards
from handlers.cost.snapshot import BadPriceFile, Snapshot, is_older, read, unpack
from store import price_snapshots as snapshot_store
from store.pool import Connection
from store.price_snapshots import SnapshotUse

OLDER_THAN_BUNDLED: Final = "older_than_bundled"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Held:
    """A snapshot that was read, and the prices made of it. ``older``: what came with this agent is newer."""

    snapshot: Snapshot
    prices: BundledPrices
    cards: RateCards
    older: bool


class Snapshots:
    """Of all orgs of one agent; keeps the ``limit`` price files used last."""

    def __init__(self, cards: RateCards, *, today: Callable[[], date], limit: int) -> None:
        self._cards = cards
        self._today = today
        self._limit = limit
        self._known: OrderedDict[str, Held] = OrderedDict()
        self._reading = asyncio.Lock()
        self._bundled: Held | None = None
        # Why an org's prices are not those it has applied.
        self.problem: str | None = None

    async def bundled(self) -> Held:
        """What came with the agent."""
        if self._bundled is None:
            snapshot = await asyncio.to_thread(_bundled)
            self._bundled = Held(snapshot, self._cards.bundled, self._cards, older=False)
        return self._bundled

    async def cards(self, connection: Connection, org: str) -> RateCards:
        """What an org's own rules are applied to."""
        row = await snapshot_store.in_use(connection, org)
        if row is None or row.digest is None:
            return self._cards
        held = await self._held(connection, org, row)
        return self._cards if held is None else held.cards

    async def in_use(self, connection: Connection, org: str) -> tuple[Held, SnapshotUse | None]:
        """The list prices an org uses, and the row that says so (None: nobody ever applied any)."""
        row = await snapshot_store.in_use(connection, org)
        held = None if row is None or row.digest is None else await self._held(connection, org, row)
        return held or await self.bundled(), row

    async def hold(self, snapshot: Snapshot) -> Held:
        """Prices of a snapshot that was read just now, kept for those who will use it."""
        held = self._known.get(snapshot.digest)
        if held is None:
            bundled = await self.bundled()
            older = await asyncio.to_thread(is_older, snapshot, bundled.snapshot, self._today())
            prices = BundledPrices(snapshot)
            held = Held(snapshot, prices, self._cards.over(prices), older)
            self._keep(held)
        return held

    async def _held(self, connection: Connection, org: str, row: SnapshotUse) -> Held | None:
        """What a row names; None where the agent's own prices are newer than anybody approved, or it is unreadable."""
        assert row.digest is not None, "the caller has looked"
        held = self._known.get(row.digest)
        if held is None:
            held = await self._load(connection, org, row.digest)
        if held is None or (held.older and OLDER_THAN_BUNDLED not in row.approved):
            return None
        self._known.move_to_end(row.digest)
        return held

    async def _load(self, connection: Connection, org: str, digest: str) -> Held | None:
        async with self._reading:  # Many orgs use one file: it is read once.
            if (known := self._known.get(digest)) is not None:
                return known
            data = await snapshot_store.data_of(connection, org, digest)
            assert data is not None, "a foreign key holds it"
            try:
                snapshot = await asyncio.to_thread(_stored, data, digest)
            except BadPriceFile as error:
                self.problem = f"price snapshot {digest[:12]} {error}; org {org} is priced by the bundled list prices"
                _log.exception("%s", self.problem)
                return None
            return await self.hold(snapshot)

    def _keep(self, held: Held) -> None:
        self._known[held.snapshot.digest] = held
        while len(self._known) > self._limit:
            self._known.popitem(last=False)


def _stored(data: bytes, digest: str) -> Snapshot:
    found = read(unpack(data))
    if found.digest != digest:
        raise BadPriceFile("is not what was stored")
    return found


def _bundled() -> Snapshot:
    from genai_prices import data  # noqa: PLC0415 - 150 ms, in a thread

    return Snapshot(hashlib.sha256(Path(data.__file__).read_bytes()).hexdigest(), tuple(data.providers))
