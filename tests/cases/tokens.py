"""The token counts of ``../shared/data/tokens``: what a provider's API or a peer's test says, and what we count."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from handlers.counting.count import Job, run
from handlers.counting.counter import vocabularies

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tokens" / "token_count_cases.jsonl"
NOT_CARRIED = "no installed package carries the vocabulary of {}, which only models retired before 2024 use"


class Result(NamedTuple):
    """One case: what it is called, how it ended, and why it did not pass."""

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    reason: str = ""


def results() -> Iterator[Result]:
    """Every case in order; none where the data is not there."""
    if not CASES.exists():
        return
    for number, line in enumerate(CASES.read_bytes().splitlines(), 1):
        case = json.loads(line)
        yield _result(f"{number}: {case['source'].rpartition('/')[2]} ({case['truth']})", case)


def _result(name: str, case: dict[str, Any]) -> Result:
    if case["kind"] == "string" and case["encoding"] not in ("cl100k_base", "o200k_base"):
        return Result(name, "skipped", NOT_CARRIED.format(case["encoding"]))
    found, expected = _counted(case), case["expected_tokens"]
    if expected <= found <= case.get("accept_up_to", expected):
        return Result(name, "passed")
    return Result(name, "failed", f"{case.get('model', case.get('encoding'))}: counted {found}, expected {expected}")


def _counted(case: dict[str, Any]) -> int:
    if case["kind"] == "string":
        return vocabularies().get(case["encoding"]).count(case["text"])
    given = {
        name: msgspec.json.encode(case[name]) for name in ("messages", "tools", "tool_choice", "texts") if name in case
    }
    found = run(Job(case.get("provider", "openai"), case["model"], given, 4_000_000), vocabularies())[1]
    assert found is not None
    return found.tokens
