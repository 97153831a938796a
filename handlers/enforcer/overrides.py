"""``request_override``, ``review_override`` and ``list_overrides``: a raise that one asks for and another approves.

Asking and deciding happen alone with the org's budgets (R1), by PostgreSQL's clock (R3). Ending needs nobody: a raise
counts only before its end; the expiry here writes down what the clock has decided.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

import asyncpg
import msgspec

from handlers import audit
from handlers.context import Caller, Context, Services
from handlers.cursor import decode_cursor, page
from handlers.enforcer.budgets import budget_uuid
from handlers.enforcer.calendar import bounds
from handlers.enforcer.catalogue import EVERY
from handlers.enforcer.entities import entity_key, entity_keys
from handlers.enforcer.ledger import effective_limit
from handlers.enforcer.transaction import catalogue_change
from handlers.events import cloud_event
from handlers.moment import in_utc
from schemas.budget import OverridePolicy
from schemas.errors import SignalError, conflict, invalid, not_found, unavailable
from schemas.money import COST_NANOS_MAX, COUNT_MAX, AmountError, format_cost, parse_cost, parse_count
from schemas.override import (
    ListedOverride,
    ListOverrides,
    Override,
    OverrideChanged,
    OverrideList,
    OverrideStep,
    RequestOverride,
    ReviewOverride,
)
from signals import Event, route
from signals import override as signals
from store import budgets as budget_store
from store import outbox as outbox_store
from store import overrides as override_store
from store import users as user_store
from store.budgets import BudgetRow
from store.overrides import OverrideRow, Standing, StepRow
from store.pool import Connection

T = TypeVar("T")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NEWEST: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"
# Enforcement that lets every call through, whatever is used up.
LETS_THROUGH: Final = ("warn", "shadow")
POLICY: Final = "policy"
EXPIRY: Final = "policy:expiry"


@dataclass(frozen=True, slots=True)
class Change:
    """One step of an override: who did what (the event says it), from what to what, and why."""

    event: Event[OverrideChanged]
    caller: Caller
    before: OverrideRow | None
    after: OverrideRow
    reason: str | None


async def request_override(ctx: Context, request: RequestOverride) -> Override:
    """Ask for a raise. At or below what the budget's policy approves by itself it is approved at once."""
    budget_id = budget_uuid(request.budget_id)
    if request.amount is not None and request.percent is not None:
        raise invalid("give an amount or a percent, not both", field="percent")
    if not request.reason.strip():
        raise invalid("says nothing: tell the reviewer why", field="reason")
    until = in_utc(request.until, "until")
    assert until is not None
    override_id = ctx.new_id()

    async def work(connection: Connection) -> Override:
        budget = await _budget(connection, ctx.org, budget_id)
        if budget.deleted_at is not None:
            raise not_found("the budget was deleted", field="budget_id")
        now = await budget_store.clock(connection)
        asked = OverrideRow(
            org_id=ctx.org,
            override_id=override_id,
            budget_id=budget_id,
            entity_id=_entity(ctx, budget, request.entity_id),
            unit=budget.unit,
            currency=budget.currency,
            status="pending",
            amount=_amount(budget, request),
            percent=request.percent,
            reason=request.reason,
            requested_by=ctx.caller.actor,
            requested_at=now,
            starts_at=None,
            ends_at=until,
        )
        standing = await _standing(connection, budget, asked.entity_id, now)
        if found := objection(budget, asked, standing, now):
            field, text = found
            raise invalid(text, field="percent" if field == "amount" and request.percent is not None else field)
        await _refuse_too_many(ctx, connection, asked)
        row = _approved_by_policy(asked) if is_automatic(budget, asked, standing) else asked
        await override_store.insert(connection, row)
        steps = [Change(signals.REQUESTED, ctx.caller, None, asked, request.reason)]
        if row is not asked:
            policy = Caller(ctx.org, POLICY, frozenset())
            steps.append(Change(signals.APPROVED, policy, asked, row, row.comment))
            await budget_store.bump(connection, ctx.org)
        await _tell(ctx.services, connection, steps)
        return shown(row)

    return await _alone(ctx, work)


