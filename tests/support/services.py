"""The services handlers are given, on a real PostgreSQL; only the usage stream is a recording."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from agent.ids import UuidV7
from handlers.context import Caller, Context, Inbound, Limits, Services
from handlers.cost.resolve import RateCards
from handlers.enforcer.admission import Admission
from handlers.tracker.apply import Applier, Effect
from handlers.tracker.intake import anonymous
from handlers.tracker.priced import priced
from schemas.errors import SignalError, unavailable
from schemas.usage import UsageEvent
from store.pool import Database, PoolSettings
from tests.support.vault import TEST_VAULT

RATE_CARDS = RateCards()
ORG = "default"


@dataclass(slots=True)
class RecordingSink:
    """Keeps what is sent to the stream; ``down`` refuses it as a stream that is away does."""

    stored: list[bytes] = field(default_factory=list[bytes])
    resent: list[tuple[str, dict[str, Any] | bytes, str]] = field(
        default_factory=list[tuple[str, dict[str, Any] | bytes, str]]
    )
    down: bool = False

    async def store(self, payload: bytes) -> None:
        self._check()
        self.stored.append(payload)

    async def resend(self, org: str, payload: bytes, subject: str) -> None:
        self._check()
        try:
            message: dict[str, Any] | bytes = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            message = payload
        self.resent.append((org, message, subject))

    def _check(self) -> None:
        if self.down:
            raise unavailable("the usage stream does not confirm")


@contextlib.asynccontextmanager
async def services_for(
    database_url: str, *, limits: Limits | None = None, sink: RecordingSink | None = None
) -> AsyncGenerator[Services]:
    """Services on the database at ``database_url``, closed afterwards."""
    database = Database(database_url, PoolSettings(min_size=1, max_size=6))
    await database.open()
    try:
        yield Services(
            database=database,
            rate_cards=RATE_CARDS,
            clock=lambda: datetime.now(UTC),
            new_id=UuidV7(),
            vault=TEST_VAULT,
            limits=limits or Limits(),
            instance="test",
            sink=sink or RecordingSink(),
        )
    finally:
        await database.close()


def context(
    services: Services, *, org: str = ORG, user: str | None = "alice", roles: Sequence[str] = ("admin",)
) -> Context:
    """A request's context."""
    return Context(services, Caller(org, user, frozenset(roles)))


def user(name: str, org: str = ORG) -> str:
    """The surrogate of a user's name, as everything below dispatch knows it."""
    return TEST_VAULT.surrogate(org, name)


async def apply_usage(services: Services, *events: UsageEvent, org: str = ORG) -> list[Effect]:
    """Price and apply events as ingest does; returns their effects in order."""
    ready = [
        priced(
            anonymous(services, org, event),
            org=org,
            event_id=event.id or services.new_id(),
            arrived_at=services.clock(),
            cards=services.rate_cards,
            limits=services.limits,
        ).event
        for event in events
    ]
    effects = await Applier(services).apply(org, ready)
    return [effects[i] for i in range(len(ready))]


def gpt(prompt: int = 1_000, completion: int = 100, **fields: Any) -> UsageEvent:
    """An event of gpt-4o ($2.50 and $10 a million): by default 0.0035 USD and 1,100 tokens."""
    values: dict[str, Any] = {"provider": "openai", "model": "gpt-4o"} | fields
    return UsageEvent(prompt_tokens=prompt, completion_tokens=completion, **values)


async def checked(services: Services, *, org: str = ORG, **fields: Any) -> dict[str, Any]:
    """The answer of ``check_budget``. Raises the SignalError it is refused with."""
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    caller = Caller(org, "router", frozenset({"provider"}))
    Admission(services).submit(Inbound(caller, msgspec.json.encode(fields), answer.set_result, answer.set_exception))
    return msgspec.json.decode(await answer)


async def refusal(work: Any) -> SignalError:
    """The error that ``work`` raises."""
    try:
        await work
    except SignalError as error:
        return error
    raise AssertionError("was not refused")


async def outbox_events(services: Services) -> list[tuple[str, Any]]:
    """Name and CloudEvent data of everything in the outbox, oldest first."""
    rows = await services.database.fetch("SELECT event, payload FROM outbox ORDER BY outbox_id")
    return [(row["event"], msgspec.json.decode(row["payload"]).get("data")) for row in rows]
