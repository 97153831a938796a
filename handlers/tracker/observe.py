"""What settled reservations show: ratios to learn from, reservations that held too little, and why usage found no room.

Collected while a batch is decided, written once in its transaction, so each settled call counts exactly once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from handlers.enforcer.histograms import BUCKETS, bucket_of, levels
from handlers.enforcer.settle import Holding, Move
from handlers.tracker.priced import PricedEvent
from store.sizing import Key, Observed, Overrun

_COST, _TOKENS, _REQUESTS = 0, 1, 2
_UNITS = ("cost", "tokens", "requests")
_UNRESERVED = tuple(("unreserved", unit) for unit in range(len(_UNITS)))


@dataclass(slots=True)
class Observations:
    """What one batch shows. ``causes`` is aligned with the batch's moves: why what they book was not reserved."""

    by_key: dict[Key, Observed] = field(default_factory=dict[Key, Observed])
    causes: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    def unreserved(self, units: Sequence[int]) -> None:
        """Usage that had no reservation, charged to windows of these units."""
        self.causes += [_UNRESERVED[unit] for unit in units]

    def settled(
        self,
        holding: Holding,
        event: PricedEvent,
        held: Mapping[int, int],
        moves: Sequence[Move],
        units: Mapping[int, int],
    ) -> None:
        """An event of a reservation's call, which held ``held`` before these moves; its final one ends the call."""
        before = holding.used
        learned = missed = False
        for window_id, _, actual, _ in moves:
            unit, amount = units.get(window_id, _REQUESTS), held.get(window_id, 0)
            below = _below_worst(holding, unit, amount, before)
            learned = learned or below
            missed = missed or (below and actual > amount)
            self.causes.append((_cause(below=below, held=amount), unit))
        holding.used = _sum(before[0], event.cost), _sum(before[1], event.prompt_tokens + event.completion_tokens)
        # A call that failed says nothing about what calls take; many of them would make the others look small.
        if event.final and event.status != "error":
            self._learn(holding, learned=learned, missed=missed)

    def overruns(self, over: Sequence[int]) -> list[Overrun]:
        """What each move booked beyond the room there was, by cause and unit."""
        sums: dict[tuple[str, int], tuple[int, int]] = {}
        if not any(over):
            return []
        for cause, amount in zip(self.causes, over, strict=True):
            if amount:
                total, charges = sums.get(cause, (0, 0))
                sums[cause] = (total + amount, charges + 1)
        return [Overrun(cause, _UNITS[unit], *found) for (cause, unit), found in sums.items()]

    def _learn(self, holding: Holding, *, learned: bool, missed: bool) -> None:
        row, (cost, tokens) = holding.row, holding.used
        if row.provider is None or row.model is None:
            return
        costs = cost is not None and row.estimated_cost
        if not costs and not (tokens is not None and row.estimated_tokens):
            return
        feature, agent = row.attribution.get("feature"), row.attribution.get("agent_id")
        for key in levels((row.provider, row.model, feature or "", agent or "")):
            seen = self.by_key.get(key)
            if seen is None:
                seen = self.by_key[key] = Observed([0] * BUCKETS, [0] * BUCKETS)
            if cost is not None and row.estimated_cost:
                seen.cost[bucket_of(cost, row.estimated_cost)] += 1
            if tokens is not None and row.estimated_tokens:
                seen.tokens[bucket_of(tokens, row.estimated_tokens)] += 1
            seen.learned += learned
            seen.missed += missed


def _below_worst(holding: Holding, unit: int, held: int, used: tuple[int | None, int | None]) -> bool:
    """Whether a window was given less than the call's worst case: only learned reservations are."""
    if unit == _REQUESTS:
        return False
    worst = holding.row.estimated_tokens if unit == _TOKENS else holding.row.estimated_cost or 0
    given = _sum(held, used[unit])
    return given is not None and 0 < given < worst


def _cause(*, below: bool, held: int) -> str:
    if below:
        return "learned"
    return "estimate" if held else "unreserved"


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
