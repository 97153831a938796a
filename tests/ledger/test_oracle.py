"""The oracle itself: a nano moved by hand, anywhere, breaks the promise it should break."""

from collections.abc import Mapping

import pytest

from tests.ledger.oracle import JOURNAL, JOURNALED, PROMISES, broken
from tests.support.ledger import CENT, World

DAMAGE = {
    "UPDATE budget_window SET reserved = reserved + 1 WHERE window_id = {window}": ("P3 reserved",),
    "UPDATE budget_window SET spent = spent + 1 WHERE window_id = {window}": ("P4 spent",),
    "UPDATE usage_rollup SET cost = cost - 1": ("P4 rollups",),
    "UPDATE budget_window SET overrun = overrun + 1 WHERE window_id = {window}": ("told: every overrun",),
    "UPDATE budget_window SET overrun = spent + 1 WHERE window_id = {window}": ("P1 no sum",),
    "UPDATE budget_window SET high_limit = NULL WHERE window_id = {window}": ("P1 a blocking",),
    "UPDATE budget SET enforcement = 'shadow'": ("P1 a window that does not block",),
    "UPDATE budget SET enforcement = 'throttle'": ("P1 a window that does not block",),
    "UPDATE budget SET enforcement = 'downgrade', gate_id = budget_id": ("P1 a window that does not block",),
    "UPDATE budget_window SET shadow_denied = 1, exceeded_at = NULL": ("R19 a shadow denial",),
    "UPDATE budget_window SET shadow_denied = -1": ("P1 no sum",),
    "UPDATE budget_window SET thresholds_fired = thresholds_fired || 77 WHERE window_id = {window}": (
        "told: a threshold",
    ),
    "UPDATE budget_window SET thresholds_fired = '{{}}' WHERE window_id = {window}": ("told: a threshold",),
    "UPDATE budget_window SET exceeded_at = NULL WHERE window_id = {window}": ("told: exceeded",),
    "INSERT INTO outbox (org_id, event, payload) SELECT org_id, event, payload FROM outbox": (
        "told: a threshold",
        "told: exceeded",
    ),
    "UPDATE reservation SET status = 'released', closed_at = now() WHERE status = 'live'": ("P3 reserved",),
    "UPDATE reservation SET held = held || 1::bigint": ("P3 a reservation",),
    "UPDATE reservation SET decided_at = decided_at - interval '40 days'": ("P3 a hold", "P4 an event is charged at"),
    "DELETE FROM usage_id WHERE id = 'used'": ("P2",),
    "INSERT INTO usage_id VALUES ('default', 'lost', '', now())": ("P2",),
    "INSERT INTO usage_event SELECT * FROM usage_event WHERE id = 'used'": ("P2", "P4 spent", "P4 rollups"),
    "DELETE FROM usage_event WHERE id = 'used'": ("P2", "P4 spent", "P4 rollups"),
    "UPDATE usage_event SET cost = cost + 1 WHERE id = 'used'": ("P4 a cost", "P4 a charge", "P4 rollups"),
    "UPDATE usage_event SET prompt_tokens = 1 WHERE id = 'used'": ("P4 a cost", "P4 rollups"),
    "UPDATE usage_event SET cost = NULL WHERE id = 'used'": ("P4 a cost", "P4 a charge"),
    "UPDATE usage_event SET charge_amounts = '{{5}}' WHERE id = 'used'": ("P4 a charge", "P4 spent"),
    "UPDATE usage_event SET charge_windows = '{{}}', charge_amounts = '{{}}' WHERE id = 'used'": (
        "P4 every",
        "P4 spent",
    ),
    "UPDATE usage_event SET charged_at = charged_at + interval '1 day' WHERE id = 'used'": (
        "P4 an event is charged at",
    ),
    "UPDATE usage_event SET user_id = 'v' WHERE id = 'used'": ("P4 rollups",),
    "UPDATE usage_event SET latency_ms = 8 WHERE id = 'used'": ("P4 rollups",),
    "UPDATE usage_rollup SET requests = requests + 1": ("P4 rollups",),
    "UPDATE usage_rollup SET list_cost = list_cost - 1": ("P4 rollups",),
    "UPDATE usage_rollup SET cost = -1": ("P4 no rollup",),
    "UPDATE usage_rollup SET size_histogram[3] = -1": ("P4 no rollup",),
    # Adjustments: a wrong charge, one that is lost, a wrong posting, a wrong state, news that is not told.
    "UPDATE adjustment SET charge_amounts[1] = charge_amounts[1] + 1": ("P4 spent", "R15 windows hold"),
    "UPDATE adjustment SET charge_windows = '{{}}', charge_amounts = '{{}}'": ("P4 spent", "R15 windows hold"),
    "DELETE FROM adjustment WHERE usage_id = 'fixed' AND sequence = 2": (
        "P4 spent",
        "R15 an adjustment posts",
        "told: every adjustment",
    ),
    "DELETE FROM adjustment WHERE usage_id = 'fixed' AND sequence = 1": ("R15 adjustments of an event",),
    "UPDATE adjustment SET sequence = 5 WHERE usage_id = 'fixed' AND sequence = 2": ("R15 adjustments of an event",),
    "UPDATE adjustment SET before = jsonb_set(before, '{{cost}}', '7') WHERE usage_id = 'fixed'": (
        "R15 adjustments of an event",
        "R15 an adjustment posts",
    ),
    "UPDATE adjustment SET after = jsonb_set(after, '{{cost}}', '7') WHERE usage_id = 'fixed'": (
        "R15 windows hold",
        "R15 an adjusted cost",
        "R15 an adjustment posts",
    ),
    "UPDATE adjustment SET after = jsonb_set(after, '{{cost}}', '-7') WHERE usage_id = 'fixed'": (
        "R15 an adjusted cost",
    ),
    "UPDATE adjustment SET after = jsonb_set(after, '{{prompt_tokens}}', '7') WHERE usage_id = 'fixed'": (
        "R15 an adjustment posts",
    ),
    "UPDATE adjustment SET after = jsonb_set(after, '{{void}}', 'true') WHERE sequence = 2": ("R15 windows hold",),
    "UPDATE adjustment_entry SET cost = cost + 1": ("P4 rollups", "R15 an adjustment posts"),
    "UPDATE adjustment_entry SET requests = requests + 1": ("P4 rollups", "R15 an adjustment posts"),
    "UPDATE adjustment_entry SET team_id = 'other'": ("P4 rollups", "R15 an adjustment posts"),
    "UPDATE adjustment_entry SET model = 'other'": ("P4 rollups", "R15 an adjustment posts"),
    'UPDATE adjustment_entry SET "timestamp" = "timestamp" + interval \'1 day\'': (
        "P4 rollups",
        "R15 an adjustment posts",
    ),
    "UPDATE adjustment_entry SET charged_at = charged_at + interval '1 day'": ("R15 an adjustment posts",),
    "DELETE FROM adjustment_entry WHERE position = 0": ("P4 rollups", "R15 an adjustment posts"),
    "DELETE FROM adjustment_entry WHERE position = 1": ("P4 rollups", "R15 an adjustment posts"),
    "DELETE FROM outbox WHERE event = 'usage.adjusted'": ("told: every adjustment",),
    "INSERT INTO outbox (org_id, event, payload) SELECT org_id, event, payload FROM outbox WHERE event LIKE 'us%'": (
        "told: every adjustment",
    ),
    "DELETE FROM usage_rollup": ("P4 rollups",),
}