async def review_override(ctx: Context, request: ReviewOverride) -> Override:
    """Approve or deny what is pending, or revoke what is approved; the next decision on every agent follows it."""
    override_id = request.override_id.lower()
    if not _UUID.fullmatch(override_id):
        raise invalid("is not an override id (a UUID)", field="override_id")

    async def work(connection: Connection) -> Override:
        row = await override_store.lock(connection, ctx.org, override_id)
        if row is None:
            raise not_found("there is no such override", field="override_id")
        budget = await _budget(connection, ctx.org, row.budget_id)
        _refuse_reviewer(ctx, row, budget, await _public_key(ctx, connection))
        now = await budget_store.clock(connection)
        event, decided = _decided(row, request, ctx.caller, now)
        if decided.status == "approved":
            standing = await _standing(connection, budget, row.entity_id, now)
            if found := objection(budget, decided, standing, now):
                raise conflict(f"cannot be approved any more: {found[1]}", field="override_id")
        await override_store.decide(connection, decided)
        await _tell(ctx.services, connection, [Change(event, ctx.caller, row, decided, request.comment)])
        return shown(decided)

    return await catalogue_change(ctx, work)


async def list_overrides(ctx: Context, request: ListOverrides) -> OverrideList:
    """Overrides of the org, newest first, each with everything that happened to it."""
    position = decode_cursor(request.cursor, tuple[UUID])
    budget_id = budget_uuid(request.budget_id) if request.budget_id is not None else None
    entities = None if request.entity_id is None else entity_keys(ctx, type=None, entity_id=request.entity_id)
    async with ctx.database.transaction() as connection:
        rows = await override_store.listing(
            connection,
            ctx.org,
            budget_id=budget_id,
            entity_ids=entities,
            status=request.status,
            before_id=str(position[0]) if position is not None else _NEWEST,
            limit=request.limit + 1,
        )
        history = await override_store.history(connection, ctx.org, [row.override_id for row in rows])
    found = [_listed(row, history.get(row.override_id, [])) for row in rows]
    overrides, next_cursor = page(found, limit=request.limit, key=lambda o: (o.override_id,))
    return OverrideList(overrides=overrides, next_cursor=next_cursor)


async def expire_overrides(services: Services) -> int:
    """Mark as expired, once, what has ended in every org; returns how many this agent did."""
    async with services.database.connection() as connection:
        orgs = await override_store.orgs_with_ended(connection)
    expired = 0
    for org in orgs:
        while count := await _expire_some(services, org):
            expired += count
    return expired


async def _expire_some(services: Services, org: str) -> int:
    """One batch. The shared lock keeps reviews away and lets admission go on, whose limits follow the clock anyway."""
    caller = Caller(org, EXPIRY, frozenset())
    async with services.database.transaction() as connection:
        await budget_store.lock_shared(connection, org)
        now = await budget_store.clock(connection)
        rows = await override_store.lock_ended(connection, org, now, services.limits.override_expiry_batch_max)
        if rows:
            await override_store.expire(connection, org, [row.override_id for row in rows])
            steps = [Change(signals.EXPIRED, caller, row, replace(row, status="expired"), None) for row in rows]
            await _tell(services, connection, steps)
    if rows:
        services.outbox_ready.set()
    return len(rows)


# What is decided ------------------------------------------------------------------------------------------------------


def objection(budget: BudgetRow, asked: OverrideRow, standing: Standing, now: datetime) -> tuple[str, str] | None:
    """The field and the reason for which this raise cannot be given now; None where it can."""
    policy = _policy(budget)
    if not budget.active:
        return "budget_id", "the budget is not active: there is nothing to raise"
    if budget.gate_id is not None:
        return "budget_id", "this is the rate of a throttled budget: ask for a raise of that budget"
    if budget.enforcement in LETS_THROUGH:
        return "budget_id", f"a budget with enforcement '{budget.enforcement}' refuses no call: it needs no override"
    if asked.ends_at <= now:
        return "until", "is not in the future"
    if asked.ends_at > now + timedelta(hours=policy.max_hours):
        return "until", f"is more than {policy.max_hours} hours ahead, the most this budget's policy allows"
    if (standing.raised + asked.amount) * 100 > budget.base_limit * policy.max_percent:
        most = budget.base_limit * policy.max_percent // 100
        text = (
            f"would raise the base limit by more than {policy.max_percent} %, the most this budget's policy allows: "
            f"{_text(budget.unit, most)} in all, {_text(budget.unit, standing.raised)} of it approved already"
        )
        return "amount", text
    largest = COST_NANOS_MAX if budget.unit == "cost" else COUNT_MAX
    if effective_limit(budget, 0) + standing.raised + asked.amount > largest:
        return "amount", "makes the limit larger than any amount this service keeps"
    return None


