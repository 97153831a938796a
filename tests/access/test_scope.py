"""What a manager may change: the own teams and their members, and nothing that reaches beyond them."""

import pytest

from handlers.access.scope import may_manage
from handlers.context import Caller

MEMBERS = {"ann": ("red", "blue"), "bob": ("blue",), "eve": ()}
TYPES = ("global", "project", "feature", "agent", "session", "task", "environment", "cost_center")


def caller(*roles: str, teams: tuple[str, ...] = ("red",)) -> Caller:
    return Caller("acme", "someone", frozenset(roles), frozenset(teams))


def manages(who: Caller, kind: str, entity_id: str | None) -> bool:
    return may_manage(who, type=kind, entity_id=entity_id, members=MEMBERS)


@pytest.mark.parametrize("kind", ["team", "user", *TYPES])
@pytest.mark.parametrize("entity_id", ["red", "ann", "stranger", "*", None])
def test_an_admin_may_change_everything(kind: str, entity_id: str | None) -> None:
    assert manages(caller("admin", teams=()), kind, entity_id)


@pytest.mark.parametrize(
    ("kind", "entity_id", "allowed"),
    [
        ("team", "red", True),
        ("team", "blue", False),
        ("team", "*", False),
        ("team", None, False),
        ("user", "ann", True),  # A member of red, whatever else she is.
        ("user", "bob", False),
        ("user", "eve", False),
        ("user", "stranger", False),
        ("user", "*", False),
        ("user", "red", False),  # A team's name is no user.
        *((kind, "red", False) for kind in TYPES),
    ],
)
def test_a_manager_reaches_the_own_teams_and_their_members(kind: str, entity_id: str | None, allowed: bool) -> None:
    assert manages(caller("manager"), kind, entity_id) is allowed


def test_a_manager_of_nothing_may_change_nothing_and_no_other_role_manages() -> None:
    assert not manages(caller("manager", teams=()), "team", "red")
    assert not manages(caller("provider", "viewer", "approver", "finance"), "team", "red")


def test_a_team_called_star_is_no_way_to_manage_everybody() -> None:
    assert not manages(caller("manager", teams=("*",)), "team", "*")
