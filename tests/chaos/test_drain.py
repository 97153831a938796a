"""SIGTERM under load: whatever was accepted is answered, the exit is clean, and it comes in bounded time."""

import asyncio
import itertools
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.chaos import (
    Caller,
    Refused,
    Unanswered,
    calling,
    connected,
    elapsed,
    running_cluster,
    seeded,
)
from tests.support.polling import eventually

ANSWER_S = 10.0
DRAINED_S = 10.0
BOUNDED_S = 50.0
YEAR = {"start": "2020-01-01T00:00:00Z", "end": "2099-01-01T00:00:00Z"}
CALL = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 100}
WHO = {"user_id": "u1", "team_id": "t1", "project_id": "p1"}
numbers = itertools.count()


@dataclass
class Sent:
    """What a crowd was told."""

    kinds: Counter[str] = field(default_factory=Counter[str])
    acknowledged: list[str] = field(default_factory=list[str])
    refused: list[str] = field(default_factory=list[str])


def event(prefix: str, **more: Any) -> dict[str, Any]:
    return {**CALL, **WHO, "completion_tokens": 10, "id": f"{prefix}{next(numbers)}", **more}


def check(**more: Any) -> dict[str, Any]:
    return {**CALL, **WHO, "max_completion_tokens": 10, "request_id": f"c{next(numbers)}", "ttl_s": 60, **more}


Make = Callable[[], dict[str, Any]]
KINDS: dict[str, tuple[str, Make]] = {
    "check": ("check_budget", check),
    "check, not reserved": ("check_budget", lambda: check(reserve=False)),
    "stored": ("track_usage", lambda: event("s", ack="stored")),
    "applied": ("track_usage", lambda: event("a", ack="applied")),
    "batch": ("track_usage", lambda: {"events": [event("b"), event("b")], "ack": "applied"}),
    "budget status": ("get_budget_status", lambda: dict(WHO)),
    "budgets": ("list_budgets", dict),
    "reservations": ("list_reservations", lambda: {"limit": 5}),
    "usage": ("get_usage", lambda: {"limit": 5}),
    "sums": ("aggregate_usage", lambda: dict(YEAR)),
    "cost": ("calculate_cost", lambda: {**CALL, "completion_tokens": 10}),
    "prices": ("get_pricing", lambda: {"provider": "openai", "model": "gpt-4o"}),
    "dead letters": ("list_dead_letters", dict),
    "status": ("get_status", dict),
    "contract": ("describe", lambda: {"format": "signals"}),
}


async def one_call(caller: Caller, kind: str, sent: Sent) -> None:
    """One request of a kind; a check is released or settled afterwards. Raises Unanswered."""
    name, make = KINDS[kind]
    body = make()
    try:
        reply = await caller.ask(name, body, ANSWER_S)
        if kind == "check":
            reservation = {"reservation_id": reply["reservation_id"]}
            if next(numbers) % 2:
                await caller.ask("extend_reservation", {**reservation, "ttl_s": 70}, ANSWER_S)
                await caller.ask("release_reservation", reservation, ANSWER_S)
            else:
                settled = event("r", **reservation, ack="stored")
                await caller.ask("track_usage", settled, ANSWER_S)
                sent.acknowledged.append(settled["id"])
    except Refused as error:
        sent.refused.append(f"{kind}: {error}")
        return
    if name == "track_usage":
        sent.acknowledged += [e["id"] for e in body.get("events", [body])]
    sent.kinds[kind] += 1


async def crowd(caller: Caller, sent: Sent, stop: asyncio.Event, *, seed: int, quit_when_alone: bool = False) -> None:
    """One caller among many, until `stop`; `quit_when_alone`: until nobody listens any more."""
    chance = random.Random(seed)
    while not stop.is_set():
        try:
            await one_call(caller, chance.choice(list(KINDS)), sent)
        except Unanswered:
            if quit_when_alone and not caller.tally.timeouts:
                return


async def create_wide_budgets(caller: Caller) -> None:
    for kind in ("global", "team", "user", "project"):
        await caller.persist("create_budget", {"name": f"wide {kind}", "type": kind, "limit": "1000000"})


async def applied_once(url: str, sent: Sent) -> None:
    """Wait until the stream is applied; everything acknowledged is there once."""
    async with connected(url) as connection:

        async def all_there() -> bool:
            stored = [r["id"] for r in await connection.fetch("SELECT id FROM usage_event")]
            assert len(stored) == len(set(stored)), "an event is there twice"
            return not set(sent.acknowledged) - set(stored)

        await eventually(all_there, 30.0, "acknowledged usage is missing")


