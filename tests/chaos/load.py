"""Routers and provider agents as they are in life: they check, call, settle, give back, forget, and ask again.

Everything that was promised to them is in the `Book`; the audit compares it with what PostgreSQL says afterwards.
"""

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.chaos import Caller, Refused, Unanswered, elapsed

TEAMS, USERS, PROJECTS = 3, 8, 2
NANOS_PER_PROMPT_TOKEN, NANOS_PER_COMPLETION_TOKEN = 2_500, 10_000  # gpt-4o: 2.50 and 10 USD a million
SETTLE_TTL_S = 60
FORGOTTEN_TTL_S = 2
BUDGETS = (
    {"name": "all", "type": "global", "unit": "cost", "limit": "0.15", "raise": 0.11},
    {"name": "teams", "type": "team", "unit": "cost", "limit": "0.06", "raise": 0.045},
    {"name": "users", "type": "user", "unit": "tokens", "limit": "6000", "raise": 4500},
    {"name": "projects", "type": "project", "unit": "requests", "limit": "20", "raise": 14},
)
# Everything else that decisions and usage set off, switched on beside those: none of it refuses a call here. The budget
# "raised" is one that overrides raise; "paced" goes on at a rate as soon as its limit is used up.
RULES = ("threshold", "exceeded", "overrun")
PERCENTS = list(range(5, 101, 5))
MORE = (
    {
        "name": "raised",
        "type": "global",
        "period": "monthly",
        "limit": "1000",
        "preferred_models": ["gpt-4o-mini"],
        "override_policy": {"auto_approve_percent": 50},
    },
    {
        "name": "paced",
        "type": "global",
        "period": "monthly",
        "enforcement": "throttle",
        "limit": "0.05",
        "rate": {"limit": "1000000", "unit": "requests", "period": "minute"},
    },
)
POLICIES = [{"name": "noted", "scope": "global", "limit": "$0.20/month", "enforcement": "notify_only"}]
BUDGETS_EACH = len(BUDGETS) + len(MORE) + len(POLICIES) + 1  # The rate of "paced" is a budget of its own.


@dataclass
class Book:
    """What callers were told. An event is acknowledged once the answer said so, not before."""

    requests: int = 0
    approvals: dict[str, str] = field(default_factory=dict[str, str])
    denials: int = 0
    retries: int = 0
    double_asked: int = 0
    sent: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    acknowledged: set[str] = field(default_factory=set[str])
    resent: int = 0
    released: set[str] = field(default_factory=set[str])
    extended: int = 0
    forgotten: set[str] = field(default_factory=set[str])
    raises: int = 0
    overrides: int = 0
    problems: list[str] = field(default_factory=list[str])

    def problem(self, text: str) -> None:
        """Something that must not be; the first ones are enough to see."""
        if len(self.problems) < 50:
            self.problems.append(text)


async def create_budgets(caller: Caller) -> None:
    """A tree of four blocking scopes in three units, too small for everybody; and whatever else can be switched on."""
    for budget in BUDGETS:
        body = {name: value for name, value in budget.items() if name != "raise"}
        await caller.persist(
            "create_budget", {**body, "period": "total", "enforcement": "block", "alert_thresholds": PERCENTS[:20]}
        )
    for budget in MORE:
        await caller.persist("create_budget", budget)
    await caller.persist("apply_policies", {"policies": POLICIES})
    for kind in RULES:
        await caller.persist("set_alert_rule", {"name": kind, "kind": kind, "channels": ["nobody"]})
    await caller.persist("configure_manager", {"sizing": {"percentile": 100, "samples_min": 20}})
    for team in range(TEAMS):
        members = [f"m{n}" for n in range(USERS) if n % TEAMS == team]
        await caller.persist("set_team", {"team_id": f"t{team}", "members": members})


