"""A company of three teams over two months, every figure against a ledger of its own (``ledger_model``).

Two agents on a real bus answer everybody; the ledger's clock is moved from scene to scene.
"""

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.ledger.oracle import violations
from tests.scenario.company import CHIEF, ORG, PEOPLE, Company, company_of, gather_checks, shown_in, time_of
from tests.scenario.ledger_model import Ledger, Policy, text_of, usd
from tests.support.polling import eventually

ROOT = Path(__file__).parent.parent.parent
START = datetime(2030, 2, 1, 9, 0, 5, tzinfo=UTC)
TEAMS = {"engineering": ["erin", "emil", "eva"], "research": ["rosa", "ralf"], "support": ["sam", "sofia", "stan"]}
TEAM_OF = {user: team for team, users in TEAMS.items() for user in users}
SEED = 20300201
DOCUMENT = (ROOT / "docs" / "scenario.yaml").read_text(encoding="utf-8")
POLICIES = (
    Policy(name="company", type="global", limit=usd("260")),
    Policy(
        name="engineering",
        type="team",
        entity="engineering",
        limit=usd("150"),
        rollover="capped",
        rollover_percent=50,
    ),
    Policy(name="research", type="team", entity="research", limit=usd("60"), enforcement="warn"),
    Policy(name="support", type="team", entity="support", limit=usd("95"), zone="Europe/Vienna", rollover="full"),
    Policy(name="each user", type="user", limit=usd("50")),
    Policy(name="tighter", type="user", limit=usd("30"), enforcement="shadow"),
    Policy(
        name="summaries",
        type="feature",
        entity="summaries",
        limit=5,
        unit="requests",
        period="minute",
        enforcement="throttle",
        thresholds=(),
    ),
)
WEIGHTS = {"erin": 3, "emil": 5, "eva": 5, "rosa": 7, "ralf": 6, "sam": 4, "sofia": 4, "stan": 3, "contractor": 2}


