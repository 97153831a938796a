"""``reconcile_bill`` and ``list_bills``: a provider's bill, imported part by part, beside our own usage.

A part is stored whole or not at all. The comparison is made in one snapshot of the database and stored with the bill.
"""

import asyncio
import dataclasses
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Any, Final

import msgspec

from handlers import audit
from handlers.context import Context
from handlers.cost.resolve import provider_key
from handlers.cursor import decode_cursor, encode_cursor, fitting, page
from handlers.enforcer.catalogue import EVERY
from handlers.finance import bill_suggest
from handlers.finance.bill_compare import Cell, Tolerance, compare, compared, row_of
from handlers.finance.bill_formats import MAKERS, Defaults, Parsed, parse
from handlers.finance.bill_lines import CALLS
from handlers.finance.bill_sides import TOKEN_KINDS, Sides, add_ours, spellings, their_side
from schemas.bill import (
    Bill,
    BillList,
    BillRow,
    BillSummary,
    ComparedCost,
    ListBills,
    ReasonSum,
    ReconcileBill,
    ReconciledBill,
    Suggestion,
)
from schemas.codec import prefixed
from schemas.currencies import known_currency
from schemas.errors import SignalError, conflict, invalid, not_found
from schemas.money import AmountError, format_cost, parse_cost
from schemas.usage import UsageFilters
from signals import bill as signals
from signals import route
from store import bills as bill_store
from store.bills import BillRecord, LineRecord, UsageScope
from store.pool import Connection
from store.sql import like_pattern

