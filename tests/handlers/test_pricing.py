"""``update_pricing``, ``list_price_rules`` and aliases: dated versions, never edited, known to the next decision."""

from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest

from handlers.alerts.rollback import REVERTERS
from handlers.context import Context, Limits, Services
from handlers.enforcer.transaction import catalogue_change
from handlers.management.audit import get_audit_trail
from handlers.pricing.aliases import list_model_aliases, set_model_alias
from handlers.pricing.listing import list_price_rules
from handlers.pricing.update import revert_rule, rule_concerns, update_pricing
from schemas.audit import GetAuditTrail
from schemas.errors import SignalError
from schemas.pricing import (
    ListModelAliases,
    ListPriceRules,
    PriceRuleVersion,
    PricingUpdate,
    SetModelAlias,
    UpdatePricing,
)
from tests.support.services import apply_usage, checked, context, gpt, outbox_events, refusal, services_for

NOW = datetime.now(UTC)
# gpt-4o is listed at 2.5 and 10 USD a million: 1,000 and 100 tokens cost 0.0035 USD.
CALL: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 1000, "max_completion_tokens": 100}
CONTRACT: dict[str, Any] = {
    "name": "acme", "layer": "contract", "op": "rates", "provider": "openai", "model": "gpt-4o",
    "rates": {"input": "2", "output": "8"},
}  # fmt: skip
DISCOUNT: dict[str, Any] = {
    "name": "ten off", "layer": "contract", "op": "multiply", "provider": "openai", "factor": "0.9"
}  # fmt: skip


async def update(ctx: Context, *rules: dict[str, Any], **fields: Any) -> PricingUpdate:
    request = msgspec.convert({"rules": list(rules), **fields}, UpdatePricing)
    return await update_pricing(ctx, request)


async def names(ctx: Context, **fields: Any) -> list[tuple[str, int, str]]:
    given: dict[str, Any] = {"origin": "org", **fields}
    request = ListPriceRules(**given)
    return [(r.name, r.version, r.state) for r in (await list_price_rules(ctx, request)).rules]


async def price_of(services: Services, **fields: Any) -> str | None:
    return (await checked(services, **CALL, **fields))["estimated_cost"]


async def test_a_contract_prices_the_next_check_and_the_next_usage(ctx: Context, services: Services) -> None:
    assert await price_of(services) == "0.0035"
    done = await update(ctx, CONTRACT, reason="signed")
    assert done.applied and done.revision == 1
    # 1000 x 2 + 100 x 8 = 2,800 per million
    assert await price_of(services) == "0.0028"
    await apply_usage(services, gpt(id="u1"))
    (row,) = await services.database.fetch("SELECT cost, list_cost, price_source, price_version FROM usage_event")
    assert tuple(row)[:3] == (2_800_000, 3_500_000, "contract")
    assert "acme@1" in row["price_version"]


async def test_versions_are_appended_and_the_version_read_must_be_the_newest(ctx: Context, services: Services) -> None:
    await update(ctx, CONTRACT)
    for stale in (0, 2):
        error = await refusal(update(ctx, {**CONTRACT, "version": stale}))
        assert (error.code, error.field) == ("conflict", "rules[0].version")
    (second,) = (await update(ctx, {**CONTRACT, "version": 1, "rates": {"input": "1", "output": "4"}})).rules
    assert second.version == 2
    assert await price_of(services) == "0.0014"
    assert await names(ctx, history=True) == [("acme", 1, "superseded"), ("acme", 2, "in_force")]
    assert await names(ctx) == [("acme", 2, "in_force")]
    first = (await list_price_rules(ctx, ListPriceRules(history=True, origin="org"))).rules[0]
    assert first.valid_to == second.valid_from, "where one begins the other one ends"
    assert (await names(ctx, at=first.valid_from)) == [("acme", 1, "in_force")]
    with pytest.raises(asyncpg.PostgresError, match="append-only"):
        await services.database.execute("UPDATE price_rule SET version = 9")


