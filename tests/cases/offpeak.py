"""``cost/offpeak_window_cases``: whether a time of day is in a window, asked of a price rule's own hours."""

from collections.abc import Iterator
from datetime import datetime

from handlers.cost.hours import Hours
from schemas.pricing import DailyWindow
from tests.cases.case import Result, rows, short


def results() -> Iterator[Result]:
    """Every case in order."""
    for number, case in enumerate(rows("cost/offpeak_window_cases.jsonl"), 1):
        start, end = case["windows_utc"].split("-")
        held, _ = Hours.of(DailyWindow(start=start, end=end)).during(datetime.fromisoformat(case["time_utc"]))
        name = f"{number}: {case['time_utc']} in {case['windows_utc']} ({short(case['source'])})"
        right = held is case["expected_off_peak"]
        yield Result(name, "passed" if right else "failed", "" if right else f"told {held}")
