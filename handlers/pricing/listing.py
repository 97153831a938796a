"""``list_price_rules``: the org's rules with their history, then those that the agent has for every org. Reads only."""

from datetime import datetime
from typing import Annotated, Final

from msgspec import Meta

from handlers.context import Context
from handlers.cost.defaults import DEFAULTS
from handlers.cursor import decode_cursor, page
from handlers.moment import in_utc
from handlers.pricing.versions import of_agent, shown
from schemas.pricing import ListPriceRules, PriceRuleList, PriceRuleVersion
from signals import pricing as signals
from signals import route
from store import budgets as budget_store
from store import price_listing
from store.pool import Connection

_ORIGINS: Final = ("org", "agent", "default")
_Position = tuple[Annotated[int, Meta(ge=0, le=2)], str, Annotated[int, Meta(ge=0, le=1_000_000)]]
# Where a page of an org's own rules begins.
_FIRST: Final = (0, "", 0)


async def list_price_rules(ctx: Context, request: ListPriceRules) -> PriceRuleList:
    """Rules in force at a time, or now and later, or with ``history`` all versions: the org's, agent's, defaults."""
    position = decode_cursor(request.cursor, _Position) or _FIRST
    async with ctx.database.connection() as connection:
        now = await budget_store.clock(connection)
        at = in_utc(request.at, "at") or now
        found = await _of_org(ctx, connection, request, at, position)
    if len(found) <= request.limit:
        found += [v for v in _of_agent(ctx, request, at) if _key(v) > position]
    rules, next_cursor = page(found[: request.limit + 1], limit=request.limit, key=_key)
    return PriceRuleList(rules=rules, next_cursor=next_cursor)


def _key(version: PriceRuleVersion) -> tuple[int, str, int]:
    return _ORIGINS.index(version.origin), version.name, version.version


async def _of_org(
    ctx: Context, connection: Connection, request: ListPriceRules, at: datetime, position: tuple[int, str, int]
) -> list[PriceRuleVersion]:
    origin, *after = position
    if origin > 0 or request.origin not in (None, "org"):
        return []
    name, version = str(after[0]), int(after[1])
    found = await price_listing.page_rules(
        connection,
        ctx.org,
        name=request.name,
        layer=request.layer,
        at=at,
        history=request.history,
        coming=request.at is None,
        after=(name, version),
        limit=request.limit + 1,
    )
    return [shown(row, at, replaced_at) for row, replaced_at in found]


def _of_agent(ctx: Context, request: ListPriceRules, at: datetime) -> list[PriceRuleVersion]:
    """Few, and in memory: the operator's file and what is shipped, by name."""
    found = [of_agent(rule, "agent", at) for rule in ctx.services.rate_cards.operator_rules]
    found += [of_agent(rule, "default", at) for rule in DEFAULTS]
    states = {"in_force"} if request.at is not None else {"in_force", "scheduled"}
    return sorted(
        (
            version
            for version in found
            if request.origin in (None, version.origin)
            and request.name in (None, version.name)
            and request.layer in (None, version.layer)
            and (request.history or version.state in states)
        ),
        key=_key,
    )


ROUTES = (route(signals.LIST_PRICE_RULES, list_price_rules),)