async def test_a_rule_ends_at_its_date_and_what_it_priced_stays(ctx: Context, services: Services) -> None:
    await update(ctx, CONTRACT)
    await apply_usage(services, gpt(id="u1"))
    done = await update(ctx, end=[{"name": "acme", "version": 1}])
    assert done.rules[0].rule is None and done.rules[0].state == "over"
    assert await price_of(services) == "0.0035"
    assert await services.database.fetchval("SELECT cost FROM usage_event") == 2_800_000
    assert await names(ctx) == []
    assert await names(ctx, history=True) == [("acme", 1, "superseded"), ("acme", 2, "over")]
    again = await refusal(update(ctx, end=[{"name": "acme", "version": 2}]))
    assert (again.code, again.field) == ("conflict", "end[0].name")
    assert (await update(ctx, {**CONTRACT, "version": 2})).rules[0].version == 3, "and may begin anew"


async def test_dates_ahead_wait_and_dates_past_need_backdate(ctx: Context, services: Services) -> None:
    tomorrow, yesterday = (NOW + timedelta(days=n) for n in (1, -1))
    await update(ctx, {**CONTRACT, "valid_from": tomorrow.isoformat()})
    assert await price_of(services) == "0.0035"
    assert await names(ctx) == [("acme", 1, "scheduled")]
    assert await names(ctx, at=tomorrow) == [("acme", 1, "in_force")]
    late = {**DISCOUNT, "valid_from": yesterday.isoformat()}
    error = await refusal(update(ctx, late))
    assert (error.code, error.field) == ("invalid_request", "rules[0].valid_from")
    assert "reprice_usage" in error.message
    await update(ctx, late, backdate=True)
    assert await names(ctx, at=yesterday) == [("ten off", 1, "in_force")]
    early = {"name": "acme", "version": 1, "at": yesterday.isoformat()}
    assert (await refusal(update(ctx, end=[early]))).field == "end[0].at"


async def test_all_or_nothing(ctx: Context, services: Services) -> None:
    error = await refusal(update(ctx, CONTRACT, {**DISCOUNT, "factor": "-1"}))
    assert error.field == "rules[1].factor"
    assert await names(ctx, history=True) == [] and await services.database.fetchval("SELECT count(*) FROM outbox") == 0


async def test_two_rules_for_the_same_calls_are_refused_unless_one_is_more_particular(ctx: Context) -> None:
    await update(ctx, CONTRACT)
    error = await refusal(update(ctx, {**CONTRACT, "name": "other"}))
    assert (error.code, error.field) == ("conflict", "rules[0].name") and "'acme'" in error.message
    await update(ctx, {**CONTRACT, "name": "batches", "batch": True})
    await update(ctx, {**CONTRACT, "name": "all models", "model": "gpt-*"})
    far = (NOW + timedelta(days=30)).isoformat()
    after = (await refusal(update(ctx, {**CONTRACT, "name": "next", "valid_from": far}))).code
    assert after == "conflict", "the first one does not end"
    await update(ctx, end=[{"name": "acme", "version": 1, "at": far}])
    await update(ctx, {**CONTRACT, "name": "next", "valid_from": far})


async def test_every_change_is_told_and_audited_with_what_was_before(ctx: Context, services: Services) -> None:
    await update(ctx, CONTRACT, reason="signed on Monday")
    await update(ctx, {**CONTRACT, "version": 1, "rates": {"input": "1", "output": "4"}})
    await update(ctx, end=[{"name": "acme", "version": 2}])
    told = [data for name, data in await outbox_events(services) if name == "pricing.changed"]
    assert [t["action"] for t in told] == ["created", "updated", "ended"]
    assert [t["revision"] for t in told] == [1, 2, 3]
    trail = (await get_audit_trail(ctx, GetAuditTrail(entity="price_rule"))).entries
    entries = [(e.action, e.entity_id, e.reason) for e in trail]
    assert entries[::-1] == [
        ("created", "acme", "signed on Monday"),
        ("updated", "acme", None),
        ("ended", "acme", None),
    ]
    assert plain(trail[1].before)["rule"]["rates"] == {"input": "2", "output": "8"}
    assert plain(trail[1].after)["rule"]["rates"] == {"input": "1", "output": "4"}


async def test_a_dry_run_writes_nothing(ctx: Context, services: Services) -> None:
    await update(ctx, DISCOUNT)
    count = "SELECT (SELECT count(*) FROM price_rule) + (SELECT count(*) FROM outbox) + (SELECT count(*) FROM audit)"
    before = await services.database.fetchval(count)
    found = await update(ctx, CONTRACT, dry_run=True)
    assert not found.applied and found.preview is not None and found.rules[0].version == 1
    assert await services.database.fetchval(count) == before
    assert (await refusal(update(ctx, CONTRACT, preview={"start": NOW, "end": NOW}))).field == "preview"


