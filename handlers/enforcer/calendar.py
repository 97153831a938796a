"""Windows are calendar windows in the budget's own time zone: a month is a month, a DST day has 23 or 25 hours."""

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from schemas.errors import invalid

# Found in a zone folder, but not a place: they mean something else on every host, or nothing to PostgreSQL.
HOST_ZONES: Final = frozenset({"Factory", "localtime", "posixrules"})
_NONE: Final = timedelta(0)
_HOUR: Final = timedelta(hours=1)
_STEP: Final = timedelta(minutes=15)
_INSTANT: Final = timedelta(microseconds=1)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
Bounds = tuple[datetime, datetime | None]


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo:
    """The zone ``name``. Raises SignalError naming the field ``timezone``."""
    try:
        if name in HOST_ZONES or name.startswith(("posix/", "right/")):
            raise ValueError
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise invalid(f"'{name[:64]}' is not an IANA time zone such as 'Europe/Vienna'", field="timezone") from None


def bounds(period: str, timezone: str, at: datetime) -> Bounds:
    """Start and end (exclusive, UTC) of the window that holds ``at``; a ``total`` window never ends."""
    if period == "total":
        return EPOCH, None
    if period == "minute":
        start = at.astimezone(UTC).replace(second=0, microsecond=0)
        return start, start + timedelta(minutes=1)
    if period == "hourly":
        return _hour(zone(timezone), at)
    return _days(period, zone(timezone), at)


def periods_between(period: str, timezone: str, earlier: datetime, later: datetime) -> int:
    """How many windows lie from the one starting at ``earlier`` to the one starting at ``later``."""
    if period == "minute":
        return round((later - earlier).total_seconds() / 60)
    if period == "hourly":
        return round((later - earlier + _part_of_an_hour(zone(timezone), earlier, later)) / _HOUR)
    first, last = (t.astimezone(zone(timezone)).date() for t in (earlier, later))
    if period == "daily":
        return (last - first).days
    if period == "weekly":
        return (last - first).days // 7
    months = (last.year - first.year) * 12 + last.month - first.month
    return months if period == "monthly" else months // 12


def _part_of_an_hour(tz: ZoneInfo, earlier: datetime, later: datetime) -> timedelta:
    """By how much shifts of half an hour made an hour between two starts of hours shorter (or longer: negative)."""
    # An hour may begin with such a shift, which makes itself shorter, not the one before.
    before, after = ((t - _INSTANT).astimezone(tz).utcoffset() or _NONE for t in (earlier, later))
    return after - before - int((after - before) / _HOUR) * _HOUR


def _hour(tz: ZoneInfo, at: datetime) -> Bounds:
    """Hours of the wall clock. Where a zone shifts by half an hour, one hour is shorter or longer than the others."""
    start = _hour_start(tz, at)
    end = start + _STEP
    while _hour_start(tz, end) <= start:
        end += _STEP
    return start, _hour_start(tz, end)


def _hour_start(tz: ZoneInfo, at: datetime) -> datetime:
    local = at.astimezone(tz)
    start = at - timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    shift = (local.utcoffset() or _NONE) - (start.astimezone(tz).utcoffset() or _NONE)
    if not shift % _HOUR:
        return start.astimezone(UTC)  # Also where clocks change within an hour, as in the Chatham Islands at 2:45.
    return local.replace(minute=0, second=0, microsecond=0).astimezone(UTC)


def _days(period: str, tz: ZoneInfo, at: datetime) -> Bounds:
    today = at.astimezone(tz).date()
    if period == "daily":
        first, following = today, today + timedelta(days=1)
    elif period == "weekly":
        first = today - timedelta(days=today.weekday())
        following = first + timedelta(days=7)
    elif period == "monthly":
        first = today.replace(day=1)
        following = (first + timedelta(days=32)).replace(day=1)
    else:
        first, following = today.replace(month=1, day=1), today.replace(year=today.year + 1, month=1, day=1)
    return _midnight(tz, first), _midnight(tz, following)


def _midnight(tz: ZoneInfo, day: date) -> datetime:
    """The first instant of a local day, also where midnight itself does not exist or comes twice."""
    return datetime(day.year, day.month, day.day, tzinfo=tz).astimezone(UTC)
