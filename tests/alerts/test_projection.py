"""When a window will be used up: against dates worked out by hand, month ends and clock changes included."""

from datetime import UTC, date, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.alerts.projection import by_weekday, linear, profile_of
from handlers.enforcer.calendar import bounds
from tests.support.ledger import examples

USD = 1_000_000_000
FLAT = (Fraction(1),) * 7
WORKDAYS = (Fraction(1),) * 5 + (Fraction(0),) * 2


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("start", "now", "end", "spent", "limit", "runs_out"),
    [
        # 12.5 days at 20 a day: 310 lasts 15.5 days.
        ("2030-03-01", "2030-03-13T12:00", "2030-04-01", 250, 310, "2030-03-16T12:00"),
        # Half of February is 14 days; 60 of 100 by then: 100 / (60 / 14) = 23 1/3 days.
        ("2030-02-01", "2030-02-15", "2030-03-01", 60, 100, "2030-02-24T08:00"),
        # A leap year's February has 29 days: 14.5 days are half, and half of the limit just lasts.
        ("2028-02-01", "2028-02-15T12:00", "2028-03-01", 50, 100, None),
        ("2028-02-01", "2028-02-15T12:00", "2028-03-01", 58, 100, "2028-02-26"),
        # The last day of a month of 31 days: 30 days for 99 of 100, then 7 h 16 m 21.8 s more.
        ("2030-01-01", "2030-01-31", "2030-02-01", 99, 100, "2030-01-31T07:16:21.818181"),
        # A day: 6 of 24 hours for a half.
        ("2030-03-13", "2030-03-13T06:00", "2030-03-14", 50, 100, "2030-03-13T12:00"),
        # What lasts exactly to the end lasts.
        ("2030-03-01", "2030-03-11", "2030-03-31", 100, 300, None),
        ("2030-03-01", "2030-03-11", "2030-03-31", 0, 300, None),
        ("2030-03-11", "2030-03-11", "2030-03-31", 5, 300, None),
    ],
)
def test_a_straight_line(start: str, now: str, end: str, spent: int, limit: int, runs_out: str | None) -> None:
    found = linear(since=at(start), now=at(now), end=at(end), spent=spent * USD, limit=limit * USD)
    assert found == (None if runs_out is None else at(runs_out))


def test_a_month_that_begins_with_a_weekend_is_not_thought_to_last() -> None:
    """June 2030 begins on a Saturday: by Monday evening one of its 20 working days is over, with 8% spent."""
    since, now, end = at("2030-06-01"), at("2030-06-04"), at("2030-07-01")
    assert linear(since=since, now=now, end=end, spent=8, limit=100) is None
    # 8 a working day: 100 lasts 12.5 of them. The twelfth is Tuesday 18 June; half of Wednesday is left.
    found = by_weekday(WORKDAYS, "UTC", since=since, now=now, end=end, spent=8, limit=100)
    assert found == at("2030-06-19T12:00")


def test_a_weekend_ahead_spends_nothing() -> None:
    """From Monday to Friday 50 of 60: the rest is spent on Monday, not on Saturday."""
    since, now, end = at("2030-03-11"), at("2030-03-16"), at("2030-04-08")
    found = by_weekday(WORKDAYS, "UTC", since=since, now=now, end=end, spent=50, limit=60)
    assert found == at("2030-03-19")  # All of Monday the 18th.
    assert linear(since=since, now=now, end=end, spent=50, limit=60) == at("2030-03-17")


def test_days_are_those_of_the_budgets_time_zone() -> None:
    """Vienna's 31 March 2030 has 23 hours; a flat week spends as much on it as on any other day."""
    since, _ = bounds("monthly", "Europe/Vienna", at("2030-03-20"))
    _, end = bounds("weekly", "Europe/Vienna", at("2030-04-03"))
    assert end is not None
    now = datetime(2030, 3, 30, 23, tzinfo=UTC)  # Midnight before the short day: 30 days are over.
    found = by_weekday(FLAT, "Europe/Vienna", since=since, now=now, end=end, spent=60, limit=63)
    assert found == datetime(2030, 4, 1, 10, tzinfo=UTC)  # One short day, then half a day of summer time.


def test_no_spending_on_the_days_so_far_is_a_straight_line() -> None:
    since, now, end = at("2030-06-01"), at("2030-06-03"), at("2030-07-01")
    found = by_weekday(WORKDAYS, "UTC", since=since, now=now, end=end, spent=10, limit=20)
    assert found == linear(since=since, now=now, end=end, spent=10, limit=20) == at("2030-06-05")


def test_a_profile_needs_two_of_each_weekday() -> None:
    today = date(2030, 3, 18)
    days = {today - timedelta(days=back): back for back in range(1, 14)}
    assert profile_of(days, today) is None
    days[today - timedelta(days=14)] = 28
    profile = profile_of(days, today)
    assert profile is not None
    assert profile[0] == Fraction(28 + 7, 2)  # The Mondays 7 and 14 days ago.
    assert profile[6] == Fraction(1 + 8, 2)
    assert profile_of({}, today) is None


@given(
    spent=st.integers(1, 10**15),
    limit=st.integers(1, 10**15),
    passed=st.integers(1, 30 * 86_400 - 1),
)
@examples(200)
def test_a_flat_week_is_a_straight_line(spent: int, limit: int, passed: int) -> None:
    since, end = at("2030-06-01"), at("2030-07-01")
    now = since + timedelta(seconds=passed)
    if spent >= limit:
        return
    straight = linear(since=since, now=now, end=end, spent=spent, limit=limit)
    shaped = by_weekday(FLAT, "UTC", since=since, now=now, end=end, spent=spent, limit=limit)
    assert (straight is None) == (shaped is None)
    if straight is not None and shaped is not None:
        assert now <= straight < end
        assert abs(straight - shaped) <= timedelta(microseconds=2)
