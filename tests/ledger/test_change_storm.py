"""Checks, usage and expiry go on however often the catalogue changes, and however much there is to expire."""

import asyncio
import time

from tests.support.ledger import CENT, World

CHANGES = 150
EXPIRED = 10_000


async def test_checks_and_usage_are_answered_while_budgets_change_all_the_time(own_world: World) -> None:
    one, two = own_world.agents
    budget = await own_world.budget(limit=1_000)
    await own_world.budget(type="user", limit=1_000, period="minute")
    stop, slowest_s = asyncio.Event(), 0.0

    async def change() -> None:
        for number in range(CHANGES):
            await own_world.put_setting("anything", number)
        stop.set()

    async def call(n: int) -> int:
        nonlocal slowest_s
        calls = 0
        while not stop.is_set() or calls < 3:
            agent, began = (one, two)[n % 2], time.monotonic()
            held = await agent.hold(user_id=f"u{n}-{calls % 20}", max_completion_tokens=1)
            slowest_s = max(slowest_s, time.monotonic() - began)
            await agent.track(completion_tokens=1, reservation_id=held)
            calls += 1
        return calls

    changing = asyncio.create_task(change())
    calls = sum(await asyncio.gather(*(call(n) for n in range(8))))
    await changing

    print(f"\n  {CHANGES} changes, {calls} calls, slowest check {slowest_s * 1e3:.0f} ms")
    assert (await own_world.sums(budget))[:2] == (calls * CENT, 0)


async def test_ten_thousand_expired_reservations_are_swept_while_checks_go_on(own_world: World) -> None:
    one, two = own_world.agents
    budget = await own_world.budget(limit=1_000_000)
    await asyncio.gather(*(one.hold(max_completion_tokens=1, ttl_s=60) for _ in range(EXPIRED // 2)))
    await asyncio.gather(*(one.hold(max_completion_tokens=1, ttl_s=60) for _ in range(EXPIRED // 2)))
    await own_world.wait(minutes=2)
    began, slowest_s = time.monotonic(), 0.0
    sweeping = asyncio.gather(one.sweep(), two.sweep())
    checks = 0
    while not sweeping.done():
        asked = time.monotonic()
        await two.hold(max_completion_tokens=1)
        slowest_s, checks = max(slowest_s, time.monotonic() - asked), checks + 1
    swept = await sweeping

    took_s = time.monotonic() - began
    print(f"\n  swept {swept} in {took_s:.2f} s, {checks} checks meanwhile, slowest {slowest_s * 1e3:.0f} ms")
    assert sum(swept) == EXPIRED
    assert checks > 0
    assert (await own_world.sums(budget))[1] == checks * CENT
    assert await own_world.fetch("SELECT sum(count)::int AS n FROM unsettled_count") == [{"n": EXPIRED}]
