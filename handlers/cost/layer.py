"""What a source of prices is asked and what it answers, with how long the answer holds. Knows no source."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from handlers.cost.rate_card import RateCard


class PriceQuery(NamedTuple):
    """Names are stripped; provider and service tier are lower case."""

    provider: str
    model: str
    service_tier: str
    batch: bool
    at: datetime


class Validity(NamedTuple):
    """Half-open: an answer holds from ``since`` until just before ``until``."""

    since: datetime
    until: datetime

    def covers(self, at: datetime) -> bool:
        """Whether an answer with this validity may be given again for ``at``."""
        return self.since <= at < self.until

    def within(self, other: "Validity") -> "Validity":
        """The time both hold."""
        return Validity(max(self.since, other.since), min(self.until, other.until))


ALWAYS = Validity(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


class Answer(NamedTuple):
    """A card, or None for "not priced by me", and the time for which that stays so."""

    card: RateCard | None
    validity: Validity = ALWAYS


# A layer that returns None does not know the model at any time.
Layer = Callable[[PriceQuery], Answer | None]
