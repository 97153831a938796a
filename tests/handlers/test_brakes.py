"""set_brake and list_brakes: who may stop what, what is remembered, and that every agent hears of it."""

from typing import Any

import msgspec
import pytest

from handlers.context import Caller, Context, Limits, Services
from handlers.enforcer.brakes import list_brakes, set_brake
from handlers.management.audit import get_audit_trail
from schemas.audit import AuditEntry, GetAuditTrail
from schemas.brake import Brake, BrakeScope, ListBrakes, SetBrake
from tests.support.services import ORG, context, outbox_events, refusal, services_for


def manager(services: Services, *teams: str, user: str = "mia") -> Context:
    return Context(services, Caller(ORG, user, frozenset({"manager"}), frozenset(teams)))


def stop(scope: BrakeScope, entity_id: str = "*", *, on: bool = True, reason: str = "runaway loop") -> SetBrake:
    return SetBrake(scope=scope, entity_id=entity_id, on=on, reason=reason)


async def stopped(ctx: Context, **request: Any) -> list[tuple[str, str]]:
    return [(brake.scope, brake.entity_id) for brake in (await list_brakes(ctx, ListBrakes(**request))).brakes]


async def trail(ctx: Context) -> list[AuditEntry]:
    return (await get_audit_trail(ctx, GetAuditTrail(entity="brake"))).entries


async def test_a_brake_is_on_until_it_is_released(ctx: Context, services: Services) -> None:
    reply = await set_brake(ctx, stop("org"))
    assert (reply.changed, reply.brake.on, reply.brake.set_by) == (True, True, "alice")
    assert (await list_brakes(ctx, ListBrakes())).brakes == [reply.brake]
    off = await set_brake(ctx, stop("org", on=False, reason="fixed"))
    assert (off.changed, off.brake.on, off.brake.reason) == (True, False, "fixed")
    assert await stopped(ctx) == []
    events = [data for name, data in await outbox_events(services) if name == "brake.changed"]
    assert [(e["actor"], e["before"] is None, e["after"]["on"], e["after"]["reason"]) for e in events] == [
        ("alice", True, True, "runaway loop"),
        ("alice", False, False, "fixed"),
    ]
    newest, oldest = await trail(ctx)
    assert (oldest.action, oldest.entity_id, oldest.actor, oldest.reason) == (
        "switched_on",
        "org/*",
        "alice",
        "runaway loop",
    )
    assert msgspec.json.decode(oldest.after, type=Brake) == reply.brake
    assert (newest.action, msgspec.json.decode(newest.before, type=Brake)) == ("switched_off", reply.brake)
    assert (newest.reason, bytes(newest.after), bytes(oldest.before)) == ("fixed", b"null", b"null")


async def test_the_next_decision_of_another_agent_knows_it(ctx: Context, database_url: str) -> None:
    async with services_for(database_url) as other:
        before = await other.catalogue(ORG)
        await set_brake(ctx, stop("model", "openai/gpt-4*"))
        assert before.brakes == ()
        assert ctx.services.catalogues.known(ORG) is not None
        async with other.database.transaction() as connection:
            after = await other.catalogues.reload(connection, ORG)
        assert after.version > before.version
        assert [(b.scope, b.entity_id, b.reason) for b in after.brakes] == [("model", "openai/gpt-4*", "runaway loop")]


async def test_setting_what_is_set_changes_nothing(ctx: Context, services: Services) -> None:
    first = await set_brake(ctx, stop("provider", "openai"))
    again = await set_brake(context(services, user="bob"), stop("provider", "openai"))
    assert (again.changed, again.brake) == (False, first.brake)
    off = await set_brake(ctx, stop("provider", "anthropic", on=False))
    assert (off.changed, off.brake.on) == (False, False)
    assert len(await trail(ctx)) == len(await outbox_events(services)) == 1
    other = await set_brake(context(services, user="bob"), stop("provider", "openai", reason="still"))
    assert (other.changed, other.brake.set_by, other.brake.reason) == (True, "bob", "still")
    assert [entry.action for entry in await trail(ctx)] == ["updated", "switched_on"]


