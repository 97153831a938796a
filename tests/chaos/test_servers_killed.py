"""nats-server and PostgreSQL die, freeze or stay away under load; so does the agent, at the worst moment.

Goal: what was acknowledged is there once, service resumes by itself, and meanwhile answers are prompt and honest.
"""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.embedded.leftover import find_processes
from tests.chaos.audit import audit
from tests.chaos.load import Book, Router, create_budgets, raise_limits
from tests.chaos.proxy import proxied
from tests.support.chaos import (
    AgentProcess,
    Caller,
    Cluster,
    Refused,
    agent_env,
    calling,
    connected,
    elapsed,
    embedded_agent,
    gone,
    running_cluster,
    seconds,
    seeded,
)
from tests.support.polling import eventually

ROUTERS = 12
RESUMED_S = 15.0
PROMPT_S = 3.0
HANG_S = 35.0


def kill_all(pids: Sequence[int], what: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        try:
            os.kill(pid, what)
        except ProcessLookupError:
            pass


def check_of(request_id: str) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "provider": "openai",
        "model": "gpt-4o",
        "prompt_tokens": 100,
        "max_completion_tokens": 10,
        "user_id": "probe",
        "team_id": "probe",
        "project_id": "probe",
        "ttl_s": 2,
    }


def event_of(event_id: str, **more: Any) -> dict[str, Any]:
    return {
        "id": event_id,
        "provider": "openai",
        "model": "gpt-4o",
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "user_id": "u1",
        **more,
    }


async def stream_is_empty(caller: Caller, timeout_s: float = 40.0) -> None:
    async def empty() -> bool:
        return (await caller.persist("get_status", {}))["ingest"]["stored_messages"] == 0

    await eventually(empty, timeout_s, "the stream does not drain")


async def test_killed_servers_come_back_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    seed, chance = seeded()
    book, stop = Book(), asyncio.Event()
    resumed: dict[str, list[float]] = {"nats-server": [], "postgres": []}
    async with embedded_agent(tmp_path / "agent") as agent:
        runtime = agent.serves()
        assert runtime is not None
        async with calling(runtime["nats_url"]) as caller, calling(runtime["nats_url"]) as probe:
            await create_budgets(caller)
            async with asyncio.TaskGroup() as group:
                for n in range(ROUTERS):
                    group.create_task(Router(caller, book, stop, name=f"r{n}", seed=seed * 100 + n).run())
                group.create_task(raise_limits(probe, book, stop, chance))
                for number, name in enumerate(("nats-server", "postgres") * 2):
                    await elapsed(stop, chance.uniform(0.5, 2.0))
                    victims = agent.servers()[name]
                    assert victims, f"{name} does not run"
                    began = time.monotonic()
                    kill_all(victims)
                    await eventually(lambda v=victims, n=name: not set(v) & set(agent.servers()[n]), 5.0, "not dead")
                    await probe.persist("check_budget", check_of(f"probe-{number}"), RESUMED_S)
                    resumed[name].append(round(time.monotonic() - began, 2))
                stop.set()
            await stream_is_empty(caller)
            async with connected(runtime["database_url"]) as connection:

                async def none_live() -> bool:
                    return not await connection.fetchval("SELECT count(*) FROM reservation WHERE status = 'live'")

                await eventually(none_live, 20.0, "reservations stay live")
            found = await audit(runtime["database_url"], book)
            assert agent.returncode is None, "the agent itself must survive its servers"
    print(f"\n  seed {seed}: served again after {resumed} s; {len(book.acknowledged)} events acknowledged")

    assert book.problems == []
    assert (found.lost, found.doubled, found.unknown, found.wrong) == ([], [], [], [])
    assert book.acknowledged == book.sent.keys()
    assert max(resumed["nats-server"] + resumed["postgres"]) < RESUMED_S


async def test_while_postgresql_is_away_nothing_is_approved_and_usage_is_kept(tmp_path: Path) -> None:
    away_s = seconds("CHAOS_AWAY_SECONDS", 20)
    async with running_cluster(tmp_path, agents=1) as cluster, calling(cluster.bus.url) as caller:
        await create_budgets(caller)
        assert (await caller.ask("check_budget", check_of("before")))["approved"]
        await cluster.database.stop()
        kept = await use_while_away(caller, away_s)
        await cluster.database.start()
        began = time.monotonic()
        await caller.persist("check_budget", check_of("after"), RESUMED_S)
        resumed_s = time.monotonic() - began

        async def healthy() -> bool:
            status = await caller.ask("get_status", {})
            return status["healthy"] and status["ingest"]["stored_messages"] == 0

        await eventually(healthy, 20.0, "the backlog does not drain")
        drained_s = time.monotonic() - began
        async with connected(cluster.database.url) as connection:
            stored = [r["id"] for r in await connection.fetch("SELECT id FROM usage_event")]
    print(
        f"\n  {len(kept)} events kept in {away_s:g} s; checks after {resumed_s:.1f} s, drained after {drained_s:.1f} s"
    )

    assert sorted(stored) == sorted(kept)


