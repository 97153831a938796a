"""Why a call is refused: which windows have no room for it, and what is said about the one that counts. Pure."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from handlers.enforcer.answers import amount_text, wire_time
from handlers.enforcer.estimate import Estimate
from handlers.enforcer.ledger import Sums
from handlers.enforcer.plan import Plan
from handlers.enforcer.windows import WindowRef
from schemas.budget import DenialReason
from store.budgets import BudgetRow


def refusing(
    plan: Plan, sums: Mapping[int, Sums], amounts: list[int], *, unpriced: bool, lacking: Collection[int] = ()
) -> list[int]:
    """Positions in a plan of budgets without room.

    One of cost that has nothing left also refuses what nobody knows the price of, or how to convert it (P5): that is
    every one where ``unpriced``, else the windows ``lacking`` a rate. A rate with a gate refuses only while the budget
    it belongs to is used up.
    """
    if unpriced:
        amounts = [a or int(m.budget.unit == "cost") for a, m in zip(amounts, plan.matches, strict=True)]
    elif lacking:
        amounts = [a or int(w in lacking) for a, w in zip(amounts, plan.window_ids, strict=True)]
    full = [i for i, w in enumerate(plan.window_ids) if amounts[i] and not sums[w].fits(amounts[i])]
    for i, gate in plan.gates:
        takes = amounts[i] and over(sums[plan.window_ids[i]], amounts[i])
        if takes and over(sums[plan.window_ids[gate]], amounts[gate]):
            full.append(i)
    return full


def over(sums: Sums, amount: int) -> bool:
    """Whether ``amount`` more is beyond the limit, whatever that means for the budget."""
    return sums.spent + sums.reserved + amount > sums.limit


def impossible(
    plan: Plan,
    found: Estimate,
    *,
    model: str,
    reject_unpriced: bool,
    unrated: Sequence[tuple[BudgetRow, str]] = (),
) -> DenialReason | None:
    """Why no budget has to be asked: a brake, lacking attribution, the model's context window, no price, no rate.

    ``unrated`` are the budgets that lack the exchange rate of a pair of currencies, where that refuses a call.
    """
    if plan.refusal is not None:
        return plan.refusal
    if found.over_context is not None:
        return found.over_context
    if found.cost is None and reject_unpriced and limits_cost(plan):
        return DenialReason(code="unpriced", message=f"{model} has no price")
    blocked = [(budget, pair) for budget, pair in unrated if budget.blocking]
    if blocked:
        budget, pair = blocked[0]
        text = f"there is no exchange rate {pair}, so budget '{budget.name}' cannot be applied"
        ids = list(dict.fromkeys(b.budget_id for b, _ in blocked))
        return DenialReason(code="no_exchange_rate", message=text, budget_id=budget.budget_id, budgets=ids)
    return None


def limits_cost(plan: Plan) -> bool:
    """Whether a blocking budget limits what such a call costs: then one without a price cannot be let through."""
    return any(m.budget.unit == "cost" and m.budget.blocking for m in plan.matches)


def full_reason(plan: Plan, full: list[int], amounts: list[int], sums: Mapping[int, Sums]) -> DenialReason:
    """The reason of a denial by budgets: of several, the one that resets last."""
    i = max(full, key=lambda n: (plan.refs[n].ends_at is None, plan.refs[n].ends_at))
    budget, ref = plan.matches[i].budget, plan.refs[i]
    return DenialReason(
        code="throttled" if budget.enforcement == "throttle" else "budget_exceeded",
        message=explain(budget, ref, sums[ref.window_id], amounts[i]),
        budget_id=budget.budget_id,
        budgets=list(dict.fromkeys(plan.matches[n].budget.budget_id for n in full)),
    )


def explain(budget: BudgetRow, ref: WindowRef, sums: Sums, amount: int) -> str:
    """A window without room for ``amount``, in one sentence with every sum."""
    unit = budget.currency if budget.unit == "cost" else budget.unit
    resets = f"resets at {wire_time(ref.ends_at)}" if ref.ends_at is not None else "never resets"
    needed = amount_text(budget, amount)
    never = ", more than the whole limit" if amount > sums.limit else ""
    return (
        f"budget '{budget.name}' ({budget.type} {ref.entity_id}) has {amount_text(budget, sums.free())} {unit} free of "
        f"{amount_text(budget, sums.limit)}: {amount_text(budget, sums.spent)} spent, "
        f"{amount_text(budget, sums.reserved)} reserved; this call needs {needed}{never}; {resets}"
    )


def retry_after_s(
    plan: Plan, full: list[int], amounts: list[int], sums: Mapping[int, Sums], now: datetime
) -> int | None:
    """Seconds until the last of the refusing windows resets; None where one never does or the call never fits."""
    last: datetime | None = None
    for i in full:
        end = plan.refs[i].ends_at
        if end is None or amounts[i] > sums[plan.window_ids[i]].limit:
            return None
        last = end if last is None or end > last else last
    return None if last is None else max(1, -int((now - last).total_seconds() // 1))
