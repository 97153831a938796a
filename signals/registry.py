"""All signals and events, in the order they are documented. Names and subjects are unique (a test holds it)."""

from typing import Any

from signals import (
    Event,
    Request,
    access,
    alert,
    audit,
    brake,
    budget,
    channel,
    cost,
    management,
    override,
    privacy,
    settings,
    usage,
)

REQUESTS: tuple[Request[Any, Any], ...] = (
    *usage.SIGNALS,
    *budget.SIGNALS,
    *override.SIGNALS,
    *brake.SIGNALS,
    *cost.SIGNALS,
    *channel.SIGNALS,
    *alert.SIGNALS,
    *management.SIGNALS,
    *settings.SIGNALS,
    *audit.SIGNALS,
    *privacy.SIGNALS,
    *access.SIGNALS,
)
EVENTS: tuple[Event[Any], ...] = (
    *usage.EVENTS,
    *budget.EVENTS,
    *override.EVENTS,
    *brake.EVENTS,
    *cost.EVENTS,
    *channel.EVENTS,
    *alert.EVENTS,
    *management.EVENTS,
    *settings.EVENTS,
    *access.EVENTS,
)