async def test_rolling_restarts_leave_no_request_unanswered(tmp_path: Path) -> None:
    seed, _ = seeded()
    sent, stop = Sent(), asyncio.Event()
    exits: list[tuple[int, float]] = []
    async with (
        running_cluster(tmp_path, agents=2) as cluster,
        calling(cluster.bus.url) as caller,
        calling(cluster.bus.url) as other,
    ):
        await create_wide_budgets(caller)
        async with asyncio.TaskGroup() as group:
            for n in range(24):
                group.create_task(crowd((caller, other)[n % 2], sent, stop, seed=seed * 100 + n))
            for _ in range(2):
                for agent in cluster.agents:
                    await elapsed(stop, 0.7)
                    exits.append(await agent.stop())
                    await agent.start()
            stop.set()
        await applied_once(cluster.database.url, sent)
        logs = "".join(agent.log() for agent in cluster.agents)
    asked = caller.tally.asked + other.tally.asked
    slowest_s = max(caller.tally.slowest_s, other.tally.slowest_s)
    print(f"\n  seed {seed}: {asked} requests over {len(exits)} restarts, slowest {slowest_s:.2f} s; exits {exits}")

    assert (caller.tally.timeouts + other.tally.timeouts, caller.tally.no_responders + other.tally.no_responders) == (
        0,
        0,
    )
    assert sent.refused == []
    assert [status for status, _ in exits] == [0] * len(exits), logs[-4000:]
    assert max(took for _, took in exits) < DRAINED_S
    assert set(sent.kinds) == set(KINDS), "every kind of request was under way"
    assert "Traceback" not in logs, logs[logs.index("Traceback") - 500 :][:3000]


async def test_the_last_agent_answers_everything_it_took(tmp_path: Path) -> None:
    """With nobody left there are no responders; but no request that was taken may end in silence."""
    seed, _ = seeded()
    sent, stop = Sent(), asyncio.Event()
    async with running_cluster(tmp_path, agents=1) as cluster, calling(cluster.bus.url) as caller:
        await create_wide_budgets(caller)
        agent = cluster.agents[0]
        async with asyncio.TaskGroup() as group:
            for n in range(48):
                group.create_task(crowd(caller, sent, stop, seed=seed * 100 + n, quit_when_alone=True))
            await elapsed(stop, 1.5)
            status, took_s = await agent.stop()
            stop.set()
        assert (status, caller.tally.timeouts) == (0, 0), agent.log()[-3000:]
        assert took_s < DRAINED_S
        assert sent.refused == []
        assert sum(sent.kinds.values()) > 100
        await agent.start()
        await applied_once(cluster.database.url, sent)
        assert "Traceback" not in agent.log()
    print(f"\n  seed {seed}: {caller.tally.asked} asked, {caller.tally.no_responders} after the end; {took_s:.2f} s")


async def test_the_end_is_bounded_while_postgresql_is_down(tmp_path: Path) -> None:
    """What was stored and cannot be applied waits for the next start; the end waits for it only so long."""
    env = {"TOKEN_MANAGER_DRAIN_TIMEOUT_S": "5"}
    async with running_cluster(tmp_path, agents=1, **env) as cluster, calling(cluster.bus.url) as caller:
        await create_wide_budgets(caller)
        agent, sent = cluster.agents[0], Sent()
        await one_call(caller, "stored", sent)
        await cluster.database.kill()
        for _ in range(20):
            await one_call(caller, "stored", sent)
        asked = [asyncio.create_task(_code(caller, "check_budget", check())) for _ in range(20)]
        asked += [asyncio.create_task(_code(caller, "track_usage", event("x", ack="applied"))) for _ in range(20)]
        status, took_s = await agent.stop(BOUNDED_S)
        codes = set(await asyncio.gather(*asked))
        assert codes <= {"unavailable", "no responders"}, codes
        assert status == 0, agent.log()[-3000:]
        print(f"\n  ended {took_s:.2f} s after SIGTERM")
        assert took_s < 5 + DRAINED_S
        await cluster.database.start()
        await agent.start()
        await applied_once(cluster.database.url, sent)


async def test_the_end_is_bounded_while_the_bus_is_down_or_hangs(tmp_path: Path) -> None:
    """The drain bound is shorter than the watchdog, so that it is the drain itself that copes."""
    async with running_cluster(tmp_path, agents=2, TOKEN_MANAGER_DRAIN_TIMEOUT_S="2") as cluster:
        first, second = cluster.agents
        await cluster.bus.kill()
        status, took_s = await first.stop(BOUNDED_S)
        assert status == 0, first.log()[-3000:]
        await cluster.bus.start()
        async with calling(cluster.bus.url) as caller:
            # Both of its connections serve again: one hears requests, the other one stores usage.
            await caller.persist("track_usage", event("h"))
        os.kill(cluster.bus.pid, signal.SIGSTOP)
        try:
            status_hung, took_hung_s = await second.stop(BOUNDED_S)
        finally:
            os.kill(cluster.bus.pid, signal.SIGCONT)
        assert status_hung == 0, second.log()[-3000:]
        assert "Traceback" not in second.log(), second.log()[-3000:]
        print(f"\n  ended {took_s:.2f} s after SIGTERM with the bus down, {took_hung_s:.2f} s with the bus hanging")


async def _code(caller: Caller, name: str, body: dict[str, Any]) -> str:
    """The code of the answer to one request."""
    try:
        reply = await caller.ask(name, body, 40.0)
    except Refused as error:
        return error.code
    except Unanswered as error:
        return "no responders" if "no responders" in str(error) else str(error)
    return f"answered: {json.dumps(reply)}"
