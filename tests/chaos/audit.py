"""What PostgreSQL says, read over connections of the test's own with statements of the test's own."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from tests.chaos.load import NANOS_PER_COMPLETION_TOKEN, NANOS_PER_PROMPT_TOKEN, Book
from tests.support.chaos import connected, elapsed

# P1, in one snapshot: no window over the limit that binds, nor over its highest one, and nothing found no room.
OVER = """
SELECT count(*) AS windows,
    count(*) FILTER (WHERE w.spent - w.overrun + w.reserved > w.high_limit) AS over_high,
    coalesce(max(w.spent + w.reserved - (b.base_limit + b.base_limit * b.overage_percent / 100 + w.carry))
        FILTER (WHERE b.name <> 'raised'), 0) AS over,
    coalesce(sum(w.overrun), 0) AS overrun
FROM budget_window w JOIN budget b USING (org_id, budget_id) WHERE b.enforcement = 'block'"""

# P3 and P4, in one snapshot, at any instant: reserved is what live reservations hold, spent is what was charged.
DIFFERING = """
WITH held AS (
    SELECT h.window_id, sum(h.amount) AS amount
    FROM reservation r, unnest(r.window_ids, r.held) AS h (window_id, amount) WHERE r.status = 'live' GROUP BY 1
), charged AS (
    SELECT c.window_id, sum(c.amount) AS amount FROM (
        SELECT charge_windows, charge_amounts FROM usage_event
        UNION ALL SELECT charge_windows, charge_amounts FROM adjustment) e,
        unnest(e.charge_windows, e.charge_amounts) AS c (window_id, amount) GROUP BY 1
)
SELECT count(*) FROM budget_window w
LEFT JOIN held USING (window_id) LEFT JOIN charged USING (window_id)
WHERE w.reserved <> coalesce(held.amount, 0) OR w.spent <> coalesce(charged.amount, 0) + w.backfilled"""

ROLLUPS = """
SELECT (SELECT (coalesce(sum(cost), 0), coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0),
                coalesce(sum(requests), 0)) FROM usage_rollup)
     = (SELECT (coalesce(sum(cost), 0), coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0),
                coalesce(sum(requests), 0)) FROM usage_posting)"""

SPENT = """
SELECT b.name, w.entity_id, sum(w.spent)::bigint AS spent
FROM budget_window w JOIN budget b USING (org_id, budget_id) GROUP BY 1, 2"""


# Each threshold that fired, each first overrun and each full window is one alert, and each alert one delivery.
ALERTS = """
WITH wanted AS (
    SELECT 'threshold:' || w.window_id || ':' || t AS key FROM budget_window w JOIN budget b USING (org_id, budget_id),
        unnest(w.thresholds_fired) t WHERE b.gate_id IS NULL
), raised AS (SELECT dedup_key AS key, count(*) AS n FROM alert WHERE kind = 'threshold' GROUP BY 1)
SELECT (SELECT count(*) FROM wanted FULL JOIN raised USING (key)
        WHERE n IS DISTINCT FROM 1 OR NOT EXISTS (SELECT FROM wanted w WHERE w.key = raised.key)) AS differing,
    (SELECT count(*) - count(DISTINCT key) FROM wanted) AS fired_twice, (SELECT count(*) FROM raised) AS raised,
    (SELECT count(*) FROM (SELECT alert_id FROM delivery GROUP BY 1 HAVING count(*) <> 1)) AS told_twice,
    (SELECT count(*) FROM alert WHERE kind = 'threshold') AS alerts,
    (SELECT count(DISTINCT alert_id) FROM delivery JOIN alert USING (org_id, alert_id) WHERE kind = 'threshold') AS told
"""


@dataclass
class Samples:
    """What was seen while the load ran."""

    instants: int = 0
    over_nanos_max: int = 0
    overrun_max: int = 0
    breaches: list[str] = field(default_factory=list[str])


async def watch(url: str, stop: asyncio.Event, samples: Samples) -> None:
    """Sample P1 many times a second and the whole ledger about once a second, until `stop`."""
    async with connected(url) as connection:
        while not await elapsed(stop, 0.02):
            await sample(connection, samples)
            if samples.instants % 30 == 0:
                await sample_sums(connection, samples)


async def sample(connection: Any, samples: Samples) -> None:
    """One look at P1."""
    row = await connection.fetchrow(OVER)
    samples.instants += 1
    samples.over_nanos_max = max(samples.over_nanos_max, int(row["over"]))
    samples.overrun_max = max(samples.overrun_max, int(row["overrun"]))
    if row["over_high"] or row["over"] > 0 or row["overrun"]:
        samples.breaches.append(f"instant {samples.instants}: {dict(row)}")


async def sample_sums(connection: Any, samples: Samples) -> None:
    """One look at P3 and P4."""
    differing = await connection.fetchval(DIFFERING)
    if differing:
        samples.breaches.append(f"instant {samples.instants}: {differing} windows differ from their rows")


@dataclass
class Findings:
    """The audit's numbers; all but `events` must be zero or empty."""

    events: int = 0
    alerts: int = 0
    lost: list[str] = field(default_factory=list[str])
    doubled: list[str] = field(default_factory=list[str])
    unknown: list[str] = field(default_factory=list[str])
    wrong: list[str] = field(default_factory=list[str])


