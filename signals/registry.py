"""All signals and events, in the order they are documented. Names and subjects are unique (a test holds it)."""

from typing import Any

from signals import Event, Request, budget, cost, management, usage

REQUESTS: tuple[Request[Any, Any], ...] = (
    *usage.SIGNALS,
    *budget.SIGNALS,
    *cost.SIGNALS,
    *management.SIGNALS,
)
EVENTS: tuple[Event[Any], ...] = (*usage.EVENTS, *budget.EVENTS, *cost.EVENTS, *management.EVENTS)
