"""Signals and events of corrections."""

from schemas import adjustment
from signals import Event, Request

ADJUST_USAGE = Request(
    name="adjust_usage",
    request=adjustment.AdjustUsage,
    reply=adjustment.AdjustedUsages,
    roles=("admin",),
    group="tracking",
    purpose="Void, correct or refund usage that was recorded: a new row, never an edit",
)
LIST_ADJUSTMENTS = Request(
    name="list_adjustments",
    request=adjustment.ListAdjustments,
    reply=adjustment.AdjustmentList,
    roles=("viewer", "finance"),
    group="tracking",
    purpose="Adjustments of an event or of a time, in pages",
)
REPRICE_USAGE = Request(
    name="reprice_usage",
    request=adjustment.RepriceUsage,
    reply=adjustment.RepricedUsage,
    roles=("finance",),
    group="cost",
    purpose="Price past usage again, with the present prices of its own time",
)
ADJUSTED = Event(name="usage.adjusted", payload=adjustment.UsageAdjusted, purpose="An event's charge was corrected")

SIGNALS = (ADJUST_USAGE, LIST_ADJUSTMENTS, REPRICE_USAGE)
EVENTS = (ADJUSTED,)
