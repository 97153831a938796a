"""Whom a budget is for, as it is stored: users by their surrogates, everything else by its name."""

from handlers.context import Context
from handlers.enforcer.catalogue import EVERY
from schemas.errors import SignalError, invalid


def entity_key(ctx: Context, *, type: str, entity_id: str) -> str:
    """The stored entity of a budget. Raises SignalError naming ``entity_id`` where the org refuses plain user names."""
    if type != "user" or entity_id == EVERY:
        return entity_id
    try:
        return ctx.user_key(entity_id)
    except SignalError as error:
        raise invalid(error.message, field="entity_id") from None


def entity_keys(ctx: Context, *, type: str | None, entity_id: str) -> list[str]:
    """What a stored entity may be that is looked for by name; ``type`` None: of any type."""
    found = [entity_id] if type != "user" else []
    if type in ("user", None):
        try:
            found.append(ctx.user_key(entity_id))
        except SignalError:  # The org keeps no plain names, so nobody's is found by one.
            found.append(entity_id)
    return found
