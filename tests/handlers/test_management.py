"""get_status and describe: status answers whatever is away, and reconciliation finds a planted difference."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from handlers.context import Context, Services
from handlers.enforcer.budgets import create_budget
from handlers.enforcer.sweep import Applied, sweep
from handlers.management import status as management
from handlers.management.reconcile import reconcile
from handlers.management.status import describe, get_status
from schemas import CONTRACT_VERSION
from schemas.budget import CreateBudget
from schemas.management import Describe, GetStatus
from signals import contract, registry
from tests.support.services import apply_usage, checked, context, gpt, refusal, user

CALL: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 1_000, "max_completion_tokens": 100}


def telling(values: dict[str, Any]) -> Callable[[], Awaitable[dict[str, Any]]]:
    async def told() -> dict[str, Any]:
        return values

    return told


async def test_status_says_what_the_agent_and_the_ledger_say(ctx: Context, services: Services) -> None:
    await create_budget(ctx, CreateBudget(name="b", type="global", limit="10"))
    await checked(services, **CALL)
    started, oldest = services.clock() - timedelta(hours=1), services.clock() - timedelta(seconds=5)
    services.status = telling(
        {
            "started_at": started,
            "version": "1.2.3",
            "stream": "TM_USAGE",
            "stored_messages": 4,
            "oldest_unapplied": oldest,
            "applied_events": 7,
            "duplicates": 2,
            "parts": [("stream", True, None), ("ingest", True, None)],
            "requests": {"check_budget": {"requests": 1, "errors": 0}},
        }
    )
    status = await get_status(ctx, GetStatus())
    assert (status.healthy, status.version, status.contract, status.org) == (True, "1.2.3", CONTRACT_VERSION, "default")
    assert [part.name for part in status.parts] == ["stream", "ingest", "postgresql"]
    assert (status.started_at, status.ingest.applied_events, status.ingest.duplicates) == (started, 7, 2)
    assert status.ingest.lag_s is not None and 5 <= status.ingest.lag_s < 60
    assert (status.ingest.dead_letters_open, status.outbox_pending, status.reconciliation) == (0, 1, None)
    assert status.reservations is not None and status.reservations.live == 1
    assert status.requests == {"check_budget": {"requests": 1, "errors": 0}}
    msgspec.json.encode(status)


async def test_a_part_that_ails_makes_it_unhealthy(ctx: Context, services: Services) -> None:
    services.status = telling({"parts": [("stream", False, "no responders")], "stored_messages": 0})
    status = await get_status(ctx, GetStatus())
    assert not status.healthy
    assert [(p.name, p.detail) for p in status.parts if not p.ok] == [("stream", "no responders")]
    assert (status.ingest.lag_s, status.ingest.oldest_unapplied) == (0.0, None)


async def test_an_unknown_stream_has_no_lag(ctx: Context) -> None:
    status = await get_status(ctx, GetStatus())
    assert (status.healthy, status.ingest.lag_s, status.ingest.stored_messages) == (True, None, None)


async def test_status_answers_without_postgresql(ctx: Context, services: Services) -> None:
    await services.database.close()
    services.status = telling({"parts": [("stream", True, None)]})
    status = await get_status(ctx, GetStatus(reconcile=True))
    assert not status.healthy
    assert [p.name for p in status.parts if not p.ok] == ["postgresql", "reconciliation"]
    assert (status.reservations, status.outbox_pending, status.reconciliation) == (None, None, None)


async def test_status_answers_in_time_when_nothing_else_does(
    ctx: Context, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(management, "PART_TIMEOUT_S", 0.2)

    async def never() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    services.status = never
    async with services.database.transaction() as blocker:
        await blocker.execute("LOCK TABLE dead_letter")
        since = time.monotonic()
        status = await get_status(ctx, GetStatus())
        assert time.monotonic() - since < 2
    assert [(p.name, p.ok) for p in status.parts] == [("agent", False), ("postgresql", False)]
    assert status.parts[1].detail == "no answer within 0.2 s"


async def _busy(ctx: Context, services: Services) -> None:
    """Every way a window's sums come about: backfill, reserved, in part, presumed, unreserved, overrun, released."""
    await apply_usage(services, gpt(user_id="u"))
    shared: dict[str, Any] = {"type": "user", "backfill": True, "on_expiry": "settle", "period": "total"}
    await create_budget(ctx, CreateBudget(name="money", limit="0.02", **shared))
    await create_budget(ctx, CreateBudget(name="tokens", unit="tokens", limit="100000", **shared))
    await create_budget(ctx, CreateBudget(name="calls", unit="requests", limit="50", **shared))
    ids = [(await checked(services, **CALL, user_id="u", ttl_s=1))["reservation_id"] for _ in range(4)]
    await apply_usage(services, gpt(user_id="u", reservation_id=ids[0]))
    await apply_usage(services, gpt(user_id="u", reservation_id=ids[1], prompt=500, completion=0, final=False))
    await services.database.execute(
        "UPDATE reservation SET expires_at = now() - interval '1 hour' WHERE status = 'live'"
    )
    await checked(services, **CALL, user_id="v")
    assert await sweep(services, Applied(drained=True, until=None)) == 3
    await apply_usage(services, gpt(user_id="u", reservation_id=ids[2], prompt=20_000), gpt(user_id="w"))