def rule(**fields: Any) -> dict[str, Any]:
    return {"name": "r", "layer": "contract", "op": "multiply", "factor": "0.9", **fields}


def rates(**fields: Any) -> dict[str, Any]:
    return {"name": "r", "layer": "contract", "op": "rates", "rates": {"input": "1", "output": "2"}, **fields}


VOLUME = {"op": "volume", "factor": None}
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("rates with a factor", rates(factor="0.5"), "factor"),
    ("rates without rates", rates(rates={}), "rates"),
    ("a factor and rates", rule(rates={"input": "1"}), "rates"),
    ("a factor that is none", rule(factor="x"), "factor"),
    ("a factor below 0", rule(factor="-1"), "factor"),
    ("a factor beyond a thousand", rule(factor="1000.1"), "factor"),
    ("no factor", rule(factor=None), "factor"),
    ("partial where nothing is stated", rule(partial=True), "partial"),
    ("a rate with ten decimals", rates(rates={"input": "0.0000000001"}), "rates.input"),
    ("a rate below 0", rates(rates={"output": "-2"}), "rates.output"),
    ("a rate beyond any price", rates(rates={"output": "1000000001"}), "rates.output"),
    ("kinds beside rates", rates(kinds=["input"]), "kinds"),
    ("a kind twice", rule(kinds=["input", "input"]), "kinds"),
    ("tiers that do not ascend", rates(tiers=[{"above_prompt_tokens": 9, "rates": {"input": "1"}}] * 2),
     "tiers[1].above_prompt_tokens"),
    ("a tier without rates", rates(tiers=[{"above_prompt_tokens": 9, "rates": {}}]), "tiers[0].rates"),
    ("a tier of a kind without a base", rates(tiers=[{"above_prompt_tokens": 9, "rates": {"request": "1"}}]),
     "tiers[0].rates.request"),
    ("volume without tiers", rule(**VOLUME), "volume"),
    ("volume that descends", rule(**VOLUME, volume=[{"above": "5", "factor": "1"}, {"above": "4", "factor": "1"}]),
     "volume[1].above"),
    ("volume of half a token", rule(**VOLUME, volume=[{"above": "0.5", "factor": "1"}]), "volume[0].above"),
    ("a volume's factor", rule(**VOLUME, volume=[{"above": "5", "factor": "2000"}]), "volume[0].factor"),
    ("a commitment without its amount", rule(op="commitment"), "amount"),
    ("a commitment of nothing", rule(op="commitment", amount="0"), "amount"),
    ("a currency that is none", rates(currency="XXY"), "currency"),
    ("a currency of a factor", rule(currency="EUR"), "currency"),
    ("an end before its start", rule(valid_from="2999-01-02T00:00:00Z", valid_to="2999-01-01T00:00:00Z"), "valid_to"),
    ("an end in the past", rule(valid_to="2020-01-01T00:00:00Z"), "valid_to"),
    ("an empty window", rule(daily={"start": "10:00", "end": "10:00"}), "daily.end"),
    ("a zone that is none", rule(daily={"start": "10:00", "end": "12:00", "timezone": "Mars/Base"}), "daily.timezone"),
    ("a day twice", rule(daily={"start": "10:00", "end": "12:00", "weekdays": [1, 1]}), "daily.weekdays"),
    ("a blank name", rule(name=" "), "name"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "wrong", "field"), WRONG, ids=[w[0] for w in WRONG])
async def test_a_rule_that_would_not_do_what_it_seems_to_is_refused(
    ctx: Context, what: str, wrong: dict[str, Any], field: str
) -> None:
    error = await refusal(update(ctx, wrong))
    assert (error.code, error.field) == ("invalid_request", f"rules[0].{field}"), what


async def test_nothing_and_the_same_name_twice_are_refused(ctx: Context) -> None:
    assert (await refusal(update(ctx))).field == "rules"
    assert (await refusal(update(ctx, CONTRACT, CONTRACT))).field == "rules[1].name"
    ended = await refusal(update(ctx, CONTRACT, end=[{"name": "acme", "version": 0}]))
    assert ended.field == "end[0].name"
    unknown = await refusal(update(ctx, end=[{"name": "nobody", "version": 1}]))
    assert (unknown.code, unknown.field) == ("not_found", "end[0].name")


