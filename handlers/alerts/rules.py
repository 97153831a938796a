"""``set_alert_rule``, ``list_alert_rules`` and ``delete_alert_rule``: under the catalogue lock, so that the next event
on every agent meets the rules as they are.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from handlers import audit
from handlers.alerts.rates import DEFAULT_CURRENCY
from handlers.alerts.rollback import REVERTERS
from handlers.alerts.scope import OF_BUDGETS, scoped_budget
from handlers.alerts.shown import rule_reply
from handlers.context import Context
from handlers.cursor import decode_cursor, page
from handlers.enforcer.calendar import zone
from handlers.enforcer.catalogue import EVERY
from handlers.enforcer.transaction import catalogue_change
from schemas.alert import (
    AlertAction,
    AlertRule,
    AlertRuleList,
    AlertScope,
    DeleteAlertRule,
    DeletedAlertRule,
    ListAlertRules,
    SetAlertRule,
)
from schemas.budget import BudgetFilters
from schemas.currencies import known_currency
from schemas.errors import SignalError, conflict, invalid, not_found
from schemas.money import AmountError, parse_call_cost, parse_cost, parse_count
from signals import alert as signals
from signals import route
from store import alert_rules as rule_store
from store import alerts as alert_store
from store import budgets as budget_store
from store.alert_rules import AlertRuleRow
from store.pool import Connection
from store.rates import NOT_ROLLED_UP

# Parameters by kind: those it needs, and those it may have besides.
_PARAMETERS: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "threshold": ((), ("percents",)),
    "exceeded": ((), ()),
    "overrun": ((), ()),
    "hourly_rate": (("limit",), ("unit", "currency")),
    "absolute_tokens": (("limit",), ("period", "timezone")),
    "request_cost": (("limit",), ("currency",)),
    "pacing": ((), ("min_elapsed_percent",)),
}
_ACTIONS: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "log": ((), ()),
    "notify": (("channels",), ()),
    "callback": (("channels",), ()),
    "rate_limit": (("rate",), ("minutes",)),
    "switch_model": (("model",), ("place", "minutes", "until_reset")),
    "rollback": (("entities",), ("within_hours",)),
}


async def set_alert_rule(ctx: Context, request: SetAlertRule) -> AlertRule:
    """Create a rule, or replace the one of this name if it is still the version that was read."""
    _check(request)

    async def work(connection: Connection) -> AlertRule:
        type_ = await _type_of(ctx, connection, request)
        before = await rule_store.named(connection, ctx.org, request.name)
        _check_version(before, request.version)
        if before is None and await rule_store.count(connection, ctx.org) >= ctx.services.limits.alert_rules_max:
            raise conflict(f"there are {ctx.services.limits.alert_rules_max} rules already", field="name")
        now = await budget_store.clock(connection)
        after = _row(ctx, request, before, type_)
        after = replace(after, updated_at=now, created_at=now if before is None else before.created_at)
        await rule_store.put(connection, after)
        if before is not None and (after.kind != before.kind or not after.active):
            await alert_store.end_watched(connection, ctx.org, after.rule_id, now)
        await _record(ctx, connection, before, after, request.reason)
        return rule_reply(after)

    return await catalogue_change(ctx, work, taken=("name", "another rule has this name"))


async def delete_alert_rule(ctx: Context, request: DeleteAlertRule) -> DeletedAlertRule:
    """Take a rule away. Alerts it has raised stay, and nobody is told of them again."""

    async def work(connection: Connection) -> DeletedAlertRule:
        before = await rule_store.named(connection, ctx.org, request.name)
        if before is None:
            raise not_found("there is no such rule", field="name")
        _check_version(before, request.version)
        await rule_store.delete(connection, ctx.org, before.rule_id)
        now = await budget_store.clock(connection)
        await alert_store.end_watched(connection, ctx.org, before.rule_id, now)
        await _record(ctx, connection, before, None, request.reason)
        return DeletedAlertRule(rule_id=before.rule_id, name=before.name)

    return await catalogue_change(ctx, work)


async def list_alert_rules(ctx: Context, request: ListAlertRules) -> AlertRuleList:
    """Rules by name."""
    position = decode_cursor(request.cursor, tuple[str])
    async with ctx.database.connection() as connection:
        rows = await rule_store.listing(
            connection,
            ctx.org,
            kind=request.kind,
            active=request.active,
            after_name=position[0] if position is not None else "",
            limit=request.limit + 1,
        )
    rules, next_cursor = page([rule_reply(row) for row in rows], limit=request.limit, key=lambda rule: (rule.name,))
    return AlertRuleList(rules=rules, next_cursor=next_cursor)


async def _record(
    ctx: Context,
    connection: Connection,
    before: AlertRuleRow | None,
    after: AlertRuleRow | None,
    reason: str | None,
) -> None:
    row = after or before
    assert row is not None
    await audit.record(
        connection,
        ctx.caller,
        action="created" if before is None else "updated" if after is not None else "deleted",
        entity="alert_rule",
        entity_id=row.rule_id,
        before=None if before is None else rule_reply(before),
        after=None if after is None else rule_reply(after),
        reason=reason,
    )


def _check_version(before: AlertRuleRow | None, version: int | None) -> None:
    if before is None and version is not None:
        raise not_found("there is no rule of this name to replace: leave the version out", field="name")
    if before is not None and version is None:
        raise conflict("there is a rule of this name: give the version that was read to replace it", field="version")
    if before is not None and version != before.version:
        raise conflict(f"the rule is at version {before.version}: read it again", field="version")


def _row(ctx: Context, request: SetAlertRule, before: AlertRuleRow | None, type_: str | None) -> AlertRuleRow:
    now = ctx.now()
    return AlertRuleRow(
        org_id=ctx.org,
        rule_id=ctx.new_id() if before is None else before.rule_id,
        version=1 if before is None else before.version + 1,
        name=request.name,
        kind=request.kind,
        scope=_scoped(ctx, request.scope, type_),
        parameters=_in_currency(ctx, request, _stored(request.parameters)),
        level=request.level,
        channels=tuple(dict.fromkeys(request.channels)),
        actions=tuple(_stored(action) for action in request.actions),
        renotify_s=request.renotify_s,
        active=request.active,
        created_at=now,
        updated_at=now,
    )


def _scoped(ctx: Context, scope: AlertScope, type_: str | None) -> dict[str, Any]:
    """A scope of entities of ``type_`` as stored: a user stands there behind the surrogate."""
    stored = _stored(scope)
    if type_ == "user" and scope.entity_id != EVERY:
        try:
            stored["entity_id"] = ctx.user_key(scope.entity_id)
        except SignalError as error:
            raise invalid(error.message, field="scope.entity_id") from None
    return stored


def _stored(struct: msgspec.Struct) -> dict[str, Any]:
    """What a struct says, without what it leaves out."""
    plain: dict[str, Any] = msgspec.to_builtins(struct)
    if isinstance(plain.get("filters"), dict):
        plain["filters"] = {name: value for name, value in plain["filters"].items() if value is not None} or None
    if plain.get("budget_id") is not None:
        plain["budget_id"] = plain["budget_id"].lower()
    return {name: value for name, value in plain.items() if value is not None}


def _check(request: SetAlertRule) -> None:
    """Raise SignalError naming the first field that makes no sense for this kind of rule."""
    _check_scope(request.scope, request.kind)
    _check_fields(request.parameters, *_PARAMETERS[request.kind], where="parameters", what=f"a {request.kind} rule")
    _check_parameters(request)
    for i, action in enumerate(request.actions):
        where = f"actions[{i}]"
        _check_fields(action, *_ACTIONS[action.do], where=where, what=action.do, besides=("do",))
        _check_action(request, action, where)
    if request.renotify_s is not None:
        if request.kind == "request_cost":
            raise invalid("one call is no state that lasts: nobody is told of it again", field="renotify_s")
        if not request.channels and not any(action.channels for action in request.actions):
            raise invalid("nobody is told: name a channel", field="renotify_s")


def _check_scope(scope: AlertScope, kind: str) -> None:
    given = [name for name in ("budget_id", "budget", "type") if getattr(scope, name) is not None]
    if len(given) > 1:
        raise invalid(f"give {given[0]} or {given[1]}, not both", field=f"scope.{given[1]}")
    named = scope.budget_id is not None or scope.budget is not None
    if scope.entity_id != EVERY and scope.type in (None, "global") and not (named and kind in OF_BUDGETS):
        raise invalid("names an entity of no type: give the type too", field="scope.entity_id")
    if scope.filters != BudgetFilters() and (named or kind in OF_BUDGETS):
        raise invalid("a budget has filters of its own: leave them out", field="scope.filters")
    if kind in ("hourly_rate", "absolute_tokens") and scope.type in NOT_ROLLED_UP:
        raise invalid(f"usage is not summed by {scope.type}: use a budget", field="scope.type")


def _check_fields(
    struct: msgspec.Struct,
    needed: tuple[str, ...],
    allowed: tuple[str, ...],
    *,
    where: str,
    what: str,
    besides: tuple[str, ...] = (),
) -> None:
    for name, value in msgspec.structs.asdict(struct).items():
        if name in besides:
            continue
        if name in needed and (value is None or value == []):
            raise invalid(f"{what} needs it", field=f"{where}.{name}")
        if value is not None and name not in needed and name not in allowed:
            raise invalid(f"{what} does not take it", field=f"{where}.{name}")


def _in_currency(ctx: Context, request: SetAlertRule, parameters: dict[str, Any]) -> dict[str, Any]:
    """A limit of cost goes on to be in the currency that the org had when it was set. Not said: dollars."""
    money = request.kind == "request_cost" or (request.kind == "hourly_rate" and request.parameters.unit != "tokens")
    own = ctx.services.org_settings(ctx.org).currency
    return {"currency": own, **parameters} if money and own != DEFAULT_CURRENCY else parameters


def _check_parameters(request: SetAlertRule) -> None:
    parameters = request.parameters
    if parameters.timezone is not None:
        try:
            zone(parameters.timezone)
        except SignalError as error:
            raise invalid(error.message, field="parameters.timezone") from None
    if parameters.currency is not None:
        known_currency(parameters.currency, field="parameters.currency")
        if parameters.unit == "tokens":
            raise invalid("tokens have none", field="parameters.currency")
    if parameters.limit is None:
        return
    try:
        if request.kind == "request_cost":
            parse_call_cost(parameters.limit)
            return
        money = request.kind == "hourly_rate" and parameters.unit != "tokens"
        limit = parse_cost(parameters.limit) if money else parse_count(parameters.limit)
    except AmountError as error:
        raise invalid(str(error), field="parameters.limit") from None
    if limit <= 0:
        raise invalid("is reached by nothing at all", field="parameters.limit")


def _check_action(request: SetAlertRule, action: AlertAction, where: str) -> None:
    scope = request.scope
    if action.rate is not None:
        if action.rate.currency is not None:
            known_currency(action.rate.currency, field=f"{where}.rate.currency")
        try:
            (parse_cost if action.rate.unit == "cost" else parse_count)(action.rate.limit)
        except AmountError as error:
            raise invalid(str(error), field=f"{where}.rate.limit") from None
    if action.do == "switch_model":
        if request.kind not in OF_BUDGETS and scope.budget_id is None and scope.budget is None:
            raise invalid("needs a rule about a budget: the model is switched there", field=f"{where}.do")
        if action.minutes is not None and action.until_reset:
            raise invalid("give minutes or until_reset, not both", field=f"{where}.until_reset")
    if action.do == "rollback":
        if request.kind != "hourly_rate":
            raise invalid("goes by spending per hour: use it in an hourly_rate rule", field=f"{where}.do")
        for j, entity in enumerate(action.entities or ()):
            if entity not in REVERTERS:
                known = ", ".join(sorted(REVERTERS))
                raise invalid(f"cannot be taken back; what can: {known}", field=f"{where}.entities[{j}]")


async def _type_of(ctx: Context, connection: Connection, request: SetAlertRule) -> str | None:
    """The type of the entities a rule watches. The budget that its scope names is there, and it can watch it."""
    scope = _stored(request.scope)
    field = next((name for name in ("budget_id", "budget") if name in scope), None)
    if field is None:
        return request.scope.type
    budget = scoped_budget(scope, await budget_store.load(connection, ctx.org))
    if budget is None:
        raise not_found("there is no such budget", field=f"scope.{field}")
    if request.kind in ("hourly_rate", "absolute_tokens") and budget.type in NOT_ROLLED_UP:
        raise invalid(f"usage is not summed by {budget.type}", field=f"scope.{field}")
    return budget.type


ROUTES = (
    route(signals.SET_ALERT_RULE, set_alert_rule),
    route(signals.LIST_ALERT_RULES, list_alert_rules),
    route(signals.DELETE_ALERT_RULE, delete_alert_rule),
)
