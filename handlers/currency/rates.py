"""``get_exchange_rates`` and ``update_exchange_rates``: what the org knows of rates, and what it states itself.

Rates are never overwritten. What budgets froze does not move by a change here; windows that begin later follow it.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Final

from handlers import audit
from handlers.context import Context
from handlers.currency.exchange import Exchange, MissingRate, valued
from handlers.currency.moves import moved
from handlers.currency.seed import RateFileError, load_file, parse_rate, read
from handlers.currency.told import shown_rate
from handlers.enforcer.transaction import catalogue_change
from handlers.events import cloud_event
from schemas.currencies import known_currency
from schemas.errors import conflict, invalid
from schemas.exchange import (
    ExchangeRate,
    ExchangeRates,
    ExchangeRatesChanged,
    ExchangeRatesUpdated,
    GetExchangeRates,
    MovedRate,
    UpdateExchangeRates,
)
from signals import exchange as signals
from signals import route
from store import budgets as budget_store
from store import exchange as exchange_store
from store import outbox as outbox_store
from store.exchange import DatedRate
from store.pool import Connection

ENTITY: Final = "exchange_rates"
MOVED_SHOWN_MAX: Final = 20
PAIRS_TOLD_MAX: Final = 200
# The first day of the euro; nobody called a model before.
_FIRST_DAY: Final = date(1999, 1, 1)


async def get_exchange_rates(ctx: Context, request: GetExchangeRates) -> ExchangeRates:
    """What one unit of a currency is worth in others; those nobody knows are listed as missing."""
    if request.base is not None:
        known_currency(request.base, field="base")
    wanted = [known_currency(quote, field=f"quotes[{i}]") for i, quote in enumerate(request.quotes)]
    async with ctx.database.connection() as connection:
        exchange, own = await ctx.services.reporting(connection, ctx.org)
    base = request.base or own
    rates: list[ExchangeRate] = []
    missing: list[str] = []
    for quote in dict.fromkeys(wanted or [code for code in exchange.quoted if code != base]):
        try:
            rates.append(shown_rate(exchange.rate(base, quote, on=request.on)))
        except MissingRate:
            missing.append(quote)
    return ExchangeRates(base=base, on=request.on, rates=rates, missing=missing, revision=exchange.revision)


async def update_exchange_rates(ctx: Context, request: UpdateExchangeRates) -> ExchangeRatesUpdated:
    """Store the org's own rates. Raises SignalError naming the field; nothing is stored then."""
    given = [name for name in ("rates", "csv", "file") if getattr(request, name)]
    if len(given) != 1:
        raise invalid("give rates, csv or file: exactly one of them", field=given[1] if given else "rates")
    if request.file:
        return await _from_file(ctx)
    if request.source is None or not request.source.strip():
        raise invalid("is required: who says so", field="source")
    source = request.source.strip()
    # Reading a large table takes its time; decisions go on meanwhile.
    stated = await asyncio.to_thread(_stated, ctx, request)

    async def work(connection: Connection) -> ExchangeRatesUpdated:
        now = await budget_store.clock(connection)
        exchange = await ctx.services.books.refresh(connection, ctx.org)
        rates = _dated(stated, request, now)
        new = [rate for rate in rates if exchange.own(rate.base, rate.quote, rate.as_of) != rate.rate]
        found = await _check(ctx, connection, exchange, new, request)
        if not new:
            return ExchangeRatesUpdated(stored=0, known=len(rates), revision=None, moved=[])
        revision = await exchange_store.lock(connection)
        await exchange_store.add(connection, ctx.org, new, revision=revision, source=source, at=now)
        await _tell(ctx, connection, new, revision=revision, source=source, at=now, reason=request.reason)
        return ExchangeRatesUpdated(
            stored=len(new), known=len(rates) - len(new), revision=revision, moved=found[:MOVED_SHOWN_MAX]
        )

    return await catalogue_change(ctx, work)


async def _from_file(ctx: Context) -> ExchangeRatesUpdated:
    """What is new in the operator's file; it is for every org, so no org may confirm what looks wrong in it."""
    if ctx.services.exchange_rates_file is None:
        raise conflict("the agent has no exchange_rates_file", field="file")
    try:
        loaded = await load_file(ctx.services)
    except (RateFileError, OSError) as error:
        text = str(error) if isinstance(error, RateFileError) else "the file cannot be read"
        raise conflict(f"exchange_rates_file: {text}", field="file") from None
    return ExchangeRatesUpdated(stored=loaded.stored, known=loaded.known, revision=loaded.revision, moved=[])


