"""Worst case or learned: the same recorded calls under the same budget, decided and settled by the ledger itself.

``python -m bench.sizing TRACE ...`` prints a Markdown table. The recorded calls come at their recorded times; what was
admitted is settled when the call would have ended. Time is the database's, moved on from minute to minute of the trace.
"""

import argparse
import asyncio
import heapq
import shlex
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import asyncpg
import msgspec
import uvloop

from agent.embedded import DataDir, EmbeddedPostgres
from agent.ids import UuidV7
from bench.figures import table
from bench.replay.books import read_books
from bench.replay.traces import Row, TraceError, read_trace
from bench.stand import temporary_folder
from handlers.context import Caller, Context, Inbound, Services
from handlers.cost.resolve import RateCards
from handlers.enforcer.admission import Admission
from handlers.enforcer.budgets import create_budget
from handlers.enforcer.sizing import refresh
from handlers.tracker.apply import Applier
from handlers.tracker.priced import PricedEvent, priced
from handlers.vault import Vault
from schemas.budget import BudgetDecision, CreateBudget
from schemas.errors import SignalError
from schemas.money import format_cost, parse_cost
from schemas.usage import UsageEvent
from store import budgets as budget_store
from store import sizing as sizing_store
from store.migrate import migrate
from store.pool import Database, PoolSettings

PROVIDER = "openai"
TTL_S = 86_400
MINUTE_S = 60.0
REFRESH_S = 2.0  # of the trace: an agent's own default
RATE_CARDS = RateCards()
_DECODE = msgspec.json.Decoder(BudgetDecision).decode


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the traces do not say. ``asked`` is the max_completion_tokens that every call asks for.

    A call ends after its completion tokens at ``tokens_per_s``. ``limit`` is in nanos per window.
    """

    asked: int
    tokens_per_s: float
    model: str
    period: Literal["minute", "total"]
    limit: int
    percentile: int
    share_cap_percent: int
    samples_min: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one run came to; money in nanos. ``over_percent_max`` is the largest overrun of a window by its limit."""

    calls: int
    admitted: int
    reserved_peak: int
    spent: int
    overrun: int
    windows: int
    over_percent_max: float
    learned: int
    missed: int

    @property
    def missed_percent(self) -> float:
        """Of the reservations that held less than the worst case, those that held too little."""
        return 100 * self.missed / self.learned if self.learned else 0.0


class Ledger:
    """One agent without a bus, of an org of its own, with a clock that is moved."""

    def __init__(self, url: str, org: str) -> None:
        self.url = url
        self.org = org
        self._ahead = timedelta(0)
        self.services = Services(
            database=Database(url, PoolSettings(min_size=1, max_size=4)),
            rate_cards=RATE_CARDS,
            clock=lambda: datetime.now(UTC) + self._ahead,
            new_id=UuidV7(),
            vault=Vault("a secret key for measurements only"),
        )
        self._admission = Admission(self.services)
        self._applier = Applier(self.services)
        self._caller = Caller(org, "replay", frozenset({"admin"}))

    async def prepare(self, given: Assumptions) -> None:
        """The org's budget and how it sizes."""
        settings = {
            "percentile": given.percentile,
            "samples_min": given.samples_min,
            "share_cap_percent": given.share_cap_percent,
        }
        async with self.services.database.transaction() as connection:
            await budget_store.lock_exclusive(connection, self.org)
            await budget_store.put_setting(connection, self.org, "sizing", settings)
            await budget_store.bump(connection, self.org)
        budget = CreateBudget(name="replay", type="global", period=given.period, limit=format_cost(given.limit))
        await create_budget(Context(self.services, self._caller), budget)

    async def go_to(self, at: datetime) -> None:
        """Move time, for every connection made from now on."""
        self._ahead = at - datetime.now(UTC)
        name = urlsplit(self.url).path[1:]
        connection = await asyncpg.connect(self.url)
        try:
            offset = f"{self._ahead.total_seconds():.6f} s"
            await connection.execute(f"ALTER DATABASE {name} SET token_manager.clock_offset = '{offset}'")
        finally:
            await connection.close()
        await self.services.database.close()
        await self.services.database.open()

    async def check(self, requests: Sequence[dict[str, Any]]) -> list[BudgetDecision]:
        """Ask for all of them at once, in order. Raises the SignalError of one that is refused."""
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[BudgetDecision]] = []
        for request in requests:
            answer: asyncio.Future[BudgetDecision] = loop.create_future()
            answers.append(answer)
            self._admission.submit(_inbound(self._caller, request, answer))
        return [await answer for answer in answers]

    def event(self, row: Row, model: str, reservation_id: str) -> PricedEvent:
        """What the call of a row used, as it arrives now."""
        event = UsageEvent(
            provider=PROVIDER,
            model=model,
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            reservation_id=reservation_id,
            session_id=self.org,
        )
        services = self.services
        return priced(
            event,
            org=self.org,
            event_id=services.new_id(),
            arrived_at=services.clock(),
            cards=services.rate_cards,
            limits=services.limits,
        ).event

    async def settle(self, events: Sequence[PricedEvent]) -> None:
        """Apply what ended."""
        await self._applier.apply(self.org, events)

    async def close(self) -> None:
        """End what runs and close the pool."""
        await self._admission.drain()
        await self.services.database.close()