def is_automatic(budget: BudgetRow, asked: OverrideRow, standing: Standing) -> bool:
    """Whether the policy approves by itself: this raise with all that it approved so in the present window."""
    return (standing.automatic + asked.amount) * 100 <= budget.base_limit * _policy(budget).auto_approve_percent


def _approved_by_policy(asked: OverrideRow) -> OverrideRow:
    # Nobody else can approve in the very moment of asking: the two times mark, for ever, who did (store "standing").
    at = asked.requested_at
    comment = "at or below what the budget's policy approves by itself"
    return replace(asked, status="approved", starts_at=at, reviewed_by=POLICY, reviewed_at=at, comment=comment)


def _decided(
    row: OverrideRow, request: ReviewOverride, caller: Caller, now: datetime
) -> tuple[Event[OverrideChanged], OverrideRow]:
    """What the override becomes. Raises SignalError ``conflict`` where it was decided or has ended."""
    wanted = "approved" if request.decision == "revoke" else "pending"
    if row.status == wanted and row.ends_at <= now:
        raise conflict(f"the override ended at {row.ends_at.isoformat()}", field="override_id")
    if row.status != wanted:
        raise conflict(f"the override is {row.status}, not {wanted}", field="override_id")
    reviewed = replace(row, reviewed_by=caller.actor, reviewed_at=now, comment=request.comment)
    if request.decision == "approve":
        return signals.APPROVED, replace(reviewed, status="approved", starts_at=now)
    if request.decision == "deny":
        return signals.DENIED, replace(reviewed, status="denied")
    return signals.REVOKED, replace(reviewed, status="revoked")


def _refuse_reviewer(ctx: Context, row: OverrideRow, budget: BudgetRow, public_key: str | None) -> None:
    """Dual control: somebody else, in one of the roles that the budget names. Two who are anonymous may be one."""
    caller = ctx.caller
    themselves = {caller.actor}
    for known_as in (caller.user, public_key):  # By name or by surrogate, whichever it was recorded under.
        if known_as is not None:
            themselves |= {known_as, ctx.services.vault.surrogate(ctx.org, known_as)}
    if row.requested_by in themselves:
        raise SignalError("forbidden", "whoever asked for an override may not review it", field="override_id")
    roles = _policy(budget).approver_roles
    if "admin" not in caller.roles and caller.roles.isdisjoint(roles):
        needed = " or ".join(sorted(roles)) or "admin"
        raise SignalError("forbidden", f"reviewing overrides of this budget needs the role {needed}")


def _entity(ctx: Context, budget: BudgetRow, named: str | None) -> str:
    """Whose window is raised, as it is stored."""
    key = None if named is None else entity_key(ctx, type=budget.type, entity_id=named)
    if budget.type == "global" or budget.entity_id != EVERY:
        if key not in (None, budget.entity_id):
            raise invalid("is not whom this budget is for: leave it out", field="entity_id")
        return budget.entity_id
    if key is None or key == EVERY:
        raise invalid(f"is required: each {budget.type} has its own window, name the one to raise", field="entity_id")
    return key


def _amount(budget: BudgetRow, request: RequestOverride) -> int:
    if request.percent is not None:
        amount, field = budget.base_limit * request.percent // 100, "percent"
    elif request.amount is not None:
        try:
            amount = parse_cost(request.amount) if budget.unit == "cost" else parse_count(request.amount)
        except AmountError as error:
            raise invalid(str(error), field="amount") from None
        field = "amount"
    else:
        raise invalid("give an amount, or a percent of the base limit", field="amount")
    if not amount:
        raise invalid("raises nothing", field=field)
    return amount


