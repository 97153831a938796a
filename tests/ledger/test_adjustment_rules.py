"""R15: corrections are rows against an event and its windows; every sum follows, exactly, whatever happened since."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from schemas.errors import SignalError
from tests.support.ledger import CARDS, CENT, START, LedgerAgent, World, card, world_of
from tests.support.services import refusal


async def _rolled(world: World) -> tuple[int, int, int]:
    """Cost, tokens and requests of all rollups."""
    sql = """SELECT coalesce(sum(cost), 0)::bigint AS cost, sum(requests)::bigint AS requests,
        sum(prompt_tokens + completion_tokens)::bigint AS tokens FROM usage_rollup WHERE org_id = $1"""
    row = (await world.fetch(sql, world.org))[0]
    return row["cost"], row["tokens"], row["requests"]


async def _event(world: World, usage_id: str) -> Mapping[str, Any]:
    return (await world.fetch("SELECT * FROM usage_event WHERE org_id = $1 AND id = $2", world.org, usage_id))[0]


async def test_a_void_takes_everything_back_and_the_event_stays_as_it_was(world: World) -> None:
    one, two = world.agents
    cost, tokens = await world.budget(limit=1), await world.budget(limit=100, unit="tokens")
    calls = await world.budget(limit=5, unit="requests")
    await one.track(id="e", completion_tokens=30, team_id="t")
    await one.track(id="other", completion_tokens=10)
    before = await _event(world, "e")

    made = await two.adjust("e", "void")

    assert (made.cost_before, made.cost_after, made.sequence) == ("0.3", "0", 1)
    assert {(w.name, w.amount) for w in made.budgets} == {
        (cost.name, "-0.3"),
        (tokens.name, "-30"),
        (calls.name, "-1"),
    }
    assert [await world.sums(b) for b in (cost, tokens, calls)] == [(10 * CENT, 0, 0), (10, 0, 0), (1, 0, 0)]
    assert await _rolled(world) == (10 * CENT, 10, 1)
    assert await _event(world, "e") == before
    await world.verify()


async def test_a_void_twice_is_a_conflict_and_changes_nothing(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    await one.track(id="e", completion_tokens=30)
    await one.adjust("e", "void")
    error = await refusal(two.adjust("e", "void"))
    assert (error.code, error.field) == ("conflict", "usage_id")
    error = await refusal(two.adjust("e", "refund", amount="0.1"))
    assert (error.code, error.field) == ("conflict", "usage_id")
    assert await world.sums(budget) == (0, 0, 0)


async def test_a_correction_moves_the_event_between_models_and_their_budgets(world: World) -> None:
    one, two = world.agents
    cent = await world.budget(limit=1, filters={"model": "cent"})
    small = await world.budget(limit=1, filters={"model": "small"})
    every = await world.budget(type="team", limit=9)
    await one.track(id="e", completion_tokens=30, team_id="t", latency_ms=5.0)

    await two.adjust("e", "correct", model="small", completion_tokens=20)

    assert await world.sums(cent) == (0, 0, 0)
    assert await world.sums(small) == (20 * CENT, 0, 0)
    assert await world.sums(every, "t") == (20 * CENT, 0, 0)
    rows = await world.fetch("SELECT model, requests, latency_count FROM usage_rollup WHERE org_id = $1", world.org)
    assert {(r["model"], r["requests"], r["latency_count"]) for r in rows} == {("cent", 0, 0), ("small", 1, 1)}
    await world.verify()


async def test_a_correction_upwards_takes_free_room_then_overrun_and_blocks(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    await one.hold(max_completion_tokens=60)
    await one.track(id="e", completion_tokens=20)

    made = await two.adjust("e", "correct", completion_tokens=70)

    assert [(w.amount, w.overrun) for w in made.budgets] == [("0.5", "0.3")]
    assert await world.sums(budget) == (70 * CENT, 60 * CENT, 30 * CENT)
    assert (await one.deny(max_completion_tokens=1)).reason is not None
    assert [t["amount"] for t in await world.told("budget.overrun")] == ["0.3"]
    causes = await world.fetch("SELECT cause, unit, amount, charges FROM overrun_cause WHERE org_id = $1", world.org)
    assert [tuple(row.values()) for row in causes] == [("correction", "cost", 30 * CENT, 1)]
    await world.verify()

    await two.adjust("e", "correct", completion_tokens=60)
    assert await world.sums(budget) == (60 * CENT, 60 * CENT, 20 * CENT)
    await two.adjust("e", "correct", completion_tokens=10)
    assert await world.sums(budget) == (10 * CENT, 60 * CENT, 0)
    assert (await one.hold(max_completion_tokens=30)) is not None


async def test_a_refund_is_at_most_what_the_event_stands_for(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    await one.track(id="e", completion_tokens=30)
    assert (await two.adjust("e", "refund", amount="0.1")).cost_after == "0.2"
    assert (await one.adjust("e", "refund", amount="0.05")).cost_after == "0.15"
    for amount in ("0.150000001", "0", "1000"):
        error = await refusal(one.adjust("e", "refund", amount=amount))
        assert (error.code, error.field) == ("invalid_request", "amount")
    error = await refusal(one.adjust("e", "correct", completion_tokens=10**9))
    assert (error.code, error.field) == ("invalid_request", "completion_tokens")
    assert await world.sums(budget) == (15 * CENT, 0, 0)
    # What was given back stays given back when the counts are corrected.
    assert (await one.adjust("e", "correct", completion_tokens=40)).cost_after == "0.25"
    error = await refusal(one.adjust("e", "correct", completion_tokens=10))
    assert (error.code, error.field) == ("conflict", "cost")
    assert (await one.adjust("e", "correct", cost="0.07")).cost_after == "0.07"
    assert await world.sums(budget) == (7 * CENT, 0, 0)
    await world.verify()


async def test_a_void_event_comes_back_as_it_was_recorded(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=1)
    await one.track(id="e", completion_tokens=30)
    await one.adjust("e", "correct", completion_tokens=5)
    await one.adjust("e", "void")
    made = await one.adjust("e", "correct", prompt_tokens=0)
    assert (made.cost_before, made.cost_after, made.sequence) == ("0", "0.3", 3)
    assert await world.sums(budget) == (30 * CENT, 0, 0)
    await world.verify()


async def test_the_same_id_and_body_is_the_same_answer_another_body_a_conflict(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    await one.track(id="e", completion_tokens=30)
    await one.track(id="f", completion_tokens=30)
    first = await one.adjust("e", "refund", amount="0.1", adjustment_id="a")
    again = await two.adjust("e", "refund", amount="0.1", adjustment_id="a")
    assert (first.duplicate, again.duplicate) == (False, True)
    assert (again.cost_before, again.cost_after, again.sequence, again.budgets) == (
        first.cost_before,
        first.cost_after,
        first.sequence,
        first.budgets,
    )
    for usage_id, amount in (("e", "0.2"), ("f", "0.1")):
        error = await refusal(two.adjust(usage_id, "refund", amount=amount, adjustment_id="a"))
        assert (error.code, error.field) == ("conflict", "adjustment_id")
    assert await world.sums(budget) == (50 * CENT, 0, 0)


async def test_two_agents_adjust_one_event_one_after_the_other(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    await one.track(id="e", completion_tokens=50)

    results = await asyncio.gather(
        *(agent.adjust("e", "refund", amount="0.1") for agent in (one, two) for _ in range(4)), return_exceptions=True
    )

    refused = [r for r in results if isinstance(r, SignalError)]
    assert len(refused) == 3 and {e.field for e in refused} <= {"amount", "usage_id"}
    assert await world.sums(budget) == (0, 0, 0)
    rows = await world.fetch("SELECT sequence FROM adjustment WHERE org_id = $1 ORDER BY 1", world.org)
    assert [row["sequence"] for row in rows] == [1, 2, 3, 4, 5]
    await world.verify()


async def test_events_whose_claim_is_no_longer_kept_are_adjusted_one_after_the_other_too(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, counting_since=START - timedelta(days=9))
    await one.track(id="e", completion_tokens=50, timestamp=START - timedelta(days=3))
    await world.put("DELETE FROM usage_id WHERE org_id = $1")
    results = await asyncio.gather(
        *(agent.adjust("e", "refund", amount="0.1") for agent in (one, two) for _ in range(4)), return_exceptions=True
    )
    assert sum(isinstance(r, SignalError) for r in results) == 3
    sums = await world.sums(budget)
    await world.put("INSERT INTO usage_id VALUES ($1, 'e', '', now())")
    assert sums == (0, 0, 0)


async def test_a_part_of_a_call_is_corrected_and_its_reservation_goes_on(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    held = await one.hold(max_completion_tokens=60)
    await one.track(id="part", completion_tokens=20, reservation_id=held, final=False)
    await two.adjust("part", "correct", completion_tokens=50)
    assert await world.sums(budget) == (50 * CENT, 40 * CENT, 0)
    await two.adjust("part", "correct", completion_tokens=90)
    assert await world.sums(budget) == (90 * CENT, 40 * CENT, 30 * CENT)
    await two.adjust("part", "void")
    assert await world.sums(budget) == (0, 40 * CENT, 0)
    await one.track(completion_tokens=10, reservation_id=held)
    assert await world.sums(budget) == (10 * CENT, 0, 0)
    await world.verify()


async def test_what_was_presumed_is_replaced_by_a_late_event_that_may_be_corrected(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, on_expiry="settle")
    held = await one.hold(max_completion_tokens=60, ttl_s=30)
    await one.track(id="other", completion_tokens=30)
    await world.wait(minutes=2)
    await one.sweep()
    assert await world.sums(budget) == (90 * CENT, 0, 0)
    await two.adjust("other", "correct", completion_tokens=50)
    assert await world.sums(budget) == (110 * CENT, 0, 10 * CENT)
    await one.track(id="late", completion_tokens=20, reservation_id=held)
    assert await world.sums(budget) == (70 * CENT, 0, 0)
    await two.adjust("late", "void")
    assert await world.sums(budget) == (50 * CENT, 0, 0)
    await world.verify()


async def test_deactivated_and_deleted_budgets_are_corrected_and_new_ones_do_not_know_the_event(world: World) -> None:
    one, two = world.agents
    gone = await world.budget(limit=1)
    off = await world.budget(limit=1)
    await one.track(id="e", completion_tokens=30)
    await world.change(gone, active=False, deleted_at=world.now())
    await world.change(off, active=False)
    new = await world.budget(limit=1)
    await one.track(id="f", completion_tokens=10)
    await world.change(off, active=True)

    await two.adjust("e", "correct", completion_tokens=20)
    await two.adjust("f", "correct", completion_tokens=15)

    assert await world.sums(gone) == (20 * CENT, 0, 0)
    # It was not active when the second call was counted, and goes on not knowing it.
    assert await world.sums(off) == (20 * CENT, 0, 0)
    assert await world.sums(new) == (15 * CENT, 0, 0)


async def test_a_budget_created_since_with_backfill_has_counted_the_event(world: World) -> None:
    one, two = world.agents
    first = await world.budget(limit=9, period="daily")
    await one.track(id="e", completion_tokens=30)
    await one.track(id="f", completion_tokens=20)
    await one.adjust("f", "correct", completion_tokens=25)
    late = await world.backfilled(limit=1, period="daily")
    other = await world.backfilled(limit=1, period="daily", filters={"model": "small"})
    assert await world.sums(late) == (55 * CENT, 0, 0)

    await two.adjust("e", "correct", completion_tokens=10)
    await two.adjust("f", "void")
    assert await world.sums(late) == await world.sums(first) == (10 * CENT, 0, 0)
    await two.adjust("e", "correct", model="small")
    assert await world.sums(other) == (10 * CENT, 0, 0)
    last = await world.backfilled(limit=1, period="daily", filters={"model": "small"})
    assert await world.sums(last) == (10 * CENT, 0, 0)
    await two.adjust("e", "void")
    assert [await world.sums(budget) for budget in (first, late, other, last)] == [(0, 0, 0)] * 4
    await world.verify(complete=False)


async def test_a_window_that_is_gone_is_said_and_the_adjustment_stands(database_url: str) -> None:
    async with world_of(database_url, agents=2) as world:
        one, two = world.agents
        budget = await world.budget(limit=1, period="daily")
        other = await world.budget(limit=1)
        await one.track(id="e", completion_tokens=30)
        await world.put("DELETE FROM budget_window WHERE org_id = $1 AND budget_id = $2", budget.budget_id)

        made = await two.adjust("e", "correct", completion_tokens=20)
        again = await one.adjust("e", "correct", completion_tokens=25)

        assert (made.windows_gone, again.windows_gone) == (1, 1)
        assert await world.windows(budget) == []
        assert await world.sums(other) == (25 * CENT, 0, 0)
        assert await _rolled(world) == (25 * CENT, 25, 1)


async def test_rollover_is_not_computed_again(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1, period="daily", rollover_policy="full")
    await one.track(id="e", completion_tokens=30)
    await world.go_to(datetime(2030, 3, 14, 9, tzinfo=UTC))
    await one.track(completion_tokens=1)
    await two.adjust("e", "void")
    assert [(w["spent"], w["carry"]) for w in await world.windows(budget)] == [(0, 0), (CENT, 70 * CENT)]


async def test_a_batch_has_an_outcome_for_each_and_a_dry_run_does_nothing(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    for usage_id in ("e", "f"):
        await one.track(id=usage_id, completion_tokens=30)
    asked = [
        {"usage_id": "e", "kind": "correct", "completion_tokens": 20, "reason": "one"},
        {"usage_id": "nothing", "kind": "void", "reason": "two"},
        {"usage_id": "e", "kind": "refund", "amount": "0.2", "reason": "three"},
        {"usage_id": "e", "kind": "refund", "amount": "0.2", "reason": "four"},
        {"usage_id": "f", "kind": "void", "reason": "five"},
    ]
    for dry_run in (True, False):
        found = await two.adjust_many(asked, dry_run=dry_run)
        assert (found.accepted, found.rejected, found.dry_run) == (3, 2, dry_run)
        assert [a.error.code if a.error else a.cost_after for a in found.adjustments] == [
            "0.2",
            "not_found",
            "0",
            "invalid_request",
            "0",
        ]
        assert (await world.sums(budget))[0] == (60 * CENT if dry_run else 0)
    (entry,) = await world.fetch("SELECT action, entity, content FROM audit WHERE org_id = $1", world.org)
    assert (entry["action"], entry["entity"]) == ("adjusted", "usage")
    assert all(word in entry["content"] for word in ('"one"', '"three"', '"five"', '"tester"'))
    await world.verify()


# Pricing again ----------------------------------------------------------------------------------------------------


def known(monkeypatch: pytest.MonkeyPatch, *agents: LedgerAgent, output: str = "10000") -> None:
    """From now on the model ``later`` has a price."""
    monkeypatch.setitem(CARDS, "later", card("later", input="0", output=output))
    for agent in agents:
        agent.services.rate_cards.forget()


async def test_what_had_no_price_is_charged_when_it_has_one_and_only_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = world.agents
    cost, tokens = await world.budget(limit=1), await world.budget(unit="tokens", limit=1000)
    team = await world.budget(type="team", limit=1)
    await one.track(id="e", model="later", completion_tokens=30, team_id="t")
    await one.track(id="f", model="later", completion_tokens=90)
    await one.track(id="g", completion_tokens=1)
    still = await two.reprice()
    assert (still.looked_at, still.repriced, still.unpriced) == (3, 0, 2)
    assert [(m.model, m.events, "no price" in m.reason) for m in still.unpriced_models] == [("later", 2, True)]

    known(monkeypatch, one, two)
    dry = await two.reprice(dry_run=True)
    assert await world.sums(cost) == (CENT, 0, 0)
    found = await two.reprice()
    assert dry == msgspec.structs.replace(found, dry_run=True)
    assert (found.repriced, found.unchanged, found.usage_ids) == (2, 1, ["e", "f"])
    assert [(c.currency, c.before, c.after) for c in found.costs] == [("USD", "0", "1.2")]
    assert await world.sums(cost) == (121 * CENT, 0, 21 * CENT)
    assert await world.sums(tokens) == (121, 0, 0)
    assert await world.sums(team, "t") == (30 * CENT, 0, 0)
    await world.verify()
    for only in ("unpriced", "all"):
        again = await one.reprice(only=only)
        assert (again.repriced, again.unchanged) == (0, 3)
    assert len(await world.told("usage.adjusted")) == 2


async def test_given_costs_and_voids_are_left_alone_and_a_known_cost_never_becomes_unknown(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = world.agents
    known(monkeypatch, one, two, output="20000")
    budget = await world.budget(limit=9)
    for usage_id in ("stated", "void", "refunded", "plain"):
        await one.track(id=usage_id, model="later", completion_tokens=10)
    await one.adjust("stated", "correct", cost="0.03")
    await one.adjust("void", "void")
    await one.adjust("refunded", "refund", amount="0.15")
    known(monkeypatch, one, two)
    found = await two.reprice(only="all")
    assert (found.repriced, found.left_alone, found.usage_ids) == (1, 3, ["plain"])
    assert await world.sums(budget) == (18 * CENT, 0, 0)
    monkeypatch.delitem(CARDS, "later")
    for agent in (one, two):
        agent.services.rate_cards.forget()
    found = await two.reprice(only="all")
    assert (found.repriced, found.unpriced, found.left_alone) == (0, 0, 4)
    await world.verify()


async def test_a_large_range_is_done_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = world.agents
    await world.budget(limit=9)
    for i in range(7):
        await one.track(id=f"e{i}", model="later" if i % 2 else "cent", completion_tokens=1)
    known(monkeypatch, one, two)
    first = await two.reprice(limit=3)
    assert (first.looked_at, first.repriced) == (3, 1) and first.next_cursor is not None
    second = await one.reprice(limit=3, cursor=first.next_cursor)
    third = await two.reprice(limit=3, cursor=second.next_cursor)
    assert (second.looked_at, second.repriced, third.looked_at, third.repriced) == (3, 2, 1, 0)
    assert third.next_cursor is None
    await world.verify()


async def test_only_the_range_and_what_the_filters_match_is_priced_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = world.agents
    for i, team in enumerate(("a", "b", "a")):
        await one.track(
            id=f"e{i}", model="later", completion_tokens=1, team_id=team, timestamp=START - timedelta(hours=i)
        )
    known(monkeypatch, one, two)
    found = await two.reprice(start=START - timedelta(hours=1, minutes=30), filters={"team_id": "a"})
    assert (found.looked_at, found.usage_ids) == (1, ["e0"])


async def test_a_correction_to_an_unknown_model_is_unpriced_and_news(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    await one.track(id="e", completion_tokens=30)
    made = await two.adjust("e", "correct", model="unheard")
    assert (made.cost_after, len(made.warnings)) == (None, 1)
    assert await world.sums(budget) == (0, 0, 0)
    assert [(n["model"], n["usage_id"]) for n in await world.told("usage.unpriced")] == [("unheard", "e")]
    await world.verify()
