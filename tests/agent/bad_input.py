"""What a hostile or careless caller may send, and the answer each gets: the cases of `test_bad_input`, as data. What is
wrong with single fields is in `bad_fields`, what signals refuse for reasons of their own in `bad_requests`.

`python -m tests.agent.bad_input` writes them to `docs/bad-input.md`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.agent.bad_page import answer, every_field, merged, own_reasons, shown, table

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "bad-input.md"
INVALID = "invalid_request"
NOBODY = "00000000-0000-7000-8000-000000000000"
CALL: dict[str, Any] = {"provider": "openai", "model": "gpt-4o"}
USAGE: dict[str, Any] = {**CALL, "prompt_tokens": 1000, "completion_tokens": 100}
CHECK: dict[str, Any] = {**CALL, "prompt_tokens": 1000, "max_completion_tokens": 100}
BUDGET: dict[str, Any] = {"name": "research", "type": "team", "limit": "1"}
ENVELOPE: dict[str, Any] = {"specversion": "1.0", "id": "1", "source": "/gateway", "type": "token.request"}
SPAN: dict[str, Any] = {"start": "2026-01-01T00:00:00Z", "end": "2026-02-01T00:00:00Z"}

INTRO = """\
# Bad input

What the agent answers to input that is wrong, too large or hostile. The tables are checked: every row is sent to a
running agent by `tests/agent/test_bad_input.py` and `tests/agent/test_bad_requests.py`, which compare code and field
and then ask something valid, which must be served. No row may end in `internal` or without an answer.

Every error is a reply with the headers `Nats-Service-Error` (text) and `Nats-Service-Error-Code` (the number below),
and the body `{"error":{"code","message","field","correlation_id"}}`. Texts may change; codes and fields are contract.
"""
BODIES = """\

## Bodies, envelopes, numbers and texts

Shown on the signals with readers of their own and on one that every other is like.
"""
LIMIT = """\

## The limit of the bus

A NATS server takes messages of 1 MiB (`max_payload`). One byte more, and the server itself refuses the message and
closes the connection of whoever sent it; the agent does not notice. A message of exactly 1 MiB arrives and is answered
like any other. A reply that would be larger than the bus carries becomes `too_large` (413); pages are shortened before
that happens, and the receipts of a large batch leave out their warnings.
"""
DURABLE = """\

## Published on `usage.>`

The stream has acknowledged these before anybody has read them, so nobody can be answered. Each becomes a dead letter
with the reason and the field, in the table (`list_dead_letters`) and in the stream `TM_DLQ`; nothing is dropped, and
what comes after it is applied.
"""
FORM = """\

## Taken as it stands

