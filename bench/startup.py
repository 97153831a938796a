"""Number 8: how long until the agent is ready, and how much memory it takes."""

from pathlib import Path

from bench.cores import memory_mib
from bench.figures import spread, table
from bench.sizes import Sizes
from bench.stand import Stand, start_agent

OUTSTANDING = 256


async def measure(folder: Path, sizes: Sizes) -> str:
    """A Markdown section."""
    times: dict[str, list[float]] = {}
    for http in (True, False):
        name = "with HTTP" if http else "without HTTP"
        cold = times.setdefault(f"cold: new data folder, {name}", [])
        warm = times.setdefault(f"warm: embedded servers, {name}", [])
        for number in range(sizes.runs):
            data_dir = folder / f"{'http' if http else 'plain'}-{number}"
            for measured in (cold, warm):
                agent = await start_agent(data_dir, http=http)
                measured.append(agent.start_s)
                await agent.stop()
    memory = await _with_servers(folder / "stand", sizes, times)
    rows = [[name, spread(values, 2)] for name, values in times.items()]
    return (
        "### 8. Start-up and memory\n\nFrom the start of the process until `runtime.json` says that it serves.\n\n"
        + table(("", "seconds, median (low-high)"), rows)
        + "\n\n"
        + table(("memory", "MiB"), [[name, f"{mib:.0f}"] for name, mib in memory])
    )


async def _with_servers(folder: Path, sizes: Sizes, times: dict[str, list[float]]) -> list[tuple[str, float]]:
    async with Stand(folder) as stand:
        await (await start_agent(folder / "a0", env=stand.env)).stop()
        for http in (True, False):
            measured = times.setdefault(f"warm: real servers, {'with' if http else 'without'} HTTP", [])
            for _ in range(sizes.runs):
                agent = await start_agent(folder / "a0", env=stand.env, http=http)
                measured.append(agent.start_s)
                await agent.stop()
        agent = await stand.agent("a1")
        await stand.create_budgets()
        idle, _ = memory_mib(agent.pid)
        options = {"outstanding": OUTSTANDING, "warmup_s": 0.0}
        await stand.load("token.check_budget", "check", seconds=sizes.seconds, **options)
        await stand.load("token.track_usage", "track", count=sizes.events_single, outstanding=OUTSTANDING)
        loaded, _ = memory_mib(agent.pid)
        postgres, backends = memory_mib(stand.postgres.pid)
        nats, _ = memory_mib(stand.nats.pid)
        return [
            ("agent, idle", idle),
            ("agent, after load", loaded),
            ("embedded PostgreSQL, after load", postgres + backends),
            ("embedded nats-server, after load", nats),
        ]
