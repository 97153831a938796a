"""Users, teams and API keys, each change with its entry in the audit trail."""

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from handlers.access.api_keys import create_api_key, list_api_keys, revoke_api_key
from handlers.access.nkeys import decode_user_key, encode_user_key
from handlers.access.teams import list_teams, set_team
from handlers.access.users import delete_user, list_users, set_user
from handlers.context import Context, Limits, Services
from handlers.management.settings import configure_manager
from schemas.access import (
    CreateApiKey,
    DeleteUser,
    ListApiKeys,
    ListTeams,
    ListUsers,
    RevokeApiKey,
    SetTeam,
    SetUser,
)
from schemas.errors import SignalError
from schemas.settings import ConfigureManager
from tests.access.conftest import NKey
from tests.support.services import checked, context, refusal
from tests.support.vault import TEST_VAULT


def key_of(name: str, org: str = "default") -> str:
    return TEST_VAULT.surrogate(org, name)


async def audited(services: Services, org: str = "default") -> list[tuple[str, str, str, str]]:
    rows = await services.database.fetch(
        "SELECT action, entity, entity_id, actor FROM audit WHERE org_id = $1 ORDER BY seq", org
    )
    return [tuple(row) for row in rows]


async def test_a_user_is_what_was_said_last_as_a_whole(ctx: Context, services: Services) -> None:
    key = NKey.new().text
    first = await set_user(
        ctx,
        SetUser(
            name="ann@acme.com", roles=["manager", "viewer", "viewer"], teams=["red", "blue", "red"], public_key=key
        ),
    )
    assert (first.roles, first.teams, first.public_key) == (["viewer", "manager"], ["blue", "red"], key)
    second = await set_user(ctx, SetUser(name="ann@acme.com", roles=["viewer"], display_name="Ann"))
    assert (second.roles, second.teams, second.public_key, second.display_name) == (["viewer"], [], None, "Ann")
    assert second.created_at == first.created_at < second.updated_at
    assert (await list_users(ctx, ListUsers())).users == [second]
    assert await audited(services) == [
        ("created", "user", key_of("ann@acme.com"), "alice"),
        ("updated", "user", key_of("ann@acme.com"), "alice"),
    ]
    trail = str([row["content"] for row in await services.database.fetch("SELECT content FROM audit")])
    assert "ann" not in trail.lower(), "a name must be possible to delete"
    (content,) = await services.database.fetch("SELECT content FROM audit WHERE seq = 2")
    entry: dict[str, Any] = msgspec.json.decode(content["content"])
    assert (entry["before"]["roles"], entry["after"]["roles"]) == (["viewer", "manager"], ["viewer"])


async def test_a_deleted_user_stays_in_the_table_and_every_key_ends(ctx: Context, services: Services) -> None:
    await set_user(ctx, SetUser(name="bot", roles=["provider"]))
    made = await create_api_key(ctx, CreateApiKey(name="k", user="bot"))
    gone = await delete_user(ctx, DeleteUser(name="bot"))
    assert (gone.active, gone.roles) == (False, ["provider"])
    assert (await delete_user(ctx, DeleteUser(name="bot"))) == gone
    await set_user(ctx, SetUser(name="bot", roles=["provider"]))
    (key,) = (await list_api_keys(ctx, ListApiKeys(revoked=True))).keys
    assert key.key_id == made.key.key_id
    assert key.revoked_at is not None
    assert [entry[:3] for entry in await audited(services)][2:4] == [
        ("deleted", "user", key_of("bot")),
        ("revoked", "api_key", made.key.key_id),
    ]
    assert (await refusal(delete_user(ctx, DeleteUser(name="nobody")))).code == "not_found"


async def test_users_are_listed_in_pages_and_by_role(ctx: Context) -> None:
    for name, roles in (("a", ["viewer"]), ("b", ["admin"]), ("c", ["viewer"])):
        await set_user(ctx, SetUser(name=name, roles=roles))  # pyright: ignore[reportArgumentType]
    await delete_user(ctx, DeleteUser(name="c"))
    first = await list_users(ctx, ListUsers(limit=2))
    rest = await list_users(ctx, ListUsers(limit=2, cursor=first.next_cursor))
    assert [[u.name for u in page.users] for page in (first, rest)] == [["a", "b"], ["c"]]
    assert rest.next_cursor is None
    assert [u.name for u in (await list_users(ctx, ListUsers(role="viewer", active=True))).users] == ["a"]
    assert (await refusal(list_users(ctx, ListUsers(cursor="?")))).field == "cursor"


