"""Number 2: reservations per second on one hot tree of four budgets, beside Redis with Lua and beside an echo."""

import asyncio
from pathlib import Path

from bench.cores import cores_text, cores_used
from bench.figures import median, ratio, spread, table
from bench.redis_peer import is_installed, redis, reserves_per_s
from bench.sizes import Sizes
from bench.stand import BenchError, Stand, end

OUTSTANDING = 256
ECHO = "bench.echo"
CHECK = "token.check_budget"
DIFFERING = """
SELECT count(*) FROM budget_window w WHERE w.reserved <> coalesce((
    SELECT sum(a) FROM reservation r, unnest(r.window_ids, r.held) AS c (i, a)
    WHERE r.org_id = w.org_id AND r.status = 'live' AND i = w.window_id), 0)
"""


async def measure(folder: Path, sizes: Sizes) -> str:
    """A Markdown section."""
    notes: list[str] = []
    rates: dict[str, list[float]] = {}
    async with Stand(folder) as stand:
        first = await stand.agent("a1")
        await stand.create_budgets()
        servers = {"PostgreSQL": stand.postgres.pid, "nats-server": stand.nats.pid}
        rates["one agent"] = await _runs(stand, sizes, {"agent": first.pid, **servers}, notes)
        second = await stand.agent("a2")
        pair = {"agent": first.pid, "second agent": second.pid, **servers}
        rates["two agents"] = await _runs(stand, sizes, pair, notes)
        await _verify(stand)
        await second.stop()
        await first.stop()
        rates["stock nats-py echo"] = await _echo_runs(stand, sizes, direct=False)
        rates["echo on the agent's client"] = await _echo_runs(stand, sizes, direct=True)
    if is_installed():
        async with redis(folder) as port:
            rates["Redis + Lua, appendfsync always"] = [
                await reserves_per_s(port, sizes.redis_requests) for _ in range(sizes.runs)
            ]
    else:
        notes.append("Redis is not installed here (`apt-get install redis-server`): that reference is left out.")
    return _section(rates, notes)


def _section(rates: dict[str, list[float]], notes: list[str]) -> str:
    ours = median(rates["one agent"])
    rows = [[name, spread(values), ratio(ours, median(values))] for name, values in rates.items()]
    return (
        "### 2. Reservations per second on one hot tree\n\nEvery request reserves in the same four windows (global,"
        f" team, user, project); {OUTSTANDING} outstanding; the load generator is one more process on the same"
        " machine. Afterwards reserved sums equal the live reservations exactly.\n\n"
        + table(("", "per second, median (low-high)", "one agent to it"), rows)
        + "".join(f"\n\n{note}" for note in notes)
    )


async def _runs(stand: Stand, sizes: Sizes, processes: dict[str, int], notes: list[str]) -> list[float]:
    rates: list[float] = []
    cores: dict[str, float] = {}
    for _ in range(sizes.runs):
        load = stand.load(CHECK, "check", outstanding=OUTSTANDING, seconds=sizes.seconds, warmup_s=sizes.warmup_s)
        busy = cores_used(processes, after_s=sizes.warmup_s + 0.3, for_s=sizes.seconds * 0.8)
        result, cores = await asyncio.gather(load, busy)
        cores["load generator"] = result.cpu_s / result.seconds
        rates.append(result.per_s)
    name = "Two agents" if "second agent" in processes else "One agent"
    notes.append(f"{name}, cores used: {cores_text(cores)}.")
    return rates


async def _verify(stand: Stand) -> None:
    """P3 right after the load: a figure of a ledger that is wrong would be worth nothing."""
    connection = await stand.connection()
    try:
        differing = await connection.fetchval(DIFFERING)
    finally:
        await connection.close()
    if differing:
        raise BenchError(f"{differing} windows differ from their live reservations")


async def _echo_runs(stand: Stand, sizes: Sizes, *, direct: bool) -> list[float]:
    echo = await stand.echo(ECHO, direct=direct)
    try:
        options = {"outstanding": OUTSTANDING, "seconds": sizes.seconds / 2, "warmup_s": sizes.warmup_s}
        return [(await stand.load(ECHO, "echo", **options)).per_s for _ in range(sizes.runs)]
    finally:
        await end(echo)
