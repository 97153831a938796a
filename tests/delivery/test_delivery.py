"""Alerts arrive: quickly, once, whatever is down meanwhile and however many agents there are."""

import asyncio
import contextlib
import time
from collections import Counter

import pytest

from handlers.alerts import deliver
from handlers.alerts.channels import list_deliveries, retry_delivery
from handlers.context import Context, Limits, Services
from schemas.channel import ListDeliveries, RetryDelivery
from schemas.errors import SignalError
from tests.delivery.conftest import (
    LIMITS,
    SECRET,
    all_are,
    deliveries,
    delivering,
    delivering_services,
    new_alert,
    new_channel,
    tell,
)
from tests.delivery.servers import LOCALHOST, MailServer, Receiver, hanging_port
from tests.support.polling import eventually
from tests.support.services import refusal

FOREVER = Limits(delivery_lease_s=3600, delivery_wait_s=0.05)


async def test_an_alert_is_in_the_mailbox_and_at_the_receiver_well_within_ten_seconds(
    services: Services, mail: MailServer, receiver: Receiver
) -> None:
    await new_channel(services, "mail", kind="apprise", url=mail.url())
    await new_channel(services, "hook", kind="webhook", url=receiver.url(), secret=SECRET)
    async with delivering(services, poll_s=1.0):
        started = time.monotonic()
        await tell(services, "mail", "hook")
        await eventually(lambda: mail.messages and receiver.posts, 10.0)
        seconds = time.monotonic() - started
        await eventually(all_are(services, "sent", 2))
    assert seconds < 5.0, f"{seconds:.2f} s"
    assert len(mail.messages) == len(receiver.posts) == 1


async def test_another_agent_hears_of_it_by_looking(services: Services, database_url: str, mail: MailServer) -> None:
    await new_channel(services, "mail", kind="apprise", url=mail.url())
    async with delivering_services(database_url) as other, delivering(other, poll_s=0.1):
        await tell(services, "mail")
        await eventually(lambda: mail.messages, 10.0)


async def test_a_mail_server_that_is_down_gets_every_alert_once_when_it_is_back(
    services: Services, mail: MailServer
) -> None:
    await new_channel(services, "mail", kind="apprise", url=mail.url())
    mail.stop()
    async with delivering(services):
        ids = await tell(services, "mail", count=12)

        async def all_have_failed() -> bool:
            return all(row["attempts"] > 1 and row["last_error"] for row in await deliveries(services))

        await eventually(all_have_failed, 20.0)
        mail.start()
        await eventually(all_are(services, "sent", 12), 20.0)
    arrived = Counter(str(message["Message-ID"]) for message in mail.messages)
    assert arrived == Counter(f"<{delivery_id}@example.com>" for delivery_id in ids)


async def test_four_agents_that_compete_deliver_once(
    services: Services, database_url: str, mail: MailServer, receiver: Receiver
) -> None:
    await new_channel(services, "mail", kind="apprise", url=mail.url(), messages_per_hour_max=1000)
    await new_channel(services, "hook", kind="webhook", url=receiver.url(), secret=SECRET, messages_per_hour_max=1000)
    async with contextlib.AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(delivering_services(database_url)) for _ in range(4)]
        await stack.enter_async_context(delivering(*agents, poll_s=0.01))
        await asyncio.gather(*(tell(agent, "mail", "hook", count=10) for agent in agents))
        await eventually(all_are(services, "sent", 80), 30.0)
    assert len(mail.messages) == len({str(message["Message-ID"]) for message in mail.messages}) == 40
    assert len(receiver.posts) == len({post.headers["webhook-id"] for post in receiver.posts}) == 40


async def test_what_a_dead_agent_had_claimed_is_delivered_when_its_lease_ends(
    database_url: str, mail: MailServer
) -> None:
    async with delivering_services(database_url, limits=FOREVER) as dead:
        await new_channel(dead, "mail", kind="apprise", url=mail.url())
        [delivery_id] = await tell(dead, "mail")
        [claimed] = await deliver.claim(dead, "default", "mail", most=1)
        assert claimed.message_id == delivery_id
    async with delivering_services(database_url) as alive, delivering(alive):
        assert not await deliver.due(alive, except_for=[], limit=10)
        await alive.database.execute("UPDATE delivery SET claimed_until = ledger_clock() - interval '1 second'")
        await eventually(all_are(alive, "sent", 1))
        assert await deliver.settle(alive, claimed, deliver.Outcome(False, "late")) is None
        assert (await deliveries(alive))[0]["attempts"] == 2
    assert [str(message["Message-ID"]) for message in mail.messages] == [f"<{delivery_id}@example.com>"]