async def change_rules(caller: Caller, book: "Book", stop: asyncio.Event, chance: random.Random) -> None:
    """Somebody who asks for overrides and applies policies all the while; the policies approve small ones at once."""
    budgets = {b["name"]: b for b in (await caller.persist("list_budgets", {}))["budgets"]}
    raised = {"budget_id": budgets["raised"]["budget_id"], "percent": 1}
    while not await elapsed(stop, 0.5):
        until = datetime.now(UTC) + timedelta(seconds=chance.uniform(1, 4))
        try:
            ask = {**raised, "reason": f"chaos {chance.random()}", "until": until.isoformat()}
            book.overrides += (await caller.ask("request_override", ask))["status"] == "approved"
            limit = f"${chance.choice((20, 21, 22))}/month"
            await caller.ask("apply_policies", {"policies": [{**POLICIES[0], "limit": limit}]})
            on = chance.random() < 0.5
            await caller.ask("set_brake", {"scope": "model", "entity_id": "not-used", "on": on, "reason": "a test"})
        except Unanswered:
            continue
        except Refused as error:
            # Raises add up until the policy leaves one for a person: the next one like it is a conflict.
            if error.code not in ("unavailable", "rate_limited", "conflict"):
                book.problem(f"rules: {error}")


async def raise_limits(caller: Caller, book: Book, stop: asyncio.Event, chance: random.Random) -> None:
    """A manager who gives a little room, again and again, so that budgets stay tight but never stand still."""
    while not await elapsed(stop, 0.25):
        try:
            listed = {b["name"]: b for b in (await caller.ask("list_budgets", {}))["budgets"]}
            for budget in BUDGETS:
                found = listed[str(budget["name"])]
                limit = float(found["limit"]) + float(budget["raise"]) * chance.uniform(0.3, 1.7)
                text = f"{limit:.6f}" if found["unit"] == "cost" else str(round(limit))
                change = {"budget_id": found["budget_id"], "version": found["version"], "limit": text}
                await caller.ask("update_budget", change)
                book.raises += 1
        except Unanswered:
            continue
        except Refused as error:
            # A change whose answer was lost may have happened: then the version is another one.
            if error.code not in ("unavailable", "conflict"):
                book.problem(f"update_budget: {error}")


