"""The decision on a batch of checks: pure, in arrival order, on windows that are locked."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from handlers.context import Inbound
from handlers.cost.org_prices import Prices
from handlers.currency.exchange import Exchange
from handlers.enforcer import sizing
from handlers.enforcer.answers import (
    WindowText,
    approval,
    denial,
    window_json,
    window_reply,
    window_text,
    wire_time,
)
from handlers.enforcer.charging import needed, unrated
from handlers.enforcer.estimate import Estimate
from handlers.enforcer.ledger import Sums
from handlers.enforcer.offers import cheaper, instead
from handlers.enforcer.plan import CallKey, Plan, Targets
from handlers.enforcer.refusal import explain, full_reason, impossible, refusing, retry_after_s
from schemas.budget import Alternative, CheckBudget, DenialReason
from store.budgets import BudgetRow
from store.reservations import NewReservations

_NOWHERE: Final = Plan([], "{}", [])
_ALL_RATED: Final[dict[int, str]] = {}


@dataclass(slots=True)
class Check:
    """One request on its way. ``named`` says that the caller gave the request id, so that a retry can be told."""

    inbound: Inbound
    request: CheckBudget
    request_id: str
    named: bool
    body_hash: bytes
    estimate: Estimate
    key: CallKey
    reservation_id: str
    ttl_s: int
    plan: Plan = field(default_factory=lambda: _NOWHERE)
    # The surrogate in the key and the name it stands for, as they are written in JSON.
    hidden: tuple[bytes, bytes] | None = None

    def answer(self, reply: bytes) -> None:
        """Reply with the caller's own name for the user."""
        self.inbound.answer(reply if self.hidden is None else reply.replace(*self.hidden))


@dataclass(slots=True)
class Approval:
    """A call that fits; its reply is written later, from what was reserved in each window once it was admitted."""

    check: Check
    reserved: list[int]
    warnings: list[str]
    alternatives: list[Alternative]


@dataclass(slots=True)
class Outcome:
    """What a batch came to, aligned with the checks: approvals, and denials in JSON. Sent only after the commit."""

    decisions: list[Approval | bytes]
    new: NewReservations
    touched: set[int]
    denied_windows: set[int] = field(default_factory=set[int])
    denials: Counter[str] = field(default_factory=Counter[str])
    # How often each window in shadow enforcement would have denied.
    shadow_denied: dict[int, int] = field(default_factory=dict[int, int])

    def replies(self, desk: "Desk") -> list[bytes]:
        """Every reply in JSON."""
        return [d if isinstance(d, bytes) else _approval(d, desk) for d in self.decisions]


class Desk:
    """Locked windows of a batch, and the text of each for the replies."""

    def __init__(
        self,
        sums: dict[int, Sums],
        now: datetime,
        *,
        on_unpriced: str,
        pressure_percent: int,
        cards: Prices,
        exchange: Exchange,
    ) -> None:
        self.sums = sums
        self.now = now
        self.on_unpriced = on_unpriced
        self.pressure_percent = pressure_percent
        self.cards = cards
        self.exchange = exchange
        self._texts: dict[int, WindowText] = {}
        self._expiries: dict[int, str] = {}

    def texts(self, plan: Plan, reserved: list[int]) -> str:
        """The windows of a plan with these amounts reserved."""
        texts = self._texts
        found: list[str] = []
        for i, window_id in enumerate(plan.window_ids):
            text = texts.get(window_id)
            if text is None:
                text = window_text(plan.matches[i].budget, plan.refs[i], self.sums[window_id])
                texts[window_id] = text
            found.append(window_json(text, reserved[i]))
        return ",".join(found)

    def reserved(self, plan: Plan) -> list[int]:
        """What is reserved in each window of a plan now."""
        return [self.sums[window_id].reserved for window_id in plan.window_ids]

    def expires(self, ttl_s: int) -> str:
        """When a reservation made now ends."""
        text = self._expiries.get(ttl_s)
        if text is None:
            text = self._expiries[ttl_s] = wire_time(self.now + timedelta(seconds=ttl_s))
        return text