def _inbound(caller: Caller, request: dict[str, Any], answer: "asyncio.Future[BudgetDecision]") -> Inbound:
    def answered(data: bytes) -> None:
        answer.set_result(_DECODE(data))

    def failed(error: SignalError) -> None:
        answer.set_exception(error)

    return Inbound(caller, msgspec.json.encode(request), answered, failed)


async def simulate(
    url: str, org: str, rows: Sequence[Row], given: Assumptions, *, sizing: Literal["worst", "learned"]
) -> Figures:
    """Decide and settle ``rows`` in the order of their time. Raises ValueError where the books are not exact."""
    ledger = Ledger(url, org)
    begin = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(days=1)
    await ledger.go_to(begin)
    try:
        await ledger.prepare(given)
        run = _Run(ledger, given, sizing)
        for number, minute in _minutes(rows):
            await run.end_before(number * MINUTE_S)
            await ledger.go_to(begin + timedelta(minutes=number))
            for batch in run.batches(minute):
                await run.admit(batch)
            if ledger.services.clock() >= begin + timedelta(minutes=number + 1):
                raise ValueError(f"minute {number} of the trace took longer than a minute: its window has passed")
        await run.end_before(float("inf"))
        return await _figures(ledger, given, len(rows), run)
    finally:
        await ledger.close()


