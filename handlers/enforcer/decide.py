"""The decision on a batch of checks: pure, in arrival order, on windows that are locked."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from handlers.cost.price import worst_case
from handlers.enforcer.answers import WindowText, amount_text, approval, denial, window_reply, wire_time
from handlers.enforcer.estimate import Estimate, largest_completion
from handlers.enforcer.ledger import Sums
from handlers.enforcer.plan import Plan
from handlers.enforcer.windows import WindowRef
from schemas.budget import Alternative, CheckBudget, DenialReason
from schemas.money import format_cost
from store.budgets import BudgetRow
from store.reservations import NewReservations


@dataclass(slots=True)
class Check:
    """One request in a batch. ``named`` says that the caller gave the request id, so that a retry can be told."""

    request: CheckBudget
    request_id: str
    named: bool
    body_hash: bytes
    estimate: Estimate
    plan: Plan
    reservation_id: str
    ttl_s: int
    caller: str | None


@dataclass(slots=True)
class Outcome:
    """What a batch came to. ``replies`` are aligned with the checks; they are sent only after the commit."""

    replies: list[bytes]
    approved: list[bool]
    new: NewReservations
    touched: set[int]
    denied_windows: set[int] = field(default_factory=set[int])


class Desk:
    """Locked windows of a batch, and the text of each for the replies."""

    def __init__(self, sums: dict[int, Sums], now: datetime, on_unpriced: str) -> None:
        self.sums = sums
        self.now = now
        self.on_unpriced = on_unpriced
        self._texts: dict[int, WindowText] = {}
        self._expiries: dict[int, str] = {}

    def texts(self, plan: Plan) -> list[str]:
        """The windows of a plan as they are now."""
        found: list[str] = []
        for match, ref in zip(plan.matches, plan.refs, strict=True):
            text = self._texts.get(ref.window_id)
            if text is None:
                text = self._texts[ref.window_id] = WindowText(match.budget, ref, self.sums[ref.window_id])
            found.append(text.text())
        return found

    def expires(self, ttl_s: int) -> str:
        """When a reservation made now ends."""
        text = self._expiries.get(ttl_s)
        if text is None:
            text = self._expiries[ttl_s] = wire_time(self.now + timedelta(seconds=ttl_s))
        return text


def decide(checks: list[Check], desk: Desk) -> Outcome:
    """Approve what fits, in order, each against what those before it left."""
    outcome = Outcome([], [], NewReservations.empty(), set())
    for check in checks:
        amounts = [amount_of(m.budget, check.estimate) for m in check.plan.matches]
        refused = _refusing(check, desk, amounts)
        reason = _refusal(check, desk, refused)
        if reason is None:
            outcome.replies.append(_approve(check, desk, amounts, outcome))
        else:
            outcome.replies.append(_deny(check, desk, reason, refused))
            outcome.denied_windows.update(ref.window_id for _, ref in refused)
        outcome.approved.append(reason is None)
    return outcome


def amount_of(budget: BudgetRow, estimate: Estimate) -> int:
    """What a call takes from a budget, in its unit; what has no price takes nothing and is flagged."""
    if budget.unit == "cost":
        return estimate.cost or 0
    return estimate.tokens if budget.unit == "tokens" else 1


def _refusing(check: Check, desk: Desk, amounts: list[int]) -> list[tuple[BudgetRow, WindowRef]]:
    found: list[tuple[BudgetRow, WindowRef]] = []
    for match, ref, amount in zip(check.plan.matches, check.plan.refs, amounts, strict=True):
        if amount and not desk.sums[ref.window_id].fits(amount):
            found.append((match.budget, ref))
    return found


def _refusal(check: Check, desk: Desk, refused: list[tuple[BudgetRow, WindowRef]]) -> DenialReason | None:
    if check.estimate.over_context is not None:
        return DenialReason(
            code="context_window_exceeded",
            message=f"{check.estimate.tokens} prompt and completion tokens exceed the context window of "
            f"{check.estimate.over_context} tokens",
        )
    if check.estimate.cost is None and desk.on_unpriced == "reject" and _limits_cost(check.plan):
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


def _limits_cost(plan: Plan) -> bool:
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


def _approve(check: Check, desk: Desk, amounts: list[int], outcome: Outcome) -> bytes:
    warnings = check.estimate.warnings
    if check.estimate.cost is None:
        warnings = [*warnings, "unpriced: cost budgets could not be applied"]
    for match, ref, amount in zip(check.plan.matches, check.plan.refs, amounts, strict=True):
        sums = desk.sums[ref.window_id]
        if not match.budget.blocking and sums.spent + sums.reserved + amount > sums.limit:
            warnings = [*warnings, f"budget '{match.budget.name}' is exceeded (it only warns)"]
        if check.request.reserve:
            sums.hold(amount)
            outcome.touched.add(ref.window_id)
    reserve = check.request.reserve
    if reserve:
        _add_row(check, amounts, outcome.new)
    return approval(
        request_id=check.request_id,
        reservation_id=check.reservation_id if reserve else None,
        expires_at=desk.expires(check.ttl_s) if reserve else None,
        cost=check.estimate.cost,
        budgets=desk.texts(check.plan),
        warnings=warnings,
    )


def _add_row(check: Check, amounts: list[int], new: NewReservations) -> None:
    new.ids.append(check.reservation_id)
    new.request_ids.append(check.request_id)
    new.body_hashes.append(check.body_hash)
    new.ttls_s.append(check.ttl_s)
    new.providers.append(check.request.provider)
    new.models.append(check.request.model)
    new.attributions.append(check.plan.attribution)
    new.costs.append(check.estimate.cost)
    new.tokens.append(check.estimate.tokens)
    new.window_ids.append("{" + ",".join([str(ref.window_id) for ref in check.plan.refs]) + "}")
    new.held.append("{" + ",".join(map(str, amounts)) + "}")
    new.callers.append(check.caller)


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
