"""Prices of running agents: a change on one binds the other, files of an operator, and the scheduled refresh."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.client import Client
from pydantic import ValidationError

from agent.actor import TokenManagerAgent
from agent.embedded import EmbeddedNats
from agent.price_rules import BadPriceRules, read_price_rules
from agent.settings import Settings
from handlers.cost.resolve import RateCards
from tests.agent.conftest import new_database
from tests.conftest import PostgresServer
from tests.support.polling import eventually
from tests.support.price_data import Raw, changed, model_of
from tests.support.price_server import mirror
from tests.support.running import ask, connected, forget_streams
from tests.support.vault import TEST_VAULT

CALL: dict[str, Any] = {"provider": "openai", "model": "gpt-4o"}
CHECK = {**CALL, "prompt_tokens": 1000, "max_completion_tokens": 100, "reserve": False}
USAGE = {**CALL, "prompt_tokens": 1000, "completion_tokens": 100, "ack": "applied"}
CONTRACT = {"name": "acme", "layer": "contract", "op": "rates", **CALL, "rates": {"input": "2", "output": "8"}}


def newer(raw: Raw) -> None:
    """gpt-4o at 3 instead of 2.5 for a million input tokens."""
    model = model_of(raw, "openai", "gpt-4o")
    model["prices"]["input_mtok"] = 3
    model["price_comments"] = "Checked on 2026-11-21."


class Agents:
    """Agents on one database and bus, started as a test wants them."""

    def __init__(self, nats_url: str, database_url: str, stack: AsyncExitStack) -> None:
        self._nats_url = nats_url
        self._database_url = database_url
        self._stack = stack

    async def start(self, **settings: Any) -> TokenManagerAgent:
        """An agent with prices of its own."""
        agent = TokenManagerAgent(
            Settings(default_roles=("admin",), outbox_poll_s=0.2, drain_timeout_s=5.0, **settings),
            nats_url=self._nats_url,
            database_url=self._database_url,
            rate_cards=RateCards(),
            vault=TEST_VAULT,
        )
        await agent.start()
        self._stack.push_async_callback(agent.drain)
        return agent


@pytest_asyncio.fixture
async def agents(bus: EmbeddedNats, postgres_server: PostgresServer, migrated_template: str) -> AsyncIterator[Agents]:
    await forget_streams(bus.agent_url)
    async with new_database(postgres_server, migrated_template) as url, AsyncExitStack() as stack:
        yield Agents(bus.agent_url, url, stack)


@pytest_asyncio.fixture
async def caller(bus: EmbeddedNats) -> AsyncIterator[Client]:
    async with connected(bus.url) as client:
        yield client


async def cost_of(agent: TokenManagerAgent, caller: Client) -> set[str | None]:
    """What checks cost, asked until every agent behind the queue group has probably answered."""
    return {(await ask(caller, "check_budget", CHECK)).result["estimated_cost"] for _ in range(12)}


async def test_a_change_on_one_agent_binds_checks_and_usage_on_both(agents: Agents, caller: Client) -> None:
    one, two = await agents.start(), await agents.start()
    assert await cost_of(one, caller) == {"0.0035"}
    done = (await ask(caller, "update_pricing", {"rules": [CONTRACT], "reason": "signed"})).result
    assert done["applied"] and done["rules"][0]["version"] == 1
    assert await cost_of(one, caller) == {"0.0028"}
    costs = {(await ask(caller, "track_usage", {**USAGE, "id": f"u{n}"})).result["cost"] for n in range(12)}
    assert costs == {"0.0028"}
    served = [a.services.catalogues.known("default") for a in (one, two)]
    assert all(found is not None and found.book.changes == 1 for found in served), "both have answered"
    ended = {"end": [{"name": "acme", "version": 1}]}
    assert (await ask(caller, "update_pricing", ended)).result["applied"]
    assert await cost_of(one, caller) == {"0.0035"}
    entries = (await ask(caller, "get_audit_trail", {"entity": "price_rule"})).result["entries"]
    assert [(e["action"], e["actor"]) for e in entries] == [("ended", "local"), ("created", "local")]


async def test_a_mirror_is_used_by_every_agent_once_somebody_applies_it(agents: Agents, caller: Client) -> None:
    async with mirror(changed(newer)) as server:
        settings = {"prices_refresh": "url", "prices_url": server.url}
        one, _ = await agents.start(**settings), await agents.start(**settings)
        shown = (await ask(caller, "refresh_prices")).result
        assert (shown["applied"], shown["counts"]["changes"]) == (False, 1)
        assert await cost_of(one, caller) == {"0.0035"}
        assert (await ask(caller, "refresh_prices", {"apply": True})).result["applied"]
        assert await cost_of(one, caller) == {"0.004"}
        status = (await ask(caller, "get_status")).result
        (part,) = [p for p in status["parts"] if p["name"] == "prices"]
        assert part["ok"], part


async def test_the_schedule_refreshes_once_for_all_agents(agents: Agents, caller: Client) -> None:
    first = await agents.start()
    assert (await ask(caller, "update_pricing", {"rules": [{**CONTRACT, "model": "other"}]})).result["applied"]
    async with mirror(changed(newer)) as server:
        settings = {"prices_refresh": "url", "prices_url": server.url, "prices_interval_s": 86_400.0}
        await agents.start(**settings)
        await agents.start(**settings)

        async def refreshed() -> bool:
            return await cost_of(first, caller) == {"0.004"}

        await eventually(refreshed)
        runs = await first.services.database.fetch("SELECT result FROM job_run WHERE job = 'prices'")
        assert len(runs) == 1 and "1 applied" in runs[0]["result"]
        assert server.asked == 1
    (entry,) = (await ask(caller, "get_audit_trail", {"entity": "price_snapshot"})).result["entries"]
    assert entry["actor"] == "policy:prices"


RULES = """
# What we pay ourselves, for every org.
- name: our llama
  layer: operator
  op: rates
  provider: local
  model: llama*
  rates: {input: 2, output: 4.5}
  source: the finance department, 2026-11-01