@pytest.mark.parametrize(
    ("scope", "entity_id", "field"),
    [("org", "default", "entity_id"), ("team", "*", "entity_id"), ("provider", "*", "entity_id"),
     ("provider", "azure*", "entity_id"), ("team", "a*", "entity_id")],
)  # fmt: skip
async def test_what_would_stop_nothing_is_refused(ctx: Context, scope: BrakeScope, entity_id: str, field: str) -> None:
    error = await refusal(set_brake(ctx, stop(scope, entity_id)))
    assert (error.code, error.field) == ("invalid_request", field)


async def test_a_reason_must_say_something(ctx: Context) -> None:
    error = await refusal(set_brake(ctx, stop("org", reason="  ")))
    assert (error.code, error.field) == ("invalid_request", "reason")
    for missing in (b'{"scope":"org","on":true}', b'{"scope":"org","on":true,"reason":""}'):
        with pytest.raises(msgspec.ValidationError, match="reason"):
            msgspec.json.decode(missing, type=SetBrake)


@pytest.mark.parametrize(
    ("request_", "field"),
    [(stop("org"), "scope"), (stop("model", "gpt-4o"), "scope"), (stop("provider", "openai"), "scope"),
     (stop("team", "b"), "entity_id"), (stop("team", "b", on=False), "entity_id")],
)  # fmt: skip
async def test_a_manager_stops_own_teams_only(ctx: Context, services: Services, request_: SetBrake, field: str) -> None:
    await set_brake(ctx, stop("team", "b"))
    error = await refusal(set_brake(manager(services, "a"), request_))
    assert (error.code, error.field) == ("forbidden", field)
    assert (await set_brake(manager(services, "a"), stop("team", "a"))).changed
    assert await stopped(ctx) == [("team", "a"), ("team", "b")]


async def test_a_manager_cannot_set_going_what_an_admin_has_stopped(ctx: Context, services: Services) -> None:
    await set_brake(ctx, stop("team", "a"))
    for attempt in (stop("team", "a", on=False), stop("team", "a", reason="mine now")):
        error = await refusal(set_brake(manager(services, "a"), attempt))
        assert (error.code, error.field) == ("forbidden", "entity_id")
    assert [entry.action for entry in await trail(ctx)] == ["switched_on"]
    assert await stopped(ctx) == [("team", "a")]
    await set_brake(ctx, stop("team", "a", on=False))
    await set_brake(manager(services, "a"), stop("team", "a"))
    assert (await set_brake(manager(services, "a"), stop("team", "a", on=False))).changed


async def test_brakes_are_listed_in_pages_and_by_scope(ctx: Context) -> None:
    wanted = sorted([("team", f"t{i}") for i in range(5)] + [("model", "gpt-*"), ("provider", "openai")])
    for scope, entity_id in wanted:
        await set_brake(ctx, SetBrake(scope=scope, entity_id=entity_id, on=True, reason="r"))  # pyright: ignore[reportArgumentType]
    found: list[tuple[str, str]] = []
    cursor: str | None = None
    for _ in range(4):
        page = await list_brakes(ctx, ListBrakes(limit=2, cursor=cursor))
        found += [(brake.scope, brake.entity_id) for brake in page.brakes]
        cursor = page.next_cursor
    assert (found, cursor) == (wanted, None)
    assert await stopped(ctx, scope="model") == [("model", "gpt-*")]
    error = await refusal(list_brakes(ctx, ListBrakes(cursor="x")))
    assert (error.code, error.field) == ("invalid_request", "cursor")


async def test_the_number_of_brakes_is_bounded(database_url: str) -> None:
    async with services_for(database_url, limits=Limits(brakes_max=2)) as services:
        ctx = context(services)
        for team in ("a", "b"):
            await set_brake(ctx, stop("team", team))
        error = await refusal(set_brake(ctx, stop("team", "c")))
        assert (error.code, error.field) == ("conflict", "entity_id")
        assert (await set_brake(ctx, stop("team", "a", reason="changing one is not one more"))).changed
        assert [entry.action for entry in await trail(ctx)] == ["updated", "switched_on", "switched_on"]


async def test_an_org_sees_and_stops_only_its_own(ctx: Context, services: Services) -> None:
    other = context(services, org="other")
    await set_brake(ctx, stop("org"))
    assert await stopped(other) == []
    assert not (await set_brake(other, stop("org", on=False))).changed
    assert await stopped(ctx) == [("org", "*")]
    assert await trail(other) == []