def _minutes(rows: Sequence[Row]) -> Iterator[tuple[int, list[Row]]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(int(row.offset_s // MINUTE_S), []).append(row)
    yield from sorted(found.items())


class _Run:
    """Calls that are under way, by when they end."""

    def __init__(self, ledger: Ledger, given: Assumptions, sizing: str) -> None:
        self._ledger = ledger
        self._given = given
        self._sizing = sizing
        self._under_way: list[tuple[float, int, Row, str]] = []
        self._refreshed_s = 0.0
        self.admitted = 0
        self.reserved_peak = 0

    def batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows that come before any call ends: nothing lies between them, so they may be asked at once."""
        batch: list[Row] = []
        first_end = self._under_way[0][0] if self._under_way else float("inf")
        for row in rows:
            if batch and row.offset_s >= first_end:
                yield batch
                batch, first_end = [], self._under_way[0][0] if self._under_way else float("inf")
            batch.append(row)
            first_end = min(first_end, self._end(row))
        if batch:
            yield batch

    async def admit(self, batch: Sequence[Row]) -> None:
        """Settle what has ended by then, then ask for all of the batch."""
        await self.end_before(batch[0].offset_s)
        for row, decision in zip(batch, await self._ledger.check([self._request(r) for r in batch]), strict=True):
            if decision.approved:
                assert decision.reservation_id is not None
                self.admitted += 1
                self.reserved_peak = max(self.reserved_peak, *(parse_cost(w.reserved) for w in decision.budgets))
                place = (self._end(row), self.admitted, row, decision.reservation_id)
                heapq.heappush(self._under_way, place)

    async def end_before(self, at_s: float) -> None:
        """Settle the calls that end until then, and learn from them as often as an agent does."""
        events: list[PricedEvent] = []
        while self._under_way and self._under_way[0][0] <= at_s:
            _, _, row, reservation_id = heapq.heappop(self._under_way)
            events.append(self._ledger.event(row, self._given.model, reservation_id))
        if events:
            await self._ledger.settle(events)
        if at_s - self._refreshed_s >= REFRESH_S:
            self._refreshed_s = at_s
            await refresh(self._ledger.services)

    def _end(self, row: Row) -> float:
        return row.offset_s + row.completion_tokens / self._given.tokens_per_s

    def _request(self, row: Row) -> dict[str, Any]:
        return {
            "provider": PROVIDER,
            "model": self._given.model,
            "prompt_tokens": row.prompt_tokens,
            "max_completion_tokens": self._given.asked,
            "ttl_s": TTL_S,
            "sizing": self._sizing,
        }


_WINDOWS = """SELECT count(*) AS windows, coalesce(max(overrun::numeric / high_limit), 0) AS over
FROM budget_window WHERE org_id = $1"""


async def _figures(ledger: Ledger, given: Assumptions, calls: int, run: _Run) -> Figures:
    books = await read_books(ledger.url, org=ledger.org, run_id=ledger.org)
    windows = books.windows
    if not books.equal or any(window.reserved for window in windows) or books.run.events != run.admitted:
        raise ValueError("events, rollups, reservations and windows do not agree")
    async with ledger.services.database.connection() as connection:
        over = await connection.fetchrow(_WINDOWS, ledger.org)
        seen = await sizing_store.listing(connection, ledger.org, limit=1)
    assert over is not None
    return Figures(
        calls=calls,
        admitted=run.admitted,
        reserved_peak=run.reserved_peak,
        spent=sum(window.spent for window in windows),
        overrun=sum(window.overrun for window in windows),
        windows=over["windows"],
        over_percent_max=float(over["over"] * 100),
        learned=seen[0].learned if seen else 0,
        missed=seen[0].missed if seen else 0,
    )


def real_cost(rows: Sequence[Row], model: str) -> int:
    """What all the calls of a trace really cost, in nanos."""
    card = RATE_CARDS.resolve(PROVIDER, model, datetime.now(UTC))
    if card is None or card.rates.input is None or card.rates.output is None:
        raise LookupError(f"{PROVIDER}/{model} has no price")
    prompt, completion = sum(r.prompt_tokens for r in rows), sum(r.completion_tokens for r in rows)
    return (prompt * card.rates.input + completion * card.rates.output) // 1_000_000


@asynccontextmanager
async def private_database(folder: Path) -> AsyncGenerator[str]:
    """A migrated database of its own; what is measured here does not depend on fsync."""
    with DataDir(folder) as data:
        server = EmbeddedPostgres(data)
        await server.start()
        try:
            await migrate(server.url)
            connection = await asyncpg.connect(server.url)
            try:
                await connection.execute("ALTER SYSTEM SET fsync = off")
                await connection.execute("SELECT pg_reload_conf()")
            finally:
                await connection.close()
            yield server.url
        finally:
            await server.stop()


HEADER = (
    "trace, budget, asked",
    "sizing",
    "admitted",
    "of calls",
    "reserved peak",
    "spent",
    "overrun, nanos",
    "worst window",
    "missed of learned",
)


async def _measure(options: argparse.Namespace, folder: Path) -> str:
    lines: list[list[str]] = []
    async with private_database(folder) as url:
        for number, path in enumerate(options.traces):
            rows = _compressed(read_trace(path, limit=options.rows), options.speed)
            minutes = max(1.0, (rows[-1].offset_s - rows[0].offset_s) / MINUTE_S)
            cost = real_cost(rows, options.model)
            limit = int(cost / (minutes if options.period == "minute" else 1) * options.budget_percent / 100)
            for asked in options.asked:
                given = _assumptions(options, asked, limit)
                name = f"{path.name.partition('.')[0]}, {format_cost(limit)} per {options.period}, {asked}"
                for sizing in ("worst", *options.percentiles):
                    org = f"t{number}-{asked}-{sizing}"
                    if isinstance(sizing, int):
                        given = replace(given, percentile=sizing)
                    way: Literal["worst", "learned"] = "worst" if sizing == "worst" else "learned"
                    found = await simulate(url, org, rows, given, sizing=way)
                    lines.append(_line(name, f"learned, {sizing}" if way == "learned" else way, found))
                    sys.stderr.write(" | ".join(lines[-1]) + "\n")
    command = shlex.join(("python", "-m", "bench.sizing", *sys.argv[1:]))
    return f"`{command}`\n\n" + table(HEADER, lines)


def _assumptions(options: argparse.Namespace, asked: int, limit: int) -> Assumptions:
    return Assumptions(
        asked=asked,
        tokens_per_s=options.tokens_per_s,
        model=options.model,
        period=options.period,
        limit=limit,
        percentile=99,
        share_cap_percent=options.share_cap_percent,
        samples_min=options.samples_min,
    )


def _line(name: str, sizing: str, found: Figures) -> list[str]:
    return [
        name,
        sizing,
        f"{found.admitted:,}",
        f"{100 * found.admitted / found.calls:.1f} %",
        f"{found.reserved_peak / 1e9:.3f}",
        f"{found.spent / 1e9:.3f}",
        f"{found.overrun:,}",
        f"{found.over_percent_max:.2f} %",
        f"{found.missed:,} of {found.learned:,} = {found.missed_percent:.2f} %" if found.learned else "-",
    ]


def _compressed(rows: Sequence[Row], speed: float) -> list[Row]:
    return [replace(row, offset_s=row.offset_s / speed) for row in rows]


def main() -> int:
    """Measure what the command line asks for; the exit status."""
    options = _parse()
    try:
        with temporary_folder(None) as folder:
            sys.stdout.write(uvloop.run(_measure(options, Path(folder))) + "\n")
    except (TraceError, LookupError, ValueError) as error:
        sys.stderr.write(f"bench.sizing: {error}\n")
        return 1
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.sizing", description=__doc__)
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--model", default="gpt-4.1", help="whose prices the calls have")
    parser.add_argument("--rows", type=int, help="only the first rows of each trace")
    parser.add_argument(
        "--asked", type=int, nargs="+", default=[4096, 8192], help="max_completion_tokens of every call"
    )
    parser.add_argument("--percentiles", type=int, nargs="+", default=[99, 95])
    parser.add_argument("--period", choices=("minute", "total"), default="minute", help="of the budget")
    parser.add_argument("--budget-percent", type=float, default=100.0, help="of what the calls really cost per period")
    parser.add_argument("--tokens-per-s", type=float, default=50.0, help="how fast a call's completion comes")
    parser.add_argument("--speed", type=float, default=1.0, help="how many times faster the calls come than recorded")
    parser.add_argument("--share-cap-percent", type=int, default=5)
    parser.add_argument("--samples-min", type=int, default=200)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
