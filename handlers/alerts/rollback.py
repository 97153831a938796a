"""Taking back a change after which spending per hour rose above a rule, once, and never a change of a policy.

What can be taken back is data: an entity of the audit trail, whether a change of it bears on some calls, and how it is
put back to what the trail says it was before.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from handlers.alerts.outcome import Entry, Outcome
from handlers.alerts.rates import DEFAULT_CURRENCY, HOUR
from handlers.context import Context
from handlers.currency.exchange import Exchange
from handlers.enforcer.catalogue import EVERY
from handlers.enforcer.drafts import changed, with_rates
from handlers.enforcer.written import Change, announce, write
from handlers.pricing.update import revert_rule, rule_concerns
from handlers.tracker.rollup import bucket_of
from schemas.budget import Budget, UpdateBudget
from schemas.errors import conflict
from schemas.money import parse_cost, parse_count
from store import audit as audit_store
from store import budgets as budget_store
from store import rates as rate_store
from store.alert_actions import AlertActionRow
from store.alerts import AlertRow
from store.audit import AuditRow
from store.pool import Connection
from store.rates import Scope

WITHIN_HOURS: Final = 24
_NEWEST: Final = 2**62
_POLICY: Final = "policy:"
# An entry's content (before, after, ...) and the calls an alert is about (type, entity_id, filters).
Concerns = Callable[[dict[str, Any], dict[str, Any]], bool]
# Puts the entity back to content["before"]; returns it as it was and as it is.
Revert = Callable[[Context, Connection, dict[str, Any], datetime], Awaitable[tuple[object, object]]]


@dataclass(frozen=True, slots=True)
class Reverter:
    """How changes of one entity are judged and taken back: which ``actions`` of the trail, of which ``units``."""

    concerns: Concerns
    revert: Revert
    actions: tuple[str, ...] = ("updated",)
    units: tuple[str, ...] = ("cost", "tokens")


async def roll_back(
    ctx: Context, connection: Connection, row: AlertActionRow, alert: AlertRow, at: datetime
) -> Outcome:
    """Take back the newest change that the alert can be laid to. The org's catalogue lock is held."""
    hours = row.action.get("within_hours", WITHIN_HOURS)
    exchange = await ctx.services.books.refresh(connection, ctx.org)
    for entry in await _changes(ctx, connection, row, since=at - timedelta(hours=hours), until=alert.created_at):
        content = msgspec.json.decode(entry.content)
        reverter = REVERTERS[entry.entity]
        if alert.details["unit"] not in reverter.units or not reverter.concerns(content, alert.details["scope"]):
            continue
        if not await _is_newest(connection, entry) or await _was_over_before(connection, alert, entry.at, exchange):
            continue
        before, after = await reverter.revert(ctx, connection, content, at)
        return Outcome(
            f"change {entry.seq} by {entry.actor} taken back",
            entries=[Entry("reverted", entry.entity, entry.entity_id, before, after)],
        )
    return Outcome("no change to take back")


async def _changes(
    ctx: Context, connection: Connection, row: AlertActionRow, *, since: datetime, until: datetime
) -> list[AuditRow]:
    """What people changed in that time, newest first; a policy's own changes end by themselves."""
    found: list[AuditRow] = []
    for entity, action in ((e, action) for e in row.action["entities"] for action in REVERTERS[e].actions):
        found += await audit_store.listing(
            connection,
            ctx.org,
            before_seq=_NEWEST,
            entity=entity,
            entity_ids=None,
            actors=None,
            action=action,
            start=since,
            end=until,
            limit=ctx.services.limits.alert_changes_max,
            bytes_max=ctx.services.limits.audit_batch_bytes_max,
        )
    people = [entry for entry in found if not entry.actor.startswith(_POLICY)]
    return sorted(people, key=lambda entry: -entry.seq)


async def _is_newest(connection: Connection, entry: AuditRow) -> bool:
    """Whether nothing has changed the entity since: neither a person nor this."""
    newest = await audit_store.listing(
        connection,
        entry.org_id,
        before_seq=_NEWEST,
        entity=entry.entity,
        entity_ids=[entry.entity_id],
        actors=None,
        action=None,
        start=None,
        end=None,
        limit=1,
        bytes_max=1,
    )
    return newest[0].seq == entry.seq


async def _was_over_before(connection: Connection, alert: AlertRow, changed_at: datetime, exchange: Exchange) -> bool:
    """Whether the rate was too high already in the hour before the change: then the change is not the cause."""
    details = alert.details
    limit = parse_cost(details["limit"]) if details["unit"] == "cost" else parse_count(details["limit"])
    rates = {} if details["unit"] != "cost" else exchange.into(details.get("currency") or DEFAULT_CURRENCY)
    scope = Scope(org_id=alert.org_id, unit=details["unit"], rates=rates, **details["scope"])
    end = bucket_of(changed_at)
    sums = await rate_store.between(connection, scope, start=end - HOUR, end=end, limit=1)
    return any(amount >= limit for amount in sums.values())


def budget_concerns(content: dict[str, Any], scope: dict[str, Any]) -> bool:
    """Whether a budget counts calls of the scope."""
    budget = content["after"]
    if "global" in (budget["type"], scope["type"]):
        return True
    return budget["type"] == scope["type"] and budget["entity_id"] in (EVERY, scope["entity_id"])


async def revert_budget(
    ctx: Context, connection: Connection, content: dict[str, Any], at: datetime
) -> tuple[object, object]:
    """Give a budget what may change of it as it was before. Raises SignalError ``conflict`` where it changed since."""
    was = msgspec.convert(content["before"], Budget)
    row = await budget_store.find(connection, ctx.org, was.budget_id)
    if row is None or row.deleted_at is not None or row.version != content["after"]["version"]:
        raise conflict("the budget has changed since")
    rates = await budget_store.rates_of(connection, ctx.org, [row.budget_id])
    whole = with_rates([row], rates)[0]
    request = UpdateBudget(
        budget_id=was.budget_id,
        version=row.version,
        name=was.name,
        limit=was.limit,
        overage_percent=was.overage_percent,
        enforcement=was.enforcement,  # pyright: ignore[reportArgumentType]  # As the contract once allowed it.
        rate=was.rate,
        alert_thresholds=was.alert_thresholds,
        rollover=was.rollover,
        override_policy=was.override_policy,
        on_expiry=was.on_expiry,  # pyright: ignore[reportArgumentType]
        preferred_models=was.preferred_models,
        fallback_model=was.fallback_model,
        active=was.active,
    )
    change = Change(whole, changed(whole, request, now=at, new_id=ctx.new_id))
    await write(connection, change, at)
    (told,) = await announce(ctx, connection, [change], at)
    return told.before, told.after


REVERTERS: Final[dict[str, Reverter]] = {
    "budget": Reverter(budget_concerns, revert_budget),
    # A price that nobody had set is as easily wrong as one that was changed; tokens cost what they cost.
    "price_rule": Reverter(rule_concerns, revert_rule, actions=("created", "updated", "ended"), units=("cost",)),
}