async def use_while_away(caller: Caller, away_s: float) -> list[str]:
    """What callers hear meanwhile; returns the ids of the usage that was accepted."""
    kept: list[str] = []
    lag_s = 0.0
    until = time.monotonic() + away_s
    while time.monotonic() < until:
        number = len(kept)
        began = time.monotonic()
        for signal_name, body in (
            ("check_budget", check_of(f"away-{number}")),
            ("track_usage", event_of(f"refused-{number}", ack="applied")),
            ("release_reservation", {"reservation_id": "01890000-0000-7000-8000-000000000000"}),
            ("get_usage", {}),
        ):
            with pytest.raises(Refused) as refused:
                await caller.ask(signal_name, body, 10.0)
            assert refused.value.code == "unavailable", (signal_name, refused.value)
        assert time.monotonic() - began < PROMPT_S
        assert (await caller.ask("track_usage", event_of(f"away-{number}")))["accepted"]
        kept.append(f"away-{number}")
        if number % 20 == 5:
            status = await caller.ask("get_status", {}, PROMPT_S)
            assert not status["healthy"]
            assert [p["name"] for p in status["parts"] if not p["ok"]], status["parts"]
            assert status["ingest"]["stored_messages"] > 0
            assert status["ingest"]["lag_s"] >= lag_s
            lag_s = status["ingest"]["lag_s"]
    assert lag_s > away_s / 2
    return kept


async def test_while_postgresql_hangs_answers_are_bounded_and_status_is_told(tmp_path: Path) -> None:
    """A server that keeps its connections and says nothing is worse than one that is gone."""
    async with running_cluster(tmp_path, agents=1) as cluster, calling(cluster.bus.url) as caller:
        await create_budgets(caller)
        assert (await caller.ask("check_budget", check_of("before")))["approved"]
        pids = postgres_pids(cluster)
        kill_all(pids, signal.SIGSTOP)
        try:
            release = {"reservation_id": "01890000-0000-7000-8000-000000000000"}
            waiting = [asyncio.create_task(_code(caller, "release_reservation", release)) for _ in range(150)]
            checks = [asyncio.create_task(_code(caller, "check_budget", check_of(f"hang-{n}"))) for n in range(1_000)]
            began_all = time.monotonic()
            for number in range(3):
                began = time.monotonic()
                status = await caller.ask("get_status", {}, 6.0)
                assert not status["healthy"], number
                assert time.monotonic() - began < 5.0
                assert (await caller.ask("track_usage", event_of(f"hang-{number}"), 6.0))["accepted"]
            assert set(await asyncio.gather(*checks)) == {"unavailable"}
            print(f"\n  {len(checks)} checks refused within {time.monotonic() - began_all:.1f} s of the hang")
            assert time.monotonic() - began_all < HANG_S
        finally:
            kill_all(pids, signal.SIGCONT)
        assert set(await asyncio.gather(*waiting)) <= {"unavailable", "not_found"}
        await caller.persist("check_budget", check_of("after"), RESUMED_S)
        await stream_is_empty(caller)
        async with connected(cluster.database.url) as connection:
            assert await connection.fetchval("SELECT count(*) FROM usage_event") == 3
            differing = "SELECT count(*) FROM reservation WHERE request_id LIKE 'hang-%' AND status = 'live'"

            async def none_live() -> bool:
                return not await connection.fetchval(differing)

            await eventually(none_live, 20.0, "a check that nobody heard of keeps its money")


async def _code(caller: Caller, name: str, body: dict[str, Any]) -> str:
    """The code of the answer; an approval would be none of the allowed ones."""
    try:
        reply = await caller.ask(name, body, 40.0)
    except Refused as error:
        return error.code
    return f"answered: {reply}"


def postgres_pids(cluster: Cluster) -> list[int]:
    folder = Path(cluster.database.log_path).parent.parent / "postgres" / "data"
    return find_processes(folder, command="postgres")


async def test_an_agent_finds_a_bus_that_was_away_again(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, agents=1) as cluster, calling(cluster.bus.url) as caller:
        await create_budgets(caller)
        pid, never = cluster.agents[0].pid, asyncio.Event()
        for number, away_s in enumerate((0.5, 6.0)):
            assert (await caller.persist("track_usage", event_of(f"before-{number}")))["accepted"]
            await (cluster.bus.kill() if number else cluster.bus.stop())
            await elapsed(never, away_s)
            await cluster.bus.start()
            began = time.monotonic()
            assert (await caller.persist("check_budget", check_of(f"after-{number}"), RESUMED_S))["approved"]
            assert (await caller.persist("track_usage", event_of(f"after-{number}")))["accepted"]
            print(f"\n  served {time.monotonic() - began:.2f} s after the bus was back")
        await stream_is_empty(caller)
        async with connected(cluster.database.url) as connection:
            assert await connection.fetchval("SELECT count(*) FROM usage_event") == 4
        assert (cluster.agents[0].pid, cluster.agents[0].returncode) == (pid, None)


