"""The signal tables of the README, written from the declarations between their markers."""

from pathlib import Path
from typing import Final

from signals.registry import EVENTS, REQUESTS

README: Final = Path(__file__).resolve().parents[1] / "README.md"


def rendered(text: str) -> str:
    """The README with both tables as the declarations say."""
    return _between(_between(text, "signals", _signals()), "events", _events())


def differs(path: Path = README) -> bool:
    """Whether the README's tables are not what the declarations say."""
    text = path.read_text(encoding="utf-8")
    return rendered(text) != text


def write(path: Path = README) -> None:
    """Write the tables."""
    path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")


def _signals() -> str:
    rows = [f"| {s.group} | `{s.name}` | {', '.join(s.roles)} | {s.purpose} |" for s in REQUESTS]
    return "\n".join(["| group | signal | may send | what it does |", "|---|---|---|---|", *rows])


def _events() -> str:
    rows = [f"| `{event.name}` | {event.purpose} |" for event in EVENTS]
    return "\n".join(["| event | when |", "|---|---|", *rows])


def _between(text: str, marker: str, body: str) -> str:
    start, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    head, rest = text.split(start, 1)
    return f"{head}{start}{body}\n{end}{rest.split(end, 1)[1]}"