def _stated(ctx: Context, request: UpdateExchangeRates) -> list[tuple[DatedRate, str]]:
    """What a request states, checked by itself, with the field of each; those of ``rates`` have no day yet."""
    most = ctx.services.limits.exchange_request_rates_max
    found: list[tuple[DatedRate, str]] = []
    if request.csv is not None:
        if request.as_of is not None:
            raise invalid("is of rates: a table has its own days", field="as_of")
        try:
            for rate in read(request.csv):
                found.append((rate, "csv"))
                if len(found) > most:
                    raise invalid(f"has more than {most} rates: send it in parts", field="csv")
        except RateFileError as error:
            raise invalid(str(error), field="csv") from None
        if not found:
            raise invalid("states no rate of a currency there is", field="csv")
    for i, rate in enumerate(request.rates):
        field = f"rates[{i}]"
        base = known_currency(rate.base, field=f"{field}.base")
        quote = known_currency(rate.quote, field=f"{field}.quote")
        if base == quote:
            raise invalid("is the base itself", field=f"{field}.quote")
        try:
            found.append((DatedRate(base, quote, date.max, parse_rate(rate.rate)), field))
        except RateFileError as error:
            raise invalid(str(error), field=f"{field}.rate") from None
    _refuse_twice(found)
    return found


def _refuse_twice(found: Iterable[tuple[DatedRate, str]]) -> None:
    seen: set[tuple[str, str, date]] = set()
    for rate, field in found:
        key = (min(rate.base, rate.quote), max(rate.base, rate.quote), rate.as_of)
        if key in seen:
            raise invalid(f"{rate.base}/{rate.quote} is stated twice for one day", field=field)
        seen.add(key)


def _dated(stated: Sequence[tuple[DatedRate, str]], request: UpdateExchangeRates, now: datetime) -> list[DatedRate]:
    """The same with their days, oldest first. East of here tomorrow has begun already."""
    today = now.date()
    rates = [rate if rate.as_of != date.max else rate._replace(as_of=request.as_of or today) for rate, _ in stated]
    for rate in rates:
        if not _FIRST_DAY <= rate.as_of <= today + timedelta(days=1):
            field = "csv" if request.csv is not None else "as_of"
            raise invalid(f"{rate.as_of} is not a day between {_FIRST_DAY} and today", field=field)
    return sorted(rates, key=lambda rate: (rate.as_of, rate.base, rate.quote))


async def _check(
    ctx: Context, connection: Connection, exchange: Exchange, new: Sequence[DatedRate], request: UpdateExchangeRates
) -> list[MovedRate]:
    """Refuse what would lead in a circle, is too much, or moves too far without ``confirm``; returns what moved far."""
    limits, field = ctx.services.limits, "csv" if request.csv is not None else "rates"
    _refuse_circles(exchange.own_bases(), new, field)
    if await exchange_store.count(connection, ctx.org) + len(new) > limits.exchange_rates_max:
        raise conflict(f"an org keeps at most {limits.exchange_rates_max} rates of its own", field=field)
    found = moved(exchange, new, limits.exchange_move_percent)
    if found and not request.confirm:
        most = found[0]
        text = f"{most.base}/{most.quote} of {most.as_of} moves by {most.percent} % from {most.before} to {most.after}"
        raise conflict(
            f"{text}, more than {limits.exchange_move_percent} %: confirm it if it is right", field="confirm"
        )
    return found


def _refuse_circles(bases: Mapping[str, set[str]], new: Sequence[DatedRate], field: str) -> None:
    """A currency stated in another one that is stated in it, over however many, would be worth two things."""
    known = {currency: set(found) for currency, found in bases.items()}
    for rate in new:
        currency, base = valued(rate.base, rate.quote)
        known.setdefault(currency, set()).add(base)
    for currency, base in sorted({valued(rate.base, rate.quote) for rate in new}):
        seen: set[str] = set()
        ahead = [base]
        while ahead:
            at = ahead.pop()
            if at == currency:
                text = f"{base}/{currency} leads in a circle: {base} is already stated in {currency}; state that pair"
                raise conflict(text, field=field)
            if at not in seen:
                seen.add(at)
                ahead += known.get(at, ())


async def _tell(
    ctx: Context,
    connection: Connection,
    new: Sequence[DatedRate],
    *,
    revision: int,
    source: str,
    at: datetime,
    reason: str | None,
) -> None:
    pairs = sorted({f"{rate.base}/{rate.quote}" for rate in new})
    told = ExchangeRatesChanged(
        actor=ctx.caller.actor,
        revision=revision,
        source=source,
        stored=len(new),
        pairs=pairs[:PAIRS_TOLD_MAX],
        first=new[0].as_of,
        last=new[-1].as_of,
        changed_at=at,
        reason=reason,
    )
    event = cloud_event(ctx.services, ctx.org, signals.CHANGED, told, subject=ctx.org)
    await outbox_store.add(connection, ctx.org, [event])
    rates = [{"base": r.base, "quote": r.quote, "as_of": r.as_of, "rate": f"{r.rate:f}"} for r in new]
    await audit.record(
        connection,
        ctx.caller,
        action="updated",
        entity=ENTITY,
        entity_id=str(revision),
        before=None,
        after={"source": source, "rates": rates},
        reason=reason,
    )


ROUTES = (
    route(signals.GET_EXCHANGE_RATES, get_exchange_rates),
    route(signals.UPDATE_EXCHANGE_RATES, update_exchange_rates),
)
