"""What is asked on a schedule: once for each planned time, as its setter, and the result told to those it is for."""
# pyright: reportUnknownMemberType=false
# nats-py leaves the options of its calls untyped.

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
import pytest_asyncio

from agent.backoff import Backoff
from agent.directory import Directory, DirectoryLimits
from agent.embedded import EmbeddedNats
from agent.identity import Access
from agent.routes import ROUTES
from agent.schedules import Schedules
from handlers.access.cron import next_run
from handlers.access.schedules import delete_schedule, list_schedules, may_be_scheduled, set_schedule
from handlers.access.users import set_user
from handlers.context import Context, Limits, Services
from schemas.access import DeleteSchedule, ListSchedules, SetSchedule, SetUser
from schemas.errors import SignalError
from signals.registry import REQUESTS
from store import schedules as schedule_store
from tests.access.conftest import PASSWORD
from tests.support.polling import eventually
from tests.support.running import ask, connected, forget_streams, running_agent
from tests.support.services import context, outbox_events, refusal

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)  # A Monday.


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("*/15 * * * *", datetime(2026, 11, 23, 12, 15, tzinfo=UTC)),
        ("0 12 * * *", datetime(2026, 11, 24, 12, tzinfo=UTC)),  # Later than now, not now.
        ("0 9 * * 0", datetime(2026, 11, 29, 9, tzinfo=UTC)),  # Sunday is 0, as in every cron,
        ("0 9 * * 7", datetime(2026, 11, 29, 9, tzinfo=UTC)),  # and 7,
        ("0 9 * * 1", datetime(2026, 11, 30, 9, tzinfo=UTC)),  # and Monday 1.
        ("0 9 * * 6", datetime(2026, 11, 28, 9, tzinfo=UTC)),
        ("0 9 * * 1-5", datetime(2026, 11, 24, 9, tzinfo=UTC)),
        ("0 9 * * 5-7", datetime(2026, 11, 27, 9, tzinfo=UTC)),
        ("0 9 * * */3", datetime(2026, 11, 25, 9, tzinfo=UTC)),
        ("0 9 * * 2,sat", datetime(2026, 11, 24, 9, tzinfo=UTC)),
        ("30 8 29 2 *", datetime(2028, 2, 29, 8, 30, tzinfo=UTC)),
        ("0 0 30 2 *", None),
    ],
)
def test_cron_means_what_it_means_elsewhere(cron: str, expected: datetime | None) -> None:
    assert next_run(cron, "UTC", NOON) == expected


def test_planned_times_are_in_the_schedules_own_zone_over_a_change_of_the_clock() -> None:
    at = datetime(2027, 3, 26, 12, tzinfo=UTC)
    hours: list[tuple[int, int]] = []
    for _ in range(4):
        found = next_run("0 9 * * *", "Europe/Vienna", at)
        assert found is not None
        at = found
        hours.append((at.hour, at.astimezone(ZoneInfo("Europe/Vienna")).hour))
    assert hours == [(8, 9), (7, 9), (7, 9), (7, 9)]


@pytest.mark.parametrize(
    "cron",
    ["", "* * * *", "* * * * * *", "a * * * *", "61 * * * *", "0 9 * * 8", "0 9 * * 5-1", "0 9 * * */0", "@daily"],
)
def test_what_is_no_cron_expression_is_refused(cron: str) -> None:
    with pytest.raises(SignalError) as refused:
        next_run(cron, "UTC", NOON)
    assert (refused.value.code, refused.value.field) == ("invalid_request", "cron")


def test_only_what_reads_and_every_viewer_may_hear_is_scheduled() -> None:
    routes = {route.signal.name for route in ROUTES}
    scheduled = {signal.name for signal in REQUESTS if may_be_scheduled(signal)}
    assert {"list_budgets", "aggregate_usage", "get_status", "list_alerts"} <= scheduled <= routes
    assert not scheduled & {"list_users", "list_api_keys", "get_audit_trail", "check_budget", "configure_manager"}
    assert not any(name.startswith(("set_", "create_", "update_", "delete_", "revoke_")) for name in scheduled)


