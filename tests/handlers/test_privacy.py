"""User names: behind surrogates in every table, refused where the org says so, deleted for good when asked."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from handlers.context import Context, Services
from handlers.enforcer.budgets import create_budget
from handlers.management.privacy import anonymize_user
from handlers.management.reconcile import reconcile
from handlers.management.settings import configure_manager
from handlers.tracker.apply import Applier
from handlers.tracker.ingest import Ingest, StreamMessage
from handlers.tracker.query import aggregate_usage, get_usage
from schemas.budget import CreateBudget
from schemas.errors import SignalError
from schemas.privacy import AnonymizeUser
from schemas.settings import ConfigureManager
from schemas.usage import AggregateUsage, GetUsage, UsageFilters
from tests.support.services import RecordingSink, apply_usage, checked, context, gpt, refusal, user

NAME = "Ada Lovelace"
KEY = user(NAME)
DAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
CALL: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 10, "max_completion_tokens": 1}


async def everything(services: Services) -> str:
    """Every row of every table, as text, but for the one table that may know names."""
    found: list[str] = []
    async with services.database.connection() as connection:
        tables = await connection.fetch(
            "SELECT format('%I', c.relname) AS name FROM pg_class c WHERE c.relkind = 'r'"
            " AND c.relnamespace = 'public'::regnamespace AND c.relname <> 'identity'"
        )
        for table in tables:
            rows = await connection.fetch(f"SELECT t::text AS row FROM {table['name']} t")
            found += [row["row"] for row in rows]
        letters = await connection.fetch("SELECT payload FROM dead_letter")
        found += [row["payload"].decode("utf-8", "replace") for row in letters]
    return "\n".join(found)


async def names(services: Services) -> list[tuple[str, str | None]]:
    async with services.database.connection() as connection:
        rows = await connection.fetch("SELECT user_key, user_name FROM identity ORDER BY user_name")
    return [(row["user_key"], row["user_name"]) for row in rows]


async def work(ctx: Context) -> None:
    """A user's traces in everything that keeps one."""
    services = ctx.services
    await create_budget(ctx, CreateBudget(name="each", type="user", limit="1"))
    await create_budget(ctx, CreateBudget(name="one", type="user", entity_id=NAME, limit="2"))
    call: dict[str, Any] = {**CALL, "prompt_tokens": 1000, "max_completion_tokens": 100}
    held = await checked(services, **call, user_id=NAME)
    assert held["approved"]
    await apply_usage(services, gpt(user_id=NAME, reservation_id=held["reservation_id"]), gpt(user_id=NAME))
    await apply_usage(services, gpt(100_000, 100_000, user_id=NAME))
    await services.identities.flush()


async def test_no_table_but_one_knows_a_name(ctx: Context, services: Services) -> None:
    await work(ctx)
    assert "Lovelace" not in await everything(services)
    assert KEY in await everything(services)
    assert await names(services) == [(KEY, NAME)]


async def test_a_check_answers_with_the_name_its_caller_gave(ctx: Context, services: Services) -> None:
    await create_budget(ctx, CreateBudget(name="each", type="user", limit="0.001"))
    for name in (NAME, 'a "quoted" \\ name\u00e9', "uk_aaaaaaaaaaaaaaaaaaaaaaaaaa"):
        decision = await checked(services, **CALL, user_id=name)
        assert decision["budgets"][0]["entity_id"] == name
        large: dict[str, Any] = {**CALL, "prompt_tokens": 100_000}
        denied = await checked(services, **large, user_id=name)
        assert denied["approved"] is False
        assert name in denied["reason"]["message"]


async def test_queries_take_names_and_reconciliation_does_not_need_them(ctx: Context, services: Services) -> None:
    await work(ctx)
    page = await get_usage(ctx, GetUsage(filters=UsageFilters(user_id=NAME)))
    assert [event.user_id for event in page.events] == [KEY] * 3
    sums = await aggregate_usage(ctx, AggregateUsage(start=DAY, end=DAY + timedelta(days=2), group_by=["user_id"]))
    assert [row.group for row in sums.rows] == [{"user_id": KEY}]
    assert NAME.encode() in services.identities.named(ctx.org, msgspec.json.encode(sums))
    assert (await reconcile(ctx)).ok


async def test_anonymize_deletes_the_name_and_changes_no_sum(ctx: Context, services: Services) -> None:
    await work(ctx)
    before = await everything(services)
    reply = await anonymize_user(ctx, AnonymizeUser(user_id=NAME, reason="asked to be forgotten"))
    assert reply.user_key == KEY
    assert await names(services) == [(KEY, None)]
    after = await everything(services)
    added = set(after.splitlines()) - set(before.splitlines())
    assert set(before.splitlines()) - set(after.splitlines()) <= {
        line for line in before.splitlines() if line.startswith("(default,") and line.count(",") == 2
    }, "nothing but the head of the audit chain changes"
    assert any("anonymized" in line for line in added)
    assert "Lovelace" not in after
    assert (await reconcile(ctx)).ok


async def test_an_anonymous_user_goes_on_and_is_never_named_again(ctx: Context, services: Services) -> None:
    await work(ctx)
    first = await anonymize_user(ctx, AnonymizeUser(user_id=KEY, reason="asked"))
    await apply_usage(services, gpt(user_id=NAME))
    await services.identities.flush()
    assert await names(services) == [(KEY, None)]
    reply = msgspec.json.encode({"user_id": KEY})
    await services.identities.learn(ctx.org, reply)
    assert services.identities.named(ctx.org, reply) == reply
    again = await anonymize_user(ctx, AnonymizeUser(user_id=NAME, reason="asked twice"))
    assert again == first
    sums = await aggregate_usage(ctx, AggregateUsage(start=DAY, end=DAY + timedelta(days=2), group_by=["user_id"]))
    assert [(row.group["user_id"], row.requests) for row in sums.rows] == [(KEY, 4)]


