"""Number 10, many users: a budget that gives each its own window, beside the same load of one user."""

from dataclasses import dataclass
from typing import Any

from bench.cores import memory_mib
from bench.figures import median, ratio, table
from bench.floor import OUTSTANDING, Floor, p50, p99, rate
from bench.load import LoadResult
from bench.trees import FOUR, Tree, per_user

TREE = Tree("crowd", per_user(FOUR))
CHUNK = 10_000
SIZES = """
SELECT count(*), pg_table_size('budget_window'), pg_indexes_size('budget_window') FROM budget_window
"""


@dataclass(frozen=True)
class _Size:
    """What the windows take: of the agent's memory, and on disk."""

    agent_mib: float
    windows: int
    table: int
    indexes: int


class Crowd:
    """The loads of one user and of many. Windows are opened by the product itself, by asking once for each user."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        users = floor.sizes.users
        self._loads = {
            "1 user": TREE.call(),
            f"{users:,} users, uniform": TREE.call(users=users, spread="uniform"),
            f"{users:,} users, Zipf": TREE.call(users=users, spread="zipf"),
        }
        self._found: dict[str, dict[int, list[LoadResult]]] = {}
        self._opening: list[float] = []
        self._sizes: list[_Size] = []

    async def measure(self) -> None:
        """Open the windows, then run the loads in turns."""
        await self._floor.plant(TREE)
        self._sizes.append(await self._size())
        await self._open()
        self._sizes.append(await self._size())
        for _ in range(self._floor.sizes.budget_runs):
            for outstanding in (1, OUTSTANDING):
                for name, call in self._loads.items():
                    result = await self._floor.load(call=call, outstanding=outstanding)
                    self._found.setdefault(name, {}).setdefault(outstanding, []).append(result)
        self._sizes.append(await self._size())

    async def _open(self) -> None:
        users = self._floor.sizes.users
        for first in range(0, users, CHUNK):
            count = min(CHUNK, users - first)
            call = TREE.call(users=count, first=first, more={"reserve": False})
            result = await self._floor.load(call=call, outstanding=OUTSTANDING, count=count)
            self._opening.append(result.per_s)

    async def _size(self) -> _Size:
        connection = await self._floor.stand.connection()
        try:
            record: Any = await connection.fetchrow(SIZES)
        finally:
            await connection.close()
        return _Size(memory_mib(self._floor.agent.pid)[0], *record)

    def section(self) -> str:
        """What was found, in Markdown."""
        one = rate(self._found["1 user"][OUTSTANDING])
        rows = [
            [
                name,
                *(p50(found[1]), p99(found[1])),
                f"{rate(found[OUTSTANDING]):,.0f}",
                *(p50(found[OUTSTANDING]), p99(found[OUTSTANDING])),
                ratio(rate(found[OUTSTANDING]), one),
            ]
            for name, found in self._found.items()
        ]
        header = ("", "1: p50 ms", "p99 ms", f"{OUTSTANDING}: per second", "p50 ms", "p99 ms", "to 1 user")
        return table(header, rows) + "\n\n" + self._memory()

    def _memory(self) -> str:
        before, opened, after = self._sizes
        users = opened.windows - before.windows
        kept = (opened.agent_mib - before.agent_mib) * 2**20 / users
        stored = [(size.table + size.indexes) / 2**20 for size in self._sizes]
        row = (opened.table + opened.indexes - before.table - before.indexes) / users
        return (
            f"Opened at {median(self._opening):,.0f} windows/s ({min(self._opening):,.0f}-{max(self._opening):,.0f})."
            f" Memory of the agent {before.agent_mib:.0f} MiB before, {opened.agent_mib:.0f} MiB with all windows open"
            f" ({kept:,.0f} bytes each), {after.agent_mib:.0f} MiB after the loads. Table `budget_window` with its"
            f" indexes {stored[0]:.1f} MiB before, {stored[1]:.1f} MiB ({row:,.0f} bytes a window), {stored[2]:.1f} MiB"
            " after."
        )
