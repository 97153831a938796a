"""What a source of prices is asked and what it answers, with how long the answer holds. Knows no source."""

from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from handlers.cost.rate_card import RateCard
from schemas.base import ID_CHARS_MAX

# A name's answers of different times; two price changes and the daily windows of a day fit.
ANSWERS_PER_NAME_MAX = 8


class PriceQuery(NamedTuple):
    """Names are stripped; provider, service tier and region are lower case."""

    provider: str
    model: str
    service_tier: str
    batch: bool
    at: datetime
    region: str = ""


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

# Provider, model, service tier, batch and region as a caller spells them.
AnswerKey = tuple[str, str, str | None, bool, str | None]


class Answers:
    """Answers by what was asked, each for the time for which it holds. Bounded in names, times and lengths."""

    def __init__(self, names_max: int) -> None:
        self._names_max = names_max
        self._kept: OrderedDict[AnswerKey, list[Answer]] = OrderedDict()

    def find(self, key: AnswerKey, at: datetime) -> Answer | None:
        """The answer kept for ``at``."""
        answers = self._kept.get(key)
        if answers is not None:
            for answer in answers:
                if answer.validity.since <= at < answer.validity.until:
                    self._kept.move_to_end(key)
                    return answer
        return None

    def keep(self, key: AnswerKey, answer: Answer) -> None:
        """Keep an answer, in the place of the one that was asked for least lately."""
        if max(len(key[0]), len(key[1]), len(key[2] or ""), len(key[4] or "")) > ID_CHARS_MAX:
            return
        answers = self._kept.setdefault(key, [])
        answers.insert(0, answer)
        del answers[ANSWERS_PER_NAME_MAX:]
        self._kept.move_to_end(key)
        if len(self._kept) > self._names_max:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)
