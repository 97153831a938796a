"""What settled reservations show: ratios to learn from, reservations that held too little, and why usage found no room.

Collected while a batch is decided, written once in its transaction, so each settled call counts exactly once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from handlers.currency.exchange import Rate
from handlers.enforcer.histograms import BUCKETS, bucket_of, levels
from handlers.enforcer.settle import Holding, Move
from handlers.tracker.priced import PricedEvent
from store.sizing import Key, Observed, Overrun

_COST, _TOKENS, _REQUESTS = 0, 1, 2
_UNITS = ("cost", "tokens", "requests")
# More than the parts of a call, each converted and rounded, can differ from the whole of it (a millionth of a unit).
_ROUNDED = 1_000
# What rows of tokens and requests have in the column of the currency.
NO_CURRENCY = "USD"
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
        rates: Mapping[int, Rate],
    ) -> None:
        """An event of a reservation's call, which held ``held`` before these moves; its final one ends the call.

        ``rates`` convert the reservation's estimate for windows of another currency.
        """
        before = holding.used
        learned = missed = False
        for window_id, _, actual, _ in moves:
            unit, amount = units.get(window_id, _REQUESTS), held.get(window_id, 0)
            below = _below_worst(holding, unit, amount, before, rates.get(window_id))
            learned = learned or below
            missed = missed or (below and actual > amount)
            self.causes.append((_cause(below=below, held=amount), unit))
        cost = event.cost if event.currency == holding.row.currency else None
        holding.used = _sum(before[0], cost), _sum(before[1], event.prompt_tokens + event.completion_tokens)
        # A call that failed says nothing about what calls take; many of them would make the others look small.
        if event.final and event.status != "error":
            self._learn(holding, learned=learned, missed=missed)

    def overruns(self, over: Sequence[int], currencies: Iterable[str | None]) -> list[Overrun]:
        """What each move booked beyond the room there was, by cause, unit and the currency of its window."""
        sums: dict[tuple[str, int, str], tuple[int, int]] = {}
        if not any(over):
            return []
        for (cause, unit), amount, currency in zip(self.causes, over, currencies, strict=True):
            if amount:
                key = (cause, unit, currency or NO_CURRENCY)
                total, charges = sums.get(key, (0, 0))
                sums[key] = (total + amount, charges + 1)
        return [Overrun(cause, _UNITS[unit], *found, currency) for (cause, unit, currency), found in sums.items()]

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


def _below_worst(
    holding: Holding, unit: int, held: int, used: tuple[int | None, int | None], rate: Rate | None
) -> bool:
    """Whether a window was given less than the call's worst case: only learned reservations are."""
    if unit == _REQUESTS:
        return False
    worst, before = holding.row.estimated_tokens if unit == _TOKENS else holding.row.estimated_cost or 0, used[unit]
    if rate is not None and unit == _COST:
        worst, before = rate.convert(worst) - _ROUNDED, None if before is None else rate.convert(before)
    given = _sum(held, before)
    return given is not None and 0 < given < worst


def _cause(*, below: bool, held: int) -> str:
    if below:
        return "learned"
    return "estimate" if held else "unreserved"


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
