"""The tables of ``docs/payloads.md``, written from the shapes and flags: ``python -m tests.cost.payload_tables``."""

from pathlib import Path

from handlers.payloads.shapes import FLAGS, SHAPES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "payloads.md"


def shapes() -> str:
    """One row per API."""
    rows = [f"| `{api}` | {s.whose} | {s.cache} | {s.reasoning} |" for api, s in SHAPES.items()]
    head = [
        "| `api` | whose payloads | cached tokens and the prompt | reasoning and the completion |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows])


def flags() -> str:
    """One row per flag."""
    return "\n".join(
        ["| flag | what it says |", "|---|---|", *(f"| `{flag}` | {told} |" for flag, told in FLAGS.items())]
    )


def rendered(text: str) -> str:
    """The page with both tables as the code has them."""
    return _between(_between(text, "apis", shapes()), "flags", flags())


def _between(text: str, marker: str, body: str) -> str:
    start, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    head, rest = text.split(start, 1)
    return f"{head}{start}{body}\n{end}{rest.split(end, 1)[1]}"


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
