"""Replay recorded LLM traffic against a running service, or against one started for it, and check the books.

Reads the Azure CSV, BurstGPT CSV and Mooncake JSONL formats, plain or gzipped.
"""

import argparse
import asyncio
import json
import secrets
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import uvloop
from nats import errors as nats_errors
from rich.console import Console

from agent.client import ConnectFailed
from bench.replay.books import Books, read_books
from bench.replay.budget import budget_states, ensure_budget
from bench.replay.drive import Plan, Tally, drive
from bench.replay.outcome import Outcome, judge, print_outcome, reconciliation_of
from bench.replay.progress import progress
from bench.replay.service import NoService, Service
from bench.replay.traces import TraceError, read_trace
from bench.requester import GaveUp, Refused, Requester

POLL_S = 0.1
EXPLAINED = (TraceError, NoService, ConnectFailed, GaveUp, Refused, LookupError, nats_errors.Error, asyncpg.PostgresError)


def main() -> int:
    """Run what the command line says; 0 when every sum agrees, 1 when one differs, 2 when it could not run."""
    options = _parse()
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        outcome = uvloop.run(replay(options, console))
    except EXPLAINED as error:
        sys.stderr.write(f"replay: {error}\n")
        return 2
    except* EXPLAINED as group:
        sys.stderr.write(f"replay: {_first(group)}\n")
        return 2
    print_outcome(outcome, console)
    if options.json is not None:
        options.json.write_text(json.dumps(outcome.figures(), indent=1, default=str) + "\n", encoding="utf-8")
    return 0 if outcome.ok else 1
