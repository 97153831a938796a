"""Named SQL: every statement is written in ``store/queries/*.sql`` under a ``-- name:`` line and read once."""

import re
from functools import cache
from pathlib import Path
from typing import Final

QUERIES: Final = Path(__file__).parent / "queries"
_NAME = re.compile(r"^-- name: (\w+)", re.MULTILINE)


@cache
def queries(topic: str) -> dict[str, str]:
    """The statements of ``queries/<topic>.sql`` by name."""
    text = (QUERIES / f"{topic}.sql").read_text(encoding="utf-8")
    marks = list(_NAME.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return {mark[1]: text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)}


def like_pattern(pattern: str) -> str:
    """A filter's pattern, in which only ``*`` is special, for LIKE."""
    return pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
