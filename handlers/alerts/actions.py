"""What an alert sets off, once: after the alert is committed, claimed in the transaction that does it, so that a crash
in between neither loses nor repeats it. Changes are those of a person called ``policy:<rule>``.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from handlers import audit
from handlers.alerts.outcome import Outcome
from handlers.alerts.rollback import roll_back
from handlers.context import Caller, Context, Services
from handlers.enforcer.drafts import IDENTITY, Whole, dated, drafted, turned_into, with_rates
from handlers.enforcer.transaction import catalogue_change
from handlers.enforcer.written import Change, announce, audited, write
from schemas.budget import CreateBudget, Rate
from schemas.errors import SignalError, not_found
from store import alert_actions as action_store
from store import alerts as alert_store
from store import budgets as budget_store
from store.alert_actions import AlertActionRow
from store.alerts import AlertRow
from store.budgets import BudgetRow
from store.pool import Connection

Do = Callable[[Context, Connection, AlertActionRow, AlertRow, datetime], Awaitable[Outcome]]
RATE_LIMIT_MINUTES: Final = 60
NAME_CHARS_MAX: Final = 256
_log = logging.getLogger(__name__)


async def run_actions(services: Services, org: str) -> int:
    """Run what is pending and end what is over, oldest first; returns how many were looked at."""
    async with services.database.connection() as connection:
        at = await budget_store.clock(connection)
        due = await action_store.due(connection, org, at, services.limits.alert_actions_max)
    for row in due:
        await _run(Context(services, Caller(org, f"policy:{row.rule}", frozenset({"admin"}))), row)
    return len(due)


async def _run(ctx: Context, row: AlertActionRow) -> None:
    """One action in its transaction. What it is refused is its result; what is unavailable is tried again."""
    work = _works(ctx, row)
    try:
        if row.action["do"] == "log":
            async with ctx.database.transaction() as connection:
                await work(connection)
        else:
            await catalogue_change(ctx, work, taken=("name", "another budget has this name"))
    except SignalError as error:
        if error.code == "unavailable":
            return
        async with ctx.database.transaction() as connection:
            if await action_store.claim(connection, row):
                at = await budget_store.clock(connection)
                await action_store.finish(connection, row, status="failed", at=at, result=error.message)


def _works(ctx: Context, row: AlertActionRow) -> Callable[[Connection], Awaitable[None]]:
    async def work(connection: Connection) -> None:
        if not await action_store.claim(connection, row):
            return
        alert = await alert_store.find(connection, ctx.org, row.alert_id)
        if alert is None:
            raise not_found("the alert is gone")
        at = await budget_store.clock(connection)
        do = (_DO if row.status == "pending" else _END)[row.action["do"]]
        outcome = await do(ctx, connection, row, alert, at)
        for change in outcome.changes:
            await write(connection, change, at)
        await action_store.finish(
            connection,
            row,
            status="done" if outcome.ends_at is None else "active",
            at=at,
            result=outcome.result,
            ends_at=outcome.ends_at,
            undo=outcome.undo,
        )
        told = await announce(ctx, connection, outcome.changes, at)
        await audited(ctx, connection, told, f"{outcome.result}: {alert.title}")
        for entry in outcome.entries:
            await audit.record(
                connection,
                ctx.caller,
                action=entry.action,
                entity=entry.entity,
                entity_id=entry.entity_id,
                before=entry.before,
                after=entry.after,
                reason=f"{outcome.result}: {alert.title}",
            )

    return work


async def _write_log(
    ctx: Context, _connection: Connection, row: AlertActionRow, alert: AlertRow, _at: datetime
) -> Outcome:
    _log.warning(
        "alert %s org=%s rule=%s level=%s key=%s: %s",
        alert.alert_id,
        ctx.org,
        row.rule,
        alert.level,
        alert.dedup_key,
        alert.title,
    )
    return Outcome("logged")


async def _rate_limit(
    ctx: Context, connection: Connection, row: AlertActionRow, alert: AlertRow, at: datetime
) -> Outcome:
    """A throttle for the scope, through the ledger like any other budget, for some minutes."""
    scope = await _scope(connection, ctx.org, alert)
    draft, before = await _throttle(ctx, connection, row, scope)
    if before is None:
        after = dated(draft, now=at, since=at)
    else:
        after = turned_into(Whole(before), draft, now=at, new_id=ctx.new_id)
    minutes = row.action.get("minutes", RATE_LIMIT_MINUTES)
    return Outcome(
        f"rate limit for {minutes} minutes",
        changes=[Change(None if before is None else Whole(before), after)],
        ends_at=at + timedelta(minutes=minutes),
        undo={"budget_id": after.main.budget_id},
    )


async def _scope(connection: Connection, org: str, alert: AlertRow) -> dict[str, Any]:
    """The calls an alert is about, as a budget names them."""
    if (found := alert.details.get("scope")) is not None:
        return found
    budget = await _budget(connection, org, alert)
    return {"type": budget.type, "entity_id": alert.entity_id or budget.entity_id, "filters": budget.filters}


async def _throttle(
    ctx: Context, connection: Connection, row: AlertActionRow, scope: dict[str, Any]
) -> tuple[Whole, BudgetRow | None]:
    """The throttle that a rule wants, and the one it made earlier for the same calls at the same kind of rate."""
    rate = msgspec.convert(row.action["rate"], Rate)
    base = f"alert: {row.rule}"
    entity = scope["entity_id"]
    stems = (base, f"{base} ({entity})", f"{base} ({entity}, {rate.unit} {rate.period})")
    names = [stem[:NAME_CHARS_MAX] for stem in stems]
    known = {budget.name: budget for budget in await budget_store.named(connection, ctx.org, names)}
    wanted = {**scope, "unit": rate.unit, "period": rate.period, "limit": rate.limit, "enforcement": "throttle"}
    for name in names:
        request = msgspec.convert({**wanted, "name": name, "alert_thresholds": []}, CreateBudget)
        draft = drafted(request, org=ctx.org, now=ctx.now(), new_id=ctx.new_id)
        found = known.get(name)
        if found is None or all(getattr(found, key) == getattr(draft.main, key) for key in IDENTITY):
            return draft, found
    raise SignalError("conflict", f"budgets named '{names[0]}' are of another scope", field="name")


async def _end_rate_limit(
    ctx: Context, connection: Connection, row: AlertActionRow, _alert: AlertRow, at: datetime
) -> Outcome:
    budget_id = (row.undo or {})["budget_id"]
    if await action_store.outlasted(connection, row, budget_id):
        return Outcome("another alert keeps the rate limit")
    found = await budget_store.find(connection, ctx.org, budget_id)
    if found is None or not found.active:
        return Outcome("the rate limit was gone")
    before = await _whole(connection, found)
    after = replace(before, main=replace(found, active=False, version=found.version + 1, updated_at=at))
    return Outcome("rate limit over", changes=[Change(before, after)])


async def _switch_model(
    ctx: Context, connection: Connection, row: AlertActionRow, alert: AlertRow, at: datetime
) -> Outcome:
    budget, model = await _budget(connection, ctx.org, alert), row.action["model"]
    place = row.action.get("place", "preferred")
    if model == (budget.fallback_model if place == "fallback" else next(iter(budget.preferred_models), None)):
        return Outcome(f"{model} was {place} already")
    after = _placed(budget, model, place)
    ends_at = None
    if (minutes := row.action.get("minutes")) is not None:
        ends_at = at + timedelta(minutes=minutes)
    elif row.action.get("until_reset") and (resets_at := alert.details.get("resets_at")) is not None:
        ends_at = max(at, datetime.fromisoformat(resets_at))
    undo = {
        "budget_id": budget.budget_id,
        "preferred_models": [list(budget.preferred_models), list(after.preferred_models)],
        "fallback_model": [budget.fallback_model, after.fallback_model],
    }
    changes = [await _changed(connection, budget, after, at)]
    return Outcome(f"{model} is {place} now", changes=changes, ends_at=ends_at, undo=undo)


def _placed(budget: BudgetRow, model: str, place: str) -> BudgetRow:
    if place == "fallback":
        return replace(budget, fallback_model=model)
    return replace(budget, preferred_models=(model, *(m for m in budget.preferred_models if m != model)))


async def _switch_back(
    ctx: Context, connection: Connection, row: AlertActionRow, _alert: AlertRow, at: datetime
) -> Outcome:
    """As it was; what somebody has changed since stays, without the model if it was not there before."""
    undo, model = row.undo or {}, row.action["model"]
    budget = await budget_store.find(connection, ctx.org, undo["budget_id"])
    if budget is None or budget.deleted_at is not None:
        return Outcome("the budget was gone")
    old, new = undo["preferred_models"]
    models = list(budget.preferred_models)
    if models == new:
        models = old
    elif model not in old and model in new:
        models = [name for name in models if name != model]
    was, became = undo["fallback_model"]
    fallback = was if budget.fallback_model == became else budget.fallback_model
    after = replace(budget, preferred_models=tuple(models), fallback_model=fallback)
    if after == budget:
        return Outcome("nothing was left to switch back")
    return Outcome(f"{model} switched back", changes=[await _changed(connection, budget, after, at)])


async def _changed(connection: Connection, before: BudgetRow, after: BudgetRow, at: datetime) -> Change:
    whole = await _whole(connection, before)
    return Change(whole, replace(whole, main=replace(after, version=before.version + 1, updated_at=at)))


async def _whole(connection: Connection, budget: BudgetRow) -> Whole:
    rates = await budget_store.rates_of(connection, budget.org_id, [budget.budget_id])
    return with_rates([budget], rates)[0]


async def _budget(connection: Connection, org: str, alert: AlertRow) -> BudgetRow:
    found = None if alert.budget_id is None else await budget_store.find(connection, org, alert.budget_id)
    if found is None or found.deleted_at is not None:
        raise not_found("the alert's budget is gone")
    return found


_DO: Final[dict[str, Do]] = {
    "log": _write_log,
    "rate_limit": _rate_limit,
    "switch_model": _switch_model,
    "rollback": roll_back,
}
_END: Final[dict[str, Do]] = {"rate_limit": _end_rate_limit, "switch_model": _switch_back}
