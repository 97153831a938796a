"""Any interleaving of what agents can do, on a real PostgreSQL: after every step every promise holds.

A generated list of steps is carried out by three agents that share nothing but the database. Some steps run at once,
some are killed in the middle of a transaction, after which the agent starts with nothing in memory and the bus delivers
the same usage again. Meanwhile limits, enforcement, overrides, brakes and the directory change. At the end all events
are replayed from scratch and must give the same rollups and spending.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec
from hypothesis import event, given
from hypothesis import strategies as st

from handlers.adjustments.adjust import histories_of
from handlers.adjustments.posting import Decided, Posting
from handlers.adjustments.standing import read
from handlers.enforcer.catalogue import Catalogue
from handlers.enforcer.sweep import Applied
from handlers.enforcer.transaction import ledger_transaction
from handlers.tracker.priced import COLUMNS, PricedEvent
from schemas.budget import BudgetDecision, BudgetWindow
from schemas.errors import SignalError
from store.adjustments import AdjustmentRow
from store.budgets import BudgetRow
from store.pool import Connection, is_unavailable
from tests.ledger.expected import Book, Call, plain_limit, verdict
from tests.ledger.oracle import JOURNAL, violations
from tests.support.ledger import CARDS, LedgerAgent, World, card, examples, world_of

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
        for table in (
            *("usage_id", "usage_event", "usage_rollup", "reservation", "budget_window", "outbox"),
            *("adjustment", "adjustment_entry"),
        )
    )
    + "".join(
        f"""CREATE CONSTRAINT TRIGGER crash_at_commit AFTER INSERT OR UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION crash();"""
        for table in ("usage_id", "reservation", "adjustment")
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
    "adjust",
    "adjust",
    "reprice",
)
# What people change while agents decide. A flash is an override that begins and ends within milliseconds.
_CHANGES: Final = ("limit", "enforce", "enforce", "override", "override", "flash", "brake", "member", "rollover")
_ALONE: Final = ("time", "time", "time", "restart", "other payload", "price", "price")
# What a model costs that had no price at first, by how often that was changed.
_LATER: Final = ("10000", "0.25", None, "20000")
_ENFORCEMENTS: Final = ("block", "shadow", "throttle", "warn", "downgrade")


def _steps_of(kinds: Sequence[str]) -> st.SearchStrategy[Step]:
    agents, sizes = st.integers(0, AGENTS - 1), st.integers(0, 120)
    return st.builds(Step, st.sampled_from(kinds), agents, st.integers(0, 11), sizes, st.booleans())


def _one_after(found: tuple[Step, list[Step]]) -> list[Step]:
    return [found[0], *found[1]]


_operation, _change = _steps_of(_OPERATIONS), _steps_of(_CHANGES)
_burst = st.lists(st.one_of(_operation, _operation, _operation, _change), min_size=2, max_size=12)
_flash = st.tuples(_steps_of(("flash",)), st.lists(_steps_of(("check",)), min_size=3, max_size=8)).map(_one_after)
_crash = st.tuples(st.integers(1, 14), st.lists(_operation, min_size=1, max_size=6))
_steps = st.lists(
    st.one_of(_operation, _operation, _change, _steps_of(_ALONE), _burst, _flash, _crash),
    min_size=8,
    max_size=25,
)


class Run:
    """One example: an org, its agents, and what was sent so far."""

    def __init__(self, world: World, budgets: list[BudgetRow], oracle: Connection) -> None:
        self.world = world
        self.budgets = budgets
        self.oracle = oracle
        self.sent: list[PricedEvent] = []
        self.names = itertools.count()
        # Every limit a budget ever had; how many brakes there were, counting those switched off.
        self.bases = {budget.budget_id: {budget.base_limit} for budget in budgets}
        self.brakes: set[tuple[str, str]] = set()
        self.braked_once = False

    async def take(self, step: Step | list[Step] | tuple[int, list[Step]]) -> None:
        """Carry out a step, several at once, or several of which one is killed."""
        if isinstance(step, Step):
            await self._alone(step)
        elif isinstance(step, list):
            live, before = await self._live(), self.world.now()
            results = await asyncio.gather(*(self._do(s, live) for s in step), return_exceptions=True)
            for result in results:
                self._expected(result)
            await self._denials(step, results, before)
        else:
            await self._killed(*step)
        found = await violations(self.oracle, self.world.org, journaled=True)
        assert not found, found

    async def _alone(self, step: Step) -> None:
        if step.kind in _ALONE:
            await self._rare(step)
            return
        before = await self._book()
        try:
            decision = await self._do(step, await self._live())
        except SignalError as error:
            event(f"{step.kind}: {error.code}")
            self._expected(error)
            return
        if step.kind == "check":
            event(f"check: {decision.reason.code if decision.reason else 'approved'}")
            if not self._named(step):
                await self._as_expected(step, decision, before)

    async def _book(self) -> Book:
        return await Book.read(self.oracle, self.world.org, self.world.now())

    async def _as_expected(self, step: Step, decision: BudgetDecision, before: Book) -> None:
        """A check that nothing disturbed comes to exactly what the rows say (P3: denied only where it did not fit)."""
        after = await self._book()
        expected = verdict(before, after, self._amounts(step))
        if expected is None:
            event("check: time changed it")
            return
        reason = decision.reason
        assert reason.code in expected.codes if reason else not expected.codes, f"{decision}: {expected}"
        assert frozenset(reason.budgets if reason else ()) == expected.full, f"{decision}: {expected}"
        shadows = {w.split("'")[1] for w in decision.warnings if w.startswith("would be denied (shadow)")}
        assert shadows == expected.shadows, decision
        if expected.retry_at is None:
            assert decision.retry_after_s is None, decision
        else:
            assert decision.retry_after_s is not None, decision
            latest, earliest = ((expected.retry_at - at).total_seconds() for at in (before.at, after.at))
            assert earliest <= decision.retry_after_s <= latest + 1, decision

    async def _denials(self, steps: Sequence[Step], results: Sequence[object], since: datetime) -> None:
        """Those decided at the same time, too: what a denial shows was so, and by it nothing fitted."""
        denied = [
            (s, r)
            for s, r in zip(steps, results, strict=True)
            if s.kind == "check" and isinstance(r, BudgetDecision) and not r.approved
        ]
        if not denied:
            return
        book = await self._book()
        for step, decision in denied:
            assert decision.reason is not None
            event(f"at once: {decision.reason.code}")
            assert decision.reason.code != "kill_switch" or self.braked_once
            if decision.reason.code not in ("budget_exceeded", "throttled"):
                continue
            for shown in decision.budgets:
                await self._was_full(shown, self._amounts(step), book, since)

    async def _was_full(self, shown: BudgetWindow, call: Call, book: Book, since: datetime) -> None:
        budget = next(row for row in book.budgets if str(row["budget_id"]) == shown.budget_id)
        scale = 1_000_000_000 if budget["unit"] == "cost" else 1
        spent, reserved, limit, base = (
            int(Decimal(text) * scale) for text in (shown.spent, shown.reserved, shown.limit, shown.base_limit)
        )
        entity = str(self.world.key(shown.type, shown.entity_id))
        assert spent + reserved + call.amounts[budget["unit"]] > limit, shown
        rows = await self.oracle.fetch(
            """SELECT (now).spent, (now).reserved, (now).carry FROM journal WHERE org_id = $1 AND kind <> 'reserved'
               AND (now).budget_id = $2 AND (now).entity_id = $3 AND (now).starts_at = $4 ORDER BY n""",
            self.world.org, budget["budget_id"], entity, shown.window_start,
        )  # fmt: skip
        # Calls of the same batch are decided one after the other, and written together.
        later = [*rows[1:], rows[-1]]
        assert any(
            a["spent"] == spent
            and a["reserved"] <= reserved <= max(a["reserved"], b["reserved"] if b["spent"] == spent else 0)
            for a, b in zip(rows, later, strict=True)
        ), f"{shown} was never so: {rows}"
        assert base in self.bases[shown.budget_id], shown
        ends = [max(since, row["starts_at"]) < row["ends_at"] and row["starts_at"] <= book.at for row in book.overrides]
        raises = [
            row["amount"]
            for row, held in zip(book.overrides, ends, strict=True)
            if held and (row["budget_id"], row["entity_id"]) == (budget["budget_id"], entity)
        ]
        sums = {sum(chosen) for n in range(len(raises) + 1) for chosen in itertools.combinations(raises, n)}
        assert limit - plain_limit({**budget, "base_limit": base}, rows[0]["carry"]) in sums, shown

    def _expected(self, result: object) -> None:
        """Callers may hear that something conflicts, never that a lock was lost."""
        if isinstance(result, SignalError):
            assert result.code == "conflict", result
        elif isinstance(result, BaseException):
            raise result

    async def _killed(self, countdown: int, steps: list[Step]) -> None:
        """Somebody is killed at the ``countdown``-th write; the bus delivers usage again that was not acknowledged."""
        live, since = await self._live(), self.world.now()
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
        await self._denials(steps, results, since)
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
        if step.kind in _CHANGES:
            return self._change(step)
        if step.kind == "check":
            return agent.submit(**self._call(step))
        if step.kind == "sweep":
            until = self.world.now() - timedelta(minutes=step.size)
            return agent.sweep(Applied(drained=step.flag, until=until))
        if step.kind == "reprice":
            return agent.reprice(only="all" if step.flag else "unpriced", limit=1 + step.size)
        if step.kind == "adjust":
            return self._adjust(step)
        if step.kind == "again" and self.sent:
            return agent.apply([msgspec.structs.replace(e) for e in self.sent[step.which :: 5]] or self.sent[:1])
        if not live or step.kind in ("usage", "again"):
            model = "later" if step.which % 3 == 2 else "cent"
            sent = {"model": model, "completion_tokens": step.size // 4, "latency_ms": step.size / 7}
            return self._send(agent, **self._who(step), **sent)
        reservation_id = live[step.which % len(live)]
        if step.kind == "release":
            return agent.release(reservation_id)
        if step.kind == "extend":
            new = {"prompt_tokens": 0, "max_completion_tokens": step.size} if step.flag else {}
            return agent.extend(reservation_id, ttl_s=60 + step.size * 60, **new)
        model = ("odd", "cent", "later", "cent")[step.which % 4]
        final = step.kind == "settle"
        return self._send(
            agent, model=model, prompt_tokens=step.which, completion_tokens=step.size // 2,
            reservation_id=reservation_id, final=final,
        )  # fmt: skip

    async def _send(self, agent: LedgerAgent, **fields: Any) -> Any:
        sent = agent.event(id=f"e{next(self.names)}", **fields)
        self.sent.append(sent)
        return await agent.apply([sent])

    async def _adjust(self, step: Step) -> None:
        """Void, correct or refund something that was sent; it may be refused, for what it says or what stands now."""
        if not self.sent:
            return
        usage_id = self.sent[step.size % len(self.sent)].id
        kind, fields = _ADJUSTMENTS[step.which % len(_ADJUSTMENTS)](step.size)
        named = {"adjustment_id": f"a{step.size % 7}"} if step.flag else {}
        try:
            made = await self._agent(step).adjust(usage_id, kind, **fields, **named)
        except SignalError as error:
            event(f"adjust: {error.code}")
            if error.code == "unavailable":
                raise
            too_much = error.code == "invalid_request" and kind == "refund"
            assert too_much or error.code in ("conflict", "not_found"), error
            return
        event(f"adjust: {kind}{' again' if made.duplicate else ''}")

    def _named(self, step: Step) -> bool:
        return step.which > 8

    def _who(self, step: Step) -> dict[str, Any]:
        who = {"user_id": f"u{step.which % 3}", "team_id": f"t{step.which % 2}"}
        if step.which == 7:
            return {"user_id": "u0"}  # Whatever team the directory knows.
        return who if step.which % 4 else {"team_id": "t0"}

    def _call(self, step: Step) -> dict[str, Any]:
        call = {**self._who(step), "max_completion_tokens": step.size, "ttl_s": 30 + 60 * step.size}
        call["model"] = "odd" if step.which % 5 == 0 else "cent"
        if self._named(step):
            call["request_id"] = f"r{step.which}"
        return call

    def _amounts(self, step: Step) -> Call:
        call = self._call(step)
        cost = step.size * 10_000_000 if call["model"] == "cent" else -(-step.size * 1501 // 10)
        amounts = {"cost": cost, "tokens": step.size, "requests": 1}
        user = self.world.key("user", call.get("user_id"))
        return Call("acme", call["model"], amounts, user, call.get("team_id"))

    async def _change(self, step: Step) -> None:
        budget = self.budgets[step.which % len(self.budgets)]
        of = {"global": "*", "team": f"t{step.size % 2}", "user": f"u{step.size % 3}"}[budget.type]
        amount = max(1, budget.base_limit * (step.size + 1) // 60)
        if step.kind == "limit":
            self.bases[budget.budget_id].add(amount)
            await self.world.change(budget, base_limit=amount)
        elif step.kind == "enforce" and budget.gate_id is None:
            await self.world.change(budget, enforcement=_ENFORCEMENTS[step.size % len(_ENFORCEMENTS)])
        elif step.kind == "rollover":
            await self.world.change(budget, rollover_policy=("none", "full", "capped")[step.size % 3])
        elif step.kind == "override":
            hours, delay_s = (0.2, 1, 11, 30)[step.size % 4], 3600 * step.flag
            await self.world.override(budget, amount, hours=hours, entity=of, delay_s=delay_s)
        elif step.kind == "flash":
            await self.world.override(
                budget, amount, hours=(step.which + 1) / 3_600_000, entity=of, delay_s=step.size / 20_000
            )
        elif step.kind == "brake":
            await self._brake(step)
        elif step.kind == "member":
            await self._member(step)

    async def _brake(self, step: Step) -> None:
        brake = (("team", "t1"), ("model", "odd"), ("provider", "other"), ("org", "*"))[step.which % 4]
        if brake in self.brakes or not step.flag:
            self.brakes.clear()
            await self.world.put("DELETE FROM brake WHERE org_id = $1")
        else:
            self.brakes.add(brake)
            self.braked_once = True
            await self.world.brake(*brake)

    async def _member(self, step: Step) -> None:
        user = self.world.key("user", f"u{step.which % 3}")
        if step.flag:
            sql = "INSERT INTO team_member VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
            await self.world.put(sql, user, f"t{step.size % 2}")
        else:
            await self.world.put("DELETE FROM team_member WHERE org_id = $1 AND user_id = $2", user)

    async def _rare(self, step: Step) -> None:
        if step.kind == "time":
            await self.world.wait(minutes=(1, 1, 20, 59, 600, 1440)[step.which % 6])
        elif step.kind == "restart":
            await self._agent(step).restart()
        elif step.kind == "price":
            set_price(self.world.agents, _LATER[step.size % len(_LATER)])
        elif self.sent:
            known = self.sent[step.which % len(self.sent)]
            changed = msgspec.structs.replace(known, payload_hash=b"another payload!", cost=1)
            assert (await self._agent(step).apply([changed]))[0] == "conflict"


_ADJUSTMENTS: Final[tuple[Callable[[int], tuple[str, dict[str, Any]]], ...]] = (
    lambda size: ("void", {}),
    lambda size: ("correct", {"completion_tokens": size}),
    lambda size: ("correct", {"completion_tokens": size // 3, "prompt_tokens": size // 5}),
    lambda size: ("correct", {"model": ("odd", "cent", "later", "nothing")[size % 4]}),
    lambda size: ("correct", {"cost": f"0.{size:03}"}),
    lambda size: ("refund", {"amount": f"0.{1 + size // 4:02}"}),
)


def set_price(agents: Sequence[LedgerAgent], output: str | None) -> None:
    """From now on the model ``later`` costs that much, or has no price."""
    CARDS.pop("later", None)
    if output is not None:
        CARDS["later"] = card("later", input="0", output=output)
    for agent in agents:
        agent.services.rate_cards.forget()


def _away(result: object) -> bool:
    if isinstance(result, SignalError):
        return result.code == "unavailable"
    return isinstance(result, BaseException) and is_unavailable(result)


async def _budgets(world: World, more: Sequence[str]) -> list[BudgetRow]:
    budgets = [
        await world.budget(limit=3, period="daily", alert_thresholds=(25, 50, 100)),
        await world.budget(type="team", limit=2, overage_percent=10, on_expiry="settle"),
        await world.budget(type="user", unit="tokens", limit=150, period="hourly"),
        await world.budget(type="user", unit="requests", limit=5, period="daily", enforcement="warn"),
        await world.budget(
            limit=2, filters={"model": "cent"}, period="daily", rollover_policy="full", on_expiry="settle"
        ),
    ]
    for name in more:
        budgets += await _MORE[name](world)
    return budgets


async def _gated(world: World) -> list[BudgetRow]:
    """A daily budget that people go on beyond at a rate of two calls a minute and of 40 tokens an hour."""
    main = await world.budget(type="team", unit="tokens", limit=60, period="daily", enforcement="throttle")
    shared: dict[str, Any] = {"type": "team", "enforcement": "throttle", "gate_id": main.budget_id}
    calls = await world.budget(unit="requests", limit=2, period="minute", **shared)
    tokens = await world.budget(unit="tokens", limit=40, period="hourly", **shared)
    return [main, calls, tokens]


def _one(**fields: Any) -> Callable[[World], Awaitable[list[BudgetRow]]]:
    async def make(world: World) -> list[BudgetRow]:
        return [await world.budget(**fields)]

    return make


_MORE: Final[dict[str, Callable[[World], Awaitable[list[BudgetRow]]]]] = {
    "calls a minute": _one(unit="requests", limit=6, period="minute", enforcement="throttle"),
    "tokens an hour": _one(type="user", unit="tokens", limit=120, period="hourly", enforcement="throttle"),
    "cost an hour": _one(limit=2, period="hourly", enforcement="throttle", overage_percent=5),
    "gated": _gated,
    "shadow": _one(limit=1, period="daily", enforcement="shadow", timezone="Asia/Kathmandu"),
    "full, Vienna": _one(type="user", limit=1, period="daily", timezone="Europe/Vienna", rollover_policy="full"),
    "capped, Chatham": _one(
        type="team", limit=1, period="hourly", timezone="Pacific/Chatham", rollover_policy="capped", rollover_percent=40
    ),
    "full, New York": _one(
        unit="requests", limit=9, period="weekly", timezone="America/New_York", rollover_policy="full"
    ),
    "minutes carried": _one(
        unit="tokens", limit=60, period="minute", enforcement="throttle", rollover_policy="capped", rollover_percent=50
    ),
}


# What a run came across, for --hypothesis-show-statistics.
_SEEN: Final = """
SELECT coalesce(bool_or(cardinality(limits) > 1), false) AS "a limit changed within a transaction",
       coalesce(bool_or((now).shadow_denied > 0), false) AS "a shadow would have denied",
       coalesce(bool_or(kind = 'opened' AND (now).carry > 0), false) AS "something was carried",
       coalesce(bool_or(kind = 'reserved' AND limits[1] > (b).base_limit * 1.1 + (now).carry), false)
           AS "a hold under an override"
