"""What a batch of usage does to reservations and windows (R7, R8). Pure; the rows are locked by the caller."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from handlers.enforcer.catalogue import Match
from handlers.enforcer.ledger import Sums
from handlers.enforcer.windows import WindowRef
from store.budgets import BudgetRow
from store.reservations import ReservationRow

Charge = tuple[int, int]


@dataclass(slots=True)
class Used:
    """What an event takes from budgets, by unit; a call without a price takes no cost."""

    cost: int
    tokens: int
    requests: int

    def of(self, budget: BudgetRow) -> int:
        """The amount in a budget's unit."""
        if budget.unit == "cost":
            return self.cost
        return self.tokens if budget.unit == "tokens" else self.requests


@dataclass(slots=True)
class Holding:
    """A reservation while a batch is settled; ``held`` maps window to amount."""

    row: ReservationRow
    held: dict[int, int]
    status: str
    presumed: bool

    @classmethod
    def of(cls, row: ReservationRow) -> "Holding":
        """The state of a locked row."""
        return cls(row, dict(zip(row.window_ids, row.held, strict=True)), row.status, row.presumed)

    @property
    def live(self) -> bool:
        """Whether it still holds something for its call."""
        return self.status == "live"

    @property
    def claimable(self) -> bool:
        """Whether an event still belongs to it: it is live, or its presumed charge waits to be replaced."""
        return self.live or self.presumed


@dataclass(frozen=True, slots=True)
class Move:
    """One change of one window: ``held`` leaves reserved, ``actual`` is booked, ``presumed`` is taken back first."""

    window_id: int
    held: int
    actual: int
    presumed: int = 0


def charges(pairs: Iterable[tuple[Match, WindowRef]], used: Used) -> list[Charge]:
    """Window and amount of everything an event is charged to."""
    found = [(ref.window_id, used.of(match.budget)) for match, ref in pairs]
    return [charge for charge in found if charge[1]]


def unreserved(charged: list[Charge]) -> list[Move]:
    """Usage without a reservation takes free room, then is overrun."""
    return [Move(window_id, 0, amount) for window_id, amount in charged]


def settle(holding: Holding, charged: list[Charge], *, final: bool) -> list[Move]:
    """Replace what a reservation holds by what was used; part of a call moves that much and leaves the rest held."""
    amounts = dict(charged)
    moves: list[Move] = []
    for window_id in sorted(amounts.keys() | holding.held.keys()):
        actual, held = amounts.get(window_id, 0), holding.held.get(window_id, 0)
        if holding.presumed:
            moves.append(Move(window_id, 0, actual, presumed=held))
        elif final:
            moves.append(Move(window_id, held, actual))
        else:
            part = min(held, actual)
            moves.append(Move(window_id, part, actual))
            if window_id in holding.held:
                holding.held[window_id] = held - part
    if holding.presumed:
        holding.presumed, holding.status = False, "settled"
    elif final:
        holding.status = "settled"
    return moves


def book(moves: Iterable[Move], sums: dict[int, Sums]) -> dict[int, int]:
    """Apply moves to locked windows, in order; returns the overrun booked in each window that had no room."""
    overrun: dict[int, int] = {}
    for move in moves:
        window = sums[move.window_id]
        if move.presumed:
            window.charge(-move.presumed)
        over = window.settle(move.held, move.actual)
        if over:
            overrun[move.window_id] = overrun.get(move.window_id, 0) + over
    return overrun


def charged_at(row: ReservationRow | None, timestamp: datetime, arrived_at: datetime, *, oldest: datetime) -> datetime:
    """What decides the windows: the reservation's decision, else the event's time, else (too old) its arrival."""
    if row is not None:
        return row.decided_at
    return timestamp if timestamp >= oldest else arrived_at
