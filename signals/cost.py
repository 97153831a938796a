"""Cost signals. They read prices and record nothing."""

from typing import Any

from schemas import cost
from signals import Event, Request

CALCULATE_COST = Request(
    name="calculate_cost",
    request=cost.CalculateCost,
    reply=cost.CalculateCostReply,
    roles=("provider", "viewer"),
    group="cost",
    purpose="What a call costs as of a time, from counts or a raw usage object, without recording it",
)
GET_PRICING = Request(
    name="get_pricing",
    request=cost.GetPricing,
    reply=cost.Pricing,
    roles=("provider", "viewer"),
    group="cost",
    purpose="The rate card of a model as of a time",
)

SIGNALS = (CALCULATE_COST, GET_PRICING)
EVENTS: tuple[Event[Any], ...] = ()
