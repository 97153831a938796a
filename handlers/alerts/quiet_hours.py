"""When a channel is quiet. Pure; times of day are read on the wall clock of the channel's own zone."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from handlers.enforcer.calendar import zone
from schemas.channel import DAYS, LEVELS, QuietHours

# A quiet time that ends when the next begins goes on; one that never ends is looked through for a week.
CHAIN_DAYS_MAX: Final = 7


def waits(quiet: QuietHours, level: str, at: datetime) -> datetime | None:
    """Until when an alert of ``level`` has to wait at ``at`` (UTC); None: it need not."""
    if quiet.except_level is not None and rank(level) >= rank(quiet.except_level):
        return None
    return quiet_until(quiet, at)


def quiet_until(quiet: QuietHours, at: datetime) -> datetime | None:
    """The end (exclusive, UTC) of the quiet time that holds ``at``; None where it is not quiet."""
    tz = zone(quiet.timezone)
    end: datetime | None = None
    for _ in range(CHAIN_DAYS_MAX):
        later = _end_of_one(quiet, tz, end or at)
        if later is None:
            break
        end = later
    return end


def rank(level: str) -> int:
    """How urgent a level is; an unknown one is the most urgent."""
    return LEVELS.index(level) if level in LEVELS else len(LEVELS)


def _end_of_one(quiet: QuietHours, tz: ZoneInfo, at: datetime) -> datetime | None:
    today = at.astimezone(tz).date()
    for day in (today - timedelta(days=1), today):
        if DAYS[day.weekday()] not in quiet.days:
            continue
        start = _moment(tz, day, quiet.start)
        end = _moment(tz, day if quiet.end > quiet.start else day + timedelta(days=1), quiet.end)
        if start <= at < end:
            return end
    return None


def _moment(tz: ZoneInfo, day: date, clock: str) -> datetime:
    """A time of day in UTC. Where clocks skip it, as late as if they had not; where it comes twice, the first."""
    return datetime.combine(day, time.fromisoformat(clock), tz).astimezone(UTC)
