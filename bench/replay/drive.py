"""One recorded call after another: ask for the budget, then report what was used. Many at once, none twice.

Owns the ids of a run: row n is request and event `<run-id>-<n>`, so any step can be repeated.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bench.replay.traces import Row
from bench.requester import GaveUp, Refused, Requester


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to send and how fast. `model` overrides the trace's own; `speed` 0 means as fast as possible."""

    run_id: str
    provider: str = "openai"
    model: str | None = None
    model_default: str = "gpt-4o"
    max_completion_tokens: int = 2048
    team: str = "t1"
    outstanding: int = 64
    speed: float = 0.0


@dataclass
class Tally:
    """What happened, counted by the sender."""

    rows: int = 0
    failed_calls: int = 0
    approved: int = 0
    denied: Counter[str] = field(default_factory=Counter[str])
    first_denial: str | None = None
    refused: Counter[str] = field(default_factory=Counter[str])
    first_refusal: str | None = None
    events: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    check_s: list[float] = field(default_factory=list[float])
    wall_s: float = 0.0


async def drive(
    requester: Requester, rows: Sequence[Row], plan: Plan, *, on_row: Callable[[Tally], None] | None = None
) -> Tally:
    """Send every row, at most `plan.outstanding` at once. Raises GaveUp when the service stays away too long."""
    tally = Tally()
    numbered = iter(enumerate(rows))
    started = time.monotonic()

    async def sender() -> None:
        for number, row in numbered:
            if plan.speed:
                await asyncio.sleep(max(0.0, started + row.offset_s / plan.speed - time.monotonic()))
            await _call(requester, plan, number, row, tally)
            tally.rows += 1
            if on_row is not None:
                on_row(tally)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, min(plan.outstanding, len(rows)))):
                group.create_task(sender())
    except* GaveUp as gave_up:
        raise GaveUp(str(gave_up.exceptions[0])) from None
    tally.wall_s = time.monotonic() - started
    return tally


async def _call(requester: Requester, plan: Plan, number: int, row: Row, tally: Tally) -> None:
    """A router asks, a provider agent reports; a call that was denied is not made."""
    tally.failed_calls += row.failed
    common = _common(plan, number, row)
    try:
        decision = await _check(requester, plan, row, common, tally)
        if not decision["approved"]:
            _count_denial(decision, tally)
            return
        tally.approved += 1
        await _track(requester, row, common, decision, tally)
    except Refused as error:
        tally.refused[error.code] += 1
        tally.first_refusal = tally.first_refusal or f"row {number}: {error}"


async def _check(requester: Requester, plan: Plan, row: Row, common: dict[str, Any], tally: Tally) -> dict[str, Any]:
    began = time.perf_counter()
    question = {**common, "prompt_tokens": row.prompt_tokens, "max_completion_tokens": plan.max_completion_tokens}
    decision = await requester.ask("check_budget", question)
    tally.check_s.append(time.perf_counter() - began)
    return decision


async def _track(
    requester: Requester, row: Row, common: dict[str, Any], decision: dict[str, Any], tally: Tally
) -> None:
    """The time is stamped once: a repetition must be the same event, byte for byte."""
    event = {
        **common,
        "id": common["request_id"],
        "timestamp": datetime.now(UTC),
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "reservation_id": decision["reservation_id"],
        "status": "error" if row.failed else "ok",
    }
    if row.prefix_hashes:
        event["prefix_hashes"] = row.prefix_hashes
    await requester.ask("track_usage", event)
    tally.events += 1
    tally.prompt_tokens += row.prompt_tokens
    tally.completion_tokens += row.completion_tokens


def _common(plan: Plan, number: int, row: Row) -> dict[str, Any]:
    return {
        "request_id": f"{plan.run_id}-{number}",
        "provider": plan.provider,
        "model": plan.model or row.model or plan.model_default,
        "team_id": plan.team,
        "session_id": plan.run_id,
    }


def _count_denial(decision: dict[str, Any], tally: Tally) -> None:
    reason = decision["reason"]
    tally.denied[reason["code"]] += 1
    if tally.first_denial is None:
        tally.first_denial = reason["message"]
