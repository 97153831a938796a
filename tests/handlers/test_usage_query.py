"""get_usage and aggregate_usage: pages, filters, calendar buckets, and rollups that say what events say."""

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest

from handlers import cursor
from handlers.context import Context, Services
from handlers.tracker import query
from handlers.tracker.query import aggregate_usage, get_usage
from schemas.usage import AggregateUsage, Dimension, GetUsage, Interval, UsageFilters
from tests.support.services import apply_usage, checked, context, gpt, refusal

NOON = datetime(2025, 3, 10, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def asked(start: datetime = NOON - DAY, end: datetime = NOON + DAY, **fields: Any) -> AggregateUsage:
    return AggregateUsage(start=start, end=end, **fields)


async def test_events_come_newest_first_in_pages(ctx: Context, services: Services) -> None:
    same = NOON + timedelta(minutes=1)
    await apply_usage(services, gpt(id="a", timestamp=NOON), *[gpt(id=i, timestamp=same) for i in ("b", "c", "d")])
    seen: list[str] = []
    token: str | None = None
    for _ in range(3):
        found = await get_usage(ctx, GetUsage(limit=2, cursor=token))
        seen += [event.id for event in found.events]
        token = found.next_cursor
        if token is None:
            break
    assert seen == ["d", "c", "b", "a"]
    assert (await get_usage(context(services, org="other"), GetUsage())).events == []


async def test_an_event_is_shown_as_it_was_applied(ctx: Context, services: Services) -> None:
    await apply_usage(
        services,
        gpt(id="full", timestamp=NOON, team_id="t1", tags={"k": "v"}, metadata={"n": [1]}, latency_ms=12.5),
        gpt(id="free", timestamp=NOON - DAY, provider="nobody", model="nothing"),
    )
    full, free = (await get_usage(ctx, GetUsage())).events
    assert (full.timestamp, full.total_tokens, full.cost, full.cost_status) == (NOON, 1_100, "0.0035", "priced")
    assert (full.tags, full.metadata, full.team_id, full.latency_ms) == ({"k": "v"}, {"n": [1]}, "t1", 12.5)
    assert [(i.tokens, i.rate_per_million, i.cost) for i in full.line_items] == [
        (1_000, "2.5", "0.0025"),
        (100, "10", "0.001"),
    ]
    assert (free.cost, free.cost_status, free.line_items, free.tags) == (None, "unpriced", [], {})


async def test_ranges_are_half_open_and_filters_know_one_star(ctx: Context, services: Services) -> None:
    await apply_usage(
        services,
        gpt(id="1", timestamp=NOON, session_id="s_1"),
        gpt(id="2", timestamp=NOON + DAY, session_id="sx1", model="gpt-4o-mini"),
    )

    async def ids(**fields: Any) -> set[str]:
        return {event.id for event in (await get_usage(ctx, GetUsage(**fields))).events}

    assert await ids(start=NOON, end=NOON + DAY) == {"1"}
    assert await ids(start=NOON + DAY) == {"2"}
    assert await ids(end=NOON) == set()
    assert await ids(filters=UsageFilters(session_id="s_1")) == {"1"}
    assert await ids(filters=UsageFilters(model="gpt-4o*")) == {"1", "2"}
    assert await ids(filters=UsageFilters(model="gpt-4%")) == set()
    assert await ids(filters=UsageFilters(user_id="*")) == set()
    assert await ids(filters=UsageFilters(cost_status="priced", status="ok", model="gpt-4o")) == {"1"}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (GetUsage(start=NOON, end=NOON), "end"),
        (GetUsage(cursor="nonsense"), "cursor"),
        (GetUsage(start=datetime.fromisoformat("0001-01-01T00:00:00+14:00")), "start"),
        (asked(end=NOON - 2 * DAY), "end"),
        (asked(timezone="Nowhere/Land"), "timezone"),
        (asked(end=datetime.fromisoformat("9999-12-31T23:59:00-14:00")), "end"),
    ],
)
async def test_ranges_that_make_no_sense_are_refused(ctx: Context, request_: Any, field: str) -> None:
    work = get_usage(ctx, request_) if isinstance(request_, GetUsage) else aggregate_usage(ctx, request_)
    error = await refusal(work)
    assert (error.code, error.field) == ("invalid_request", field)


async def test_a_page_of_large_events_fits_a_message(
    ctx: Context, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor, "PAGE_BYTES_MAX", 20_000)
    big = {"text": "x" * 8_000}
    await apply_usage(services, *[gpt(id=str(i), timestamp=NOON, metadata=big) for i in range(3)])
    first = await get_usage(ctx, GetUsage())
    assert ([e.id for e in first.events], first.next_cursor is None) == (["2"], False) or len(first.events) == 2
    rest = await get_usage(ctx, GetUsage(cursor=first.next_cursor))
    assert len(first.events) + len(rest.events) == 3


async def _spread(services: Services) -> None:
    events = [
        gpt(
            prompt=1_000 + n,
            timestamp=NOON + timedelta(minutes=37 * n),
            team_id=f"t{n % 3}" if n % 4 else None,
            model=("gpt-4o", "gpt-4o-mini", "unheard-of")[n % 3],
            status=("ok", "error")[n % 5 == 0],
            latency_ms=None if n % 2 else n * 1.5,
            final=n % 7 != 0,
            session_id=f"s{n}",
            user_id=f"u{n % 2}",
        )
        for n in range(60)
    ]
    await apply_usage(services, *events)


