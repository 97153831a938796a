"""When a window will be used up if spending goes on as it has. Pure, in whole microseconds and fractions.

A straight line through what was spent so far; where enough days are known, spending is spread over the week as it
usually is, so that a month that begins with a weekend is not thought to last.
"""

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import Final

from handlers.enforcer.calendar import bounds, zone

# Every weekday has been seen twice.
PROFILE_DAYS_MIN: Final = 14
PROFILE_DAYS_MAX: Final = 35
_MICROSECOND: Final = timedelta(microseconds=1)
# What an average weekday spends, Monday first, in any one measure.
Profile = tuple[Fraction, ...]


def linear(*, since: datetime, now: datetime, end: datetime, spent: int, limit: int) -> datetime | None:
    """When ``limit`` is reached at the pace from ``since`` to ``now``; None where that is not before ``end``."""
    elapsed, total = (now - since) // _MICROSECOND, (end - since) // _MICROSECOND
    if spent <= 0 or elapsed <= 0 or limit * elapsed >= spent * total:
        return None
    return since + max(now - since, _MICROSECOND * (limit * elapsed // spent))


def by_weekday(
    profile: Profile, timezone: str, *, since: datetime, now: datetime, end: datetime, spent: int, limit: int
) -> datetime | None:
    """When ``limit`` is reached if spending goes on in the shape of ``profile``; None where not before ``end``.

    Falls back to the straight line where the profile knows of no spending on the days that have passed.
    """
    done = sum((weight for _, _, weight in _parts(profile, timezone, since, now)), Fraction(0))
    if not done or spent <= 0:
        return linear(since=since, now=now, end=end, spent=spent, limit=limit)
    left = done * limit / spent - done
    for start, until, weight in _parts(profile, timezone, now, end):
        if weight and weight > left:
            share = max(left, Fraction(0)) / weight
            return start + _MICROSECOND * int(share * ((until - start) // _MICROSECOND))
        left -= weight
    return None


def profile_of(days: Mapping[date, int], today: date) -> Profile | None:
    """The average of each weekday in the days before ``today``; None where too few are known."""
    known = [day for day, amount in days.items() if amount > 0 and day < today]
    if not known or (today - min(known)).days < PROFILE_DAYS_MIN:
        return None
    sums, counts = [0] * 7, [0] * 7
    for back in range(1, (today - min(known)).days + 1):
        day = today - timedelta(days=back)
        sums[day.weekday()] += max(0, days.get(day, 0))
        counts[day.weekday()] += 1
    return tuple(Fraction(total, count) for total, count in zip(sums, counts, strict=True))


def _parts(
    profile: Profile, timezone: str, since: datetime, until: datetime
) -> list[tuple[datetime, datetime, Fraction]]:
    """The local days of [since, until), cut at both ends, with what the profile expects of each."""
    parts: list[tuple[datetime, datetime, Fraction]] = []
    tz = zone(timezone)
    while since < until:
        start, end = bounds("daily", timezone, since)
        assert end is not None
        cut = min(end, until)
        share = Fraction((cut - since) // _MICROSECOND, (end - start) // _MICROSECOND)
        parts.append((since, cut, profile[start.astimezone(tz).weekday()] * share))
        since = cut
    return parts
