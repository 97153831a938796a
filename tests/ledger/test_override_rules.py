"""Overrides in the ledger: a raise binds from its approval to its end, on every agent, by PostgreSQL's clock alone."""

import asyncio
import itertools
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from hypothesis import event, given
from hypothesis import strategies as st

from handlers.context import Caller, Context
from handlers.enforcer.overrides import expire_overrides, list_overrides, request_override, review_override
from handlers.enforcer.status import get_budget_status
from schemas.budget import BudgetDecision, GetBudgetStatus
from schemas.errors import SignalError
from schemas.money import format_cost
from schemas.override import ListOverrides, Override, RequestOverride, ReviewOverride
from store.budgets import BudgetRow
from tests.support.ledger import CENT, START, LedgerAgent, World, examples, world_of

HOUR: Final = timedelta(hours=1)
_orgs = itertools.count(1)
Decision = Literal["approve", "deny", "revoke"]


def as_(agent: LedgerAgent, user: str) -> Context:
    """A request of somebody who may ask and review, through one agent."""
    return Context(agent.services, Caller(agent.world.org, user, frozenset({"provider", "approver"})))


async def ask(
    agent: LedgerAgent, budget: BudgetRow, cents: int, *, user: str = "rita", until: datetime, entity: str | None = None
) -> Override:
    request = RequestOverride(
        budget_id=budget.budget_id, entity_id=entity, amount=format_cost(cents * CENT), reason="launch", until=until
    )
    return await request_override(as_(agent, user), request)


async def review(
    agent: LedgerAgent, override: Override, decision: Decision = "approve", *, user: str = "bob"
) -> Override:
    return await review_override(as_(agent, user), ReviewOverride(override_id=override.override_id, decision=decision))


async def statuses(agent: LedgerAgent) -> list[str]:
    """Statuses of all overrides, oldest first."""
    found = await list_overrides(as_(agent, "bob"), ListOverrides(limit=1000))
    return [o.status for o in reversed(found.overrides)]


async def expired(world: World, *agents: LedgerAgent) -> int:
    """How many of this world's overrides the agents mark as ended, all at once; the job itself looks at every org."""
    before = len(await world.told("override.expired"))
    await asyncio.gather(*(expire_overrides(agent.services) for agent in agents))
    return len(await world.told("override.expired")) - before


