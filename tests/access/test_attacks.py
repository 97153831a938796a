"""Ways round who may do what and who may be named, each of which once led somewhere."""

import json
from typing import Any

import msgspec
import pytest

from agent.identity import Access
from handlers.access.schedules import list_schedules, set_schedule
from handlers.access.users import delete_user, list_users, set_user
from handlers.alerts.channels import test_channel as try_channel
from handlers.alerts.content import DELIVERED, Content, Outcome
from handlers.alerts.couriers import Couriers, Target
from handlers.context import Caller, Context, Services
from handlers.enforcer.brakes import set_brake
from handlers.management.audit import get_audit_trail
from handlers.management.privacy import anonymize_user
from handlers.management.status import get_status
from handlers.tracker.apply import Applier
from handlers.tracker.ingest import Ingest, StreamMessage
from schemas.access import DeleteUser, ListSchedules, ListUsers, SetSchedule, SetUser
from schemas.audit import GetAuditTrail
from schemas.brake import SetBrake
from schemas.channel import TestChannel as TryChannel
from schemas.management import GetStatus
from schemas.privacy import AnonymizeUser
from store import channels as channel_store
from store import dead_letters as dead_letter_store
from store.channels import ChannelRow
from tests.access.conftest import NKey
from tests.access.test_directory import following
from tests.handlers.test_overrides import ask, new_budget, review
from tests.support.polling import eventually
from tests.support.services import context, refusal, user


def person(services: Services, name: str, *roles: str, org: str = "default") -> Context:
    """A request of somebody who signed in, as dispatch makes it."""
    return Context(services, Caller(org, name, frozenset(roles), key=services.actor_key(org, name)))


@pytest.mark.parametrize("by_key", [False, True])
async def test_being_forgotten_gives_no_role_back(ctx: Context, database_url: str, by_key: bool) -> None:
    """A deleted user may do nothing; without a row the roles of everybody would be the user's again."""
    services, key = ctx.services, NKey.new().text
    await set_user(ctx, SetUser(name="ann", display_name="Ann", roles=["viewer"], public_key=key))
    await delete_user(ctx, DeleteUser(name="ann"))
    async with following(database_url) as directory:
        access = Access(directory, lambda _org, _user: frozenset({"admin"}), services.actor_key)
        known_as = key if by_key else "ann"
        assert access.caller("default", known_as).roles == frozenset()
        await anonymize_user(ctx, AnonymizeUser(user_id="ann", reason="asked"))
        await eventually(lambda: directory.user("default", "ann") is None)
        assert access.caller("default", known_as).roles == frozenset()
        assert access.caller("default", "somebody").roles == {"admin"}
    (left,) = (await list_users(ctx, ListUsers())).users
    assert (left.name, left.display_name, left.active) == (user("ann"), "", False)
    # Whoever comes back under the same name, with the same key, is not kept out by what is left.
    await set_user(ctx, SetUser(name="ann", roles=["viewer"], public_key=key))
    assert [found.name for found in (await list_users(ctx, ListUsers())).users] == ["ann"]


async def test_nobody_is_called_what_stands_for_somebody_else(ctx: Context) -> None:
    error = await refusal(set_user(ctx, SetUser(name=user("bob"), roles=["approver"])))
    assert (error.code, error.field) == ("invalid_request", "name")


async def test_who_asked_by_key_may_not_approve_by_name(ctx: Context, services: Services) -> None:
    """The bus knows somebody who is not in the table by the key, and by the name as soon as there is a row."""
    key = NKey.new().text
    budget = await new_budget(ctx)
    asked = await ask(person(services, key, "viewer"), budget)
    await set_user(ctx, SetUser(name="ann", roles=["approver"], public_key=key))
    await set_user(ctx, SetUser(name="bob", roles=["approver"], public_key=NKey.new().text))
    assert (await refusal(review(person(services, "ann", "approver"), asked))).code == "forbidden"
    assert (await review(person(services, "bob", "approver"), asked)).status == "approved"


async def test_the_trail_is_searched_by_the_names_people_have(ctx: Context, services: Services) -> None:
    alice, bob = person(services, "alice", "admin"), person(services, "bob", "admin")
    await set_brake(alice, SetBrake(scope="team", entity_id="red", on=True, reason="one"))
    await set_user(bob, SetUser(name="carol", roles=["viewer"]))

    async def found(**given: Any) -> list[str]:
        return [entry.entity for entry in (await get_audit_trail(ctx, GetAuditTrail(**given))).entries]

    assert await found(actor="alice") == await found(actor=user("alice")) == ["brake"]
    assert await found(actor="bob") == ["user"]
    assert await found(entity="user", entity_id="carol") == await found(entity_id=user("carol")) == ["user"]
    assert await found(actor="carol") == []
    assert await found(entity_id="carol") == []


async def test_a_schedule_keeps_no_name(ctx: Context, services: Services) -> None:
    for signal, request in (
        ("get_usage", {"filters": {"user_id": "Ada Lovelace"}}),
        ("get_budget_status", {"user_id": "Ada Lovelace"}),
        ("list_budgets", {"type": "user", "entity_id": "Ada Lovelace"}),
    ):
        await set_schedule(ctx, SetSchedule(name=signal, cron="0 9 * * *", signal=signal, request=request))
    rows = await services.database.fetch(
        "SELECT request AS text FROM schedule UNION ALL SELECT content FROM audit UNION ALL"
        " SELECT convert_from(payload, 'UTF8') FROM outbox"
    )
    assert [row["text"] for row in rows if "Lovelace" in row["text"]] == []
    shown = await list_schedules(ctx, ListSchedules())
    named = services.identities.named("default", msgspec.json.encode(shown))
    assert named.count(b"Ada Lovelace") == 3


