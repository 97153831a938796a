"""How far a replay is: a bar in a terminal, a line every now and then elsewhere."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.replay.drive import Tally

LINE_EVERY_S = 5.0


@contextmanager
def progress(total: int, console: Console) -> Generator[Callable[[Tally], None]]:
    """Show progress while the block runs; call what is yielded after every row."""
    if not console.is_terminal:
        yield _lines(total, console)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total)
        yield lambda tally: bar.update(task, completed=tally.rows, description=_counts(tally))


def _lines(total: int, console: Console) -> Callable[[Tally], None]:
    due = time.monotonic() + LINE_EVERY_S

    def show(tally: Tally) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + LINE_EVERY_S
            console.print(f"{tally.rows:,} of {total:,} rows: {_counts(tally)}", highlight=False)

    return show


def _counts(tally: Tally) -> str:
    return f"approved {tally.approved:,}, denied {tally.denied.total():,}"