async def test_an_override_is_asked_for_approved_used_and_ends(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    held = await two.hold(max_completion_tokens=90)
    await one.track(reservation_id=held, completion_tokens=90)
    await two.deny(max_completion_tokens=20)
    until = world.now() + HOUR
    asked = await ask(one, budget, 30, until=until)
    await two.deny(max_completion_tokens=20)

    await review(one, asked)
    # The very next decision of the other agent, which knew another limit a moment ago.
    decision = await two.submit(max_completion_tokens=40)
    assert decision.approved and decision.reservation_id is not None
    window = decision.budgets[0]
    assert (window.base_limit, window.limit, window.spent, window.reserved) == ("1", "1.3", "0.9", "0.4")
    assert (await one.deny(max_completion_tokens=1)).budgets[0].limit == "1.3"
    await two.track(reservation_id=decision.reservation_id, completion_tokens=40)
    assert await world.sums(budget) == (130 * CENT, 0, 0)
    await world.verify()

    await world.go_to(until)
    for agent in (two, one):
        denied = await agent.deny(max_completion_tokens=1)
        window = denied.budgets[0]
        assert (window.limit, window.spent, window.remaining, window.overrun) == ("1", "1.3", "0", "0")
    await world.verify()
    # What is used without asking finds no room: it is overrun, and only what comes now.
    await one.track(completion_tokens=7)
    assert await world.sums(budget) == (137 * CENT, 0, 7 * CENT)

    assert await statuses(one) == ["approved"]
    assert await expired(world, *world.agents) == 1
    assert await statuses(one) == ["expired"]
    for name in ("requested", "approved", "expired"):
        assert len(await world.told(f"override.{name}")) == 1


async def test_a_raise_ends_at_its_end_whatever_an_agent_believes(world: World) -> None:
    slow, fast = await world.agent(skew=-HOUR * 3), await world.agent(skew=HOUR * 3)
    budget = await world.budget(limit=1)
    until = world.now() + HOUR
    await review(slow, await ask(fast, budget, 50, until=until))
    for agent in (slow, fast) * 3:
        await agent.hold(max_completion_tokens=20)
    await world.go_to(until - timedelta(seconds=30))
    await slow.hold(max_completion_tokens=10)
    await fast.hold(max_completion_tokens=10)
    await world.go_to(until)
    for agent in (slow, fast):
        assert (await agent.deny(max_completion_tokens=1)).budgets[0].limit == "1"


async def test_a_reservation_made_under_a_raise_is_settled_within_it_after_the_end(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    until = world.now() + HOUR
    await review(one, await ask(one, budget, 50, until=until))
    held = await two.hold(max_completion_tokens=150, ttl_s=7200)
    await world.go_to(until)
    assert await world.sums(budget) == (0, 150 * CENT, 0)
    await one.track(reservation_id=held, completion_tokens=150)
    assert await world.sums(budget) == (150 * CENT, 0, 0)


async def test_a_revoked_raise_ends_at_once_on_every_agent(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    asked = await ask(one, budget, 50, until=world.now() + HOUR)
    await review(one, asked)
    for agent in (one, two) * 2:
        await agent.hold(max_completion_tokens=30)
    await review(two, asked, "revoke")
    for agent in (one, two):
        window = (await agent.deny(max_completion_tokens=1)).budgets[0]
        assert (window.limit, window.reserved, window.remaining) == ("1", "1.2", "0")


async def test_a_raise_of_one_user_raises_nobody_else(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(type="user", limit=1)
    await review(one, await ask(one, budget, 50, entity="u1", until=world.now() + HOUR))
    await two.hold(user_id="u1", max_completion_tokens=150)
    await two.deny(user_id="u2", max_completion_tokens=101)
    shown = await get_budget_status(two.context, GetBudgetStatus(user_id="u1"))
    assert [b.window.limit for b in shown.budgets] == ["1.5"]
    shown = await get_budget_status(two.context, GetBudgetStatus(user_id="u2"))
    assert [b.window.limit for b in shown.budgets] == ["1"]


async def test_a_raise_over_the_turn_of_a_window_raises_both_and_carries_nothing(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, period="daily", rollover_policy="full")
    await review(one, await ask(one, budget, 50, until=world.now() + 24 * HOUR))
    await one.hold(max_completion_tokens=70)
    await world.wait(hours=13)
    decision = await two.submit(max_completion_tokens=1)
    # 1 and 0.3 carried, from the base limit: a raise that nobody used ends with its time and is no one's savings.
    assert decision.budgets[0].limit == "1.8"
    await world.wait(hours=12)
    assert (await one.submit(max_completion_tokens=1)).budgets[0].limit == "1.3"


async def test_what_a_policy_approves_in_a_window_includes_what_reaches_into_it(world: World) -> None:
    one, two = world.agents
    policy = {"auto_approve_percent": 10, "max_percent": 100}
    budget = await world.budget(limit=1, period="daily", override_policy=policy)
    await world.wait(hours=11)
    assert (await ask(one, budget, 10, until=world.now() + 2 * HOUR)).status == "approved"
    assert (await ask(two, budget, 1, until=world.now() + HOUR)).status == "pending"
    await world.wait(minutes=90)
    assert (await ask(one, budget, 2, until=world.now() + HOUR)).status == "pending"
    await world.wait(hours=2)  # It has ended, but it raised this very window.
    assert (await ask(two, budget, 3, until=world.now() + HOUR)).status == "pending"
    await world.wait(hours=24)
    assert (await ask(one, budget, 10, until=world.now() + HOUR)).status == "approved"


async def test_a_request_nobody_decided_expires_and_was_never_a_raise(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    until = world.now() + HOUR
    asked = await ask(one, budget, 30, until=until)
    await world.go_to(until)
    for decision in ("approve", "deny"):
        try:
            await review(two, asked, decision)
        except SignalError as error:
            assert error.code == "conflict"
        else:
            raise AssertionError("was decided after its end")
    await two.deny(max_completion_tokens=101)
    assert await expired(world, two) == 1
    assert await statuses(one) == ["expired"]
    assert await world.told("override.approved") == []


async def test_raises_come_and_go_under_load_and_no_promise_is_broken(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, override_policy={"max_percent": 100})

    async def use(agent: LedgerAgent) -> None:
        for size in (7, 3, 11, 5, 2, 13) * 3:
            decision = await agent.check(max_completion_tokens=size)
            if isinstance(decision, BudgetDecision) and decision.reservation_id is not None:
                await agent.track(reservation_id=decision.reservation_id, completion_tokens=size // 2)

    async def raise_and_revoke(agent: LedgerAgent, cents: int) -> None:
        for n in range(4):
            asked = await ask(agent, budget, cents + n, until=world.now() + HOUR)
            await review(agent, asked)
            await review(agent, asked, "revoke")

    async def watch() -> None:
        for _ in range(10):
            await world.verify(complete=False)

    await asyncio.gather(
        use(one), use(two), use(one), use(two), raise_and_revoke(one, 30), raise_and_revoke(two, 40), watch()
    )
    assert await statuses(one) == ["revoked"] * 8
    spent, reserved, overrun = await world.sums(budget)
    assert (reserved, overrun) == (0, 0)
    assert spent <= 180 * CENT


# Any sequence -----------------------------------------------------------------------------------------------------


MAX_PERCENT: Final = 60
AUTO_PERCENT: Final = 10
OVERAGE: Final = 10
USERS: Final = ("u1", "u2")
PEOPLE: Final = ("rita", "bob", "carl")


@dataclass(slots=True)
class Asked:
    """An override as the model has it; amounts in nanos."""

    override_id: str
    user: str
    entity: str
    amount: int
    until: datetime
    status: str
    automatic: bool


@dataclass(slots=True)
class Day:
    """A user's daily window as the model has it."""

    carry: int
    spent: int = 0


@dataclass
class Model:
    """What the rules say, computed apart: plain sums over everything that happened."""

    base: int
    first: datetime
    asked: list[Asked] = field(default_factory=list[Asked])
    days: dict[tuple[str, datetime], Day] = field(default_factory=dict[tuple[str, datetime], Day])

    def day(self, entity: str, now: datetime) -> Day:
        """The window of today, opened with what all earlier days left."""
        today = now.replace(hour=0, minute=0, second=0, microsecond=0)
        if (entity, today) not in self.days:
            earlier = [start for name, start in self.days if name == entity]
            if earlier:
                last = self.days[entity, max(earlier)]
                left = max(0, self.base + last.carry - last.spent)
                carry = left + ((today - max(earlier)).days - 1) * self.base
            else:
                carry = (today - self.first).days * self.base
            self.days[entity, today] = Day(carry)
        return self.days[entity, today]

    def live(self, entity: str, now: datetime) -> int:
        return sum(a.amount for a in self.asked if a.entity == entity and a.status == "approved" and now < a.until)

    def limit(self, entity: str, now: datetime) -> int:
        return self.base + self.base * OVERAGE // 100 + self.day(entity, now).carry + self.live(entity, now)

    def too_much(self, entity: str, amount: int, now: datetime) -> bool:
        return (self.live(entity, now) + amount) * 100 > self.base * MAX_PERCENT

    def request(self, user: str, entity: str, amount: int, until: datetime, now: datetime) -> str:
        """The status, or the code of the refusal."""
        if self.too_much(entity, amount, now):
            return "invalid_request"
        for a in self.asked:
            waits, given = a.status == "pending" and now < a.until, a.status == "approved" and a.until == until
            if (a.user, a.entity, a.amount) == (user, entity, amount) and (waits or given):
                return "conflict"
        today = now.replace(hour=0, minute=0, second=0, microsecond=0)
        automatic = sum(a.amount for a in self.asked if a.entity == entity and a.automatic and a.until > today)
        return "approved" if (automatic + amount) * 100 <= self.base * AUTO_PERCENT else "pending"

    def review(self, asked: Asked, user: str, decision: str, now: datetime) -> str:
        """The new status, or the code of the refusal."""
        if user == asked.user:
            return "forbidden"
        if now >= asked.until or asked.status != ("approved" if decision == "revoke" else "pending"):
            return "conflict"
        if decision == "approve" and self.too_much(asked.entity, asked.amount, now):
            return "conflict"
        return {"approve": "approved", "deny": "denied", "revoke": "revoked"}[decision]


@dataclass(frozen=True)
class Step:
    """One thing that happens; the numbers choose from what there is."""

    kind: str
    agent: int
    who: int
    which: int
    size: int


# Raises end at 17 past, time stands at full hours: no step is near an edge that a slow machine might cross.
_STEPS: Final = st.lists(
    st.builds(
        Step,
        st.sampled_from(("ask", "ask", "approve", "approve", "deny", "revoke", "spend", "time", "expire", "rare")),
        st.integers(0, 1),
        st.integers(0, 2),
        st.integers(0, 7),
        st.integers(1, 45),
    ),
    min_size=12,
    max_size=30,
)


class Run:
    """One example: what happens, and after every step what each agent says the limit is."""

    def __init__(self, world: World, budget: BudgetRow) -> None:
        self.world = world
        self.budget = budget
        self.model = Model(budget.base_limit, START.replace(hour=0))

    async def take(self, step: Step) -> None:
        agent = self.world.agents[step.agent]
        if step.kind == "ask":
            await self._ask(agent, step)
        elif step.kind in ("approve", "deny", "revoke"):
            await self._review(agent, step)
        elif step.kind == "spend":
            await self._spend(agent, step)
        elif step.kind == "time":
            await self.world.wait(hours=(1, 2, 5, 12, 24, 48)[step.which % 6])
        elif step.kind == "expire":
            now = self.world.now()
            due = [a for a in self.model.asked if a.status in ("pending", "approved") and a.until <= now]
            assert await expired(self.world, agent) == len(due)
            for asked in due:
                asked.status = "expired"
        elif step.which % 2:
            await agent.restart()
        else:
            self.model.base = (50, 100, 150)[step.who] * CENT
            await self.world.change(self.budget, base_limit=self.model.base)
        await self._compare()

    async def _ask(self, agent: LedgerAgent, step: Step) -> None:
        now = self.world.now().replace(minute=0, second=0, microsecond=0)
        user, entity, until = PEOPLE[step.who], USERS[step.which % 2], now + (step.which * 5) * HOUR + HOUR * 77 / 60
        expected = self.model.request(user, entity, step.size * CENT, until, self.world.now())
        event(f"ask: {expected}")
        try:
            got = await ask(agent, self.budget, step.size, user=user, entity=entity, until=until)
        except SignalError as error:
            assert error.code == expected, error.message
            return
        assert got.status == expected
        automatic = expected == "approved"
        asked = Asked(got.override_id, user, entity, step.size * CENT, until, expected, automatic)
        self.model.asked.append(asked)

    async def _review(self, agent: LedgerAgent, step: Step) -> None:
        if not self.model.asked:
            return
        asked, user = self.model.asked[-1 - step.which % len(self.model.asked)], PEOPLE[step.who]
        expected = self.model.review(asked, user, step.kind, self.world.now())
        event(f"{step.kind}: {expected}")
        request = ReviewOverride(override_id=asked.override_id, decision=step.kind)  # type: ignore[arg-type]
        try:
            got = await review_override(as_(agent, user), request)
        except SignalError as error:
            assert error.code == expected, error.message
            return
        assert got.status == expected
        asked.status = expected

    async def _spend(self, agent: LedgerAgent, step: Step) -> None:
        entity, cents = USERS[step.which % 2], step.size * 3
        day = self.model.day(entity, self.world.now())
        fits = day.spent + cents * CENT <= self.model.limit(entity, self.world.now())
        event(f"spend: {fits}")
        decision = await agent.submit(user_id=entity, max_completion_tokens=cents)
        assert decision.approved == fits
        if decision.reservation_id is not None:
            await agent.track(user_id=entity, reservation_id=decision.reservation_id, completion_tokens=cents)
            day.spent += cents * CENT

    async def _compare(self) -> None:
        """Every agent says the model's limit, admits what the model has room for, and not a cent more."""
        for agent in self.world.agents:
            for entity in USERS:
                now = self.world.now()
                limit = self.model.limit(entity, now)
                room = max(0, (limit - self.model.day(entity, now).spent) // CENT)
                call: dict[str, Any] = {"user_id": entity, "reserve": False}
                more, fits = await asyncio.gather(
                    agent.submit(**call, max_completion_tokens=room + 1),
                    agent.submit(**call, max_completion_tokens=room),
                )
                assert more.budgets[0].limit == format_cost(limit)
                assert (more.approved, fits.approved) == (False, True)
        await self.world.verify()


@examples(20)
@given(_STEPS)
async def test_the_limit_is_always_base_overage_carry_and_what_live_overrides_raise_it_by(
    database_url: str, steps: list[Step]
) -> None:
    async with world_of(database_url, agents=2, org=f"org-{next(_orgs)}") as world:
        policy = {"max_percent": MAX_PERCENT, "max_hours": 40, "auto_approve_percent": AUTO_PERCENT}
        budget = await world.budget(
            type="user",
            limit=1,
            period="daily",
            overage_percent=OVERAGE,
            rollover_policy="full",
            override_policy=policy,
        )
        run = Run(world, budget)
        for step in steps:
            await run.take(step)
        assert await statuses(world.agents[0]) == [a.status for a in run.model.asked]
