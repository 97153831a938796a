"""Tracking signals and events."""

from schemas import usage
from signals import Event, Request

TRACK_USAGE = Request(
    name="track_usage",
    request=usage.TrackUsage,
    reply=usage.TrackedUsage,
    roles=("provider",),
    group="tracking",
    purpose="Record what one LLM call, or up to 1,000, used",
)
GET_USAGE = Request(
    name="get_usage",
    request=usage.GetUsage,
    reply=usage.UsagePage,
    roles=("viewer",),
    group="tracking",
    purpose="Raw usage events of a time range, in pages",
)
AGGREGATE_USAGE = Request(
    name="aggregate_usage",
    request=usage.AggregateUsage,
    reply=usage.UsageSums,
    roles=("viewer",),
    group="tracking",
    purpose="Sums of usage by interval and dimensions",
)
LIST_DEAD_LETTERS = Request(
    name="list_dead_letters",
    request=usage.ListDeadLetters,
    reply=usage.DeadLetters,
    roles=("admin",),
    group="tracking",
    purpose="Messages that could not be applied, with reasons",
)
RETRY_DEAD_LETTER = Request(
    name="retry_dead_letter",
    request=usage.RetryDeadLetter,
    reply=usage.RetriedDeadLetter,
    roles=("admin",),
    group="tracking",
    purpose="Send a dead letter through ingest again, optionally corrected",
)
UNPRICED = Event(name="usage.unpriced", payload=usage.UnpricedUsage, purpose="Usage of a model without a price")

SIGNALS = (TRACK_USAGE, GET_USAGE, AGGREGATE_USAGE, LIST_DEAD_LETTERS, RETRY_DEAD_LETTER)
EVENTS = (UNPRICED,)
