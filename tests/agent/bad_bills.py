"""What exports and providers' bills refuse for reasons of their own."""

from collections.abc import Iterator
from typing import Any

from tests.agent.bad_fields import BEYOND_UTC, CURSORS, INVALID
from tests.agent.good_requests import GOOD, NAMELESS_ORG, ORG, SPAN, Refused

USAGE = "start_time,end_time,model,num_model_requests,input_tokens,output_tokens"
# A bucket of one day, 2025-10-05.
ROW = "1759622400,1759708800,gpt-4o,1,10,5"


def exports() -> Iterator[Refused]:
    """Periods that are none, or begin in the middle, and what a format cannot hold."""

    def export(what: str, field: str, org: str = ORG, **fields: Any) -> Refused:
        return Refused(what, "export_usage", {**SPAN, **fields}, field, INVALID, org)

    yield export("end before start", "end", start=SPAN["end"], end=SPAN["start"])
    yield export("end at start", "end", start=SPAN["end"])
    yield export("FOCUS from half past", "start", start="2026-01-01T00:30:00Z")
    yield export("FOCUS to a second past", "end", end="2026-01-02T00:00:01Z")
    yield export("FOCUS by day, to noon", "end", end="2026-01-02T12:00:00Z", granularity="day")
    for kind in ("focus-csv", "focus-parquet"):
        yield export("names in FOCUS", "names", format=kind, names=True)
        for what, text in CURSORS.items():
            yield export(f"cursor: {what}", "cursor", format=kind, cursor=text)
    for kind in ("csv", "jsonl"):
        for what, text in CURSORS.items():
            yield export(f"cursor: {what}", "cursor", format=kind, cursor=text)
    yield export("a pattern of users", "filters.user_id", filters={"user_id": "a*"})
    yield export("a plain user name, refused", "filters.user_id", NAMELESS_ORG, filters={"user_id": "ada"})
    yield export("a version without tokens", "focus_version", focus_version="1.0")
    yield export("a dimension that FOCUS has no place for", "dimensions[0]", dimensions=["session_id"])
    for text in BEYOND_UTC:
        for field in ("start", "end", "as_of"):
            yield export(f"time: {text}", field, **{field: text})


def bills() -> Iterator[Refused]:
    """Files that are none, lines that are none, and parts that do not fit."""

    def bill(what: str, field: str, code: str = INVALID, **fields: Any) -> Refused:
        return Refused(what, "reconcile_bill", {**GOOD["reconcile_bill"], **fields}, field, code)

    def file(what: str, text: str) -> Refused:
        return Refused(what, "reconcile_bill", {"bill_id": "bad", "csv": text}, "csv")

    yield from _files(file)
    yield bill("a column that the file has not", "columns.cost", columns={"date": "day", "cost": "price"})
    yield bill("neither cost nor tokens", "columns", columns={"date": "day"})
    yield bill("columns for a known export", "columns", format="openai_costs")
    for what, text in (("a date of another country", "05/10/2025,1"), ("a decimal comma", '2026-01-01,"1,5"')):
        yield bill(what, "csv", csv=f"day,cost\n2026-01-01,1\n{text}\n")
    yield bill("two years", "csv", csv="day,cost\n2024-01-01,1\n2026-01-01,1\n")
    yield bill("of nobody", "provider", provider=None)
    for name in ("provider", "model"):
        yield bill(f"usage by {name}", f"filters.{name}", filters={name: "x"})
    yield bill("a pattern of users", "filters.user_id", filters={"user_id": "a*"})
    yield bill("currency `EUX`", "currency", currency="EUX")
    yield bill("no amount", "tolerance", tolerance="-1")
    yield bill("another part of a complete bill", "part", "conflict", bill_id="known", part=2)
    yield bill("the last part, without the first", "part", "conflict", bill_id="bad", part=2)
    yield bill("other content under the same number", "part", "conflict", bill_id="known")
    yield bill("a bill of somebody else", "provider", "conflict", bill_id="known", provider="acme", part=3)
    yield Refused("a bill that is not there", "reconcile_bill", {"bill_id": "nothing"}, "bill_id", "not_found")
    yield Refused("a bill that is not complete", "reconcile_bill", {"bill_id": "open"}, "bill_id", "conflict")
    theirs = {"bill_id": "known"}
    yield Refused("a bill of another org", "reconcile_bill", theirs, "bill_id", "not_found", NAMELESS_ORG)
    for what, text in CURSORS.items():
        yield Refused(f"cursor: {what}", "reconcile_bill", {"bill_id": "known", "cursor": text}, "cursor")


def _files(file: Any) -> Iterator[Refused]:
    for what, text in (
        ("an empty file", ""),
        ("a file without lines", USAGE),
        ("no export that is known", "a,b\n1,2\n"),
        ("a column less", USAGE.replace("output_tokens", "tokens") + f"\n{ROW}\n"),
        ("a column twice", f"{USAGE},model\n{ROW},x\n"),
        ("a line too short", f"{USAGE}\n{ROW}\n1759622400\n"),
        ("a quote that never ends", f'{USAGE}\n"{ROW}\n'),
        ("tokens that are no number", f"{USAGE}\n{ROW}\n{ROW.replace('10', 'ten', 1)}\n"),
        ("tokens below 0", f"{USAGE}\n{ROW.replace(',10,', ',-10,')}\n"),
        ("half a token", f"{USAGE}\n{ROW.replace(',10,', ',1.5,')}\n"),
        ("more tokens than there are", f"{USAGE}\n{ROW.replace(',10,', ',' + '9' * 30 + ',')}\n"),
        ("a bucket of two days", f"{USAGE}\n{ROW.replace('1759708800', '1759795200')}\n"),
        ("a bucket of no year", f"{USAGE}\n{ROW.replace('1759622400', '9' * 15)}\n"),
    ):
        yield file(what, text)
