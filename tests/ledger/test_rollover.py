"""Rollover (R14) against an independent model: what is left when a window turns, in the budget's zone, exactly once.

The model keeps a plain list of what was spent and held in each local day or month, found by the wall clock alone.
"""

import asyncio
import itertools
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ledger.oracle import JOURNAL, violations
from tests.support.ledger import CENT, LedgerAgent, World, examples, world_of

DAY: Final = timedelta(days=1)
LIMIT: Final = 100  # Cents, and tokens of model "cent".
PERCENT: Final = 30
POLICIES: Final = ("none", "full", "capped")
_orgs = itertools.count(1)


def local_noon(day: date, zone: str) -> datetime:
    """Noon of a local day, in UTC."""
    return datetime(day.year, day.month, day.day, 12, tzinfo=ZoneInfo(zone)).astimezone(UTC)


def midnight(day: date, zone: str) -> datetime:
    """When the wall clock first says that it is ``day``: found minute by minute."""
    at = local_noon(day, zone) - timedelta(hours=14)
    while at.astimezone(ZoneInfo(zone)).date() < day:
        at += timedelta(minutes=1)
    return at


@dataclass
class Model:
    """One budget's windows in cents, keyed by the first local day of each."""

    policy: str
    monthly: bool
    made: date  # The day on which the budget was made.
    carries: dict[date, int] = field(default_factory=dict[date, int])
    taken: dict[date, int] = field(default_factory=dict[date, int])

    def first_day(self, day: date) -> date:
        """The first day of the window that holds ``day``."""
        return day.replace(day=1) if self.monthly else day

    def following(self, start: date) -> date:
        """The first day of the window after the one that begins on ``start``."""
        return self.first_day(start + timedelta(days=32)) if self.monthly else start + DAY

    def open(self, day: date) -> date:
        """Open the window of ``day``: walk to it window by window, each idle one keeping its whole limit."""
        start = self.first_day(day)
        if start in self.carries:
            return start
        carry, at = 0, self.first_day(self.made)
        before = [known for known in self.carries if known < start]
        if before:
            at = max(before)
            carry = self._kept(LIMIT + self.carries[at] - self.taken[at])
            at = self.following(at)
        while at < start:
            carry = self._kept(LIMIT + carry)
            at = self.following(at)
        self.carries[start], self.taken[start] = carry, 0
        return start

    def _kept(self, remaining: int) -> int:
        left = max(0, remaining)
        return {"none": 0, "full": left, "capped": min(left, LIMIT * PERCENT // 100)}[self.policy]

    def room(self, day: date) -> int:
        """What still fits in the window of ``day``."""
        start = self.open(day)
        return LIMIT + self.carries[start] - self.taken[start]


async def _check_all(world: World, model: Model, zone: str) -> None:
    rows = await world.fetch("SELECT * FROM budget_window WHERE org_id = $1 ORDER BY starts_at", world.org)
    assert [row["carry"] for row in rows] == [carry * CENT for _, carry in sorted(model.carries.items())]
    for row, start in zip(rows, sorted(model.carries), strict=True):
        assert row["starts_at"] == midnight(start, zone)
        assert row["ends_at"] == midnight(model.following(start), zone)
        assert row["spent"] + row["reserved"] == model.taken[start] * CENT


# Month ends, leap days, DST ------------------------------------------------------------------------------------------

TURNS: Final = [
    # zone, the days of which the first is before the turn, monthly
    ("Europe/Vienna", (date(2031, 1, 31), date(2031, 2, 28), date(2031, 3, 31), date(2031, 4, 30)), True),
    ("Europe/Vienna", (date(2028, 1, 31), date(2028, 2, 29), date(2028, 3, 1)), True),
    ("Asia/Kathmandu", (date(2032, 1, 31), date(2032, 2, 29), date(2032, 5, 31), date(2032, 6, 30)), True),
    ("America/New_York", (date(2031, 12, 31), date(2032, 1, 1), date(2033, 3, 31)), True),
    ("UTC", (date(2028, 2, 28), date(2028, 2, 29), date(2028, 3, 1)), False),
    ("Pacific/Chatham", (date(2032, 2, 28), date(2032, 3, 1), date(2032, 3, 2)), False),
    ("Europe/Vienna", (date(2031, 3, 29), date(2031, 3, 30), date(2031, 3, 31), date(2031, 4, 4)), False),
    ("Europe/Vienna", (date(2031, 10, 25), date(2031, 10, 26), date(2031, 10, 27)), False),
    ("America/Santiago", (date(2031, 9, 5), date(2031, 9, 6), date(2031, 9, 7), date(2031, 9, 8)), False),
    ("America/Santiago", (date(2031, 4, 4), date(2031, 4, 5), date(2031, 4, 6), date(2031, 4, 9)), False),
    ("America/Havana", (date(2031, 11, 1), date(2031, 11, 2), date(2031, 11, 3)), False),
    ("Australia/Lord_Howe", (date(2031, 10, 4), date(2031, 10, 5), date(2031, 10, 6)), False),
]


@pytest.mark.parametrize("policy", ["full", "capped"])
@pytest.mark.parametrize(("zone", "days", "monthly"), TURNS, ids=[f"{z} {d[0]}" for z, d, _ in TURNS])
async def test_what_is_left_goes_over_each_turn_of_the_budgets_own_calendar(
    world: World, policy: str, zone: str, days: tuple[date, ...], monthly: bool
) -> None:
    model = Model(policy, monthly, days[0])
    await world.go_to(local_noon(days[0], zone))
    await world.budget(
        limit=1,
        period="monthly" if monthly else "daily",
        timezone=zone,
        rollover_policy=policy,
        rollover_percent=PERCENT,
    )
    for n, day in enumerate(days):
        # The last seconds of a window, then the first of the next, told apart by the wall clock.
        if n:
            first = midnight(model.first_day(day), zone)
            if model.first_day(day) != model.first_day(days[n - 1]):
                await world.go_to(first - timedelta(seconds=30))
                early = model.open(model.first_day(day) - DAY)
                await world.agents[1].track(completion_tokens=1)
                model.taken[early] += 1
            await world.go_to(max(first, local_noon(day, zone) - timedelta(hours=12)) + timedelta(seconds=1))
        room = model.room(day)
        await world.agents[n % 2].deny(max_completion_tokens=room + 1)
        spent = 13 + 17 * n
        held = await world.agents[0].hold(max_completion_tokens=room)
        await world.agents[1].track(completion_tokens=spent, reservation_id=held)
        model.taken[model.first_day(day)] += spent
    await _check_all(world, model, zone)
    await world.verify()


async def test_an_event_from_a_clock_that_runs_ahead_does_not_carry_what_is_still_spent(world: World) -> None:
    """R3: only PostgreSQL's clock rolls. What went over may not be spent in the window that it came from as well."""
    one, two = world.agents
    budget = await world.budget(limit=1, period="daily", rollover_policy="full")
    await world.go_to(datetime(2030, 3, 13, 23, 57, tzinfo=UTC))
    await one.track(completion_tokens=1, timestamp=world.now() + timedelta(minutes=4))
    await two.hold(max_completion_tokens=90)
    await world.wait(minutes=4)
    await two.hold(max_completion_tokens=1)
    first, second = await world.windows(budget)
    assert second["carry"] <= 100 * CENT - first["spent"] - first["reserved"]


# Several agents, restarts, late events -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Act:
    """One thing on one day. ``late``: an event of an earlier day comes; ``days``: how far time goes on."""

    kind: str
    agent: int
    size: int
    days: int


_acts = st.lists(
    st.builds(
        Act,
        st.sampled_from(
            ("rush", "rush", "hold", "hold", "settle", "release", "use", "late", "turn", "turn", "restart")
        ),
        st.integers(0, 2),
        st.integers(1, 120),
        st.sampled_from((1, 1, 1, 2, 5, 31)),
    ),
    min_size=4,
    max_size=14,
)


class Story:
    """One example: a world of three agents, the model, and what is held."""

    def __init__(self, world: World, model: Model, zone: str, since: datetime) -> None:
        self.world = world
        self.model = model
        self.zone = zone
        self.held: dict[str, tuple[date, int]] = {}
        self.since = since

    def today(self) -> date:
        """The local day."""
        return self.world.now().astimezone(ZoneInfo(self.zone)).date()

    async def act(self, act: Act) -> None:
        """Do it, to the ledger and to the model."""
        world, model, today = self.world, self.model, self.today()
        agent = world.agents[act.agent]
        if act.kind == "turn":
            at = local_noon(today + act.days * DAY, self.zone)
            await world.go_to(midnight(today + DAY, self.zone) if act.days == 1 else at)
        elif act.kind == "restart":
            await agent.restart()
        elif act.kind == "rush":
            await self._rush(act)
        elif act.kind == "hold":
            await self._hold(agent, act.size)
        elif act.kind == "use":
            await agent.track(completion_tokens=act.size)
            model.taken[model.open(today)] += act.size
        elif act.kind == "late" and len(model.carries) > 1:
            await self._late(agent, act.size)
        elif act.kind in ("settle", "release") and self.held:
            await self._finish(agent, act)

    async def _late(self, agent: LedgerAgent, size: int) -> None:
        """Of the window before: charged there or, after 35 days, on arrival. No budget counts what was before it."""
        start = sorted(self.model.carries)[-2]
        happened = midnight(start, self.zone) + timedelta(hours=1)
        await agent.track(completion_tokens=size, timestamp=happened)
        if self.world.now() - happened > 35 * DAY:
            self.model.taken[self.model.open(self.today())] += size
        elif happened >= self.since:
            self.model.taken[start] += size

    async def _rush(self, act: Act) -> None:
        """Every agent at once, most often in a window that nobody has opened yet."""
        today = self.today()
        room = self.model.room(today)
        each = max(1, act.size // 3)
        answers = await asyncio.gather(*(a.submit(max_completion_tokens=each) for a in self.world.agents * 2))
        approved = [d for d in answers if d.approved]
        assert len(approved) == min(6, max(0, room) // each), (room, each)
        for decision in approved:
            assert decision.reservation_id is not None
            self.held[decision.reservation_id] = (self.model.open(today), each)
            self.model.taken[self.model.open(today)] += each

    async def _hold(self, agent: LedgerAgent, size: int) -> None:
        room = self.model.room(self.today())
        decision = await agent.submit(max_completion_tokens=size, ttl_s=600)
        assert decision.approved == (size <= room), (size, room, decision)
        if decision.reservation_id is not None:
            start = self.model.open(self.today())
            self.held[decision.reservation_id] = (start, size)
            self.model.taken[start] += size

    async def _finish(self, agent: LedgerAgent, act: Act) -> None:
        """Settled or released in the window it was decided in, whenever that is; carries stay what they are."""
        reservation_id, (start, size) = self.held.popitem()
        self.model.taken[start] -= size
        if act.kind == "release":
            await agent.release(reservation_id)
            return
        await agent.track(completion_tokens=act.size, reservation_id=reservation_id)
        self.model.taken[start] += act.size


@examples(14)
@given(
    st.sampled_from(POLICIES),
    st.booleans(),
    st.sampled_from(("UTC", "Europe/Vienna", "America/Santiago", "Australia/Lord_Howe", "Asia/Kathmandu")),
    st.sampled_from((date(2028, 2, 26), date(2031, 3, 28), date(2031, 9, 4), date(2031, 10, 24), date(2032, 1, 29))),
    _acts,
)
async def test_whatever_three_agents_do_around_a_turn_it_carries_what_the_model_says(
    database_url: str, policy: str, monthly: bool, zone: str, first: date, acts: list[Act]
) -> None:
    org, start = f"rolling-{next(_orgs)}", local_noon(first, zone)
    async with world_of(database_url, agents=3, org=org, start=start) as world, world.connection() as oracle:
        if not await oracle.fetchval("SELECT to_regclass('journal')"):
            await oracle.execute(JOURNAL)
        budget = await world.budget(
            limit=1,
            period="monthly" if monthly else "daily",
            timezone=zone,
            rollover_policy=policy,
            rollover_percent=PERCENT,
        )
        story = Story(world, Model(policy, monthly, first), zone, budget.counting_since)
        for act in acts:
            await story.act(act)
        await _check_all(world, story.model, zone)
        found = await violations(oracle, org, journaled=True)
        assert not found, found
        await oracle.execute("DELETE FROM reservation")
