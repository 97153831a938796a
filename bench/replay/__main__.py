"""Replay recorded LLM traffic against a running service, or against one started for it, and check the books.

Reads the Azure CSV, BurstGPT CSV and Mooncake JSONL formats, plain or gzipped.
"""

import argparse
import asyncio
import json
import secrets
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import uvloop
from nats import errors as nats_errors
from rich.console import Console

from agent.bus.client import ConnectFailed
from bench.replay.books import read_books
from bench.replay.budget import budget_states, ensure_budget
from bench.replay.drive import Plan, Tally, drive
from bench.replay.outcome import Outcome, judge, print_outcome, reconciliation_of
from bench.replay.progress import progress
from bench.replay.service import NoService, Service
from bench.replay.traces import Row, TraceError, read_trace
from bench.requester import GaveUp, Refused, Requester

POLL_S = 0.1
# Longer than the stream waits before it delivers to another what a killed agent had taken.
APPLY_S = 120.0
CLOCK_MARGIN = timedelta(hours=1)
EXPLAINED = (
    TraceError,
    NoService,
    ConnectFailed,
    GaveUp,
    Refused,
    LookupError,
    OSError,
    nats_errors.Error,
    asyncpg.PostgresError,
)


def main() -> int:
    """Run what the command line says; 0 when every sum agrees, 1 when one differs, 2 when it could not run."""
    options = _parse()
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        outcome = uvloop.run(replay(options, console))
    except EXPLAINED as error:
        sys.stderr.write(f"replay: {error}\n")
        return 2
    print_outcome(outcome, console)
    if options.json is not None:
        options.json.write_text(json.dumps(outcome.figures(), indent=1, default=str) + "\n", encoding="utf-8")
    return 0 if outcome.ok else 1


async def replay(options: argparse.Namespace, console: Console) -> Outcome:
    """Find or start the service, drive it, wait until everything is applied, add up. Raises one of EXPLAINED."""
    rows = read_trace(options.trace, limit=options.limit)
    service = await Service.find(options.data_dir, url=options.url, database_url=options.database_url)
    try:
        requester = await Requester.to(service.nats_url, patience_s=options.patience_s)
        try:
            return await _replay(options, console, rows, service, requester)
        finally:
            await requester.close()
    finally:
        await service.close()


async def _replay(
    options: argparse.Namespace, console: Console, rows: Sequence[Row], service: Service, requester: Requester
) -> Outcome:
    plan = _plan(options)
    await requester.ask("get_status", {})
    if options.budget is not None:
        await ensure_budget(requester, team=plan.team, limit=options.budget)
    began = datetime.now(UTC)
    with progress(len(rows), console) as show:
        tally = await drive(requester, rows, plan, on_row=show)
    totals = await _applied(requester, plan, tally, began)
    outcome = Outcome(
        run_id=plan.run_id,
        tally=tally,
        retries=requester.retries,
        disconnections=requester.disconnections,
        restarts=service.restarts,
        totals=totals,
        budgets=await budget_states(
            requester, team=plan.team, provider=plan.provider, model=plan.model or plan.model_default
        ),
        reconciliation=await reconciliation_of(requester),
        books=await _books(service, options, plan),
    )
    outcome.problems = judge(outcome)
    return outcome


async def _applied(requester: Requester, plan: Plan, tally: Tally, began: datetime) -> dict[str, Any]:
    """The run's totals once they show everything sent, or whatever they show after APPLY_S."""
    deadline = time.monotonic() + APPLY_S
    while True:
        question = {
            "start": began - CLOCK_MARGIN,
            "end": datetime.now(UTC) + CLOCK_MARGIN,
            "filters": {"session_id": plan.run_id},
        }
        totals = (await requester.ask("aggregate_usage", question))["totals"]
        if totals["requests"] >= tally.events or time.monotonic() > deadline:
            return totals
        await asyncio.sleep(POLL_S)


async def _books(service: Service, options: argparse.Namespace, plan: Plan) -> Any:
    if not service.database_url:
        return None
    return await read_books(service.database_url, org=options.org, run_id=plan.run_id)


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        run_id=options.run_id or f"replay-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
        provider=options.provider,
        model=options.model or None,
        max_completion_tokens=options.max_completion_tokens,
        team=options.team,
        outstanding=options.outstanding,
        speed=options.speed,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.replay", description=__doc__)
    add = parser.add_argument
    add("trace", type=Path, help="the recorded traffic")
    add("--model", default="", help="the model of every call; empty: the trace's own, or gpt-4o where it names none")
    add("--provider", default="openai")
    add("--max-completion-tokens", type=int, default=2048, metavar="N", help="asked for by every check")
    add("--outstanding", type=_positive, default=64, metavar="N", help="calls under way at once")
    add("--budget", metavar="AMOUNT", help="a blocking monthly budget of the team, in USD")
    add("--team", default="t1", help="the team every call is attributed to")
    add("--data-dir", type=Path, default=Path("data"), help="of the running service, or of the one to start")
    add("--url", help="the bus, instead of what the data folder says; nothing is started then")
    add("--database-url", help="where the books are checked, instead of what the data folder says")
    add("--org", default="default", help="whose books are checked")
    add("--speed", type=float, default=0.0, metavar="N", help="times real time; 0: as fast as possible")
    add("--limit", type=_positive, metavar="N", help="only the first N rows")
    add("--run-id", metavar="NAME", help="prefix of all ids; made up when left out")
    add("--patience-s", type=float, default=60.0, metavar="S", help="how long one request is repeated")
    add("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
