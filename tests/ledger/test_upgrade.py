"""The first schema's data under this release: sums, holds and limits go on, and users' names become surrogates."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from handlers.management.reconcile import reconcile
from handlers.management.upgrade import upgrade_users
from store import migrate
from tests.support.ledger import CENT, at_database, world_of
from tests.support.vault import TEST_VAULT

ORG = "default"
# What the first release left behind: a user's own budget and one for each user, half spent, with a call under way.
WRITTEN = """
INSERT INTO org_catalogue VALUES ('default', 7);
INSERT INTO budget (org_id, budget_id, name, type, entity_id, filters, unit, currency, period, timezone, base_limit,
    overage_percent, enforcement, alert_thresholds, rollover_policy, rollover_percent, override_policy, on_expiry,
    preferred_models, active, counting_since, created_at, updated_at)
SELECT 'default', ('00000000-0000-7000-8000-00000000000' || n.i)::uuid, n.name, n.type, n.entity, '{}', 'cost', 'USD',
    'total', 'UTC', 1000000000, 0, 'block', '{50}', 'none', 0, '{}', 'release', '{}', true, '2026-01-01', '2026-01-01',
    '2026-01-01'
FROM (VALUES (1, 'all', 'global', '*'), (2, 'own', 'user', 'alice'), (3, 'each', 'user', '*'))
    AS n (i, name, type, entity);
INSERT INTO budget_window (org_id, budget_id, entity_id, starts_at, spent, reserved, high_limit)
SELECT 'default', budget_id, CASE type WHEN 'user' THEN 'alice' ELSE '*' END, '1970-01-01', 400000000, 200000000,
    1000000000 FROM budget;
INSERT INTO reservation (org_id, reservation_id, request_id, body_hash, decided_at, expires_at, provider, model,
    attribution, estimated_cost, estimated_tokens, window_ids, held)
SELECT 'default', '00000000-0000-7000-8000-0000000000aa', 'r', '', now(), now() + interval '1 day', 'acme', 'cent',
    '{"user_id": "alice"}', 200000000, 20, array_agg(window_id ORDER BY window_id), '{200000000,200000000,200000000}'
FROM budget_window;
INSERT INTO usage_id VALUES ('default', 'e1', decode(repeat('00', 16), 'hex'), now());
INSERT INTO usage_event (org_id, id, "timestamp", arrived_at, charged_at, provider, model, prompt_tokens,
    completion_tokens, cache_read_tokens, cache_write_tokens, cache_write_1h_tokens, reasoning_tokens, system_tokens,
    audio_input_tokens, audio_output_tokens, web_searches, batch, count_method, cost, currency, cost_status, line_items,
    user_id, status, final, flags, reserved, charge_windows, charge_amounts)
SELECT 'default', 'e1', now() - interval '2 days', now(), now() - interval '2 days', 'acme', 'cent',
    0, 40, 0, 0, 0, 0, 0, 0, 0, 0, false, 'reported',
    400000000, 'USD', 'priced', '[["output", 40, 10000000000000, 400000000]]', 'alice', 'ok', true, '{}', false,
    array_agg(window_id ORDER BY window_id), '{400000000,400000000,400000000}'
FROM budget_window;
INSERT INTO usage_rollup (org_id, bucket, dimension_key, provider, model, user_id, status, cost_status, currency,
    reserved, requests, prompt_tokens, completion_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens, cost,
    latency_count, latency_us_sum, latency_histogram, size_histogram)
SELECT org_id, date_bin('15 minutes', "timestamp", '2000-01-01T00:00Z'), '00000000-0000-0000-0000-000000000001',
    provider, model, user_id, status, cost_status, currency, reserved, 1, 0, 40, 0, 0, 0, cost, 0, 0,
    array_fill(0::bigint, ARRAY[32]), array_fill(0::bigint, ARRAY[32])