Not errors, though they may look like ones.
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One request and the answer it must get; `code` None: it is served. `check` names what the reply must hold."""

    what: str
    signal: str
    body: Any
    code: str | None = INVALID
    field: str | None = None
    reply: tuple[tuple[str, Any], ...] = ()


def raw(body: dict[str, Any], extra: str) -> bytes:
    """`body` as JSON with something more, spelled by hand, at its end."""
    return (json.dumps(body)[:-1] + "," + extra + "}").encode()


def nested(depth: int, inner: str = "1") -> str:
    """Objects in objects."""
    return '{"a":' * depth + inner + "}" * depth


def _structure() -> Iterator[Case]:
    for signal, body, first, name in (
        ("track_usage", USAGE, "provider", "team_id"),
        ("check_budget", CHECK, "provider", "team_id"),
        ("create_budget", BUDGET, "name", "fallback_model"),
    ):
        key = f'"{name}":'.encode()
        cut = json.dumps(body)[:-1].encode()
        yield Case("empty body", signal, b"", field=first)
        yield Case("1 MB of spaces", signal, b" " * 1_000_000, field=first)
        yield Case("malformed JSON, cut off", signal, cut)
        yield Case("malformed JSON, a word after it", signal, cut + b"} x", field=list(body)[-1])
        yield Case("two objects", signal, (cut + b"}") * 2, field=list(body)[-1])
        yield Case("not JSON", signal, b"hello")
        for text in ("[]", "null", '"text"', "1", "true"):
            yield Case(f"`{text}` instead of an object", signal, text.encode())
        yield Case("100,000 open brackets", signal, b"[" * 100_000)
        yield Case("invalid UTF-8", signal, cut + b"," + key + b'"\xff\xfe"}')
        yield Case("UTF-8 of a surrogate", signal, cut + b"," + key + b'"\xed\xa0\x80"}')
        yield Case("UTF-16", signal, json.dumps(body).encode("utf-16"))
        yield Case("byte order mark", signal, b"\xef\xbb\xbf" + json.dumps(body).encode())
        yield Case("escaped NUL character", signal, raw(body, f'"{name}":"a\\u0000b"'), field=name)
        yield Case("raw NUL character", signal, raw(body, f'"{name}":"a\x00b"'), field=name)
        yield Case("lone surrogate", signal, raw(body, f'"{name}":"\\ud800 and more"'), field=name)
        yield Case("unknown field of 1 MB", signal, b'{"%b":1}' % (b"x" * 1_000_000), field="x" * 512)
        yield Case("unknown field with a line break", signal, {**body, "a\r\nb: c": 1}, field="a\r\nb: c")
        yield Case("org in the payload", signal, {**body, "org": "globex"}, field="org")
        yield Case("roles in the payload", signal, {**body, "roles": ["admin"]}, field="roles")
    yield Case("100,000 levels of objects", "track_usage", raw(USAGE, f'"metadata":{nested(100_000)}'), field="a")
    yield Case("100,000 levels, never closed", "track_usage", raw(USAGE, '"metadata":' + '{"a":' * 100_000), field="a")
    yield Case(
        "misspelled field: the nearest known one is named",
        "track_usage",
        {**USAGE, "promt_tokens": 1},
        field="promt_tokens",
    )
    yield Case("missing field", "track_usage", {"provider": "openai", "prompt_tokens": 1}, field="model")
    yield Case("neither counts nor usage", "track_usage", CALL, field="prompt_tokens")
    yield Case("counts and raw usage", "track_usage", {**USAGE, "usage": {}}, field="completion_tokens")


def _streams() -> Iterator[Case]:
    text = {"choices": [{"delta": {"content": "Hello"}}]}
    start = {"type": "message_start", "message": {"usage": {"input_tokens": -1}}}
    for signal in ("track_usage", "calculate_cost"):
        yield Case("a stream of nothing", signal, {**CALL, "usage": [{"type": "ping"}]}, field="usage")
        yield Case("a stream of numbers", signal, {**CALL, "usage": [1]}, field="usage[0]")
        yield Case("a broken stream with its counts", signal, {**USAGE, "usage": [text]}, field="completion_tokens")
        bad = {**CALL, "usage": [start, text]}
        yield Case("a broken stream with a negative count", signal, bad, field="usage.input_tokens")
    large = {**CALL, "usage": [text | {"a": 2**64}]}
    yield Case("a broken stream with 2^64", "track_usage", large, field="usage")
    yield Case("a stream that is too large", "track_usage", {**CALL, "usage": [text] * 8_000}, field="usage")


def _numbers() -> Iterator[Case]:
    for text in ("NaN", "Infinity", "-Infinity", "1e400", "-1", "1.0", "1.5", '"1.0"', '"1000"', "true", "[]", "1e3"):
        for signal, body in (("track_usage", USAGE), ("check_budget", CHECK)):
            rest = {k: v for k, v in body.items() if k != "prompt_tokens"}
            yield Case(f"tokens `{text}`", signal, raw(rest, f'"prompt_tokens":{text}'), field="prompt_tokens")
    for text in ("1000000000001", "9223372036854775808", "9" * 5000):
        shown = text if len(text) < 40 else "of 5,000 digits"
        yield Case(f"tokens {shown}", "track_usage", raw(USAGE, f'"prompt_tokens":{text}'), field="prompt_tokens")
    for name in ("cache_read_tokens", "cache_write_tokens", "system_tokens", "audio_input_tokens"):
        yield Case("more cached, system or audio tokens than prompt", "track_usage", {**USAGE, name: 1001}, field=name)
    for name in ("reasoning_tokens", "audio_output_tokens"):
        yield Case("more of it than completion", "calculate_cost", {**USAGE, name: 101}, field=name)
    yield Case(
        "1h cache within no cache", "track_usage", {**USAGE, "cache_write_1h_tokens": 1}, field="cache_write_1h_tokens"
    )
    yield Case("latency below 0", "track_usage", {**USAGE, "latency_ms": -1}, field="latency_ms")
    yield Case("metadata with 1e400", "track_usage", raw(USAGE, '"metadata":{"a":1e400}'), field="metadata[...]")
    yield Case("metadata with 2^64", "track_usage", {**USAGE, "metadata": {"a": 2**64}}, field="metadata")
    yield Case(
        "messages with 2^64", "check_budget", {**CALL, "request_id": "r", "messages": [{"a": 2**64}]}, field="messages"
    )
    yield Case("usage with 2^64", "track_usage", {**CALL, "usage": {"prompt_tokens": 1, "a": 2**64}}, field="usage")
    yield Case(
        "usage with negative counts",
        "track_usage",
        {**CALL, "usage": {"prompt_tokens": -1}},
        field="usage.prompt_tokens",
    )
    yield Case("usage without counts", "track_usage", {**CALL, "usage": {"a": 1}}, field="usage")
    yield from _streams()
    yield Case("unknown api", "track_usage", {**CALL, "usage": {"prompt_tokens": 1}, "api": "x"}, field="api")
    yield Case("ttl of nothing", "check_budget", {**CHECK, "ttl_s": 0}, field="ttl_s")
    yield Case("threshold 0", "create_budget", {**BUDGET, "alert_thresholds": [0]}, field="alert_thresholds[0]")
    yield Case("half a token", "create_budget", {**BUDGET, "unit": "tokens", "limit": "1.5"}, field="limit")


def _money() -> Iterator[Case]:
    wrong = (
        "1e3",
        "-1",
        "+1",
        "0x1",
        "1.0000000001",
        " 1",
        "1 ",
        "NaN",
        "Infinity",
        "\u0661",
        "1,5",
        "1_000",
        ".",
        "1.2.3",
        "",
    )
    for text in (*wrong, "1000000001", "9" * 41):
        shown = text if len(text) < 40 else "of 41 digits"
        yield Case(f"amount `{shown}`", "create_budget", {**BUDGET, "limit": text}, field="limit")
        yield Case(f"amount `{shown}`", "check_budget", {**CHECK, "estimated_cost": text}, field="estimated_cost")
        yield Case(f"amount `{shown}`", "track_usage", {**USAGE, "reported_cost": text}, field="reported_cost")
    for number in ("1", "1.5"):
        body = raw({"name": "n", "type": "team"}, f'"limit":{number}')
        yield Case(f"amount as a JSON number `{number}`", "create_budget", body, field="limit")
    for text in ("EUX", "usd", "", "US"):
        for signal, body in (("track_usage", USAGE), ("check_budget", CHECK), ("create_budget", BUDGET)):
            yield Case(f"currency `{text}`", signal, {**body, "currency": text}, field="currency")


def _times() -> Iterator[Case]:
    texts = {
        "no zone": "2026-01-01T00:00:00",
        "a date": "2026-01-01",
        "a word": "yesterday",
        "empty": "",
        "30 February": "2026-02-30T00:00:00Z",
        "24 o'clock": "2026-01-01T24:00:00Z",
        "impossible offset": "2026-01-01T00:00:00+99:00",
    }
    for what, text in texts.items():
        for signal, body, field in (
            ("track_usage", USAGE, "timestamp"),
            ("get_usage", {}, "start"),
            ("aggregate_usage", SPAN, "end"),
        ):
            yield Case(f"time: {what}", signal, {**body, field: text}, field=field)
    yield Case("time: a number", "track_usage", {**USAGE, "timestamp": 1_700_000_000}, field="timestamp")
    yield Case("time: in an hour", "track_usage", {**USAGE, "timestamp": "2999-01-01T00:00:00Z"}, field="timestamp")
    for text in ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "1999-12-31T23:59:59Z"):
        yield Case(f"time: {text}", "track_usage", {**USAGE, "timestamp": text}, field="timestamp")
    for text in ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"):
        yield Case(f"time: {text}", "calculate_cost", {**USAGE, "timestamp": text}, field="timestamp")
        yield Case(f"time: {text}", "get_pricing", {**CALL, "timestamp": text}, field="timestamp")
        yield Case(f"time: {text}", "get_usage", {"start": text}, field="start")
    yield Case("end before start", "aggregate_usage", {"start": SPAN["end"], "end": SPAN["start"]}, field="end")
    for name in ("Mars/Base", "../../etc/passwd", "/etc/localtime", "localtime", "right/UTC", "", "a" * 257, "Europe"):
        shown = name if len(name) < 40 else "of 257 letters"
        yield Case(f"time zone `{shown}`", "create_budget", {**BUDGET, "timezone": name}, field="timezone")
        yield Case(f"time zone `{shown}`", "aggregate_usage", {**SPAN, "timezone": name}, field="timezone")


def _names() -> Iterator[Case]:
    long = "x" * 257
    for signal, body, field in (
        ("track_usage", USAGE, "team_id"),
        ("track_usage", USAGE, "id"),
        ("track_usage", USAGE, "model"),
        ("check_budget", CHECK, "request_id"),
        ("create_budget", BUDGET, "name"),
    ):
        yield Case("name of 257 characters", signal, {**body, field: long}, field=field)
        yield Case("empty name", signal, {**body, field: ""}, field=field)
    yield Case("65 tags", "track_usage", {**USAGE, "tags": {str(i): "" for i in range(65)}}, field="tags")
    yield Case("metadata of 17 KB", "track_usage", {**USAGE, "metadata": {"a": "x" * 17_000}}, field="metadata")
    for what, text, code in (("no UUID", "x", INVALID), ("unknown", NOBODY, "not_found")):
        for signal, body, field in (
            ("release_reservation", {}, "reservation_id"),
            ("extend_reservation", {"ttl_s": 60}, "reservation_id"),
            ("get_budget_status", {}, "budget_id"),
            ("update_budget", {"version": 1}, "budget_id"),
            ("retry_dead_letter", {}, "dead_letter_id"),
        ):
            yield Case(f"{field} {what}", signal, {**body, field: text}, code, field)
    yield Case("reservation_id no UUID", "track_usage", {**USAGE, "reservation_id": "x"}, field="reservation_id")
    cursors = {
        "a word": "x",
        "empty": "",
        "another list's": "W251bGwsbnVsbF0",
        "year 1 beyond UTC": "WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzIzOjU5IiwiYSJd",
        "with NUL": "WyIyMDI2LTAxLTAxVDAwOjAwOjAwWiIsIlx1MDAwMCJd",
        "not ASCII": "é",
        "2,049 characters": "a" * 2049,
    }
    for what, text in cursors.items():
        for signal in ("get_usage", "list_budgets", "list_reservations", "list_dead_letters"):
            yield Case(f"cursor: {what}", signal, {"cursor": text}, field="cursor")
    yield Case("page of 0", "get_usage", {"limit": 0}, field="limit")
    yield Case("page of 1,001", "list_budgets", {"limit": 1001}, field="limit")
    yield Case("unknown dimension", "aggregate_usage", {**SPAN, "group_by": ["secret"]}, field="group_by[0]")
    yield Case("unknown signal", "describe", {"signal": "nonsense"}, "not_found", "signal")
    yield Case("model without a price", "get_pricing", {"provider": "x", "model": "y"}, "unpriced", "model")


def _batches() -> Iterator[Case]:
    yield Case("batch of 0", "track_usage", {"events": []}, field="events")
    yield Case("batch of 1,001", "track_usage", {"events": [USAGE] * 1001}, field="events")
    yield Case("batch that is an object", "track_usage", {"events": {}}, field="events")
    yield Case("batch with more beside it", "track_usage", {"events": [USAGE], "model": "x"}, field="model")
    yield Case("unknown ack", "track_usage", {"events": [USAGE], "ack": "never"}, field="ack")


def _envelopes() -> Iterator[Case]:
    for signal, body in (("track_usage", USAGE), ("check_budget", CHECK), ("create_budget", BUDGET)):
        whole = {**ENVELOPE, "data": body}
        yield Case("CloudEvent without data", signal, ENVELOPE, field="data")
        yield Case("CloudEvent with data null", signal, {**ENVELOPE, "data": None}, field="data")
        yield Case("CloudEvent with data in base64", signal, {**ENVELOPE, "data_base64": "e30="}, field="data")
        yield Case("CloudEvent 0.3", signal, {**whole, "specversion": "0.3"}, field="specversion")
        yield Case("CloudEvent version as a number", signal, {**whole, "specversion": 1.0}, field="specversion")
        yield Case("CloudEvent without id", signal, {k: v for k, v in whole.items() if k != "id"}, field="id")
        yield Case("CloudEvent with an impossible time", signal, {**whole, "time": "now"}, field="time")
        yield Case("CloudEvent in a CloudEvent", signal, {**ENVELOPE, "data": whole}, field="specversion")
        yield Case("CloudEvent, id not UTF-8", signal, json.dumps(whole).encode().replace(b'"1"', b'"\xff"'))
        deep = json.dumps(ENVELOPE)[:-1].encode() + b',"data":' + b"[" * 100_000
        yield Case("CloudEvent, 100,000 open brackets", signal, deep, field="data")


def _served() -> Iterator[Case]:
    def served(what: str, signal: str, body: Any, *reply: tuple[str, Any]) -> Case:
        return Case(what, signal, body, None, None, reply)

    unknown = {**USAGE, "model": "no-such-model"}
    yield served(
        "unknown model: unpriced, cost null, never 0",
        "track_usage",
        unknown,
        ("cost", None),
        ("cost_status", "unpriced"),
    )
    yield served(
        "unknown model, only asked for", "calculate_cost", unknown, ("cost", None), ("cost_status", "unpriced")
    )
    flagged = {**CHECK, "model": "no-such-model"}
    yield served("unknown model, policy `flag`", "check_budget", flagged, ("approved", True), ("estimated_cost", None))
    over = {**CHECK, "prompt_tokens": 10**9}
    yield served(
        "more than the context window: a denial", "check_budget", over, ("approved", False), ("reservation_id", None)
    )
    yield served(
        "repeated key: the last one counts", "track_usage", raw(USAGE, '"prompt_tokens":1'), ("total_tokens", 101)
    )
    yield served("minus nought", "track_usage", raw(USAGE, '"prompt_tokens":-0'), ("total_tokens", 100))
    yield served(
        "spaces around the object", "track_usage", b" " * 900_000 + json.dumps(USAGE).encode(), ("accepted", True)
    )
    yield served("reservation nobody made", "track_usage", {**USAGE, "reservation_id": NOBODY}, ("accepted", True))
    yield served(
        "`.5`, `5.` and `00.50` are amounts", "check_budget", {"estimated_cost": "00.50"}, ("estimated_cost", "0.5")
    )
    yield served(
        "text of right-to-left marks and emoji",
        "track_usage",
        {**USAGE, "team_id": "\u202e😀\u2028"},
        ("accepted", True),
    )
    yield served("SQL in a name", "get_usage", {"filters": {"model": "'; DROP TABLE usage_event; --"}}, ("events", []))
    yield served("LIKE signs in a filter are letters", "get_usage", {"filters": {"model": "%"}}, ("events", []))
    deep = raw(USAGE, f'"metadata":{nested(500)}')
    yield served("metadata 500 levels deep", "track_usage", deep, ("accepted", True))


REFUSED: tuple[Case, ...] = (
    *_structure(),
    *_numbers(),
    *_money(),
    *_times(),
    *_names(),
    *_batches(),
    *_envelopes(),
)
SERVED: tuple[Case, ...] = tuple(_served())


@dataclass(frozen=True, slots=True)
class Letter:
    """One message published on `usage.>` and the dead letter it becomes."""

    what: str
    body: Any
    field: str | None
    reason: str = INVALID


PUBLISHED: tuple[Letter, ...] = (
    Letter("empty body", b"", "provider"),
    Letter("not JSON", b"hello", None),
    Letter("not text", b"\xff\xfe\x00", None),
    Letter("an array", b"[]", None),
    Letter("200,000 control characters", b"\x01" * 200_000, None),
    Letter("100,000 open brackets", b"[" * 100_000, None),
    Letter("100,000 levels of objects", raw(USAGE, f'"metadata":{nested(100_000)}'), "a"),
    Letter("escaped NUL character", raw(USAGE, '"id":"\\u0000"'), "id"),
    Letter("invalid UTF-8", raw(USAGE, '"id":"x"').replace(b'"x"', b'"\xff"'), None),
    Letter("lone surrogate", raw(USAGE, '"id":"\\ud800 and more"'), "id"),
    Letter("missing field", {"provider": "openai", "prompt_tokens": 1}, "model"),
    Letter("unknown field", {**USAGE, "promt_tokens": 1}, "promt_tokens"),
    Letter("unknown field of 1 MB", b'{"%b":1}' % (b"x" * 1_000_000), "x" * 512),
    Letter("org in the payload", {**USAGE, "org": "globex"}, "org"),
    Letter("negative tokens", {**USAGE, "prompt_tokens": -1}, "prompt_tokens"),
    Letter("tokens NaN", raw(USAGE, '"prompt_tokens":NaN'), "prompt_tokens"),
    Letter("tokens 1e400", raw(USAGE, '"prompt_tokens":1e400'), "prompt_tokens"),
    Letter("metadata with 2^64", {**USAGE, "metadata": {"a": 2**64}}, "metadata"),
    Letter("subsets exceed the total", {**USAGE, "reasoning_tokens": 101}, "reasoning_tokens"),
    Letter("amount `1e3`", {**USAGE, "reported_cost": "1e3"}, "reported_cost"),
    Letter("currency EUX", {**USAGE, "currency": "EUX"}, "currency"),
    Letter("time in the future", {**USAGE, "timestamp": "2999-01-01T00:00:00Z"}, "timestamp"),
    Letter("time without a zone", {**USAGE, "timestamp": "2026-01-01T00:00:00"}, "timestamp"),
    Letter("reservation_id no UUID", {**USAGE, "reservation_id": "x"}, "reservation_id"),
    Letter("batch of 0", {"events": []}, "events"),
    Letter("batch of 1,001", {"events": [1] * 1001}, "events"),
    Letter("CloudEvent without data", ENVELOPE, "data"),
    Letter("CloudEvent 0.3", {**ENVELOPE, "specversion": "0.3", "data": USAGE}, "specversion"),
    Letter(
        "CloudEvent, id not UTF-8", json.dumps({**ENVELOPE, "data": USAGE}).encode().replace(b'"1"', b'"\xff"'), None
    ),
    Letter("CloudEvent around a bad event", {**ENVELOPE, "data": {**USAGE, "model": 1}}, "model"),
)


def document() -> str:
    """The whole of `docs/bad-input.md`."""
    rows = [(c.what, shown(c.signal), answer(c.code), shown(c.field)) for c in REFUSED]
    served = [(c.what, shown(c.signal), ", ".join(f"`{k}` {json.dumps(v)}" for k, v in c.reply)) for c in SERVED]
    letters = [(c.what, shown(c.reason), shown(c.field)) for c in PUBLISHED]
    return (
        INTRO
        + every_field()
        + own_reasons()
        + BODIES
        + table(("sent", "signal", "answer", "field"), merged(rows))
        + LIMIT
        + FORM
        + table(("sent", "signal", "reply"), served)
        + DURABLE
        + table(("published", "reason", "field"), letters)
    )


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