FROM journal WHERE org_id = $1"""


@examples(12)
@given(st.sets(st.sampled_from(sorted(_MORE)), min_size=2, max_size=4).map(sorted), _steps)
async def test_whatever_happens_in_whatever_order_every_promise_holds_after_every_step(
    database_url: str, more: list[str], steps: list[Step | list[Step] | tuple[int, list[Step]]]
) -> None:
    org = f"org-{next(_orgs)}"
    async with world_of(database_url, agents=AGENTS, org=org) as world, world.connection() as oracle:
        if not await oracle.fetchval("SELECT to_regclass('crash_countdown')"):
            await oracle.execute(JOURNAL + CRASH)
        set_price(world.agents, None)
        run = Run(world, await _budgets(world, more), oracle)
        for step in steps:
            await run.take(step)
        for what, happened in (await oracle.fetch(_SEEN, org))[0].items():
            event(f"{what}: {happened}")
        await _replays(world, run.budgets)
        await oracle.execute("DELETE FROM reservation")


# Replay -----------------------------------------------------------------------------------------------------------

_SPENT: Final = """
SELECT w.budget_id, w.entity_id, w.starts_at, w.spent - coalesce(p.presumed, 0) AS spent FROM budget_window w
LEFT JOIN (SELECT h.window_id, sum(h.held) AS presumed FROM reservation r
    CROSS JOIN LATERAL unnest(r.window_ids, r.held) AS h (window_id, held)
    WHERE r.org_id = $1 AND r.presumed GROUP BY 1) p USING (window_id)