async def audit(url: str, book: Book) -> Findings:
    """Compare the ledger with what callers were told. Everything sent has been applied by now."""
    found = Findings()
    async with connected(url) as connection:
        await _events(connection, book, found)
        await _windows(connection, book, found)
        await _reservations(connection, book, found)
        told = await connection.fetchrow(ALERTS)
        assert told is not None
        found.alerts = told["raised"]
        if told["differing"] or told["fired_twice"] or told["told_twice"] or told["told"] != told["alerts"]:
            found.wrong.append(f"alerts: {dict(told)}")
        if not await connection.fetchval(ROLLUPS):
            found.wrong.append("rollups are not the sum of events and adjustments")
        if differing := await connection.fetchval(DIFFERING):
            found.wrong.append(f"{differing} windows differ from their events and reservations")
        samples = Samples()
        await sample(connection, samples)
        found.wrong += samples.breaches
        for table in ("dead_letter",):
            if count := await connection.fetchval(f"SELECT count(*) FROM {table}"):
                found.wrong.append(f"{count} rows in {table}")
    return found


async def _events(connection: Any, book: Book, found: Findings) -> None:
    rows: dict[str, asyncpg.Record] = {}
    for row in await connection.fetch("SELECT * FROM usage_event"):
        if row["id"] in rows:
            found.doubled.append(row["id"])
        rows[row["id"]] = row
    found.events = len(rows)
    found.lost = sorted(book.acknowledged - rows.keys())
    found.unknown = sorted(rows.keys() - book.sent.keys())
    for event_id, row in rows.items():
        event = book.sent.get(event_id)
        if event is None:
            continue
        cost = cost_nanos(event)
        if row["cost"] != cost or not row["reserved"]:
            found.wrong.append(f"{event_id}: cost {row['cost']} for {cost}, reserved {row['reserved']}")


async def _windows(connection: Any, book: Book, found: Findings) -> None:
    """Each window's spent, recomputed from the callers' own records: charged once, to every scope."""
    attribution = {
        str(row["reservation_id"]): row
        for row in await connection.fetch(
            "SELECT reservation_id, attribution->>'team_id' AS team, attribution->>'user_id' AS who,"
            " attribution->>'project_id' AS project FROM reservation"
        )
    }
    applied = {row["id"] for row in await connection.fetch("SELECT id FROM usage_event")}
    expected: dict[tuple[str, str], int] = {}
    for event in book.sent.values():
        row = attribution.get(event["reservation_id"])
        if event["id"] not in applied or row is None:
            continue
        tokens = event["prompt_tokens"] + event["completion_tokens"]
        cost = cost_nanos(event)
        everywhere = [(name, "*", cost) for name in ("all", "raised", "paced", "noted")]
        scopes = (
            *everywhere,
            ("paced (rate)", "*", int(event["final"])),
            ("teams", row["team"], cost),
            ("users", row["who"], tokens),
        )
        for name, entity, amount in (*scopes, ("projects", row["project"], int(event["final"]))):
            expected[name, entity] = expected.get((name, entity), 0) + amount
    stored = {(row["name"], row["entity_id"]): int(row["spent"]) for row in await connection.fetch(SPENT)}
    for key in sorted(expected.keys() | stored.keys()):
        if expected.get(key, 0) != stored.get(key, 0):
            found.wrong.append(f"{key}: spent {stored.get(key, 0)}, callers used {expected.get(key, 0)}")


async def _reservations(connection: Any, book: Book, found: Findings) -> None:
    """No approval without a row; nothing settled, released or forgotten still holds anything."""
    rows = {str(r["reservation_id"]): r for r in await connection.fetch("SELECT * FROM reservation")}
    for reservation_id, request_id in book.approvals.items():
        row = rows.get(reservation_id)
        if row is None or row["request_id"] != request_id:
            found.wrong.append(f"approval {reservation_id} of {request_id} has no reservation")
    settled = {e["reservation_id"] for e in book.sent.values() if e["final"] and e["id"] in book.acknowledged}
    expected = {"settled": settled, "released": book.released, "expired": book.forgotten}
    for status, ids in expected.items():
        # A release that comes after two seconds finds its reservation expired.
        allowed = {status, "expired"} if status == "released" else {status}
        other = [i for i in ids if i in rows and rows[i]["status"] not in allowed]
        if other:
            found.wrong.append(f"{len(other)} of {len(ids)} reservations are not {status}: {other[:3]}")
    if live := [i for i, row in rows.items() if row["status"] == "live"]:
        found.wrong.append(f"{len(live)} reservations are still live: {live[:3]}")


def cost_nanos(event: dict[str, Any]) -> int:
    """What an event costs, by the price list."""
    prompt, completion = event["prompt_tokens"], event["completion_tokens"]
    return prompt * NANOS_PER_PROMPT_TOKEN + completion * NANOS_PER_COMPLETION_TOKEN
