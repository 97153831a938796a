"""What alerts say: titles, messages and details. Pure; amounts become decimal strings here."""

from datetime import datetime
from typing import Any, Final

import msgspec

from schemas.budget import BudgetWindow
from schemas.money import format_cost

_LEVELS: Final = ((75, "info"), (90, "warning"), (100, "critical"))
_DAY_S: Final = 86_400


def level_of(percent: int) -> str:
    """The level of a threshold: below 75 info, below 90 warning, below 100 critical, from then on exceeded."""
    return next((level for below, level in _LEVELS if percent < below), "exceeded")


def amount_of(unit: str, amount: int) -> str:
    """An amount of a unit (nanos, tokens, requests) as it stands on the wire."""
    return format_cost(amount) if unit == "cost" else str(amount)


def with_unit(text: str, unit: str, currency: str | None) -> str:
    """An amount as a person reads it: ``12.5 USD``, ``1000 tokens``."""
    return f"{text} {currency or 'USD'}" if unit == "cost" else f"{text} {unit}"


def date_text(at: datetime) -> str:
    """A day as a person reads it: ``19 March 2030``."""
    return f"{at.day} {at:%B %Y}"


def days_left(resets_at: datetime | None, at: datetime) -> str | None:
    """Full tenths of a day until a window resets; None where it never does."""
    if resets_at is None:
        return None
    left = max(0, int((resets_at - at).total_seconds()))
    return f"{left // _DAY_S}.{left % _DAY_S * 10 // _DAY_S}".removesuffix(".0")


def window_details(window: BudgetWindow, at: datetime, **more: Any) -> dict[str, Any]:
    """The details of an alert about a window: what the window shows, the days left in it, and ``more``."""
    shown = msgspec.to_builtins(window)
    name = shown.pop("name")
    del shown["budget_id"], shown["entity_id"]
    return {"budget_name": name, **shown, "days_left": days_left(window.resets_at, at), **more}


def whose(window: BudgetWindow) -> str:
    """A budget as a person reads it, with the entity where it has one."""
    return f"'{window.name}'" + (f" of {window.type} {window.entity_id}" if window.entity_id != "*" else "")


def threshold_text(window: BudgetWindow, percent: int) -> tuple[str, str]:
    """Title and message of a threshold."""
    return f"Budget {whose(window)} has used {percent}% of its limit", _sums(window)


def exceeded_text(window: BudgetWindow, cause: str) -> tuple[str, str]:
    """Title and message of a full window: ``spent``, or the first ``denied`` call, or one in ``shadow``."""
    if cause == "denied":
        return f"Budget {whose(window)} refuses calls", f"A call did not fit. {_sums(window)}"
    if cause == "shadow":
        return f"Budget {whose(window)} would refuse calls", f"A call would not have fitted. {_sums(window)}"
    return f"Budget {whose(window)} is used up", _sums(window)


def overrun_text(window: BudgetWindow, amount: str) -> tuple[str, str]:
    """Title and message of spending that found no room."""
    over = with_unit(amount, window.unit, window.currency)
    return f"Budget {whose(window)} is overrun", f"{over} found no room under the limit. {_sums(window)}"


def pacing_text(window: BudgetWindow, exhausted_at: datetime, local_day: str) -> tuple[str, str]:
    """Title and message of a window that will not last."""
    title = f"At this pace budget {whose(window)} is spent on {local_day}"
    assert window.resets_at is not None
    early = (window.resets_at - exhausted_at).total_seconds() / 86_400
    return title, f"That is {early:.1f} days before it resets. {_sums(window)}"


def rate_text(scope: str, amount: str, limit: str, span: str) -> tuple[str, str]:
    """Title and message of a sum over a span of time that reached a rule's limit."""
    return f"{scope}: {amount} {span}", f"The rule's limit is {limit}."


def scope_text(scope: dict[str, Any]) -> str:
    """The calls a rule watches, as a person reads it."""
    who = "All calls" if scope["type"] == "global" else f"{scope['type'].replace('_', ' ')} {scope['entity_id']}"
    where = ", ".join(f"{name} {value}" for name, value in sorted(scope["filters"].items()))
    return f"{who} ({where})" if where else who


def _sums(window: BudgetWindow) -> str:
    spent = f"Spent {window.spent} of {with_unit(window.limit, window.unit, window.currency)}"
    held = f", {window.reserved} reserved" if window.reserved != "0" else ""
    until = f" until {window.resets_at:%Y-%m-%d %H:%M} UTC" if window.resets_at is not None else ""
    return f"{spent} ({window.percent_used:g}%){held}; {window.remaining} remain{until}."
