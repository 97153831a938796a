"""Four agents on one bus and one database, killed at random while routers spend tight budgets.

Goal: P1 to P4 under kill -9. Method: callers keep books of every answer; an independent connection samples the ledger
all along; afterwards books and ledger must agree to the nano. `CHAOS_SECONDS` and `CHAOS_SEED` set length and chance.
"""

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.audit import Findings, Samples, audit, watch
from tests.chaos.load import Book, Router, change_rules, create_budgets, raise_limits
from tests.support.chaos import AgentProcess, Cluster, calling, connected, elapsed, running_cluster, seconds, seeded
from tests.support.polling import eventually

AGENTS = 4
ROUTERS = 32
SETTLED_S = 90.0


@dataclass
class Kills:
    count: int = 0
    back_s_max: float = 0.0


async def test_agents_killed_at_random_never_overspend_lose_or_double(tmp_path: Path) -> None:
    seed, chance = seeded()
    duration_s = seconds("CHAOS_SECONDS", 60)
    book, samples, kills = Book(), Samples(), Kills()
    async with (
        running_cluster(tmp_path, agents=AGENTS) as cluster,
        calling(cluster.bus.url) as manager,
        calling(cluster.bus.url) as first,
        calling(cluster.bus.url) as second,
    ):
        await create_budgets(manager)
        calls_end, watch_end = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as watching:
            watching.create_task(watch(cluster.database.url, watch_end, samples))
            async with asyncio.TaskGroup() as group:
                for n in range(ROUTERS):
                    router = Router((first, second)[n % 2], book, calls_end, name=f"r{n}", seed=seed * 100 + n)
                    group.create_task(router.run())
                group.create_task(raise_limits(manager, book, calls_end, random.Random(seed)))
                group.create_task(change_rules(manager, book, calls_end, random.Random(seed + 1)))
                group.create_task(kill_at_random(cluster.agents, kills, calls_end, chance))
                await elapsed(calls_end, duration_s)
                calls_end.set()
            began = time.monotonic()
            await everything_applied(cluster)
            settled_s = time.monotonic() - began
            watch_end.set()
        found = await audit(cluster.database.url, book)
        status = await manager.persist("get_status", {"reconcile": True})
        trail = await manager.persist("get_audit_trail", {"verify": True, "limit": 1})
    unanswered = manager.tally.unanswered + first.tally.unanswered + second.tally.unanswered
    print(table(seed, duration_s, book, samples, kills, found, unanswered, settled_s))

    assert (found.lost, found.doubled, found.unknown, found.wrong) == ([], [], [], [])
    assert book.problems == []
    assert found.alerts > 0 and book.overrides > 0
    assert trail["verification"]["ok"], trail
    assert samples.breaches == []
    assert book.acknowledged == book.sent.keys()
    assert status["reconciliation"]["ok"], status["reconciliation"]
    assert samples.instants > duration_s
    assert kills.count >= duration_s / 4
    assert len(book.approvals) > duration_s and book.denials > duration_s, "the budgets were not tight"


async def kill_at_random(agents: list[AgentProcess], kills: Kills, stop: asyncio.Event, chance: random.Random) -> None:
    """Every one to three seconds one agent dies and is started again; the next one need not wait for it."""
    async with asyncio.TaskGroup() as group:
        while not await elapsed(stop, chance.uniform(1, 3)):
            agent = chance.choice(agents)
            await agent.kill()
            kills.count += 1
            agent.launch()
            group.create_task(_back(agent, kills))


async def _back(agent: AgentProcess, kills: Kills) -> None:
    """How long a killed agent takes to serve again; nothing if it is killed before."""
    pid, began = agent.pid, time.monotonic()
    await eventually(lambda: agent.pid != pid or agent.serves(), 40.0, "a killed agent does not come back")
    if agent.pid == pid:
        kills.back_s_max = max(kills.back_s_max, time.monotonic() - began)


async def everything_applied(cluster: Cluster) -> None:
    """All agents serve, the stream is empty, and what nobody settled has expired."""
    await asyncio.gather(*(agent.ready() for agent in cluster.agents))
    async with calling(cluster.bus.url) as caller, connected(cluster.database.url) as connection:

        async def empty() -> bool:
            return (await caller.persist("get_status", {}))["ingest"]["stored_messages"] == 0

        async def none_live() -> bool:
            return not await connection.fetchval("SELECT count(*) FROM reservation WHERE status = 'live'")

        await eventually(empty, SETTLED_S, "the stream does not drain")
        await eventually(none_live, SETTLED_S, "reservations stay live")


def table(
    seed: int,
    duration_s: float,
    book: Book,
    samples: Samples,
    kills: Kills,
    found: Findings,
    unanswered: int,
    settled_s: float,
) -> str:
    rows: list[tuple[str, Any]] = [
        ("seed, seconds", f"{seed}, {duration_s:g}"),
        ("agents killed", f"{kills.count} (back within {kills.back_s_max:.1f} s)"),
        ("checks asked", book.requests),
        ("approvals", len(book.approvals)),
        ("denials", book.denials),
        ("unanswered, asked again", unanswered),
        ("asked twice at once", book.double_asked),
        ("limits changed, overrides approved", f"{book.raises}, {book.overrides}"),
        ("alerts of thresholds", found.alerts),
        ("released / extended / forgotten", f"{len(book.released)} / {book.extended} / {len(book.forgotten)}"),
        ("events acknowledged", len(book.acknowledged)),
        ("events sent again after that", book.resent),
        ("ledger samples", samples.instants),
        ("settled and expired after", f"{settled_s:.1f} s"),
        ("events lost", len(found.lost)),
        ("events twice", len(found.doubled)),
        ("other differences", len(found.wrong) + len(found.unknown)),
        ("overspend, nanos", max(0, samples.over_nanos_max) + samples.overrun_max),
    ]
    return "\n" + "\n".join(f"  {name:<34}{value!s:>28}" for name, value in rows)
