"""Number 10, features: what each costs where it is switched on, beside the same tree without it."""

import asyncio
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from bench.figures import ratio, table
from bench.floor import OUTSTANDING, Floor, p50, p99, rate
from bench.load import LoadResult
from bench.payloads import Call
from bench.stand import BenchError
from bench.trees import FOUR, LIMIT, MODELS, Node, Tree, with_more

TRACK = "token.track_usage"
OVERRIDES = 40
PRESSED_LIMIT = "10000000"
LEARNED_CALLS = 200
LEARNED_S = 30.0
SET_UP_S = 1.5
RATED = {"enforcement": "throttle", "rate": {"limit": LIMIT, "unit": "requests", "period": "minute"}}
OFFERING = {"enforcement": "downgrade", "preferred_models": MODELS, "fallback_model": "gpt-5-nano"}
RAISING = {"override_policy": {"auto_approve_percent": 100, "max_percent": 1000}}
LEARNED = {"sizing": "learned"}
PRESSURE = {"estimated_cost": "200000", "ttl_s": 86_400}
"""A reservation that alone is 2 % of PRESSED_LIMIT."""

OFF = Tree("off", FOUR)
THROTTLED = Tree("throttled", with_more(FOUR, "project", **RATED))
OFFERS = Tree("offers", with_more(FOUR, "team", **OFFERING))
PRESSED = Tree("pressed", with_more(FOUR, "team", **OFFERING, limit=PRESSED_LIMIT))
ALL = Tree("all", with_more(PRESSED.nodes, "project", **RATED))
RAISED = Tree("raised", (Node("user", entity="*", more=RAISING),))

RULES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("request_cost", {"limit": "1000"}),
    ("hourly_rate", {"limit": LIMIT}),
    ("absolute_tokens", {"limit": "900000000000"}),
    ("pacing", {}),
    ("threshold", {"percents": [99]}),
    ("exceeded", {}),
)
RULE_SCOPES: tuple[dict[str, str], ...] = ({}, {"type": "user"}, {"type": "team"}, {"type": "project"})


class Features:
    """The loads, one for each feature, that take turns with the load without any."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self._checks: dict[str, list[LoadResult]] = {}
        self._events: dict[str, list[LoadResult]] = {}

    async def measure(self) -> None:
        """Create the budgets, let it learn, then run the loads in turns."""
        floor = self._floor
        await floor.plant(OFF, THROTTLED, OFFERS, PRESSED, ALL)
        (raised,) = await floor.plant(RAISED)
        await floor.requester.ask("configure_manager", {"pressure_percent": 1, "sizing": {"samples_min": 50}})
        for tree in (PRESSED, ALL):
            await floor.requester.ask("check_budget", {**tree.call().scope, "request_id": tree.environment, **PRESSURE})
        await self._learn()
        for _ in range(floor.sizes.budget_runs):
            await self._plain()
            await self._with_overrides(raised["budget_id"])
            await self._alerted()

    async def _plain(self) -> None:
        await self._check("none", OFF.call())
        await self._check("a throttled budget with its rate (5 windows)", THROTTLED.call())
        await self._check("four other models to offer, no pressure", OFFERS.call())
        await self._check("four other models to offer, under pressure", PRESSED.call())
        await self._check("learned sizing", OFF.call(more=LEARNED))
        await self._name_users("surrogate")
        await self._check("user names behind surrogates", OFF.call())
        await self._name_users("keep")

    async def _with_overrides(self, budget_id: str) -> None:
        """An override ends by itself, and only then: until then everything of the org is decided with it."""
        floor = self._floor
        takes_s = SET_UP_S + 2 * floor.load_s
        await floor.leave_room(2 * takes_s)
        until = time.time() + takes_s
        for number in range(OVERRIDES):
            asked = {"budget_id": budget_id, "entity_id": f"u{number}", "percent": 1, "reason": "bench"}
            asked["until"] = datetime.fromtimestamp(until, UTC).isoformat()
            override = await floor.requester.ask("request_override", asked)
            if override["status"] != "approved":
                raise BenchError(f"the override is {override['status']}")
        await self._check(f"{OVERRIDES} live overrides", OFF.call())
        await self._name_users("surrogate")
        await self._check("all of these", ALL.call(more=LEARNED))
        await self._name_users("keep")
        if time.time() > until:
            raise BenchError("the overrides ended before what was measured with them")
        await asyncio.sleep(until + SET_UP_S - time.time())

    async def _alerted(self) -> None:
        await self._track("none")
        rules = [await self._floor.requester.ask("set_alert_rule", rule) for rule in _rules()]
        await self._track(f"{len(rules)} alert rules")
        for rule in rules:
            body = {"name": rule["name"], "version": rule["version"]}
            await self._floor.requester.ask("delete_alert_rule", body)

    async def _check(self, name: str, call: Call) -> None:
        result = await self._floor.load(call=call, outstanding=OUTSTANDING)
        self._checks.setdefault(name, []).append(result)

    async def _track(self, name: str) -> None:
        call = OFF.call(more={"ack": "applied"})
        result = await self._floor.load("track", subject=TRACK, call=call, outstanding=OUTSTANDING)
        self._events.setdefault(name, []).append(result)

    async def _name_users(self, how: str) -> None:
        await self._floor.requester.ask("configure_manager", {"user_names": how})

    async def _learn(self) -> None:
        """Make calls that take a quarter of what they asked for, until a check says that it has learned from them."""
        ask, scope = self._floor.requester.ask, OFF.call().scope
        model = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 1_200}
        requests = [f"learn-{number}" for number in range(LEARNED_CALLS)]
        for request_id in requests:
            await ask("check_budget", {**scope, **model, "request_id": request_id, "max_completion_tokens": 400})
        used = {**scope, **model, "completion_tokens": 100}
        events = [{**used, "id": request_id, "request_id": request_id} for request_id in requests]
        await ask("track_usage", {"events": events, "ack": "applied"})
        deadline = time.monotonic() + LEARNED_S
        while time.monotonic() < deadline:
            answer = await ask("check_budget", {**scope, **model, **LEARNED, "max_completion_tokens": 400})
            if any(warning.startswith("learned") for warning in answer["warnings"]):
                return
            await asyncio.sleep(0.2)
        raise BenchError(f"nothing was learned from {LEARNED_CALLS} calls within {LEARNED_S:g} s")

    def section(self) -> str:
        """What was found, in Markdown."""
        return f"{_table('check_budget with', self._checks)}\n\n{_table('track_usage with', self._events)}"


def _rules() -> Iterable[dict[str, Any]]:
    for kind, parameters in RULES:
        for scope in RULE_SCOPES:
            yield {
                "name": "-".join((kind, *scope.values())),
                "kind": kind,
                "scope": scope,
                "parameters": parameters,
                "actions": [{"do": "log"}],
            }


def _table(what: str, found: dict[str, list[LoadResult]]) -> str:
    off = rate(found["none"])
    rows = [
        [name, f"{rate(results):,.0f}", ratio(rate(results), off), p50(results), p99(results)]
        for name, results in found.items()
    ]
    return table((what, "per second", "to none", "p50 ms", "p99 ms"), rows)
