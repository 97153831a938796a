"""``cost/usage_extract_cases``: a payload and the counts, or the refusal, that another tool makes of it."""

from collections.abc import Iterator

from handlers.payloads.normalise import normalise
from handlers.payloads.reader import PayloadError
from tests.cases.case import Result, Row, Verdict, rows, short
from tests.cases.engine import CACHED_SEEN, COUNTS, REDUNDANT

BILLED = (
    "billed_units are what is billed, and are counted; tokens are what the context held, and are kept as that "
    "(Cohere, 'How does Cohere's pricing work?', docs.cohere.com v2)"
)
FRACTIONS = "parts of a token are refused, naming the field: tokens are whole (DESIGN 5.2)"
CACHED_IMAGES = (
    "every count of ours is the same; which cached tokens were images or video, and tokens of video made, "
    "no event carries ({})"
)


def results() -> Iterator[Result]:
    """Every case in order."""
    for number, case in enumerate(rows("cost/usage_extract_cases.jsonl"), 1):
        name = f"{number}: {case['provider_id']} {case['api_flavor']} ({short(case['source'])})"
        yield Result(name, *_outcome(case))


def _outcome(case: Row) -> Verdict:
    flavour = case["api_flavor"]
    expected = case.get("expected", {}).get("usage", {})
    if case["provider_id"] == "cohere" and flavour == "tokens":
        return _cohere(case, expected)
    try:
        told = normalise(case["provider_id"], case["payload"])
    except PayloadError as error:
        if "expected_error" in case:
            return "passed", ""
        fraction = any(count != int(count) for count in expected.values())
        return ("differs", FRACTIONS) if fraction and error.field == "completion_tokens" else ("failed", str(error))
    if "expected_error" in case:
        return "failed", f"was not refused: {case['expected_error']}"
    ours = {key: getattr(told.quantities, name) for key, name in COUNTS.items()}
    other = {key: (count, expected.get(key, 0)) for key, count in ours.items() if count != expected.get(key, 0)}
    if other:
        return "failed", f"counts (ours, theirs): {other}"
    unknown = sorted(key for key in expected if key not in COUNTS and key not in REDUNDANT)
    if set(unknown) <= CACHED_SEEN | {"output_video_tokens"}:
        return ("differs", CACHED_IMAGES.format(", ".join(unknown))) if unknown else ("passed", "")
    return "failed", f"no count of ours is {unknown}"


def _cohere(case: Row, expected: Row) -> Verdict:
    """Raw tokens are the context; where only billed units are sent, they are all there is."""
    told = normalise("cohere", case["payload"])
    billed = case["payload"]["usage"]["billed_units"]
    held = expected.get("input_tokens", billed["input_tokens"]) + expected.get("output_tokens", billed["output_tokens"])
    ours = (told.quantities.prompt_tokens, told.quantities.completion_tokens, told.context_tokens)
    right = ours == (billed["input_tokens"], billed["output_tokens"], held)
    return ("differs", BILLED) if right else ("failed", f"{ours}")
