"""How bad input is shown in `docs/bad-input.md`: tables of what is sent and what is answered, like with like."""

from schemas.errors import STATUS
from signals.registry import REQUESTS
from tests.agent.bad_fields import Mistake, mistakes
from tests.agent.bad_requests import TOPICS
from tests.agent.good_requests import GOOD

FIELDS = """\

## Every field of every signal

Made from the schemas: {mistakes:,} requests to all {signals} signals, each with one mistake in a request that would be
served without it. All are `400 invalid_request`, nothing is written, and the agent goes on serving.
"""
OWN = """\

## What signals refuse for reasons of their own

{rows:,} requests, each with one mistake. After every one of them all that people and policies can change is in the
database as it was before (rows counted and hashed), and the signals that answer at once are asked again and do.
"""


def answer(code: str | None) -> str:
    """The number and the word of an error code."""
    assert code is not None
    return f"{STATUS[code]} `{code}`"


def every_field() -> str:
    """The rules of `bad_fields`, and how much each refuses."""
    made = [mistake for signal in REQUESTS for mistake in mistakes(signal, GOOD[signal.name])]
    rules: dict[str, list[Mistake]] = {}
    for mistake in made:
        rules.setdefault(mistake.rule, []).append(mistake)
    rows = [
        (rule, f"{len(found):,}", str(len({m.signal for m in found})), "the field" if found[0].field else "")
        for rule, found in rules.items()
    ]
    text = FIELDS.format(mistakes=len(made), signals=len(REQUESTS))
    return text + table(("mistake", "requests", "signals", "field named"), rows)


def own_reasons() -> str:
    """The cases of `bad_requests` by topic."""
    text = OWN.format(rows=sum(map(len, TOPICS.values())))
    for topic, cases in TOPICS.items():
        rows = [(c.what, shown(c.signal), answer(c.code), shown(c.field)) for c in cases]
        text += f"\n### {topic}\n" + table(("sent", "signal", "answer", "field"), _alike(merged(rows)))
    return text


def _alike(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """What is answered alike, by the same signals, stands in one row; a prefix in common is said once."""
    found: dict[tuple[str, ...], list[str]] = {}
    for what, *rest in rows:
        found.setdefault(tuple(rest), []).append(what)
    return [(_listed(whats), *rest) for rest, whats in found.items()]


def _listed(whats: list[str]) -> str:
    said: dict[str, list[str]] = {}
    for what in whats:
        head = next((head for head in _HEADS if what.startswith(head)), what)
        said.setdefault(head, []).append(what.removeprefix(head))
    return "; ".join(head + ", ".join(filter(None, rest)) for head, rest in said.items())


_HEADS = (
    "cursor: ",
    "amount ",
    "time: ",
    "time zone ",
    "YAML: ",
    "webhook to ",
    "time of day ",
    "an NKey ",
    "cron ",
    "a user called ",
    "limit ",
    "scope ",
    "a secret ",
)


def shown(value: str | None) -> str:
    """Text as code; line breaks are spelled out."""
    if value is None:
        return ""
    text = value.replace("\r", "\\r").replace("\n", "\\n")
    return f"`{text}`" if len(text) < 80 else f"`{text[:3]}…` (512 characters of it)"


def merged(rows: list[tuple[str, str, str, str]]) -> list[tuple[str, ...]]:
    """Rows that differ only in the signal or the field become one."""
    found: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for what, signal, answer, field in rows:
        signals, fields = found.setdefault((what, answer), ([], []))
        for value, known in ((signal, signals), (field, fields)):
            if value not in known:
                known.append(value)
    return [(what, ", ".join(s), answer, ", ".join(filter(None, f))) for (what, answer), (s, f) in found.items()]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n" + "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in lines)
