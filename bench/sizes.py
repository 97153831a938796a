"""How long to measure. Everything is bounded: a full run takes less than ten minutes, a quick one less than two."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Seconds and counts of one run; every figure is the median of `runs`."""

    runs: int = 3
    seconds: float = 4.0
    warmup_s: float = 1.0
    events_single: int = 40_000
    events_durable: int = 10_000
    """Of those that the bus syncs to disk one by one."""
    events_batched: int = 200_000
    copy_rows: int = 100_000
    redis_requests: int = 150_000
    budget_runs: int = 3
    budget_seconds: float = 1.2
    """Of number 10, which has many loads to compare."""
    users: int = 100_000
    turn_users: int = 10_000
    turns: int = 3
    """Turns of the minute, for the loads that are measured there in turns."""
    await_turns: bool = True
    """Whether turns are waited for; else only those that come by meanwhile are measured."""


FULL = Sizes()
QUICK = Sizes(
    seconds=1.0,
    warmup_s=0.5,
    events_single=8_000,
    events_durable=3_000,
    events_batched=30_000,
    copy_rows=20_000,
    redis_requests=40_000,
    budget_runs=1,
    budget_seconds=0.4,
    users=10_000,
    turn_users=2_000,
    turns=1,
    await_turns=False,
)
