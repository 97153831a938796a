"""What a recorded event stands for: itself, or what its last adjustment says. Pure.

An event is never edited. What it counts for now is kept beside it, with everything that ever charged its windows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from handlers.cost.price import Quantities
from handlers.tracker.priced import COLUMNS, PricedEvent
from schemas.adjustment import Standing
from schemas.money import format_cost
from schemas.usage import UsageLineItem
from store.adjustments import AdjustmentRow

COUNTS: Final = tuple(f.name for f in msgspec.structs.fields(Quantities) if f.name in COLUMNS)
OTHER_COUNTS: Final = tuple(f.name for f in msgspec.structs.fields(Quantities) if f.name not in COLUMNS)
# JSON text in an event, JSON itself in a state.
_JSON: Final = ("line_items", "other_counts")
# Everything an adjustment may change; the rest is the event's own for ever.
CHANGING: Final = (
    *("provider", "model", "service_tier", "region", "batch", *COUNTS, "system_tokens", "other_counts"),
    *("cost", "list_cost", "currency", "cost_status", "price_source", "price_version", "line_items", "flags"),
)
_SHOWN: Final = ("provider", "model", "service_tier", "region", "batch", "prompt_tokens", "completion_tokens")
_PRICE: Final = ("currency", "cost_status", "price_source", "price_version")


@dataclass(frozen=True, slots=True)
class Stand:
    """An event as it counts. ``refunded`` (nanos) is taken off its price already; void: it counts for nothing."""

    event: PricedEvent
    void: bool = False
    refunded: int = 0

    @property
    def measures(self) -> tuple[int, int, int]:
        """What it takes from budgets: nanos of its own currency, tokens, requests."""
        if self.void:
            return 0, 0, 0
        event = self.event
        return event.cost or 0, event.prompt_tokens + event.completion_tokens, int(event.final)

    @property
    def cost(self) -> int | None:
        """Nanos; None where it has no price."""
        return 0 if self.void else self.event.cost

    def same(self, other: "Stand") -> bool:
        """Whether the two count alike."""
        return self.void == other.void and (self.void or _compared(self) == _compared(other))


def _compared(stand: Stand) -> tuple[Any, ...]:
    values = (getattr(stand.event, name) for name in CHANGING)
    return (stand.refunded, *(json.loads(v) if n in _JSON and v else v for n, v in zip(CHANGING, values, strict=True)))


def recorded(row: Mapping[str, Any]) -> PricedEvent:
    """A stored event as it was recorded."""
    values: dict[str, Any] = {name: row[name] for name in COLUMNS}
    if values["reservation_id"] is not None:
        values["reservation_id"] = str(values["reservation_id"])
    return PricedEvent(**values, payload_hash=b"")


def written(stand: Stand) -> str:
    """A stand as JSON text, for ``before`` and ``after``."""
    values: dict[str, Any] = {name: getattr(stand.event, name) for name in CHANGING}
    for name in _JSON:
        values[name] = None if values[name] is None else json.loads(values[name])
    return json.dumps({"void": stand.void, "refunded": stand.refunded, "requests": stand.measures[2], **values})


def read(event: PricedEvent, text: str) -> Stand:
    """The stand that was written; what a later release would add to it is the event's own."""
    state = json.loads(text)
    values: dict[str, Any] = {name: state[name] for name in CHANGING if name in state}
    for name in _JSON:
        values[name] = None if values.get(name) is None else json.dumps(values[name])
    return Stand(msgspec.structs.replace(event, **values), state["void"], state["refunded"])


def shown(text: str) -> Standing:
    """A written stand as callers see it."""
    state: dict[str, Any] = json.loads(text)
    void: bool = state["void"]
    counts: dict[str, int] = {name: state[name] for name in (*COUNTS[2:], "system_tokens") if state[name]}
    counts.update(state["other_counts"] or {})
    return Standing(
        void=void,
        **{name: state[name] for name in (*_SHOWN, *_PRICE)},
        requests=state["requests"],
        total_tokens=state["prompt_tokens"] + state["completion_tokens"],
        counts=counts,
        cost=None if state["cost"] is None else format_cost(state["cost"]),
        refunded=format_cost(state["refunded"]),
        line_items=[line_item(*item) for item in state["line_items"]],
    )


def line_item(
    kind: str,
    quantity: int,
    rate: int | None,
    cost: int | None,
    list_rate: int | None = None,
    list_cost: int | None = None,
) -> UsageLineItem:
    """A stored line item as callers see it."""
    return UsageLineItem(
        kind=kind,
        tokens=quantity,
        rate_per_million=None if rate is None else format_cost(rate),
        cost=None if cost is None else format_cost(cost),
        list_rate_per_million=None if list_rate is None else format_cost(list_rate),
        list_cost=None if list_cost is None else format_cost(list_cost),
    )


class History:
    """One event and its adjustments so far, in order; those that are being made are added to it."""

    def __init__(self, row: Mapping[str, Any], adjustments: Sequence[AdjustmentRow]) -> None:
        self.event = recorded(row)
        self.charged_at: datetime = row["charged_at"]
        self.applied_at: datetime = row["applied_at"] or row["arrived_at"]
        self.reserved: bool = row["reserved"]
        # Windows that the event itself was charged to.
        self.own: dict[int, int] = dict(zip(row["charge_windows"], row["charge_amounts"], strict=True))
        # What the event and its adjustments charged so far, by window.
        self.charged = dict(self.own)
        self.sequence = 0
        self.stand = Stand(self.event)
        self._since: list[tuple[datetime, Stand]] = []
        for found in adjustments:
            self.add(
                found.made_at,
                read(self.event, found.after),
                dict(zip(found.charge_windows, found.charge_amounts, strict=True)),
            )

    def add(self, made_at: datetime, stand: Stand, charges: Mapping[int, int]) -> None:
        """The next adjustment."""
        self.sequence += 1
        self.stand = stand
        self._since.append((made_at, stand))
        for window_id, amount in charges.items():
            self.charged[window_id] = self.charged.get(window_id, 0) + amount

    def stood_at(self, at: datetime) -> Stand:
        """What the event stood for at a time after it was counted."""
        found = Stand(self.event)
        for made_at, stand in self._since:
            if made_at < at:
                found = stand
        return found
