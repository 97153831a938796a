"""The permission matrix of ``docs/access.md``, written from the declarations between its markers."""

from pathlib import Path
from typing import Final

from signals import ANYONE, ROLES
from signals.registry import REQUESTS

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "access.md"
START: Final = "<!-- matrix -->\n"
END: Final = "<!-- /matrix -->"


def matrix() -> str:
    """A table: a row for each signal, a column for each role."""
    rows = [
        f"| `{signal.name}` | {' | '.join('x' if signal.allows(frozenset({role})) else '' for role in ROLES)} | "
        f"{'x' if ANYONE in signal.roles else ''} |"
        for signal in REQUESTS
    ]
    return "\n".join([f"| signal | {' | '.join(ROLES)} | no role |", "|---|" + "---|" * (len(ROLES) + 1), *rows])


def rendered(text: str) -> str:
    """The page with the matrix as the declarations say."""
    head, rest = text.split(START, 1)
    return f"{head}{START}{matrix()}\n{END}{rest.split(END, 1)[1]}"


def differs(path: Path = PAGE) -> bool:
    """Whether the page's matrix is not what the declarations say."""
    text = path.read_text(encoding="utf-8")
    return rendered(text) != text


def write(path: Path = PAGE) -> None:
    """Write the matrix."""
    path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")