class Calls:
    """Calls of two months, drawn from one seed: every way in which usage arrives."""

    def __init__(self, company: Company) -> None:
        self.company = company
        self.random = random.Random(SEED)
        self.kept: list[tuple[str, dict[str, Any]]] = []
        self.made: dict[str, int] = {}

    async def scene(self, count: int) -> None:
        """What happens within some seconds: late reports first, then ``count`` calls."""
        for request, call in self.kept:
            if self.random.random() < 0.8:  # The others are never heard of again.
                await self.company.use(request_id=request, **call)
                self._count("late")
        self.kept.clear()
        for _ in range(count):
            await self._call()
        await self.company.verify_windows()

    async def _call(self) -> None:
        company, draw = self.company, self.random
        who = {"user_id": draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]}
        if who["user_id"] == "contractor" or draw.random() < 0.2:
            who["feature"] = "reports"
        elif draw.random() < 0.3:
            who["team_id"] = TEAM_OF[who["user_id"]]
        model = draw.choice(("o1", "o1", "o1", "gpt-4o"))
        prompt, most = draw.randrange(10_000, 95_000), draw.randrange(4_000, 30_000)
        if model == "gpt-4o":
            most = min(most, 16_000)  # What that model gives at most.
        kind = draw.choices(
            ("plain", "repeated", "over", "parts", "released", "unreserved", "late", "forgotten"),
            (30, 12, 10, 12, 8, 12, 10, 6),
        )[0]
        took: dict[str, Any] = {"model": model, "prompt": prompt, "completion": draw.randrange(most // 4, most)}
        if model != "o1" or draw.random() < 0.5:
            took["cached"] = draw.randrange(prompt)
        if kind == "unreserved":
            await self._unreserved(who, took)
            return
        ttl_s = 86_400 if kind == "late" else 600
        request, verdict, _ = await company.check(who=who, model=model, prompt=prompt, most=most, ttl_s=ttl_s)
        if not verdict.approved:
            self._count("denied")
            return
        self._count(kind)
        if kind == "released":
            await company.release(request)
        elif kind in ("late", "forgotten"):
            self.kept.append((request, took))
        elif kind == "parts":
            await self._parts(request, took)
        elif kind == "repeated":
            await company.check(who=who, model=model, prompt=prompt, most=most, ttl_s=ttl_s, request=request)
            for _ in range(2):
                await company.use(request_id=request, event=f"{request}-used", **took)
        else:
            if kind == "over":
                took["completion"] = most + draw.randrange(1, 9_000)
            await company.use(request_id=request, ack=draw.choice(("applied", "stored")), **took)

    async def _unreserved(self, who: dict[str, str], took: dict[str, Any]) -> None:
        """Nobody asked first; sometimes it is told days later, and counts in the window of its time."""
        timestamp = self.company.now()
        if self.random.random() < 0.5:
            timestamp = max(START + timedelta(minutes=1), timestamp - timedelta(hours=self.random.randrange(1, 100)))
        self._count("unreserved")
        await self.company.use(who=who, timestamp=timestamp, **took)

    async def _parts(self, request: str, took: dict[str, Any]) -> None:
        """A stream reports as it goes: two parts, then the last one."""
        third: dict[str, Any] = {
            "prompt": took["prompt"] // 3,
            "completion": took["completion"] // 3,
            "model": took["model"],
        }
        for part in range(3):
            await self.company.use(request_id=request, event=f"{request}-{part}", final=part == 2, **third)

    def _count(self, kind: str) -> None:
        self.made[kind] = self.made.get(kind, 0) + 1


async def test_two_months_of_a_company_agree_with_a_ledger_of_their_own(tmp_path: Path, database_url: str) -> None:
    async with company_of(tmp_path / "bus", database_url, START) as company:
        await the_policies_are_applied(company)
        calls = Calls(company)
        for day in (1, 3, 5, 7, 9, 11):
            await at(company, 2, day, 14)
            await calls.scene(14)
        await a_limit_is_raised_and_falls_back(company, calls)
        await features_have_a_rate(company)
        await what_is_set_aside_stays(company)
        for day in (18, 20, 22, 24, 26, 27):
            await at(company, 2, day, 10)
            await calls.scene(14)
        await the_month_ends(company, calls)
        for day in (4, 7, 10):
            await at(company, 3, day, 16)
            await calls.scene(18)
        await the_policies_change(company)
        for day in (13, 16, 19, 22, 25, 28, 30):
            await at(company, 3, day, 8)
            await calls.scene(22)
        await the_second_month_ends(company, calls)
        await everything_was_told(company)
        await sums_agree(company)
        await the_trail_is_whole(company)
        every_kind_of_thing_happened(company.ledger, calls)


async def at(company: Company, month: int, day: int, hour: int, minute: int = 0) -> None:
    """The next scene."""
    await company.go_to(datetime(2030, month, day, hour, minute, 5, tzinfo=UTC))


async def the_policies_are_applied(company: Company) -> None:
    """The directory, then the document: shown first, applied, and the same again changes nothing."""
    for team, members in TEAMS.items():
        reply = await company.done(CHIEF, "set_team", {"team_id": team, "members": members})
        assert sorted(reply["members"]) == sorted(members)
    company.ledger = Ledger(POLICIES, TEAM_OF, START)
    shown = await company.done(CHIEF, "apply_policies", {"document": DOCUMENT, "dry_run": True})
    assert (shown["applied"], shown["counts"], shown["errors"]) == (False, {"create": len(POLICIES)}, [])
    assert (await company.done(CHIEF, "list_budgets"))["budgets"] == []
    done = await company.done(CHIEF, "apply_policies", {"document": DOCUMENT, "reason": "the year's plan"})
    assert done["applied"] and done["diff"] == [{**c, "budget_id": d["budget_id"]} for c, d in both(shown, done)]
    again = await company.done(CHIEF, "apply_policies", {"document": DOCUMENT})
    assert again["counts"] == {"unchanged": len(POLICIES)}
    rule = {"name": "dear calls", "kind": "request_cost", "parameters": {"limit": "1.5"}}
    await company.done(CHIEF, "set_alert_rule", rule)
    # A user of one team cannot be charged to another.
    who = {"user_id": "erin", "team_id": "research"}
    _, verdict, _ = await company.check(who=who, prompt=10_000, most=1_000)
    assert not verdict.approved


def both(shown: dict[str, Any], done: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return list(zip(shown["diff"], done["diff"], strict=True))


async def a_limit_is_raised_and_falls_back(company: Company, calls: Calls) -> None:
    """Erin runs into 50 USD, asks for 20 more, may not approve that herself; Grace does; after two days it ends."""
    await at(company, 2, 12, 9)
    who = {"user_id": "erin"}
    denial = await until_denied(company, who)
    assert denial["reason"]["code"] == "budget_exceeded" and len(denial["budgets"]) == 1
    (window,) = denial["budgets"]
    assert (window["name"], window["entity_id"], window["limit"]) == ("each user", "erin", "50")
    until = company.now() + timedelta(hours=48)
    wanted = {"budget_id": window["budget_id"], "entity_id": "erin", "amount": "20", "until": until}
    too_much = await company.ask("erin", "request_override", {**wanted, "amount": "26", "reason": "a launch"})
    assert (too_much.code, too_much.field) == ("invalid_request", "amount")
    asked = await company.done("erin", "request_override", {**wanted, "reason": "the launch on Thursday"})
    assert (asked["status"], asked["entity_id"], asked["requested_by"]) == ("pending", "erin", "erin")
    assert not (await company.check(who=who, prompt=60_000, most=10_000))[1].approved
    review = {"override_id": asked["override_id"], "decision": "approve", "comment": "for the launch only"}
    assert (await company.ask("erin", "review_override", review)).code == "forbidden"
    approved = await company.done("grace", "review_override", review)
    assert (approved["status"], approved["reviewed_by"]) == ("approved", "grace")
    company.ledger.raise_limit(
        "each user", "erin", usd("20"), start=time_of(approved["starts_at"]), end=time_of(approved["until"])
    )
    for _ in range(8):
        request, verdict, reply = await company.check(who=who, prompt=60_000, most=10_000)
        assert verdict.approved and shown_in(reply["budgets"])["each user"].limit == "70"
        await company.use(request_id=request, model="o1", prompt=60_000, completion=9_500)
    await company.verify_status(who)
    await at(company, 2, 13, 9)
    await calls.scene(14)
    await at(company, 2, 14, 9, 1)
    _, verdict, reply = await company.check(who=who, prompt=60_000, most=10_000)
    assert not verdict.approved and verdict.shown["each user"].limit == "50"
    assert usd(reply["budgets"][0]["spent"]) > usd("50") and reply["budgets"][0]["overrun"] == "0"
    # What nobody reserved is booked all the same, as overrun.
    await company.use(who=who, model="o1", prompt=8_000, completion=500)

    async def expired() -> bool:
        (listed,) = (await company.done("grace", "list_overrides"))["overrides"]
        steps = [(step["action"], step["actor"]) for step in listed["history"]]
        names = [("requested", "erin"), ("approved", "grace"), ("expired", "policy:expiry")]
        assert (listed["status"], steps) == ("expired", names)
        return True

    await eventually(expired, 10, "the override is not marked as expired")
    await company.verify_windows()


async def until_denied(company: Company, who: dict[str, str]) -> dict[str, Any]:
    for _ in range(60):
        request, verdict, reply = await company.check(who=who, prompt=60_000, most=10_000)
        if not verdict.approved:
            return reply
        await company.use(request_id=request, model="o1", prompt=60_000, completion=10_000)
    raise AssertionError("never denied")


async def features_have_a_rate(company: Company) -> None:
    """Nine routers ask at once for a feature of five calls a minute: five may, and the next minute five more."""
    for minute in (0, 1):
        await at(company, 2, 16, 11, minute)
        call = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 1_000, "max_completion_tokens": 100}
        call |= {"user_id": "sam", "feature": "summaries"}
        bodies = [{**call, "request_id": f"summary-{minute}-{n}"} for n in range(9)]
        now = company.now()
        replies = await gather_checks(company, bodies)
        may = [reply for reply in replies if reply["approved"]]
        assert len(may) == 5
        for reply in [*may, *(reply for reply in replies if not reply["approved"])]:
            verdict = company.ledger.check(
                now,
                reply["request_id"],
                who={"user_id": "sam", "feature": "summaries"},
                model="gpt-4o",
                prompt=1_000,
                most=100,
                ttl_s=600,
            )
            assert reply["approved"] == verdict.approved
            if not verdict.approved:
                assert reply["reason"]["code"] == verdict.code == "throttled"
                assert 1 <= reply["retry_after_s"] <= 60
                assert shown_in(reply["budgets"]) == verdict.shown
            else:
                company.keep(reply)
        for reply in may:
            await company.use(request_id=reply["request_id"], model="gpt-4o", prompt=1_000, completion=80)
    await company.verify_windows()


async def what_is_set_aside_stays(company: Company) -> None:
    """Calls under way hold the contractor's whole limit: what nobody reserved finds no room, and they are settled."""
    await at(company, 2, 16, 12)
    who = {"user_id": "contractor"}
    held: list[str] = []
    while (answer := await company.check(who=who, prompt=150_000, most=40_000))[1].approved:
        held.append(answer[0])
    assert set(answer[1].shown) == {"each user"} and len(held) > 5
    await company.use(who=who, model="o1", prompt=150_000, completion=40_000)
    (window,) = (w for w in company.ledger.present(who, company.now()) if w.policy == "each user")
    overrun = window.overrun
    assert 0 < overrun < usd("4.65") and window.reserved > usd("25")
    # Overrun took no room, so what a call gives back is there as a whole.
    await company.release(held.pop())
    await company.use(who=who, model="o1", prompt=150_000, completion=40_000)
    assert window.overrun == overrun
    await company.use(request_id=held.pop(), model="o1", prompt=150_000, completion=40_000)
    await company.verify_windows()
    for request in held:
        await company.release(request)
    await company.verify_windows()


async def the_month_ends(company: Company, calls: Calls) -> None:
    """Vienna is an hour ahead: support is in March while the others are in February; what is left rolls over."""
    await at(company, 2, 28, 22, 30)
    await calls.scene(12)
    # A long call of Stan's is under way over midnight: it counts as spent for what rolls over, whatever it will cost.
    who = {"user_id": "stan"}
    request, verdict, _ = await company.check(who=who, prompt=5_000, most=1_000, ttl_s=86_400)
    assert verdict.approved
    await at(company, 2, 28, 23, 10)
    await calls.scene(6)
    early = await rolled(company, "support", "Vienna is in March")
    await at(company, 3, 1, 0, 5)
    await calls.scene(10)
    await company.use(request_id=request, model="o1", prompt=5_000, completion=100)
    await company.verify_windows()
    assert await rolled(company, "support", "what a call costs later changes nothing") == early > 0
    assert 0 < await rolled(company, "engineering", "at most half of the limit") <= usd("75")
    for user in company.users():
        await company.verify_status({"user_id": user})


async def rolled(company: Company, budget: str, why: str) -> int:
    """The carry of a team's present window, as its limit says it."""
    now = company.now()
    window = next(w for w in company.ledger.present({"team_id": budget}, now) if w.policy == budget)
    reply = await company.done("router", "get_budget_status", {"team_id": budget})
    shown = next(b["window"] for b in reply["budgets"] if b["window"]["name"] == budget)
    assert usd(shown["limit"]) - usd(shown["base_limit"]) == window.carry, why
    return window.carry


async def the_policies_change(company: Company) -> None:
    """Support gets 10 USD more, the company 35 less: two lines of the document, two differences, binding at once."""
    document = DOCUMENT.replace("limit: $95/month", "limit: $105/month").replace(
        "limit: $260/month", "limit: $225/month"
    )
    shown = await company.done(CHIEF, "apply_policies", {"document": document, "dry_run": True})
    changed = [c for c in shown["diff"] if c["action"] != "unchanged"]
    assert [(c["name"], c["changes"]) for c in changed] == [
        ("company", {"limit": {"before": "$260/month", "after": "$225/month"}}),
        ("support", {"limit": {"before": "$95/month", "after": "$105/month"}}),
    ]
    await company.done(CHIEF, "apply_policies", {"document": document, "reason": "a new customer"})
    company.ledger.change("company", limit=usd("225"))
    company.ledger.change("support", limit=usd("105"))
    await company.verify_status({"user_id": "sam"})


async def the_second_month_ends(company: Company, calls: Calls) -> None:
    """The clocks of Vienna went forward this very day: its month ends two hours before the others'."""
    for hour, count in ((21, 8), (22, 6)):
        await at(company, 3, 31, hour, 10)
        await calls.scene(count)
    before = await rolled(company, "support", "it shows before anybody of support calls")
    await at(company, 4, 1, 0, 5)
    await calls.scene(8)
    request, _, _ = await company.check(who={"user_id": "sofia"}, prompt=30_000, most=5_000)
    await company.release(request)
    assert await rolled(company, "support", "and not after") == before >= 0
    for team in TEAMS:
        await company.verify_status({"team_id": team})
    for user in company.users():
        await company.verify_status({"user_id": user})


def every_kind_of_thing_happened(ledger: Ledger, calls: Calls) -> None:
    """The comparison is worth what it compares."""
    kinds = {"plain", "repeated", "over", "parts", "released", "unreserved", "late", "forgotten", "denied"}
    assert calls.made.keys() == kinds and min(calls.made.values()) >= 5
    assert sum(calls.made.values()) > 450 and ledger.counts["shadow"] > 20
    full = {(event, budget, detail) for event, budget, _, _, detail in ledger.told if event == "budget.exceeded"}
    assert full >= {
        ("budget.exceeded", "company", "denied"),
        ("budget.exceeded", "each user", "denied"),
        ("budget.exceeded", "research", "spent"),
        ("budget.exceeded", "tighter", "shadow"),
        ("budget.exceeded", "summaries", "denied"),
    }
    windows = ledger.windows.values()
    assert {w.policy for w in windows if w.overrun} >= {"company", "each user", "research", "tighter"}
    assert {w.policy for w in windows if w.carry} == {"engineering", "support"}
    assert {w.carry for w in windows if w.policy == "engineering" and w.start.month == 4} == {usd("75")}


async def everything_was_told(company: Company) -> None:
    """Events and alerts are those of the model: each once, none missing, none more."""

    def known(name: str, data: dict[str, Any]) -> tuple[Any, ...]:
        window = data["window"]
        detail = data.get("threshold") or data.get("cause") or data.get("amount")
        return name, window["name"], window["entity_id"], time_of(window["window_start"]), detail

    async def same() -> bool:
        names = ("budget.threshold", "budget.exceeded", "budget.overrun")
        heard = [known(name, data) for name in names for data in await company.told(name)]
        assert sorted(heard, key=repr) == sorted(company.ledger.told, key=repr)
        return True

    await eventually(same, 20, "events differ")
    found: list[tuple[Any, ...]] = []
    dear, cursor = 0, None
    while True:
        page = await company.done(CHIEF, "list_alerts", {"limit": 50, "cursor": cursor})
        for alert in page["alerts"]:
            if alert["kind"] == "request_cost":
                dear += 1
                continue
            details = alert["details"]
            start = time_of(details["window_start"])
            threshold = details.get("threshold")
            found.append((alert["kind"], details["budget_name"], alert["entity_id"], start, threshold))
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(found, key=repr) == sorted(company.ledger.alerts, key=repr)
    assert dear == len({minute for minute, cost in company.ledger.costs if cost > usd("1.5")})


async def sums_agree(company: Company) -> None:
    """The reports, the ledger's own promises in SQL, and the reconciliation that the agent itself makes."""
    span = {"start": START - timedelta(days=1), "end": START + timedelta(days=90)}
    reply = await company.done(CHIEF, "aggregate_usage", {**span, "group_by": ["team_id"]})
    by_team = {row["group"]["team_id"]: row["cost"] for row in reply["rows"]}
    assert by_team == {team: text_of("cost", spent) for team, spent in company.ledger.spent_by_team.items()}
    assert reply["totals"]["reserved_requests"] == company.ledger.counts["reserved_requests"]
    assert await violations(company.database, ORG, told=False) == {}
    status = await company.done(CHIEF, "get_status", {"reconcile": True})
    assert status["reconciliation"]["ok"], status["reconciliation"]


async def the_trail_is_whole(company: Company) -> None:
    """Every change by a person or policy is there, in order, and the chain holds."""
    verification = (await company.done(CHIEF, "get_audit_trail", {"verify": True}))["verification"]
    assert verification["ok"] and verification["complete"]
    entries = (await company.done(CHIEF, "get_audit_trail", {"limit": 100}))["entries"]
    assert verification["entries"] == len(entries)
    done = Counter((entry["actor"], entry["entity"], entry["action"]) for entry in entries)
    assert done == {
        (CHIEF, "user", "created"): len(PEOPLE),
        (CHIEF, "team", "created"): len(TEAMS),
        (CHIEF, "policy", "applied"): 2,
        (CHIEF, "budget", "created"): len(POLICIES),
        (CHIEF, "budget", "updated"): 2,
        (CHIEF, "alert_rule", "created"): 1,
        ("erin", "override", "requested"): 1,
        ("grace", "override", "approved"): 1,
        ("policy:expiry", "override", "expired"): 1,
    }
    overrides = [(entry["actor"], entry["action"]) for entry in reversed(entries) if entry["entity"] == "override"]
    assert overrides == [
        ("erin", "requested"),
        ("grace", "approved"),
        ("policy:expiry", "expired"),
    ]
