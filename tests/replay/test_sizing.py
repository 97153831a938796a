"""Recorded calls under one budget, decided by the ledger: learned reservations admit more, inside their risk."""

from collections.abc import Sequence
from typing import Any

import pytest

from bench.replay.service import ROOT
from bench.replay.traces import Row, read_trace
from bench.sizing import Assumptions, Figures, Ledger, real_cost, simulate
from tests.ledger.oracle import violations

TRACES = ROOT.parent / "shared" / "data" / "traces"
AZURE = TRACES / "azure_llm_2023_code.csv.gz"
MOONCAKE = TRACES / "mooncake_conversation_first30min.jsonl.gz"
MODEL = "gpt-4.1"


def given(limit: int, **fields: Any) -> Assumptions:
    usual: dict[str, Any] = {
        "asked": 8_192,
        "tokens_per_s": 50.0,
        "model": MODEL,
        "period": "minute",
        "percentile": 95,
        "share_cap_percent": 5,
        "samples_min": 100,
    }
    return Assumptions(limit=limit, **{**usual, **fields})


def generated(calls: int, per_s: float) -> list[Row]:
    """Calls whose completions are mostly short and sometimes long, the same in every minute; nothing is random."""
    return [
        Row(
            offset_s=n / per_s,
            prompt_tokens=500 + n * 37 % 900,
            completion_tokens=1_000 if n % 41 == 7 else 100 + n * 53 % 500,
        )
        for n in range(calls)
    ]


async def both(url: str, rows: Sequence[Row], assumed: Assumptions) -> tuple[Figures, Figures]:
    """The same calls sized both ways; the promises hold for each."""
    worst = await simulate(url, "worst", rows, assumed, sizing="worst")
    learned = await simulate(url, "learned", rows, assumed, sizing="learned")
    ledger = Ledger(url, "oracle")
    await ledger.services.database.open()
    try:
        async with ledger.services.database.connection() as connection:
            for org in ("worst", "learned"):
                assert await violations(connection, org) == {}
    finally:
        await ledger.close()
    return worst, learned


def assert_inside_the_risk(worst: Figures, learned: Figures, assumed: Assumptions) -> None:
    """No worst case is ever missed; of the learned ones, no more than the percentile leaves, each a share at most."""
    assert (worst.learned, worst.missed, worst.overrun) == (0, 0, 0)
    assert learned.learned > 0
    assert learned.missed_percent <= 100 - assumed.percentile
    assert learned.overrun <= learned.missed * assumed.limit * assumed.share_cap_percent // 100
    assert learned.over_percent_max <= assumed.share_cap_percent
    assert learned.overrun < learned.spent // 100


async def test_learned_reservations_admit_more_of_a_generated_trace_under_the_same_budget(database_url: str) -> None:
    rows = generated(1_500, per_s=10.0)
    assumed = given(real_cost(rows, MODEL) * 60 // 150)
    worst, learned = await both(database_url, rows, assumed)
    assert learned.admitted > worst.admitted * 1.2
    assert learned.spent > worst.spent
    assert learned.missed > 0
    assert_inside_the_risk(worst, learned, assumed)


@pytest.mark.skipif(not AZURE.exists(), reason="the Azure trace is not here")
async def test_learned_reservations_admit_more_of_the_azure_trace(database_url: str) -> None:
    rows = read_trace(AZURE, limit=2_500)
    minutes = rows[-1].offset_s / 60
    assumed = given(int(real_cost(rows, MODEL) / minutes), percentile=99)
    worst, learned = await both(database_url, rows, assumed)
    assert learned.admitted > worst.admitted
    assert_inside_the_risk(worst, learned, assumed)


@pytest.mark.skipif(not MOONCAKE.exists(), reason="the Mooncake trace is not here")
async def test_learned_reservations_admit_more_of_the_mooncake_trace(database_url: str) -> None:
    rows = read_trace(MOONCAKE, limit=1_500)
    minutes = rows[-1].offset_s / 60
    assumed = given(int(real_cost(rows, MODEL) / minutes), percentile=99)
    worst, learned = await both(database_url, rows, assumed)
    assert learned.admitted > worst.admitted
    assert_inside_the_risk(worst, learned, assumed)