async def test_no_admin_can_end_being_one_alone(services: Services) -> None:
    ctx = context(services, user="root")
    await set_user(ctx, SetUser(name="root", roles=["admin"]))
    for change in (
        set_user(ctx, SetUser(name="root", roles=["viewer"])),
        set_user(ctx, SetUser(name="root", roles=["admin"], active=False)),
        delete_user(ctx, DeleteUser(name="root")),
    ):
        assert (await refusal(change)).code == "conflict"


async def test_two_admins_who_end_each_other_leave_one(services: Services) -> None:
    for name in ("a", "b"):
        await set_user(context(services, user="root"), SetUser(name=name, roles=["admin"]))
    ends = (
        set_user(context(services, user="a"), SetUser(name="b", roles=["viewer"])),
        delete_user(context(services, user="b"), DeleteUser(name="a")),
    )
    results = await asyncio.gather(*ends, return_exceptions=True)
    (error,) = [result for result in results if isinstance(result, SignalError)]
    assert error.code == "forbidden"
    left = (await list_users(context(services), ListUsers(active=True, role="admin"))).users
    assert len(left) == 1


async def test_a_public_key_is_a_users_own_and_well_formed(ctx: Context, services: Services) -> None:
    key = NKey.new().text
    await set_user(ctx, SetUser(name="a", roles=[], public_key=key))
    taken = await refusal(set_user(ctx, SetUser(name="b", roles=[], public_key=key)))
    assert (taken.code, taken.field) == ("conflict", "public_key")
    assert (await set_user(context(services, org="other"), SetUser(name="b", roles=[], public_key=key))).active
    for wrong in ("U", key.lower(), key[:-1] + ("A" if key[-1] != "A" else "B"), "A" + key[1:], "1" * 56):
        error = await refusal(set_user(ctx, SetUser(name="c", roles=[], public_key=wrong)))
        assert (error.code, error.field) == ("invalid_request", "public_key"), wrong
    for name in ("anonymous", NKey.new().text):
        assert (await refusal(set_user(ctx, SetUser(name=name, roles=[])))).field == "name"


def test_nkeys_are_those_of_nats() -> None:
    """Taken from a server's own documentation: docs.nats.io, NKeys, `nats-server` example user."""
    known = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
    assert len(decode_user_key(known)) == 32
    assert encode_user_key(decode_user_key(known)) == known


@pytest.mark.parametrize("name", ["", " ann", "a b", "a/b", "a*b", "a>b", "-a", "a" * 65, "ann\n", "ü"])
def test_names_are_what_a_bus_can_carry(name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode({"name": name, "roles": []}), type=SetUser)


async def test_a_key_is_shown_once_and_kept_as_a_hash(ctx: Context, services: Services) -> None:
    await set_user(ctx, SetUser(name="bot", roles=["provider", "viewer"]))
    made = await create_api_key(ctx, CreateApiKey(name="ci", user="bot", roles=["provider"]))
    mark, key_id, secret = made.secret.split("_", 2)
    assert (mark, key_id, len(secret) >= 43) == ("tm", made.key.key_id, True)
    assert made.secret.startswith(made.key.prefix)
    assert len(made.key.prefix) < len(made.secret) - 30
    listed = msgspec.json.encode(await list_api_keys(ctx, ListApiKeys())).decode()
    stored = str([dict(row) for row in await services.database.fetch("SELECT * FROM api_key")])
    trail = str([row["content"] for row in await services.database.fetch("SELECT content FROM audit")])
    assert all(secret not in text for text in (listed, stored, trail))
    assert "hash" not in listed
    assert made.key.key_id in listed


async def test_a_key_may_not_do_more_than_its_user(ctx: Context) -> None:
    await set_user(ctx, SetUser(name="bot", roles=["viewer"]))
    more = await refusal(create_api_key(ctx, CreateApiKey(name="k", user="bot", roles=["viewer", "admin"])))
    assert (more.code, more.field) == ("invalid_request", "roles")
    assert (await create_api_key(ctx, CreateApiKey(name="k", user="bot"))).key.roles == ["viewer"]
    unknown = await refusal(create_api_key(ctx, CreateApiKey(name="k", user="nobody")))
    assert (unknown.code, unknown.field) == ("not_found", "user")
    over = CreateApiKey(name="k", user="bot", expires_at=ctx.now() - timedelta(seconds=1))
    assert (await refusal(create_api_key(ctx, over))).field == "expires_at"