def decide(checks: list[Check], desk: Desk) -> Outcome:
    """Approve what fits, in order, each against what those before it left."""
    outcome = Outcome([], NewReservations(), set())
    # Under "estimate" nothing is without a cost but what no rate is known for at all.
    reject_unpriced = desk.on_unpriced in ("reject", "estimate")
    for check in checks:
        plan, found = check.plan, check.estimate
        measures = (found.cost or 0, found.tokens, 1)
        worst, lacking = [measures[unit] for unit in plan.units], _ALL_RATED
        if plan.currency not in ("", found.currency):  # As charging.converts, without a call.
            worst, lacking = foreign(plan, measures, found.currency, desk.exchange)
        amounts = worst if found.learned is None else sizing.amounts(found, plan, desk.sums, worst, desk.exchange)
        full = refusing(plan, desk.sums, amounts, unpriced=found.cost is None, lacking=lacking)
        fits = plan.refusal is None and not full and found.over_context is None
        if fits and found.cost is not None and not lacking:
            outcome.decisions.append(_approve(check, desk, amounts, worst, lacking, outcome))
            continue
        model = f"{check.request.provider}/{check.request.model}"
        without: list[tuple[BudgetRow, str]] = []
        if desk.on_unpriced == "reject":
            windows = zip(plan.matches, plan.window_ids, strict=True)
            without = [(match.budget, lacking[w]) for match, w in windows if w in lacking]
        reason = impossible(plan, found, model=model, reject_unpriced=reject_unpriced, unrated=without)
        if reason is not None:
            full = []  # No budget was asked: none is shown as full, none says when to come again.
        elif full:
            reason = full_reason(plan, full, amounts, desk.sums)
        if reason is None:
            outcome.decisions.append(_approve(check, desk, amounts, worst, lacking, outcome))
        else:
            outcome.decisions.append(_deny(check, desk, reason, full, amounts))
            outcome.denials[reason.code] += 1
            outcome.denied_windows.update(plan.window_ids[i] for i in full)
    return outcome


def foreign(
    plan: Plan, measures: tuple[int, int, int], currency: str, exchange: Exchange
) -> tuple[list[int], dict[int, str]]:
    """What a call needs in each window of its plan, rounded up; and the windows that lack a rate, with the pair."""
    found = needed(zip(plan.matches, plan.refs, strict=True), measures, currency, exchange)
    return [found.amounts[window_id] for window_id in plan.window_ids], found.lacking


def _approve(
    check: Check, desk: Desk, amounts: list[int], worst: list[int], lacking: Mapping[int, str], outcome: Outcome
) -> Approval:
    plan, warnings = check.plan, check.estimate.warnings
    if check.estimate.cost is None:
        warnings = [*warnings, "unpriced: cost budgets could not be applied"]
    if lacking:
        warnings = [*warnings, *unrated(plan, lacking)]
    if plan.warnings:
        warnings = [*warnings, *plan.warnings]
    # Of what would be there without this call: an offer takes its place.
    alternatives = _cheaper(check, desk, amounts) if plan.offered else []
    reserve = check.request.reserve
    reserved: list[int] = []
    for i, window_id in enumerate(plan.window_ids):
        sums, amount = desk.sums[window_id], amounts[i]
        if not sums.blocking and sums.spent + sums.reserved + amount > sums.limit:
            warnings = [*warnings, *_soft(check, i, amount, sums, outcome)]
        if reserve:
            sums.reserved += amount
        reserved.append(sums.reserved)
    if reserve:
        outcome.touched.update(plan.window_ids)
        _add_row(check, amounts, outcome.new)
        if check.estimate.learned is not None and (said := sizing.warning(plan.units, amounts, worst)):
            warnings = [*warnings, said]
    return Approval(check, reserved, warnings, alternatives)


def _soft(check: Check, i: int, amount: int, sums: Sums, outcome: Outcome) -> list[str]:
    """What an approval says about a budget that is exceeded and does not refuse; shadow denials are counted."""
    plan = check.plan
    budget, ref = plan.matches[i].budget, plan.refs[i]
    if budget.gate_id is not None:
        return []
    if budget.enforcement == "shadow":
        outcome.shadow_denied[ref.window_id] = outcome.shadow_denied.get(ref.window_id, 0) + 1
        return [f"would be denied (shadow): {explain(budget, ref, sums, amount)}"]
    if budget.enforcement == "throttle":
        return [f"budget '{budget.name}' is used up: calls go on at its rate"]
    return [f"budget '{budget.name}' is exceeded (it only warns)"]


