"""The kill switch: ``set_brake``, ``list_brakes``, ``brake.changed``."""

from typing import Annotated, Literal

from msgspec import Meta

from .base import Name, Reply, Request, Text, Time

BrakeScope = Literal["org", "team", "model", "provider"]
Reason = Annotated[str, Meta(min_length=1, max_length=2048, description="Why; every denied caller reads it.")]


class SetBrake(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Deny all calls of a scope from the next decision on, or let them through again (``on`` false).

    ``entity_id``: a team or provider by name; a model as ``model`` or ``provider/model``, where ``*`` stands for any
    text; nothing or ``*`` for the org.
    """

    scope: BrakeScope
    entity_id: Name = "*"
    on: bool
    reason: Reason


class Brake(Reply, frozen=True, kw_only=True):
    """A kill switch. Of one that is off, ``reason``, ``set_by`` and ``set_at`` tell of the last change known."""

    scope: BrakeScope
    entity_id: str
    on: bool
    reason: str
    set_by: str
    set_at: Time


class BrakeReply(Reply, frozen=True, kw_only=True):
    """``changed`` is false where it was so already, for the same reason."""

    brake: Brake
    changed: bool


class ListBrakes(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Kill switches that are on, by scope and entity."""

    scope: BrakeScope | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class BrakeList(Reply, frozen=True, kw_only=True):
    """One page of kill switches that are on."""

    brakes: list[Brake]
    next_cursor: str | None


class BrakeChanged(Reply, frozen=True, kw_only=True):
    """Event ``brake.changed``: calls of a scope are denied, or no longer. ``before`` is None where it was off."""

    actor: str
    before: Brake | None
    after: Brake
