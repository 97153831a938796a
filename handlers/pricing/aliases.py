"""``set_model_alias`` and ``list_model_aliases``: what an org calls a model, such as the name of a deployment.

Like price rules: dated, always another version, under the catalogue lock, so that the next decision knows it (R2).
"""

from datetime import datetime
from typing import Annotated, Any, Final

from msgspec import Meta

from handlers.context import Context
from handlers.cost.org_prices import Prices
from handlers.cost.resolve import provider_key
from handlers.cursor import decode_cursor, page
from handlers.enforcer.transaction import catalogue_change
from handlers.patterns import EVERY
from handlers.pricing.told import announce, record
from handlers.pricing.versions import moment
from schemas.errors import conflict, invalid, not_found
from schemas.pricing import (
    ListModelAliases,
    ModelAlias,
    ModelAliasList,
    ModelAliasReply,
    PricingChanged,
    SetModelAlias,
)
from signals import pricing as signals
from signals import route
from store import budgets as budget_store
from store import price_listing
from store import prices as price_store
from store.pool import Connection
from store.prices import ModelAliasRow

ENTITY: Final = "model_alias"
_Position = tuple[str, str, Annotated[int, Meta(ge=0, le=1_000_000)]]


async def set_model_alias(ctx: Context, request: SetModelAlias) -> ModelAliasReply:
    """Add a version of an alias; without ``to_model`` one that ends it. An unpriced target is accepted with a warning.

    Raises SignalError ``invalid_request``, ``not_found`` or ``conflict`` naming the field; then nothing is written.
    """
    _check(request)

    async def work(connection: Connection) -> tuple[ModelAliasRow, int]:
        now = await budget_store.clock(connection)
        before = await price_listing.newest_alias(connection, ctx.org, *_key(request))
        after = await _version(ctx, connection, request, before, now)
        revision = await price_store.add_aliases(connection, ctx.org, [after])
        told = _told(ctx, before, after, now, revision)
        await announce(ctx, connection, [told])
        await record(ctx, connection, told)
        return after, revision

    row, revision = await catalogue_change(ctx, work)
    # The catalogue is the new one by now, and so are the prices.
    warnings = _warnings(ctx.prices, row)
    return ModelAliasReply(alias=_shown(row, row.created_at, None), revision=revision, warnings=warnings)


async def list_model_aliases(ctx: Context, request: ListModelAliases) -> ModelAliasList:
    """Aliases in force or to come, with ``history`` every version, by provider, alias and version."""
    position = decode_cursor(request.cursor, _Position)
    async with ctx.database.connection() as connection:
        now = await budget_store.clock(connection)
        found = await price_listing.page_aliases(
            connection,
            ctx.org,
            provider=None if request.provider is None else provider_key(request.provider),
            at=now,
            history=request.history,
            after=position or ("", "", 0),
            limit=request.limit + 1,
        )
    aliases, next_cursor = page(
        [_shown(row, now, replaced_at) for row, replaced_at in found],
        limit=request.limit,
        key=lambda alias: (alias.provider, alias.alias, alias.version),
    )
    return ModelAliasList(aliases=aliases, next_cursor=next_cursor)


def _key(request: SetModelAlias) -> tuple[str, str]:
    return provider_key(request.provider), request.alias.strip()


def _check(request: SetModelAlias) -> None:
    for field, text in (("provider", request.provider), ("alias", request.alias), ("to_model", request.to_model)):
        if text is not None and not text.strip():
            raise invalid("is blank", field=field)
    if request.to_model is None and request.to_provider is not None:
        raise invalid("is of no use without to_model", field="to_provider")
    for field, text in (("to_provider", request.to_provider), ("to_model", request.to_model)):
        if text is not None and EVERY in text:
            raise invalid("names one, without '*'", field=field)
    if request.to_model is not None and request.to_provider is None and EVERY in request.provider:
        raise invalid("is needed where the provider is a pattern", field="to_provider")
    provider, alias = _key(request)
    target = provider_key(request.to_provider or request.provider), (request.to_model or "").strip()
    if (provider, alias.lower()) == (target[0], target[1].lower()):
        raise invalid("is the alias itself", field="to_model")
    if (provider, alias) == (EVERY, EVERY):
        raise invalid("every model of every provider cannot be one model", field="alias")


async def _version(
    ctx: Context, connection: Connection, request: SetModelAlias, before: ModelAliasRow | None, now: datetime
) -> ModelAliasRow:
    provider, alias = _key(request)
    present = 0 if before is None else before.version
    if request.version != present:
        raise conflict(f"the alias is at version {present}; read it again", field="version")
    if request.to_model is None and before is None:
        raise not_found("there is no such alias", field="alias")
    if request.to_model is None and before is not None and before.to_model is None:
        raise conflict("the alias has ended already", field="alias")
    most = ctx.services.limits.model_aliases_max
    if before is None and await price_listing.count_aliases(connection, ctx.org) >= most:
        raise conflict(f"there are {most} aliases, those that have ended included", field="alias")
    to_provider = None if request.to_model is None else provider_key(request.to_provider or request.provider)
    return ModelAliasRow(
        org_id=ctx.org,
        provider=provider,
        alias=alias,
        version=present + 1,
        to_provider=to_provider,
        to_model=None if request.to_model is None else request.to_model.strip(),
        valid_from=moment(request.valid_from, "valid_from", now, backdate=request.backdate),
        created_at=now,
        created_by=ctx.caller.actor,
        reason=request.reason,
    )


def _warnings(prices: Prices, row: ModelAliasRow) -> list[str]:
    if row.to_provider is None or row.to_model is None:
        return []
    at = max(row.created_at, row.valid_from or row.created_at)
    found: list[str] = []
    if prices.resolve(row.to_provider, row.to_model, at) is None:
        found.append(f"unpriced: {row.to_provider}/{row.to_model} has no price; calls of this alias are unpriced")
    return found


def _told(
    ctx: Context, before: ModelAliasRow | None, after: ModelAliasRow, now: datetime, revision: int
) -> PricingChanged:
    return PricingChanged(
        actor=ctx.caller.actor,
        entity=ENTITY,
        entity_id=f"{after.provider}/{after.alias}",
        action="created" if before is None else "updated" if after.to_model is not None else "ended",
        before=None if before is None else _shown(before, now, None),
        after=_shown(after, now, None),
        revision=revision,
        reason=after.reason,
    )


def _shown(row: ModelAliasRow, at: datetime, replaced_at: datetime | None) -> ModelAlias:
    return ModelAlias(
        provider=row.provider,
        alias=row.alias,
        version=row.version,
        state=_state(row, at, replaced_at),
        to_provider=row.to_provider,
        to_model=row.to_model,
        valid_from=row.valid_from,
        set_at=row.created_at,
        set_by=row.created_by,
        reason=row.reason,
    )


def _state(row: ModelAliasRow, at: datetime, replaced_at: datetime | None) -> Any:
    since = row.valid_from or row.created_at
    if replaced_at is not None and (replaced_at <= at or replaced_at <= since):
        return "superseded"
    if since > at:
        return "scheduled"
    return "over" if row.to_model is None else "in_force"


ROUTES = (
    route(signals.SET_MODEL_ALIAS, set_model_alias),
    route(signals.LIST_MODEL_ALIASES, list_model_aliases),
)