async def test_a_message_that_kills_its_agent_again_and_again_ends_as_dead(database_url: str, mail: MailServer) -> None:
    async with delivering_services(database_url, limits=Limits(delivery_attempts_max=2)) as agent:
        await new_channel(agent, "mail", kind="apprise", url=mail.url())
        await tell(agent, "mail")
        for _ in range(2):
            assert await deliver.claim(agent, "default", "mail", most=1)
            await agent.database.execute("UPDATE delivery SET claimed_until = ledger_clock() - interval '1 second'")
        assert not await deliver.claim(agent, "default", "mail", most=1)
        assert (await deliveries(agent))[0]["status"] == "dead"
    assert not mail.messages


async def test_a_receiver_that_hangs_holds_up_neither_the_agent_nor_other_channels(
    services: Services, mail: MailServer
) -> None:
    with hanging_port() as port:
        await new_channel(services, "mail", kind="apprise", url=mail.url())
        await new_channel(services, "stuck", kind="webhook", url=f"http://{LOCALHOST}:{port}/x", secret=SECRET)
        await new_channel(services, "stuck2", kind="apprise", url=f"json://{LOCALHOST}:{port}/x")
        async with delivering(services):
            await tell(services, "stuck", "stuck2", count=8)
            started = time.monotonic()
            await tell(services, "mail")
            await eventually(lambda: mail.messages, 10.0)
            assert time.monotonic() - started < 5.0

            async def failed() -> bool:
                rows = [row for row in await deliveries(services) if row["channel"] != "mail"]
                return any(row["last_error"] for row in rows if row["channel"] == "stuck") and any(
                    row["last_error"] for row in rows if row["channel"] == "stuck2"
                )

            await eventually(failed, 15.0)


async def test_bad_credentials_end_as_dead_with_the_reason_and_can_be_retried(services: Services, ctx: Context) -> None:
    server = MailServer(password="right-horse-battery")
    server.start()
    try:
        await new_channel(services, "mail", kind="apprise", url=server.url(login="bob:wrong-horse-battery@"))
        async with delivering(services):
            [delivery_id] = await tell(services, "mail")
            await eventually(all_are(services, "dead", 1))
            [dead] = (await list_deliveries(ctx, ListDeliveries(status="dead"))).deliveries
            assert dead.attempts == LIMITS.delivery_refused_attempts_max
            assert dead.last_error is not None and "535" in dead.last_error
            assert "wrong-horse-battery" not in dead.last_error
            await new_channel(services, "mail", kind="apprise", url=server.url(login="bob:right-horse-battery@"))
            again = await retry_delivery(ctx, RetryDelivery(delivery_id=delivery_id))
            assert (again.status, again.attempts) == ("pending", 0)
            await eventually(all_are(services, "sent", 1))
        assert len(server.messages) == 1
    finally:
        server.stop()


async def test_a_server_that_says_later_is_tried_for_longer_than_one_that_says_no(services: Services) -> None:
    assert LIMITS.delivery_refused_attempts_max < LIMITS.delivery_attempts_max
    later, no = MailServer(refuse="451 try again later"), MailServer(refuse="554 go away")
    for server in (later, no):
        server.start()
    try:
        await new_channel(services, "later", kind="apprise", url=later.url())
        await new_channel(services, "no", kind="apprise", url=no.url())
        async with delivering(services):
            await tell(services, "later", "no")

            async def seen() -> bool:
                rows = {row["channel"]: row for row in await deliveries(services)}
                assert rows["no"]["status"] == "dead" and "554" in rows["no"]["last_error"]
                return rows["later"]["attempts"] > LIMITS.delivery_refused_attempts_max

            await eventually(seen)
            later.refuse = None

            async def arrived() -> bool:
                return [row["status"] for row in await deliveries(services, channel="later")] == ["sent"]

            await eventually(arrived)
        assert len(later.messages) == 1
    finally:
        for server in (later, no):
            server.stop()


async def test_attempts_are_bounded_and_wait_longer_each_time() -> None:
    limits = Limits()
    waits = [deliver.wait_after(attempt, limits).total_seconds() for attempt in range(1, limits.delivery_attempts_max)]
    assert waits[:4] == [2, 4, 8, 16]
    assert max(waits) == limits.delivery_wait_max_s
    assert sum(waits) > 3600, "an hour without a mail server is outlived"


