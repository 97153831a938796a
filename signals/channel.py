"""Signals about where alerts go and what became of them."""

from schemas import channel
from signals import Request

SET_CHANNEL = Request(
    name="set_channel",
    request=channel.SetChannel,
    reply=channel.Channel,
    roles=("admin",),
    group="management",
    purpose="Create or replace a channel that carries alerts",
)
LIST_CHANNELS = Request(
    name="list_channels",
    request=channel.ListChannels,
    reply=channel.ChannelList,
    roles=("admin",),
    group="management",
    purpose="The channels of the org, without their secrets",
)
DELETE_CHANNEL = Request(
    name="delete_channel",
    request=channel.DeleteChannel,
    reply=channel.DeletedChannel,
    roles=("admin",),
    group="management",
    purpose="Remove a channel",
    idempotent=False,
)
TEST_CHANNEL = Request(
    name="test_channel",
    request=channel.TestChannel,
    reply=channel.TestedChannel,
    roles=("admin",),
    group="management",
    purpose="Send a test message now and say what became of it",
    idempotent=False,
)
LIST_DELIVERIES = Request(
    name="list_deliveries",
    request=channel.ListDeliveries,
    reply=channel.DeliveryList,
    roles=("admin",),
    group="management",
    purpose="Alerts on their way to channels, and those that never arrived",
)
RETRY_DELIVERY = Request(
    name="retry_delivery",
    request=channel.RetryDelivery,
    reply=channel.Delivery,
    roles=("admin",),
    group="management",
    purpose="Send a dead delivery again",
    idempotent=False,
)

SIGNALS = (SET_CHANNEL, LIST_CHANNELS, DELETE_CHANNEL, TEST_CHANNEL, LIST_DELIVERIES, RETRY_DELIVERY)
EVENTS = ()