async def test_what_makes_calls_free_or_unpriced_is_accepted_with_a_warning(ctx: Context) -> None:
    free = await update(ctx, rule(name="free", factor="0"), rates(name="none", model="x", rates={"web_search": "1"}))
    assert any(w.startswith("free: the factor is 0") for w in free.warnings)
    assert any("neither input nor output" in w for w in free.warnings)


async def test_there_are_only_so_many_rules(database_url: str) -> None:
    async with services_for(database_url, limits=Limits(price_rules_max=2)) as services:
        ctx = context(services)
        await update(ctx, CONTRACT)
        error = await refusal(update(ctx, DISCOUNT, rule()))
        assert (error.code, error.field) == ("conflict", "rules")
        await update(ctx, DISCOUNT)
        await update(ctx, {**DISCOUNT, "version": 1})


async def test_rules_page_through_the_orgs_and_the_agents(ctx: Context) -> None:
    await update(ctx, *[rule(name=f"r{i}", model=f"m{i}") for i in range(5)])
    found: list[PriceRuleVersion] = []
    cursor: str | None = None
    while True:
        page = await list_price_rules(ctx, ListPriceRules(limit=2, cursor=cursor))
        found += page.rules
        assert len(page.rules) <= 2
        if (cursor := page.next_cursor) is None:
            break
    assert [r.name for r in found if r.origin == "org"] == [f"r{i}" for i in range(5)]
    defaults = [r for r in found if r.origin == "default"]
    assert len(defaults) > 5 and all(r.rule is not None and r.rule.source for r in defaults), "each says where from"
    assert len({(r.origin, r.name, r.version) for r in found}) == len(found)
    assert {r.origin for r in found} == {"org", "default"}
    only = await list_price_rules(ctx, ListPriceRules(name="r3"))
    assert [r.name for r in only.rules] == ["r3"]


async def test_another_org_neither_sees_nor_pays_them(ctx: Context, services: Services) -> None:
    await update(ctx, CONTRACT)
    other = context(services, org="globex")
    assert await names(other) == []
    assert (await checked(services, org="globex", **CALL))["estimated_cost"] == "0.0035"


async def test_two_agents_a_change_on_one_binds_the_next_check_and_usage_on_the_other(
    services: Services, database_url: str
) -> None:
    async with services_for(database_url) as other:
        assert await price_of(other) == "0.0035"
        await update(context(services), CONTRACT)
        assert await price_of(other) == "0.0028"
        await apply_usage(other, gpt(id="u1"))
        assert await other.database.fetchval("SELECT cost FROM usage_event WHERE id = 'u1'") == 2_800_000
        await update(context(other), end=[{"name": "acme", "version": 1}])
        await apply_usage(services, gpt(id="u2"))
        assert await other.database.fetchval("SELECT cost FROM usage_event WHERE id = 'u2'") == 3_500_000
        assert await price_of(services) == "0.0035"


async def alias(ctx: Context, **fields: Any) -> Any:
    given = {"provider": "azure", "alias": "my-gpt4o", "to_model": "gpt-4o", **fields}
    return await set_model_alias(ctx, msgspec.convert(given, SetModelAlias))


async def test_an_alias_prices_a_deployment_and_ends(ctx: Context, services: Services) -> None:
    call = {**CALL, "provider": "azure", "model": "my-gpt4o"}
    assert (await checked(services, **call))["estimated_cost"] is None
    done = await alias(ctx, reason="our deployment")
    assert (done.alias.version, done.alias.state, done.warnings) == (1, "in_force", [])
    assert (await checked(services, **call))["estimated_cost"] == "0.0035"
    await apply_usage(services, gpt(id="u1", provider="azure", model="my-gpt4o"))
    row = await services.database.fetch("SELECT model, cost FROM usage_event")
    assert [tuple(r) for r in row] == [("my-gpt4o", 3_500_000)], "recorded by the name it was called by"
    assert (await refusal(alias(ctx))).field == "version"
    ended = await alias(ctx, version=1, to_model=None)
    assert (ended.alias.to_model, ended.alias.state) == (None, "over")
    assert (await checked(services, **call))["estimated_cost"] is None
    listed = (await list_model_aliases(ctx, ListModelAliases(history=True))).aliases
    assert [(a.version, a.to_model, a.state) for a in listed] == [(1, "gpt-4o", "superseded"), (2, None, "over")]
    assert (await list_model_aliases(ctx, ListModelAliases())).aliases == []
    trail = (await get_audit_trail(ctx, GetAuditTrail(entity="model_alias"))).entries
    assert [(e.action, e.entity_id) for e in trail] == [("ended", "azure/my-gpt4o"), ("created", "azure/my-gpt4o")]


