"""What a batch of usage does to reservations and windows (R7, R8). Pure; the rows are locked by the caller."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from handlers.enforcer.ledger import SUM_MAX, Sums
from store.reservations import ReservationRow
from store.windows import WindowRow

# One change of one window: its id, what leaves reserved, what is booked, and what was presumed and is taken back first.
Move = tuple[int, int, int, int]
# Amounts by window.
Charges = dict[int, int]


@dataclass(slots=True)
class Holding:
    """A reservation while a batch is settled; ``held`` maps window to amount."""

    row: ReservationRow
    held: dict[int, int]
    status: str
    presumed: bool
    # What parts of the call took so far, in nanos and tokens; None: not known.
    used: tuple[int | None, int | None] = (0, 0)

    @classmethod
    def of(cls, row: ReservationRow) -> "Holding":
        """The state of a locked row."""
        held = dict(zip(row.window_ids, row.held, strict=True))
        return cls(row, held, row.status, row.presumed, (row.used_cost, row.used_tokens))

    @property
    def live(self) -> bool:
        """Whether it still holds something for its call."""
        return self.status == "live"

    @property
    def taken_from(self) -> bool:
        """Whether part of the call was used since the row was read."""
        return self.used != (self.row.used_cost, self.row.used_tokens) or list(self.held.values()) != self.row.held

    @property
    def claimable(self) -> bool:
        """Whether an event still belongs to it: it is live, or its presumed charge waits to be replaced."""
        return self.live or self.presumed


def unreserved(charged: Charges) -> list[Move]:
    """Usage without a reservation takes free room, then is overrun."""
    return [(window_id, 0, amount, 0) for window_id, amount in charged.items()]


def settle(holding: Holding, charged: Charges, *, final: bool) -> list[Move]:
    """Replace what a reservation holds by what was used; part of a call moves that much and leaves the rest held."""
    moves: list[Move] = []
    for window_id in sorted(charged.keys() | holding.held.keys()):
        actual, held = charged.get(window_id, 0), holding.held.get(window_id, 0)
        if holding.presumed:
            moves.append((window_id, 0, actual, held))
        elif final:
            moves.append((window_id, held, actual, 0))
        else:
            part = min(held, actual)
            moves.append((window_id, part, actual, 0))
            if window_id in holding.held:
                holding.held[window_id] = held - part
    if holding.presumed:
        holding.presumed, holding.status = False, "settled"
    elif final:
        holding.status = "settled"
    return moves


def book(moves: Sequence[Move], sums: dict[int, Sums]) -> dict[int, int]:
    """Apply moves to locked windows, in order; returns the overrun booked in each window that had no room."""
    return by_window(moves, book_each(moves, sums))


def by_window(moves: Sequence[Move], over: Sequence[int]) -> dict[int, int]:
    """What moves booked as overrun, by window; without those that had room."""
    overrun: dict[int, int] = {}
    for move, amount in zip(moves, over, strict=True):
        if amount:
            overrun[move[0]] = overrun.get(move[0], 0) + amount
    return overrun


def book_each(moves: Iterable[Move], sums: dict[int, Sums]) -> list[int]:
    """The same; returns the overrun that each move booked, 0 where it had room."""
    found: list[int] = []
    for window_id, held, actual, presumed in moves:
        window = sums[window_id]
        if presumed:
            window.charge(-presumed)
        found.append(window.settle(held, actual))
    return found


def beyond(rows: Iterable[WindowRow], sums: Mapping[int, Sums]) -> set[int]:
    """Windows that would come to hold more than any sum is kept of: a budget of small units, far beyond its limit."""
    return {row.window_id for row in rows if row.spent < sums[row.window_id].spent > SUM_MAX}


def charged_at(
    row: ReservationRow | None, timestamp: datetime, arrived_at: datetime, *, too_old: timedelta
) -> datetime:
    """What decides the windows: the reservation's decision, else the event's time, else its arrival: for what is too
    old, and for what has not happened yet, which would open a window before the one it carries from has ended.
    """
    if row is not None:
        return row.decided_at
    return timestamp if timestamp <= arrived_at <= timestamp + too_old else arrived_at
