"""``project_costs``: a plan, at the org's own prices. Records nothing."""

from dataclasses import dataclass
from datetime import date, timedelta
from fractions import Fraction
from typing import Final

from handlers.context import Context
from handlers.currency.exchange import MissingRate
from handlers.enforcer.calendar import zone
from handlers.finance.aside import aside
from handlers.finance.conversion import conversion_for
from handlers.finance.needed import budgets_of
from handlers.finance.projected import Plan, counted
from handlers.finance.projection_reply import projection
from handlers.finance.scenario import Message, calls_of, months_later, stretches
from handlers.finance.shares import HUNDRED, percent_of, percent_text, whole
from handlers.moment import in_utc
from handlers.tracker.query import usage_query
from schemas.base import ATTRIBUTION_FIELDS
from schemas.codec import prefixed
from schemas.errors import SignalError, invalid, not_found
from schemas.projection import ObservedTokens, ProjectCosts, Projection
from signals import finance as signals
from signals import route
from store import finance as finance_store
from store.usage import UsageQuery

_FIRST_YEAR: Final = 2000
_LAST_YEAR: Final = 2200
_OBSERVED_DAYS: Final = 30
_PERCENTILES: Final = {"mean": 0.5, "p50": 0.5, "p95": 0.95}


@dataclass(frozen=True, slots=True)
class _Given:
    """What a message has, what part of what is sent again is cached, and where that comes from."""

    message: Message
    cached: Fraction
    calls: int | None
    assumptions: tuple[str, ...] = ()


async def project_costs(ctx: Context, request: ProjectCosts) -> Projection:
    """What the plan would cost, with the arithmetic. Nothing without a price counts as free."""
    first, end = _horizon(ctx, request)
    seen = None if request.observed is None else _seen_query(ctx, request.observed)
    _check(request)
    scope = _scope(ctx, request)
    catalogue = await ctx.services.catalogue(ctx.org)
    conversion = await conversion_for(ctx, request.currency, None)
    given = await _given(ctx, request, seen)
    calls = calls_of(
        given.message,
        messages=request.messages_per_conversation,
        growing=request.history == "growing",
        cached=given.cached,
        written=percent_of(request.cache_write_percent),
    )
    growth = Fraction(request.growth_percent_per_month) / HUNDRED
    months = stretches(first, end, zone(request.timezone), growth)
    hours = sorted(set(request.hours)) or list(range(24))
    plan = Plan(calls, request.conversations_per_day, months, hours, ctx.prices, conversion.rate)
    models = [plan.looked_up(share) for share in request.models]
    found = await aside(ctx, lambda: counted(plan, models))
    exchange = await ctx.services.exchange(ctx.org)

    def into(currency: str) -> Fraction | None:
        try:
            return exchange.rate(conversion.currency, currency).value
        except MissingRate:
            return None

    budgets = budgets_of(catalogue, scope, plan, models, found, hours=len(hours), into=into)
    any_volume = any(part.volumes for model in models for part in model.parts)
    assumptions = [*_assumptions(request, given, any_volume), *given.assumptions]
    return projection(plan, models, found, conversion, budgets, assumptions, given.calls)


def _check(request: ProjectCosts) -> None:
    """Refuse what cannot be. Raises SignalError naming the field."""
    total = sum((Fraction(share.percent) for share in request.models), Fraction(0))
    if total != HUNDRED:
        raise invalid(f"the models' percentages must sum to 100, not {float(total):g}", field="models")
    if Fraction(request.growth_percent_per_month) < -HUNDRED:
        raise invalid("cannot be below -100: nothing shrinks by more than all", field="growth_percent_per_month")
    places = [("cached_percent", request.cached_percent), ("cache_write_percent", request.cache_write_percent)]
    places += [(f"models[{i}].batch_percent", share.batch_percent) for i, share in enumerate(request.models)]
    for field, percent in places:
        if Fraction(percent) > HUNDRED:
            raise invalid("cannot be above 100", field=field)
    if (request.tokens is None) == (request.observed is None):
        text = "what a message has is needed: tokens, or the calls to observe"
        raise invalid(text if request.tokens is None else "is not wanted beside tokens", field=_tokens_field(request))
    if request.observed is not None and request.history == "growing":
        raise invalid("observed prompts hold their history already", field="history")
    if request.tokens is not None and request.tokens.reasoning > request.tokens.completion:
        raise invalid("is part of completion and exceeds it", field="tokens.reasoning")


