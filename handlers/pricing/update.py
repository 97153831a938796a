"""``update_pricing``: price rules set or ended, always as another version, under the catalogue lock (R2).

What is recorded does not change by it: past usage is priced anew by ``reprice_usage`` alone.
"""

from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from handlers.context import Context
from handlers.enforcer.transaction import catalogue_change
from handlers.moment import in_utc
from handlers.patterns import EVERY, pattern_matches
from handlers.pricing.preview import preview
from handlers.pricing.told import announce, record
from handlers.pricing.versions import Book, Decided, Writer, decide, shown, warnings
from schemas.errors import conflict, invalid
from schemas.pricing import PriceRuleVersion, PricingChanged, PricingUpdate, UpdatePricing
from signals import pricing as signals
from signals import route
from store import budgets as budget_store
from store import price_listing
from store import prices as price_store
from store.pool import Connection
from store.prices import PriceRuleRow

ENTITY: Final = "price_rule"
Action = Literal["created", "updated", "ended", "reverted"]


async def update_pricing(ctx: Context, request: UpdatePricing) -> PricingUpdate:
    """Add versions of rules or, with ``dry_run``, say what they would have made of past usage.

    Raises SignalError ``invalid_request``, ``not_found`` or ``conflict`` naming the field; then nothing is written.
    """
    if not request.rules and not request.end:
        raise invalid("nothing to do: give rules, or rules to end", field="rules")
    if request.dry_run:
        return await _try(ctx, request)
    if request.preview is not None:
        raise invalid("is of a dry_run", field="preview")

    async def work(connection: Connection) -> PricingUpdate:
        now = await budget_store.clock(connection)
        decided = await _decide(ctx, connection, request, now)
        revision = await price_store.add_rules(connection, ctx.org, [one.after for one in decided])
        told = [_told(ctx, one, now, revision) for one in decided]
        await announce(ctx, connection, told)
        for change in told:
            await record(ctx, connection, change)
        return PricingUpdate(
            applied=True,
            revision=revision,
            rules=[shown(one.after, now) for one in decided],
            warnings=warnings(decided),
        )

    return await catalogue_change(ctx, work)


async def _try(ctx: Context, request: UpdatePricing) -> PricingUpdate:
    """What would be written, and what it would have made of the past; reads only."""
    async with (
        ctx.database.connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        now = await budget_store.clock(connection)
        decided = await _decide(ctx, connection, request, now)
        found = await preview(ctx, connection, request.preview, [one.after for one in decided], now)
        revision = await price_store.revision(connection, ctx.org)
    return PricingUpdate(
        applied=False,
        revision=revision,
        rules=[shown(one.after, now) for one in decided],
        warnings=warnings(decided),
        preview=found,
    )


async def _decide(ctx: Context, connection: Connection, request: UpdatePricing, now: datetime) -> list[Decided]:
    names = sorted({rule.name for rule in request.rules} | {ended.name for ended in request.end})
    most = ctx.services.limits.price_rules_max
    stated = [in_utc(rule.valid_from, f"rules[{i}].valid_from") for i, rule in enumerate(request.rules)]
    since = min([now, *(at for at in stated if at is not None)])
    book = Book(
        newest=await price_listing.newest_rules(connection, ctx.org, names),
        others=await price_listing.rules_from(connection, ctx.org, since, limit=2 * most),
        count=await price_listing.count_rules(connection, ctx.org),
    )
    return decide(request, book, Writer(ctx.org, ctx.caller.actor, now, ctx.new_id), rules_max=most)


def _told(ctx: Context, one: Decided, now: datetime, revision: int) -> PricingChanged:
    return PricingChanged(
        actor=ctx.caller.actor,
        entity=ENTITY,
        entity_id=one.after.name,
        action=one.action,  # pyright: ignore[reportArgumentType]  # Decided as one of these.
        before=None if one.before is None else shown(one.before, now),
        after=shown(one.after, now),
        revision=revision,
        reason=one.after.reason,
    )


def rule_concerns(content: dict[str, Any], scope: dict[str, Any]) -> bool:
    """Whether a change of a rule bears on calls of an alert's scope: it may, unless their model is another one."""
    filters: dict[str, str] = scope.get("filters") or {}
    versions = [content.get(name) for name in ("before", "after")]
    rules = [version["rule"] for version in versions if version and version.get("rule")]
    return any(
        all(_may_meet(rule.get(field, EVERY), filters.get(field, EVERY)) for field in ("provider", "model"))
        for rule in rules
    )


def _may_meet(pattern: str, other: str) -> bool:
    """Whether two patterns may match one name; of two real patterns that is not asked."""
    if EVERY in pattern and EVERY in other:
        return True
    if EVERY in other:
        return pattern_matches(other.lower(), pattern.lower())
    return pattern_matches(pattern.lower(), other.lower())


async def revert_rule(
    ctx: Context, connection: Connection, content: dict[str, Any], at: datetime
) -> tuple[object, object]:
    """Another version, as the rule was before, from now on. Raises SignalError ``conflict`` where it changed since."""
    changed = msgspec.convert(content["after"], PriceRuleVersion)
    rows = await price_listing.newest_rules(connection, ctx.org, [changed.name])
    present = rows.get(changed.name)
    if present is None or present.version != changed.version:
        raise conflict("the price rule has changed since")
    after = _restored(ctx, content, present, at)
    revision = await price_store.add_rules(connection, ctx.org, [after])
    told = _told(ctx, Decided(present, after, "reverted"), at, revision)
    await announce(ctx, connection, [told])
    return told.before, told.after


def _restored(ctx: Context, content: dict[str, Any], present: PriceRuleRow, at: datetime) -> PriceRuleRow:
    """As it was before; nothing where it was not there, or would be over by now."""
    was = None if content["before"] is None else msgspec.convert(content["before"], PriceRuleVersion)
    rule = None if was is None else was.rule
    if rule is not None and rule.valid_to is not None and rule.valid_to <= at:
        rule = None
    # What was only to come by then still comes when it was to come.
    since = at if rule is None or rule.valid_from is None else max(at, rule.valid_from)
    writer = Writer(ctx.org, ctx.caller.actor, at, ctx.new_id)
    reason = f"version {present.version} taken back"
    return writer.version(rule, present, name=present.name, at=since, reason=reason)


ROUTES = (route(signals.UPDATE_PRICING, update_pricing),)
