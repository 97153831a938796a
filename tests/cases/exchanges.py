"""``payloads/provider_exchanges``: whole responses and streams as they came, and the usage objects found in them.

What is expected is added up here from the usage objects by each provider's documented rule, apart from the product.
Streams without one are counted, responses without one are refused: nothing is taken for nought.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from handlers.counting.count import Job, run
from handlers.counting.counter import vocabularies
from handlers.payloads.normalise import Normalised, Uncounted, normalise, normalise_received
from handlers.payloads.reader import PayloadError
from tests.cases.case import Result, Row, Verdict, rows

NO_TOKENS = "billed by searches, not by tokens; no event carries them, and nothing is recorded as nought"
Totals = tuple[int, int]


def results() -> Iterator[Result]:
    """Every exchange in order."""
    for number, row in enumerate(rows("payloads/provider_exchanges.jsonl.gz"), 1):
        kind = "stream" if row["stream"] else "response"
        yield Result(f"{number}: {row['provider']} {row['endpoint'][:60]} ({kind})", *_outcome(row))


def _outcome(row: Row) -> Verdict:
    expected = expected_totals(row)
    try:
        told = normalise(row["provider"], row["response"])
    except Uncounted as stream:
        return _counted(row, stream, expected)
    except PayloadError as error:
        if expected is None:
            searches = any("search_units" in str(found["value"]) for found in row["usage_found"])
            return ("skipped", NO_TOKENS) if searches else ("passed", "")
        return "failed", str(error)
    return _compared(told, expected)


def _compared(told: Normalised, expected: Totals | None) -> Verdict:
    found = (told.quantities.prompt_tokens, told.quantities.completion_tokens)
    if expected is None:
        return "failed", f"nothing is expected, and {found} was found"
    if set(told.flags) & {"total_mismatch", "subset_clamped"}:
        return "failed", f"flags {told.flags}"
    return ("passed", "") if found == expected else ("failed", f"{found} is not {expected}")


def _counted(row: Row, stream: Uncounted, expected: Totals | None) -> Verdict:
    """A stream without counts: what it said is counted, and that is more than nothing."""
    if expected is not None:
        return "failed", "counts were there and not found"
    said = counted(row, stream.stream.said)
    told = normalise_received(row["provider"], stream.stream, said_tokens=said, thought_tokens=0)
    right = told.quantities.completion_tokens == said > 0 and told.flags[0] == "stream_without_usage"
    return ("passed", "") if right and stream.stream.ended else ("failed", f"{told}")


def counted(row: Row, text: str) -> int:
    """The tokens of an answer, counted for the exchange's model."""
    model = row["response_model"] or row["request_model"]
    found = run(Job(row["provider"], model, {"text": msgspec.json.encode(text)}, 4_000_000), vocabularies())[1]
    assert found is not None
    return found.tokens


def expected_totals(row: Row) -> Totals | None:
    """Inclusive prompt and completion by the last value of each field; None where no token was counted."""
    last: dict[str, Any] = {}
    for found in _usages(row):
        last |= {key: value for key, value in found.items() if value is not None}
    if "input_tokens" in last.get("billed_units", {}) or "output_tokens" in last.get("billed_units", {}):
        last = last["billed_units"]
    cached = ("cache_creation_input_tokens", "cache_read_input_tokens", "cacheReadInputTokens", "cacheWriteInputTokens")
    prompts = ("prompt_tokens", "input_tokens", "inputTokens", "prompt_eval_count", "prompt_token_count")
    answers = ("completion_tokens", "output_tokens", "outputTokens", "eval_count", "generation_token_count")
    prompt = next((last[key] for key in prompts if key in last), None)
    answer = next((last[key] for key in answers if key in last), None)
    if prompt is None and answer is None:
        return (last["total_tokens"], 0) if "total_tokens" in last else None
    return (prompt or 0) + sum(last.get(key, 0) for key in cached), answer or 0


def _usages(row: Row) -> Iterator[Row]:
    """The usage objects of an exchange, also those at the end of streams that the collection passed over."""
    seen = row["usage_found"]
    for found in seen:
        value = found["value"]
        if isinstance(value, dict):
            yield {"billed_units": value} if found["key"] == "billed_units" else value
    if not seen and row["stream"]:
        last = row["response"][-1]
        ended = last["response"] if isinstance(last.get("response"), dict) else last
        yield from (ended[key] for key in ("usage", "meta") if isinstance(ended.get(key), dict))
        if "eval_count" in last:
            yield last
