"""Number 10: admission as an organisation makes it: many budgets, many users, minute windows, every feature.

All loads run on one agent and take turns, so each is compared with what was measured beside it.
"""

from pathlib import Path

from bench.crowd import Crowd
from bench.features import Features
from bench.figures import median, ratio, table
from bench.floor import OUTSTANDING, Floor, p50, p99, rate
from bench.load import LoadResult
from bench.requester import Requester
from bench.sizes import Sizes
from bench.stand import BenchError, Stand
from bench.trees import EIGHT, FOUR, SIXTEEN, Tree
from bench.turns import Turns

ENTITIES_MAX = 10_000_000
TREES = tuple(Tree(f"tree{len(nodes)}", nodes) for nodes in (FOUR, EIGHT, SIXTEEN))
DIFFERING = """
SELECT count(*) FROM budget_window w FULL JOIN (
    SELECT c.window_id, sum(c.amount) AS held
    FROM reservation r, unnest(r.window_ids, r.held) AS c (window_id, amount)
    WHERE r.status = 'live' GROUP BY c.window_id
) h USING (window_id) WHERE coalesce(w.reserved, 0) <> coalesce(h.held, 0)
"""


async def measure(folder: Path, sizes: Sizes) -> str:
    """A Markdown section."""
    async with Stand(folder) as stand:
        agent = await stand.agent("a1")
        requester = await Requester.to(stand.nats.url)
        floor = Floor(stand, agent, requester, sizes)
        await requester.ask("configure_manager", {"entity_windows_per_hour_max": ENTITIES_MAX})
        turns, crowd, features = Turns(floor), Crowd(floor), Features(floor)
        await turns.plan()
        trees = await _trees(floor)
        await crowd.measure()
        await features.measure()
        await floor.finish_turns()
        await requester.close()
        await _verify(stand)
    return "\n\n".join(
        (
            "### 10. Admission in an organisation",
            f"Closed loops of {sizes.budget_seconds:g} s that take turns on one agent, medians of"
            f" {sizes.budget_runs} runs each. Afterwards reserved sums equal the live reservations exactly.",
            "**Matching budgets per request.** 4 are those of number 2; 8 and 16 mix cost, tokens and requests,"
            " hourly to yearly, nine scopes and filters by provider and model. 1 and"
            f" {OUTSTANDING} requests outstanding.",
            trees,
            f"**Users with a window each.** The four budgets, that for the user being `*`. 1 and {OUTSTANDING}"
            " requests outstanding.",
            crowd.section(),
            f"**The turn of a minute.** {OUTSTANDING} outstanding; the second before and the second after, the worst"
            " of all turns. A tree of four budgets over a minute is replaced at once; of the users, each calls in turn"
            " and each needs a new window of its own, the other three budgets being monthly. Monthly windows at an"
            " ordinary time are the reference.",
            turns.section(),
            f"**Features.** Four matching budgets, {OUTSTANDING} outstanding; events acknowledged when applied.",
            features.section(),
        )
    )


async def _trees(floor: Floor) -> str:
    await floor.plant(*TREES)
    found: dict[int, dict[int, list[LoadResult]]] = {}
    for _ in range(floor.sizes.budget_runs):
        for outstanding in (1, OUTSTANDING):
            for tree in TREES:
                result = await floor.load(call=tree.call(), outstanding=outstanding)
                found.setdefault(len(tree.nodes), {}).setdefault(outstanding, []).append(result)
    four = rate(found[len(FOUR)][OUTSTANDING])
    rows = [
        [
            str(budgets),
            *(p50(results[1]), p99(results[1])),
            f"{rate(results[OUTSTANDING]):,.0f}",
            *(p50(results[OUTSTANDING]), p99(results[OUTSTANDING])),
            ratio(rate(results[OUTSTANDING]), four),
            f"{median([r.per_s * budgets for r in results[OUTSTANDING]]):,.0f}",
        ]
        for budgets, results in found.items()
    ]
    header = ("budgets", "1: p50 ms", "p99 ms", f"{OUTSTANDING}: per second", "p50 ms", "p99 ms", "to 4", "windows/s")
    return table(header, rows)


async def _verify(stand: Stand) -> None:
    """P3 right after the loads: a figure of a ledger that is wrong would be worth nothing."""
    connection = await stand.connection()
    try:
        differing = await connection.fetchval(DIFFERING)
    finally:
        await connection.close()
    if differing:
        raise BenchError(f"{differing} windows differ from their live reservations")