def _cheaper(check: Check, desk: Desk, amounts: list[int]) -> list[Alternative]:
    """Under pressure an approval lists what would cost less."""
    plan = check.plan
    windows = map(desk.sums.__getitem__, plan.window_ids)
    pressed = any(
        (window.spent + window.reserved + amount) * 100 >= desk.pressure_percent * window.limit
        for window, amount in zip(windows, amounts, strict=True)
    )
    return (
        cheaper(check.estimate, plan, desk.sums, cards=desk.cards, at=desk.now, exchange=desk.exchange)
        if pressed
        else []
    )


def _approval(approved: Approval, desk: Desk) -> bytes:
    check = approved.check
    reserve = check.request.reserve
    return approval(
        request_id=check.request_id,
        reservation_id=check.reservation_id if reserve else None,
        expires_at=desk.expires(check.ttl_s) if reserve else None,
        cost=check.estimate.cost,
        currency=check.estimate.currency,
        budgets=desk.texts(check.plan, approved.reserved),
        warnings=approved.warnings,
        alternatives=approved.alternatives,
        context=check.estimate.context_json,
        count=check.estimate.count,
    )


def _add_row(check: Check, amounts: list[int], new: NewReservations) -> None:
    request, plan, found, caller = check.request, check.plan, check.estimate, check.inbound.caller
    kind = (
        request.provider,
        request.model,
        plan.attribution,
        plan.window_array,
        caller.key or caller.user,
        found.currency,
    )
    new.kind.append(new.number_of(kind))
    new.ids.append(check.reservation_id)
    new.request_ids.append(check.request_id)
    new.body_hashes.append(check.body_hash)
    new.ttls_s.append(check.ttl_s)
    new.costs.append(found.cost)
    new.tokens.append(found.tokens)
    new.held.append("{" + ",".join(map(str, amounts)) + "}")


def _deny(check: Check, desk: Desk, reason: DenialReason, full: list[int], amounts: list[int]) -> bytes:
    plan = check.plan
    shown = full or range(len(plan.refs))
    return denial(
        request_id=check.request_id,
        cost=check.estimate.cost,
        currency=check.estimate.currency,
        budgets=[window_reply(plan.matches[i].budget, plan.refs[i], desk.sums[plan.window_ids[i]]) for i in shown],
        warnings=[*check.estimate.warnings, *plan.warnings],
        reason=reason,
        retry_after_s=retry_after_s(plan, full, amounts, desk.sums, desk.now) if full else None,
        alternatives=_instead(check, desk) if full else [],
        context=check.estimate.context,
        count=check.estimate.count,
    )


def _instead(check: Check, desk: Desk) -> list[Alternative]:
    request, found = check.request, check.estimate
    return instead(request, found, check.plan, desk.sums, cards=desk.cards, at=desk.now, exchange=desk.exchange)


def too_many_entities(check: Check, now: datetime) -> bytes:
    """The denial of a call of an entity that nobody may meet any more within the hour."""
    next_hour = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    text = "too many entities were new to this org's budgets within the hour; entity_windows_per_hour_max bounds them"
    return denial(
        request_id=check.request_id,
        cost=check.estimate.cost,
        currency=check.estimate.currency,
        budgets=[],
        warnings=check.estimate.warnings,
        reason=DenialReason(code="too_many_entities", message=text),
        retry_after_s=max(1, math.ceil((next_hour - now).total_seconds())),
        alternatives=[],
        context=check.estimate.context,
        count=check.estimate.count,
    )


def targets_of(checks: list[Check]) -> Targets:
    """Budget and bounds of every window a batch looks at, from its plans: no cache has to remember them meanwhile."""
    found: Targets = {}
    for plan in {id(check.plan): check.plan for check in checks}.values():
        found |= plan.looked_at
    return found
