"""What a manager's word reaches. Pure: the caller and the directory are given."""

from collections.abc import Iterable, Mapping
from typing import Final

from handlers.context import Caller

EVERY: Final = "*"


def may_manage(caller: Caller, *, type: str, entity_id: str | None, members: Mapping[str, Iterable[str]]) -> bool:
    """Whether ``caller`` may change budgets of this scope.

    An admin may change all; a manager those of type ``team`` for one of the teams the caller manages, and those of type
    ``user`` for a member of one of them. ``members`` is the directory: the teams of each user named in calls.
    Budgets for each entity (``*``) are nobody's but an admin's: they reach beyond any team.
    """
    if "admin" in caller.roles:
        return True
    if "manager" not in caller.roles or not entity_id or entity_id == EVERY:
        return False
    if type == "team":
        return entity_id in caller.teams
    if type == "user":
        return not caller.teams.isdisjoint(members.get(entity_id, ()))
    return False
