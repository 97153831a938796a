"""A company on a bus of its own: its people, two agents, a clock that moves, and each answer held against the model."""
# pyright: reportUnknownMemberType=false
# nats-py leaves the options of its calls untyped.

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from agent.actor import TokenManagerAgent
from agent.embedded import AccountSpec, DataDir, EmbeddedNats, UserSpec
from tests.scenario.ledger_model import Hold, Key, Ledger, Shown, Verdict, text_of
from tests.scenario.move_clock import set_offset
from tests.support.polling import eventually
from tests.support.running import Reply, ask, connected, running_agent
from tests.support.vault import TEST_VAULT

ORG = "acme"
PASSWORD = "test"
# Who connects to the bus. Olivia is an administrator by the agents' settings and makes the others what they are.
PEOPLE: dict[str, list[str]] = {
    "router": ["provider", "viewer"],
    "erin": ["manager", "approver"],
    "grace": ["approver", "viewer"],
}
CHIEF = "olivia"
SHOWN_FIELDS = ("base_limit", "limit", "spent", "overrun", "reserved", "remaining", "percent_used")
# One scene's requests come within this time of its start, which is never so near the end of a minute.
SCENE_S = 40.0
NEVER = datetime(1970, 1, 1, tzinfo=UTC)


def time_of(text: str) -> datetime:
    """A time as replies write it."""
    return datetime.fromisoformat(text)


def shown_in(windows: list[dict[str, Any]]) -> dict[str, Shown]:
    """The windows of a reply, by budget."""
    return {
        w["name"]: Shown(
            entity=w["entity_id"],
            **{f: w[f] for f in SHOWN_FIELDS},
            start=time_of(w["window_start"]),
            end=time_of(w["resets_at"]),
        )
        for w in windows
    }


