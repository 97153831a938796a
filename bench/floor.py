"""What the parts of number 10 share: one agent on one stand, loads that take turns, and the turns of the minute.

A turn of the minute cannot be hurried. Whoever waits for one does the other measurements meanwhile, and none of them
may run into it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from bench.figures import median
from bench.load import LoadResult
from bench.requester import Requester
from bench.sizes import Sizes
from bench.stand import AgentProcess, Stand
from bench.trees import Tree

CHECK = "token.check_budget"
OUTSTANDING = 256
MINUTE_S = 60.0
WARMUP_S = 0.4
START_S = 0.8
"""How long a load generator takes to start or to end, at most."""
LATE_S = 0.5
NEAR_S = 8.0

Measure = Callable[[float], Awaitable[None]]


@dataclass(frozen=True)
class Turn:
    """Something to measure at a turn of the minute: called ``lead_s`` before with the wall-clock time of the turn."""

    lead_s: float
    measure: Measure


@dataclass
class Floor:
    """One agent, who asks it to be set up, and what waits for a turn of the minute."""

    stand: Stand
    agent: AgentProcess
    requester: Requester
    sizes: Sizes
    turns: list[Turn] = field(default_factory=list[Turn])

    async def plant(self, *trees: Tree) -> list[dict[str, Any]]:
        """Create budgets; their replies."""
        return [await self.requester.ask("create_budget", body) for tree in trees for body in tree.requests()]

    async def load(self, kind: str = "check", *, subject: str = CHECK, **options: Any) -> LoadResult:
        """One load of the usual length, which no turn of the minute that is to be measured falls into."""
        seconds = self.sizes.budget_seconds
        timed = {"seconds": seconds, "warmup_s": min(WARMUP_S, seconds / 2)} if "count" not in options else {}
        await self.leave_room(self.load_s)
        return await self.stand.load(subject, kind, **timed, **options)

    @property
    def load_s(self) -> float:
        """How long one load takes at most."""
        return START_S + WARMUP_S + self.sizes.budget_seconds + START_S

    async def leave_room(self, takes_s: float) -> None:
        """Return when something that takes this long can be done before the next turn that is to be measured."""
        while self.turns and self._room_s() < takes_s:
            await self._turn()

    async def finish_turns(self) -> None:
        """Measure the turns that are left, where they are worth waiting for."""
        while self.turns and (self.sizes.await_turns or self._room_s() < NEAR_S):
            await self._turn()

    def _room_s(self) -> float:
        """Time until the measurement at the next turn begins; one that is too near already is left out."""
        room_s = MINUTE_S - time.time() % MINUTE_S - self.turns[0].lead_s
        return room_s if room_s > -LATE_S else room_s + MINUTE_S

    async def _turn(self) -> None:
        room_s, turn = self._room_s(), self.turns.pop(0)
        turn_at = time.time() + room_s + turn.lead_s
        await asyncio.sleep(max(0.0, room_s))
        await turn.measure(turn_at)


def p50(results: list[LoadResult]) -> str:
    """The median of the medians, in ms."""
    return f"{median([r.p50_ms for r in results]):.2f}"


def p99(results: list[LoadResult]) -> str:
    """The median of the 99th percentiles, in ms."""
    return f"{median([r.p99_ms for r in results]):.2f}"


def rate(results: list[LoadResult]) -> float:
    """The median rate, per second."""
    return median([r.per_s for r in results])