async def _used(world: World) -> int:
    """A window with a hold, usage within and beyond its reservation, and every event told."""
    one, two = world.agents
    budget = await world.budget(limit=1, alert_thresholds=(50, 100))
    held = await one.hold(user_id="u", max_completion_tokens=60)
    await one.hold(user_id="u", max_completion_tokens=10)
    await two.track(id="used", completion_tokens=55, reservation_id=held, latency_ms=7.5)
    await two.track(id="more", completion_tokens=50)
    await two.track(id="fixed", completion_tokens=9, user_id="u", latency_ms=2.5)
    await one.adjust("fixed", "correct", completion_tokens=12)
    await two.adjust("fixed", "correct", completion_tokens=13)
    await world.verify()
    return (await world.windows(budget))[0]["window_id"]


# The same for what only the journal can tell: damage done behind the back of the ledger, as a wrong decision would.
JOURNALED_DAMAGE = {
    "UPDATE budget_window SET reserved = reserved + 560000000, high_limit = 1100000000 WHERE window_id = {window}": (
        "P1 whatever grows",
        "P1 the highest",
    ),
    "UPDATE budget_window SET reserved = reserved - 1, high_limit = high_limit + 1 WHERE window_id = {window}": (
        "P1 the highest",
    ),
    "UPDATE budget_window SET high_limit = high_limit - 1 WHERE window_id = {window}": ("P1 the highest",),
    "UPDATE budget_window SET high_limit = 2000000000 WHERE window_id = {window}": ("P1 the highest",),
    # Under an override it may grow, and has to say so.
    "{raise}; UPDATE budget_window SET spent = spent + 50000000 WHERE window_id = {window}": ("P1 the highest",),
    "{raise}; UPDATE override SET ends_at = ledger_clock() - interval '1 s', starts_at = requested_at - interval '1 s';"
    "UPDATE budget_window SET reserved = reserved + 560000000, high_limit = 1200000000 WHERE window_id = {window}": (
        "P1 whatever grows",
        "P1 the highest",
    ),
    "{hold_more}": ("P1 what was approved",),
    "UPDATE budget SET base_limit = 100000000 WHERE name = 'gate'; {hold_rate}": ("R19 beyond its gate",),
    "INSERT INTO brake VALUES ('default', 'org', '*', 'r', 'a', now()); {hold}": ("R19 nothing is admitted",),
    "INSERT INTO brake VALUES ('default', 'team', 't', 'r', 'a', now()); {hold}": ("R19 nothing is admitted",),
    "INSERT INTO brake VALUES ('default', 'model', 'ce*', 'r', 'a', now()); {hold}": ("R19 nothing is admitted",),
    "INSERT INTO brake VALUES ('default', 'provider', 'acme', 'r', 'a', now()); {hold}": ("R19 nothing is admitted",),
    "INSERT INTO team_member SELECT 'default', attribution ->> 'user_id', 'other' FROM reservation LIMIT 1; {hold}": (
        "R19 nothing is admitted",
    ),
    "UPDATE budget_window SET shadow_denied = shadow_denied + 1": ("R19 shadow denials",),
    "UPDATE budget_window SET shadow_denied = 0": ("R19 shadow denials",),
    "UPDATE budget_window SET carry = carry + 1 WHERE window_id = {next}": ("R14 a carry never",),
    "{successor} SELECT org_id, budget_id, entity_id, '2030-03-15Z', 2, 4 FROM budget_window {last}": (
        "R14 a carry is",
    ),
    "{successor} SELECT org_id, budget_id, entity_id, '2030-03-18Z', 8, 10 FROM budget_window {last}": (
        "R14 a carry is",
    ),
}
# What is right is no damage: one of three calls is left on the 14th, and three days of two go by until the 18th.
JOURNALED_RIGHT = (
    "{successor} SELECT org_id, budget_id, entity_id, '2030-03-15Z', 1, 3 FROM budget_window {last}",
    "{successor} SELECT org_id, budget_id, entity_id, '2030-03-18Z', 7, 9 FROM budget_window {last}",
    "{raise}; UPDATE budget_window SET spent = spent + 50000000, high_limit = 1100000000 WHERE window_id = {window}",
)
HOLD = """INSERT INTO reservation (org_id, reservation_id, request_id, body_hash, decided_at, expires_at, provider,
        model, attribution, estimated_tokens, window_ids, held)
    SELECT org_id, gen_random_uuid(), gen_random_uuid()::text, '', ledger_clock(), ledger_clock() + interval '1 h',
        provider, model, attribution, 1, {windows}, {held} FROM reservation LIMIT 1"""


