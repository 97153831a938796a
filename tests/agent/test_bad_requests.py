"""Every signal refuses what it must: with code and field, without a trace in the database, and goes on serving."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
import pytest_asyncio
from nats.aio.client import Client

from agent.actor import TokenManagerAgent
from agent.embedded import EmbeddedNats
from schemas.errors import STATUS
from signals import Request
from signals.registry import REQUESTS
from tests.agent.bad_fields import INVALID, mistakes
from tests.agent.bad_requests import REFUSED
from tests.agent.conftest import PASSWORD, new_database
from tests.agent.good_requests import GOOD, NAMELESS_ORG, ORG, READING, Refused
from tests.agent.seeds import contents, sow, sow_letter
from tests.conftest import PostgresServer
from tests.support.running import Reply, ask, connected, forget_streams, running_agent

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, slots=True)
class Field:
    """A running agent, a caller in each org, and the ids of what there is."""

    agent: TokenManagerAgent
    callers: dict[str, Client]
    ids: dict[str, str]

    def body(self, value: Any) -> Any:
        """A request with the ids of this agent in place of their names."""
        if isinstance(value, dict):
            return {key: self.body(item) for key, item in cast("dict[str, Any]", value).items()}
        if isinstance(value, list):
            return [self.body(item) for item in cast("list[Any]", value)]
        if isinstance(value, str) and value.startswith("$"):
            return re.sub(r"^\$([a-z]+)", lambda found: self.ids.get(found[1], found[0]), value)
        return value

    async def ask(self, signal: str, body: Any, org: str = ORG) -> Reply:
        """Ask in the name of an org's admin."""
        return await ask(self.callers[org], signal, body if isinstance(body, bytes) else self.body(body))

    async def rows(self) -> dict[str, tuple[int, int]]:
        """What is in the database."""
        return await contents(self.agent.services.database)

    async def serves(self, signal: str) -> None:
        """The signal itself, where it only reads, and a decision and a cost, are answered."""
        if signal.startswith(READING):
            assert (await self.ask(signal, GOOD[signal])).status is None
        assert (await self.ask("check_budget", GOOD["check_budget"])).result["approved"]
        assert (await self.ask("calculate_cost", GOOD["calculate_cost"])).result["cost"] == "0.0035"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def field(bus: EmbeddedNats, postgres_server: PostgresServer, migrated_template: str) -> AsyncIterator[Field]:
    """One agent for all: what one request breaks, the next one meets."""
    await forget_streams(bus.agent_url)
    async with (
        new_database(postgres_server, migrated_template) as url,
        running_agent(bus.agent_url, url) as agent,
        connected(bus.url_for("acme-admin", PASSWORD)) as one,
        connected(bus.url_for("acme-manager", PASSWORD)) as two,
        connected(bus.url_for("globex-admin", PASSWORD)) as three,
    ):
        ids = await sow(one, two)
        await sow_letter(three, ids, "theirs")
        assert (await ask(three, "configure_manager", {"user_names": "refuse"})).result
        made = Field(agent, {ORG: one, NAMELESS_ORG: three}, ids)
        await made.serves("check_budget")
        yield made
        assert agent._dispatch.open_requests == 0, "a request was not answered"  # pyright: ignore[reportPrivateUsage]


def refusal(reply: Reply) -> tuple[str | None, str | None]:
    if reply.status is None:
        return "served", str(reply.body)[:200]
    assert reply.status == STATUS[str(reply.code)] and reply.body["error"]["correlation_id"]
    return reply.code, reply.field


def label(value: Any) -> str:
    return f"{value.signal}: {value.what}" if isinstance(value, Refused) else value.name


async def test_every_signal_has_its_rows() -> None:
    names = {signal.name for signal in REQUESTS}
    assert GOOD.keys() == names, "a new signal needs a request that is served (tests.agent.good_requests.GOOD)"
    of_their_own = {case.signal for case in REFUSED}
    assert of_their_own <= names
    assert all(any(mistakes(signal, GOOD[signal.name])) for signal in REQUESTS)
    assert not (missing := {name for name in names - of_their_own if not name.startswith(READING)}), missing


@pytest.mark.parametrize("signal", REQUESTS, ids=label)
async def test_no_field_takes_what_it_should_not(field: Field, signal: Request[Any, Any]) -> None:
    wrong: list[str] = []
    before = await field.rows()
    for mistake in mistakes(signal, GOOD[signal.name]):
        reply = await field.ask(mistake.signal, mistake.body)
        found = refusal(reply)
        told = reply.body["error"]["message"] if reply.status is not None else ""
        if found != (INVALID, mistake.field) and not (mistake.field is None and found[0] == INVALID):
            wrong.append(f"{mistake.rule} ({mistake.field}): {str(mistake.body)[-200:]} -> {found} {told[:100]}")
        elif mistake.says not in told:
            wrong.append(f"{mistake.rule}: {told}")
        assert (await field.ask("calculate_cost", GOOD["calculate_cost"])).result["cost"] == "0.0035"
    await field.serves(signal.name)
    assert not wrong, "\n".join(wrong)
    assert await field.rows() == before


@pytest.mark.parametrize("case", REFUSED, ids=label)
async def test_is_refused_and_nothing_is_written(field: Field, case: Refused) -> None:
    before = await field.rows()
    reply = await field.ask(case.signal, case.body, case.org)
    assert refusal(reply) == (case.code, case.field), reply.body
    assert await field.rows() == before
    await field.serves(case.signal)


@pytest.mark.parametrize("signal", GOOD)
async def test_the_same_without_the_mistake_is_served(field: Field, signal: str) -> None:
    reply = await field.ask(signal, GOOD[signal])
    assert reply.status is None, reply.body