async def test_a_schedule_is_what_was_said_last_and_audited(ctx: Context, services: Services) -> None:
    first = await set_schedule(
        ctx,
        SetSchedule(name="daily", cron="0 9 * * 1", signal="list_budgets", request={"limit": 5}, channels=["a", "a"]),
    )
    assert (first.request, first.channels, first.created_by) == ({"limit": 5}, ["a"], "alice")
    assert first.next_run_at is not None
    assert (first.next_run_at.weekday(), first.next_run_at.hour) == (0, 9)
    second = await set_schedule(ctx, SetSchedule(name="daily", cron="0 10 * * *", signal="get_status"))
    assert (second.signal, second.created_at) == ("get_status", first.created_at)
    await set_schedule(ctx, SetSchedule(name="other", cron="0 10 * * *", signal="get_status"))
    page = await list_schedules(ctx, ListSchedules(limit=1))
    rest = await list_schedules(ctx, ListSchedules(limit=1, cursor=page.next_cursor))
    assert [s.name for s in page.schedules + rest.schedules] == ["daily", "other"]
    assert (await list_schedules(context(services, org="x"), ListSchedules())).schedules == []
    assert (
        await refusal(delete_schedule(context(services, org="x"), DeleteSchedule(name="other")))
    ).code == "not_found"
    await delete_schedule(ctx, DeleteSchedule(name="other"))
    assert (await refusal(delete_schedule(ctx, DeleteSchedule(name="other")))).field == "name"
    rows = await services.database.fetch("SELECT action, entity_id, content FROM audit ORDER BY seq")
    assert [(r["action"], r["entity_id"]) for r in rows] == [
        ("created", "daily"), ("updated", "daily"), ("created", "other"), ("deleted", "other"),
    ]  # fmt: skip
    assert all("alice" not in str(msgspec.json.decode(r["content"])["after"]) for r in rows)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cron": "x x x x x"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"signal": "set_user"}, "signal"),
        ({"signal": "list_users"}, "signal"),
        ({"signal": "nothing"}, "signal"),
        ({"request": {"limitt": 5}}, "request.limitt"),
        ({"request": {"limit": 0}}, "request.limit"),
    ],
)
async def test_what_could_never_run_is_refused(ctx: Context, fields: dict[str, Any], field: str) -> None:
    given: dict[str, Any] = {"name": "s", "cron": "0 9 * * *", "signal": "list_budgets"} | fields
    error = await refusal(set_schedule(ctx, SetSchedule(**given)))
    assert (error.code, error.field) == ("invalid_request", field)


async def test_schedules_are_bounded(ctx: Context, services: Services) -> None:
    services.limits = Limits(schedules_max=1)
    for _ in range(2):
        await set_schedule(ctx, SetSchedule(name="a", cron="0 9 * * *", signal="list_budgets"))
    more = SetSchedule(name="b", cron="0 9 * * *", signal="list_budgets")
    assert (await refusal(set_schedule(ctx, more))).code == "conflict"


Runner = Callable[..., Schedules]


@pytest_asyncio.fixture
async def runner(database_url: str, services: Services) -> AsyncIterator[Runner]:
    """Makes the part of an agent that runs schedules; as many as one likes, on one database."""
    limits = DirectoryLimits(users_max=10, keys_max=10, changes_max=10, reread_s=60, stale_max_s=90)
    directory = Directory(database_url, limits, Backoff(0.01, 0.1), with_keys=False)
    await directory.open()
    task = asyncio.create_task(directory.run())

    def make(instance: str = "one", **given: Any) -> Schedules:
        access = Access(directory, lambda _org, _user: frozenset[str](), services.actor_key)
        routes = {route.signal.name: route for route in ROUTES}
        usual: dict[str, Any] = {"batch_max": 20, "timeout_s": 5.0}
        return Schedules(replace(services, instance=instance), access, routes, **usual | given)

    yield make
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await directory.close()


