"""Learned reservations: what is observed is exact and fades, what is held is bounded, every miss has its cause."""

import asyncio
from collections.abc import Sequence
from datetime import date
from itertools import accumulate, pairwise
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.context import Limits
from handlers.enforcer.histograms import BUCKETS, EDGES, OVER, WHOLE, bucket_of, edge_at, levels, part, rank
from handlers.enforcer.sizing import refresh
from schemas.budget import BudgetDecision
from schemas.errors import SignalError
from store import reservations, sizing
from store.pool import Connection
from store.sizing import SizingRow
from tests.support.ledger import CENT, USD, LedgerAgent, World, examples

ANY = ("acme", "cent", "", "")
LEARNED = {"default": "learned", "percentile": 90, "samples_min": 10, "share_cap_percent": 100}
ratios = st.tuples(st.integers(0, 3_000_000_000_000), st.integers(1, 1_000_000_000_000))


async def teach(agent: LedgerAgent, used: Sequence[int], *, worst: int = 100, **fields: Any) -> None:
    """Settle a reservation of ``worst`` completion tokens for each entry of ``used``, one batch for all."""
    held = [await agent.hold(max_completion_tokens=worst, sizing="worst", **fields) for _ in used]
    events = [agent.event(completion_tokens=n, reservation_id=h) for n, h in zip(used, held, strict=True)]
    await agent.apply(events)


async def rows(world: World) -> dict[tuple[str, str, str, str], SizingRow]:
    async with world.connection() as connection:
        return {row.key: row for row in await sizing.listing(connection, world.org, limit=10_000)}


async def ready(*agents: LedgerAgent) -> None:
    """Let agents that were asked before know what has been observed since."""
    for agent in agents:
        agent.services.sizing.ask(agent.world.org)
        await refresh(agent.services)


def held_of(decision: BudgetDecision) -> str:
    return next(w.removeprefix("learned: reserved ") for w in decision.warnings if w.startswith("learned"))


# Arithmetic -------------------------------------------------------------------------------------------------------


def test_buckets_are_fine_near_nothing_and_near_the_whole_with_one_above() -> None:
    assert tuple(sorted(set(EDGES))) == EDGES
    assert (EDGES[0], EDGES[-1], BUCKETS) == (0, WHOLE, len(EDGES) + 1)
    assert all(b - a <= max(200, a // 8, 20_000) for a, b in pairwise(EDGES))
    assert max(b - a for a, b in pairwise(EDGES) if a >= 900_000) == 5_000


@examples(500)
@given(ratios)
def test_a_ratio_lies_in_the_first_bucket_whose_edge_covers_it(ratio: tuple[int, int]) -> None:
    actual, worst = ratio
    bucket = bucket_of(actual, worst)
    if bucket < OVER:
        assert actual * WHOLE <= EDGES[bucket] * worst
        assert actual <= part(worst, EDGES[bucket])
    else:
        assert actual > worst
    if bucket:
        assert actual * WHOLE > EDGES[bucket - 1] * worst


@examples(300)
@given(st.lists(ratios, min_size=1, max_size=400), st.integers(50, 100))
def test_a_percentile_of_the_buckets_is_that_of_the_raw_ratios_within_one_bucket(
    seen: list[tuple[int, int]], percentile: int
) -> None:
    counts = [0] * BUCKETS
    for actual, worst in seen:
        counts[bucket_of(actual, worst)] += 1
    edge = edge_at(counts, percentile)
    raw = sorted(seen, key=lambda r: r[0] * WHOLE / r[1])
    wanted = rank(len(raw), percentile)
    if wanted > len(raw) or bucket_of(*raw[wanted - 1]) == OVER:
        assert edge is None
        return
    actual, worst = raw[wanted - 1]
    assert edge is not None
    assert actual * WHOLE <= edge * worst
    assert edge == 0 or actual * WHOLE > EDGES[EDGES.index(edge) - 1] * worst


@examples(300)
@given(st.integers(0, 10**15), st.integers(0, WHOLE))
def test_a_part_is_never_above_the_whole_nor_nothing_of_something(worst: int, edge: int) -> None:
    found = part(worst, edge)
    assert (found == 0) if worst == 0 else (1 <= found <= worst)
    assert found * WHOLE >= min(worst * edge, worst * WHOLE)


@examples(200)
@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=300), st.integers(50, 99))
def test_the_next_of_alike_calls_exceeds_the_percentile_no_more_often_than_promised(
    sizes: list[int], percentile: int
) -> None:
    """Exact, over every choice of which of the calls is the next one: no luck is involved."""
    missed = 0
    for i, size in enumerate(sizes):
        counts = [0] * BUCKETS
        for other in sizes[:i] + sizes[i + 1 :]:
            counts[bucket_of(other, 10_000)] += 1
        edge = edge_at(counts, percentile)
        missed += edge is not None and size > part(10_000, edge)
    assert missed * 100 <= (100 - percentile) * len(sizes)