async def test_an_alias_of_an_unpriced_model_is_accepted_with_a_warning(ctx: Context) -> None:
    done = await alias(ctx, to_model="gpt-99")
    assert done.warnings and "unpriced" in done.warnings[0]


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"to_model": "gpt-*"}, "invalid_request", "to_model"),
        ({"to_provider": "*"}, "invalid_request", "to_provider"),
        ({"provider": "*"}, "invalid_request", "to_provider"),
        ({"to_model": None, "to_provider": "openai"}, "invalid_request", "to_provider"),
        ({"to_model": "My-GPT4o"}, "invalid_request", "to_model"),
        ({"provider": "*", "alias": "*", "to_provider": "openai"}, "invalid_request", "alias"),
        ({"alias": "  "}, "invalid_request", "alias"),
        ({"valid_from": "2020-01-01T00:00:00Z"}, "invalid_request", "valid_from"),
        ({"version": 1}, "conflict", "version"),
        ({"to_model": None}, "not_found", "alias"),
    ],
)
async def test_an_alias_that_makes_no_sense_is_refused(
    ctx: Context, fields: dict[str, Any], code: str, field: str
) -> None:
    error = await refusal(alias(ctx, **fields))
    assert (error.code, error.field) == (code, field)


async def reverted(ctx: Context, content: dict[str, Any]) -> tuple[Any, Any]:
    async def work(connection: Any) -> tuple[Any, Any]:
        return await revert_rule(ctx, connection, content, datetime.now(UTC))

    return await catalogue_change(ctx, work)


async def content_of(ctx: Context, n: int = 0) -> dict[str, Any]:
    entry = (await get_audit_trail(ctx, GetAuditTrail(entity="price_rule"))).entries[n]
    return {"before": plain(entry.before), "after": plain(entry.after)}


def plain(state: Any) -> Any:
    return None if state is None else msgspec.json.decode(state)


async def test_reverting_a_new_rule_ends_it_with_another_version(ctx: Context, services: Services) -> None:
    await update(ctx, CONTRACT)
    _, after = await reverted(ctx, await content_of(ctx))
    assert (after.version, after.rule) == (2, None)
    assert await price_of(services) == "0.0035"
    assert len(await names(ctx, history=True)) == 2, "nothing was edited"


async def test_reverting_a_change_or_an_end_restores_what_was_before(ctx: Context, services: Services) -> None:
    await update(ctx, CONTRACT)
    await update(ctx, {**CONTRACT, "version": 1, "rates": {"input": "20", "output": "80"}})
    await reverted(ctx, await content_of(ctx))
    assert await price_of(services) == "0.0028"
    await update(ctx, end=[{"name": "acme", "version": 3}])
    await reverted(ctx, await content_of(ctx))
    assert await price_of(services) == "0.0028"
    assert [n for _, n, _ in await names(ctx, history=True)] == [1, 2, 3, 4, 5]


async def test_reverting_what_somebody_changed_since_is_refused(ctx: Context) -> None:
    await update(ctx, CONTRACT)
    content = await content_of(ctx)
    await update(ctx, {**CONTRACT, "version": 1})
    with pytest.raises(SignalError, match="changed since"):
        await reverted(ctx, content)


def test_a_rule_concerns_calls_of_its_models() -> None:
    content = {"before": None, "after": {"rule": {"provider": "openai", "model": "gpt-4*"}}}
    assert rule_concerns(content, {"type": "global", "entity_id": "*"})
    assert rule_concerns(content, {"filters": {"model": "gpt-4o"}})
    assert not rule_concerns(content, {"filters": {"model": "claude-3"}})
    assert not rule_concerns(content, {"filters": {"provider": "anthropic"}})
    assert rule_concerns(content, {"filters": {"model": "*4o"}})
    assert "price_rule" in REVERTERS
