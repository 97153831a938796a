"""Number 4: usage events per second until they are in PostgreSQL, beside the raw stream and the raw table."""

import asyncio
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cores import cores_text, cores_used
from bench.figures import median, ratio, spread, table
from bench.payloads import maker
from bench.sizes import Sizes
from bench.stand import LOAD_S, BenchError, Stand, end, start_helper

TRACK = "token.track_usage"
RAW = "bench.raw"
COPY_CHUNK = 2_000
POLL_S = 0.02
APPLIED = "SELECT coalesce(sum(requests), 0)::bigint FROM usage_rollup"


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to send usage. `batch` is events per message."""

    name: str
    kind: str
    subject: str = TRACK
    outstanding: int = 256
    batch: int = 1


WAYS = (
    Way(name="track_usage, one event, acknowledged when stored", kind="track"),
    Way(name="track_usage, one event, acknowledged when applied", kind="applied"),
    Way(name="durable publish on usage.>", kind="publish", subject="usage.openai.chat"),
    Way(name="track_usage, batches of 100", kind="batch", batch=100, outstanding=16),
    Way(name="track_usage, batches of 1,000", kind="batch", batch=1_000, outstanding=4),
)


def events_of(way: Way, sizes: Sizes) -> int:
    """How many events one run sends this way."""
    if way.batch > 1:
        return sizes.events_batched
    return sizes.events_durable if way.kind == "publish" else sizes.events_single


async def measure(folder: Path, sizes: Sizes) -> str:
    """A Markdown section."""
    rates: dict[str, list[float]] = {}
    notes: list[str] = []
    async with Stand(folder) as stand:
        agent = await stand.agent("a1")
        await stand.create_budgets()
        await _run(stand, WAYS[0], 2_000)
        processes = {"agent": agent.pid, "PostgreSQL": stand.postgres.pid, "nats-server": stand.nats.pid}
        for way in WAYS:
            rates[way.name] = await _runs(stand, way, sizes, processes, notes)
        await agent.stop()
        single = len(maker("track", "r1-100000", 1)(100_000))
        batch = len(maker("batch", "r1-100000", 1_000)(100))
        rates[f"raw JetStream publish + pull, {single} bytes each"] = [
            await _raw(stand, size=single, count=sizes.events_durable, outstanding=256) for _ in range(sizes.runs)
        ]
        rates[f"raw JetStream publish + pull, {batch / 1000:.0f} kB = 1,000 events each"] = [
            1_000 * await _raw(stand, size=batch, count=sizes.events_batched // 1_000, outstanding=4)
            for _ in range(sizes.runs)
        ]
        rates[f"raw COPY of the same rows, {COPY_CHUNK:,} per transaction"] = await _copies(stand, sizes)
    return _section(rates, notes)


def _section(rates: dict[str, list[float]], notes: list[str]) -> str:
    raw_single, raw_batch, copy = list(rates)[len(WAYS) :]
    rows: list[list[str]] = []
    for position, (name, values) in enumerate(rates.items()):
        ours = position < len(WAYS)
        raw = raw_batch if ours and WAYS[position].batch > 1 else raw_single
        share = ratio(median(values), median(rates[raw])) if ours else ""
        rows.append([name, spread(values), share, ratio(median(values), median(rates[copy])) if ours else ""])
    return (
        "### 4. Ingest\n\nEvents per second from the first send until the last is applied in PostgreSQL: event, dedup"
        " key, rollup, and the spent sums of four budgets that match every event. Single messages 256 outstanding.\n\n"
        + table(("", "events/s, median (low-high)", "to the raw stream", "to raw COPY"), rows)
        + "".join(f"\n\n{note}" for note in notes)
    )


async def _runs(stand: Stand, way: Way, sizes: Sizes, processes: dict[str, int], notes: list[str]) -> list[float]:
    events = events_of(way, sizes)
    rates: list[float] = []
    cores: dict[str, float] = {}
    for _ in range(sizes.runs):
        run = asyncio.create_task(_run(stand, way, events))
        watch = asyncio.create_task(cores_used(processes, after_s=0.5, for_s=max(0.3, events / 60_000)))
        rates.append(await run)
        cores = await watch
    notes.append(f"{way.name}: cores used: {cores_text(cores)}.")
    return rates


async def _run(stand: Stand, way: Way, events: int) -> float:
    """Send `events` one way; events per second until all are applied."""
    connection = await stand.connection()
    try:
        before = int(await connection.fetchval(APPLIED))
        applied = asyncio.create_task(_applied(connection, before + events))
        result = await stand.load(
            way.subject, way.kind, outstanding=way.outstanding, count=events // way.batch, size=way.batch
        )
        return events / (max(await applied, result.ended) - result.began)
    finally:
        await connection.close()


async def _applied(connection: Any, wanted: int) -> float:
    deadline = time.monotonic() + LOAD_S
    while time.monotonic() < deadline:
        if int(await connection.fetchval(APPLIED)) >= wanted:
            return time.time()
        await asyncio.sleep(POLL_S)
    raise BenchError(f"{wanted} events were not applied within {LOAD_S:g} s")


async def _raw(stand: Stand, *, size: int, count: int, outstanding: int) -> float:
    """Messages per second through a stream of the same kind, acknowledged both ways and decoded by nobody."""
    puller = await start_helper("bench.puller", stand.nats.agent_url, RAW, str(count))
    try:
        assert puller.stdout is not None
        url = stand.nats.agent_url
        result = await stand.load(RAW, "raw", url=url, outstanding=outstanding, count=count, size=size)
        ended = float(await asyncio.wait_for(puller.stdout.readline(), LOAD_S))
        await asyncio.wait_for(puller.wait(), LOAD_S)
        return count / (max(ended, result.ended) - result.began)
    finally:
        await end(puller)


async def _copies(stand: Stand, sizes: Sizes) -> list[float]:
    """Rows per second into an identical table (same columns and indexes), each chunk its own transaction."""
    connection = await stand.connection()
    try:
        chunks = await _chunks(connection, sizes.copy_rows)
        return [await _copy(connection, chunks) for _ in range(sizes.runs)]
    finally:
        await connection.close()


async def _chunks(connection: Any, rows: int) -> list[tuple[int, bytes]]:
    chunks: list[tuple[int, bytes]] = []
    for offset in range(0, rows, COPY_CHUNK):
        buffer = io.BytesIO()
        query = f"SELECT * FROM usage_event ORDER BY org_id, timestamp, id LIMIT {COPY_CHUNK} OFFSET {offset}"
        status = await connection.copy_from_query(query, output=buffer, format="binary")
        chunks.append((int(status.split()[1]), buffer.getvalue()))
    return [chunk for chunk in chunks if chunk[0]]


async def _copy(connection: Any, chunks: list[tuple[int, bytes]]) -> float:
    await connection.execute("DROP TABLE IF EXISTS raw_event")
    await connection.execute("CREATE TABLE raw_event (LIKE usage_event INCLUDING ALL)")
    began = time.perf_counter()
    for _, content in chunks:
        await connection.copy_to_table("raw_event", source=io.BytesIO(content), format="binary")
    return sum(rows for rows, _ in chunks) / (time.perf_counter() - began)
