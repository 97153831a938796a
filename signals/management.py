"""Signals about the agent itself."""

from schemas import management
from signals import ANYONE, Request

GET_STATUS = Request(
    name="get_status",
    request=management.GetStatus,
    reply=management.Status,
    roles=(ANYONE,),
    group="management",
    queued=False,
    purpose="Health, version, lag, live reservations, reconciliation",
)
DESCRIBE = Request(
    name="describe",
    request=management.Describe,
    reply=management.Description,
    roles=(ANYONE,),
    group="management",
    queued=False,
    purpose="The contract: AsyncAPI 3 document and JSON Schemas",
)

SIGNALS = (GET_STATUS, DESCRIBE)
EVENTS = ()
