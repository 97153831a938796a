"""What requests about money of a period share: the period itself, percentages, and amounts in several currencies."""

from datetime import date
from typing import Annotated, Literal

from msgspec import Meta

from .base import Currency, Name, Reply, Request, Time

Month = Annotated[
    str, Meta(pattern=r"^20[0-9]{2}-(0[1-9]|1[0-2])$(?!\n)", description="A calendar month in `timezone`, YYYY-MM.")
]
Percent = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{1,4}(\.[0-9]{1,6})?$(?!\n)",
        description="A percentage as a decimal string, e.g. '7.5'; not negative.",
    ),
]
AllocationBy = Annotated[
    Literal["team", "project", "cost_center", "user", "feature", "environment", "tag"],
    Meta(description="Who the cost is split among; `tag`: the values of the tag named in `tag`."),
]


class PeriodRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A ``month``, or half-open [``start``, ``end``) on full quarter hours; ``currency``: the org's own if left out."""

    month: Month | None = None
    start: Time | None = None
    end: Time | None = None
    timezone: Name = "UTC"
    currency: Currency | None = None


class ConvertedAmount(Reply, frozen=True, kw_only=True):
    """What was spent in one currency, and what that is in the reply's own. ``stale``: the rate is an old one.

    ``rate`` units of the reply's currency are worth one unit of ``currency``; as a fraction where it has no end.
    """

    currency: str
    cost: str
    rate: str
    as_of: date
    source: str
    stale: bool
    converted: str