@dataclass
class Company:
    """Everybody's connections, and the model that every reply is compared with."""

    bus: EmbeddedNats
    database_url: str
    agents: list[TokenManagerAgent]
    clients: dict[str, Client]
    database: "asyncpg.Connection[asyncpg.Record]"
    heard: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict[str, tuple[str, dict[str, Any]]])
    ledger: Ledger = field(init=False)
    _offset: timedelta = timedelta(0)
    _scene: datetime = NEVER
    _reservations: dict[str, str] = field(default_factory=dict[str, str])
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    # Time -------------------------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The time of the company; every scene stays within its own minute."""
        now = datetime.now(UTC) + self._offset
        assert now - self._scene < timedelta(seconds=SCENE_S), "this machine is too slow for one scene a minute"
        return now

    async def go_to(self, scene: datetime) -> None:
        """Move the ledger's clock; agents lose their connections with the old time, and follow."""
        self._scene, self._offset = scene, scene - datetime.now(UTC)
        await set_offset(self.database, self.database_url, scene)

        def followed() -> bool:
            apart = (agent.services.clock() - datetime.now(UTC) - self._offset for agent in self.agents)
            return all(abs(d) < timedelta(seconds=1) for d in apart)

        await eventually(followed, 20, "the agents do not follow the clock")
        if hasattr(self, "ledger"):
            self.ledger.expire(self.now() - timedelta(seconds=2))
            await self.freed()

    async def freed(self) -> None:
        """Wait until exactly those reservations are live that the model has."""
        live = {hold.request_id for hold in self.ledger.holds.values() if hold.status == "live"}

        async def same() -> bool:
            sql = "SELECT request_id FROM reservation WHERE org_id = $1 AND status = 'live'"
            return {row["request_id"] for row in await self.database.fetch(sql, ORG)} == live

        await eventually(same, 20, "expired reservations are not freed")

    # Asking -----------------------------------------------------------------------------------------------------------

    async def ask(self, who: str, signal: str, body: object = None) -> Reply:
        """A reply that is not about an agent that is just connecting again."""

        async def answered() -> Reply | None:
            reply = await ask(self.clients[who], signal, body)
            return None if reply.status == 503 else reply

        reply = await eventually(answered, 20, f"{signal} stays unavailable")
        assert reply is not None
        return reply

    async def done(self, who: str, signal: str, body: object = None) -> dict[str, Any]:
        """What a request that succeeds replies."""
        return (await self.ask(who, signal, body)).result

    async def check(
        self, *, who: dict[str, str], model: str = "o1", prompt: int, most: int, ttl_s: int = 600, request: str = ""
    ) -> tuple[str, Verdict, dict[str, Any]]:
        """Ask, decide in the model, and compare everything that the answer says; the request's id first."""
        request = request or f"call-{next(self._numbers)}"
        now = self.now()
        verdict = self.ledger.check(now, request, who=who, model=model, prompt=prompt, most=most, ttl_s=ttl_s)
        body = {"provider": "openai", "model": model, "prompt_tokens": prompt, "max_completion_tokens": most}
        body |= {"request_id": request, "ttl_s": ttl_s, **who}
        reply = await self.done("router", "check_budget", body)
        self.compare(reply, verdict, request, now + timedelta(seconds=ttl_s))
        return request, verdict, reply

    def compare(self, reply: dict[str, Any], verdict: Verdict, request: str, expires_at: datetime) -> None:
        """An answer and the model's verdict."""
        assert reply["approved"] == verdict.approved, (reply, verdict)
        assert reply["estimated_cost"] == text_of("cost", verdict.cost)
        if not verdict.approved:
            assert reply["reason"]["code"] == verdict.code
            assert not verdict.reasons or self.name_of(reply["reason"]["budget_id"], reply) in verdict.reasons
        elif not verdict.shown:  # A repeat is answered as before, and holds nothing more.
            assert reply["reservation_id"] == self._reservations[request]
            return
        else:
            self.keep(reply)
            assert abs(time_of(reply["expires_at"]) - expires_at) < timedelta(seconds=5)
            assert self._warned(reply) == verdict.warned
        assert shown_in(reply["budgets"]) == verdict.shown

    def keep(self, reply: dict[str, Any]) -> None:
        """Remember the reservation of an approval."""
        self._reservations[reply["request_id"]] = reply["reservation_id"]

    def name_of(self, budget_id: str, reply: dict[str, Any]) -> str:
        """The name of a budget that a reply shows."""
        return next(w["name"] for w in reply["budgets"] if w["budget_id"] == budget_id)

    def _warned(self, reply: dict[str, Any]) -> set[str]:
        return {name for text in reply["warnings"] for name in self.ledger.policies if f"'{name}'" in text}

    async def use(self, *, who: Mapping[str, str] = {}, ack: str = "applied", **call: Any) -> int | None:
        """Report usage, book it in the model, and compare cost and whether it was new."""
        event = call.pop("event", "") or f"event-{next(self._numbers)}"
        body: dict[str, Any] = {"id": event, "provider": "openai", "ack": ack, **who}
        names = {"prompt": "prompt_tokens", "completion": "completion_tokens", "cached": "cache_read_tokens"}
        body |= {names.get(key, key): value for key, value in call.items()}
        if request := call.get("request_id"):
            body["reservation_id"] = self._reservations[request]
        elif "timestamp" not in call:
            body["timestamp"] = call["timestamp"] = self.now()
        cost = self.ledger.use(self.now(), event, who=dict(who), **call)
        reply = await self.done("router", "track_usage", body)
        if cost is not None:
            assert reply["cost"] == text_of("cost", cost)
        if ack == "applied":
            assert reply["duplicate"] == (cost is None)
        else:
            await self.applied(event)
        return cost

    async def applied(self, event: str) -> None:
        """Wait until an event that was only stored is applied."""

        async def there() -> bool:
            sql = "SELECT EXISTS (SELECT FROM usage_event WHERE org_id = $1 AND id = $2)"
            return bool(await self.database.fetchval(sql, ORG, event))

        await eventually(there, 20, f"{event} is not applied")

    async def release(self, request: str) -> None:
        """Give back a reservation, twice: the second time changes nothing."""
        self.ledger.release(request)
        body = {"reservation_id": self._reservations[request]}
        for _ in range(2):
            assert (await self.done("router", "release_reservation", body))["status"] == "released"

    # Comparing --------------------------------------------------------------------------------------------------------

    def live(self) -> list[Hold]:
        """Reservations of the model that are live."""
        return [hold for hold in self.ledger.holds.values() if hold.status == "live"]

    async def verify_windows(self) -> None:
        """Every window that was ever opened, to the nano, as the database has it."""
        names = {TEST_VAULT.surrogate(ORG, user): user for user in self.users()}

        def named(entity: str) -> str:
            return names.get(entity, entity)

        sql = """SELECT b.name, w.entity_id, w.starts_at, w.ends_at, w.carry, w.spent, w.reserved, w.overrun,
                     w.thresholds_fired, w.shadow_denied, w.exceeded_at IS NOT NULL AS exceeded
                 FROM budget_window w JOIN budget b USING (org_id, budget_id) WHERE org_id = $1"""
        found: dict[Key, dict[str, Any]] = {
            (row["name"], named(row["entity_id"]), row["starts_at"]): {
                **{name: row[name] for name in ("ends_at", "carry", "spent", "reserved", "overrun", "shadow_denied")},
                "thresholds_fired": sorted(row["thresholds_fired"]),
                "exceeded": row["exceeded"],
            }
            for row in await self.database.fetch(sql, ORG)
        }
        expected: dict[Key, dict[str, Any]] = {
            w.key: {
                "ends_at": w.end,
                "carry": w.carry,
                "spent": w.spent,
                "reserved": w.reserved,
                "overrun": w.overrun,
                "shadow_denied": w.shadow_denied,
                "thresholds_fired": sorted(w.fired),
                "exceeded": w.exceeded is not None,
            }
            for w in self.ledger.windows.values()
        }
        differ = {key: (found.get(key), expected.get(key)) for key in found | expected}
        differ = {key: pair for key, pair in differ.items() if pair[0] != pair[1]}
        assert not differ, f"(database, model): {differ}"

    def users(self) -> list[str]:
        """Everybody whose calls are counted."""
        return [*self.ledger.teams, "contractor"]

    async def verify_status(self, who: dict[str, str]) -> None:
        """What `get_budget_status` says about a call of these attributes."""
        reply = await self.done("router", "get_budget_status", who)
        now = self.now()
        expected = {w.policy: self.ledger.shown(w, now) for w in self.ledger.present(who, now)}
        found = shown_in([budget["window"] for budget in reply["budgets"]])
        assert found == expected, f"the reply shows {found}, the model {expected}"
        assert reply["team_id"] == (None if "team_id" in who else self.ledger.teams.get(who.get("user_id", "")))

    async def told(self, name: str) -> list[dict[str, Any]]:
        """The data of every event of one name that the company has heard, each once."""
        return [data for subject, data in self.heard.values() if subject == f"token.evt.{name}"]

    async def take(self, message: Msg) -> None:
        """An event arrives; it may arrive again."""
        event = msgspec.json.decode(message.data)
        self.heard[event["id"]] = (message.subject, event.get("data"))


