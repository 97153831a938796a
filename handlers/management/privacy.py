"""``anonymize_user``: the name behind a surrogate is deleted, and history stays what it was.

The name is in ``identity`` alone, and in dead letters, which are what a caller sent, to the byte; there the surrogate
takes its place. The surrogate is never named again, also where its user goes on working.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final, cast

import msgspec

from handlers import audit
from handlers.context import Context
from handlers.identities import is_surrogate
from schemas.errors import conflict, invalid
from schemas.privacy import AnonymizedUser, AnonymizeUser
from schemas.usage import UsageEvent
from signals import privacy as signals
from signals import route
from store import budgets as budget_store
from store import dead_letters as dead_letter_store
from store import identities as identity_store
from store import users as user_store
from store.pool import Connection

_ENCODE: Final = msgspec.json.Encoder().encode
# A provider may be called like a user.
_NOT_OF_USERS: Final = frozenset(UsageEvent.__struct_fields__) - {"user_id"}


async def anonymize_user(ctx: Context, request: AnonymizeUser) -> AnonymizedUser:
    """Delete a name for good. Doing it again changes nothing but that dead letters since are looked at, too."""
    if not request.reason.strip():
        raise invalid("says nothing: tell auditors why", field="reason")
    given = request.user_id
    key = given if is_surrogate(given) else ctx.services.vault.surrogate(ctx.org, given)
    await ctx.services.identities.flush()
    async with ctx.database.transaction() as connection:
        name = given if given != key else (await identity_store.find(connection, [(ctx.org, key)])).get((ctx.org, key))
        if name is not None:
            await _end_user(connection, ctx.org, name, key)
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


async def _end_user(connection: Connection, org: str, name: str, key: str) -> None:
    """A name with which somebody can still sign in is not gone; of one that cannot a row without the name stays.

    Without any row who is known to the bus by that name would have the roles of those whom nobody entered.
    """
    user = await user_store.find(connection, org, name)
    if user is not None and user.active:
        raise conflict("this user may still send requests: delete_user comes first", field="user_id")
    await user_store.remove(connection, org, name)
    if user is not None:
        await user_store.put(connection, replace(user, name=key, display_name="", roles=(), teams=()))


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
    """The payload without the name, None where it is not in it; text that is no JSON loses every spelling of it.

    In JSON it is replaced where it stands alone, but for fields that do not name users.
    """
    try:
        document = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raw = _spellings(name).sub(key.encode(), payload)
        return raw if raw != payload else None
    found = [document]
    return _ENCODE(found[0]) if _replaced(found, name, key) else None


def _replaced(document: list[Any], name: str, key: str) -> bool:
    """Replace the name in place; whether it was there. Without recursion: payloads are as deep as callers like."""
    found = False
    waiting: list[Any] = [document]
    while waiting:
        part = waiting.pop()
        for place, value in list(_places(part)):
            if isinstance(value, dict | list):
                waiting.append(value)
            elif value == name and place not in _NOT_OF_USERS:
                part[place] = key
                found = True
    return found


def _places(part: Any) -> Iterable[tuple[Any, Any]]:
    """The keys, or the numbers, and the values of what is in a dict or a list."""
    return cast("dict[Any, Any]", part).items() if isinstance(part, dict) else enumerate(cast("list[Any]", part))


def _spellings(name: str) -> re.Pattern[bytes]:
    """Every way to write a name in JSON text."""

    def ways(char: str) -> bytes:
        code = char.encode("utf-16-be")
        units = b"".join(rb"\\u(?i:%02x%02x)" % (code[i], code[i + 1]) for i in range(0, len(code), 2))
        return rb"(?:%s|%s|\\%s)" % (re.escape(char.encode()), units, re.escape(char.encode()))

    return re.compile(b"".join(map(ways, name)))


ROUTES = (route(signals.ANONYMIZE_USER, anonymize_user),)
