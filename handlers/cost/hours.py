"""Hours of the day in which a price rule holds: half-open, in a time zone, on days of the week.

The day's hours are put on the time line once, and both whether they hold and how long that stays so are read from
there: so a clock that jumps cannot make the two disagree. A start that a jump leaves out comes with the jump.
"""

from datetime import UTC, date, datetime, time, timedelta
from typing import Final, Self
from zoneinfo import ZoneInfo

import msgspec

from handlers.cost.layer import Validity
from schemas.pricing import DailyWindow

_LOOKED_AT: Final = timedelta(days=1)


class Hours(msgspec.Struct, frozen=True):
    """From ``start`` to ``end`` of the days in ``weekdays`` (1 is Monday); an end not after the start is next day's."""

    start: time
    end: time
    zone: ZoneInfo
    weekdays: frozenset[int]

    @classmethod
    def of(cls, daily: DailyWindow) -> Self:
        """The hours of a rule. Raises ValueError for a time zone that is none."""
        try:
            zone = ZoneInfo(daily.timezone)
        except (KeyError, OSError) as error:
            raise ValueError(f"{daily.timezone} is no time zone") from error
        weekdays = frozenset(daily.weekdays) or frozenset(range(1, 8))
        return cls(time.fromisoformat(daily.start), time.fromisoformat(daily.end), zone, weekdays)

    def during(self, at: datetime) -> tuple[bool, Validity]:
        """Whether they hold at a time, and the time around it, at most a day each way, for which that stays so."""
        at = at.astimezone(UTC)
        since, until = at - _LOOKED_AT, at + _LOOKED_AT
        today = at.astimezone(self.zone).date()
        held = False
        for days in range(-3, 4):
            day = today + timedelta(days=days)
            if day.isoweekday() not in self.weekdays:
                continue
            for edge in (opens := self._at(day, self.start), closes := self._closes(day)):
                if edge <= at:
                    since = max(since, edge)
                else:
                    until = min(until, edge)
            held = held or opens <= at < closes
        return held, Validity(since, until)

    def _closes(self, day: date) -> datetime:
        return self._at(day if self.end > self.start else day + timedelta(days=1), self.end)

    def _at(self, day: date, clock: time) -> datetime:
        return datetime.combine(day, clock, self.zone).astimezone(UTC)
