"""R14 and the calendar: what is carried over, once, and windows that tile time in every zone."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handlers.enforcer.calendar import bounds, periods_between
from handlers.enforcer.status import get_budget_status
from schemas.budget import GetBudgetStatus
from tests.support.ledger import CENT, START, USD, World, examples

PERIODS = ("minute", "hourly", "daily", "weekly", "monthly", "yearly")
# Zones that shift at or around midnight, by half an hour, by two hours, or skipped a day; and the ordinary ones.
ODD_ZONES = (
    "Africa/Cairo",
    "America/Asuncion",
    "America/Havana",
    "America/Nuuk",
    "America/Santiago",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Antarctica/Troll",
    "Asia/Beirut",
    "Asia/Gaza",
    "Asia/Kathmandu",
    "Asia/Tehran",
    "Atlantic/Azores",
    "Australia/Lord_Howe",
    "Europe/Vienna",
    "Pacific/Apia",
    "Pacific/Chatham",
    "UTC",
)


async def _carries(world: World, budget: object) -> list[tuple[int, int]]:
    rows = await world.windows(budget)  # pyright: ignore[reportArgumentType]
    return [(row["starts_at"].day, row["carry"]) for row in rows]


# R14 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "percent", "carry"),
    [("none", 0, 0), ("full", 0, 60 * CENT), ("capped", 50, 50 * CENT), ("capped", 80, 60 * CENT), ("capped", 0, 0)],
)
async def test_r14_what_is_left_is_carried_over_as_the_policy_says(
    world: World, policy: str, percent: int, carry: int
) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, period="daily", rollover_policy=policy, rollover_percent=percent)
    await one.track(completion_tokens=40)
    await world.wait(days=1)

    decision = await two.submit(max_completion_tokens=100 + carry // CENT)

    assert decision.approved
    assert decision.budgets[0].remaining == "0"
    assert (await world.windows(budget))[-1]["carry"] == carry
    await one.deny(max_completion_tokens=1)


async def test_r14_a_window_that_nobody_opened_yet_is_shown_with_what_it_will_get(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, period="daily", rollover_policy="full")
    await one.track(completion_tokens=40)
    await world.wait(days=2)
    asked = GetBudgetStatus(budget_id=budget.budget_id)

    (before,) = (await get_budget_status(two.context, asked)).budgets
    assert len(await world.windows(budget)) == 1
    decision = await two.submit(max_completion_tokens=1, reserve=False)
    (after,) = (await get_budget_status(two.context, asked)).budgets

    assert before.window == after.window == decision.budgets[0]
    assert (before.window.base_limit, before.window.limit, before.window.remaining) == ("1", "2.6", "2.6")


async def test_r14_live_reservations_count_as_spent_and_settling_them_later_changes_nothing(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, period="daily", rollover_policy="full")
    held = await one.hold(max_completion_tokens=70)
    await world.wait(days=1)
    await two.hold(max_completion_tokens=1)

    await one.track(completion_tokens=10, reservation_id=held)
    await one.track(completion_tokens=5, timestamp=START)

    assert await _carries(world, budget) == [(13, 0), (14, 30 * CENT)]


async def test_r14_what_is_left_is_counted_once_however_many_agents_open_the_window(world: World) -> None:
    budget = await world.budget(limit=1, period="daily", rollover_policy="full")
    agents = [*world.agents, await world.agent(), await world.agent()]
    await agents[0].track(completion_tokens=40)
    await world.wait(days=1)

    decisions = await asyncio.gather(*(agent.submit(max_completion_tokens=20) for agent in agents for _ in range(4)))

    assert sum(d.approved for d in decisions) == 8
    assert await _carries(world, budget) == [(13, 0), (14, 60 * CENT)]


@pytest.mark.parametrize(("policy", "carry"), [("full", 60 + 3 * 100), ("capped", 50), ("none", 0)])
async def test_r14_periods_in_which_nobody_asked_kept_their_whole_limit(world: World, policy: str, carry: int) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, period="daily", rollover_policy=policy, rollover_percent=50)
    await one.track(completion_tokens=40)
    await world.wait(days=4)

    await two.hold(max_completion_tokens=1)

    assert (await _carries(world, budget))[-1] == (17, carry * CENT)


async def test_r14_what_was_carried_over_is_carried_on_and_overspending_is_not_taken_off(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=1, period="daily", rollover_policy="full")
    for spend in (40, 10, 400, 0):
        await one.track(completion_tokens=spend or 1)
        await world.wait(days=1)
    await one.hold(max_completion_tokens=1)

    assert [carry // CENT for _, carry in await _carries(world, budget)] == [0, 60, 150, 0, 99]


async def test_r14_a_late_event_for_a_day_long_past_does_not_change_what_was_carried(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=1, period="daily", rollover_policy="full")
    await world.wait(days=2)
    await one.hold(max_completion_tokens=1)
    before = await _carries(world, budget)

    await one.track(completion_tokens=50, timestamp=START + timedelta(days=1))

    assert before == [(15, 2 * USD)]
    assert (await _carries(world, budget))[-1] == before[0]


async def test_r14_the_carry_counts_in_the_decision_with_the_limit_of_now(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, period="daily", rollover_policy="full")
    await one.track(completion_tokens=40)
    await world.wait(days=1)
    await one.hold(max_completion_tokens=160)
    await world.change(budget, base_limit=USD + 5 * CENT)

    denied = await two.deny(max_completion_tokens=6)
    assert (denied.budgets[0].base_limit, denied.budgets[0].limit) == ("1.05", "1.65")
    await two.hold(max_completion_tokens=5)


async def test_each_entity_of_a_budget_for_every_entity_has_a_window_of_its_own(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(type="user", limit=1, period="daily", rollover_policy="full")
    await one.track(user_id="a", completion_tokens=40)
    await two.track(user_id="b", completion_tokens=70)
    await world.wait(days=1)
    await one.hold(user_id="a", max_completion_tokens=160)
    await two.hold(user_id="b", max_completion_tokens=130)
    await two.deny(user_id="b", max_completion_tokens=1)

    found = {(w["entity_id"], w["carry"]) for w in (await world.windows(budget))[2:]}
    assert found == {(world.key("user", "a"), 60 * CENT), (world.key("user", "b"), 30 * CENT)}


@pytest.mark.parametrize(
    ("period", "now", "starts", "ends"),
    [
        ("monthly", "2032-02-29T12:00", "2032-02-01T00:00", "2032-03-01T00:00"),
        ("monthly", "2031-01-31T23:30", "2031-02-01T00:00", "2031-03-01T00:00"),
        ("daily", "2032-02-28T23:30", "2032-02-29T00:00", "2032-03-01T00:00"),
        ("yearly", "2031-12-31T23:30", "2032-01-01T00:00", "2033-01-01T00:00"),
        ("weekly", "2031-01-01T12:00", "2030-12-30T00:00", "2031-01-06T00:00"),
        ("daily", "2031-03-30T12:00", "2031-03-30T00:00", "2031-03-31T00:00"),
        ("daily", "2031-10-26T12:00", "2031-10-26T00:00", "2031-10-27T00:00"),
    ],
    ids=["leap month", "month end", "leap day", "year end", "week over new year", "23 hours", "25 hours"],
)
async def test_a_decision_falls_into_the_calendar_window_of_the_budgets_zone(
    world: World, period: str, now: str, starts: str, ends: str
) -> None:
    one, _ = world.agents
    zone = ZoneInfo("Europe/Vienna")
    await world.go_to(datetime.fromisoformat(now).replace(tzinfo=UTC))
    budget = await world.budget(limit=1, period=period, timezone="Europe/Vienna")

    decision = await one.submit(max_completion_tokens=1)

    (window,) = await world.windows(budget)
    local = [datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC) for text in (starts, ends)]
    assert [window["starts_at"], window["ends_at"]] == local
    assert decision.budgets[0].resets_at == local[1]


# The calendar -----------------------------------------------------------------------------------------------------


def test_days_of_a_time_change_have_23_and_25_hours() -> None:
    for at, hours in ((datetime(2031, 3, 30, 12, tzinfo=UTC), 23), (datetime(2031, 10, 26, 12, tzinfo=UTC), 25)):
        start, end = bounds("daily", "Europe/Vienna", at)
        assert end is not None
        assert end - start == timedelta(hours=hours)


def test_a_total_window_holds_all_time() -> None:
    start, end = bounds("total", "Europe/Vienna", datetime(2031, 1, 1, tzinfo=UTC))
    assert start <= datetime(2000, 1, 1, tzinfo=UTC)
    assert end is None


_places = {name for name in available_timezones() if "/" in name and not name.startswith(("posix/", "right/"))}
_zones = st.one_of(st.sampled_from(ODD_ZONES), st.sampled_from(sorted(_places)))
_times = st.datetimes(datetime(2015, 1, 1), datetime(2045, 1, 1), timezones=st.just(UTC))


def _tiles(period: str, zone: str, at: datetime) -> None:
    start, end = bounds(period, zone, at)
    assert end is not None
    assert start <= at < end
    assert bounds(period, zone, start) == (start, end)
    assert bounds(period, zone, end - timedelta(microseconds=1)) == (start, end)
    assert bounds(period, zone, start - timedelta(microseconds=1))[1] == start
    assert bounds(period, zone, end)[0] == end
    assert periods_between(period, zone, start, start) == 0


@examples(400)
@given(st.sampled_from(PERIODS), _zones, _times)
@example("daily", "America/Sao_Paulo", datetime(2018, 11, 4, 2, 59, tzinfo=UTC))
@example("daily", "America/Havana", datetime(2031, 11, 2, 4, 30, tzinfo=UTC))
@example("hourly", "Australia/Lord_Howe", datetime(2031, 4, 5, 15, 15, tzinfo=UTC))
@example("hourly", "Antarctica/Troll", datetime(2031, 10, 26, 1, 30, tzinfo=UTC))
@example("hourly", "Pacific/Chatham", datetime(2031, 9, 27, 14, 5, tzinfo=UTC))
@example("weekly", "America/Nuuk", datetime(2031, 10, 26, 0, 30, tzinfo=UTC))
def test_windows_tile_time_and_hold_their_instant(period: str, zone: str, at: datetime) -> None:
    _tiles(period, zone, at)


@examples(300)
@given(st.sampled_from(("hourly", "daily", "weekly")), st.data())
def test_windows_tile_time_around_every_change_of_the_clocks(period: str, data: st.DataObject) -> None:
    zone = data.draw(_zones)
    day = data.draw(st.dates(date(2015, 1, 1), date(2040, 1, 1)))
    change = _next_change(ZoneInfo(zone), day)
    if change is not None:
        minutes = data.draw(st.integers(-26 * 60, 26 * 60))
        _tiles(period, zone, change + timedelta(minutes=minutes))
        _tiles(period, zone, change)


def _next_change(zone: ZoneInfo, day: date) -> datetime | None:
    """The next change of the offset from UTC within a year, found by halving."""
    low = datetime(day.year, day.month, day.day, tzinfo=UTC)
    for _ in range(53):
        high = low + timedelta(days=7)
        if low.astimezone(zone).utcoffset() != high.astimezone(zone).utcoffset():
            break
        low = high
    else:
        return None
    before = low.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) / 2
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high.replace(microsecond=0)


@examples(200)
@given(st.sampled_from(PERIODS), _zones, _times, st.integers(1, 40))
def test_periods_between_counts_the_windows_from_one_to_another(
    period: str, zone: str, at: datetime, steps: int
) -> None:
    first, end = bounds(period, zone, at)
    later = first
    for _ in range(steps):
        assert end is not None
        later, end = bounds(period, zone, end)
    if period == "hourly" and zone in ("Antarctica/Troll", "Australia/Lord_Howe"):
        assert abs(periods_between(period, zone, first, later) - steps) <= 2
    else:
        assert periods_between(period, zone, first, later) == steps