async def test_an_unknown_channel_a_deleted_alert_and_a_switched_off_channel_say_so(
    services: Services, ctx: Context, mail: MailServer
) -> None:
    await new_channel(services, "off", kind="apprise", url=mail.url(), active=False)
    await new_channel(services, "mail", kind="apprise", url=mail.url())
    gone = await new_alert(services)
    await tell(services, "nobody", "off")
    await tell(services, "mail", alert=gone)
    await services.database.execute("DELETE FROM alert WHERE alert_id = $1", gone.alert_id)
    async with delivering(services):

        async def ended() -> bool:
            return all(row["status"] != "pending" for row in await deliveries(services))

        await eventually(ended)
    found = {item.channel: item for item in (await list_deliveries(ctx, ListDeliveries())).deliveries}
    assert found["nobody"].status == "dead" and "no channel" in (found["nobody"].last_error or "")
    assert found["off"].status == "skipped" and "switched off" in (found["off"].last_error or "")
    assert found["mail"].status == "dead" and "gone" in (found["mail"].last_error or "")
    assert not mail.messages


async def test_only_dead_deliveries_of_the_own_org_are_retried(
    services: Services, ctx: Context, mail: MailServer
) -> None:
    await new_channel(services, "mail", kind="apprise", url=mail.url())
    [foreign] = await tell(services, "nobody", org="globex")
    async with delivering(services):
        [sent] = await tell(services, "mail")

        async def ended() -> bool:
            return all(row["status"] != "pending" for row in await deliveries(services))

        await eventually(ended)
    for delivery_id, code in ((sent, "conflict"), (foreign, "not_found"), ("nonsense", "not_found")):
        error: SignalError = await refusal(retry_delivery(ctx, RetryDelivery(delivery_id=delivery_id)))
        assert (error.code, error.field) == (code, "delivery_id")
    assert [item.delivery_id for item in (await list_deliveries(ctx, ListDeliveries())).deliveries] == [sent]


async def test_deliveries_are_listed_page_by_page(services: Services, ctx: Context) -> None:
    ids = await tell(services, "nobody", count=7)
    found: list[str] = []
    cursor: str | None = None
    for _ in range(4):
        page = await list_deliveries(ctx, ListDeliveries(limit=2, cursor=cursor, channel="nobody"))
        found += [item.delivery_id for item in page.deliveries]
        cursor = page.next_cursor
    assert cursor is None
    assert sorted(found) == sorted(ids) and len(set(found)) == 7


async def test_a_stopped_agent_finishes_what_is_on_its_way(services: Services, mail: MailServer) -> None:
    await new_channel(services, "mail", kind="apprise", url=mail.url())
    async with delivering(services) as [deliverer]:
        await tell(services, "mail", count=3)
        await eventually(lambda: deliverer._sending or mail.messages)  # pyright: ignore[reportPrivateUsage]
        await deliverer.stop(10.0)
    rows = await deliveries(services)
    assert {row["status"] for row in rows} <= {"sent", "pending"}
    assert len(mail.messages) == sum(row["status"] == "sent" for row in rows)
    assert not any(row["claim_id"] for row in rows)


async def test_a_chat_service_gets_the_short_text(services: Services, receiver: Receiver) -> None:
    await new_channel(services, "json", kind="apprise", url=f"json://{LOCALHOST}:{receiver.port}/chat")
    token = "3ccdd113474722377935511fc85d3dd4"
    await new_channel(services, "teams", kind="apprise", url=f"mmost://{LOCALHOST}:{receiver.port}/{token}")
    async with delivering(services):
        await tell(services, "json", "teams", level="critical", title="Budget 'a' has used 90% of its limit")
        await eventually(all_are(services, "sent", 2))
    said = {post.path.strip("/").partition("/")[0]: post.json for post in receiver.posts}
    assert said["chat"]["title"] == "[critical] Budget 'a' has used 90% of its limit"
    assert said["chat"]["message"] == "Spent 90 of 100 USD."
    assert said["chat"]["type"] == "failure"
    assert "90% of its limit" in said["hooks"]["text"] and "<table" not in said["hooks"]["text"]


@pytest.mark.parametrize("status", [301, 302, 307])
async def test_a_webhook_that_redirects_is_not_followed(services: Services, receiver: Receiver, status: int) -> None:
    receiver.status, receiver.location = status, receiver.url("elsewhere")
    await new_channel(services, "hook", kind="webhook", url=receiver.url("first"), secret=SECRET)
    await new_channel(services, "json", kind="apprise", url=f"json://{LOCALHOST}:{receiver.port}/first")
    async with delivering(services):
        await tell(services, "hook", "json")

        async def refused() -> bool:
            return all(row["last_error"] for row in await deliveries(services))

        await eventually(refused)
    assert {post.path for post in receiver.posts} == {"/first"}