async def test_a_schedule_of_somebody_who_is_not_in_the_table_loses_the_name_too(
    ctx: Context, services: Services
) -> None:
    await set_schedule(ctx, SetSchedule(name="s", cron="0 9 * * *", signal="list_budgets"))
    await anonymize_user(ctx, AnonymizeUser(user_id="alice", reason="asked"))
    (left,) = (await list_schedules(ctx, ListSchedules())).schedules
    assert (left.created_by, left.active) == (None, False)
    rows = await services.database.fetch("SELECT s::text AS row FROM schedule s")
    assert "alice" not in rows[0]["row"]


NAME = 'Zoë/Å "Z"'
LETTERS = {
    "escaped": json.dumps({"user_id": NAME, "model": 1}),
    "slashes": json.dumps({"user_id": NAME}).replace("/", "\\/"),
    "upper case": json.dumps({"user_id": NAME}).replace("\\u00eb", "\\u00EB"),
    "another field": json.dumps({"model": "gpt-4o", "user": NAME, "people": [NAME], "of": {"USER": NAME}}),
    "no JSON": json.dumps({"user_id": NAME})[:-1],
    "raw": json.dumps({"user_id": NAME}, ensure_ascii=False),
    "in a batch": json.dumps({"events": [{"user_id": NAME}]}),
}


@pytest.mark.parametrize("letter", LETTERS)
async def test_a_dead_letter_loses_the_name_however_it_is_written(
    ctx: Context, services: Services, letter: str
) -> None:
    data = LETTERS[letter].encode()
    message = StreamMessage("tm.ingest.default.llm", data, "s-1", services.clock())
    await Ingest(services, Applier(services)).apply([message])
    reply = await anonymize_user(ctx, AnonymizeUser(user_id=NAME, reason="asked"))
    assert reply.dead_letters >= 1
    rows = await services.database.fetch("SELECT payload, message FROM dead_letter")
    for row in rows:
        text = row["payload"].decode()
        assert "Zo" not in text and user(NAME) in text
        assert "Zo" not in row["message"]


async def test_a_dead_letter_keeps_what_only_looks_like_the_name(ctx: Context, services: Services) -> None:
    data = json.dumps({"provider": "openai", "model": "gpt-4o", "prompt_tokens": -1, "user_id": "openai"}).encode()
    message = StreamMessage("tm.ingest.default.llm", data, "s-1", services.clock())
    await Ingest(services, Applier(services)).apply([message])
    await anonymize_user(ctx, AnonymizeUser(user_id="openai", reason="asked"))
    (row,) = await services.database.fetch("SELECT payload FROM dead_letter")
    found = json.loads(row["payload"])
    assert (found["provider"], found["user_id"]) == ("openai", user("openai"))


async def test_who_may_not_read_spending_does_not_read_it_from_the_status(services: Services) -> None:
    for roles in ((), ("provider",)):
        ctx = person(services, "p", *roles)
        assert (await get_status(ctx, GetStatus())).compliance is None
        error = await refusal(get_status(ctx, GetStatus(reconcile=True)))
        assert (error.code, error.field) == ("forbidden", "reconcile")
    for role in ("viewer", "manager", "approver", "finance", "admin"):
        status = await get_status(person(services, "v", role), GetStatus(reconcile=True))
        assert status.compliance is not None and status.reconciliation is not None


async def test_events_of_another_org_that_wait_are_not_counted(ctx: Context, services: Services) -> None:
    other = context(services, org="globex")
    await set_brake(other, SetBrake(scope="org", entity_id="*", on=True, reason="busy"))
    assert (await get_status(ctx, GetStatus())).outbox_pending == 0
    assert (await get_status(other, GetStatus())).outbox_pending == 1


class Recording(Couriers):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Content] = []

    async def send(self, target: Target, content: Content, *, trial: bool = False) -> Outcome:
        self.sent.append(content)
        return DELIVERED


async def test_a_test_message_says_who_asked_by_name(services: Services) -> None:
    services.couriers = recording = Recording()
    ctx, now = person(services, "alice", "admin"), services.clock()
    sealed = services.vault.seal(Target("apprise", "json://example.com", None).packed())
    row = ChannelRow(
        org_id="default", name="c", kind="apprise", sealed=sealed, shown="json://…", min_level="info", quiet_hours=None,
        messages_per_hour_max=60, active=True, created_at=now, updated_at=now,
    )  # fmt: skip
    async with services.database.connection() as connection:
        await channel_store.put(connection, row)
    await try_channel(ctx, TryChannel(name="c"))
    (content,) = recording.sent
    for part in (content.text, content.mail_text, content.mail_html, content.body.decode()):
        assert "alice asked for it" in part
        assert "uk_" not in part


async def test_the_letters_of_another_org_keep_the_name(ctx: Context, services: Services) -> None:
    data = json.dumps({"user_id": NAME}).encode()
    for org in ("default", "globex"):
        message = StreamMessage(f"tm.ingest.{org}.llm", data, f"s-{org}", services.clock())
        await Ingest(services, Applier(services)).apply([message])
    await anonymize_user(ctx, AnonymizeUser(user_id=NAME, reason="asked"))
    async with services.database.connection() as connection:
        rows = await dead_letter_store.naming(connection, "globex", NAME, after=None, limit=10)
    assert [payload for _, payload in rows] == [data]