async def test_another_agent_stops_naming_within_the_time_it_believes_a_name(database_url: str) -> None:
    from handlers.context import Limits
    from tests.support.services import services_for

    async with services_for(database_url, limits=Limits(identity_keep_s=0)) as one, services_for(database_url) as two:
        await apply_usage(one, gpt(user_id=NAME))
        await one.identities.flush()
        reply = msgspec.json.encode({"user_id": KEY})
        await one.identities.learn("default", reply)
        assert NAME.encode() in one.identities.named("default", reply)
        await anonymize_user(context(two), AnonymizeUser(user_id=NAME, reason="asked"))
        await one.identities.learn("default", reply)
        assert one.identities.named("default", reply) == reply


async def test_who_is_named_by_one_agent_is_named_by_the_next_one_that_is_asked(database_url: str) -> None:
    from handlers.context import Limits
    from tests.support.services import services_for

    hasty = Limits(identity_unknown_keep_s=0)
    async with services_for(database_url) as one, services_for(database_url, limits=hasty) as two:
        reply = msgspec.json.encode({"user_id": one.actor_key("default", NAME)})
        await two.identities.learn("default", reply)
        assert two.identities.named("default", reply) == reply, "nobody has stored the name yet"
        await one.identities.learn("default", reply)
        await two.identities.learn("default", reply)
        assert NAME.encode() in two.identities.named("default", reply)


async def test_names_of_one_org_are_not_told_in_another(ctx: Context, services: Services) -> None:
    await apply_usage(services, gpt(user_id=NAME))
    await services.identities.flush()
    reply = msgspec.json.encode({"user_id": KEY})
    await services.identities.learn("globex", reply)
    assert services.identities.named("globex", reply) == reply
    assert user(NAME, "globex") != KEY


@pytest.mark.parametrize("policy", ["surrogate", "refuse"])
async def test_an_org_that_wants_no_names_keeps_none(
    ctx: Context, services: Services, sink: RecordingSink, policy: Any
) -> None:
    await configure_manager(ctx, ConfigureManager(user_names=policy))
    if policy == "refuse":
        assert (await refusal(checked(services, **CALL, user_id=NAME))).field == "user_id"
        with pytest.raises(SignalError) as refused:
            await apply_usage(services, gpt(user_id=NAME))
        assert refused.value.field == "user_id"
        await apply_usage(services, gpt(user_id=KEY))
        assert (await checked(services, **CALL, user_id=KEY))["approved"]
    else:
        assert (await checked(services, **CALL, user_id=NAME))["approved"]
        await apply_usage(services, gpt(user_id=NAME))
    await services.identities.flush()
    assert await names(services) == []
    assert "Lovelace" not in await everything(services)


async def test_a_refused_name_does_not_stay_in_a_dead_letter(ctx: Context, services: Services) -> None:
    await configure_manager(ctx, ConfigureManager(user_names="refuse"))
    data = msgspec.json.encode({"provider": "openai", "model": "gpt-4o", "prompt_tokens": 1, "user_id": NAME})
    message = StreamMessage("tm.ingest.default.llm", data, "s-1", services.clock())
    await Ingest(services, Applier(services)).apply([message])
    text = await everything(services)
    assert "plain user names are refused" in text
    assert "Lovelace" not in text


async def test_dead_letters_lose_the_name_too(ctx: Context, services: Services) -> None:
    ingest = Ingest(services, Applier(services))
    bad = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": -1, "user_id": NAME}
    for number, data in enumerate(
        (msgspec.json.encode(bad), msgspec.json.encode({"events": [bad, bad]}), f"not json of {NAME}".encode())
    ):
        await ingest.apply([StreamMessage("tm.ingest.default.llm", data, f"s-{number}", services.clock())])
    assert "Lovelace" in await everything(services)
    reply = await anonymize_user(ctx, AnonymizeUser(user_id=NAME, reason="asked"))
    assert reply.dead_letters == 4
    assert "Lovelace" not in await everything(services)


async def test_reported_cost_is_believed_only_where_the_org_says_so(ctx: Context, services: Services) -> None:
    async def costs() -> list[str | None]:
        page = await get_usage(ctx, GetUsage())
        return [event.cost for event in reversed(page.events)]

    async def settle(**fields: Any) -> None:
        settings = services.org_settings(ctx.org)
        from handlers.tracker.priced import priced

        event = priced(
            gpt(reported_cost="0.002", **fields),
            org=ctx.org,
            event_id=services.new_id(),
            arrived_at=services.clock(),
            cards=services.rate_cards,
            limits=services.limits,
            settings=settings,
        ).event
        await Applier(services).apply(ctx.org, [event])

    await settle()
    await configure_manager(ctx, ConfigureManager(reported_cost_providers=("OpenAI",)))
    await settle()
    await configure_manager(ctx, ConfigureManager(reported_cost="never"))
    await settle()
    await configure_manager(ctx, ConfigureManager(reported_cost="always", reported_cost_providers=()))
    await settle()
    await settle(provider="elsewhere", model="nobody-prices-this")
    assert await costs() == ["0.0035", "0.002", "0.0035", "0.002", "0.002"]
    page = await get_usage(ctx, GetUsage(limit=1))
    assert [(item.kind, item.tokens, item.cost) for item in page.events[0].line_items] == [("reported", 1, "0.002")]
    assert (await reconcile(ctx)).ok
