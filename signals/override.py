"""Override signals and events."""

from schemas import override
from signals import Event, Request

REQUEST_OVERRIDE = Request(
    name="request_override",
    request=override.RequestOverride,
    reply=override.Override,
    roles=("provider", "viewer", "manager"),
    group="budget",
    purpose="Ask for a temporary raise of a budget",
    idempotent=False,
)
REVIEW_OVERRIDE = Request(
    name="review_override",
    request=override.ReviewOverride,
    reply=override.Override,
    roles=("approver",),
    group="budget",
    purpose="Approve, deny or revoke a raise that somebody else asked for",
    idempotent=False,
)
LIST_OVERRIDES = Request(
    name="list_overrides",
    request=override.ListOverrides,
    reply=override.OverrideList,
    roles=("provider", "viewer", "manager", "approver"),
    group="budget",
    purpose="Raises that were asked for, and what became of them",
)
REQUESTED = Event(
    name="override.requested", payload=override.OverrideChanged, purpose="Somebody asked for a raise of a budget"
)
APPROVED = Event(
    name="override.approved", payload=override.OverrideChanged, purpose="A raise was approved and counts from now"
)
DENIED = Event(name="override.denied", payload=override.OverrideChanged, purpose="A raise was denied")
EXPIRED = Event(
    name="override.expired", payload=override.OverrideChanged, purpose="A raise, or the request for one, has ended"
)
REVOKED = Event(name="override.revoked", payload=override.OverrideChanged, purpose="An approved raise was taken back")

SIGNALS = (REQUEST_OVERRIDE, REVIEW_OVERRIDE, LIST_OVERRIDES)
EVENTS = (REQUESTED, APPROVED, DENIED, EXPIRED, REVOKED)
