"""The golden set: raw payload to counts to line items to cost, beside sums that were worked out by hand.

The sums are read and added up here with decimals, apart from the engine, which must come to the same.
"""

import re
from decimal import ROUND_HALF_EVEN, Decimal
from typing import NamedTuple

import msgspec
import pytest

from handlers.cost.price import Quantities, price
from handlers.cost.price_book import request_card
from handlers.payloads.normalise import normalise
from handlers.payloads.shapes import SHAPES
from schemas.money import format_cost, parse_cost
from tests.cost.golden.table import GOLDEN, Golden

_TERM = re.compile(r"(\d+) (\w+) x ([\d.]+)")


class Sum(NamedTuple):
    """A sum on paper: its terms, what they add up to in millionths of a dollar, and the cost in dollars."""

    terms: dict[str, tuple[int, Decimal]]
    millionths: Decimal
    cost: str


def written(text: str) -> Sum:
    head, _, cost = text.partition(" -> ")
    terms, _, total = head.partition(" = ")
    found = [_TERM.fullmatch(term) for term in terms.split(" + ")]
    parts = [(m[2], (int(m[1]), Decimal(m[3]))) for m in found if m is not None]
    assert len(parts) == len(found), f"not a sum: {text}"
    return Sum(dict(parts), Decimal(total), cost)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.name)
def test_the_sum_beside_it_is_right(golden: Golden) -> None:
    paper = written(golden.total)

    assert sum(units * rate for units, rate in paper.terms.values()) == paper.millionths
    assert (paper.millionths / 10**6).quantize(Decimal("1e-9"), ROUND_HALF_EVEN) == Decimal(paper.cost)
    prompt = golden.counts["prompt_tokens"] + golden.counts.get("completion_tokens", 0)
    assert sum(units for kind, (units, _) in paper.terms.items() if kind != "web_search") == prompt


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.name)
def test_the_product_comes_to_the_same_counts_line_items_and_cost(golden: Golden) -> None:
    told = normalise(golden.provider, golden.usage)
    assert (told.api, told.flags) == (golden.api, golden.flags)
    assert told.quantities == Quantities(**golden.counts)
    assert normalise("", golden.usage, golden.api) == told

    paper = written(golden.total)
    found = price(request_card(golden.provider, "any", golden.rates), told.quantities)
    assert found.cost_nanos is not None and format_cost(found.cost_nanos) == paper.cost
    items = {item.kind: (item.quantity, item.rate_nanos_per_million) for item in found.line_items}
    assert items == {kind: (units, parse_cost(str(rate))) for kind, (units, rate) in paper.terms.items()}
    assert sum(item.cost_nanos or 0 for item in found.line_items) == found.cost_nanos


def test_every_api_has_a_golden_payload_and_every_kind_of_tokens_a_price() -> None:
    assert {golden.api for golden in GOLDEN} == set(SHAPES)
    counted = {name for golden in GOLDEN for name in golden.counts}
    assert counted == {field.name for field in msgspec.structs.fields(Quantities)} - {"requests"}
