"""Any interleaving of what agents can do, on a real PostgreSQL: after every step every promise holds.

A generated list of steps is carried out by three agents that share nothing but the database. Some steps run at once,
some are killed in the middle of a transaction, after which the agent starts with nothing in memory and the bus delivers
the same usage again. At the end all events are replayed from scratch and must give the same rollups and spending.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import msgspec
from hypothesis import event, given
from hypothesis import strategies as st

from handlers.enforcer.sweep import Applied
from handlers.tracker.priced import COLUMNS, PricedEvent
from schemas.errors import SignalError
from store.budgets import BudgetRow
from store.pool import Connection, is_unavailable
from tests.ledger.oracle import violations
from tests.support.ledger import LedgerAgent, World, examples, world_of

AGENTS: Final = 3
_orgs = itertools.count(1)

# Counts down on every write of the ledger, also at commit; whoever reaches nought is killed there.
CRASH: Final = (
    """
CREATE SEQUENCE crash_countdown MINVALUE -100000;
CREATE FUNCTION crash() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('crash_countdown') = 0 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
    RETURN NULL;
END $$;
"""
    + "".join(
        f"CREATE TRIGGER crash AFTER INSERT OR UPDATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION crash();"
        for table in ("usage_id", "usage_event", "usage_rollup", "reservation", "budget_window", "outbox")
    )
    + "".join(
        f"""CREATE CONSTRAINT TRIGGER crash_at_commit AFTER INSERT OR UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION crash();"""
        for table in ("usage_id", "reservation")
    )
)


@dataclass(frozen=True)
class Step:
    """One thing an agent does. What the numbers mean depends on the kind; they choose from what there is."""

    kind: str
    agent: int
    which: int
    size: int
    flag: bool


_OPERATIONS: Final = (
    "check",
    "check",
    "check",
    "settle",
    "settle",
    "part",
    "release",
    "extend",
    "usage",
    "again",
    "sweep",
)
_numbers = st.integers(0, 11)
_operation = st.builds(
    Step, st.sampled_from(_OPERATIONS), st.integers(0, AGENTS - 1), _numbers, st.integers(0, 120), st.booleans()
)
_rare = st.builds(
    Step,
    st.sampled_from(("time", "time", "limit", "enforce", "restart", "other payload")),
    st.integers(0, AGENTS - 1),
    _numbers,
    st.integers(0, 120),
    st.booleans(),
)
_burst = st.lists(_operation, min_size=2, max_size=12)
_crash = st.tuples(st.integers(1, 14), st.lists(_operation, min_size=1, max_size=6))
_steps = st.lists(st.one_of(_operation, _operation, _operation, _rare, _burst, _crash), min_size=3, max_size=25)


class Run:
    """One example: an org, its agents, and what was sent so far."""

    def __init__(self, world: World, budgets: list[BudgetRow], oracle: Connection) -> None:
        self.world = world
        self.budgets = budgets
        self.oracle = oracle
        self.sent: list[PricedEvent] = []
        self.names = itertools.count()

    async def take(self, step: Step | list[Step] | tuple[int, list[Step]]) -> None:
        """Carry out a step, several at once, or several of which one is killed."""
        if isinstance(step, Step):
            await self._alone(step)
        elif isinstance(step, list):
            live = await self._live()
            for result in await asyncio.gather(*(self._do(s, live) for s in step), return_exceptions=True):
                self._expected(result)
        else:
            await self._killed(*step)
        found = await violations(self.oracle, self.world.org)
        assert not found, found

    async def _alone(self, step: Step) -> None:
        if step.kind in ("time", "limit", "enforce", "restart", "other payload"):
            await self._rare(step)
            return
        fits = await self._fits(step) if step.kind == "check" and not self._named(step) else None
        try:
            decision = await self._do(step, await self._live())
        except SignalError as error:
            event(f"{step.kind}: {error.code}")
            self._expected(error)
            return
        if step.kind == "check":
            event(f"check: approved {decision.approved}")
        if fits is not None:
            assert decision.approved == fits, f"approved {decision.approved}, but it fits is {fits}: {decision}"

    def _expected(self, result: object) -> None:
        """Callers may hear that something conflicts, never that a lock was lost."""
        if isinstance(result, SignalError):
            assert result.code == "conflict", result
        elif isinstance(result, BaseException):
            raise result

    async def _killed(self, countdown: int, steps: list[Step]) -> None:
        """Somebody is killed at the ``countdown``-th write; the bus delivers usage again that was not acknowledged."""
        live = await self._live()
        await self.oracle.execute("SELECT setval('crash_countdown', $1)", -countdown)
        before = len(self.sent)
        results = await asyncio.gather(*(self._do(s, live) for s in steps), return_exceptions=True)
        await self.oracle.execute("SELECT setval('crash_countdown', 1)")
        for step, result in zip(steps, results, strict=True):
            if isinstance(result, SignalError):
                assert result.code in ("conflict", "unavailable"), result
            elif isinstance(result, BaseException):
                assert is_unavailable(result), result
            if isinstance(result, BaseException) and step.flag:
                await self._agent(step).restart()
        event("killed" if any(_away(result) for result in results) else "nobody was killed")
        redelivered = self.sent[before:]
        if redelivered:
            effects = await self.world.agents[0].apply(redelivered)
            assert set(effects.values()) <= {"applied", "duplicate"}

    def _agent(self, step: Step) -> LedgerAgent:
        return self.world.agents[step.agent]

    async def _live(self) -> list[str]:
        sql = "SELECT reservation_id FROM reservation WHERE org_id = $1 AND status = 'live' ORDER BY decided_at, 1"
        return [str(row["reservation_id"]) for row in await self.oracle.fetch(sql, self.world.org)]

    def _do(self, step: Step, live: list[str]) -> Awaitable[Any]:
        agent = self._agent(step)
        if step.kind == "check":
            return agent.submit(**self._call(step))
        if step.kind == "sweep":
            until = self.world.now() - timedelta(minutes=step.size)
            return agent.sweep(Applied(drained=step.flag, until=until))
        if step.kind == "again" and self.sent:
            return agent.apply([msgspec.structs.replace(e) for e in self.sent[step.which :: 5]] or self.sent[:1])
        if not live or step.kind in ("usage", "again"):
            return self._send(agent, **self._who(step), completion_tokens=step.size // 4, latency_ms=step.size / 7)
        reservation_id = live[step.which % len(live)]
        if step.kind == "release":
            return agent.release(reservation_id)
        if step.kind == "extend":
            new = {"prompt_tokens": 0, "max_completion_tokens": step.size} if step.flag else {}
            return agent.extend(reservation_id, ttl_s=60 + step.size * 60, **new)
        model = "odd" if step.which % 3 == 0 else "cent"
        final = step.kind == "settle"
        return self._send(
            agent, model=model, prompt_tokens=step.which, completion_tokens=step.size // 2,
            reservation_id=reservation_id, final=final,
        )  # fmt: skip

    async def _send(self, agent: LedgerAgent, **fields: Any) -> Any:
        sent = agent.event(id=f"e{next(self.names)}", **fields)
        self.sent.append(sent)
        return await agent.apply([sent])

    def _named(self, step: Step) -> bool:
        return step.which > 8

    def _who(self, step: Step) -> dict[str, Any]:
        who = {"user_id": f"u{step.which % 3}", "team_id": f"t{step.which % 2}"}
        return who if step.which % 4 else {"team_id": "t0"}

    def _call(self, step: Step) -> dict[str, Any]:
        call = {**self._who(step), "max_completion_tokens": step.size, "ttl_s": 30 + 60 * step.size}
        call["model"] = "odd" if step.which % 5 == 0 else "cent"
        if self._named(step):
            call["request_id"] = f"r{step.which}"
        return call

    async def _rare(self, step: Step) -> None:
        if step.kind == "time":
            await self.world.wait(minutes=(1, 20, 59, 600, 1440)[step.which % 5])
        elif step.kind == "limit":
            n = step.which % len(self.budgets)
            limit = max(1, self.budgets[n].base_limit * (step.size + 1) // 60)
            await self.world.change(self.budgets[n], base_limit=limit)
        elif step.kind == "enforce":
            await self.world.change(
                self.budgets[step.which % len(self.budgets)], enforcement="warn" if step.flag else "block"
            )
        elif step.kind == "restart":
            await self._agent(step).restart()
        elif self.sent:
            known = self.sent[step.which % len(self.sent)]
            changed = msgspec.structs.replace(known, payload_hash=b"another payload!", cost=1)
            assert (await self._agent(step).apply([changed]))[0] == "conflict"

    async def _fits(self, step: Step) -> bool | None:
        """Whether a call fits, by asking the rows directly; None where a window is yet to be opened with a carry."""
        call = self._call(step)
        cost = step.size * (10_000_000 if call["model"] == "cent" else 0)
        if call["model"] == "odd":
            cost = -(-step.size * 1501 // 10)
        rows = await self.oracle.fetch(
            """SELECT b.unit, b.enforcement, b.base_limit + b.base_limit * b.overage_percent / 100 AS base,
                      b.rollover_policy, w.window_id, coalesce(w.carry, 0) AS carry,
                      coalesce(w.spent + w.reserved, 0) AS taken
               FROM budget b LEFT JOIN budget_window w ON w.org_id = b.org_id AND w.budget_id = b.budget_id
                AND w.entity_id = CASE b.type WHEN 'global' THEN '*' WHEN 'team' THEN $2 ELSE $3 END
                AND w.starts_at = date_trunc(CASE b.period WHEN 'hourly' THEN 'hour' WHEN 'daily' THEN 'day'
                    ELSE 'month' END, $5::timestamptz, 'UTC')
               WHERE b.org_id = $1 AND (b.type <> 'user' OR $3::text IS NOT NULL)
                 AND coalesce(b.filters ->> 'model', $4) = $4""",
            self.world.org, call["team_id"], call.get("user_id"), call["model"], self.world.now(),
        )  # fmt: skip
        fits = True
        for row in rows:
            if row["window_id"] is None and row["rollover_policy"] != "none":
                return None
            amount = {"cost": cost, "tokens": step.size, "requests": 1}[row["unit"]]
            room = row["base"] + row["carry"] - row["taken"]
            fits = fits and (row["enforcement"] != "block" or not amount or amount <= room)
        return fits


def _away(result: object) -> bool:
    if isinstance(result, SignalError):
        return result.code == "unavailable"
    return isinstance(result, BaseException) and is_unavailable(result)


async def _budgets(world: World) -> list[BudgetRow]:
    return [
        await world.budget(limit=3, period="daily", alert_thresholds=(25, 50, 100)),
        await world.budget(type="team", limit=2, overage_percent=10, on_expiry="settle"),
        await world.budget(type="user", unit="tokens", limit=150, period="hourly"),
        await world.budget(type="user", unit="requests", limit=5, period="daily", enforcement="warn"),
        await world.budget(
            limit=2, filters={"model": "cent"}, period="daily", rollover_policy="full", on_expiry="settle"
        ),
    ]


@examples(12)
@given(_steps)
async def test_whatever_happens_in_whatever_order_every_promise_holds_after_every_step(
    database_url: str, steps: list[Step | list[Step] | tuple[int, list[Step]]]
) -> None:
    org = f"org-{next(_orgs)}"
    async with world_of(database_url, agents=AGENTS, org=org) as world, world.connection() as oracle:
        if not await oracle.fetchval("SELECT to_regclass('crash_countdown')"):
            await oracle.execute(CRASH)
        run = Run(world, await _budgets(world), oracle)
        for step in steps:
            await run.take(step)
        await _replays(world, run.budgets)
        await oracle.execute("DELETE FROM reservation")


# Replay -----------------------------------------------------------------------------------------------------------

_SPENT: Final = """
SELECT w.budget_id, w.entity_id, w.starts_at, w.spent - coalesce(p.presumed, 0) AS spent FROM budget_window w
LEFT JOIN (SELECT h.window_id, sum(h.held) AS presumed FROM reservation r
    CROSS JOIN LATERAL unnest(r.window_ids, r.held) AS h (window_id, held)
    WHERE r.org_id = $1 AND r.presumed GROUP BY 1) p USING (window_id)
