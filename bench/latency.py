"""Number 1: how long one reservation takes, beside an echo that decides nothing."""

from dataclasses import dataclass
from pathlib import Path

from bench.figures import median, ratio, table
from bench.load import LoadResult
from bench.sizes import Sizes
from bench.stand import Stand, end

ECHO = "bench.echo"
CHECK = "token.check_budget"


@dataclass(frozen=True)
class _Load:
    name: str
    outstanding: int
    rate: float


LOADS = (_Load("1 outstanding", 1, 0.0), _Load("1,000/s", 1, 1_000.0), _Load("5,000/s", 1, 5_000.0))


async def measure(folder: Path, sizes: Sizes) -> str:
    """A Markdown section."""
    async with Stand(folder) as stand:
        await stand.agent("a1")
        await stand.create_budgets()
        echo = await stand.echo(ECHO)
        try:
            rows = [await _row(stand, load, sizes) for load in LOADS]
        finally:
            await end(echo)
    header = ("load", "reserve p50 ms", "p99 ms", "echo p50 ms", "p99 ms", "p50 to echo")
    return (
        "### 1. Reserve latency\n\nOne durable `check_budget` against four budgets (global, team, user, project); the"
        " echo is a stock nats-py service that decides nothing. Rates are open loops: a latency counts from when the"
        " request was due.\n\n" + table(header, rows)
    )


async def _row(stand: Stand, load: _Load, sizes: Sizes) -> list[str]:
    ours: list[LoadResult] = []
    reference: list[LoadResult] = []
    options = {"outstanding": load.outstanding, "rate": load.rate, "seconds": sizes.seconds, "warmup_s": sizes.warmup_s}
    for _ in range(sizes.runs):
        ours.append(await stand.load(CHECK, "check", **options))
        reference.append(await stand.load(ECHO, "echo", **options))
    p50, p99 = median([r.p50_ms for r in ours]), median([r.p99_ms for r in ours])
    echo50, echo99 = median([r.p50_ms for r in reference]), median([r.p99_ms for r in reference])
    return [load.name, f"{p50:.2f}", f"{p99:.2f}", f"{echo50:.2f}", f"{echo99:.2f}", ratio(p50, echo50)]
