"""Budgets that come, with backfill or without, and go while events are corrected: each holds what its events stand for.

The model is what every event stands for and, for each budget, which events it counts: with backfill all of them, else
those since its creation. Budgets that were inactive for a while have only the promises of the oracle to keep.
"""

import itertools
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from hypothesis import event, given
from hypothesis import strategies as st

from schemas.errors import SignalError
from store.budgets import BudgetRow
from tests.support.ledger import CARDS, CENT, World, card, examples, world_of

_orgs = itertools.count(1)
MODELS: Final = ("cent", "small", "later", "nothing")
KINDS: Final = (
    "track",
    "track",
    "adjust",
    "adjust",
    "adjust",
    "void",
    "budget",
    "backfill",
    "toggle",
    "price",
    "reprice",
)
_step = st.tuples(st.sampled_from(KINDS), st.integers(0, 1), st.integers(0, 40))


@dataclass
class Known:
    """An event as it stands: its model, completion tokens and cents; None: no price."""

    model: str
    tokens: int
    cents: int | None
    void: bool = False


@dataclass
class Counting:
    """A budget, which model it counts, the events it does not know, and whether it was ever inactive."""

    row: BudgetRow
    model: str | None
    unknown: set[str]
    toggled: bool = False


@dataclass
class Model:
    """Everything so far. ``later`` is what a token of the model without a price costs, in cents."""

    world: World
    events: dict[str, Known] = field(default_factory=dict[str, Known])
    budgets: list[Counting] = field(default_factory=list[Counting])
    later: int | None = None

    async def take(self, kind: str, agent: int, size: int) -> None:
        """One step, and what it should have come to."""
        one = self.world.agents[agent]
        ids = list(self.events)
        usage_id = ids[size % len(ids)] if ids else ""
        model = MODELS[size % len(MODELS)]
        if kind == "track":
            usage_id = f"e{len(ids)}"
            await one.track(id=usage_id, model=model, completion_tokens=size)
            self.events[usage_id] = Known(model, size, self.cents(model, size))
        elif kind in ("budget", "backfill"):
            await self._budget(kind, size)
        elif kind == "toggle" and self.budgets:
            found = self.budgets[size % len(self.budgets)]
            found.row = await self.world.change(found.row, active=not found.row.active)
            found.toggled = True
        elif kind == "price":
            self.later = (None, 1, 2)[size % 3]
            self.set_price()
        elif kind == "reprice":
            await one.reprice(only="all" if size % 2 else "unpriced")
            for known in self.events.values():
                now = self.cents(known.model, known.tokens)
                if not known.void and now is not None and (size % 2 or known.cents is None):
                    known.cents = now
        elif ids:
            await self._adjust(kind, agent, usage_id, size)

    async def _adjust(self, kind: str, agent: int, usage_id: str, size: int) -> None:
        known = self.events[usage_id]
        model = MODELS[size // 3 % len(MODELS)]
        try:
            if kind == "void":
                await self.world.agents[agent].adjust(usage_id, "void")
                known.void = True
                return
            await self.world.agents[agent].adjust(usage_id, "correct", model=model, completion_tokens=size // 2)
        except SignalError as error:
            event(f"refused: {error.message[:40]}")
            assert error.code == "conflict", error
            return
        event("corrected")
        self.events[usage_id] = Known(model, size // 2, self.cents(model, size // 2))

    async def _budget(self, kind: str, size: int) -> None:
        model = (None, *MODELS)[size % 5]
        fields = {
            "limit": 100 if size % 2 else 1000,
            "unit": "cost" if size % 2 else "tokens",
            "period": "yearly",
            "filters": {} if model is None else {"model": model},
            "enforcement": "block" if size % 3 else "warn",
        }
        make = self.world.budget if kind == "budget" else self.world.backfilled
        self.budgets.append(Counting(await make(**fields), model, set(self.events) if kind == "budget" else set()))

    def cents(self, model: str, tokens: int) -> int | None:
        """What a call costs now."""
        rate = {"cent": 1, "small": 1, "later": self.later}.get(model)
        return None if rate is None else rate * tokens

    def set_price(self) -> None:
        """Let the agents know what ``later`` costs."""
        CARDS.pop("later", None)
        if self.later is not None:
            CARDS["later"] = card("later", input="0", output=str(self.later * 10_000))
        for agent in self.world.agents:
            agent.services.rate_cards.forget()

    async def check(self) -> None:
        """Every budget that was always active holds what its events stand for."""
        await self.world.verify(complete=False, told=False)
        for found in self.budgets:
            if found.toggled:
                continue
            counted = [
                known
                for usage_id, known in self.events.items()
                if not known.void and usage_id not in found.unknown and found.model in (None, known.model)
            ]
            cost = found.row.unit == "cost"
            expected = sum((k.cents or 0) * CENT if cost else k.tokens for k in counted)
            spent = sum(window["spent"] for window in await self.world.windows(found.row))
            assert spent == expected, (found, self.events)


@examples(15)
@given(st.lists(_step, min_size=10, max_size=30))
async def test_budgets_hold_what_their_events_stand_for_whenever_they_were_made(
    database_url: str, steps: list[tuple[str, int, int]]
) -> None:
    async with world_of(database_url, agents=1, org=f"history-{next(_orgs)}") as world:
        # Its clock is fast: what it counted is told from what came later by the ledger's clock alone.
        await world.agent(skew=timedelta(seconds=4))
        model = Model(world)
        model.set_price()
        for step in steps:
            await model.take(*step)
            await model.check()
    CARDS.pop("later", None)