WHERE w.org_id = $1 AND w.spent - coalesce(p.presumed, 0) <> 0 ORDER BY 1, 2, 3"""


_COPIES: Final = (
    """INSERT INTO budget SELECT (jsonb_populate_record(b, jsonb_build_object('org_id', $2::text))).* FROM budget b
       WHERE org_id = $1""",
    "INSERT INTO org_catalogue SELECT $2, version FROM org_catalogue WHERE org_id = $1",
    """INSERT INTO reservation (org_id, reservation_id, request_id, body_hash, decided_at, expires_at, attribution,
           estimated_tokens, window_ids, held)
       SELECT $2, reservation_id, reservation_id::text, '', decided_at, expires_at, attribution, 0, '{}', '{}'
       FROM reservation WHERE org_id = $1""",
)


async def _replays(world: World, budgets: Sequence[BudgetRow]) -> None:
    """All events once more, into a ledger that has nothing but the budgets and when each call was decided."""
    async with world_of(world.url, org=f"{world.org}-replay", start=world.now()) as empty, world.connection() as db:
        for sql in _COPIES:
            await db.execute(sql, world.org, empty.org)
        rows = await db.fetch(
            """SELECT e.*, i.payload_hash FROM usage_event e JOIN usage_id i USING (org_id, id)
               WHERE org_id = $1 ORDER BY e.final, md5(e.id)""",
            world.org,
        )
        events = [_event(dict(row), empty.org) for row in rows]
        agent = empty.agents[0]
        for start in range(0, len(events), 7):
            assert set((await agent.apply(events[start : start + 7])).values()) == {"applied"}
        assert await db.fetch(_SPENT, world.org) == await db.fetch(_SPENT, empty.org)
        columns = """bucket, dimension_key, requests, prompt_tokens, completion_tokens, cost, latency_count,
            latency_us_sum, latency_histogram, size_histogram"""
        rollups = f"SELECT {columns} FROM usage_rollup WHERE org_id = $1 ORDER BY 1, 2"
        assert await db.fetch(rollups, world.org) == await db.fetch(rollups, empty.org)
        assert await agent.apply(events[:3]) == dict.fromkeys(range(len(events[:3])), "duplicate")


def _event(row: dict[str, Any], org: str) -> PricedEvent:
    """An event as it was when it arrived: whether it had a reservation left to settle is part of its history."""
    values: dict[str, Any] = {name: row[name] for name in (*COLUMNS, "payload_hash")}
    values["org_id"] = org
    values["reservation_id"] = str(row["reservation_id"]) if row["reserved"] else None
    values["request_id"] = None
    return PricedEvent(**values)
