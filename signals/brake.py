"""The kill switch."""

from schemas import brake
from signals import Event, Request

SET_BRAKE = Request(
    name="set_brake",
    request=brake.SetBrake,
    reply=brake.BrakeReply,
    roles=("manager",),
    group="budget",
    purpose="Kill switch: deny all calls of the org, a team, a model or a provider at once",
)
LIST_BRAKES = Request(
    name="list_brakes",
    request=brake.ListBrakes,
    reply=brake.BrakeList,
    roles=("viewer", "manager"),
    group="budget",
    purpose="Kill switches that are on",
)
CHANGED = Event(name="brake.changed", payload=brake.BrakeChanged, purpose="A kill switch was pulled or released")

SIGNALS = (SET_BRAKE, LIST_BRAKES)
EVENTS = (CHANGED,)
