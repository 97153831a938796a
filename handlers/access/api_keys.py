"""``create_api_key``, ``list_api_keys``, ``revoke_api_key``. A secret is shown once and kept only as a hash."""

import hashlib
from dataclasses import replace
from typing import Final

from msgspec.structs import replace as replace_fields

from handlers import audit
from handlers.access.users import access_change
from handlers.context import Context
from handlers.cursor import decode_cursor, page
from handlers.moment import in_utc
from schemas.access import ApiKey, ApiKeyList, CreateApiKey, ListApiKeys, NewApiKey, RevokeApiKey
from schemas.errors import conflict, invalid, not_found
from signals import ROLES, route
from signals import access as signals
from store import api_keys as key_store
from store import budgets as budget_store
from store import users as user_store
from store.api_keys import ApiKeyRow
from store.pool import Connection

KEY_PREFIX: Final = "tm"
SHOWN_CHARS: Final = 4
_LAST: Final = "~"  # Sorts after every key id.


def hashed(secret: str) -> bytes:
    """What is kept of a secret. It has 256 random bits, so a plain hash cannot be searched."""
    return hashlib.sha256(secret.encode()).digest()


def key_roles(key: ApiKeyRow, user_roles: frozenset[str]) -> frozenset[str]:
    """What a key may do while its user holds ``user_roles``: never more than the user."""
    if "admin" in user_roles:
        return frozenset(key.roles)
    return user_roles.intersection(key.roles)


async def create_api_key(ctx: Context, request: CreateApiKey) -> NewApiKey:
    """A new key of an active user, for the user's present roles or some of them."""
    secret = ctx.services.new_secret()
    key_id = ctx.new_id().replace("-", "")
    whole = f"{KEY_PREFIX}_{key_id}_{secret}"
    expires_at = in_utc(request.expires_at, "expires_at")

    async def work(connection: Connection) -> NewApiKey:
        now = await budget_store.clock(connection)
        if expires_at is not None and expires_at <= now:
            raise invalid("is over already", field="expires_at")
        limit = ctx.services.limits.api_keys_max
        if await key_store.count_live(connection, ctx.org) >= limit:
            raise conflict(f"the org has {limit} keys: revoke one first")
        row = ApiKeyRow(
            org_id=ctx.org,
            key_id=key_id,
            name=request.name,
            user_name=request.user,
            secret_hash=hashed(secret),
            shown_prefix=whole[: -len(secret) + SHOWN_CHARS],
            roles=await _granted(ctx, connection, request),
            created_by=ctx.caller.actor,
            created_at=now,
            expires_at=expires_at,
        )
        await key_store.insert(connection, row)
        key = _shown(row)
        await _record(ctx, connection, "created", None, key)
        return NewApiKey(key=key, secret=whole)

    return await access_change(ctx, work)


async def revoke_api_key(ctx: Context, request: RevokeApiKey) -> ApiKey:
    """End a key. One that was ended keeps the time it was ended at."""

    async def work(connection: Connection) -> ApiKey:
        row = await key_store.find(connection, ctx.org, request.key_id)
        if row is None:
            raise not_found("there is no such key", field="key_id")
        if row.revoked_at is not None:
            return _shown(row)
        after = replace(row, revoked_at=await budget_store.clock(connection))
        assert after.revoked_at is not None
        await key_store.revoke(connection, ctx.org, row.key_id, after.revoked_at)
        await _record(ctx, connection, "revoked", _shown(row), _shown(after))
        return _shown(after)

    return await access_change(ctx, work)


async def list_api_keys(ctx: Context, request: ListApiKeys) -> ApiKeyList:
    """Keys, newest first; never a secret or its hash."""
    position = decode_cursor(request.cursor, tuple[str])
    async with ctx.database.connection() as connection:
        rows = await key_store.listing(
            connection,
            ctx.org,
            user_name=request.user,
            revoked=request.revoked,
            before_key_id=position[0] if position is not None else _LAST,
            limit=request.limit + 1,
        )
    keys, next_cursor = page([_shown(row) for row in rows], limit=request.limit, key=lambda key: (key.key_id,))
    return ApiKeyList(keys=keys, next_cursor=next_cursor)


async def _granted(ctx: Context, connection: Connection, request: CreateApiKey) -> tuple[str, ...]:
    user = await user_store.find(connection, ctx.org, request.user)
    if user is None or not user.active:
        raise not_found("there is no such active user", field="user")
    wanted = request.roles or user.roles
    if "admin" not in user.roles and (more := sorted(set(wanted) - set(user.roles))):
        raise invalid(f"the user does not hold {', '.join(more)}", field="roles")
    return tuple(role for role in ROLES if role in wanted)


async def _record(ctx: Context, connection: Connection, action: str, before: ApiKey | None, after: ApiKey) -> None:
    """The trail knows the key's user by the surrogate: a name must be possible to delete."""
    user = ctx.services.actor_key(ctx.org, after.user)
    await audit.record(
        connection,
        ctx.caller,
        action=action,
        entity="api_key",
        entity_id=after.key_id,
        before=None if before is None else replace_fields(before, user=user),
        after=replace_fields(after, user=user),
    )


def _shown(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        key_id=row.key_id,
        name=row.name,
        user=row.user_name,
        prefix=row.shown_prefix,
        roles=list(row.roles),
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )


ROUTES = (
    route(signals.CREATE_API_KEY, create_api_key),
    route(signals.LIST_API_KEYS, list_api_keys),
    route(signals.REVOKE_API_KEY, revoke_api_key),
)