async def test_a_killed_agent_leaves_no_server_behind_and_starts_again_with_the_same_figures(tmp_path: Path) -> None:
    seed, chance = seeded()
    book, stop = Book(), asyncio.Event()
    agent = AgentProcess(tmp_path / "agent")
    try:
        runtime = await agent.start()
        async with calling(runtime["nats_url"]) as caller:
            await create_budgets(caller)
            async with asyncio.TaskGroup() as group:
                for n in range(ROUTERS):
                    group.create_task(Router(caller, book, stop, name=f"r{n}", seed=seed * 100 + n).run())
                group.create_task(raise_limits(caller, book, stop, chance))
                for _ in range(2):
                    await elapsed(stop, chance.uniform(1.5, 3.0))
                    await agent.kill()
                    await gone(agent)
                    again = await agent.start()
                    assert again["nats_url"] == runtime["nats_url"], "callers must find it where it was"
                await elapsed(stop, 1.0)
                stop.set()
            await stream_is_empty(caller)
            before = await figures(caller)
            await agent.kill()
            await gone(agent)
            await agent.start()
            await caller.persist("get_status", {})
            assert await figures(caller) == before
            status = await caller.persist("get_status", {"reconcile": True})
            assert status["reconciliation"]["ok"], status["reconciliation"]
            async with connected(runtime["database_url"]) as connection:
                rows = [r["id"] for r in await connection.fetch("SELECT id FROM usage_event")]
        status_code, _ = await agent.stop()
        assert status_code == 0
        assert not any(agent.servers().values())
    finally:
        await agent.discard()
    print(f"\n  seed {seed}: {len(book.acknowledged)} events acknowledged over two kills")

    assert book.problems == []
    assert sorted(rows) == sorted(book.sent)
    assert book.acknowledged == book.sent.keys()


async def figures(caller: Caller) -> dict[str, Any]:
    """What people look at: usage, and what each budget has spent."""
    year = {"start": "2020-01-01T00:00:00Z", "end": "2099-01-01T00:00:00Z"}
    usage = await caller.persist("aggregate_usage", {**year, "group_by": ["team_id", "user_id"]})
    budgets = await caller.persist("list_budgets", {})
    shown = [{k: v for k, v in b.items() if k != "window"} for b in budgets["budgets"]]
    spent = [b["window"]["spent"] for b in budgets["budgets"] if b["window"]]
    return {"usage": usage, "budgets": shown, "spent": spent}


async def test_a_kill_between_commit_and_ack_applies_the_message_once(tmp_path: Path) -> None:
    """The acks are lost on their way, so the kill comes after the commit and before the ack, every time."""
    async with running_cluster(tmp_path, agents=0) as cluster, proxied(cluster.bus.agent_url) as proxy:
        env = agent_env(proxy.url, cluster.database.url, TOKEN_MANAGER_INGEST_ACK_WAIT_S="3")
        agent = AgentProcess(tmp_path / "agent", env=env)
        try:
            await agent.start()
            async with calling(cluster.bus.url) as caller, connected(cluster.database.url) as connection:
                await create_budgets(caller)
                proxy.losing = True
                for number in range(5):
                    check = {**check_of(f"c{number}"), "ttl_s": 60}
                    reply = await caller.persist("check_budget", check)
                    event = event_of(f"e{number}", reservation_id=reply["reservation_id"])
                    assert (await caller.persist("track_usage", event))["accepted"]

                async def committed() -> bool:
                    return await connection.fetchval("SELECT count(*) FROM usage_event") == 5

                await eventually(committed, 10.0, "not applied")
                await eventually(lambda: proxy.lost > 0, 5.0, "no ack was lost")
                await agent.kill()
                assert (await connection.fetchval("SELECT sum(spent) FROM budget_window")) > 0
                before = await connection.fetch("SELECT * FROM budget_window ORDER BY window_id")
                proxy.losing = False
                await agent.start()
                await stream_is_empty(caller)
                status = await caller.persist("get_status", {"reconcile": True})
                assert status["ingest"]["duplicates"] == 5, status["ingest"]
                assert status["ingest"]["applied_events"] == 0
                assert status["reconciliation"]["ok"], status["reconciliation"]
                assert await connection.fetch("SELECT * FROM budget_window ORDER BY window_id") == before
                assert await connection.fetchval("SELECT count(*) FROM usage_event") == 5
        finally:
            await agent.discard()
