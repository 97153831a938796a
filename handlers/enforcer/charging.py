"""What a call is in each window it counts in: its cost in the window's currency, at the rate the window froze (R18).

Pure. Decisions round up, so that what is set aside holds what will be charged; charges are rounded once, half-even. A
window whose pair of currencies has no rate is charged nothing, and who asks is told which pair that is.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from handlers.currency.exchange import Exchange, Rate
from handlers.enforcer.catalogue import Match
from handlers.enforcer.plan import UNITS, Plan
from handlers.enforcer.windows import StaleCatalogue, WindowRef
from schemas.money import COST_NANOS_MAX, format_cost

# What an event is flagged with for each pair without a rate: ``no_exchange_rate:EUR/VND``.
NO_RATE: Final = "no_exchange_rate"
Measures = tuple[int, int, int]


class Unconvertible(ValueError):
    """A cost that no window of that currency can count; the message is fit for a caller."""


class Charged(NamedTuple):
    """Amounts by window, in each budget's unit; and the pairs of currencies that windows lack a rate for."""

    amounts: dict[int, int]
    lacking: dict[int, str]

    def something(self) -> "Charged":
        """The same without the windows whose amount is 0."""
        return Charged({window_id: amount for window_id, amount in self.amounts.items() if amount}, self.lacking)


def window_rate(exchange: Exchange, match: Match, ref: WindowRef, currency: str) -> Rate | None:
    """What one unit of ``currency`` is in a window's currency, as long as the window lasts; None: nobody said it yet.

    Raises StaleCatalogue where the window is newer than the rates this agent has read.
    """
    if (ref.fx_revision or 0) > exchange.revision:
        raise StaleCatalogue
    return exchange.frozen(ref.fx_revision, currency, match.budget.currency or "")


def needed(pairs: Iterable[tuple[Match, WindowRef]], measures: Measures, currency: str, exchange: Exchange) -> Charged:
    """What a call of ``measures`` (nanos of ``currency``, tokens, requests) needs in each window, rounded up.

    Raises StaleCatalogue.
    """
    return _in_windows(pairs, measures, currency, exchange, Rate.at_least)


def charge(pairs: Iterable[tuple[Match, WindowRef]], measures: Measures, currency: str, exchange: Exchange) -> Charged:
    """What something that took ``measures`` is charged to each window, without those it is charged nothing.

    Raises StaleCatalogue, and Unconvertible where a budget could not count it.
    """
    return _in_windows(pairs, measures, currency, exchange, _charged).something()


def flags_of(lacking: Iterable[str]) -> list[str]:
    """How an event says that windows were not charged, by pair of currencies."""
    return [f"{NO_RATE}:{pair}" for pair in sorted(set(lacking))]


def converts(plan: Plan, currency: str) -> bool:
    """Whether a cost in ``currency`` has to be converted for any window of a plan."""
    return plan.currency not in ("", currency)


def unrated(plan: Plan, lacking: Mapping[int, str]) -> list[str]:
    """What an approval says about the budgets that could not be applied."""
    return [
        f"{NO_RATE}: {lacking[window_id]}: budget '{match.budget.name}' could not be applied"
        for window_id, match in zip(plan.window_ids, plan.matches, strict=True)
        if window_id in lacking
    ]


def _in_windows(
    pairs: Iterable[tuple[Match, WindowRef]],
    measures: Measures,
    currency: str,
    exchange: Exchange,
    converted: Callable[[Rate, int], int],
) -> Charged:
    found = Charged({}, {})
    for match, ref in pairs:
        amount = measures[UNITS.index(match.budget.unit)]
        if amount and match.budget.unit == "cost" and match.budget.currency != currency:
            rate = window_rate(exchange, match, ref, currency)
            if rate is None:
                found.lacking[ref.window_id] = f"{currency}/{match.budget.currency}"
            amount = 0 if rate is None else converted(rate, amount)
        found.amounts[ref.window_id] = amount
    return found


def _charged(rate: Rate, cost: int) -> int:
    amount = rate.convert(cost)
    if abs(amount) > COST_NANOS_MAX:
        text = f"{format_cost(cost)} {rate.base} is {format_cost(amount)} {rate.quote}"
        raise Unconvertible(f"a cost of {text}, more than any budget counts")
    return amount