_AT = Annotated[datetime, msgspec.Meta(tz=True)]
_Older = tuple[_AT, str]
_Position = tuple[Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]]
_ENCODE: Final = msgspec.json.Encoder().encode
# A bill of more days is several bills.
DAYS_MAX: Final = 400
# Days for which single calls are looked up, and the calls of each.
VOIDS_MAX: Final = 10
EVENTS_MAX: Final = 100
# Names looked up before others are served; one that nothing prices takes 0.2 ms.
NAMES_AT_ONCE: Final = 10


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a bill is compared, kept with it."""

    filters: UsageFilters = UsageFilters()
    compare: str = "net"
    tolerance: int = 10_000_000
    token_tolerance: int = 0


async def reconcile_bill(ctx: Context, request: ReconcileBill) -> ReconciledBill:
    """Import a part, compare where the bill is complete, and reply the first page; or the page after a cursor."""
    if request.cursor is not None:
        return await _page(ctx, request, duplicate=False)
    duplicate = False
    if request.csv is not None:
        duplicate = await _import(ctx, request)
    else:
        await _choose(ctx, request)
    record = await _found(ctx, request.bill_id)
    if record.status == "complete":
        await _reconcile(ctx, record)
    elif request.csv is None:
        raise conflict("parts of the bill are still to come", field="bill_id")
    return await _page(ctx, request, duplicate=duplicate)


async def list_bills(ctx: Context, request: ListBills) -> BillList:
    """Imported bills, newest first."""
    before = decode_cursor(request.cursor, _Older)
    async with ctx.database.connection() as connection:
        records = await bill_store.listing(
            connection,
            ctx.org,
            provider=None if request.provider is None else provider_key(request.provider),
            status=request.status,
            before=before,
            limit=request.limit + 1,
        )
    bills, cursor = page([_bill(r) for r in records], limit=request.limit, key=lambda b: (b.imported_at, b.bill_id))
    return BillList(bills=bills, next_cursor=cursor)


async def _found(ctx: Context, bill_id: str) -> BillRecord:
    async with ctx.database.connection() as connection:
        record = await bill_store.find(connection, ctx.org, bill_id)
    if record is None:
        raise not_found("there is no bill of this id", field="bill_id")
    return record


# Importing.


async def _import(ctx: Context, request: ReconcileBill) -> bool:
    """Store a part; whether it was there already."""
    assert request.csv is not None
    limits = ctx.services.limits
    settings = _settings(ctx, request)
    content = hashlib.blake2b(
        _ENCODE([request.csv, request.columns, request.input_includes_cache, request.currency]), digest_size=16
    ).digest()
    defaults = Defaults(known_currency(request.currency), request.columns, request.input_includes_cache)
    # Reading a large file takes its time; decisions go on meanwhile.
    parsed = await asyncio.to_thread(
        parse, request.csv, wanted=request.format, defaults=defaults, lines_max=limits.bill_lines_max
    )
    _check_days(parsed)
    provider = _provider(request, parsed)
    async with ctx.database.transaction() as connection:
        before = await bill_store.lock(connection, ctx.org, request.bill_id)
        if before is None and await bill_store.count(connection, ctx.org) >= limits.bills_max:
            raise conflict(f"there are {limits.bills_max} bills already", field="bill_id")
        if not (request.replace and request.part == 1):
            before = None
        if before is not None:
            await bill_store.reset(connection, ctx.org, request.bill_id)
        plain = msgspec.to_builtins(settings)
        await bill_store.open_bill(
            connection, ctx.org, request.bill_id, provider=provider, settings=plain, by=ctx.caller.actor
        )
        locked = await bill_store.lock(connection, ctx.org, request.bill_id)
        assert locked is not None
        known = await bill_store.part_hash(connection, ctx.org, request.bill_id, request.part)
        if known is not None and known != content:
            raise conflict(f"part {request.part} was sent before, with other content", field="part")
        if locked[0] != provider:
            raise conflict(f"the bill is of {locked[0]!r}", field="provider")
        await bill_store.choose(connection, ctx.org, request.bill_id, plain)
        stored = None
        if known is None:
            stored = await _store_part(
                ctx, connection, request, parsed, content=content, complete=locked[1] == "complete"
            )
        if before is not None:
            await _record(ctx, connection, request, "deleted", {"provider": before[0], "status": before[1]}, None)
        if stored is not None:
            await _record(ctx, connection, request, "imported", None, stored)
        return known is not None


async def _record(
    ctx: Context, connection: Connection, request: ReconcileBill, action: str, before: object, after: object
) -> None:
    await audit.record(
        connection, ctx.caller, action=action, entity="bill", entity_id=request.bill_id, before=before, after=after
    )


async def _store_part(
    ctx: Context, connection: Connection, request: ReconcileBill, parsed: Parsed, *, content: bytes, complete: bool
) -> dict[str, Any] | None:
    """Store a part; what the audit trail says of a bill that is complete with it."""
    if complete:
        raise conflict("the bill is complete; start again with part 1 and replace", field="part")
    lines = [
        (*key, line.quantity, line.cost, line.cells, parsed.decimals) for key, line in sorted(parsed.lines.items())
    ]
    total = len(lines) + await bill_store.line_count(connection, ctx.org, request.bill_id)
    if total > ctx.services.limits.bill_lines_max:
        raise invalid(f"makes more than {ctx.services.limits.bill_lines_max} different lines", field="csv")
    await bill_store.put_part(
        connection,
        ctx.org,
        request.bill_id,
        part=request.part,
        content_hash=content,
        format_=parsed.format,
        lines=lines,
    )
    if not request.last:
        return None
    present = await bill_store.parts(connection, ctx.org, request.bill_id)
    if present != list(range(1, request.part + 1)):
        absent = sorted(set(range(1, request.part + 1)) - set(present))
        what = f"part {absent[0]} has not come" if absent else f"part {present[-1]} has come, after this one"
        raise conflict(what, field="part")
    await bill_store.complete(connection, ctx.org, request.bill_id)
    return {"parts": len(present), "lines": total, "sha": content.hex()}


def _provider(request: ReconcileBill, parsed: Parsed) -> str:
    """Whose bill it is: as stated, or the maker of such files. A reseller may use a maker's format, too."""
    stated = None if request.provider is None else provider_key(request.provider)
    maker = MAKERS.get(parsed.format)
    if stated is None and maker is None:
        raise invalid("is required for a file that does not say whose it is", field="provider")
    return stated or maker or ""


def _check_days(parsed: Parsed) -> None:
    days = [key[0] for key in parsed.lines]
    if not days:
        raise invalid("has no line that states anything", field="csv")
    if (max(days) - min(days)).days >= DAYS_MAX:
        raise invalid(f"covers {min(days)} to {max(days)}; a bill covers at most {DAYS_MAX} days", field="csv")


def _settings(ctx: Context, request: ReconcileBill) -> Settings:
    try:
        tolerance = parse_cost(request.tolerance)
    except AmountError as error:
        raise invalid(str(error), field="tolerance") from None
    filters = request.filters
    if filters.provider is not None or filters.model is not None:
        name = "provider" if filters.provider is not None else "model"
        raise invalid("is the bill's own", field=f"filters.{name}")
    if filters.user_id is not None:
        filters = msgspec.structs.replace(filters, user_id=_user(ctx, filters.user_id))
    return Settings(
        filters=filters, compare=request.compare, tolerance=tolerance, token_tolerance=request.token_tolerance
    )


