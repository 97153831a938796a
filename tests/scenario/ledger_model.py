"""A second ledger of budgets: plain Python over exact numbers, to hold the product's figures against.

Written from the design alone (its promises P1-P5 and rules R3-R19). It imports nothing of the product, keeps no
database and takes every time from whoever calls it. Amounts are integers: nanos of a dollar, tokens or requests.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Literal
from zoneinfo import ZoneInfo

NANOS = 10**9
Unit = Literal["cost", "tokens", "requests"]
# US dollars per million tokens, as the price list of February 2030 has them: prompt, cached prompt, completion.
PRICES = {
    "gpt-4o": (Fraction("2.5"), Fraction("1.25"), Fraction("10")),
    "o1": (Fraction("15"), Fraction("7.5"), Fraction("60")),
}


def usd(text: str) -> int:
    """Nanos of an amount of dollars."""
    return int(Decimal(text) * NANOS)


def text_of(unit: Unit, amount: int) -> str:
    """An amount as the wire writes it: money as a decimal without trailing zeros, counts as they are."""
    if unit != "cost":
        return str(amount)
    sign, (whole, rest) = "-" if amount < 0 else "", divmod(abs(amount), NANOS)
    return f"{sign}{whole}.{rest:09}".rstrip("0").rstrip(".")


def cost_of(model: str, *, prompt: int, completion: int, cached: int = 0) -> int:
    """Nanos of a call: tokens times rates, rounded once, half to even."""
    full, cheap, out = PRICES[model]
    dollars = ((prompt - cached) * full + cached * cheap + completion * out) / 1_000_000
    return round(dollars * NANOS)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A budget. ``entity`` ``*``: each entity of the type has a window of its own."""

    name: str
    type: Literal["global", "team", "user", "feature"]
    entity: str = "*"
    limit: int
    unit: Unit = "cost"
    period: Literal["monthly", "minute"] = "monthly"
    zone: str = "UTC"
    enforcement: Literal["block", "throttle", "warn", "shadow"] = "block"
    thresholds: tuple[int, ...] = (50, 75, 90, 100)
    rollover: Literal["none", "full", "capped"] = "none"
    rollover_percent: int = 0

    @property
    def refuses(self) -> bool:
        """Whether a call that does not fit is denied."""
        return self.enforcement in ("block", "throttle")

    def window_of(self, at: datetime) -> tuple[datetime, datetime]:
        """The half-open window around ``at``: a calendar month where the budget is, or a minute."""
        if self.period == "minute":
            start = at.replace(second=0, microsecond=0)
            return start, start + timedelta(minutes=1)
        local = at.astimezone(ZoneInfo(self.zone))
        first = datetime(local.year, local.month, 1, tzinfo=ZoneInfo(self.zone))
        following = datetime(local.year + local.month // 12, local.month % 12 + 1, 1, tzinfo=ZoneInfo(self.zone))
        return first.astimezone(UTC), following.astimezone(UTC)


Key = tuple[str, str, datetime]


@dataclass
class Window:
    """One period of one budget. ``exceeded`` is why it was first found full."""

    policy: str
    entity: str
    start: datetime
    end: datetime
    carry: int
    spent: int = 0
    reserved: int = 0
    overrun: int = 0
    fired: set[int] = field(default_factory=set[int])
    exceeded: str | None = None
    shadow_denied: int = 0

    @property
    def key(self) -> Key:
        return self.policy, self.entity, self.start


@dataclass(frozen=True)
class Raise:
    """An approved override, counting in [start, end)."""

    policy: str
    entity: str
    amount: int
    start: datetime
    end: datetime


@dataclass
class Hold:
    """A reservation: what it holds in each window."""

    request_id: str
    decided_at: datetime
    expires_at: datetime
    who: dict[str, str]
    amounts: dict[Key, int]
    body: object
    status: Literal["live", "settled", "released", "expired"] = "live"


@dataclass(frozen=True)
class Shown:
    """A window as a reply shows it; amounts as text."""

    entity: str
    base_limit: str
    limit: str
    spent: str
    overrun: str
    reserved: str
    remaining: str
    percent_used: float
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Verdict:
    """An answer: the windows shown (of a denial: those that deny), and which of them may be named as the reason."""

    approved: bool
    code: str | None
    cost: int
    shown: dict[str, Shown]
    reasons: frozenset[str] = frozenset()
    warned: frozenset[str] = frozenset()


class Ledger:
    """All budgets of one company, all calls, and every fact that has to be told."""

    def __init__(self, policies: Iterable[Policy], teams: dict[str, str], since: datetime) -> None:
        self.policies = {policy.name: policy for policy in policies}
        self.teams = teams
        self.since = since
        self.windows: dict[Key, Window] = {}
        self.holds: dict[str, Hold] = {}
        self.raises: list[Raise] = []
        self.seen: set[str] = set()
        # (event, budget, entity, window start, detail), each told once and in this order.
        self.told: list[tuple[str, str, str, datetime, object]] = []
        # (kind, budget, entity, window start, threshold or None): what people are alerted of.
        self.alerts: list[tuple[str, str, str, datetime, int | None]] = []
        self.spent_by_team: dict[str | None, int] = {}
        # The minute in which each event was booked, and its cost.
        self.costs: list[tuple[datetime, int]] = []
        self.counts = {"approved": 0, "denied": 0, "shadow": 0, "reserved_requests": 0}

    def change(self, name: str, **fields: int) -> None:
        """A budget's limit changes; everything else about it is the same."""
        self.policies[name] = replace(self.policies[name], **fields)  # pyright: ignore[reportArgumentType]

    # Deciding ---------------------------------------------------------------------------------------------------------

    def check(
        self, at: datetime, request_id: str, *, who: dict[str, str], model: str, prompt: int, most: int, ttl_s: int
    ) -> Verdict:
        """May this call be made? Approved, it holds its worst case in every window."""
        cost, body = cost_of(model, prompt=prompt, completion=most), (sorted(who.items()), model, prompt, most, ttl_s)
        known = self.holds.get(request_id)
        if known is not None and known.status == "live":
            assert known.body == body, "the same id with another body is a conflict"
            return Verdict(True, None, cost, {})
        windows = self._open(who, at)
        stated, listed = who.get("team_id"), self.teams.get(who.get("user_id", ""))
        if stated is not None and listed is not None and stated != listed:
            self.counts["denied"] += 1
            return Verdict(False, "attribution_mismatch", cost, {w.policy: self.shown(w, at) for w in windows})
        needed = {w.key: self._measure(w, cost, prompt + most, 1) for w in windows}
        full = [w for w in windows if self._policy(w).refuses and not self._fits(w, needed[w.key], at)]
        if full:
            return self._denial(full, at, cost)
        warned: set[str] = set()
        for w in windows:
            if not self._fits(w, needed[w.key], at):
                warned.add(w.policy)
                if self._policy(w).enforcement == "shadow":
                    w.shadow_denied += 1
                    self.counts["shadow"] += 1
                    self._mark_exceeded(w, "shadow")
        for w in windows:
            w.reserved += needed[w.key]
        self.holds[request_id] = Hold(request_id, at, at + timedelta(seconds=ttl_s), who, needed, body)
        self.counts["approved"] += 1
        return Verdict(True, None, cost, {w.policy: self.shown(w, at) for w in windows}, warned=frozenset(warned))

    def _denial(self, full: list[Window], at: datetime, cost: int) -> Verdict:
        shown = {w.policy: self.shown(w, at) for w in full}
        last = max(w.end for w in full)
        reasons = frozenset(w.policy for w in full if w.end == last)
        code = "throttled" if all(self._policy(w).enforcement == "throttle" for w in full) else "budget_exceeded"
        for w in full:
            self._mark_exceeded(w, "denied")
        self.counts["denied"] += 1
        return Verdict(False, code, cost, shown, reasons)

    # Booking ----------------------------------------------------------------------------------------------------------

    def use(
        self,
        at: datetime,
        event_id: str,
        *,
        who: dict[str, str],
        model: str,
        prompt: int,
        completion: int,
        cached: int = 0,
        request_id: str | None = None,
        timestamp: datetime | None = None,
        final: bool = True,
    ) -> int | None:
        """One usage event; its cost, or None where it is a repeat that changes nothing."""
        if event_id in self.seen:
            return None
        self.seen.add(event_id)
        cost = cost_of(model, prompt=prompt, completion=completion, cached=cached)
        hold = self.holds.get(request_id or "")
        who = who if hold is None else {**hold.who, **who}
        live = hold is not None and hold.status == "live"
        begun = hold.decided_at if hold is not None and live else timestamp or at
        charged = {w.key: self._measure(w, cost, prompt + completion, int(final)) for w in self._open(who, begun)}
        touched: list[tuple[Window, int]] = []
        for key in sorted(charged.keys() | (hold.amounts.keys() if hold is not None and live else set())):
            held = hold.amounts.get(key, 0) if hold is not None and live else 0
            actual, window = charged.get(key, 0), self.windows[key]
            if not final:
                held = min(held, actual)
                if hold is not None and live and key in hold.amounts:
                    hold.amounts[key] -= held
            if held or actual:
                touched.append((window, self._book(window, held, actual, at)))
        if hold is not None and live and final:
            hold.status = "settled"
        self._look(touched, at)
        team = who.get("team_id") or self.teams.get(who.get("user_id", ""))
        self.spent_by_team[team] = self.spent_by_team.get(team, 0) + cost
        self.costs.append((at.replace(second=0, microsecond=0), cost))
        self.counts["reserved_requests"] += int(live and final)
        return cost

    def release(self, request_id: str) -> None:
        """A call that is not made gives back what it holds; once."""
        self._free(self.holds[request_id], "released")

    def expire(self, at: datetime) -> int:
        """Reservations whose time has passed free themselves; returns how many."""
        due = [hold for hold in self.holds.values() if hold.status == "live" and hold.expires_at < at]
        for hold in due:
            self._free(hold, "expired")
            self._look([(self.windows[key], 0) for key in hold.amounts], at)
        return len(due)

    def raise_limit(self, policy: str, entity: str, amount: int, *, start: datetime, end: datetime) -> None:
        """An override that was approved."""
        self.raises.append(Raise(policy, entity, amount, start, end))

    # Reading ----------------------------------------------------------------------------------------------------------

    def limit(self, window: Window, at: datetime) -> int:
        """The limit that binds: base limit, carry, and what overrides raise it by just then."""
        raised = sum(
            r.amount
            for r in self.raises
            if (r.policy, r.entity) == (window.policy, window.entity) and r.start <= at < r.end
        )
        return self._policy(window).limit + window.carry + raised

    def shown(self, window: Window, at: datetime) -> Shown:
        """A window as a reply shows it."""
        policy, limit = self._policy(window), self.limit(window, at)
        hundredths = window.spent * 10_000 // limit
        return Shown(
            entity=window.entity,
            base_limit=text_of(policy.unit, policy.limit),
            limit=text_of(policy.unit, limit),
            spent=text_of(policy.unit, window.spent),
            overrun=text_of(policy.unit, window.overrun),
            reserved=text_of(policy.unit, window.reserved),
            remaining=text_of(policy.unit, max(0, limit - window.spent - window.reserved)),
            percent_used=float(Decimal(hundredths) / 100),
            start=window.start,
            end=window.end,
        )

    def present(self, who: dict[str, str], at: datetime) -> list[Window]:
        """The windows that a call of these attributes would take from; looking opens none."""
        return self._open(who, at, keep=False)

    # ------------------------------------------------------------------------------------------------------------------

    def _policy(self, window: Window) -> Policy:
        return self.policies[window.policy]

    def _measure(self, window: Window, cost: int, tokens: int, requests: int) -> int:
        return {"cost": cost, "tokens": tokens, "requests": requests}[self._policy(window).unit]

    def _fits(self, window: Window, amount: int, at: datetime) -> bool:
        return amount == 0 or window.spent + window.reserved + amount <= self.limit(window, at)

    def _free(self, hold: Hold, status: Literal["released", "expired"]) -> None:
        if hold.status == "live":
            hold.status = status
            for key, amount in hold.amounts.items():
                self.windows[key].reserved -= amount

    def _open(self, who: dict[str, str], at: datetime, *, keep: bool = True) -> list[Window]:
        """R14: a window gets its carry when it is opened, live reservations counting as spent, and keeps it."""
        user, feature = who.get("user_id"), who.get("feature")
        names = {"global": "*", "team": who.get("team_id") or self.teams.get(user or ""), "user": user}
        found: list[Window] = []
        for policy in self.policies.values():
            entity = names.get(policy.type) if policy.type != "feature" else feature
            if entity is None or policy.entity not in ("*", entity):
                continue
            start, end = policy.window_of(at)
            key = (policy.name, entity, start)
            window = self.windows.get(key) or Window(*key, end, self._carry(policy, entity, start))
            if keep:
                self.windows[key] = window
            found.append(window)
        return found

    def _carry(self, policy: Policy, entity: str, start: datetime) -> int:
        if policy.rollover == "none":
            return 0
        earlier = [
            w for w in self.windows.values() if (w.policy, w.entity) == (policy.name, entity) and w.start < start
        ]
        if not earlier:
            assert start <= self.since, "no scene has a budget that nobody used for a whole month"
            return 0
        last = max(earlier, key=lambda w: w.start)
        assert last.end == start, "no scene leaves a month out"
        left = max(0, policy.limit + last.carry - last.spent - last.reserved)
        return left if policy.rollover == "full" else min(left, policy.limit * policy.rollover_percent // 100)

    def _book(self, window: Window, held: int, actual: int, at: datetime) -> int:
        """P1: what was held becomes spent; the rest takes free room first, and is overrun where there is none."""
        window.reserved -= held
        within = min(held, actual)
        window.spent += within
        rest = actual - within
        if not rest:
            return 0
        taken = window.spent - window.overrun + (window.reserved if self._policy(window).refuses else 0)
        over = max(0, rest - max(0, self.limit(window, at) - taken))
        window.spent += rest
        window.overrun += over
        return over

    def _look(self, touched: list[tuple[Window, int]], at: datetime) -> None:
        """What a change of sums has to tell: each threshold once per window, the full window once, every overrun."""
        for window, over in touched:
            policy, limit = self._policy(window), self.limit(window, at)
            reached = [t for t in policy.thresholds if t not in window.fired and window.spent * 100 >= t * limit]
            reached = sorted(reached) if window.spent else []
            for threshold in reached:
                window.fired.add(threshold)
                self._tell("budget.threshold", window, threshold)
                self._alert("threshold", window, threshold)
            if window.spent and window.spent >= limit and window.exceeded is None:
                # One fact, one alert: all of the limit is used.
                self._mark_exceeded(window, "spent", alert=100 not in reached)
            if over:
                self._tell("budget.overrun", window, text_of(policy.unit, over))
                if over == window.overrun:
                    self._alert("overrun", window, None)

    def _mark_exceeded(self, window: Window, cause: str, *, alert: bool = True) -> None:
        if window.exceeded is None:
            window.exceeded = cause
            self._tell("budget.exceeded", window, cause)
            if alert:
                self._alert("exceeded", window, None)

    def _tell(self, event: str, window: Window, detail: object) -> None:
        self.told.append((event, window.policy, window.entity, window.start, detail))

    def _alert(self, kind: str, window: Window, threshold: int | None) -> None:
        # A rate is used up every minute; nobody is alerted of that.
        if self._policy(window).enforcement != "throttle":
            self.alerts.append((kind, window.policy, window.entity, window.start, threshold))