def _tokens_field(request: ProjectCosts) -> str:
    return "tokens" if request.tokens is None else "observed"


def _horizon(ctx: Context, request: ProjectCosts) -> tuple[date, date]:
    """First day, and the day after the last, in the request's time zone."""
    if request.months is not None and request.days is not None:
        raise invalid("is not wanted beside months", field="days")
    tz = zone(request.timezone)
    start = in_utc(request.start, "start") or ctx.now()
    if not _FIRST_YEAR < start.year < _LAST_YEAR:
        raise invalid("is too far away to have prices", field="start")
    first = start.astimezone(tz).date()
    if request.days is not None:
        return first, first + timedelta(days=request.days)
    return first, months_later(first, request.months or 1)


def _scope(ctx: Context, request: ProjectCosts) -> dict[str, str | None]:
    scope: dict[str, str | None] = {name: getattr(request.scope, name) for name in ATTRIBUTION_FIELDS}
    if request.scope.user_id is not None:
        try:
            scope["user_id"] = ctx.user_key(request.scope.user_id)
        except SignalError as error:
            raise prefixed(error, "scope") from None
    return scope


async def _given(ctx: Context, request: ProjectCosts, seen: UsageQuery | None) -> _Given:
    cached = percent_of(request.cached_percent)
    if request.observed is not None and seen is not None:
        return await _observed(ctx, request.observed, seen, cached)
    assert request.tokens is not None
    tokens = request.tokens
    message = Message(
        prompt=tokens.prompt, completion=tokens.completion, system=tokens.system, reasoning=tokens.reasoning
    )
    return _Given(message, cached, None)


def _seen_query(ctx: Context, observed: ObservedTokens) -> UsageQuery:
    try:
        end = in_utc(observed.end, "end") or ctx.now()
        start = observed.start or end - timedelta(days=_OBSERVED_DAYS)
        return usage_query(ctx, start, end, observed.filters)
    except SignalError as error:
        raise prefixed(error, "observed") from None
    except OverflowError:
        raise invalid("is out of range", field="observed.end") from None


async def _observed(ctx: Context, observed: ObservedTokens, query: UsageQuery, cached: Fraction) -> _Given:
    assert query.start is not None and query.end is not None
    async with ctx.database.connection() as connection:
        seen = await finance_store.observed_tokens(
            connection,
            ctx.org,
            start=query.start,
            end=query.end,
            filters=query.filters,
            percentile=_PERCENTILES[observed.statistic],
        )
    if not seen["calls"]:
        raise not_found("no call of that time matches", field="observed")
    prefix = "mean" if observed.statistic == "mean" else "high"
    prompt, completion = (whole(Fraction(seen[f"{prefix}_{kind}"])) for kind in ("prompt", "completion"))
    share = Fraction(seen["cached"], seen["prompts"]) if seen["prompts"] else Fraction(0)
    told = f"tokens of a message: {observed.statistic} of {seen['calls']} calls, {prompt} in and {completion} out"
    if not cached:
        cached = share
        told += f", of which {percent_text(share, 1)} % of the prompt was read from the cache"
    # All of an observed prompt may have been sent before, so the cached part is of the whole.
    return _Given(Message(prompt=0, completion=completion, system=prompt), cached, seen["calls"], (told,))


def _assumptions(request: ProjectCosts, given: _Given, any_volume: bool) -> list[str]:
    message = given.message
    told = [
        f"{request.conversations_per_day} conversations a day, each of {request.messages_per_conversation} messages, "
        "every day of the week",
        "prices are those of the first day of each calendar month; each call is rounded to nanos, as the ledger does",
    ]
    if given.calls is None:
        again = "" if not message.system else f", {message.system} of the system prompt with every message"
        told.append(f"a message has {message.prompt} tokens in and {message.completion} out{again}")
    if request.history == "growing":
        told.append("each message sends the conversation so far again: prompts grow by prompt and answer of every turn")
    if given.cached:
        told.append(f"{percent_text(given.cached, 1)} % of what is sent again is read from the cache")
    if Fraction(request.growth_percent_per_month):
        told.append(f"{request.growth_percent_per_month} % growth with each calendar month, from the second on")
    hours = "evenly over all 24 hours" if not request.hours else f"evenly over {len(set(request.hours))} hours of a day"
    told.append(f"traffic is spread {hours} ({request.timezone})")
    if any_volume:
        told.append("volume rules and commitments see nothing but this plan, from the first of each month")
    return told


ROUTES = (route(signals.PROJECT_COSTS, project_costs),)