def _user(ctx: Context, name: str) -> str:
    if EVERY in name:
        raise invalid("user names are not stored with usage, so a pattern finds none", field="filters.user_id")
    try:
        return ctx.user_key(name)
    except SignalError as error:
        raise prefixed(error, "filters") from None


async def _choose(ctx: Context, request: ReconcileBill) -> None:
    """Compare a bill that is there in another way from now on."""
    settings = _settings(ctx, request)
    async with ctx.database.transaction() as connection:
        if await bill_store.lock(connection, ctx.org, request.bill_id) is None:
            raise not_found("there is no bill of this id", field="bill_id")
        await bill_store.choose(connection, ctx.org, request.bill_id, msgspec.to_builtins(settings))


# Comparing.


async def _reconcile(ctx: Context, record: BillRecord) -> None:
    settings = msgspec.convert(record.settings, Settings)
    await ctx.services.catalogue(ctx.org)
    async with (
        ctx.database.connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        lines = await bill_store.lines(connection, ctx.org, record.bill_id)
        scope = _scope(ctx, record, settings, lines)
        calls = await bill_store.our_calls(connection, scope)
        kinds = await bill_store.our_kinds(connection, scope)
        names = await _names(
            ctx, record.provider, scope.end, {line.model for line in lines} | {r["model"] for r in calls}
        )
        sides, cells = await asyncio.to_thread(_compared, settings, lines, calls, kinds, names)
        suggestions = await _suggestions(connection, record, scope, sides, cells)
    if len(cells) > ctx.services.limits.bill_rows_max:
        raise invalid(f"has more than {ctx.services.limits.bill_rows_max} days and models to compare", field="csv")
    summary, rows = await asyncio.to_thread(_result, sides, cells, suggestions, lines)
    async with ctx.database.transaction() as connection:
        await bill_store.lock(connection, ctx.org, record.bill_id)
        await bill_store.put_result(
            connection,
            ctx.org,
            record.bill_id,
            summary=msgspec.to_builtins(summary),
            rows=rows,
        )


def _scope(ctx: Context, record: BillRecord, settings: Settings, lines: Sequence[LineRecord]) -> UsageScope:
    stated = msgspec.structs.asdict(settings.filters)
    start, end = min(line.day for line in lines), max(line.day for line in lines) + timedelta(days=1)
    return UsageScope(
        org=ctx.org,
        start=datetime.combine(start, time(0, tzinfo=UTC)),
        end=datetime.combine(end, time(0, tzinfo=UTC)),
        provider=record.provider,
        filters={name: like_pattern(value) for name, value in stated.items() if value is not None},
    )


async def _names(ctx: Context, provider: str, end: datetime, found: set[str]) -> dict[str, str]:
    """The name under which each model is compared: that of the price it has as the bill ends, or its own."""
    most = ctx.services.limits.bill_models_max
    if len(found) > most:
        raise invalid(f"has more than {most} models to compare, with those of our usage", field="csv")
    at = end - timedelta(seconds=1)
    names: dict[str, str] = {}
    for number, name in enumerate(sorted(found)):
        names[name] = _priced_name(ctx, provider, name, at)
        if number % NAMES_AT_ONCE == NAMES_AT_ONCE - 1:
            await asyncio.sleep(0)
    return names


def _priced_name(ctx: Context, provider: str, name: str, at: datetime) -> str:
    for spelling in spellings(name):
        card = ctx.prices.resolve(provider, spelling, at)
        if card is not None:
            return card.model
    return name.strip()


def _compared(
    settings: Settings,
    lines: Sequence[LineRecord],
    calls: Sequence[dict[str, Any]],
    kinds: Sequence[dict[str, Any]],
    names: dict[str, str],
) -> tuple[Sides, list[Cell]]:
    sides = their_side(lines, names, currency=None)
    add_ours(sides, calls, kinds, names, net=settings.compare == "net")
    return sides, compare(sides, Tolerance(settings.tolerance, settings.token_tolerance))


async def _suggestions(
    connection: Connection, record: BillRecord, scope: UsageScope, sides: Sides, cells: Sequence[Cell]
) -> list[Suggestion]:
    differing = [cell for cell in cells if not cell.matched]
    told = bill_suggest.prices(record.bill_id, record.provider, sides, differing)
    told += bill_suggest.missing(record.bill_id, record.provider, sides, differing)
    unbilled = [cell for cell in differing if any(why.code == "not_billed" for why in cell.reasons)]
    for cell in unbilled[:VOIDS_MAX]:
        if cell.ours.calls > EVENTS_MAX:
            continue
        start = datetime.combine(cell.key[0], time(0, tzinfo=UTC))
        of_day = dataclasses.replace(scope, start=start, end=start + timedelta(days=1))
        events: list[dict[str, Any]] = []
        for name in sorted(cell.ours.names):
            events += await bill_store.our_events(connection, of_day, name, limit=EVENTS_MAX)
        found = bill_suggest.voids(record.bill_id, cell, events)
        if found is not None:
            told.append(found)
    return told[: bill_suggest.SUGGESTIONS_MAX]


def _result(
    sides: Sides, cells: Sequence[Cell], suggestions: list[Suggestion], lines: Sequence[LineRecord]
) -> tuple[BillSummary, list[bytes]]:
    """What is stored of a comparison: its summary, and its rows as JSON."""
    rows = [row_of(sides, cell) for cell in cells]
    return _summary(sides, cells, rows, suggestions, lines), [_ENCODE(row) for row in rows]


def _summary(
    sides: Sides,
    cells: Sequence[Cell],
    rows: Sequence[BillRow],
    suggestions: list[Suggestion],
    lines: Sequence[LineRecord],
) -> BillSummary:
    ours = sum(ours.cost for ours in sides.ours.values())
    theirs = sum(theirs.cost or 0 for theirs in sides.theirs.values())
    known = not sides.other_currencies and sides.states_costs
    days = [line.day for line in lines]
    return BillSummary(
        period_start=min(days, default=None),
        period_end=max(days) + timedelta(days=1) if days else None,
        currency=sides.currency,
        rows=len(rows),
        matched=sum(cell.matched for cell in cells),
        calls=compared(
            sum(ours.calls for ours in sides.ours.values()),
            sum(theirs.calls or 0 for theirs in sides.theirs.values()) if sides.states_calls else None,
        ),
        tokens=compared(
            _tokens(ours.quantities for ours in sides.ours.values()),
            _tokens(theirs.quantities for theirs in sides.theirs.values()) if sides.states_tokens else None,
        ),
        cost=ComparedCost(
            ours=format_cost(ours),
            theirs=format_cost(theirs) if sides.states_costs else None,
            difference=format_cost(theirs - ours) if known else None,
        ),
        reasons=_reasons(rows),
        suggestions=suggestions,
    )


def _tokens(sides: Any) -> int:
    return sum(quantity for counts in sides for kind, quantity in counts.items() if kind in TOKEN_KINDS - {CALLS})


def _reasons(rows: Sequence[BillRow]) -> list[ReasonSum]:
    counted: dict[Any, tuple[int, int]] = {}
    for row in rows:
        seen: set[str] = set()
        for why in row.reasons:
            number, nanos = counted.get(why.code, (0, 0))
            amount = 0 if why.amount is None else _nanos(why.amount)
            counted[why.code] = (number + (why.code not in seen), nanos + amount)
            seen.add(why.code)
    told = [ReasonSum(code=code, rows=n, amount=format_cost(nanos)) for code, (n, nanos) in counted.items()]
    return sorted(told, key=lambda reason: (-abs(counted[reason.code][1]), reason.code))


def _nanos(text: str) -> int:
    return -parse_cost(text[1:]) if text.startswith("-") else parse_cost(text)


# The reply.


async def _page(ctx: Context, request: ReconcileBill, *, duplicate: bool) -> ReconciledBill:
    position = decode_cursor(request.cursor, _Position)
    record = await _found(ctx, request.bill_id)
    async with ctx.database.connection() as connection:
        found = await bill_store.result_rows(
            connection, ctx.org, request.bill_id, after=position[0] if position else 0, limit=request.limit + 1
        )
    rows = [msgspec.json.decode(content, type=BillRow) for _, content in found]
    taken = fitting(rows[: request.limit])
    more = len(taken) < len(rows)
    return ReconciledBill(
        bill=_bill(record),
        duplicate=duplicate,
        rows=taken,
        next_cursor=encode_cursor(found[len(taken) - 1][0]) if more else None,
    )


def _bill(record: BillRecord) -> Bill:
    return Bill(
        bill_id=record.bill_id,
        provider=record.provider,
        status="complete" if record.status == "complete" else "open",
        parts=record.parts,
        formats=msgspec.convert(list(record.formats), Any),
        lines=record.lines,
        imported_at=record.imported_at,
        imported_by=record.imported_by,
        compared_at=record.compared_at,
        summary=None if record.summary is None else msgspec.convert(record.summary, BillSummary, strict=False),
    )


ROUTES = (
    route(signals.RECONCILE_BILL, reconcile_bill),
    route(signals.LIST_BILLS, list_bills),
)
