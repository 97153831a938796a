"""Prices, rates, trust and corrections that change while two agents decide and apply: every promise holds."""

import asyncio
import itertools
import os
import random
from typing import Any, Final

import msgspec
import pytest

from handlers.enforcer.budgets import create_budget
from handlers.management.reconcile import reconcile
from handlers.tracker.priced import PricedEvent
from schemas.budget import CreateBudget
from schemas.errors import SignalError
from tests.ledger.test_price_rules import set_rule
from tests.support.ledger import LedgerAgent, World

_names = itertools.count()
SEEDS: Final = 20 if os.environ.get("HYPOTHESIS_PROFILE") != "thorough" else 400
MODELS: Final = ("cent", "eurocent", "odd", "small", "nothing")


class Storm:
    """One world's calls: what is held, what waits to be applied, what was applied."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.held: list[str] = []
        self.waiting: list[PricedEvent] = []
        self.sent: list[PricedEvent] = []
        self.versions = {"half": 0, "month": 0}
        self.alone = True

    async def budgets(self) -> None:
        one = self.world.agents[0]
        for fields in (
            {"limit": "30", "currency": "USD"},
            {"limit": "25", "currency": "EUR", "on_expiry": "settle"},
            {"limit": "400000", "currency": "VND", "enforcement": "warn", "on_expiry": "settle"},
            {"limit": "20", "currency": "GBP", "type": "team", "entity_id": "*"},
            {"limit": "3000", "unit": "tokens"},
            {"limit": "2000", "currency": "JPY", "period": "hourly"},
        ):
            request = {"name": f"storm{next(_names)}", "type": "global", **fields}
            await create_budget(one.context, msgspec.convert(request, CreateBudget))

    async def step(self, agent: LedgerAgent) -> None:
        pick = self.random
        kind = pick.choice(
            ("check",) * 6 + ("send",) * 4 + ("settle",) * 4 + ("apply",) * 3
            + ("release", "extend", "extend", "sweep", "rule", "month", "rate", "trust", "void", "correct", "correct")
            + ("refund", "refund", "reprice")
        )  # fmt: skip
        try:
            await (self.apply if kind == "apply" else getattr(self, f"_{kind}"))(agent)
        except SignalError as error:
            assert error.code in ("conflict", "not_found", "invalid_request"), error

    def _who(self) -> dict[str, Any]:
        return {"model": self.random.choice(MODELS), "team_id": self.random.choice(("t", "u", None))}

    async def _check(self, agent: LedgerAgent) -> None:
        who = {k: v for k, v in self._who().items() if v is not None}
        answers = await asyncio.gather(
            *(agent.check(**who, max_completion_tokens=self.random.randrange(200)) for _ in range(3))
        )
        for answer in answers:
            assert not isinstance(answer, SignalError), answer
            if answer.approved and answer.reservation_id is not None:
                self.held.append(answer.reservation_id)

    def _event(self, agent: LedgerAgent, **fields: Any) -> PricedEvent:
        pick = self.random
        if pick.random() < 0.2:
            fields |= {"reported_cost": f"0.{pick.randrange(100):02}", "currency": pick.choice(("USD", "EUR", "CHF"))}
        found = agent.event(
            **self._who(), completion_tokens=pick.randrange(250), prompt_tokens=pick.randrange(99), **fields
        )
        self.sent.append(found)
        return found

    async def _send(self, agent: LedgerAgent) -> None:
        self.waiting.append(self._event(agent))

    async def _settle(self, agent: LedgerAgent) -> None:
        if self.held:
            which = self.random.choice(self.held)
            self.waiting.append(self._event(agent, reservation_id=which, final=self.random.random() < 0.6))

    async def apply(self, agent: LedgerAgent) -> None:
        batch, self.waiting = self.waiting, []
        batch = [msgspec.structs.replace(e) for e in batch]
        again = [msgspec.structs.replace(e) for e in batch]
        other = self.world.agents[agent is self.world.agents[0]]
        first, second = await asyncio.gather(agent.apply(batch), other.apply(again))
        assert all({first[i], second[i]} == {"applied", "duplicate"} for i in first), (first, second)

    async def _release(self, agent: LedgerAgent) -> None:
        if self.held:
            await agent.release(self.random.choice(self.held))

    async def _extend(self, agent: LedgerAgent) -> None:
        if self.held:
            await agent.extend(
                self.random.choice(self.held),
                model=self.random.choice(MODELS),
                provider="acme",
                prompt_tokens=0,
                max_completion_tokens=self.random.randrange(300),
            )

    async def _sweep(self, agent: LedgerAgent) -> None:
        await agent.sweep()

    async def _rule(self, agent: LedgerAgent) -> None:
        self.versions["half"] += 1
        factor = self.random.choice(("0.5", "0.333", "1.7", "1"))
        layer = self.random.choice(("contract", "operator"))
        await set_rule(
            self.world, self.versions["half"], name="half", op="multiply", provider="acme", layer=layer, factor=factor,
            ended=self.random.random() < 0.2,
        )  # fmt: skip

    async def _month(self, agent: LedgerAgent) -> None:
        self.versions["month"] += 1
        above = str(self.random.randrange(2000))
        factor = self.random.choice(("0.5", "0.777", "1.3"))
        await set_rule(
            self.world, self.versions["month"], name="month", op="volume", provider="acme",
            volume=[{"above": above, "factor": factor}], ended=self.random.random() < 0.3,
        )  # fmt: skip

    async def _rate(self, agent: LedgerAgent) -> None:
        pair, rate = self.random.choice(
            (
                ("EUR/USD", "1.25"),
                ("EUR/USD", "1.0871"),
                ("USD/VND", "25417"),
                ("EUR/GBP", "0.86123"),
                ("USD/JPY", "149.3"),
            )
        )
        await agent.rates(pair, rate)

    async def _trust(self, agent: LedgerAgent) -> None:
        await self.world.put_setting("reported_cost", self.random.choice(("always", "never")))

    async def _adjusted(self, agent: LedgerAgent, kind: str, **fields: Any) -> None:
        if self.sent:
            await agent.adjust(self.random.choice(self.sent).id, kind, **fields)

    async def _void(self, agent: LedgerAgent) -> None:
        await self._adjusted(agent, "void")

    async def _correct(self, agent: LedgerAgent) -> None:
        fields: dict[str, Any] = {"completion_tokens": self.random.randrange(200)}
        if self.random.random() < 0.5:
            fields = {"model": self.random.choice(MODELS)}
        if self.random.random() < 0.3:
            fields = {"cost": f"{self.random.randrange(3)}.{self.random.randrange(100):02}", "currency": "EUR"}
        await self._adjusted(agent, "correct", **fields)

    async def _refund(self, agent: LedgerAgent) -> None:
        await self._adjusted(agent, "refund", amount=f"0.{self.random.randrange(1, 40):02}")

    async def _reprice(self, agent: LedgerAgent) -> None:
        only = self.random.choice(("all", "unpriced"))
        await agent.reprice(only=only)
        if only == "all":
            again = await agent.reprice(only="all")
            assert not self.alone or again.repriced == 0, again


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_every_promise_holds_while_money_changes(world: World, seed: int) -> None:
    storm = Storm(world, seed)
    await storm.budgets()
    for turn in range(25):
        steps = storm.random.choice((1, 1, 4))
        storm.alone = steps == 1
        await asyncio.gather(*(storm.step(storm.random.choice(world.agents)) for _ in range(steps)))
        if turn % 5 == 4:
            await world.verify(complete=False, told=False)
        if turn % 9 == 8:
            await world.wait(minutes=storm.random.choice((1, 20, 61)))
    await storm.apply(world.agents[0])
    await world.verify(complete=False, told=False)
    told = await reconcile(world.agents[0].context)
    assert told.ok, told
    assert not await world.fetch("SELECT message FROM dead_letter WHERE org_id = $1", world.org)
