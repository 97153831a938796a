"""``set_user``, ``list_users``, ``delete_user``: who is known to the org and what they may do."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

import asyncpg

from handlers import audit
from handlers.access.nkeys import decode_user_key, is_user_key
from handlers.context import Context
from handlers.cursor import decode_cursor, page
from handlers.identities import is_surrogate
from schemas.access import DeleteUser, ListUsers, SetUser, User, UserList
from schemas.errors import SignalError, conflict, invalid, not_found, unavailable
from signals import ROLES, route
from signals import access as signals
from store import api_keys as key_store
from store import budgets as budget_store
from store import users as user_store
from store.pool import Connection
from store.users import UserRow

T = TypeVar("T")
NOBODY = "anonymous"  # How the audit trail calls a caller without a name.


async def access_change(ctx: Context, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Run ``work`` in one transaction, alone with the org's users, keys and schedules.

    Every agent hears of the change when it is committed. Raises SignalError ``forbidden`` where the caller was an admin
    a moment ago, and ``unavailable`` after ``transaction_attempts_max`` attempts.
    """
    for _ in range(ctx.services.limits.transaction_attempts_max):
        try:
            async with ctx.database.transaction() as connection:
                await user_store.lock(connection, ctx.org)
                await _still_admin(ctx, connection)
                return await work(connection)
        except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
            continue
    raise unavailable("the directory is too busy; nothing has changed, try again")


async def _still_admin(ctx: Context, connection: Connection) -> None:
    """Two admins who end each other at the same time: the second one finds out here."""
    if ctx.caller.user is not None:
        row = await user_store.find(connection, ctx.org, ctx.caller.user)
        if row is not None and not _is_admin(row):
            raise SignalError("forbidden", "you are not an admin any more")


def _is_admin(row: UserRow) -> bool:
    return row.active and "admin" in row.roles


async def set_user(ctx: Context, request: SetUser) -> User:
    """Make a user what the request says, new or not. Nobody can take away the own role of an admin."""
    _check(request)

    async def work(connection: Connection) -> User:
        now = await budget_store.clock(connection)
        before = await user_store.find(connection, ctx.org, request.name)
        row = _row(ctx, request, before, now)
        _keep_oneself(ctx, row)
        if before is None:  # Who is entered again after the name was deleted begins anew.
            await user_store.remove(connection, ctx.org, ctx.services.vault.surrogate(ctx.org, request.name))
        return await _put(ctx, connection, before, row, "created" if before is None else "updated")

    try:
        return await access_change(ctx, work)
    except asyncpg.UniqueViolationError:
        raise conflict("another user has this key", field="public_key") from None


async def delete_user(ctx: Context, request: DeleteUser) -> User:
    """Make a user inactive and revoke the user's keys, for good. Deleting again changes nothing."""

    async def work(connection: Connection) -> User:
        before = await user_store.find(connection, ctx.org, request.name)
        if before is None:
            raise not_found("there is no such user", field="name")
        if not before.active:
            return shown(before)
        now = await budget_store.clock(connection)
        row = replace(before, active=False, updated_at=now)
        _keep_oneself(ctx, row)
        after = await _put(ctx, connection, before, row, "deleted")
        for key_id in await key_store.revoke_all(connection, ctx.org, row.name, now):
            await audit.record(
                connection,
                ctx.caller,
                action="revoked",
                entity="api_key",
                entity_id=key_id,
                before=None,
                after={"user": ctx.services.actor_key(ctx.org, row.name), "revoked_at": now},
                reason="its user was deleted",
            )
        return after

    return await access_change(ctx, work)


async def list_users(ctx: Context, request: ListUsers) -> UserList:
    """Users by name, inactive ones included unless ``active`` says otherwise."""
    position = decode_cursor(request.cursor, tuple[str])
    async with ctx.database.connection() as connection:
        rows = await user_store.listing(
            connection,
            ctx.org,
            active=request.active,
            role=request.role,
            after_name=position[0] if position is not None else "",
            limit=request.limit + 1,
        )
    users, next_cursor = page([shown(row) for row in rows], limit=request.limit, key=lambda user: (user.name,))
    return UserList(users=users, next_cursor=next_cursor)


def shown(row: UserRow) -> User:
    """A user as replies show one."""
    return User(
        name=row.name,
        display_name=row.display_name,
        roles=list(row.roles),
        teams=list(row.teams),
        public_key=row.public_key,
        active=row.active,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


async def _put(ctx: Context, connection: Connection, before: UserRow | None, row: UserRow, action: str) -> User:
    await user_store.put(connection, row)
    await audit.record(
        connection,
        ctx.caller,
        action=action,
        entity="user",
        entity_id=ctx.services.actor_key(ctx.org, row.name),
        before=None if before is None else _audited(before),
        after=_audited(row),
    )
    return shown(row)


def _audited(row: UserRow) -> dict[str, object]:
    """What the audit trail keeps of a user: no name, because a name must be possible to delete."""
    return {"roles": row.roles, "teams": row.teams, "public_key": row.public_key, "active": row.active}


def _check(request: SetUser) -> None:
    if request.name == NOBODY or is_user_key(request.name) or is_surrogate(request.name):
        raise invalid("stands for something else: choose another name", field="name")
    if request.public_key is not None:
        try:
            decode_user_key(request.public_key)
        except ValueError as error:
            raise invalid(f"is not a user's public NKey: {error}", field="public_key") from None


def _keep_oneself(ctx: Context, row: UserRow) -> None:
    """An org cannot lose its last admin, because the one who acts stays one."""
    if row.name == ctx.caller.user and not _is_admin(row):
        raise conflict("your own role of an admin is for another admin to take away", field="name")


def _row(ctx: Context, request: SetUser, before: UserRow | None, now: datetime) -> UserRow:
    return UserRow(
        org_id=ctx.org,
        name=request.name,
        display_name=request.display_name,
        roles=tuple(role for role in ROLES if role in request.roles),
        teams=tuple(sorted(set(request.teams))),
        public_key=request.public_key,
        active=request.active,
        created_at=now if before is None else before.created_at,
        updated_at=now,
    )


ROUTES = (
    route(signals.SET_USER, set_user),
    route(signals.LIST_USERS, list_users),
    route(signals.DELETE_USER, delete_user),
)
