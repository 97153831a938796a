"""A recorded trace of real calls, priced call by call. Recorded payloads and prices: tests/cost/test_cases.py."""

import csv
import gzip
import io
from datetime import UTC, datetime

import pytest

from handlers.cost.price import Quantities, price
from handlers.cost.resolve import RateCards
from schemas.money import format_cost
from tests.cases.case import DATA

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the recorded data is not beside the repository")


def test_the_azure_trace_priced_call_by_call_sums_exactly() -> None:
    # 18,059,974 x 2.5 + 245,896 x 10 millionths = 45.149935 + 2.45896
    card = RateCards().resolve("azure", "gpt-4o", datetime(2026, 11, 22, tzinfo=UTC))
    assert card is not None
    with gzip.open(DATA / "traces" / "azure_llm_2023_code.csv.gz", "rt") as file:
        calls = [
            (int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(io.StringIO(file.read()))
        ]

    costs = [price(card, Quantities(prompt, output)).cost_nanos or 0 for prompt, output in calls]

    assert len(calls) == 8819
    assert (sum(prompt for prompt, _ in calls), sum(output for _, output in calls)) == (18_059_974, 245_896)
    assert format_cost(sum(costs)) == "47.608895"