async def test_the_oracle_sees_every_damage(own_world: World) -> None:
    window = await _used(own_world)
    await own_world.execute(
        "ALTER TABLE usage_event DISABLE TRIGGER usage_event_append_only;"
        "ALTER TABLE adjustment DISABLE TRIGGER adjustment_append_only;"
        "ALTER TABLE adjustment_entry DISABLE TRIGGER adjustment_entry_append_only;"
        "ALTER TABLE budget_window DROP CONSTRAINT never_over"
    )
    for sql, promises in DAMAGE.items():
        async with own_world.connection() as connection:
            damage = connection.transaction()
            await damage.start()
            await connection.execute(sql.format(window=window))
            found = await broken(connection, own_world.org)
            await damage.rollback()
        for promise in promises:
            assert any(name.startswith(promise) for name in found), f"{sql}: {promise} not in {list(found)}"


async def _journaled(world: World) -> Mapping[str, str]:
    """Every kind of budget, used up to its limit and a little beyond where it lets one; what damage needs of it."""
    one, two = world.agents
    await world.execute(JOURNAL)
    main = await world.budget(limit=1, name="main")
    gate = await world.budget(limit=9, unit="requests", period="daily", enforcement="throttle", name="gate")
    rate = await world.budget(
        limit=9, unit="requests", period="minute", enforcement="throttle", gate_id=gate.budget_id, name="rate"
    )
    shadow = await world.budget(limit="0.5", enforcement="shadow", name="shadow")
    daily = await world.budget(limit=2, unit="requests", period="daily", rollover_policy="full", name="daily")
    call = {"user_id": "u", "team_id": "t"}
    held = await one.hold(max_completion_tokens=60, **call)
    await two.track(completion_tokens=50, reservation_id=held, **call)
    await world.wait(days=1)
    for agent in (one, two):
        await agent.hold(max_completion_tokens=23, **call)
    await world.override(main, 10 * CENT, hours=-1)
    ids = {b.name: (await world.windows(b))[-1]["window_id"] for b in (main, gate, rate, shadow, daily)}
    async with world.connection() as connection:
        assert not await broken(connection, world.org, {**PROMISES, **JOURNALED})
    more = HOLD.format(windows="ARRAY[{window}::bigint]", held="ARRAY[5::bigint]").format(window=ids["main"])
    sql = "UPDATE budget_window SET reserved = reserved + 500000000, high_limit = 2000000000 WHERE window_id = {};"
    return {
        "window": ids["main"],
        "next": ids["daily"],
        "raise": "UPDATE override SET starts_at = requested_at - interval '1 h', ends_at = ledger_clock() + '1 h'",
        "hold": HOLD.format(windows="'{}'", held="'{}'"),
        "hold_more": sql.format(ids["main"]) + more,
        "hold_rate": "UPDATE budget SET base_limit = 0 WHERE name IN ('gate', 'rate');"
        + HOLD.format(windows=f"ARRAY[{ids['gate']}, {ids['rate']}]", held="ARRAY[1, 1]"),
        "successor": "INSERT INTO budget_window (org_id, budget_id, entity_id, starts_at, carry, high_limit)",
        "last": f"WHERE window_id = {ids['daily']}",
    }


async def test_the_oracle_sees_every_wrong_write(own_world: World) -> None:
    await own_world.execute("ALTER TABLE budget_window DROP CONSTRAINT never_over")
    names = await _journaled(own_world)
    for sql, promises in (JOURNALED_DAMAGE | dict.fromkeys(JOURNALED_RIGHT, ())).items():
        async with own_world.connection() as connection:
            damage = connection.transaction()
            await damage.start()
            await connection.execute(sql.format(**names))
            found = await broken(connection, own_world.org, JOURNALED)
            await damage.rollback()
        assert promises or not found, f"{sql}: {found}"
        for promise in promises:
            assert any(name.startswith(promise) for name in found), f"{sql}: {promise} not in {list(found)}"


@pytest.mark.parametrize(("promises", "damage"), [(PROMISES, DAMAGE), (JOURNALED, JOURNALED_DAMAGE)])
def test_every_promise_is_damaged_by_some_test(
    promises: Mapping[str, str], damage: Mapping[str, tuple[str, ...]]
) -> None:
    told = {promise for broken_ones in damage.values() for promise in broken_ones}
    for name in promises:
        assert any(name.startswith(promise) for promise in told), name