WHERE w.org_id = $1 AND w.spent - coalesce(p.presumed, 0) <> 0 ORDER BY 1, 2, 3"""


_ADJUSTED: Final = "SELECT * FROM adjustment WHERE org_id = $1 ORDER BY usage_id, sequence"
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
        await _adjust_again(agent, [dict(row) for row in await db.fetch(_ADJUSTED, world.org)])
        assert await db.fetch(_SPENT, world.org) == await db.fetch(_SPENT, empty.org)
        columns = """bucket, dimension_key, requests, prompt_tokens, completion_tokens, cost, latency_count,
            latency_us_sum, latency_histogram, size_histogram"""
        rollups = f"SELECT {columns} FROM usage_rollup WHERE org_id = $1 ORDER BY 1, 2"
        assert await db.fetch(rollups, world.org) == await db.fetch(rollups, empty.org)
        assert await agent.apply(events[:3]) == dict.fromkeys(range(len(events[:3])), "duplicate")


async def _adjust_again(agent: LedgerAgent, rows: Sequence[Mapping[str, Any]]) -> None:
    """The same states again, one by one, whatever prices and rates say by now."""
    org = agent.world.org
    for row in rows:
        values: dict[str, Any] = {**row, "org_id": org}
        made = AdjustmentRow(**values)

        async def work(connection: Connection, catalogue: Catalogue, made: AdjustmentRow = made) -> None:
            history = (await histories_of(connection, org, [made.usage_id]))[made.usage_id]
            posting = Posting(agent.services, connection, catalogue, made_by="replay", made_at=agent.world.now())
            await posting.learn([history])
            after = read(history.event, made.after)
            decided = Decided(
                history, f"replay-{made.adjustment_id}", made.sequence, made.kind, "replay", b"", history.stand, after
            )
            await posting.decide(decided)
            await posting.post(dry_run=False)

        await ledger_transaction(agent.services, org, work)


def _event(row: dict[str, Any], org: str) -> PricedEvent:
    """An event as it was when it arrived: whether it had a reservation left to settle is part of its history."""
    values: dict[str, Any] = {name: row[name] for name in (*COLUMNS, "payload_hash")}
    values["org_id"] = org
    values["reservation_id"] = str(row["reservation_id"]) if row["reserved"] else None
    values["request_id"] = None
    return PricedEvent(**values)