async def test_reconciliation_agrees_with_everything_that_can_happen(ctx: Context, services: Services) -> None:
    await _busy(ctx, services)
    status = await get_status(ctx, GetStatus(reconcile=True))
    found = status.reconciliation
    assert found is not None and found.ok and status.healthy
    assert (found.events, found.windows_checked, found.windows_differing) == (5, 9, 0)
    assert found.event_cost == found.rollup_cost != "0"
    assert found.window_spent == found.window_charges != "0"
    assert found.reserved == found.live_held == "0.0035"
    other = await reconcile(context(services, org="other"))
    assert (other.ok, other.events, other.windows_checked) == (True, 0, 0)


@pytest.mark.parametrize(
    ("plant", "differing"),
    [
        ("UPDATE usage_rollup SET cost = cost + 1 WHERE dimension_key = (SELECT min(dimension_key::text)::uuid "
         "FROM usage_rollup)", 0),
        ("UPDATE usage_rollup SET prompt_tokens = prompt_tokens - 1 WHERE dimension_key = "
         "(SELECT min(dimension_key::text)::uuid FROM usage_rollup)", 0),
        ("UPDATE budget_window SET spent = spent - 1 WHERE window_id = 1", 1),
        ("UPDATE budget_window SET backfilled = backfilled + 1 WHERE window_id = 2", 1),
        (f"UPDATE budget_window SET reserved = reserved + 1 WHERE entity_id = '{user('w')}'", 3),
        ("UPDATE reservation SET status = 'released' WHERE status = 'live'", 3),
        ("UPDATE reservation SET presumed = false WHERE presumed", 3),
        (f"DELETE FROM budget_window WHERE entity_id = '{user('w')}'", 3),
    ],
)  # fmt: skip
async def test_reconciliation_finds_a_planted_difference(
    ctx: Context, services: Services, plant: str, differing: int
) -> None:
    await _busy(ctx, services)
    await services.database.execute(plant)
    status = await get_status(ctx, GetStatus(reconcile=True))
    assert status.reconciliation is not None
    assert not status.reconciliation.ok and not status.healthy
    assert status.reconciliation.windows_differing == differing
    assert [(p.name, p.detail) for p in status.parts if not p.ok] == [("reconciliation", "sums differ")]


async def test_the_contract_describes_itself(ctx: Context, services: Services) -> None:
    services.contract = contract.document
    whole = await describe(ctx, Describe())
    assert (whole.format, whole.document["asyncapi"], whole.contract) == ("asyncapi", "3.0.0", CONTRACT_VERSION)
    listed = await describe(ctx, Describe(format="signals"))
    assert [entry["name"] for entry in listed.document["signals"]] == [signal.name for signal in registry.REQUESTS]
    entry = next(e for e in listed.document["signals"] if e["name"] == "track_usage")
    assert (entry["subject"], entry["roles"]) == ("token.track_usage", ["provider"])
    assert entry["request"] == ["TrackUsage", "TrackUsageBatch"]
    one = await describe(ctx, Describe(signal="check_budget"))
    (described,) = one.document["signals"]
    assert (one.format, described["reply"], "properties" in str(described["request_schema"])) == (
        "signals",
        ["BudgetDecision"],
        True,
    )
    error = await refusal(describe(ctx, Describe(signal="nothing")))
    assert (error.code, error.field) == ("not_found", "signal")