FROM usage_event;
"""


@pytest_asyncio.fixture
async def old_database_url(postgres_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """A database of the first schema, with data."""
    server = await asyncpg.connect(postgres_server.url)
    await server.execute("CREATE DATABASE tm_upgrade")
    url = at_database(postgres_server.url, "tm_upgrade")
    every = migrate.files()

    def first() -> list[tuple[int, Path]]:
        return every[:1]

    with monkeypatch.context() as only_first:
        only_first.setattr(migrate, "files", first)
        assert await migrate.migrate(url) == [1]
    connection = await asyncpg.connect(url)
    await connection.execute(WRITTEN)
    await connection.close()
    yield url
    await server.execute("DROP DATABASE tm_upgrade WITH (FORCE)")
    await server.close()


async def test_data_of_the_first_schema_goes_on_under_this_release(old_database_url: str) -> None:
    assert await migrate.migrate(old_database_url) == [number for number, _ in migrate.files()[1:]]
    assert await migrate.migrate(old_database_url) == []
    async with world_of(old_database_url, agents=2, start=datetime.now(UTC)) as world:
        one, two = world.agents
        await one.services.catalogue(ORG)
        assert await upgrade_users(one.services) == 1
        assert await upgrade_users(two.services) == 0

        denied = await one.deny(user_id="alice", max_completion_tokens=50)
        assert {w.name: w.spent for w in denied.budgets} == {"all": "0.4", "own": "0.4", "each": "0.4"}
        held = await two.hold(user_id="alice", max_completion_tokens=40)
        await two.release(held)

        assert await one.track(completion_tokens=10, reservation_id="00000000-0000-7000-8000-0000000000aa") == "applied"
        rows = await world.fetch("SELECT entity_id, spent, reserved FROM budget_window ORDER BY entity_id")
        alice = TEST_VAULT.surrogate(ORG, "alice")
        assert [tuple(row.values()) for row in rows] == [("*", 50 * CENT, 0), *[(alice, 50 * CENT, 0)] * 2]
        assert await one.track(id="e1", completion_tokens=40) == "conflict"


async def test_usage_of_the_first_schema_is_corrected_where_it_was_counted(old_database_url: str) -> None:
    await migrate.migrate(old_database_url)
    async with world_of(old_database_url, agents=2, start=datetime.now(UTC)) as world:
        one, two = world.agents
        await one.services.catalogue(ORG)
        await upgrade_users(one.services)
        assert (await reconcile(one.context)).ok
        for agent, kind, fields, cents in (
            (two, "correct", {"completion_tokens": 50}, 50),
            (one, "void", {}, 0),
            (two, "correct", {"completion_tokens": 30}, 30),
            (one, "refund", {"amount": "0.1"}, 20),
        ):
            await agent.adjust("e1", kind, **fields)
            rows = await world.fetch("SELECT spent FROM budget_window")
            assert [row["spent"] for row in rows] == [cents * CENT] * 3, kind
            sums = await world.fetch("SELECT sum(cost)::bigint AS c, sum(list_cost)::bigint AS l FROM usage_rollup")
            assert [tuple(row.values()) for row in sums] == [(cents * CENT, cents * CENT)]
            assert (await reconcile(agent.context)).ok


async def test_usage_of_the_first_schema_without_a_price_is_priced_where_its_user_s_budget_is_now(
    old_database_url: str,
) -> None:
    connection = await asyncpg.connect(old_database_url)
    await connection.execute("""
        SET session_replication_role = replica;
        UPDATE usage_event SET cost = NULL, cost_status = 'unpriced', line_items = '[]', charge_windows = '{}',
            charge_amounts = '{}';
        UPDATE usage_rollup SET cost = 0, cost_status = 'unpriced';
        UPDATE budget_window SET spent = 0""")
    await connection.close()
    await migrate.migrate(old_database_url)
    async with world_of(old_database_url, agents=2, start=datetime.now(UTC)) as world:
        one, two = world.agents
        await one.services.catalogue(ORG)
        await upgrade_users(one.services)
        since = datetime.now(UTC) - timedelta(days=3)
        assert (await two.reprice(start=since)).repriced == 1
        assert (await one.reprice(start=since, only="all")).repriced == 0
        rows = await world.fetch("SELECT entity_id, spent FROM budget_window ORDER BY entity_id")
        alice = TEST_VAULT.surrogate(ORG, "alice")
        assert [tuple(row.values()) for row in rows] == [("*", 40 * CENT), *[(alice, 40 * CENT)] * 2]
        assert (await reconcile(one.context)).ok
