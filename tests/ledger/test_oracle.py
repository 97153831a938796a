"""The oracle itself: a nano moved by hand, anywhere, breaks the promise it should break."""

from tests.ledger.oracle import PROMISES, broken
from tests.support.ledger import World

DAMAGE = {
    "UPDATE budget_window SET reserved = reserved + 1 WHERE window_id = {window}": ("P3 reserved",),
    "UPDATE budget_window SET spent = spent + 1 WHERE window_id = {window}": ("P4 spent",),
    "UPDATE usage_rollup SET cost = cost - 1": ("P4 rollups",),
    "UPDATE budget_window SET overrun = overrun + 1 WHERE window_id = {window}": ("told: every overrun",),
    "UPDATE budget_window SET overrun = spent + 1 WHERE window_id = {window}": ("P1 no sum",),
    "UPDATE budget_window SET high_limit = NULL WHERE window_id = {window}": ("P1 a blocking",),
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
    await world.verify()
    return (await world.windows(budget))[0]["window_id"]


async def test_the_oracle_sees_every_damage(own_world: World) -> None:
    window = await _used(own_world)
    await own_world.execute(
        "ALTER TABLE usage_event DISABLE TRIGGER usage_event_append_only;"
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


def test_every_promise_is_damaged_by_some_test() -> None:
    told = {promise for promises in DAMAGE.values() for promise in promises}
    for name in PROMISES:
        assert any(name.startswith(promise) for promise in told), name
