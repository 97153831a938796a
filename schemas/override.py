"""Overrides: temporary raises of a budget that one asks for and somebody else, or the budget's policy, approves."""

from typing import Annotated, Literal

from msgspec import Meta

from .base import Amount, Name, Reply, Request, Text, Time

OverrideStatus = Literal["pending", "approved", "denied", "expired", "revoked"]


class RequestOverride(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask for a raise, by an ``amount`` in the budget's unit or a ``percent`` of its base limit, until a time.

    A budget that gives each entity its own window needs ``entity_id``: which one is raised.
    """

    budget_id: Name
    entity_id: Name | None = None
    amount: Amount | None = None
    percent: Annotated[int, Meta(ge=1, le=1000)] | None = None
    reason: Annotated[str, Meta(min_length=1, max_length=2048, description="Why; reviewers and auditors read it.")]
    until: Time


class Override(Reply, frozen=True, kw_only=True):
    """A temporary raise. It counts in [``starts_at``, ``until``) while it is approved; ``amount`` in the unit.

    ``reviewed_by`` is who decided last: ``policy`` where the budget's own policy approved at once, after a revocation
    whoever revoked.
    """

    override_id: str
    budget_id: str
    entity_id: str
    unit: str
    currency: str | None
    status: OverrideStatus
    amount: str
    percent: int | None
    reason: str
    requested_by: str
    requested_at: Time
    starts_at: Time | None
    until: Time
    reviewed_by: str | None = None
    reviewed_at: Time | None = None
    comment: str | None = None


class ReviewOverride(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Decide a pending request, or revoke an approved one at once; never by whoever asked for it."""

    override_id: Name
    decision: Literal["approve", "deny", "revoke"]
    comment: Text | None = None


class OverrideStep(Reply, frozen=True, kw_only=True):
    """One thing that happened to an override, as the audit trail has it; ``reason`` is what its actor gave."""

    at: Time
    actor: str
    action: str
    reason: str | None


class ListedOverride(Override, frozen=True, kw_only=True):
    """An override with everything that happened to it, oldest first."""

    history: list[OverrideStep]


class ListOverrides(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Overrides, newest first."""

    budget_id: Name | None = None
    entity_id: Name | None = None
    status: OverrideStatus | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class OverrideList(Reply, frozen=True, kw_only=True):
    """One page of overrides."""

    overrides: list[ListedOverride]
    next_cursor: str | None


class OverrideChanged(Reply, frozen=True, kw_only=True):
    """Events ``override.requested``, ``approved``, ``denied``, ``expired`` and ``revoked``: who did what to which."""

    actor: str
    override: Override