@contextlib.asynccontextmanager
async def company_of(folder: Path, database_url: str, start: datetime) -> AsyncGenerator[Company]:
    """A company with two agents, at ``start``; everybody is who they are."""
    people = (CHIEF, *PEOPLE)
    account = AccountSpec(name=ORG, users=tuple(UserSpec(name=name, password=PASSWORD) for name in people))
    settings: dict[str, Any] = {"default_roles": None, "roles": {f"{ORG}/{CHIEF}": ("admin",)}}
    settings |= {"expiry_interval_s": 0.1, "override_interval_s": 0.2, "retry_wait_s": 0.02, "retry_wait_max_s": 0.2}
    async with AsyncExitStack() as stack:
        data = stack.enter_context(DataDir(folder))
        bus = EmbeddedNats(data, extra_accounts=(account,))
        await bus.start()
        stack.push_async_callback(bus.stop)
        agents = [
            await stack.enter_async_context(running_agent(bus.agent_url, database_url, **settings)) for _ in range(2)
        ]
        clients = {name: await stack.enter_async_context(connected(bus.url_for(name, PASSWORD))) for name in people}
        database = await asyncpg.connect(database_url)
        stack.push_async_callback(database.close)
        company = Company(bus, database_url, agents, clients, database)
        await clients[CHIEF].subscribe("token.evt.>", cb=company.take)
        await company.go_to(start)
        for name, roles in PEOPLE.items():
            await company.done(CHIEF, "set_user", {"name": name, "roles": roles, "teams": ["engineering"]})

        async def known() -> bool:
            denied = [await ask(clients["router"], "check_budget", {"estimated_cost": "0", "reserve": False})]
            denied += [await ask(clients[name], "list_overrides") for name in ("erin", "grace")]
            return all(reply.status is None for reply in denied)

        await eventually(known, 20, "the agents do not know everybody")
        yield company


async def gather_checks(company: Company, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Many checks at once, as several routers ask."""
    replies = await asyncio.gather(*(company.ask("router", "check_budget", body) for body in bodies))
    return [reply.result for reply in replies]
