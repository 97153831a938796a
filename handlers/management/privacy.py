"""``anonymize_user``: the name behind a surrogate is deleted, and history stays what it was.

The name is in ``identity`` alone, and in dead letters, which are what a caller sent, to the byte; there the surrogate
takes its place. The surrogate is never named again, also where its user goes on working.
"""

from typing import Final

import msgspec

from handlers import audit
from handlers.context import Context
from handlers.identities import is_surrogate, rename_users
from schemas.errors import conflict
from schemas.privacy import AnonymizedUser, AnonymizeUser
from signals import privacy as signals
from signals import route
from store import budgets as budget_store
from store import dead_letters as dead_letter_store
from store import identities as identity_store
from store import users as user_store
from store.pool import Connection

_ENCODE: Final = msgspec.json.Encoder().encode


async def anonymize_user(ctx: Context, request: AnonymizeUser) -> AnonymizedUser:
    """Delete a name for good. Doing it again changes nothing but that dead letters since are looked at, too."""
    given = request.user_id
    key = given if is_surrogate(given) else ctx.services.vault.surrogate(ctx.org, given)
    await ctx.services.identities.flush()
    async with ctx.database.transaction() as connection:
        name = given if given != key else (await identity_store.find(connection, [(ctx.org, key)])).get((ctx.org, key))
        if name is not None:
            await _refuse_working_user(connection, ctx.org, name)
        before = await identity_store.known(connection, ctx.org, key)
        at = await identity_store.anonymize(connection, ctx.org, key, await budget_store.clock(connection))
        redacted = 0 if name is None else await _redact(connection, ctx, name, key)
        if before is not True or redacted:
            after = {"anonymized_at": at, "dead_letters": redacted}
            await audit.record(
                connection,
                ctx.caller,
                action="anonymized",
                entity="identity",
                entity_id=key,
                before=None,
                after=after,
                reason=request.reason if name is None else request.reason.replace(name, key),
            )
    ctx.services.identities.forget(ctx.org, key)
    return AnonymizedUser(user_key=key, anonymized_at=at, dead_letters=redacted)


async def _refuse_working_user(connection: Connection, org: str, name: str) -> None:
    """A name with which somebody can still sign in is not gone; one that cannot loses its row as well."""
    user = await user_store.find(connection, org, name)
    if user is None:
        return
    if user.active:
        raise conflict("this user may still send requests: delete_user comes first", field="user_id")
    await user_store.remove(connection, org, name)


async def _redact(connection: Connection, ctx: Context, name: str, key: str) -> int:
    """Put the surrogate in the place of the name in dead letters; returns in how many."""
    most = ctx.services.limits.redact_batch_max
    redacted, after = 0, None
    while rows := await dead_letter_store.naming(connection, ctx.org, name, after=after, limit=most):
        for letter_id, payload in rows:
            replaced = _without(payload, name, key)
            if replaced is not None:
                await dead_letter_store.replace_payload(connection, ctx.org, letter_id, replaced)
                redacted += 1
        after = rows[-1][0]
    return redacted


def _without(payload: bytes, name: str, key: str) -> bytes | None:
    """The payload with every ``user_id`` replaced; text that is no JSON loses every occurrence of the name."""
    try:
        document = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raw = payload.replace(name.encode(), key.encode())
        return raw if raw != payload else None
    return _ENCODE(document) if rename_users(document, lambda user: key if user == name else None) else None


ROUTES = (route(signals.ANONYMIZE_USER, anonymize_user),)