- {name: gateway, layer: operator, op: multiply, provider: openai, factor: "1.02"}
"""


async def test_an_operators_file_prices_every_org_and_is_shown_as_the_agents(
    agents: Agents, caller: Client, tmp_path: Path
) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    agent = await agents.start(price_rules_file=path)
    # 1000 x 2 + 100 x 4.5 = 2,450 per million
    own = {**CHECK, "provider": "local", "model": "llama-70b"}
    assert (await ask(caller, "check_budget", own)).result["estimated_cost"] == "0.00245"
    # 0.0035 x 1.02
    assert await cost_of(agent, caller) == {"0.00357"}
    listed = (await ask(caller, "list_price_rules", {"origin": "agent"})).result["rules"]
    assert [(r["name"], r["origin"], r["layer"]) for r in listed] == [
        ("gateway", "agent", "operator"),
        ("our llama", "agent", "operator"),
    ]
    assert (await ask(caller, "update_pricing", {"rules": [CONTRACT]})).result["applied"]
    assert await cost_of(agent, caller) == {"0.0028"}, "a contract is what is paid"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("rules: 7", "rules: is not a list"),
        ("a: 1", "file: "),
        ("- x", "rules[0]"),
        ("- {name: a, layer: operator, op: multiply}", "rules[0].factor: 'multiply' needs it"),
        ("- {name: a, layer: contract, op: multiply, factor: 2}", "rules[0].layer"),
        ("- {name: a, layer: operator, op: rates, rates: {inptu: 2}}", "rules[0].rates"),
        ("- {name: a, layer: operator, op: rates, rates: {input: -2}}", "rules[0].rates.input"),
        ("- {name: a, layer: operator, op: rates, ratse: {input: 2}}", "rules[0].ratse"),
        ("- {name: a, layer: operator, op: multiply, factor: 2}\n" * 2, "rules[1].name: 'a' is there twice"),
        (
            "- {name: a, layer: operator, op: rates, rates: {input: 2}}\n"
            "- {name: b, layer: operator, op: rates, rates: {input: 3}}",
            "rules[1].name: states rates for */* at times at which 'a' does",
        ),
        ("- [", "line"),
        ("- {name: a, layer: operator, op: multiply, factor: 2, daily: {start: '1:00', end: '02:00'}}", "daily.start"),
        ("x" * 1_000_001, "characters"),
    ],
)
def test_a_file_of_rules_that_cannot_be_applied_says_which_and_where(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(BadPriceRules) as caught:
        read_price_rules(path)
    assert why in str(caught.value) and str(path) in str(caught.value)


def test_json_is_read_like_yaml(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text('{"rules": [{"name": "a", "layer": "operator", "op": "multiply", "factor": 0.9}]}')
    (rule,) = read_price_rules(path)
    assert (rule.name, rule.factor) == ("a", "0.9")
    with pytest.raises(BadPriceRules, match="cannot be read"):
        read_price_rules(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"prices_refresh": "file"}, "prices_file"),
        ({"prices_refresh": "url"}, "prices_url"),
        ({"prices_refresh": "url", "prices_url": "file:///etc/passwd"}, "is not an http"),
        ({"prices_refresh": "sometimes"}, "prices_refresh"),
        ({"prices_bytes_max": 0}, "prices_bytes_max"),
        ({"prices_timeout_s": 0}, "prices_timeout_s"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_at_the_start(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Settings(**given)
