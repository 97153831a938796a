"""The figures of a run: gathered at its end, judged, printed as a table and written as JSON."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.replay.books import Books
from bench.replay.budget import describe_window
from bench.replay.drive import Tally
from bench.requester import Requester
from schemas.money import format_cost


@dataclass(kw_only=True)
class Outcome:
    """Everything known at the end. `books` is None where no database could be asked."""

    run_id: str
    tally: Tally
    retries: int
    disconnections: int
    restarts: int
    totals: dict[str, Any]
    budgets: list[dict[str, Any]]
    reconciliation: dict[str, Any] | None
    books: Books | None
    problems: list[str] = field(default_factory=list[str])

    @property
    def ok(self) -> bool:
        """Whether every sum agrees."""
        return not self.problems

    def figures(self) -> dict[str, Any]:
        """The same as plain data."""
        tally = self.tally
        return {
            "run_id": self.run_id,
            "ok": self.ok,
            "problems": self.problems,
            "rows": tally.rows,
            "failed_calls": tally.failed_calls,
            "approved": tally.approved,
            "denied": dict(tally.denied),
            "first_denial": tally.first_denial,
            "refused": dict(tally.refused),
            "first_refusal": tally.first_refusal,
            "events": self.totals["requests"],
            "prompt_tokens": self.totals["prompt_tokens"],
            "completion_tokens": self.totals["completion_tokens"],
            "cost": self.totals["cost"],
            "currency": self.totals["currency"],
            "unpriced": self.totals["unpriced_requests"],
            "retries": self.retries,
            "disconnections": self.disconnections,
            "restarts": self.restarts,
            "wall_s": round(tally.wall_s, 3),
            "requests_per_s": round((len(tally.check_s) + tally.events) / max(tally.wall_s, 1e-9), 1),
            "check_p50_ms": round(percentile(tally.check_s, 50) * 1000, 3),
            "check_p99_ms": round(percentile(tally.check_s, 99) * 1000, 3),
            "budgets": self.budgets,
            "reconciliation": self.reconciliation,
            "books": None if self.books is None else asdict(self.books),
        }


def percentile(values: Sequence[float], percent: int) -> float:
    """A percentile of measured values; 0 of none."""
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def judge(outcome: Outcome) -> list[str]:
    """Every disagreement between what was sent, what the service says and what PostgreSQL holds."""
    tally, totals = outcome.tally, outcome.totals
    sent = (tally.events, tally.prompt_tokens, tally.completion_tokens)
    said = (totals["requests"], totals["prompt_tokens"], totals["completion_tokens"])
    problems: list[str] = []
    if sent != said:
        problems.append(f"sent {sent} (events, prompt, completion tokens), the service says {said}")
    if outcome.reconciliation is not None and not outcome.reconciliation["ok"]:
        problems.append(f"get_status finds a difference: {outcome.reconciliation}")
    if outcome.books is not None:
        problems += _judge_books(outcome.books, sent, totals)
    return problems


def _judge_books(books: Books, sent: tuple[int, int, int], totals: dict[str, Any]) -> list[str]:
    run = books.run
    problems: list[str] = []
    if (run.events, run.prompt_tokens, run.completion_tokens) != sent or run.ids != run.events:
        problems.append(f"sent {sent} (events, prompt, completion tokens), PostgreSQL holds {run}")
    if format_cost(run.cost) != totals["cost"]:
        problems.append(f"PostgreSQL adds up to {format_cost(run.cost)}, the service says {totals['cost']}")
    if books.events != books.rollups:
        problems.append(f"events {books.events} differ from rollups {books.rollups}")
    problems += [f"window differs from its events and reservations: {w}" for w in books.windows if not w.equal]
    return problems


async def reconciliation_of(requester: Requester) -> dict[str, Any] | None:
    """What the service finds when it adds up everything itself."""
    return (await requester.ask("get_status", {"reconcile": True})).get("reconciliation")


def print_outcome(outcome: Outcome, console: Console) -> None:
    """The table, the budgets, and the verdict."""
    table = Table(title=f"run {outcome.run_id}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in _lines(outcome.figures()):
        table.add_row(name, value)
    console.print(table)
    for window in outcome.budgets:
        console.print(f"budget {describe_window(window)}", soft_wrap=True, markup=False, highlight=False)
    for line in _verdict(outcome):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _lines(figures: dict[str, Any]) -> list[tuple[str, str]]:
    denied = ", ".join(f"{count:,} {code}" for code, count in figures["denied"].items()) or "0"
    refused = ", ".join(f"{count:,} {code}" for code, count in figures["refused"].items())
    lines = [
        ("rows", f"{figures['rows']:,} ({figures['failed_calls']:,} failed calls)"),
        ("approved", f"{figures['approved']:,}"),
        ("denied", denied),
        ("refused", refused),
        ("events", f"{figures['events']:,}"),
        ("prompt tokens", f"{figures['prompt_tokens']:,}"),
        ("completion tokens", f"{figures['completion_tokens']:,}"),
        ("cost", f"{figures['cost']} {figures['currency']}"),
        ("unpriced events", f"{figures['unpriced']:,}" if figures["unpriced"] else ""),
        ("retries", f"{figures['retries']:,} ({figures['disconnections']} lost connections)"),
        ("agent restarts", str(figures["restarts"] or "")),
        ("wall time", f"{figures['wall_s']:.1f} s"),
        ("requests/s", f"{figures['requests_per_s']:,.0f}"),
        ("check p50 / p99", f"{figures['check_p50_ms']:.2f} / {figures['check_p99_ms']:.2f} ms"),
    ]
    return [(name, value) for name, value in lines if value]


def _verdict(outcome: Outcome) -> list[str]:
    tally, books = outcome.tally, outcome.books
    lines = [f"first denial: {tally.first_denial}"] if tally.first_denial else []
    if tally.first_refusal:
        lines.append(f"first refusal: {tally.first_refusal}")
    if books is None:
        lines.append("the books were not checked: no database is known (--database-url)")
    else:
        lines.append(
            f"whole org, in USD: events {format_cost(books.events.cost)} | rollups {format_cost(books.rollups.cost)} |"
            f" {_windows_text(books)}"
        )
    if outcome.ok:
        lines.append("events = rollups = windows: equal to the nano" if books else "what was sent is what was counted")
    return lines + [f"DIFFERENCE: {problem}" for problem in outcome.problems]


def _windows_text(books: Books) -> str:
    cost = [window for window in books.windows if window.unit == "cost"]
    if not cost:
        return f"{len(books.windows)} windows"
    spent, by_events = sum(w.spent for w in cost), sum(w.spent_by_events for w in cost)
    reserved, overrun = sum(w.reserved for w in cost), sum(w.overrun for w in cost)
    return (
        f"windows {format_cost(spent)} = charges {format_cost(by_events)} (reserved {format_cost(reserved)},"
        f" overrun {format_cost(overrun)})"
    )
