"""Channels that carry alerts, and the deliveries through them. A channel's URL and secret go in and never come out."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from .alert import AlertLevel
from .base import Name, Reply, Request, Text, Time

# From the least to the most urgent.
LEVELS: Final[tuple[AlertLevel, ...]] = ("info", "warning", "critical", "exceeded")
ChannelKind = Literal["apprise", "webhook"]
Day = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
DAYS: Final[tuple[Day, ...]] = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
DeliveryStatus = Literal["pending", "sent", "skipped", "dead"]
ClockTime = Annotated[
    str,
    Meta(
        pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$(?!\\n)", description="A time of day on the wall clock, e.g. '22:00'."
    ),
]
ChannelUrl = Annotated[str, Meta(min_length=1, max_length=4096, description="Kept encrypted and never shown.")]


class QuietHours(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From ``start`` until the next ``end`` on the wall clock of ``timezone`` alerts below ``except_level`` wait.

    ``days`` are those on which a quiet time begins; equal times are a whole day. What waited comes as one message.
    ``except_level`` null: everything waits.
    """

    start: ClockTime
    end: ClockTime
    timezone: Name = "UTC"
    days: Annotated[list[Day], Meta(min_length=1, max_length=7)] = msgspec.field(default_factory=lambda: list(DAYS))
    except_level: AlertLevel | None = "critical"


class SetChannel(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Create a channel, or replace what is known of it.

    ``url`` is one apprise URL (``mailto://…``, ``slack://…``) or, for a webhook, where to POST. ``secret`` signs a
    webhook's messages (``whsec_`` and base64 of 24 to 64 bytes). Left out, a channel that exists keeps its own.
    """

    name: Name
    kind: ChannelKind
    url: ChannelUrl | None = None
    secret: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    min_level: AlertLevel = "info"
    quiet_hours: QuietHours | None = None
    messages_per_hour_max: Annotated[int, Meta(ge=1, le=3600)] = 60
    active: bool = True


class Channel(Reply, frozen=True, kw_only=True):
    """A channel; ``url`` says where it leads and holds nothing secret."""

    name: str
    kind: str
    url: str
    signed: bool
    min_level: str
    quiet_hours: QuietHours | None
    messages_per_hour_max: int
    active: bool
    created_at: Time
    updated_at: Time


class ListChannels(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Channels of the org by name."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class ChannelList(Reply, frozen=True, kw_only=True):
    """One page of channels."""

    channels: list[Channel]
    next_cursor: str | None


class DeleteChannel(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Remove a channel; what still waits for it ends as dead."""

    name: Name


class DeletedChannel(Reply, frozen=True, kw_only=True):
    """A channel that is gone, and how many deliveries waited for it."""

    name: str
    pending: int


class TestChannel(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send a test message through a channel now, whatever its level, quiet hours and bound."""

    name: Name


class TestedChannel(Reply, frozen=True, kw_only=True):
    """What became of a test message; ``reason`` says why it was not delivered."""

    name: str
    delivered: bool
    reason: str | None
    latency_ms: int


class ListDeliveries(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Deliveries, newest first."""

    status: DeliveryStatus | None = None
    channel: Name | None = None
    alert_id: Name | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class Delivery(Reply, frozen=True, kw_only=True):
    """An alert on its way to a channel. ``message_id`` is shared by what went out as one message.

    ``skipped``: the channel wanted no alert of this level, or is switched off. ``postponed`` says why it waits, or
    waited: ``quiet_hours`` or ``flood``.
    """

    delivery_id: str
    alert_id: str | None
    channel: str
    status: DeliveryStatus
    attempts: int
    not_before: Time
    postponed: str | None
    message_id: str | None
    last_error: str | None
    created_at: Time
    sent_at: Time | None


class DeliveryList(Reply, frozen=True, kw_only=True):
    """One page of deliveries."""

    deliveries: list[Delivery]
    next_cursor: str | None


class RetryDelivery(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send a dead delivery again, as if it were new."""

    delivery_id: Name
