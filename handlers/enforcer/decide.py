"""The decision on a batch of checks: pure, in arrival order, on windows that are locked."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from handlers.context import Inbound
from handlers.cost.price import worst_case
from handlers.enforcer.answers import (
    WindowText,
    amount_text,
    approval,
    denial,
    window_json,
    window_reply,
    window_text,
    wire_time,
)
from handlers.enforcer.estimate import Estimate, largest_completion
from handlers.enforcer.ledger import Sums
from handlers.enforcer.plan import CallKey, Plan
from handlers.enforcer.windows import WindowRef
from schemas.budget import Alternative, CheckBudget, DenialReason
from schemas.money import format_cost
from store.budgets import BudgetRow
from store.reservations import NewReservations

_NOWHERE: Final = Plan([], "{}", [])


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


@dataclass(slots=True)
class Approval:
    """A call that fits; its reply is written later, from what was reserved in each window once it was admitted."""

    check: Check
    reserved: list[int]
    warnings: list[str]


@dataclass(slots=True)
class Outcome:
    """What a batch came to, aligned with the checks: approvals, and denials in JSON. Sent only after the commit."""

    decisions: list[Approval | bytes]
    new: NewReservations
    touched: set[int]
    denied_windows: set[int] = field(default_factory=set[int])

    def replies(self, desk: "Desk") -> list[bytes]:
        """Every reply in JSON."""
        return [d if isinstance(d, bytes) else _approval(d, desk) for d in self.decisions]


class Desk:
    """Locked windows of a batch, and the text of each for the replies."""

    def __init__(self, sums: dict[int, Sums], now: datetime, on_unpriced: str) -> None:
        self.sums = sums
        self.now = now
        self.on_unpriced = on_unpriced
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
    for check in checks:
        plan, found = check.plan, check.estimate
        measures = (found.cost or 0, found.tokens, 1)
        amounts = [measures[unit] for unit in plan.units]
        refused = _refusing(plan, desk.sums, amounts, unpriced=found.cost is None)
        reason = _refusal(check, desk, refused)
        if reason is None:
            outcome.decisions.append(_approve(check, desk, amounts, outcome))
        else:
            outcome.decisions.append(_deny(check, desk, reason, refused))
            outcome.denied_windows.update(ref.window_id for _, ref in refused)
    return outcome


def amount_of(budget: BudgetRow, estimate: Estimate) -> int:
    """What a call takes from a budget, in its unit; what has no price takes nothing and is flagged."""
    if budget.unit == "cost":
        return estimate.cost or 0
    return estimate.tokens if budget.unit == "tokens" else 1


def _refusing(
    plan: Plan, sums: dict[int, Sums], amounts: list[int], *, unpriced: bool
) -> list[tuple[BudgetRow, WindowRef]]:
    """Budgets without room; one of cost that has nothing left also refuses what nobody knows the price of (P5)."""
    full = [i for i, w in enumerate(plan.window_ids) if amounts[i] and not sums[w].fits(amounts[i])]
    if unpriced:
        cost = [i for i, match in enumerate(plan.matches) if match.budget.unit == "cost"]
        full += [i for i in cost if not sums[plan.window_ids[i]].fits(1)]
    return [(plan.matches[i].budget, plan.refs[i]) for i in full]


def _refusal(check: Check, desk: Desk, refused: list[tuple[BudgetRow, WindowRef]]) -> DenialReason | None:
    if check.estimate.over_context is not None:
        return DenialReason(
            code="context_window_exceeded",
            message=f"{check.estimate.tokens} prompt and completion tokens exceed the context window of "
            f"{check.estimate.over_context} tokens",
        )
    if check.estimate.cost is None and desk.on_unpriced == "reject" and limits_cost(check.plan):
        return DenialReason(code="unpriced", message=f"{check.request.provider}/{check.request.model} has no price")
    if not refused:
        return None
    budget, ref = max(refused, key=lambda pair: (pair[1].ends_at is None, pair[1].ends_at))
    return DenialReason(
        code="budget_exceeded",
        message=_explain(budget, ref, desk.sums[ref.window_id], check.estimate),
        budget_id=budget.budget_id,
        budgets=[b.budget_id for b, _ in refused],
    )


def limits_cost(plan: Plan) -> bool:
    """Whether a blocking budget limits what such a call costs: then one without a price cannot be let through."""
    return any(m.budget.unit == "cost" and m.budget.blocking for m in plan.matches)


def _explain(budget: BudgetRow, ref: WindowRef, sums: Sums, estimate: Estimate) -> str:
    unit = budget.currency if budget.unit == "cost" else budget.unit
    resets = f"resets at {wire_time(ref.ends_at)}" if ref.ends_at is not None else "never resets"
    needed = amount_text(budget, amount_of(budget, estimate))
    return (
        f"budget '{budget.name}' ({budget.type} {ref.entity_id}) has {amount_text(budget, sums.free())} {unit} free of "
        f"{amount_text(budget, sums.limit)}: {amount_text(budget, sums.spent)} spent, "
        f"{amount_text(budget, sums.reserved)} reserved; this call needs {needed}; {resets}"
    )


def _approve(check: Check, desk: Desk, amounts: list[int], outcome: Outcome) -> Approval:
    plan, warnings = check.plan, check.estimate.warnings
    if check.estimate.cost is None:
        warnings = [*warnings, "unpriced: cost budgets could not be applied"]
    reserve = check.request.reserve
    reserved: list[int] = []
    for i, window_id in enumerate(plan.window_ids):
        sums, amount = desk.sums[window_id], amounts[i]
        if not sums.blocking and sums.spent + sums.reserved + amount > sums.limit:
            warnings = [*warnings, f"budget '{plan.matches[i].budget.name}' is exceeded (it only warns)"]
        if reserve:
            sums.reserved += amount
        reserved.append(sums.reserved)
    if reserve:
        outcome.touched.update(plan.window_ids)
        _add_row(check, amounts, outcome.new)
    return Approval(check, reserved, warnings)


def _approval(approved: Approval, desk: Desk) -> bytes:
    check = approved.check
    reserve = check.request.reserve
    return approval(
        request_id=check.request_id,
        reservation_id=check.reservation_id if reserve else None,
        expires_at=desk.expires(check.ttl_s) if reserve else None,
        cost=check.estimate.cost,
        budgets=desk.texts(check.plan, approved.reserved),
        warnings=approved.warnings,
    )


def _add_row(check: Check, amounts: list[int], new: NewReservations) -> None:
    request, plan, found = check.request, check.plan, check.estimate
    kind = (request.provider, request.model, plan.attribution, plan.window_array, check.inbound.caller.user)
    new.kind.append(new.number_of(kind))
    new.ids.append(check.reservation_id)
    new.request_ids.append(check.request_id)
    new.body_hashes.append(check.body_hash)
    new.ttls_s.append(check.ttl_s)
    new.costs.append(found.cost)
    new.tokens.append(found.tokens)
    new.held.append("{" + ",".join(map(str, amounts)) + "}")


def _deny(check: Check, desk: Desk, reason: DenialReason, refused: list[tuple[BudgetRow, WindowRef]]) -> bytes:
    pairs = refused or [(m.budget, r) for m, r in zip(check.plan.matches, check.plan.refs, strict=True)]
    ends = [ref.ends_at for _, ref in refused]
    last = max((end for end in ends if end is not None), default=None)
    retry = None if last is None or None in ends else max(1, -int((desk.now - last).total_seconds() // 1))
    return denial(
        request_id=check.request_id,
        cost=check.estimate.cost,
        budgets=[window_reply(budget, ref, desk.sums[ref.window_id]) for budget, ref in pairs],
        warnings=check.estimate.warnings,
        reason=reason,
        retry_after_s=retry,
        alternatives=_alternatives(check, desk, refused),
    )


def _alternatives(check: Check, desk: Desk, refused: list[tuple[BudgetRow, WindowRef]]) -> list[Alternative]:
    """The same call with the longest completion that fits now, where any does."""
    found, request = check.estimate, check.request
    if not refused or found.card is None or request.provider is None or request.model is None:
        return []
    completion = found.max_completion_tokens - 1
    for budget, ref in refused:
        free = desk.sums[ref.window_id].free()
        if budget.unit == "cost":
            completion = largest_completion(found.card, found.prompt_tokens, free, completion)
        elif budget.unit == "tokens":
            completion = min(completion, free - found.prompt_tokens)
        else:
            return []
    if completion < 1:
        return []
    cost = worst_case(found.card, found.prompt_tokens, completion)
    if cost is None:
        return []
    return [
        Alternative(
            provider=request.provider,
            model=request.model,
            max_completion_tokens=completion,
            estimated_cost=format_cost(cost),
        )
    ]
