"""``set_model_limit`` and ``list_model_limits``: under the catalogue lock, so the next check on any agent knows."""

from typing import Final

from handlers import audit
from handlers.context import Context
from handlers.cost.resolve import provider_key
from handlers.counting.limits import OrgLimits
from handlers.cursor import decode_cursor, page
from handlers.enforcer.transaction import catalogue_change
from handlers.patterns import EVERY
from schemas.errors import conflict, invalid
from schemas.limit import KnownLimits, ListModelLimits, ModelLimit, ModelLimitList, ModelLimitReply, SetModelLimit
from signals import route
from signals import tokens as signals
from store import budgets as budget_store
from store import model_limits as limit_store
from store.model_limits import ModelLimitRow
from store.pool import Connection

_ENTITY: Final = "model_limit"
_FIGURES: Final = ("context_window", "max_input_tokens", "max_output_tokens")


async def set_model_limit(ctx: Context, request: SetModelLimit) -> ModelLimitReply:
    """Set, change or take away the org's limits of a model. Setting what is set already changes nothing."""
    provider, model = provider_key(request.provider), request.model.strip()
    for field, name in (("provider", provider), ("model", model)):
        if not name:
            raise invalid("says nothing", field=field)

    async def work(connection: Connection) -> ModelLimitReply:
        now = await budget_store.clock(connection)
        before = await limit_store.find(connection, ctx.org, provider, model)
        after = ModelLimitRow(
            org_id=ctx.org,
            provider=provider,
            model=model,
            context_window=request.context_window,
            max_input_tokens=request.max_input_tokens,
            max_output_tokens=request.max_output_tokens,
            set_by=ctx.caller.actor,
            set_at=now,
        )
        wanted = after if any(_figures(after)) else None
        changed = _figures(before) != _figures(wanted)
        if changed:
            await _write(ctx, connection, before, wanted, request)
        limits = OrgLimits.of_rows(await limit_store.load(connection, ctx.org))
        shown = wanted if changed else before
        return ModelLimitReply(
            limit=None if shown is None else _shown(shown), changed=changed, holds=_holds(ctx, limits, provider, model)
        )

    return await catalogue_change(ctx, work)


async def list_model_limits(ctx: Context, request: ListModelLimits) -> ModelLimitList:
    """The org's own limits; with a provider and a model also what holds for that one."""
    if request.model is not None and request.provider is None:
        raise invalid("is needed with a model", field="provider")
    position = decode_cursor(request.cursor, tuple[str, str])
    provider = None if request.provider is None else provider_key(request.provider)
    async with ctx.database.connection() as connection:
        rows = await limit_store.listing(
            connection, ctx.org, provider=provider, after=position or ("", ""), limit=request.limit + 1
        )
        limits = OrgLimits.of_rows(await limit_store.load(connection, ctx.org))
    shown, next_cursor = page([_shown(row) for row in rows], limit=request.limit, key=lambda r: (r.provider, r.model))
    holds = None
    if provider is not None and request.model is not None:
        holds = _holds(ctx, limits, provider, request.model.strip())
    return ModelLimitList(limits=shown, next_cursor=next_cursor, holds=holds)


async def _write(
    ctx: Context,
    connection: Connection,
    before: ModelLimitRow | None,
    after: ModelLimitRow | None,
    request: SetModelLimit,
) -> None:
    """The row, then the audit entry, whose head is the last lock."""
    row = after or before
    assert row is not None, "only a change is written"
    if after is None:
        await limit_store.remove(connection, ctx.org, row.provider, row.model)
    else:
        most = ctx.services.limits.model_limits_max
        if before is None and await limit_store.count(connection, ctx.org) >= most:
            raise conflict(f"the org has set {most} limits; take some away, or use a pattern", field="model")
        await limit_store.put(connection, after)
    await audit.record(
        connection,
        ctx.caller,
        action="deleted" if after is None else "created" if before is None else "updated",
        entity=_ENTITY,
        entity_id=f"{row.provider}/{row.model}",
        before=None if before is None else _shown(before),
        after=None if after is None else _shown(after),
        reason=request.reason,
    )


def _figures(row: ModelLimitRow | None) -> tuple[int | None, ...]:
    return tuple(None if row is None else getattr(row, name) for name in _FIGURES)


def _shown(row: ModelLimitRow) -> ModelLimit:
    return ModelLimit(
        provider=row.provider,
        model=row.model,
        context_window=row.context_window,
        max_input_tokens=row.max_input_tokens,
        max_output_tokens=row.max_output_tokens,
        set_by=row.set_by,
        set_at=row.set_at,
    )


def _holds(ctx: Context, limits: OrgLimits, provider: str, model: str) -> KnownLimits:
    card = None if EVERY in provider + model else ctx.prices.resolve(provider, model, ctx.now())
    found = limits.of(provider, model, card)
    return KnownLimits(
        provider=provider,
        model=model,
        context_window=found.context_window,
        max_input_tokens=found.max_input,
        max_output_tokens=found.max_output,
        source=found.source,
    )


ROUTES = (
    route(signals.SET_MODEL_LIMIT, set_model_limit),
    route(signals.LIST_MODEL_LIMITS, list_model_limits),
)