class Router:
    """One caller that runs call after call until it is told to stop, and finishes what it began."""

    def __init__(self, caller: Caller, book: Book, stop: asyncio.Event, *, name: str, seed: int) -> None:
        self._caller = caller
        self._book = book
        self._stop = stop
        self._name = name
        self._chance = random.Random(seed)
        self._number = 0

    async def run(self) -> None:
        """Calls, one after the other."""
        while not self._stop.is_set():
            self._number += 1
            await self._call(f"{self._name}-{self._number}")

    async def _call(self, request_id: str) -> None:
        chance, book = self._chance, self._book
        fate = chance.choices(("settle", "release", "forget"), (76, 12, 12))[0]
        prompt, completion_max = chance.randrange(100, 2_000), chance.randrange(50, 600)
        # What is sized by what was seen must not take more than that, or it would be overrun: it always takes the same.
        steady = chance.random() < 0.3
        if steady:
            prompt, completion_max = 1_000, 400
        used = completion_max // 2 if steady else chance.randrange(completion_max + 1)
        who = {"user_id": f"u{chance.randrange(USERS)}", "project_id": f"p{chance.randrange(PROJECTS)}"}
        if chance.random() < 0.5:
            who["team_id"] = f"t{chance.randrange(TEAMS)}"
        else:  # The directory knows the team.
            who["user_id"] = f"m{chance.randrange(USERS)}"
        check = {
            "request_id": request_id,
            "provider": "openai",
            "model": "gpt-4o",
            "prompt_tokens": prompt,
            "max_completion_tokens": completion_max,
            "ttl_s": SETTLE_TTL_S if fate == "settle" else FORGOTTEN_TTL_S,
            **({"sizing": "learned", "feature": "steady"} if steady else {}),
            **who,
        }
        reservation_id = await self._approved(check)
        if reservation_id is None:
            return
        if fate == "forget":
            book.forgotten.add(reservation_id)
        elif fate == "release":
            await self._release(reservation_id)
        else:
            if chance.random() < 0.05:
                await self._extend(reservation_id)
            await self._settle(request_id, reservation_id, prompt, used)

    async def _approved(self, check: dict[str, Any]) -> str | None:
        """Ask until there is an answer; sometimes twice at once, as a caller with two ways would."""
        book = self._book
        book.requests += 1
        before = self._caller.tally.unanswered
        times = 2 if self._chance.random() < 0.03 else 1
        try:
            replies = await asyncio.gather(*(self._caller.persist("check_budget", check) for _ in range(times)))
        except Refused as error:
            book.problem(f"check_budget: {error}")
            return None
        book.retries += self._caller.tally.unanswered > before
        book.double_asked += times - 1
        granted = sorted({str(reply["reservation_id"]) for reply in replies if reply["approved"]})
        for reply in replies:
            self._look_at(reply)
        if not granted:
            book.denials += 1
            return None
        if len(granted) > 1 and check["ttl_s"] == SETTLE_TTL_S:
            book.problem(f"one request id, two live reservations: {granted}")
        for reservation_id in granted:
            book.approvals[reservation_id] = check["request_id"]
        return granted[0]

    def _look_at(self, reply: dict[str, Any]) -> None:
        """An answer must be right in itself: all four scopes, sums within limits, a denial that names its budget."""
        book = self._book
        if reply["approved"] and len(reply["budgets"]) != BUDGETS_EACH:
            book.problem(f"an approval by {len(reply['budgets'])} budgets: {reply}")
        for window in reply["budgets"]:
            if window["enforcement"] == "block" and float(window["spent"]) + float(window["reserved"]) > float(
                window["limit"]
            ) * (1 + 1e-12):
                book.problem(f"a reply shows more than its limit: {window}")
        reason = reply["reason"]
        if not reply["approved"] and (reason["code"] != "budget_exceeded" or not reason["budget_id"]):
            book.problem(f"a denial without a budget: {reason}")

    async def _release(self, reservation_id: str) -> None:
        reply = await self._caller.persist("release_reservation", {"reservation_id": reservation_id})
        if reply["status"] not in ("released", "expired"):
            self._book.problem(f"release says {reply['status']}")
        self._book.released.add(reservation_id)

    async def _extend(self, reservation_id: str) -> None:
        reply = await self._caller.persist("extend_reservation", {"reservation_id": reservation_id, "ttl_s": 90})
        if reply["status"] != "live":
            self._book.problem(f"extend says {reply['status']}")
        self._book.extended += 1

    async def _settle(self, request_id: str, reservation_id: str, prompt: int, completion: int) -> None:
        """One event, or a call in two parts, sent one of the ways there are until it is acknowledged."""
        parts = [completion]
        if self._chance.random() < 0.1:
            first = self._chance.randrange(completion + 1)
            parts = [first, completion - first]
        events: list[dict[str, Any]] = []
        for number, tokens in enumerate(parts):
            events.append(
                {
                    "id": f"e-{request_id}-{number}",
                    "provider": "openai",
                    "model": "gpt-4o",
                    "prompt_tokens": prompt if number == 0 else 0,
                    "completion_tokens": tokens,
                    "reservation_id": reservation_id,
                    "latency_ms": 12.5,
                    "final": number == len(parts) - 1,
                }
            )
        for event in events:
            self._book.sent[event["id"]] = event
        await self.send(events)
        if self._chance.random() < 0.08:  # A provider agent that is not sure whether it has told.
            self._book.resent += len(events)
            await self.send(events)

    async def send(self, events: Sequence[dict[str, Any]]) -> None:
        """Make events durable; returns when every one of them is acknowledged."""
        # Parts of one call travel together: stored one by one they may be applied by two agents, the last one first,
        # and what comes after the final part is unreserved usage (R7).
        single = ("stored", "applied", "publish") if len(events) == 1 else ()
        way = self._chance.choice(("batch stored", "batch applied", "publish batch", *single))
        ack = way.rsplit(" ", 1)[-1]
        try:
            if way.startswith("batch"):
                replies = (await self._caller.persist("track_usage", {"events": list(events), "ack": ack}))["events"]
            elif way.startswith("publish"):
                bodies: list[Any] = [{"events": list(events)}] if way == "publish batch" else list(events)
                replies: list[dict[str, Any]] = []
                for body in bodies:
                    await self._published(body)
            else:
                replies = [await self._caller.persist("track_usage", {**event, "ack": ack}) for event in events]
        except Refused as error:
            self._book.problem(f"track_usage ({way}): {error}")
            return
        for reply in replies:
            if not reply["accepted"]:
                self._book.problem(f"not accepted: {reply}")
        self._book.acknowledged.update(event["id"] for event in events)

    async def _published(self, body: dict[str, Any]) -> None:
        receipt = await self._caller.persist_raw("usage.openai.chat", json.dumps(body).encode())
        if receipt.get("stream") != "TM_USAGE":
            self._book.problem(f"no PubAck of the usage stream: {receipt}")
