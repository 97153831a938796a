"""Quiet hours on the wall clock of their zone, over changes of the clock; what waited comes as one message."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from handlers.alerts.quiet_hours import quiet_until, waits
from handlers.context import Services
from schemas.channel import QuietHours
from store.deliveries import DeliveryRow, Traffic
from tests.delivery.conftest import (
    SECRET,
    all_are,
    deliveries,
    delivering,
    go_to,
    new_channel,
    tell,
)
from tests.delivery.servers import MailServer, Receiver
from tests.support.polling import eventually

NIGHT = QuietHours(start="22:00", end="07:00", timezone="Europe/Vienna")
ROUND_THE_CLOCK = QuietHours(start="00:00", end="00:00", days=["saturday", "sunday"], timezone="Europe/Vienna")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("quiet", "at", "until"),
    [
        (NIGHT, "2027-01-12T20:59:59", None),
        (NIGHT, "2027-01-12T21:00", "2027-01-13T06:00"),
        (NIGHT, "2027-01-13T05:59:59", "2027-01-13T06:00"),
        (NIGHT, "2027-01-13T06:00", None),
        (NIGHT, "2027-07-12T20:00", "2027-07-13T05:00"),  # Summer time: an hour earlier in UTC.
        (NIGHT, "2027-03-27T21:00", "2027-03-28T05:00"),  # The night of 23 hours' day is one hour shorter.
        (NIGHT, "2027-10-30T20:00", "2027-10-31T06:00"),  # And in autumn one hour longer.
        (ROUND_THE_CLOCK, "2027-01-15T22:59", None),
        (ROUND_THE_CLOCK, "2027-01-15T23:00", "2027-01-17T23:00"),  # Two whole days are one quiet time.
        (ROUND_THE_CLOCK, "2027-01-17T23:00", None),
        (QuietHours(start="02:30", end="03:30", timezone="Europe/Vienna"), "2027-03-28T01:15", None),
        (QuietHours(start="01:00", end="02:30", timezone="Europe/Vienna"), "2027-03-28T00:30", "2027-03-28T01:30"),
        (QuietHours(start="01:00", end="02:30", timezone="Europe/Vienna"), "2027-10-31T00:10", "2027-10-31T00:30"),
        (QuietHours(start="12:00", end="14:00", timezone="Asia/Kolkata"), "2027-05-05T06:30", "2027-05-05T08:30"),
    ],
)
def test_quiet_until(quiet: QuietHours, at: str, until: str | None) -> None:
    assert quiet_until(quiet, utc(at)) == (None if until is None else utc(until))


def test_over_a_year_a_quiet_night_always_ends_at_seven_on_the_wall_clock() -> None:
    at = utc("2027-01-01T00:00")
    quiet_minutes = 0
    while at < utc("2028-01-01T00:00"):
        until = quiet_until(NIGHT, at)
        local = at.astimezone(_zone())
        assert (until is not None) == (local.hour >= 22 or local.hour < 7), at
        if until is not None:
            quiet_minutes += 30
            assert until.astimezone(_zone()).strftime("%H:%M") == "07:00"
            assert at < until <= at + timedelta(hours=10)
        at += timedelta(minutes=30)
    # Spring takes an hour of the night, autumn gives it back.
    assert quiet_minutes == 365 * 9 * 60


def test_a_quiet_time_without_end_is_looked_through_for_a_week() -> None:
    always = QuietHours(start="00:00", end="00:00", timezone="UTC")
    at = utc("2027-01-01T12:00")
    assert quiet_until(always, at) == utc("2027-01-08T00:00")


def test_urgent_alerts_do_not_wait() -> None:
    at = utc("2027-01-12T23:00")
    assert [waits(NIGHT, level, at) is None for level in ("info", "warning", "critical", "exceeded")] == [
        False,
        False,
        True,
        True,
    ]
    everything = QuietHours(start="22:00", end="07:00", except_level=None)
    assert waits(everything, "exceeded", at) == utc("2027-01-13T07:00")


async def test_what_waited_through_the_night_the_clocks_change_comes_as_one_message(
    services: Services, database_url: str, mail: MailServer, receiver: Receiver
) -> None:
    quiet = QuietHours(start="22:00", end="07:00", timezone="Europe/Vienna", except_level="critical")
    await go_to(services, database_url, utc("2027-03-27T22:30"))
    await new_channel(services, "mail", kind="apprise", url=mail.url(), quiet_hours=quiet)
    await new_channel(services, "hook", kind="webhook", url=receiver.url(), secret=SECRET, quiet_hours=quiet)
    async with delivering(services):
        waiting = await tell(services, "mail", "hook", level="warning", count=5)
        await tell(services, "mail", "hook", level="exceeded", title="Budget is used up")

        async def night() -> bool:
            rows = await deliveries(services)
            return all(row["status"] == "sent" or row["postponed"] == "quiet_hours" for row in rows)

        await eventually(night)
        await eventually(lambda: len(mail.messages) == len(receiver.posts) == 1)
    assert mail.subjects == ["[exceeded] Budget is used up"]
    rows = [row for row in await deliveries(services) if str(row["delivery_id"]) in waiting]
    assert {row["not_before"] for row in rows} == {utc("2027-03-28T05:00")}, "seven o'clock is summer time"
    assert all(row["attempts"] == 0 for row in rows)
    await go_to(services, database_url, utc("2027-03-28T05:00:01"))
    async with delivering(services):
        await eventually(all_are(services, "sent", 12))
    assert len(mail.messages) == len(receiver.posts) == 2
    assert mail.subjects[1].startswith("[warning] 5 alerts, the most urgent:")
    digest = receiver.posts[1].json
    assert digest["type"] == "digest" and digest["data"]["reason"] == "quiet_hours"
    assert len(digest["data"]["alerts"]) == 5


async def test_beyond_the_hours_bound_the_rest_is_one_message(
    services: Services, database_url: str, receiver: Receiver
) -> None:
    start = utc("2027-06-01T12:00")
    await go_to(services, database_url, start)
    await new_channel(services, "hook", kind="webhook", url=receiver.url(), secret=SECRET, messages_per_hour_max=3)
    async with delivering(services):
        await tell(services, "hook", count=40)

        async def settled() -> bool:
            rows = await deliveries(services)
            return len(receiver.posts) == 3 and sum(row["postponed"] == "flood" for row in rows) == 37

        await eventually(settled)
    await go_to(services, database_url, start + timedelta(minutes=50))
    async with delivering(services):
        await tell(services, "hook", count=2)

        async def postponed() -> bool:
            return sum(row["postponed"] == "flood" for row in await deliveries(services)) == 39

        await eventually(postponed)
    assert len(receiver.posts) == 3
    await go_to(services, database_url, start + timedelta(minutes=65))
    async with delivering(services):
        await eventually(all_are(services, "sent", 42))
    assert [post.json["type"] for post in receiver.posts] == ["alert", "alert", "alert", "digest"]
    assert len(receiver.posts[-1].json["data"]["alerts"]) == 39


async def test_a_digest_that_fails_is_the_same_message_when_it_is_tried_again(
    services: Services, database_url: str, receiver: Receiver
) -> None:
    quiet = QuietHours(start="22:00", end="07:00", except_level=None)
    await go_to(services, database_url, utc("2027-06-01T23:00"))
    await new_channel(services, "hook", kind="webhook", url=receiver.url(), secret=SECRET, quiet_hours=quiet)
    async with delivering(services):
        await tell(services, "hook", count=3)

        async def postponed() -> bool:
            return all(row["postponed"] for row in await deliveries(services))

        await eventually(postponed)
    receiver.status = 503
    await go_to(services, database_url, utc("2027-06-02T07:00:01"))
    async with delivering(services):
        await eventually(lambda: len(receiver.posts) >= 2)
        await tell(services, "hook")
        receiver.status = 200
        await eventually(all_are(services, "sent", 4))
    sent: dict[str, set[str]] = {}
    for post in receiver.posts:
        data = post.json["data"]
        alerts = data.get("alerts", [data])
        sent.setdefault(post.headers["webhook-id"], set()).add(",".join(sorted(a["delivery_id"] for a in alerts)))
    assert all(len(contents) == 1 for contents in sent.values()), "one id, one content"
    assert len(sent) == 2


async def test_alerts_below_the_channels_level_are_skipped(services: Services, mail: MailServer) -> None:
    await new_channel(services, "mail", kind="apprise", url=mail.url(), min_level="critical")
    async with delivering(services):
        for level in ("info", "warning", "critical", "exceeded"):
            await tell(services, "mail", level=level, title=level)

        async def ended() -> bool:
            return all(row["status"] != "pending" for row in await deliveries(services))

        await eventually(ended)
    assert sorted(mail.subjects) == ["[critical] critical", "[exceeded] exceeded"]
    assert [row["status"] for row in await deliveries(services)] == ["skipped", "skipped", "sent", "sent"]


def _zone() -> Any:
    from zoneinfo import ZoneInfo

    return ZoneInfo("Europe/Vienna")


def test_the_plan_never_sends_more_than_there_is_room_for() -> None:
    from handlers.alerts.delivery_plan import Terms, plan

    now = utc("2027-06-01T12:00")
    rows = [_row(n, now) for n in range(10)]
    levels = {row.delivery_id: "info" for row in rows}
    for bound in range(1, 12):
        for sent in range(12):
            for at_once in range(1, 5):
                terms = Terms(min_level="info", quiet_hours=None, messages_per_hour_max=bound, at_once_max=at_once)
                made = plan(terms, rows, levels, Traffic(sent, now), now)
                room = max(0, bound - sent)
                assert len(made.messages) == min(room, at_once, 10)
                assert len(made.postponed) == 10 - min(room, 10)
                assert all(until > now for _, until, _ in made.postponed)


def _row(number: int, at: datetime) -> DeliveryRow:
    return DeliveryRow(
        org_id="default",
        delivery_id=f"{number:032}",
        alert_id=None,
        channel="mail",
        status="pending",
        attempts=0,
        not_before=at,
        postponed=None,
        message_id=None,
        claim_id=None,
        claimed_until=None,
        last_error=None,
        payload=None,
        created_at=at,
        sent_at=None,
    )
