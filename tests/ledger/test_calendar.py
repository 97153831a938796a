"""The calendar against brute force: every quarter of an hour of 400 days in eight zones, read off the wall clock.

The expected windows know nothing of how bounds are computed: a window ends where the wall clock says that another
period has begun. The 400 days hold a whole leap year, from before its first day to after its last.
"""

import itertools
import random
from bisect import bisect_right
from collections.abc import Callable, Hashable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import pytest

from handlers.enforcer.calendar import bounds, periods_between

FIRST = datetime(2031, 12, 20, tzinfo=UTC)
DAYS = 400
QUARTER = timedelta(minutes=15)
HOUR = timedelta(hours=1)
INSTANT = timedelta(microseconds=1)
# How long days are in each zone: shifts of an hour, of half an hour, at midnight, at 2:45, and none.
DAY_HOURS = {
    "UTC": {24},
    "Europe/Vienna": {23, 24, 25},
    "America/New_York": {23, 24, 25},
    "America/Santiago": {23, 24, 25},
    "America/Havana": {23, 24, 25},
    "Australia/Lord_Howe": {23.5, 24, 24.5},
    "Pacific/Chatham": {23, 24, 25},
    "Asia/Kathmandu": {24},
}
LABELS: dict[str, Callable[[datetime], Hashable]] = {
    "daily": lambda local: local.date(),
    "weekly": lambda local: local.isocalendar()[:2],
    "monthly": lambda local: (local.year, local.month),
    "yearly": lambda local: local.year,
}
PERIODS = ("hourly", *LABELS)


@lru_cache
def wall(zone: str) -> list[tuple[datetime, datetime]]:
    """Every quarter of an hour: the instant, and what the wall clock says."""
    tz = ZoneInfo(zone)
    times = [FIRST + n * QUARTER for n in range(DAYS * 24 * 4 + 1)]
    return [(at, at.astimezone(tz)) for at in times]


def begins(period: str, before: datetime, now: datetime) -> bool:
    """Whether the wall clock, a quarter of an hour ago ``before``, begins another period by saying ``now``."""
    if period != "hourly":
        return LABELS[period](before) != LABELS[period](now)
    if now.minute == 0:
        return True
    # The full hour itself was skipped, by a shift of less than an hour: at Lord Howe 1:59 is followed by 2:30.
    shift = (now.utcoffset() or timedelta()) - (before.utcoffset() or timedelta())
    return shift % HOUR != timedelta() and now.hour != before.hour


@lru_cache
def edges(period: str, zone: str) -> list[datetime]:
    """Where a window ends and the next begins."""
    return [
        now for (_, before), (now, local) in itertools.pairwise(wall(zone)) if begins(period, before, local)
    ]  # fmt: skip


def changes(zone: str) -> list[datetime]:
    """Where the clocks change."""
    return [
        now
        for (_, before), (now, local) in itertools.pairwise(wall(zone))
        if before.utcoffset() != local.utcoffset()
    ]  # fmt: skip


@pytest.mark.parametrize("zone", DAY_HOURS)
@pytest.mark.parametrize("period", PERIODS)
def test_windows_are_those_of_the_wall_clock_and_tile_all_time(period: str, zone: str) -> None:
    found = edges(period, zone)
    for start, end in itertools.pairwise(found):
        assert bounds(period, zone, start) == (start, end)
    some = random.Random(f"{period} {zone}").sample(range(1, len(found)), min(400, len(found) - 1))
    for start, end in ((found[i - 1], found[i]) for i in some):
        assert bounds(period, zone, end - INSTANT) == (start, end)
        assert bounds(period, zone, end)[0] == end


@pytest.mark.parametrize("zone", DAY_HOURS)
@pytest.mark.parametrize("period", PERIODS)
def test_any_instant_to_the_microsecond_is_in_exactly_one_window(period: str, zone: str) -> None:
    found = edges(period, zone)
    chance = random.Random(f"instants {period} {zone}")
    length = (found[-1] - found[0]) // INSTANT
    near = [at + offset for at in changes(zone) for offset in (-INSTANT, timedelta(), INSTANT, HOUR, -HOUR)]
    for at in [*near, *(found[0] + chance.randrange(length) * INSTANT for _ in range(500))]:
        i = bisect_right(found, at)
        if 0 < i < len(found):
            expected = (found[i - 1], found[i])
            assert bounds(period, zone, at) == expected
            # Whatever zone the instant is written in.
            assert bounds(period, zone, at.astimezone(ZoneInfo("Asia/Tokyo"))) == expected


@pytest.mark.parametrize("zone", DAY_HOURS)
def test_days_begin_at_midnight_or_where_it_is_skipped_and_last_23_to_25_hours(zone: str) -> None:
    found = edges("daily", zone)
    tz = ZoneInfo(zone)
    assert {(b - a) / HOUR for a, b in itertools.pairwise(found)} == DAY_HOURS[zone]
    skipped = [at for at in found if (local := at.astimezone(tz)).hour or local.minute]
    assert set(skipped) <= set(changes(zone))
    assert bool(skipped) == (zone in ("America/Santiago", "America/Havana"))
    assert {at.astimezone(tz).weekday() for at in edges("weekly", zone)} == {0}
    assert {at.astimezone(tz).day for at in edges("monthly", zone)} == {1}


@pytest.mark.parametrize("zone", DAY_HOURS)
def test_hours_last_an_hour_except_where_clocks_shift_by_half_of_one(zone: str) -> None:
    lengths = {(b - a) / HOUR for a, b in itertools.pairwise(edges("hourly", zone))}
    assert lengths == ({0.5, 1, 1.5} if zone == "Australia/Lord_Howe" else {1})


@pytest.mark.parametrize("zone", DAY_HOURS)
def test_minutes_tile_time_around_every_change_of_the_clocks(zone: str) -> None:
    tz = ZoneInfo(zone)
    for change in changes(zone) or [FIRST]:
        at = change - 3 * HOUR
        while at < change + 3 * HOUR:
            start, end = bounds("minute", zone, at + timedelta(seconds=59, microseconds=999_999))
            assert (start, end) == (at, at + timedelta(minutes=1))
            assert at.astimezone(tz).second == 0
            at += timedelta(minutes=1)


@pytest.mark.parametrize(
    ("period", "zone"),
    [(p, z) for p in PERIODS for z in DAY_HOURS],
)
def test_the_number_of_windows_between_two_is_counted_off(period: str, zone: str) -> None:
    found = edges(period, zone)
    chance = random.Random(f"between {period} {zone}")
    pairs = [(chance.randrange(len(found)), chance.randrange(len(found))) for _ in range(500)]
    changed = [bisect_right(found, at) for at in changes(zone)]
    pairs += [(i - 1, i) for i in range(1, len(found)) if i < 200 or i in changed]
    pairs += [(i - back, i + on) for i in changed for back in (1, 2, 3) for on in (0, 1, 2)]
    for i, j in pairs:
        if 0 <= i <= j < len(found):
            assert periods_between(period, zone, found[i], found[j]) == j - i