async def scheduled(ctx: Context, name: str = "s", signal: str = "list_budgets", **fields: Any) -> None:
    await set_schedule(ctx, SetSchedule(name=name, cron="0 9 * * *", signal=signal, **fields))
    await due(ctx)


async def due(ctx: Context, hours: int = 1) -> None:
    await ctx.database.execute(
        "UPDATE schedule SET next_run_at = date_trunc('hour', now()) - $1 * interval '1 hour'", hours
    )


async def runs(services: Services) -> list[dict[str, Any]]:
    return [data for name, data in await outbox_events(services) if name == "schedule.ran"]


async def boss(services: Services, *roles: str) -> Context:
    await set_user(context(services), SetUser(name="boss", roles=list(roles)))  # pyright: ignore[reportArgumentType]
    return context(services, user="boss")


async def test_a_planned_time_is_run_once_by_many_agents(services: Services, runner: Runner) -> None:
    ctx = await boss(services, "admin")
    for n in range(5):
        await scheduled(ctx, f"s{n}")
    agents = [runner(f"agent{n}") for n in range(4)]
    await eventually(lambda: ran_all(services, agents, 5))
    assert sorted(run["name"] for run in await runs(services)) == [f"s{n}" for n in range(5)]
    done = await services.database.fetch("SELECT job, result FROM job_run")
    assert sorted(tuple(row) for row in done) == [(f"schedule:default/s{n}", "ok") for n in range(5)]
    (row, *_) = (await list_schedules(ctx, ListSchedules())).schedules
    assert row.next_run_at is not None
    assert row.last_run_at is not None
    assert row.next_run_at > row.last_run_at
    assert row.last_error is None
    assert await asyncio.gather(*(agent.run_due() for agent in agents)) == [0, 0, 0, 0]


async def ran_all(services: Services, agents: list[Schedules], count: int) -> bool:
    await asyncio.gather(*(agent.run_due() for agent in agents))
    return len(await runs(services)) >= count


async def test_the_result_is_told_and_sent_to_the_channels(services: Services, runner: Runner) -> None:
    ctx = await boss(services, "admin")
    await scheduled(ctx, channels=["ops", "mail"], request={"limit": 7})
    assert await runner().run_due() == 1
    (run,) = await runs(services)
    assert (run["signal"], run["result"], run["error"]) == ("list_budgets", {"budgets": [], "next_cursor": None}, None)
    rows = await services.database.fetch("SELECT channel, payload FROM delivery ORDER BY channel")
    assert [row["channel"] for row in rows] == ["mail", "ops"]
    payload: dict[str, Any] = msgspec.json.decode(rows[0]["payload"])
    assert (payload["title"], payload["details"]) == ("Schedule s: list_budgets", run["result"])


async def test_times_missed_are_made_up_for_by_one_run(services: Services, runner: Runner) -> None:
    ctx = await boss(services, "admin")
    await scheduled(ctx)
    await due(ctx, hours=72)
    assert [await runner().run_due(), await runner().run_due()] == [1, 0]
    assert len(await runs(services)) == 1


async def test_it_runs_with_what_its_setter_may_do_now(services: Services, runner: Runner) -> None:
    ctx = await boss(services, "admin")
    await scheduled(ctx)
    await set_user(context(services), SetUser(name="boss", roles=["provider"]))
    one = runner()
    await eventually(lambda: refused(ctx, services, one))
    schedule = (await list_schedules(ctx, ListSchedules())).schedules[0]
    assert schedule.last_error is not None
    assert schedule.last_error.startswith("forbidden")


async def refused(ctx: Context, services: Services, one: Schedules) -> bool:
    """Runs it again and again, until the agent has heard of the changed role."""
    await services.database.execute("DELETE FROM job_run")
    await due(ctx)
    await one.run_due()
    return any((run["error"] or "").startswith("forbidden") and run["result"] is None for run in await runs(services))


