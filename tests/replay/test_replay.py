"""Replaying recorded traffic: every format is read, and the books are exact whatever is killed on the way."""

import asyncio
import contextlib
import gzip
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from bench.replay.service import ROOT, read_runtime
from bench.replay.traces import HASHES_MAX, TraceError, read_trace
from schemas.money import format_cost
from tests.support.polling import eventually

ROWS = 1_500
AZURE = ROOT.parent / "shared" / "data" / "traces" / "azure_llm_2023_code.csv.gz"
needs_azure = pytest.mark.skipif(not AZURE.exists(), reason="the Azure trace is not here")
AZURE_SUMS = {"events": 8_819, "prompt_tokens": 18_059_974, "completion_tokens": 245_896, "cost": "47.608895"}
# gpt-4o, nanos per token; the price list has had these rates since 2024.
PROMPT_NANOS, COMPLETION_NANOS = 2_500, 10_000
RUN_S = 200.0
# What asyncpg raises while the server goes away; the last when it ends between the two halves of a query.
DOWN = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

Act = Callable[[Path], Awaitable[None]]


def tokens_of(number: int) -> tuple[int, int]:
    return 1_000 + number % 7 * 300, 10 + number % 11


def write_trace(path: Path, *, rate: int = 500) -> dict[str, Any]:
    """An Azure trace of ROWS rows, `rate` per second, and what replaying it must give."""
    start = datetime(2023, 11, 16, 18, tzinfo=UTC)
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for number in range(ROWS):
        prompt, completion = tokens_of(number)
        lines.append(f"{start + timedelta(seconds=number / rate):%Y-%m-%d %H:%M:%S.%f}0,{prompt},{completion}")
    path.write_text("\n".join(lines) + "\n")
    prompts = sum(tokens_of(n)[0] for n in range(ROWS))
    completions = sum(tokens_of(n)[1] for n in range(ROWS))
    cost = format_cost(prompts * PROMPT_NANOS + completions * COMPLETION_NANOS)
    return {"events": ROWS, "prompt_tokens": prompts, "completion_tokens": completions, "cost": cost}


async def run_replay(trace: Path, folder: Path, *arguments: str, meanwhile: Sequence[Act] = ()) -> dict[str, Any]:
    """`python -m bench.replay` with an agent of its own; its figures. `meanwhile` runs beside it."""
    figures = folder / "figures.json"
    data_dir = folder / "data"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.replay", str(trace), "--data-dir", str(data_dir), "--json", str(figures), *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    acts = [asyncio.ensure_future(act(data_dir)) for act in meanwhile]
    try:
        output, _ = await asyncio.wait_for(process.communicate(), RUN_S)
    finally:
        for act in acts:
            act.cancel()
        results = await asyncio.gather(*acts, return_exceptions=True)
        if process.returncode is None:
            process.terminate()
            await process.wait()
    failed = [r for r in results if isinstance(r, BaseException) and not isinstance(r, asyncio.CancelledError)]
    if failed:
        raise failed[0]
    assert process.returncode == 0, output.decode()
    return {**json.loads(figures.read_text()), "output": output.decode()}


@asynccontextmanager
async def database(data_dir: Path) -> AsyncGenerator[asyncpg.Connection]:
    """An independent connection to the database of whatever agent runs on `data_dir` now."""
    runtime = read_runtime(data_dir)
    if runtime is None:
        raise FileNotFoundError(data_dir)
    connection = await asyncpg.connect(runtime.database_url, timeout=5)
    try:
        yield connection
    finally:
        connection.terminate()


def kill_at(*counts: int) -> Act:
    """Kill the agent with -9 each time so many events are applied."""

    async def applied(data_dir: Path) -> int:
        with contextlib.suppress(*DOWN):
            async with database(data_dir) as connection:
                return int(await connection.fetchval("SELECT count(*) FROM usage_event"))
        return 0

    async def kill(data_dir: Path) -> None:
        for count in counts:

            async def reached(count: int = count) -> bool:
                return await applied(data_dir) >= count

            await eventually(reached, timeout_s=RUN_S, message=f"{count} events applied")
            runtime = read_runtime(data_dir)
            assert runtime is not None
            os.kill(runtime.pid, signal.SIGKILL)

    return kill


def sample_windows(samples: list[tuple[int, int, int]]) -> Act:
    """Collect spent, reserved and overrun of every window, again and again, from a connection of its own."""

    async def sample(data_dir: Path) -> None:
        async def until_it_is_down() -> bool:
            with contextlib.suppress(*DOWN):
                async with database(data_dir) as connection:
                    while True:
                        rows = await connection.fetch("SELECT spent, reserved, overrun FROM budget_window")
                        samples.extend((row["spent"], row["reserved"], row["overrun"]) for row in rows)
            return False

        await eventually(until_it_is_down, timeout_s=600)

    return sample