async def test_rollups_say_what_the_events_say(ctx: Context, services: Services) -> None:
    await checked(services, provider="openai", model="gpt-4o", prompt_tokens=1, max_completion_tokens=1, request_id="r")
    await apply_usage(services, gpt(request_id="r", timestamp=NOON))
    await _spread(services)
    rolled = None
    for interval in set(get_args(Interval)) - {"minute"}:
        for group_by in ([], ["team_id"], ["model", "user_id"], [*get_args(Dimension)][:6], [*get_args(Dimension)][6:]):
            request: dict[str, Any] = {"interval": interval, "group_by": group_by, "timezone": "Asia/Kathmandu"}
            rolled = await aggregate_usage(ctx, asked(end=NOON + 3 * DAY, **request))
            summed = await aggregate_usage(ctx, asked(NOON - DAY - timedelta(seconds=1), end=NOON + 3 * DAY, **request))
            assert (rolled.source, summed.source) == ("rollups", "events")
            if interval != "total":
                assert rolled.rows == summed.rows
            assert [(r.group, r.cost, r.requests) for r in rolled.rows] == [
                (r.group, r.cost, r.requests) for r in summed.rows
            ]
            assert rolled.totals.requests == sum(r.requests for r in rolled.rows) == summed.totals.requests
            assert rolled.totals.total_tokens == sum(r.total_tokens for r in rolled.rows)
    assert rolled is not None
    assert (rolled.totals.errors, rolled.totals.unpriced_requests, rolled.totals.reserved_requests) == (10, 17, 1)


async def test_the_source_is_the_events_where_rollups_cannot_say(ctx: Context, services: Services) -> None:
    await _spread(services)
    assert (await aggregate_usage(ctx, asked(interval="minute"))).source == "events"
    assert (await aggregate_usage(ctx, asked(filters=UsageFilters(session_id="s1")))).totals.requests == 1
    assert (await aggregate_usage(ctx, asked(filters=UsageFilters(team_id="t1")))).source == "rollups"
    assert (await aggregate_usage(ctx, asked(end=NOON + timedelta(minutes=7)))).source == "events"
    minutes = await aggregate_usage(ctx, asked(interval="minute", end=NOON + timedelta(hours=1)))
    assert [r.window for r in minutes.rows] == ["2025-03-10T12:00:00Z", "2025-03-10T12:37:00Z"]


async def test_buckets_follow_the_calendar_of_the_zone(ctx: Context, services: Services) -> None:
    times = [
        datetime(2025, 3, 29, 22, 59, tzinfo=UTC),  # Saturday 23:59 in Vienna
        datetime(2025, 3, 29, 23, 0, tzinfo=UTC),  # Sunday 00:00, the day with 23 hours
        datetime(2025, 3, 30, 21, 59, tzinfo=UTC),  # Sunday 23:59
        datetime(2025, 3, 30, 22, 0, tzinfo=UTC),  # Monday 00:00
    ]
    await apply_usage(services, *[gpt(timestamp=at) for at in times])

    async def windows(interval: str, timezone: str = "Europe/Vienna") -> list[tuple[str, int]]:
        start, end = times[0] - 40 * DAY, times[0] + 5 * DAY
        start, end = start.replace(minute=0), end.replace(minute=0)
        found = await aggregate_usage(ctx, asked(start, end, interval=interval, timezone=timezone))
        return [(row.window, row.requests) for row in found.rows]

    assert await windows("day") == [
        ("2025-03-28T23:00:00Z", 1),
        ("2025-03-29T23:00:00Z", 2),
        ("2025-03-30T22:00:00Z", 1),
    ]
    assert await windows("week") == [("2025-03-23T23:00:00Z", 3), ("2025-03-30T22:00:00Z", 1)]
    assert await windows("month") == [("2025-02-28T23:00:00Z", 4)]
    assert await windows("month", "UTC") == [("2025-03-01T00:00:00Z", 4)]
    assert [n for _, n in await windows("hour", "Asia/Kathmandu")] == [2, 2]  # 04:44 and 04:45
    assert await windows("total") == [("2025-02-17T22:00:00Z", 4)]


async def test_the_largest_rows_are_kept_and_totals_cover_everything(ctx: Context, services: Services) -> None:
    await apply_usage(services, *[gpt(prompt=1_000 * n, team_id=f"t{n}", timestamp=NOON) for n in range(1, 5)])
    found = await aggregate_usage(ctx, asked(group_by=["team_id", "team_id"], limit=2))
    assert ([r.group for r in found.rows], found.truncated) == ([{"team_id": "t4"}, {"team_id": "t3"}], True)
    assert (found.totals.requests, found.totals.cost, found.totals.group) == (4, "0.029", {})
    whole = await aggregate_usage(ctx, asked(group_by=["team_id"], limit=4))
    assert (len(whole.rows), whole.truncated) == (4, False)


async def test_no_usage_is_no_rows_and_totals_of_nothing(ctx: Context) -> None:
    found = await aggregate_usage(ctx, asked(group_by=["model"]))
    assert (found.rows, found.totals.requests, found.totals.cost, found.totals.latency_ms_mean) == ([], 0, "0", None)
    assert found.totals.errors == found.totals.unpriced_requests == 0


async def test_a_zone_that_only_the_database_lacks_is_refused_too(
    ctx: Context, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await apply_usage(services, gpt(timestamp=NOON))
    monkeypatch.setattr(query, "zone", str)
    error = await refusal(aggregate_usage(ctx, asked(interval="day", timezone="Nowhere/Land")))
    assert (error.code, error.field) == ("invalid_request", "timezone")