def _thinned(counts: Sequence[int], most: int) -> list[int]:
    step = max(1, -(-sum(counts) // most))
    kept = [below // step for below in accumulate(counts)]
    return [b - a for a, b in zip([0, *kept], kept, strict=False)]


def _at(counts: Sequence[int], place: int) -> int:
    """The bucket of the ``place``-th smallest, the last bucket where there are fewer."""
    return next((i for i, below in enumerate(accumulate(counts)) if below >= place), BUCKETS - 1)


@examples(60)
@given(
    st.lists(st.integers(0, 40), min_size=BUCKETS, max_size=BUCKETS),
    st.lists(st.integers(0, 40), min_size=BUCKETS, max_size=BUCKETS),
    st.integers(100, 3_000),
    st.integers(50, 99),
)
async def test_fading_keeps_every_percentile_in_its_place(
    shared_database_url: str, old: list[int], new: list[int], most: int, percentile: int
) -> None:
    """What stays is at most ``most``; no percentile falls, and none rises by more than the ranks between those kept."""
    connection = await asyncpg.connect(shared_database_url)
    try:
        found = await connection.fetchval("SELECT add_fading($1, $2, $3)", old, new, most)
    finally:
        await connection.close()
    added = [a + b for a, b in zip(old, new, strict=True)]
    assert found == _thinned(added, most)
    total, step = sum(added), max(1, -(-sum(added) // most))
    assert sum(found) == total // step <= most
    before = rank(total, percentile)
    after = _at(found, rank(sum(found), percentile))
    assert _at(added, before) <= after <= _at(added, before + 3 * step)


def test_a_key_is_followed_by_those_without_its_agent_and_without_its_feature_each_once() -> None:
    assert levels(("p", "m", "f", "a")) == (("p", "m", "f", "a"), ("p", "m", "f", ""), ("p", "m", "", ""))
    assert levels(("p", "m", "", "a")) == (("p", "m", "", "a"), ("p", "m", "", ""))
    assert levels(("p", "m", "", "")) == (("p", "m", "", ""),)


# Observation ------------------------------------------------------------------------------------------------------


async def test_a_settled_call_counts_once_in_each_of_its_keys_however_often_it_comes(world: World) -> None:
    one, two = world.agents
    await world.budget(limit=1_000)
    held = [await one.hold(max_completion_tokens=100, feature="chat", agent_id="a") for _ in range(20)]
    events = [one.event(id=f"{world.org}-{h}", completion_tokens=n, reservation_id=h) for n, h in enumerate(held)]

    await asyncio.gather(*(agent.apply(batch) for agent in (one, two) for batch in (events, events[::-1], events[5:])))
    await two.apply(events)

    found = await rows(world)
    assert set(found) == {("acme", "cent", "chat", "a"), ("acme", "cent", "chat", ""), ANY}
    expected = [0] * BUCKETS
    for n in range(20):
        expected[bucket_of(n, 100)] += 1
    for row in found.values():
        assert (row.cost, row.tokens, row.learned, row.missed) == (expected, expected, 0, 0)


async def test_many_appliers_of_one_key_add_up(world: World) -> None:
    one, two = world.agents
    held = [await one.hold(max_completion_tokens=100) for _ in range(60)]
    events = [one.event(completion_tokens=n, reservation_id=h) for n, h in enumerate(held)]

    await asyncio.gather(*((one, two)[i % 2].apply(events[i::6]) for i in range(6)))

    assert sum((await rows(world))[ANY].cost) == 60


async def test_only_reservations_that_a_call_settled_are_observed(world: World) -> None:
    """Not: usage without one, a call that failed, what was released or expired, a call that nothing prices."""
    one, _ = world.agents
    await one.track(completion_tokens=5)
    await one.track(completion_tokens=0, status="error", reservation_id=await one.hold(max_completion_tokens=9))
    released = await one.hold(max_completion_tokens=9)
    await one.release(released)
    await one.track(completion_tokens=3, reservation_id=released)
    await one.track(completion_tokens=3, reservation_id=await one.hold(provider=None, model=None, estimated_cost="0.1"))
    assert await rows(world) == {}

    await one.track(
        model="dear", completion_tokens=3, reservation_id=await one.hold(model="dear", max_completion_tokens=9)
    )
    unpriced = (await rows(world))["acme", "dear", "", ""]
    assert (sum(unpriced.cost), sum(unpriced.tokens)) == (0, 1)


async def test_parts_of_a_call_are_one_ratio(world: World) -> None:
    one, two = world.agents
    await world.budget(limit=1_000)
    held = await one.hold(max_completion_tokens=100)
    for agent, tokens, final in ((one, 10, False), (two, 0, False), (two, 15, False), (one, 12, True)):
        await agent.track(completion_tokens=tokens, reservation_id=held, final=final)
    unlimited = await one.hold(model="odd", max_completion_tokens=100)
    await one.apply(
        [one.event(model="odd", completion_tokens=30, reservation_id=unlimited, final=final) for final in (False, True)]
    )

    found = await rows(world)
    assert found[ANY].cost[bucket_of(37, 100)] == sum(found[ANY].cost) == 1
    assert found["acme", "odd", "", ""].tokens[bucket_of(60, 100)] == 1


async def test_parts_under_two_estimates_are_not_compared_with_either(world: World) -> None:
    one, _ = world.agents
    await world.budget(limit=1_000)
    held = await one.hold(max_completion_tokens=100)
    await one.track(completion_tokens=10, reservation_id=held, final=False)
    await one.extend(held, prompt_tokens=0, max_completion_tokens=50)
    await one.track(completion_tokens=10, reservation_id=held)
    kept = await one.hold(max_completion_tokens=100)
    await one.track(completion_tokens=10, reservation_id=kept, final=False)
    await one.extend(kept)
    await one.track(completion_tokens=10, reservation_id=kept)

    found = (await rows(world))[ANY]
    assert found.cost[bucket_of(20, 100)] == sum(found.cost) == 1


async def test_what_is_old_fades_and_what_is_new_decides(world: World) -> None:
    agent = await world.agent(limits=Limits(sizing_samples_max=100))
    await world.put_setting("sizing", LEARNED)
    await teach(agent, [80] * 200)
    await teach(agent, [5] * 90)
    after = (await rows(world))[ANY]
    assert sum(after.cost) <= 100
    for _ in range(6):
        await teach(agent, [5] * 90)
    await ready(agent)

    decision = await agent.submit(max_completion_tokens=100, **{"team_id": "t"})
    assert decision.approved
    assert sum((await rows(world))[ANY].cost) <= 100
    found = edge_at((await rows(world))[ANY].cost, 90)
    assert found is not None
    assert 50_000 <= found < 60_000


async def test_an_org_has_a_bounded_number_of_keys_and_forgets_those_unused_for_longest(world: World) -> None:
    agent = await world.agent(limits=Limits(sizing_keys_max=10))
    await world.put_setting("sizing", LEARNED)
    for n in range(14):
        await teach(agent, [5], agent_id=f"a{n:02}")
    assert len(await rows(world)) == 10
    assert ("acme", "cent", "", "a08") in await rows(world)

    await ready(agent)
    found = await rows(world)
    assert len(found) == 9
    assert ANY in found
    assert ("acme", "cent", "", "a00") not in found

    await teach(agent, [5], agent_id="new")
    assert ("acme", "cent", "", "new") in await rows(world)


async def test_an_agent_remembers_a_bounded_number_of_keys(world: World) -> None:
    agent = await world.agent(limits=Limits(sizing_cache_max=3))
    for n in range(6):
        await teach(agent, [5], agent_id=f"a{n}")
    await ready(agent)
    assert agent.services.sizing.keys == 3
    assert ANY in agent.services.sizing.ask(world.org)


# Reservation ------------------------------------------------------------------------------------------------------


async def test_the_worst_case_is_held_until_enough_was_seen_then_the_percentile(world: World) -> None:
    one, two = world.agents
    budget, tokens = await world.budget(limit=1_000), await world.budget(limit=100_000, unit="tokens")
    calls = await world.budget(limit=100, unit="requests")
    await world.put_setting("sizing", LEARNED)
    await teach(one, [10] * 9)
    await ready(one, two)
    first = await two.submit(max_completion_tokens=100)
    assert await world.sums(budget) == (90 * CENT, USD, 0)
    assert first.warnings == []

    await teach(one, [10])
    await ready(one, two)
    second = await two.submit(max_completion_tokens=100)
    edge = EDGES[bucket_of(10, 100)]
    assert await world.sums(budget) == (USD, USD + part(USD, edge), 0)
    assert await world.sums(tokens) == (100, 100 + part(100, edge), 0)
    assert await world.sums(calls) == (10, 2, 0)
    assert second.estimated_cost == "1"
    assert held_of(second) == f"0.{part(USD, edge):09}".rstrip("0") + " of at most 1"
    row = await world.reservation(second.reservation_id or "")
    assert (row["estimated_cost"], row["estimated_tokens"]) == (USD, 100)


@pytest.mark.parametrize(
    ("default", "asked", "expected"),
    [("learned", None, 10), ("learned", "worst", 100), ("worst", "learned", 10), ("worst", None, 100)],
)
async def test_the_call_decides_then_its_org(world: World, default: str, asked: str | None, expected: int) -> None:
    one, _ = world.agents
    tokens = await world.budget(limit=100_000, unit="tokens")
    await world.put_setting("sizing", {**LEARNED, "default": default})
    await teach(one, [10] * 20)
    await ready(one)
    await one.submit(max_completion_tokens=100, **({} if asked is None else {"sizing": asked}))
    (_, reserved, _), edge = await world.sums(tokens), EDGES[bucket_of(10, 100)]
    assert reserved == (part(100, edge) if expected == 10 else 100)


async def test_a_changed_setting_binds_the_next_decision(world: World) -> None:
    one, _ = world.agents
    tokens = await world.budget(limit=100_000, unit="tokens")
    await world.put_setting("sizing", LEARNED)
    await teach(one, [10] * 20)
    await ready(one)
    await one.hold(max_completion_tokens=100)
    await world.put_setting("sizing", {**LEARNED, "default": "worst"})
    await one.hold(max_completion_tokens=100)
    await world.put_setting("sizing", {**LEARNED, "samples_min": 21})
    await one.hold(max_completion_tokens=100)
    assert (await world.sums(tokens))[1] == part(100, EDGES[bucket_of(10, 100)]) + 200


async def test_a_key_without_enough_samples_falls_back_to_those_without_agent_and_feature(world: World) -> None:
    one, _ = world.agents
    tokens = await world.budget(limit=1_000_000, unit="tokens")
    await world.put_setting("sizing", LEARNED)
    await teach(one, [10] * 10, feature="chat", agent_id="a")
    await teach(one, [20] * 90, feature="chat", agent_id="b")
    await teach(one, [40] * 900, feature="code", agent_id="c")
    await ready(one)
    reserved: list[int] = []
    for fields in (
        {"feature": "chat", "agent_id": "a"},
        {"feature": "chat", "agent_id": "z"},
        {"feature": "mail", "agent_id": "z"},
        {"agent_id": "z"},
        {"feature": "chat", "agent_id": "a", "model": "odd"},
    ):
        before = (await world.sums(tokens))[1]
        await one.hold(max_completion_tokens=100, **fields)
        reserved.append((await world.sums(tokens))[1] - before)
    ten, twenty, forty = (part(100, EDGES[bucket_of(n, 100)]) for n in (10, 20, 40))
    assert reserved == [ten, twenty, forty, forty, 100]


async def test_what_is_left_unreserved_is_a_share_of_each_blocking_limit_at_most(world: World) -> None:
    one, _ = world.agents
    await world.put_setting("sizing", {**LEARNED, "share_cap_percent": 4})
    await teach(one, [0] * 20)
    small, large = await world.budget(limit=5), await world.budget(limit=10_000)
    soft = await world.budget(limit=5, enforcement="warn")
    await ready(one)
    decision = await one.submit(max_completion_tokens=100)
    assert (await world.sums(small))[1] == USD - 5 * USD * 4 // 100
    assert (await world.sums(large))[1] == 1
    assert (await world.sums(soft))[1] == 1
    assert held_of(decision) == "0.8 of at most 1"


async def test_a_repeated_check_gets_the_same_answer_and_an_extension_the_worst_case(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=100)
    await world.put_setting("sizing", LEARNED)
    await teach(one, [10] * 20)
    await ready(one, two)
    first = await one.submit(request_id="r", max_completion_tokens=100)
    again = await two.submit(request_id="r", max_completion_tokens=100)
    assert again == first
    assert held_of(again)

    held = first.reservation_id or ""
    small = (await world.sums(budget))[1]
    await one.extend(held)
    assert (await world.sums(budget))[1] == small < USD
    await one.extend(held, prompt_tokens=0, max_completion_tokens=100)
    assert (await world.sums(budget))[1] == USD


async def test_a_decision_asks_postgresql_no_more_than_one_of_worst_cases(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = world.agents
    await world.budget(limit=100)
    await world.put_setting("sizing", LEARNED)
    await teach(one, [10] * 20)
    await ready(one)
    await one.hold(max_completion_tokens=100)
    asked: list[str] = []
    commit = reservations.commit_admission

    async def watched(connection: Connection, *args: Any, **kwargs: Any) -> Any:
        asked.append("commit_admission")
        connection.add_query_logger(lambda record: asked.append(record.query))
        return await commit(connection, *args, **kwargs)

    monkeypatch.setattr(reservations, "commit_admission", watched)
    await one.hold(max_completion_tokens=100)
    assert asked[0] == "commit_admission"
    assert len(asked) == 2


# Misses -----------------------------------------------------------------------------------------------------------


async def test_a_miss_takes_free_room_then_overrun_and_both_are_told(world: World) -> None:
    one, two = world.agents
    await world.put_setting("sizing", LEARNED)
    await teach(one, [10] * 10)
    await ready(one)
    budget = await world.budget(limit="1.5")
    held = [await one.hold(max_completion_tokens=100) for _ in range(4)]

    await two.track(completion_tokens=70, reservation_id=held[0])
    assert (await world.sums(budget))[2] == 0
    await two.track(completion_tokens=95, reservation_id=held[1])
    spent, _, overrun = await world.sums(budget)
    assert overrun > 0
    assert spent == 165 * CENT
    await two.track(completion_tokens=1, reservation_id=held[2])

    found = (await rows(world))[ANY]
    assert (found.learned, found.missed) == (3, 2)
    assert await causes(world) == {("learned", "cost"): (overrun, 1)}


async def test_overrun_is_counted_by_its_cause(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=1)
    tokens = await world.budget(limit=100, unit="tokens")
    held = await one.hold(max_completion_tokens=90)
    await two.track(completion_tokens=20)  # unreserved: 10 too many
    await two.track(completion_tokens=95, reservation_id=held)  # above its worst case: 5 more
    await two.track(completion_tokens=0, prompt_tokens=7)  # tokens only
    assert (await world.sums(budget))[2] == 15 * CENT
    assert (await world.sums(tokens))[2] == 22
    assert await causes(world) == {
        ("estimate", "cost"): (5 * CENT, 1),
        ("estimate", "tokens"): (5, 1),
        ("unreserved", "cost"): (10 * CENT, 1),
        ("unreserved", "tokens"): (17, 2),
    }


async def causes(world: World) -> dict[tuple[str, str], tuple[int, int]]:
    day = world.now().date()
    async with world.connection() as connection:
        found = await sizing.overruns(connection, world.org, since=day, until=date.fromordinal(day.toordinal() + 1))
    return {(row.cause, row.unit): (row.amount, row.charges) for row in found}


async def test_two_agents_that_size_by_observation_keep_every_promise(world: World) -> None:
    """P1-P4 are looked at by the oracle after the test; here: overrun is what misses booked, and nothing else."""
    one, two = world.agents
    await world.put_setting("sizing", {**LEARNED, "share_cap_percent": 20})
    await teach(one, [n % 40 for n in range(100)])
    await ready(one, two)
    total = await world.budget(limit=20)
    teams = await world.budget(type="team", entity_id="*", limit=8)

    async def settle(n: int, decision: BudgetDecision | SignalError) -> None:
        if isinstance(decision, BudgetDecision) and decision.approved:
            used = 95 if n % 7 == 0 else n % 40
            await (two, one)[n % 2].track(completion_tokens=used, reservation_id=decision.reservation_id)

    for start in range(0, 300, 60):
        calls = range(start, start + 60)
        asked = [(one, two)[n % 2].check(max_completion_tokens=100, team_id=f"t{n % 3}") for n in calls]
        await asyncio.gather(*map(settle, calls, await asyncio.gather(*asked)))
    over = (await world.sums(total))[2] + sum(w["overrun"] for w in await world.windows(teams))
    found = await causes(world)
    assert sum(amount for amount, _ in found.values()) == over
    assert set(found) == {("learned", "cost")}


async def test_a_late_event_that_replaces_what_was_presumed_is_observed_once(world: World) -> None:
    one, two = world.agents
    await world.budget(limit=100, on_expiry="settle")
    held = await one.hold(max_completion_tokens=100, ttl_s=60)
    await world.wait(seconds=120)
    assert await one.sweep() == 1
    assert await rows(world) == {}
    late = one.event(completion_tokens=30, reservation_id=held)
    await asyncio.gather(one.apply([late]), two.apply([late]))
    await two.track(completion_tokens=30, reservation_id=held)
    assert sum((await rows(world))[ANY].cost) == 1


async def test_a_call_of_a_learned_reservation_in_parts_can_miss(world: World) -> None:
    one, two = world.agents
    await world.put_setting("sizing", LEARNED)
    await teach(one, [10] * 10)
    await ready(one)
    await world.budget(limit=100)
    first, second = [await one.hold(max_completion_tokens=100) for _ in range(2)]
    for held, last in ((first, 1), (second, 60)):
        await two.track(completion_tokens=5, reservation_id=held, final=False)
        await two.track(completion_tokens=last, reservation_id=held)
    found = (await rows(world))[ANY]
    assert (found.learned, found.missed, sum(found.cost)) == (2, 1, 12)
