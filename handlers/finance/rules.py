"""``set_allocation_rules`` and ``list_allocation_rules``: which usage is shared and how it is split."""

from collections.abc import Iterator, Sequence
from fractions import Fraction

import msgspec

from handlers import audit
from handlers.context import Context
from handlers.cursor import decode_cursor, page
from handlers.finance.shares import HUNDRED
from schemas.allocation import (
    AllocationRule,
    AllocationRules,
    AllocationRuleSets,
    ListAllocationRules,
    SetAllocationRules,
)
from schemas.base import to_builtins
from schemas.errors import SignalError, conflict, invalid
from signals import finance as signals
from signals import route
from store import budgets as budget_store
from store import finance as finance_store
from store.finance import AllocationRulesRow, Condition
from store.pool import Connection
from store.sql import like_pattern

_TAGGED = "tag:"


async def set_allocation_rules(ctx: Context, request: SetAllocationRules) -> AllocationRules:
    """Replace the rules for one way of allocating; a new version, audited."""
    key = rules_key(request.by, request.tag)
    rules = checked_rules(ctx, request.by, request.rules, "rules")
    async with ctx.database.transaction() as connection:
        before = await finance_store.rules(connection, ctx.org, key, lock=True)
        version = 0 if before is None else before.version
        if request.version is not None and request.version != version:
            raise conflict(f"the rules are of version {version} by now: read them again", field="version")
        row = AllocationRulesRow(
            allocated_by=key,
            version=version + 1,
            rules=[to_builtins(rule) for rule in rules],
            updated_at=await budget_store.clock(connection),
            updated_by=ctx.caller.actor,
        )
        if not await finance_store.put_rules(connection, ctx.org, row):
            raise conflict("somebody else has set these rules at the same moment: read them again", field="version")
        await audit.record(
            connection,
            ctx.caller,
            action="created" if before is None else "updated",
            entity="allocation_rules",
            entity_id=key,
            before=None if before is None else before.rules,
            after=row.rules,
            reason=request.reason,
        )
    return _shown(row)


async def list_allocation_rules(ctx: Context, request: ListAllocationRules) -> AllocationRuleSets:
    """Every set of rules."""
    position = decode_cursor(request.cursor, tuple[str])
    async with ctx.database.connection() as connection:
        rows = await finance_store.list_rules(
            connection, ctx.org, after=position[0] if position else "", limit=request.limit + 1
        )
    sets, cursor = page([_shown(row) for row in rows], limit=request.limit, key=lambda s: (rules_key(s.by, s.tag),))
    return AllocationRuleSets(rule_sets=sets, next_cursor=cursor)


def rules_key(by: str, tag: str | None) -> str:
    """What a set of rules is stored under. Raises SignalError naming ``tag``."""
    if (by == "tag") != (tag is not None):
        raise invalid("names the tag to allocate by" if by == "tag" else "is only for by: tag", field="tag")
    return by if tag is None else _TAGGED + tag


async def stored_rules(connection: Connection, org: str, key: str) -> tuple[list[AllocationRule], int | None]:
    """The rules in force for one way of allocating, and their version; none, where nobody has set any."""
    row = await finance_store.rules(connection, org, key)
    return ([], None) if row is None else (msgspec.convert(row.rules, list[AllocationRule]), row.version)


def checked_rules(ctx: Context, by: str, rules: Sequence[AllocationRule], field: str) -> list[AllocationRule]:
    """Rules with users as surrogates. Raises SignalError naming what cannot be: ``rules[1].percents``."""
    names: set[str] = set()
    found: list[AllocationRule] = []
    for position, rule in enumerate(rules):
        at = f"{field}[{position}]"
        if rule.name in names:
            raise invalid("is the name of another rule already", field=f"{at}.name")
        names.add(rule.name)
        if not to_builtins(rule.shared):
            raise invalid("says nothing: then all usage would be shared", field=f"{at}.shared")
        _check_split(rule, at)
        found.append(_anonymous(ctx, by, rule, at))
    return found


def _check_split(rule: AllocationRule, at: str) -> None:
    if rule.split != "fixed":
        if rule.percents:
            raise invalid("is for split: fixed only", field=f"{at}.percents")
        if len(set(rule.among)) < len(rule.among):
            raise invalid("names somebody twice", field=f"{at}.among")
        return
    if rule.among:
        raise invalid("is not for split: fixed, where percents say who bears it", field=f"{at}.among")
    total = sum((Fraction(percent) for percent in rule.percents.values()), Fraction(0))
    if total != HUNDRED:
        raise invalid(f"must sum to 100, not {float(total):g}", field=f"{at}.percents")


def _anonymous(ctx: Context, by: str, rule: AllocationRule, at: str) -> AllocationRule:
    """The rule with surrogates in the place of user names, everywhere one may stand."""

    def key(name: str, field: str) -> str:
        try:
            return ctx.user_key(name)
        except SignalError as error:
            raise invalid(error.message, field=field) from None

    shared = rule.shared
    if isinstance(shared.user_id, str) and shared.user_id != "*":
        if "*" in shared.user_id:
            text = "user names are not stored with usage, so a pattern finds none: name the user"
            raise invalid(text, field=f"{at}.shared.user_id")
        shared = msgspec.structs.replace(shared, user_id=key(shared.user_id, f"{at}.shared.user_id"))
    if by != "user":
        return msgspec.structs.replace(rule, shared=shared)
    among = [key(name, f"{at}.among[{i}]") for i, name in enumerate(rule.among)]
    percents = {key(name, f"{at}.percents"): percent for name, percent in rule.percents.items()}
    return msgspec.structs.replace(rule, shared=shared, among=among, percents=percents)


def conditions(rules: Sequence[AllocationRule]) -> list[Condition]:
    """What the store looks for: each rule's columns with LIKE patterns, None where the column must be empty."""
    return [dict(_columns(rule)) for rule in rules]


def _columns(rule: AllocationRule) -> Iterator[tuple[str, str | None]]:
    for name, value in msgspec.structs.asdict(rule.shared).items():
        if value is not msgspec.UNSET:
            yield name, None if value is None else like_pattern(value)


def _shown(row: AllocationRulesRow) -> AllocationRules:
    by, _, tag = row.allocated_by.partition(":")
    return AllocationRules(
        by=by,
        tag=tag if by == "tag" else None,
        rules=msgspec.convert(row.rules, list[AllocationRule]),
        version=row.version,
        updated_at=row.updated_at,
        updated_by=row.updated_by,
    )


ROUTES = (
    route(signals.SET_ALLOCATION_RULES, set_allocation_rules),
    route(signals.LIST_ALLOCATION_RULES, list_allocation_rules),
)
