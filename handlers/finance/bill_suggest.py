"""Requests that would settle what a comparison found, ready to be sent. Pure; nobody sends them but a person.

A rate is the simplest decimal that the bill's amounts allow: rounded to cents, they allow many.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from fractions import Fraction
from math import ceil, floor
from typing import Any, Final

from handlers.finance.bill_compare import Cell
from handlers.finance.bill_sides import TOKEN_KINDS, Sides
from schemas.bill import Suggestion
from schemas.money import NANOS_DIGITS, format_cost

SUGGESTIONS_MAX: Final = 20
NAMES_MAX: Final = 5
_PRICES: Final = frozenset({"price_differs", "cache_priced_differently", "unpriced_here"})
_STATED: Final = frozenset(
    {"input", "output", "cache_read", "cache_write", "cache_write_1h", "cache_write_12h", "audio_input"}
    | {"audio_output", "image_input", "image_output", "video_input", "web_search", "reasoning"}
)


@dataclass(slots=True)
class _Kind:
    """What the bill says of one kind over all days that differ."""

    quantity: int = 0
    cost: int = 0
    doubt: int = 0


@dataclass(slots=True)
class _Model:
    """The days of one model whose price differs."""

    days: list[date] = field(default_factory=list[date])
    names: set[str] = field(default_factory=set[str])
    kinds: dict[str, _Kind] = field(default_factory=dict[str, _Kind])
    unpriced: bool = False


def prices(bill_id: str, provider: str, sides: Sides, cells: Sequence[Cell]) -> list[Suggestion]:
    """For each model whose rates differ: the price rule that the bill implies, and pricing its usage again."""
    models: dict[str, _Model] = {}
    for cell in cells:
        codes = {why.code for why in cell.reasons}
        model = cell.key[1]
        if model is None or not codes & _PRICES or "batch_or_tier" in codes:
            continue
        found = models.setdefault(model, _Model())
        found.days.append(cell.key[0])
        found.names |= cell.ours.names
        found.unpriced = found.unpriced or "unpriced_here" in codes
        wanted = {why.evidence.get("kind") for why in cell.reasons}
        for kind in cell.theirs.costs.keys() & (_STATED if found.unpriced else wanted):
            _collect(found.kinds.setdefault(kind, _Kind()), cell, kind)
    told: list[Suggestion] = []
    for found in models.values():
        rates = {kind: rate for kind, seen in sorted(found.kinds.items()) if (rate := _rate(seen)) is not None}
        if rates and found.names:
            told += _rules(bill_id, provider, found, rates, sides.currency)
    return told


def _collect(seen: _Kind, cell: Cell, kind: str) -> None:
    seen.quantity += cell.theirs.quantities.get(kind, 0) or cell.ours.quantities.get(kind, 0)
    seen.cost += cell.theirs.costs[kind]
    seen.doubt += cell.theirs.doubts.get(kind, 0)


def _rate(seen: _Kind) -> str | None:
    """The rate per million, or None where the amounts are too coarse to say more than one digit of it."""
    if not seen.quantity or seen.cost <= 0:
        return None
    low = Fraction(max(seen.cost - seen.doubt, 0) * 1_000_000, seen.quantity)
    high = Fraction((seen.cost + seen.doubt) * 1_000_000, seen.quantity)
    return None if high > 2 * low else format_cost(simplest(low, high))


def simplest(low: Fraction, high: Fraction) -> int:
    """The integer between two bounds, both included, with the most trailing zeros; the nearest where there is none."""
    for digits in range(NANOS_DIGITS + NANOS_DIGITS, -1, -1):
        step = 10**digits
        first, last = ceil(low / step), floor(high / step)
        if first <= last:
            middle = round((low + high) / (2 * step))
            return min(max(middle, first), last) * step
    return round((low + high) / 2)


def _rules(bill_id: str, provider: str, found: _Model, rates: Mapping[str, str], currency: str) -> list[Suggestion]:
    """A rule for each name that our calls go by, and pricing the calls of that name again."""
    start, end = _span(found.days)
    names = sorted(found.names)[:NAMES_MAX]
    rules = [
        {
            "name": f"bill {bill_id} {name}"[:256],
            "layer": "operator" if found.unpriced else "contract",
            "op": "rates",
            "provider": provider,
            "model": name,
            "partial": not found.unpriced,
            "rates": dict(rates),
            "currency": currency,
            "valid_from": start,
            "source": f"bill {bill_id}"[:2048],
        }
        for name in names
    ]
    again = {"start": start, "end": end, "only": "unpriced" if found.unpriced else "all", "dry_run": True}
    why = "these rates are what the bill implies; without dry_run they hold from then on"
    return [
        Suggestion(signal="update_pricing", body={"rules": rules, "backdate": True, "dry_run": True}, why=why),
        *(
            Suggestion(
                signal="reprice_usage",
                body=again | {"filters": {"provider": provider, "model": name}},
                why="afterwards: what was recorded, at the new rates",
            )
            for name in names
        ),
    ]


def _span(days: Sequence[date]) -> tuple[str, str]:
    return f"{min(days)}T00:00:00Z", f"{max(days) + timedelta(days=1)}T00:00:00Z"


def missing(bill_id: str, provider: str, sides: Sides, cells: Sequence[Cell]) -> list[Suggestion]:
    """For calls that were not recorded: one event for each day and model, with an id that makes a repeat harmless."""
    told: list[Suggestion] = []
    for cell in cells:
        day, model = cell.key
        if model is None or all(why.code != "usage_not_tracked" for why in cell.reasons):
            continue
        more = {
            kind: cell.theirs.quantities.get(kind, 0) - cell.ours.quantities.get(kind, 0)
            for kind in sides.kinds & TOKEN_KINDS
        }
        if not any(more.values()) or min(more.values()) < 0:
            continue
        told.append(
            Suggestion(
                signal="track_usage",
                body=_event(bill_id, provider, day, cell, more),
                why="the tokens that we did not record, as one event; track them by call where you can",
            )
        )
    return told


_FIELDS: Final = {
    "cache_read": "cache_read_tokens",
    "cache_write": "cache_write_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "reasoning": "reasoning_tokens",
    "audio_input": "audio_input_tokens",
    "audio_output": "audio_output_tokens",
}
_WRITES: Final = ("cache_write", "cache_write_1h")
_OUTPUTS: Final = ("output", "reasoning", "audio_output", "image_output")


def _event(bill_id: str, provider: str, day: date, cell: Cell, more: dict[str, int]) -> dict[str, Any]:
    names = sorted(cell.theirs.names)
    body: dict[str, Any] = {
        "id": f"bill:{bill_id}:{day}:{cell.key[1]}"[:256],
        "timestamp": f"{day}T12:00:00Z",
        "provider": provider,
        "model": cell.key[1] if any(" " in name for name in names) else names[0],
        "prompt_tokens": sum(n for kind, n in more.items() if kind not in _OUTPUTS),
        "completion_tokens": sum(n for kind, n in more.items() if kind in _OUTPUTS),
    }
    counts = {name: more[kind] for kind, name in _FIELDS.items() if more.get(kind)}
    if counts.get("cache_write_1h_tokens"):
        counts["cache_write_tokens"] = sum(more.get(kind, 0) for kind in _WRITES)
    return body | counts | {"metadata": {"bill_id": bill_id}, "ack": "applied"}


def voids(bill_id: str, cell: Cell, events: Sequence[Mapping[str, Any]]) -> Suggestion | None:
    """For calls that were not billed: voiding them, where it is clear which they are: all of the day, or the one whose
    tokens are the difference.
    """
    tokens = sum(cell.theirs.quantities.get(k, 0) - cell.ours.quantities.get(k, 0) for k in TOKEN_KINDS)
    if not cell.has_theirs:
        chosen = [event["usage_id"] for event in events]
    else:
        fits = [e["usage_id"] for e in events if e["prompt_tokens"] + e["completion_tokens"] == -tokens]
        chosen = fits if len(fits) == 1 else []
    if not chosen:
        return None
    reason = f"not on bill {bill_id} of {cell.key[0]}"[:2048]
    body = {
        "adjustments": [{"usage_id": usage_id, "kind": "void", "reason": reason} for usage_id in chosen],
        "dry_run": True,
    }
    return Suggestion(
        signal="adjust_usage", body=body, why="if these calls did not happen: they count for nothing then"
    )
