"""One recorded case and how it ended. Where the recorded data is, and how it is read."""

import gzip
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

Row = dict[str, Any]
Outcome = Literal["passed", "differs", "failed", "skipped"]
# How a case ended, and why it did not pass.
Verdict = tuple[Outcome, str]


class Result(NamedTuple):
    """``differs``: by design or because the peer is wrong, which the reason says. ``failed`` is never expected."""

    name: str
    outcome: Outcome
    reason: str = ""


def rows(path: str) -> list[Row]:
    """The rows of a file of JSON lines below the recorded data; none where it is not there."""
    file = DATA / path
    if not file.exists():
        return []
    raw = file.read_bytes()
    return [msgspec.json.decode(line) for line in (gzip.decompress(raw) if path.endswith(".gz") else raw).splitlines()]


def short(source: str) -> str:
    """A case's source without its commit and folders."""
    repository, _, rest = source.partition("@")
    return f"{repository.rpartition('/')[2]} {rest.rpartition('::')[2].rpartition('/')[2]}".strip()
