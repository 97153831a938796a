"""Everything that locks anything, at once, from several agents: R1's order must leave PostgreSQL no deadlock to break.

Goal: nobody waits in a circle. Method: agents and managers do all they can on few budgets for some seconds, over turns
of minute windows that roll over; then PostgreSQL's own count of deadlocks is read. ``LOCK_ORDER_SECONDS`` is how long.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg

from handlers.access.teams import set_team
from handlers.alerts.inbox import acknowledge_alert
from handlers.alerts.watch import Watch
from handlers.context import Caller, Context
from handlers.enforcer.brakes import set_brake
from handlers.enforcer.budgets import list_budgets, update_budget
from handlers.enforcer.overrides import expire_overrides, list_overrides, request_override, review_override
from handlers.enforcer.policies import apply_policies
from handlers.enforcer.sizing import refresh
from handlers.management.privacy import anonymize_user
from schemas.access import SetTeam
from schemas.alert import AcknowledgeAlert
from schemas.brake import SetBrake
from schemas.budget import ListBudgets, UpdateBudget
from schemas.errors import SignalError
from schemas.override import ListOverrides, RequestOverride, ReviewOverride
from schemas.policy import ApplyPolicies
from schemas.privacy import AnonymizeUser
from tests.alerts.scene import alerts, rule
from tests.support.ledger import START, LedgerAgent, World, world_of

AGENTS = 3
CALLERS = 10
USERS, TEAMS = 12, 3
POLICIES = [
    {"name": "p teams", "scope": "team:*", "limit": "$3/minute", "rollover": "full", "alerts": ["50%", "90%"]},
    {"name": "p users", "scope": "user:*", "limit": "$2/minute", "rollover": "full", "prefer": ["odd"]},
    {"name": "p all", "scope": "global", "limit": "$20/hour", "enforcement": "notify_only"},
]
Act = Callable[[LedgerAgent, random.Random], Awaitable[Any]]


async def _call(agent: LedgerAgent, chance: random.Random) -> None:
    """A call, and what becomes of it; a batch of its usage names users in any order."""
    who = {"user_id": f"u{chance.randrange(USERS)}", "team_id": f"t{chance.randrange(TEAMS)}", "feature": "chat"}
    size = chance.randint(1, 15)
    fields: dict[str, Any] = {"sizing": "learned"} if chance.random() < 0.5 else {}
    if chance.random() < 0.4:
        fields["request_id"] = f"r{chance.randrange(40)}"
    decision = await agent.submit(**who, **fields, max_completion_tokens=size, ttl_s=60)
    if not decision.approved or decision.reservation_id is None:
        return
    held, what = decision.reservation_id, chance.random()
    if what < 0.15:
        await agent.release(held)
    elif what < 0.3:
        await agent.extend(held, prompt_tokens=0, max_completion_tokens=chance.randint(1, 20))
    elif what < 0.9:
        await agent.track(**who, completion_tokens=chance.randint(0, 20), reservation_id=held)


async def _usage(agent: LedgerAgent, chance: random.Random) -> None:
    """Unreserved usage of many users at once: overrun, thresholds and dear calls in one transaction."""
    events = [
        agent.event(
            user_id=f"u{chance.randrange(USERS)}",
            team_id=f"t{chance.randrange(TEAMS)}",
            completion_tokens=chance.choice((1, 5, 150)),
            id=f"again-{chance.randrange(30)}" if chance.random() < 0.1 else None,
            model=chance.choice(("cent", "odd", "unknown")),
        )
        for _ in range(30)
    ]
    await agent.apply(events)


async def _sweep(agent: LedgerAgent, _chance: random.Random) -> None:
    await agent.sweep()
    await expire_overrides(agent.services)
    await agent.services.identities.flush()
    await agent.services.tally.flush(agent.services.database)
    await refresh(agent.services)
    await Watch(agent.services).run()


async def _limits(agent: LedgerAgent, chance: random.Random) -> None:
    budget = chance.choice((await list_budgets(agent.context, ListBudgets(active=True))).budgets)
    change = UpdateBudget(budget_id=budget.budget_id, version=budget.version, limit=str(chance.randint(2, 6)))
    await update_budget(agent.context, change)


async def _policies(agent: LedgerAgent, chance: random.Random) -> None:
    wanted = [
        {**policy, "limit": f"${chance.randint(2, 9)}/{str(policy['limit']).split('/')[1]}"} for policy in POLICIES
    ]
    await apply_policies(agent.context, ApplyPolicies(policies=wanted, prune=True))


async def _overrides(agent: LedgerAgent, chance: random.Random) -> None:
    boss = Context(agent.services, Caller(agent.world.org, "boss", frozenset({"admin"})))
    budgets = [b for b in (await list_budgets(agent.context, ListBudgets(active=True))).budgets if b.rate is None]
    budget = chance.choice(budgets)
    each = budget.entity_id == "*" and budget.type != "global"
    entity = f"{budget.type[0]}{chance.randrange(TEAMS)}" if each else None
    asked = RequestOverride(
        budget_id=budget.budget_id,
        entity_id=entity,
        percent=chance.randint(1, 5),
        reason=f"because of {chance.random()}",
        until=agent.world.now() + timedelta(seconds=chance.randint(1, 30)),
    )
    await request_override(agent.context, asked)
    for pending in (await list_overrides(agent.context, ListOverrides(status="pending"))).overrides[:3]:
        decision = chance.choice(("approve", "deny"))
        await review_override(boss, ReviewOverride(override_id=pending.override_id, decision=decision))


async def _brakes(agent: LedgerAgent, chance: random.Random) -> None:
    team = f"t{chance.randrange(TEAMS)}"
    for on in (True, False):
        await set_brake(agent.context, SetBrake(scope="team", entity_id=team, on=on, reason="an incident"))
    await set_team(agent.context, SetTeam(team_id="staff", members=[f"x{chance.randrange(9)}"]))


async def _people(agent: LedgerAgent, chance: random.Random) -> None:
    for alert in (await alerts(agent))[: chance.randint(0, 5)]:
        await acknowledge_alert(agent.context, AcknowledgeAlert(alert_id=alert.alert_id))
    await anonymize_user(agent.context, AnonymizeUser(user_id=f"u{chance.randrange(USERS)}", reason="asked for it"))


async def _corrections(agent: LedgerAgent, chance: random.Random) -> None:
    """The same events, in any order, from every agent at once."""
    world = agent.world
    rows = await world.fetch("SELECT id FROM usage_event WHERE org_id = $1 ORDER BY applied_at LIMIT 60", world.org)
    wanted = chance.sample([row["id"] for row in rows], min(12, len(rows)))
    asked: list[dict[str, Any]] = [
        chance.choice(
            (
                {"kind": "void"},
                {"kind": "correct", "completion_tokens": chance.randint(0, 160)},
                {"kind": "correct", "model": chance.choice(("cent", "odd", "unknown"))},
                {"kind": "refund", "amount": "0.01"},
            )
        )
        for _ in wanted
    ]
    if wanted:
        named = [{**fields, "usage_id": i, "reason": "a test"} for fields, i in zip(asked, wanted, strict=True)]
        await agent.adjust_many(named)
    await agent.reprice(only=chance.choice(("all", "unpriced")), limit=60)


ACTS: tuple[tuple[int, Act], ...] = (
    (CALLERS, _call),
    (2, _usage),
    (1, _sweep),
    (1, _limits),
    (1, _policies),
    (1, _overrides),
    (1, _brakes),
    (1, _people),
    (2, _corrections),
)


async def _rules(world: World) -> None:
    agent = world.agents[0]
    await apply_policies(agent.context, ApplyPolicies(policies=POLICIES))
    await world.budget(type="user", limit=1, period="minute", rollover_policy="capped", rollover_percent=50)
    await world.budget(limit=40, period="daily", enforcement="shadow")
    await world.put_setting("sizing", {"default": "learned", "samples_min": 5})
    for kind, parameters in (("threshold", {}), ("exceeded", {}), ("overrun", {}), ("request_cost", {"limit": "1"})):
        await rule(agent, kind, kind, parameters=parameters, channels=["mail"])
    scope = {"type": "team", "entity_id": "*"}
    limiting = [{"do": "rate_limit", "rate": {"limit": "500", "unit": "requests", "period": "minute"}, "minutes": 1}]
    await rule(agent, "fast", "hourly_rate", parameters={"limit": "1"}, scope=scope, actions=limiting)


async def test_all_that_locks_at_once_never_waits_in_a_circle(database_url: str) -> None:
    lasts_s = float(os.environ.get("LOCK_ORDER_SECONDS", "4"))
    done: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    # Shortly before the minute turns: every window of a minute is opened anew, by all agents at once.
    start = START + timedelta(seconds=60 - lasts_s / 2)
    async with world_of(database_url, agents=AGENTS, start=start) as world:
        await _rules(world)
        ends = time.monotonic() + lasts_s

        async def act(agent: LedgerAgent, work: Act, chance: random.Random) -> None:
            while time.monotonic() < ends:
                try:
                    await work(agent, chance)
                    done[work.__name__] += 1
                except SignalError as error:
                    refused[f"{work.__name__} {error.code}: {error.message[:60]}"] += 1

        await asyncio.gather(
            *(
                act(agent, work, random.Random(f"{agent.name}{work.__name__}{n}"))
                for agent in world.agents
                for count, work in ACTS
                for n in range(count)
            )
        )
        await world.wait(minutes=2)
        await asyncio.gather(*(agent.sweep() for agent in world.agents))
        await world.verify(complete=False, told=False)
        head = await world.fetch("SELECT count(*) AS entries FROM audit")

    print(f"\n  done {dict(done)}\n  refused {dict(refused)}\n  audit {head}")
    assert await deadlocks(database_url) == 0
    assert all(done[work.__name__] > 0 for _, work in ACTS), done
    assert not [text for text in refused if "unavailable" in text], refused


async def deadlocks(url: str) -> int:
    """How many deadlocks PostgreSQL has broken in this database; every connection that met one is closed by now."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    finally:
        await connection.close()
