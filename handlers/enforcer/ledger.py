"""The arithmetic of a window, pure. Everything that moves money between free, reserved, spent and overrun is here.

Invariant of a blocking window: ``spent - overrun + reserved <= high_limit``. What was reserved is spent within its
reservation; everything else takes free room first and is overrun where it finds none.
"""

from dataclasses import dataclass

from store.budgets import BudgetRow
from store.windows import WindowRow

# What years of unused limits may add up to; with the largest limit still far below what a bigint holds.
CARRY_MAX = 4_000_000_000_000_000_000
# What a window that only warns may hold and have spent: beyond it the next sums might outgrow a bigint.
SUM_MAX = 8_000_000_000_000_000_000


def effective_limit(budget: BudgetRow, carry: int, raised: int = 0) -> int:
    """The limit that binds: base limit, overage, what was carried over and what overrides ``raised`` it by."""
    return budget.base_limit + budget.base_limit * budget.overage_percent // 100 + carry + raised


@dataclass(slots=True)
class Sums:
    """One window under the lock. Amounts are in the budget's unit (nanos, tokens, requests)."""

    window_id: int
    limit: int
    blocking: bool
    spent: int
    reserved: int
    overrun: int
    high_limit: int | None
    exceeded: bool = False

    def __post_init__(self) -> None:
        """Whatever is written next is written under this limit, so the highest limit so far is at least this one."""
        if self.blocking and (self.high_limit is None or self.limit > self.high_limit):
            self.high_limit = self.limit

    def fits(self, amount: int) -> bool:
        """Whether ``amount`` more may be set aside; a warning window refuses only what nobody could count."""
        return self.spent + self.reserved + amount <= (self.limit if self.blocking else SUM_MAX)

    def free(self) -> int:
        """Room for a new reservation, never below 0."""
        return max(0, self.limit - self.spent - self.reserved)

    def hold(self, amount: int) -> None:
        """Set ``amount`` aside. The caller has seen that it fits."""
        self.reserved += amount

    def release(self, amount: int) -> None:
        """Give back what was set aside."""
        self.reserved -= amount

    def settle(self, held: int, actual: int) -> int:
        """Replace ``held`` by ``actual``; returns the overrun this booked."""
        self.reserved -= held
        within = min(held, max(actual, 0))
        self.spent += within
        return self.charge(actual - within) if actual != within else 0

    def charge(self, amount: int) -> int:
        """Book what was not reserved (negative corrects downwards, overrun first); returns the overrun this booked."""
        if amount < 0:
            self.spent += amount
            self.overrun = max(0, self.overrun + amount)
            return 0
        over = max(0, amount - self._room())
        self.spent += amount
        self.overrun += over
        return over

    def _room(self) -> int:
        """Room for unreserved spending: overrun already found none, so it does not take any either."""
        taken = self.spent - self.overrun + (self.reserved if self.blocking else 0)
        return max(0, self.limit - taken)


def sums_of(budget: BudgetRow, row: WindowRow, raised: int = 0) -> Sums:
    """A stored window's sums with the limit that binds while overrides raise it by ``raised``."""
    return Sums(
        row.window_id,
        effective_limit(budget, row.carry, raised),
        budget.blocking,
        row.spent,
        row.reserved,
        row.overrun,
        row.high_limit,
        row.exceeded_at is not None,
    )


def thresholds_reached(spent: int, limit: int, thresholds: tuple[int, ...], fired: frozenset[int]) -> list[int]:
    """Thresholds (percent of the limit) that ``spent`` has reached and that have not fired in this window yet."""
    return [t for t in sorted(thresholds) if t not in fired and spent > 0 and spent * 100 >= t * limit]


def carry_over(budget: BudgetRow, remaining: int, idle_periods: int) -> int:
    """What the window after one with ``remaining`` left gets (R14).

    ``idle_periods`` windows between the two were never opened: nothing was spent in them, so each kept its whole limit.
    """
    if budget.rollover_policy == "none":
        return 0
    if budget.rollover_policy == "full":
        return min(CARRY_MAX, max(0, remaining) + idle_periods * budget.base_limit)
    most = budget.base_limit * budget.rollover_percent // 100
    return most if idle_periods else min(max(0, remaining), most)