def _policy(budget: BudgetRow) -> OverridePolicy:
    return msgspec.convert(budget.override_policy, OverridePolicy)


# What is read and written ---------------------------------------------------------------------------------------------


async def _alone(ctx: Context, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Run ``work`` alone with the org's budgets.

    A request that only waits changes no decision and is no new version of the catalogue; ``work`` bumps it otherwise.
    """
    for _ in range(ctx.services.limits.transaction_attempts_max):
        try:
            async with ctx.database.transaction() as connection:
                await budget_store.lock_exclusive(connection, ctx.org)
                result = await work(connection)
        except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
            continue
        ctx.services.outbox_ready.set()
        return result
    raise unavailable("the ledger is too busy; nothing has changed, try again")


async def _public_key(ctx: Context, connection: Connection) -> str | None:
    """What the bus called the caller before there was a row that gives the key a name."""
    row = None if ctx.caller.user is None else await user_store.find(connection, ctx.org, ctx.caller.user)
    return None if row is None else row.public_key


async def _budget(connection: Connection, org: str, budget_id: str) -> BudgetRow:
    row = await budget_store.find(connection, org, budget_id)
    if row is None:
        raise not_found("there is no such budget", field="budget_id")
    return row


async def _standing(connection: Connection, budget: BudgetRow, entity_id: str, now: datetime) -> Standing:
    start, _ = bounds(budget.period, budget.timezone, now)
    return await override_store.standing(
        connection, budget.org_id, budget.budget_id, entity_id, now=now, window_start=start
    )


async def _refuse_too_many(ctx: Context, connection: Connection, asked: OverrideRow) -> None:
    if await override_store.asked_before(connection, asked):
        raise conflict("the same raise was asked for already: see list_overrides", field="budget_id")
    limits = ctx.services.limits
    everybodys, own = await override_store.open_counts(
        connection, ctx.org, now=asked.requested_at, requester=asked.requested_by
    )
    if own >= limits.override_requester_open_max:
        raise SignalError("rate_limited", f"{own} of your overrides are pending or live, which is the most")
    if everybodys >= limits.override_open_max:
        raise SignalError("rate_limited", f"{everybodys} overrides are pending or live, the most that an org may have")


async def _tell(services: Services, connection: Connection, steps: list[Change]) -> None:
    """Events, then the audit trail: its head is the last lock."""
    events = [
        cloud_event(
            services,
            step.caller.org,
            step.event,
            OverrideChanged(actor=step.caller.actor, override=shown(step.after)),
            subject=step.after.override_id,
        )
        for step in steps
    ]
    await outbox_store.add(connection, steps[0].caller.org, events)
    for step in steps:
        await audit.record(
            connection,
            step.caller,
            action=step.event.name.rpartition(".")[2],
            entity="override",
            entity_id=step.after.override_id,
            before=None if step.before is None else shown(step.before),
            after=shown(step.after),
            reason=step.reason,
        )


def shown(row: OverrideRow) -> Override:
    """An override as callers see it."""
    return Override(**_fields(row))


def _listed(row: OverrideRow, history: list[StepRow]) -> ListedOverride:
    steps = [OverrideStep(at=s.at, actor=s.actor, action=s.action, reason=s.reason) for s in history]
    return ListedOverride(**_fields(row), history=steps)


def _fields(row: OverrideRow) -> dict[str, Any]:
    return {
        "override_id": row.override_id,
        "budget_id": row.budget_id,
        "entity_id": row.entity_id,
        "unit": row.unit,
        "currency": row.currency,
        "status": row.status,
        "amount": _text(row.unit, row.amount),
        "percent": row.percent,
        "reason": row.reason,
        "requested_by": row.requested_by,
        "requested_at": row.requested_at,
        "starts_at": row.starts_at,
        "until": row.ends_at,
        "reviewed_by": row.reviewed_by,
        "reviewed_at": row.reviewed_at,
        "comment": row.comment,
    }


def _text(unit: str, amount: int) -> str:
    return format_cost(amount) if unit == "cost" else str(amount)


ROUTES = (
    route(signals.REQUEST_OVERRIDE, request_override),
    route(signals.REVIEW_OVERRIDE, review_override),
    route(signals.LIST_OVERRIDES, list_overrides),
)
