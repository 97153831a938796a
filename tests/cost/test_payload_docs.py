"""``docs/payloads.md`` says what the code does."""

import re
from pathlib import Path

import msgspec
import pytest

from handlers.context import Limits
from handlers.payloads.counts import counts_of
from handlers.payloads.normalise import Uncounted
from handlers.payloads.shapes import FLAGS
from schemas.cost import CalculateCost
from schemas.usage import TrackUsage, UsageEvent
from tests.cost.payload_tables import PAGE, rendered

SHAPES = Path(__file__).resolve().parents[2] / "handlers" / "payloads"


def test_the_tables_are_those_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")

    assert rendered(text) == text, "write them again: python -m tests.cost.payload_tables"
    assert f"{Limits().usage_bytes_max:,}" in text


@pytest.mark.parametrize("block", re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
def test_every_example_is_taken(block: str) -> None:
    event = msgspec.json.decode(block, type=TrackUsage)
    try:
        told = counts_of(event)
    except Uncounted as stream:
        assert stream.stream.said == "Hello there"
    else:
        assert told.quantities.prompt_tokens > 0
        assert told.flags == ()


def test_every_flag_that_is_raised_is_explained_and_no_other() -> None:
    modules = [path.read_text(encoding="utf-8") for path in sorted(SHAPES.glob("*.py"))]
    raised = {flag for text in modules for flag in re.findall(r'flags\.append\(\s*"(\w+)"', text)}

    assert raised | {"partial_stream", "stream_without_usage"} == set(FLAGS)


def test_calculate_cost_takes_the_counts_that_track_usage_takes() -> None:
    # A request cannot inherit from two structs, so the counts stand in both, and must be the same.
    counted = {f.name: f for f in msgspec.structs.fields(UsageEvent) if _bears_on_the_price(f.name)}
    asked = {f.name: f for f in msgspec.structs.fields(CalculateCost)}

    assert len(counted) >= 20
    for name, field in counted.items():
        assert (asked[name].type, asked[name].default) == (field.type, field.default), name


def _bears_on_the_price(name: str) -> bool:
    exact = {"provider", "model", "timestamp", "web_searches", "service_tier", "region", "batch", "usage", "api"}
    return name in exact or name.endswith("_tokens")
