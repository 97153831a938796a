"""Replies to ``check_budget``. The approved one is written by hand: it is most of what the agent ever says."""

from datetime import UTC, datetime

import msgspec

from handlers.enforcer.ledger import Sums
from handlers.enforcer.windows import WindowRef
from schemas.budget import Alternative, BudgetDecision, BudgetWindow, DenialReason
from schemas.money import format_cost
from schemas.tokens import ContextUse, TokenCount
from store.budgets import BudgetRow

_ENCODE = msgspec.json.Encoder().encode


def wire_time(at: datetime) -> str:
    """RFC 3339 in UTC, as every reply writes it."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def amount_text(budget: BudgetRow, amount: int) -> str:
    """An amount of a budget's unit as it stands on the wire."""
    return format_cost(amount) if budget.unit == "cost" else str(amount)


def percent_used(spent: int, limit: int) -> float:
    """Spent as a percentage of the effective limit, two decimals; of no limit at all everything is used."""
    if limit <= 0:
        return 100.0 if spent > 0 else 0.0
    return spent * 10_000 // limit / 100


def window_reply(budget: BudgetRow, ref: WindowRef, sums: Sums) -> BudgetWindow:
    """A window as callers see it."""
    return BudgetWindow(
        budget_id=budget.budget_id,
        name=budget.name,
        type=budget.type,
        entity_id=ref.entity_id,
        unit=budget.unit,
        currency=budget.currency,
        enforcement=budget.enforcement,
        base_limit=amount_text(budget, budget.base_limit),
        limit=amount_text(budget, sums.limit),
        spent=amount_text(budget, sums.spent),
        overrun=amount_text(budget, sums.overrun),
        reserved=amount_text(budget, sums.reserved),
        remaining=amount_text(budget, sums.free()),
        percent_used=percent_used(sums.spent, sums.limit),
        window_start=ref.starts_at,
        resets_at=ref.ends_at,
    )


# One window's part of many approvals: the JSON before what differs, the limit less what is spent, whether it is money.
WindowText = tuple[str, int, bool]


def window_text(budget: BudgetRow, ref: WindowRef, sums: Sums) -> WindowText:
    """What approvals of a batch say alike about a window: only what is reserved differs between them."""
    fixed = msgspec.structs.asdict(window_reply(budget, ref, sums))
    del fixed["reserved"], fixed["remaining"]
    return _ENCODE(fixed).decode()[:-1] + ',"reserved":"', sums.limit - sums.spent, budget.unit == "cost"


def window_json(text: WindowText, reserved: int) -> str:
    """The window with this much reserved, in JSON."""
    head, unspent, money = text
    free = unspent - reserved if unspent > reserved else 0
    if money:
        return f'{head}{format_cost(reserved)}","remaining":"{format_cost(free)}"}}'
    return f'{head}{reserved}","remaining":"{free}"}}'


def approval(
    *,
    request_id: str,
    reservation_id: str | None,
    expires_at: str | None,
    cost: int | None,
    currency: str,
    budgets: str,
    warnings: list[str],
    alternatives: list[Alternative],
    context: str,
    count: TokenCount | None,
) -> bytes:
    """An approval in JSON, its ``context`` too; the same fields as BudgetDecision (a test compares them)."""
    reservation = f'"{reservation_id}"' if reservation_id is not None else "null"
    expires = f'"{expires_at}"' if expires_at is not None else "null"
    estimated = f'"{format_cost(cost)}"' if cost is not None else "null"
    warned = _ENCODE(warnings).decode() if warnings else "[]"
    offered = _ENCODE(alternatives).decode() if alternatives else "[]"
    counted = "null" if count is None else _ENCODE(count).decode()
    return (
        f'{{"approved":true,"request_id":{_ENCODE(request_id).decode()},"reservation_id":{reservation},'
        f'"expires_at":{expires},"estimated_cost":{estimated},"currency":"{currency}","budgets":[{budgets}],'
        f'"warnings":{warned},"reason":null,"retry_after_s":null,"alternatives":{offered},"context":{context},"count":{counted}}}'
    ).encode()


def denial(
    *,
    request_id: str,
    cost: int | None,
    currency: str,
    budgets: list[BudgetWindow],
    warnings: list[str],
    reason: DenialReason,
    retry_after_s: int | None,
    alternatives: list[Alternative],
    context: ContextUse | None,
    count: TokenCount | None,
) -> bytes:
    """A denial in JSON: a normal reply that says why, until when, and what would fit."""
    return _ENCODE(
        BudgetDecision(
            approved=False,
            request_id=request_id,
            reservation_id=None,
            expires_at=None,
            estimated_cost=None if cost is None else format_cost(cost),
            currency=currency,
            budgets=budgets,
            warnings=warnings,
            reason=reason,
            retry_after_s=retry_after_s,
            alternatives=alternatives,
            context=context,
            count=count,
        )
    )