def assert_sums(figures: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: figures[name] for name in expected} == expected
    assert figures["ok"]
    assert figures["reconciliation"]["ok"]
    books = figures["books"]
    assert books["events"] == books["rollups"]
    assert format_cost(books["run"]["cost"]) == expected["cost"]
    assert "equal to the nano" in figures["output"]


def assert_never_over(samples: list[tuple[int, int, int]], limit: int) -> None:
    assert len(samples) > 20
    assert max(spent + reserved for spent, reserved, _ in samples) <= limit
    assert max(reserved for _, reserved, _ in samples) > 0
    assert {overrun for *_, overrun in samples} == {0}


async def test_a_trace_gives_exact_sums_with_the_agent_killed_twice_on_the_way(tmp_path: Path) -> None:
    expected = write_trace(tmp_path / "trace.csv")
    figures = await run_replay(
        tmp_path / "trace.csv",
        tmp_path,
        *("--model", "gpt-4o", "--speed", "1", "--budget", "1000"),
        meanwhile=[kill_at(200, 700)],
    )
    assert_sums(figures, expected)
    assert figures["restarts"] == 2
    assert figures["disconnections"] >= 2
    assert figures["budgets"][0]["spent"] == expected["cost"]
    assert figures["budgets"][0]["reserved"] == "0"


async def test_a_budget_is_never_exceeded_at_any_sampled_instant(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.csv")
    samples: list[tuple[int, int, int]] = []
    figures = await run_replay(
        tmp_path / "trace.csv",
        tmp_path,
        *("--model", "gpt-4o", "--budget", "3", "--outstanding", "256"),
        meanwhile=[sample_windows(samples)],
    )
    assert figures["ok"]
    assert figures["denied"]["budget_exceeded"] == ROWS - figures["approved"] > 0
    assert "replay-t1" in figures["first_denial"]
    assert_never_over(samples, limit=3_000_000_000)


@needs_azure
async def test_the_azure_trace_gives_its_published_sums_with_the_agent_killed_twice(tmp_path: Path) -> None:
    figures = await run_replay(AZURE, tmp_path, "--model", "gpt-4o", meanwhile=[kill_at(1_500, 5_000)])
    assert_sums(figures, AZURE_SUMS)
    assert figures["restarts"] == 2


@needs_azure
async def test_the_azure_trace_never_exceeds_20_usd(tmp_path: Path) -> None:
    samples: list[tuple[int, int, int]] = []
    figures = await run_replay(
        AZURE,
        tmp_path,
        *("--model", "gpt-4o", "--budget", "20", "--outstanding", "256"),
        meanwhile=[sample_windows(samples)],
    )
    assert figures["ok"]
    assert figures["denied"]["budget_exceeded"] > 0
    assert figures["budgets"][0]["resets_at"] in figures["first_denial"]
    assert_never_over(samples, limit=20_000_000_000)


def test_an_azure_row_has_tokens_and_a_time_from_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv.gz"
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.9799600,3180,8\n"
    )
    path.write_bytes(gzip.compress(text.encode()))
    first, second = read_trace(path)
    assert (first.offset_s, first.prompt_tokens, first.completion_tokens, first.model) == (0.0, 4808, 10, None)
    assert second.offset_s == pytest.approx(1.0)


def test_a_burstgpt_row_names_its_model_and_a_call_without_answer_failed(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45,GPT-4,0,0,0,Conversation log\n"
    )
    first, second = read_trace(path)
    assert (first.model, first.failed) == ("gpt-3.5-turbo", False)
    assert (second.model, second.failed, second.offset_s) == ("gpt-4", True, 40.0)


def test_a_mooncake_row_keeps_its_prefix_blocks_as_strings_up_to_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    record = {"timestamp": 1500, "input_length": 6758, "output_length": 500, "hash_ids": list(range(HASHES_MAX + 9))}
    path.write_text(json.dumps({**record, "timestamp": 0}) + "\n" + json.dumps(record) + "\n")
    first, second = read_trace(path)
    assert first.prefix_hashes[:2] == ("0", "1")
    assert len(first.prefix_hashes) == HASHES_MAX
    assert second.offset_s == 1.5


def test_only_the_first_rows_are_read_when_a_limit_is_given(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.csv")
    assert len(read_trace(tmp_path / "trace.csv", limit=7)) == 7


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,b,c\n1,2,3\n", "not a trace I know"),
        ("", "not a trace I know"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no rows"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,many,1\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1,-1\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1\n", "line 2"),
        ('{"timestamp":0,"input_length":1,"output_length":1}\n{"timestamp":0}\n', "line 2"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_the_reason(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(TraceError, match=problem):
        read_trace(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"gone\.csv"):
        read_trace(tmp_path / "gone.csv")
