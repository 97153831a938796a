"""Number 10, minute windows: what happens when all of them are replaced at once, beside windows that last a month."""

import time
from itertools import cycle, islice

from bench.figures import median, table
from bench.floor import CHECK, OUTSTANDING, WARMUP_S, Floor, Measure, Turn
from bench.load import BESIDE_S, LoadResult, Part
from bench.payloads import Call
from bench.trees import FOUR, Tree, per_user, with_period

LEAD_TREE_S = 2.4
LEAD_USER_S = 0.0003
"""For each user besides: all have a window in the minute before, too."""
AFTER_S = 0.4

PLAIN = {period: Tree(f"tree-{period}", with_period(FOUR, period)) for period in ("monthly", "minute")}
USERS = {
    period: Tree(f"users-{period}", per_user(with_period(FOUR, "monthly"), period=period))
    for period in ("monthly", "minute")
}


class Turns:
    """The loads at the turn of the minute, each followed by the same load on monthly windows at an ordinary time."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self._found: dict[str, list[LoadResult]] = {}
        users = floor.sizes.turn_users
        self._loads = (
            (
                f"{users:,} users",
                LEAD_TREE_S + users * LEAD_USER_S,
                {p: tree.call(users=users) for p, tree in USERS.items()},
            ),
            ("one tree", LEAD_TREE_S, {p: t.call() for p, t in PLAIN.items()}),
        )

    async def plan(self) -> None:
        """Create the budgets, and ask to be called at the next turns."""
        floor = self._floor
        await floor.plant(*PLAIN.values(), *USERS.values())
        monthly, count = self._loads[0][2]["monthly"], floor.sizes.turn_users
        await floor.load(call=monthly, outstanding=OUTSTANDING, count=count)
        for name, lead_s, calls in islice(cycle(self._loads), floor.sizes.turns):
            floor.turns.append(Turn(lead_s, self._measurement(name, lead_s, calls)))

    def _measurement(self, name: str, lead_s: float, calls: dict[str, Call]) -> Measure:
        async def measure(turn_at: float) -> None:
            self._keep(f"{name}, a window each minute", await self._around(turn_at, calls["minute"]))
            self._keep(f"{name}, a window each month", await self._around(time.time() + lead_s, calls["monthly"]))

        return measure

    def _keep(self, name: str, result: LoadResult) -> None:
        self._found.setdefault(name, []).append(result)

    async def _around(self, turn_at: float, call: Call) -> LoadResult:
        seconds = turn_at - time.time() - WARMUP_S + BESIDE_S + AFTER_S
        options = {"outstanding": OUTSTANDING, "call": call, "turn_at": turn_at}
        return await self._floor.stand.load(CHECK, "check", seconds=seconds, warmup_s=WARMUP_S, **options)

    def section(self) -> str:
        """What was found, in Markdown."""
        rows = [row for name, results in sorted(self._found.items()) for row in _rows(name, results)]
        header = ("load", "turns", "second", "per second", "p50 ms", "p99 ms", "worst ms")
        if not rows:
            return "No turn of the minute came by in this run; a full one waits for them."
        return table(header, rows)


def _rows(name: str, results: list[LoadResult]) -> list[list[str]]:
    sides = {"before": [r.before for r in results], "after": [r.after for r in results]}
    return [
        [name, str(len(results)), side, *_figures([part for part in parts if part is not None])]
        for side, parts in sides.items()
    ]


def _figures(parts: list[Part]) -> list[str]:
    return [
        f"{median([p.per_s for p in parts]):,.0f}",
        f"{median([p.p50_ms for p in parts]):.2f}",
        f"{median([p.p99_ms for p in parts]):.2f}",
        f"{max(p.worst_ms for p in parts):.1f}",
    ]
