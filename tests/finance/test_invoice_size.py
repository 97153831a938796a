"""A month of 100,000 calls is invoiced in bounded time: sums are PostgreSQL's work."""

import time
from datetime import UTC, datetime

from handlers.context import Context
from handlers.finance.allocate import allocate_costs
from handlers.finance.invoice import prepare_invoice
from schemas.allocation import AllocateCosts, AllocationRule, SharedUsage
from schemas.invoice import PrepareInvoice
from store import partitions
from tests.finance.books import adds_up, posted, text
from tests.support.services import ORG

JAN = datetime(2026, 1, 1, tzinfo=UTC)
FEB = datetime(2026, 2, 1, tzinfo=UTC)
CALLS = 100_000
SECONDS_MAX = 20.0

# A call costs 1,000 x 2.50 + 100 x 10 a million: 3,500,000 nanos, in two parts.
_EVENTS = """
INSERT INTO usage_event (org_id, id, "timestamp", arrived_at, charged_at, provider, model, prompt_tokens,
    completion_tokens, cache_read_tokens, cache_write_tokens, cache_write_1h_tokens, reasoning_tokens, system_tokens,
    audio_input_tokens, audio_output_tokens, web_searches, batch, count_method, cost, list_cost, currency, cost_status,
    line_items, team_id, project_id, status, final, flags, reserved, charge_windows, charge_amounts)
SELECT $1, 'e' || i, $2::timestamptz + i * interval '26 seconds', now(), now(), 'openai', 'gpt-' || i % 20, 1000,
    100, 0, 0, 0, 0, 0, 0, 0, 0, false, 'reported', 3500000, 3500000, 'USD', 'priced',
    '[["input", 1000, 2500000000, 2500000], ["output", 100, 10000000000, 1000000]]', 'team-' || i % 50,
    'project-' || i % 30, 'ok', true, '{}', false, '{}', '{}'
FROM generate_series(0, $3 - 1) AS i
"""
_ROLLUPS = """
INSERT INTO usage_rollup (org_id, bucket, dimension_key, provider, model, team_id, project_id, status, cost_status,
    currency, reserved, requests, prompt_tokens, completion_tokens, cache_read_tokens, cache_write_tokens,
    reasoning_tokens, cost, list_cost, latency_count, latency_us_sum, latency_histogram, size_histogram)
SELECT org_id, date_bin('15 minutes', "timestamp", '2026-01-01'), gen_random_uuid(), provider, model, team_id,
    project_id, status, cost_status, currency, reserved, count(*), sum(prompt_tokens), sum(completion_tokens), 0, 0, 0,
    sum(cost), sum(list_cost), 0, 0, '{}', '{}'
FROM usage_event GROUP BY 1, 2, 4, 5, 6, 7, 8, 9, 10, 11
"""


async def test_a_month_of_100_000_calls(ctx: Context) -> None:
    await partitions.ensure(ctx.database, {JAN.replace(day=day).date() for day in range(1, 32)})
    async with ctx.database.connection() as connection:
        await connection.execute(_EVENTS, ORG, JAN, CALLS, timeout=120)
        await connection.execute(_ROLLUPS, timeout=120)
    began = time.perf_counter()
    invoice = await prepare_invoice(ctx, PrepareInvoice(month="2026-01", status="final", request_id="r", limit=10_000))
    took = time.perf_counter() - began
    adds_up(invoice)
    assert invoice.totals.subtotal == text((await posted(ctx.services, JAN, FEB))["cost"]) == "350"
    assert invoice.line_count == 60 and len(invoice.rates) == 40 and invoice.notes == []
    began = time.perf_counter()
    rule = AllocationRule(name="first", shared=SharedUsage(team_id="team-0"), split="by_cost")
    shares = await allocate_costs(ctx, AllocateCosts(month="2026-01", by="project", shared=[rule]))
    print(f"invoice {took:.2f} s, allocation {time.perf_counter() - began:.2f} s")
    assert shares.total == "350" and shares.unallocated.cost == "0"
    assert took < SECONDS_MAX and time.perf_counter() - began < SECONDS_MAX
