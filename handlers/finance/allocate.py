"""``allocate_costs``: reads a period's sums, splits them, and says how. Writes nothing."""

from bisect import bisect_right
from dataclasses import dataclass

from handlers.context import Context
from handlers.cursor import decode_cursor, encode_cursor
from handlers.finance.allocation import Allocated, Pool, allocate
from handlers.finance.aside import aside
from handlers.finance.conversion import Conversion, conversion_for
from handlers.finance.paging import fitting_beside
from handlers.finance.period import Period, period_of
from handlers.finance.rules import checked_rules, conditions, rules_key, stored_rules
from handlers.finance.shares import percent_text, whole
from schemas.allocation import (
    AllocateCosts,
    AllocatedCost,
    AllocatedShare,
    Allocation,
    AllocationRule,
    SharedCost,
    UnallocatedCost,
)
from schemas.errors import SignalError
from schemas.money import format_cost
from signals import finance as signals
from signals import route
from store import finance as finance_store
from store.finance import BorneSum
from store.pool import Connection


async def allocate_costs(ctx: Context, request: AllocateCosts) -> Allocation:
    """Who bears a period's cost. Adjustments are in it, in the period of the usage they correct."""
    period = period_of(request)
    key = rules_key(request.by, request.tag)
    given = None if request.shared is None else checked_rules(ctx, request.by, request.shared, "shared")
    position = decode_cursor(request.cursor, tuple[int, str])
    conversion = await conversion_for(ctx, request.currency, period.last_day)
    async with ctx.database.connection() as connection:
        version = None
        rules = given
        if rules is None:
            rules, version = await stored_rules(connection, ctx.org, key)
        sums = await borne_sums(ctx, connection, period, request.by, request.tag, rules)
    split = await aside(ctx, lambda: _split(sums, rules, conversion))
    after = 0 if position is None else bisect_right(split.places, position)
    wanted = [entity for _, entity in split.places[after : after + request.limit]]
    shown = (_bearer(entity, split.result, rules) for entity in wanted)
    items = await aside(ctx, lambda: fitting_beside(split.shared, shown))
    ends = after + len(items)
    cursor = encode_cursor(*split.places[ends - 1]) if ends < len(split.places) else None
    return _reply(request, period, conversion, split, version, items, cursor)


@dataclass(frozen=True, slots=True)
class _Split:
    """What was split, and where each entity is in the list: the dearest first, then by name."""

    result: Allocated
    places: list[tuple[int, str]]
    shared: list[SharedCost]
    unpriced: int


def _split(sums: list[BorneSum], rules: list[AllocationRule], conversion: Conversion) -> _Split:
    for found in sums:
        conversion.saw(found.currency, found.cost)
    rates = {currency: conversion.rate(currency) for currency in {found.currency for found in sums}}
    result = allocate(sums, rules, rates.__getitem__)
    places = sorted((-bearer.cost, entity) for entity, bearer in result.bearers.items())
    shared = [_shared(rule, number, result.pools[number], result) for number, rule in enumerate(rules)]
    return _Split(result, places, shared, sum(borne.unpriced for borne in sums))


async def borne_sums(
    ctx: Context, connection: Connection, period: Period, by: str, tag: str | None, rules: list[AllocationRule]
) -> list[BorneSum]:
    """What everybody used, by shared cost and currency. Raises SignalError ``too_large`` beyond the limit."""
    most = ctx.services.limits.allocation_rows_max
    sums = await finance_store.borne(
        connection,
        ctx.org,
        start=period.start,
        end=period.end,
        by=by,
        tag=tag,
        shared=conditions(rules),
        limit=most,
    )
    if len(sums) > most:
        raise SignalError("too_large", f"more than {most} to allocate to; take a shorter period", field="by")
    return sums


def _bearer(entity: str, result: Allocated, rules: list[AllocationRule]) -> AllocatedCost:
    bearer, pools = result.bearers[entity], result.pools
    use = bearer.use
    shares = [
        AllocatedShare(
            rule=rules[number].name,
            cost=format_cost(part.cost),
            list_cost=format_cost(part.list_cost),
            percent=percent_text(pools[number].ratio(entity), 1),
        )
        for number, part in sorted(bearer.shares.items())
    ]
    return AllocatedCost(
        entity_id=entity,
        cost=format_cost(bearer.cost),
        list_cost=format_cost(bearer.list_cost),
        direct=format_cost(bearer.direct.cost),
        direct_list=format_cost(bearer.direct.list_cost),
        shares=shares,
        percent=percent_text(bearer.cost, result.total),
        requests=use.requests,
        total_tokens=use.tokens,
        unpriced_requests=use.unpriced,
    )


def _shared(rule: AllocationRule, number: int, pool: Pool, result: Allocated) -> SharedCost:
    given = sum(b.shares[number].cost for b in result.bearers.values() if number in b.shares)
    given_list = sum(b.shares[number].list_cost for b in result.bearers.values() if number in b.shares)
    return SharedCost(
        rule=rule.name,
        split=rule.split,
        cost=format_cost(given + pool.rest.cost),
        list_cost=format_cost(given_list + pool.rest.list_cost),
        requests=pool.use.requests,
        total_tokens=pool.use.tokens,
        allocated=format_cost(given),
        unallocated=format_cost(pool.rest.cost),
        entities=len(pool.weights),
        unpriced_requests=pool.use.unpriced,
        reason=pool.reason if whole(pool.use.cost) else None,
    )


def _unallocated(result: Allocated) -> UnallocatedCost:
    rest = sum(pool.rest.cost for pool in result.pools)
    rest_list = sum(pool.rest.list_cost for pool in result.pools)
    return UnallocatedCost(
        cost=format_cost(result.unattributed.cost + rest),
        list_cost=format_cost(result.unattributed.list_cost + rest_list),
        unattributed=format_cost(result.unattributed.cost),
        not_shared_out=format_cost(rest),
        requests=result.nobody.requests,
        total_tokens=result.nobody.tokens,
        unpriced_requests=result.nobody.unpriced,
    )


def _reply(
    request: AllocateCosts,
    period: Period,
    conversion: Conversion,
    split: _Split,
    version: int | None,
    items: list[AllocatedCost],
    cursor: str | None,
) -> Allocation:
    result, unpriced = split.result, split.unpriced
    rates = conversion.told()
    warnings = [f"the rate {rate.currency}/{conversion.currency} is of {rate.as_of}" for rate in rates if rate.stale]
    if unpriced:
        warnings.append(f"{unpriced} requests have no price: their cost is not known, and not in here")
    return Allocation(
        period_start=period.start,
        period_end=period.end,
        by=request.by,
        tag=request.tag,
        currency=conversion.currency,
        total=format_cost(result.total),
        total_list=format_cost(result.total_list),
        allocated=format_cost(-sum(cost for cost, _ in split.places)),
        entities=len(result.bearers),
        allocations=items,
        unallocated=_unallocated(result),
        shared=split.shared,
        rules_version=version,
        currencies=rates,
        unpriced_requests=unpriced,
        warnings=warnings,
        next_cursor=cursor,
    )


ROUTES = (route(signals.ALLOCATE_COSTS, allocate_costs),)