async def test_a_revoked_key_keeps_its_time_and_is_listed_when_asked_for(ctx: Context, services: Services) -> None:
    await set_user(ctx, SetUser(name="bot", roles=["viewer"]))
    keys = [(await create_api_key(ctx, CreateApiKey(name=f"k{n}", user="bot"))).key.key_id for n in range(3)]
    ended = await revoke_api_key(ctx, RevokeApiKey(key_id=keys[1]))
    assert (await revoke_api_key(ctx, RevokeApiKey(key_id=keys[1]))) == ended
    assert [k.key_id for k in (await list_api_keys(ctx, ListApiKeys())).keys] == [keys[2], keys[0]]
    first = await list_api_keys(ctx, ListApiKeys(revoked=True, limit=2))
    rest = await list_api_keys(ctx, ListApiKeys(revoked=True, limit=2, cursor=first.next_cursor))
    assert [k.key_id for k in first.keys + rest.keys] == keys[::-1]
    assert (await refusal(revoke_api_key(ctx, RevokeApiKey(key_id="x")))).code == "not_found"
    other = context(services, org="other")
    assert (await refusal(revoke_api_key(other, RevokeApiKey(key_id=keys[0])))).code == "not_found"
    assert (await list_api_keys(other, ListApiKeys(revoked=True))).keys == []
    assert [entry[0] for entry in await audited(services)].count("revoked") == 1


async def test_keys_are_bounded(ctx: Context, services: Services) -> None:
    services.limits = Limits(api_keys_max=1)
    await set_user(ctx, SetUser(name="bot", roles=["viewer"]))
    made = await create_api_key(ctx, CreateApiKey(name="a", user="bot"))
    assert (await refusal(create_api_key(ctx, CreateApiKey(name="b", user="bot")))).code == "conflict"
    await revoke_api_key(ctx, RevokeApiKey(key_id=made.key.key_id))
    assert (await create_api_key(ctx, CreateApiKey(name="b", user="bot"))).key.name == "b"


async def test_teams_are_a_directory_that_the_next_decision_knows(ctx: Context, services: Services) -> None:
    u1, u2 = key_of("u1"), key_of("u2")
    both = sorted([u1, u2])
    assert (await set_team(ctx, SetTeam(team_id="red", members=["u2", "u1", u1]))).members == both
    await set_team(ctx, SetTeam(team_id="blue", members=["u1"]))
    first = await list_teams(ctx, ListTeams(limit=1))
    rest = await list_teams(ctx, ListTeams(limit=1, cursor=first.next_cursor))
    assert [(t.team_id, t.members) for t in first.teams + rest.teams] == [("blue", [u1]), ("red", both)]
    assert (await services.catalogue("default")).members == {u1: ("blue", "red"), u2: ("red",)}
    decided = await checked(
        services, provider="openai", model="gpt-4o", prompt_tokens=1, max_completion_tokens=1, user_id="u2"
    )
    assert decided["approved"]
    await set_team(ctx, SetTeam(team_id="red", members=[]))
    assert [t.team_id for t in (await list_teams(ctx, ListTeams())).teams] == ["blue"]
    assert (await list_teams(context(services, org="other"), ListTeams())).teams == []
    assert [entry[:3] for entry in await audited(services)] == [
        ("created", "team", "red"),
        ("created", "team", "blue"),
        ("deleted", "team", "red"),
    ]


async def test_a_team_names_its_members_as_the_org_lets_names_be_kept(ctx: Context, services: Services) -> None:
    await services.catalogue("default")
    await configure_manager(ctx, ConfigureManager(user_names="refuse"))
    refused = await refusal(set_team(ctx, SetTeam(team_id="red", members=[key_of("u1"), "u2"])))
    assert (refused.code, refused.field) == ("invalid_request", "members[1]")
    assert (await set_team(ctx, SetTeam(team_id="red", members=[key_of("u1")]))).members == [key_of("u1")]
    assert (await set_user(ctx, SetUser(name="ann", roles=["viewer"]))).name == "ann", "whoever signs in has a name"


async def test_a_change_that_cannot_be_audited_does_not_happen(ctx: Context, services: Services) -> None:
    await services.database.execute("ALTER TABLE audit ADD CONSTRAINT nothing CHECK (entity <> 'user')")
    with pytest.raises(Exception, match="nothing"):
        await set_user(ctx, SetUser(name="ann", roles=["admin"]))
    assert (await list_users(ctx, ListUsers())).users == []


async def test_changes_at_the_same_time_are_audited_against_what_they_changed(ctx: Context, services: Services) -> None:
    roles = ("provider", "viewer", "finance", "approver")
    await asyncio.gather(*(set_user(ctx, SetUser(name="ann", roles=[role])) for role in roles))  # pyright: ignore
    rows = await services.database.fetch("SELECT content FROM audit ORDER BY seq")
    entries: list[dict[str, Any]] = [msgspec.json.decode(row["content"]) for row in rows]
    assert [entry["before"] for entry in entries[1:]] == [entry["after"] for entry in entries[:-1]]
    assert [entry["action"] for entry in entries] == ["created", "updated", "updated", "updated"]
