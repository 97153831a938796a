"""What corrections of usage refuse for reasons of their own. The event ``u1`` is 1,000 tokens at 0.0025 USD."""

from collections.abc import Iterator
from typing import Any

from tests.agent.bad_fields import CURSORS, INVALID
from tests.agent.good_requests import GOOD, SPAN, Refused

_WHY: dict[str, Any] = {"usage_id": "u1", "reason": "a test"}


def adjustments() -> Iterator[Refused]:
    """``adjust_usage``, ``list_adjustments`` and ``reprice_usage``."""
    yield from _fields()
    yield from _counts()
    yield from _standing()
    yield from _ranges()


def _adjust(what: str, field: str, code: str = INVALID, /, **fields: Any) -> Refused:
    return Refused(what, "adjust_usage", {**_WHY, **fields}, field, code)


def _fields() -> Iterator[Refused]:
    good = GOOD["adjust_usage"]
    for name in ("usage_id", "kind", "reason"):
        left = {key: value for key, value in good.items() if key != name}
        yield Refused(f"without {name}", "adjust_usage", left, name)
    yield _adjust("a reason of blanks", "reason", kind="void", reason="  ")
    yield _adjust("one and a list", "usage_id", kind="void", adjustments=[{**_WHY, "kind": "void"}])
    listed = {"adjustments": [{"usage_id": "u1", "kind": "void"}]}
    yield Refused("one of a list without a reason", "adjust_usage", listed, "adjustments[0].reason")
    many = {"adjustments": [{**_WHY, "kind": "void"}] * 1_001}
    yield Refused("1,001 adjustments", "adjust_usage", many, "adjustments")
    for kind, name, value in (
        ("void", "prompt_tokens", 1),
        ("void", "amount", "1"),
        ("refund", "model", "gpt-4o-mini"),
        ("correct", "amount", "1"),
    ):
        needed: dict[str, Any] = {"amount": "1"} if kind == "refund" else {}
        asked: dict[str, Any] = {"kind": kind, **needed, name: value}
        yield _adjust(f"{name} for kind {kind}", name, **asked)
    yield _adjust("a refund without an amount", "amount", kind="refund")
    yield _adjust("a currency without a cost", "currency", kind="correct", currency="EUR")
    yield _adjust("no currency", "currency", kind="correct", cost="1", currency="EUX")
    for name in ("team_id", "user_id", "timestamp"):
        yield _adjust(f"another {name}", name, kind="correct", **{name: "x"})
    for name in ("provider", "model"):
        yield _adjust("a name of blanks", name, kind="correct", **{name: " "})


def _counts() -> Iterator[Refused]:
    for name, value in (
        ("cache_read_tokens", 1_001),
        ("cache_write_tokens", 1_001),
        ("cache_write_1h_tokens", 1),
        ("audio_input_tokens", 1_001),
        ("audio_cache_read_tokens", 1),
        ("reasoning_tokens", 1),
        ("audio_output_tokens", 1),
        ("system_tokens", 1_001),
    ):
        yield _adjust("more in part than in total", name, kind="correct", **{name: value})
    yield _adjust("more than any call costs", "cost", kind="correct", cost="1000001")


def _standing() -> Iterator[Refused]:
    """What does not fit what the event stands for."""
    yield _adjust("an event of nobody", "usage_id", "not_found", kind="void", usage_id="nothing")
    yield _adjust("a correction of nothing", "usage_id", "conflict", kind="correct")
    yield _adjust("the counts it has already", "usage_id", "conflict", kind="correct", prompt_tokens=1000)
    yield _adjust("a refund of 0", "amount", kind="refund", amount="0")
    yield _adjust("a refund of more than it stands for", "amount", kind="refund", amount="0.003")
    yield _adjust("a void event, void again", "usage_id", "conflict", kind="void", usage_id="void")
    yield _adjust("a void event, refunded", "usage_id", "conflict", kind="refund", amount="1", usage_id="void")
    yield _adjust("an id of another adjustment", "adjustment_id", "conflict", kind="void", adjustment_id="done")


def _ranges() -> Iterator[Refused]:
    good = GOOD["reprice_usage"]
    yield Refused("an end before the start", "reprice_usage", {**good, "end": SPAN["start"]}, "end")
    yield Refused("an end before the start", "list_adjustments", {"start": SPAN["end"], "end": SPAN["start"]}, "end")
    pattern = {**good, "filters": {"user_id": "a*"}}
    yield Refused("a pattern of user names", "reprice_usage", pattern, "filters.user_id")
    for what, text in CURSORS.items():
        yield Refused(f"cursor: {what}", "reprice_usage", {**good, "cursor": text}, "cursor")
