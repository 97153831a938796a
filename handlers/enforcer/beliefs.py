"""What this agent believes the windows' sums to be: kept from its own last look or write, never trusted without proof.

A decision made from beliefs is written only if PostgreSQL finds every one of them true under its locks
(``admission_commit``). A wrong belief costs a round trip and is forgotten; it can never cost money.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from handlers.enforcer.catalogue import Catalogue
from handlers.enforcer.ledger import Sums
from handlers.enforcer.plan import Plan, Targets
from store.reservations import Premises
from store.windows import WindowRow

PAUSE_FIRST = 4
PAUSE_MOST = 256


@dataclass(frozen=True, slots=True)
class Belief:
    """One window's sums, with what never changes: its carry."""

    spent: int
    reserved: int
    overrun: int
    carry: int


class Beliefs:
    """Beliefs about the windows of one org; bounded by ``limit`` windows.

    After a wrong one, the next few batches look before they decide: where several agents share hot windows, beliefs
    are mostly wrong, and looking is cheaper.
    """

    def __init__(self, limit: int) -> None:
        self._known: dict[int, Belief] = {}
        self._limit = limit
        self._pause = 0
        self._pause_next = PAUSE_FIRST

    def put(self, sums: Iterable[tuple[Sums, int]]) -> None:
        """Believe these sums (with each window's carry) from now on."""
        if len(self._known) >= self._limit:
            self._known.clear()
        for window, carry in sums:
            self._known[window.window_id] = Belief(window.spent, window.reserved, window.overrun, carry)

    def learn(self, rows: Iterable[WindowRow]) -> None:
        """Believe what was just read of windows that nothing is believed about yet."""
        for row in rows:
            if row.window_id not in self._known and len(self._known) < self._limit:
                self._known[row.window_id] = Belief(row.spent, row.reserved, row.overrun, row.carry)

    def forget(self, window_ids: Iterable[int]) -> None:
        """Believe nothing about these windows, and look first for a while."""
        for window_id in window_ids:
            self._known.pop(window_id, None)
        self._pause, self._pause_next = self._pause_next, min(PAUSE_MOST, self._pause_next * 2)

    def proved(self) -> None:
        """The last decision made from beliefs was written."""
        self._pause_next = PAUSE_FIRST

    def premises(
        self, plans: Iterable[Plan], catalogue: Catalogue, targets: Targets, at: datetime
    ) -> tuple[Premises, dict[int, Sums], dict[int, int]] | None:
        """What to decide from at ``at``, the sums and each window's carry; None where it has to look first."""
        if self._pause:
            self._pause -= 1
            return None
        window_ids = sorted(targets)
        found = [self._known.get(window_id) for window_id in window_ids]
        beliefs = [belief for belief in found if belief is not None]
        if len(beliefs) != len(window_ids):
            return None
        limits = [
            catalogue.limit(targets[w][0], targets[w][1].entity_id, b.carry, at)
            for w, b in zip(window_ids, beliefs, strict=True)
        ]
        since, until = _span(plans, catalogue, at)
        premises = Premises(
            version=catalogue.version,
            since=since,
            until=until,
            window_ids=window_ids,
            spent=[b.spent for b in beliefs],
            reserved=[b.reserved for b in beliefs],
            overrun=[b.overrun for b in beliefs],
            limits=limits,
        )
        sums = {
            w: Sums(w, limit, targets[w][0].blocking, b.spent, b.reserved, b.overrun, None)
            for w, limit, b in zip(window_ids, limits, beliefs, strict=True)
        }
        return premises, sums, {w: b.carry for w, b in zip(window_ids, beliefs, strict=True)}


def _span(plans: Iterable[Plan], catalogue: Catalogue, at: datetime) -> tuple[datetime, datetime | None]:
    """The time in which every plan's windows are the current ones and no limit changes."""
    known = list(plans)
    since = max(plan.since for plan in known if plan.since is not None)
    until = min((plan.until for plan in known if plan.until is not None), default=None)
    if not catalogue.raises:
        return since, until
    after, before = catalogue.unchanged_around(at)
    if after is not None:
        since = max(since, after)
    if before is not None:
        until = before if until is None else min(until, before)
    return since, until
