"""What a plan uses: the tokens of each message of a conversation, and how many conversations each month has. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Final
from zoneinfo import ZoneInfo

from handlers.cost.price import Quantities

_ONE: Final = Fraction(1)
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Tokens of one message and its answer; ``system`` and, where it grows, the history are sent again."""

    prompt: int
    completion: int
    system: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Stretch:
    """One calendar month of the plan, or its part: local days, and how much the plan has grown until then."""

    first: date
    days: int
    growth: Fraction
    zone: ZoneInfo

    @property
    def start(self) -> datetime:
        """Its first instant, UTC."""
        return self.at(0)

    @property
    def end(self) -> datetime:
        """The first instant after it, UTC."""
        return datetime.combine(self.first + self.days * _DAY, datetime.min.time(), self.zone).astimezone(UTC)

    def at(self, hour: int) -> datetime:
        """An hour of its first day, UTC."""
        return datetime.combine(self.first, datetime.min.time(), self.zone).replace(hour=hour).astimezone(UTC)


def calls_of(
    message: Message, *, messages: int, growing: bool, cached: Fraction, written: Fraction
) -> tuple[Quantities, ...]:
    """The calls of one conversation, in order. ``cached`` and ``written`` are parts of one."""
    calls: list[Quantities] = []
    for number in range(messages):
        history = number * (message.prompt + message.completion) if growing else 0
        again = message.system + history
        prompt = again + message.prompt
        read = int(again * cached)
        calls.append(
            Quantities(
                prompt_tokens=prompt,
                completion_tokens=message.completion,
                cache_read_tokens=read,
                cache_write_tokens=int((prompt - read) * written),
                reasoning_tokens=message.reasoning,
            )
        )
    return tuple(calls)


def stretches(first: date, end: date, zone: ZoneInfo, growth: Fraction) -> list[Stretch]:
    """The calendar months of [``first``, ``end``); each is ``growth`` (of one) larger than the one before."""
    found: list[Stretch] = []
    grown = _ONE
    while first < end:
        following = min(end, (first.replace(day=1) + 32 * _DAY).replace(day=1))
        found.append(Stretch(first, (following - first).days, grown, zone))
        first = following
        grown *= _ONE + growth
    return found


def months_later(day: date, months: int) -> date:
    """The same day so many months later, or the last day of that month."""
    index = day.year * 12 + day.month - 1 + months
    first = date(index // 12, index % 12 + 1, 1)
    last = (first + 32 * _DAY).replace(day=1) - _DAY
    return min(last, first.replace(day=min(day.day, last.day)))


def marginal(steps: Sequence[tuple[int, Fraction]], volume: Fraction) -> Fraction:
    """The average factor of a month's volume from nought, where ``steps`` say what lies above each costs."""
    if not volume:
        return _ONE
    paid = Fraction(0)
    edges = [(Fraction(0), _ONE), *((Fraction(above), factor) for above, factor in steps)]
    for position, (above, factor) in enumerate(edges):
        until = edges[position + 1][0] if position + 1 < len(edges) else volume
        paid += max(min(until, volume) - above, Fraction(0)) * factor
    return paid / volume