async def test_an_agent_that_dies_leaves_the_time_to_another_one(services: Services, runner: Runner) -> None:
    ctx = await boss(services, "admin")
    await scheduled(ctx)
    row = (await schedule_due(services))[0]
    assert row.next_run_at is not None
    await services.database.execute(
        "INSERT INTO job_run (job, planned_at, instance) VALUES ($1, $2, 'dead')", row.job, row.next_run_at
    )
    assert await runner().run_due() == 1
    assert len(await runs(services)) == 1


async def schedule_due(services: Services) -> list[schedule_store.ScheduleRow]:
    async with services.database.connection() as connection:
        return await schedule_store.due(connection, 10)


async def test_one_that_fails_keeps_nobody_waiting_and_one_switched_off_rests(
    services: Services, runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    ctx = await boss(services, "admin")
    await scheduled(ctx, "bad")
    await services.database.execute("UPDATE schedule SET request = '{\"gone\": 1}'")
    await scheduled(ctx, "good")
    await set_schedule(ctx, SetSchedule(name="off", cron="0 9 * * *", signal="list_budgets", active=False))
    await due(ctx)
    assert await runner().run_due() == 2
    told = {run["name"]: run["error"] for run in await runs(services)}
    assert told["good"] is None
    assert told["bad"].startswith("invalid_request")
    assert set(told) == {"good", "bad"}


async def test_a_schedule_set_anew_while_it_runs_keeps_its_new_time(services: Services, runner: Runner) -> None:
    ctx = await boss(services, "admin")
    await scheduled(ctx)
    (row,) = await schedule_due(services)
    anew = await set_schedule(ctx, SetSchedule(name="s", cron="7 7 7 7 *", signal="get_status"))
    assert await runner()._run(row)  # pyright: ignore[reportPrivateUsage]
    assert (await list_schedules(ctx, ListSchedules())).schedules[0].next_run_at == anew.next_run_at


async def test_over_the_bus_two_agents_tell_viewers_once(tenants_bus: EmbeddedNats, database_url: str) -> None:
    await forget_streams(tenants_bus.agent_url)
    given: dict[str, Any] = {
        "default_roles": None,
        "roles": {"acme/acme-root": ("admin",), "acme/acme-viewer": ("viewer",)},
        "schedule_interval_s": 0.05,
    }
    async with AsyncExitStack() as stack:
        agents = [
            await stack.enter_async_context(running_agent(tenants_bus.agent_url, database_url, **given))
            for _ in range(2)
        ]
        root = await stack.enter_async_context(connected(tenants_bus.url_for("acme-root", PASSWORD)))
        viewer = await stack.enter_async_context(connected(tenants_bus.url_for("acme-viewer", PASSWORD)))
        other = await stack.enter_async_context(connected(tenants_bus.url_for("globex-root", PASSWORD)))
        heard = await viewer.subscribe("token.evt.schedule.ran")
        foreign = await other.subscribe("token.evt.>")
        await asyncio.gather(viewer.flush(), other.flush())
        budget = {"name": "research", "type": "team", "entity_id": "t1", "limit": "1"}
        assert (await ask(root, "create_budget", budget)).result
        body = {"name": "s", "cron": "* * * * *", "signal": "list_budgets"}
        assert (await ask(root, "set_schedule", body)).result["created_by"] == "acme-root"
        database = agents[0].services.database
        await database.execute("UPDATE schedule SET next_run_at = date_trunc('minute', now()) - interval '1 minute'")
        event = msgspec.json.decode((await heard.next_msg(timeout=10)).data)
        assert event["data"]["result"]["budgets"][0]["name"] == "research"

        async def settled() -> bool:
            return await database.fetchval("SELECT count(*) FROM outbox") == 0

        await eventually(settled)
        await viewer.flush()
        planned = await database.fetchval("SELECT count(*) FROM job_run WHERE job LIKE 'schedule:%'")
        assert heard.pending_msgs + 1 == planned
        assert foreign.pending_msgs == 0
