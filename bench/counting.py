"""Number 12: counting tokens: how fast beside bare tiktoken, and what it adds to those who wait beside it."""

import asyncio
import base64
import gzip
import importlib
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import tiktoken

from agent.counter import CounterSettings, WorkerCounter
from bench.figures import median, table
from bench.load import LoadResult
from bench.replay.service import ROOT
from bench.requester import Requester
from bench.sizes import Sizes
from bench.stand import Stand
from handlers.counting.count import Job
from handlers.counting.text import Meter
from handlers.counting.vocabulary import Vocabularies, carried

ENCODING = "o200k_base"
MB = 1_000_000
EXACT_CHARS = 100 * MB
# The server takes a mebibyte; the rest of the request needs some of it.
LARGEST_BYTES = 1_048_576 - 512
RATE = 1_000.0
PROMPT_TOKENS = 2_000
WORDS = "The quick brown fox jumps over the lazy dog. "
OTHER = "Съешь же ещё этих мягких булок. 敏捷的棕色狐狸跳过了懒狗。すばしっこい茶色の狐。¡Jovencillo emponzoñado! "
HOSTILE = {
    "prose": WORDS * (LARGEST_BYTES // len(WORDS)),
    "blanks": " " * LARGEST_BYTES,
    "one letter": "a" * LARGEST_BYTES,
    "ideographs without a break": "中" * (LARGEST_BYTES // 3),
}
CHECK = {"provider": "openai", "model": "gpt-4o", "max_completion_tokens": 100, "user_id": "u1", "team_id": "t1"}


async def measure(folder: Path, sizes: Sizes) -> str:
    """A Markdown section."""
    speeds = await _speeds(sizes)
    async with Stand(folder) as stand:
        await stand.agent("a1")
        await stand.create_budgets()
        requester = await Requester.to(stand.nats.url)
        added = await _prompts(requester, sizes)
        beside = await _beside(stand, requester, sizes)
        await requester.close()
    return "\n\n".join(
        (
            "### 12. Counting tokens",
            f"**Speed** with {ENCODING}, MB/s of UTF-8 on one core: in pieces as the worker counts, bare tiktoken on"
            " the same text at once, and through the worker process as the agent asks it.",
            speeds,
            f"**A prompt of {PROMPT_TOKENS:,} tokens in `check_budget`**, one outstanding, beside the same check with"
            " its size stated; milliseconds. Aim: less than 10 ms more at p99.",
            added,
            f"**Checks of others while the largest texts the bus carries are counted**: {RATE:,.0f} `check_budget` a"
            " second with stated sizes, alone and beside one `count_tokens` of 1 MiB after the other; milliseconds."
            " Aim: less than 5 ms more at p99.",
            beside,
        )
    )


def bare() -> tiktoken.Encoding:
    """tiktoken on the same ranks, without anything of ours."""
    lines = gzip.decompress(carried(ENCODING)).splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    parts: Any = importlib.import_module("tiktoken_ext.openai_public")
    saved = parts.load_tiktoken_bpe

    def given(*_args: object, **_options: object) -> dict[bytes, int]:
        return ranks

    parts.load_tiktoken_bpe = given
    try:
        return tiktoken.Encoding(**parts.o200k_base())
    finally:
        parts.load_tiktoken_bpe = saved


def texts() -> dict[str, str]:
    """Two megabytes of each kind, of what this repository has."""
    prose = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "handlers").rglob("*.py")))
    data = (ROOT / "docs" / "contract" / "asyncapi.json").read_text(encoding="utf-8")
    kinds = {"English": prose, "code": code, "JSON": data, "other scripts": OTHER}
    return {name: (text * (1 + 2 * MB // len(text.encode())))[: 2 * MB] for name, text in kinds.items()}


async def _speeds(sizes: Sizes) -> str:
    vocabulary, reference = Vocabularies().get(ENCODING), bare()
    counter = WorkerCounter(CounterSettings(deadline_s=60.0))
    await counter.start()
    rows: list[list[str]] = []
    try:
        for name, text in texts().items():
            size, job = len(text.encode()), Job("openai", "gpt-4o", {"text": msgspec.json.encode(text)}, EXACT_CHARS)
            ours: list[float] = []
            theirs: list[float] = []
            asked: list[float] = []
            for _ in range(sizes.runs):
                theirs.append(_speed(size, lambda text=text: len(reference.encode_ordinary(text))))
                ours.append(_speed(size, lambda text=text: _counted(vocabulary.count, text)))
                began = time.perf_counter()
                await counter.count(job)
                asked.append(size / MB / (time.perf_counter() - began))
            exact = _counted(vocabulary.count, text) == len(reference.encode_ordinary(text))
            figures = [f"{median(values):.1f}" for values in (ours, theirs, asked)]
            rows.append([name, *figures, f"{median(ours) / median(theirs):.2f}x", "yes" if exact else "NO"])
    finally:
        await counter.stop()
    return table(["text", "in pieces", "bare tiktoken", "through the worker", "ratio", "same count"], rows)


def _counted(count: Callable[[str], int], text: str) -> int:
    meter = Meter(count, EXACT_CHARS)
    for _ in meter.text(text):
        pass
    return meter.tokens


def _speed(size: int, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return size / MB / (time.perf_counter() - began)


async def _prompts(requester: Requester, sizes: Sizes) -> str:
    """Both kinds in turn, so that whatever else the machine does falls on both."""
    prompt = WORDS * (PROMPT_TOKENS // 10)
    bodies = {"stated": {**CHECK, "prompt_tokens": PROMPT_TOKENS}, "counted": {**CHECK, "prompt": prompt}}
    took: dict[str, list[float]] = {name: [] for name in bodies}
    until = time.perf_counter() + sizes.seconds * 2
    while time.perf_counter() < until or len(took["stated"]) < 200:
        for name, body in bodies.items():
            began = time.perf_counter()
            await requester.ask("check_budget", body)
            took[name].append((time.perf_counter() - began) * 1_000)
    rows = [[name, str(len(took[name])), *(f"{_at(took[name], share):.2f}" for share in (0.5, 0.99))] for name in took]
    more = [f"{_at(took['counted'], share) - _at(took['stated'], share):+.2f}" for share in (0.5, 0.99)]
    return table(["prompt", "checks", "p50", "p99"], [*rows, ["difference", "", *more]])


def _at(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def _beside(stand: Stand, requester: Requester, sizes: Sizes) -> str:
    alone: list[LoadResult] = []
    found: dict[str, list[LoadResult]] = {name: [] for name in HOSTILE}
    counts = dict.fromkeys(HOSTILE, 0)
    for _ in range(sizes.runs):
        alone.append(await _load(stand, sizes))
        for name, text in HOSTILE.items():
            async with _counting(requester, text) as counted:
                found[name].append(await _load(stand, sizes))
            counts[name] += counted[0]
    p99 = median([result.p99_ms for result in alone])
    rows = [["none", "", f"{median([r.p50_ms for r in alone]):.2f}", f"{p99:.2f}", ""]]
    for name, results in found.items():
        figures = [median([getattr(r, field) for r in results]) for field in ("p50_ms", "p99_ms")]
        rows.append([name, str(counts[name]), *(f"{value:.2f}" for value in figures), f"{figures[1] - p99:+.2f}"])
    return table(["texts of 1 MiB", "counted", "p50", "p99", "added to p99"], rows)


async def _load(stand: Stand, sizes: Sizes) -> LoadResult:
    return await stand.load(
        "token.check_budget", "check", rate=RATE, outstanding=256, seconds=sizes.seconds, warmup_s=sizes.warmup_s
    )


@asynccontextmanager
async def _counting(requester: Requester, text: str) -> AsyncGenerator[list[int]]:
    """One count of ``text`` after the other, as long as the block runs; how many there were."""
    done = [0]

    async def run() -> None:
        while True:
            await requester.ask("count_tokens", {"provider": "openai", "model": "gpt-4o", "text": text})
            done[0] += 1

    task = asyncio.create_task(run())
    try:
        yield done
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
