"""What allocation, projections and invoices refuse for reasons of their own."""

from collections.abc import Iterator
from typing import Any

from tests.agent.good_requests import FUTURE, NAMELESS_ORG, PROJECT, SHARED, SPAN, Refused

JUNE: dict[str, Any] = {"month": "2025-06", "payer": {"type": "team", "entity_id": "ops"}}
FINAL: dict[str, Any] = {"status": "final", "request_id": "new"}


def finance() -> Iterator[Refused]:
    """Every row."""
    yield from _periods()
    yield from _rules()
    yield from _projections()
    yield from _invoices()


def _periods() -> Iterator[Refused]:
    for signal, more in (("allocate_costs", {"by": "team"}), ("prepare_invoice", {})):

        def asked(what: str, field: str, signal: str = signal, more: dict[str, Any] = more, **fields: Any) -> Refused:
            return Refused(what, signal, {**more, **fields}, field)

        for month in ("2026-13", "2026-00", "2026-1", "1999-12", "26-01", "2026-01-01", "2026-01\n"):
            yield asked(f"month `{month.strip()}`", "month", month=month)
        yield asked("no period", "month")
        yield asked("a start without an end", "end", start=SPAN["start"])
        yield asked("an end without a start", "start", end=SPAN["end"])
        yield asked("an empty period", "end", start=SPAN["start"], end=SPAN["start"])
        yield asked("end before start", "end", start=SPAN["end"], end=SPAN["start"])
        yield asked("a month and a start", "month", month="2026-01", start=SPAN["start"])
        yield asked("not on a quarter of an hour", "start", start="2026-01-01T00:01:00Z", end=SPAN["end"])
        yield asked("not on a quarter of an hour", "end", start=SPAN["start"], end="2026-01-01T00:15:00.5Z")
        yield asked("the year 1", "start", start="0001-01-01T00:00:00Z", end="0001-01-01T00:15:00Z")
        yield asked("the year 9999", "end", start=SPAN["start"], end="9999-12-31T23:45:00Z")
        yield asked("a time zone that is none", "timezone", month="2026-01", timezone="Mars/Base")
        yield asked("no currency", "currency", month="2026-01", currency="EUX")


def _rules() -> Iterator[Refused]:
    def rules(what: str, field: str, *rules: dict[str, Any], **fields: Any) -> Iterator[Refused]:
        body = {"by": "team", **fields}
        yield Refused(what, "set_allocation_rules", {**body, "rules": list(rules)}, f"rules{field}")
        yield Refused(what, "allocate_costs", {**SPAN, **body, "shared": list(rules)}, f"shared{field}")

    yield from rules("two rules of one name", "[1].name", SHARED, SHARED)
    yield from rules("everything is shared", "[0].shared", {**SHARED, "shared": {}})
    fixed = {**SHARED, "split": "fixed"}
    for what, percents in (
        ("percentages that sum to 99.9", {"a": "60", "b": "39.9"}),
        ("percentages that sum to 100.000001", {"a": "60", "b": "40.000001"}),
        ("no percentages", {}),
    ):
        yield from rules(what, "[0].percents", {**fixed, "percents": percents})
    for percent in ("-1", "x", "1e2", "1.1234567", "12345"):
        yield from rules(f"percentage `{percent}`", "[0].percents[...]", {**fixed, "percents": {"a": percent}})
    yield from rules("percentages of another split", "[0].percents", {**SHARED, "percents": {"a": "100"}})
    yield from rules("bearers of fixed percentages", "[0].among", {**fixed, "percents": {"a": "100"}, "among": ["a"]})
    yield from rules("somebody twice", "[0].among", {**SHARED, "among": ["a", "b", "a"]})
    yield from rules("a pattern of users", "[0].shared.user_id", {**SHARED, "shared": {"user_id": "a*"}})
    none: dict[str, Any] = {"rules": []}
    for signal, more in (("set_allocation_rules", none), ("allocate_costs", SPAN)):
        yield Refused("by tag, without the tag", signal, {**more, "by": "tag"}, "tag")
        yield Refused("a tag by team", signal, {**more, "by": "team", "tag": "k"}, "tag")
    stale = {**none, "by": "team", "version": 9}
    yield Refused("a version that nobody read", "set_allocation_rules", stale, "version", "conflict")
    named = {"by": "user", "rules": [{**SHARED, "among": ["ada"]}]}
    field = "rules[0].among[0]"
    yield Refused("a plain user name, refused", "set_allocation_rules", named, field, org=NAMELESS_ORG)


def _projections() -> Iterator[Refused]:
    def plan(what: str, field: str, code: str = "invalid_request", org: str = "acme", **fields: Any) -> Refused:
        return Refused(what, "project_costs", {**PROJECT, **fields}, field, code, org)

    (model,) = PROJECT["models"]
    for what, percents in (("99 percent", ["99"]), ("101 percent", ["70", "31"]), ("0 percent", ["0"])):
        yield plan(f"models of {what}", "models", models=[{**model, "percent": p} for p in percents])
    yield plan("no models", "models", models=[])
    yield plan("growth below -100 percent", "growth_percent_per_month", growth_percent_per_month="-100.5")
    for text in ("x", "1e3", "--5", "12345"):
        yield plan(f"growth `{text}`", "growth_percent_per_month", growth_percent_per_month=text)
    for field in ("cached_percent", "cache_write_percent"):
        yield plan("more than 100 percent", field, **{field: "100.000001"})
        yield plan("a percentage below 0", field, **{field: "-1"})
    yield plan("more than 100 percent", "models[0].batch_percent", models=[{**model, "batch_percent": "101"}])
    yield plan("neither tokens nor calls to observe", "tokens", tokens=None)
    seen = {**SPAN, "filters": {"team_id": "nobody"}}
    yield plan("tokens and calls to observe", "observed", observed=seen)
    yield plan("calls that were not made", "observed", "not_found", tokens=None, observed=seen)
    for field, span in (("start", {"start": SPAN["end"]}), ("end", {"end": SPAN["end"]})):
        far = {**span, field: "0001-01-01T00:00:00+23:59"}
        yield plan("observed beyond UTC", f"observed.{field}", tokens=None, observed=far)
    backwards = {"start": SPAN["end"], "end": SPAN["start"]}
    yield plan("observed, end before start", "observed.end", tokens=None, observed=backwards)
    yield plan("observed, with a history", "history", tokens=None, observed=SPAN, history="growing")
    tokens = {"prompt": 1, "completion": 1, "reasoning": 2}
    yield plan("more reasoning than completion", "tokens.reasoning", tokens=tokens)
    yield plan("days and months", "days", days=1, months=1)
    yield plan("a start without prices", "start", start=FUTURE)
    yield plan("a time zone that is none", "timezone", timezone="Mars/Base")
    yield plan("no currency", "currency", currency="EUX")
    yield plan("a plain user name, refused", "scope.user_id", org=NAMELESS_ORG, scope={"user_id": "ada"})


def _invoices() -> Iterator[Refused]:
    def invoice(what: str, field: str, code: str = "invalid_request", **fields: Any) -> Refused:
        return Refused(what, "prepare_invoice", {"month": "2025-05", **fields}, field, code)

    for kind in ("team", "project", "cost_center", "user"):
        yield invoice(f"no {kind}", "payer.entity_id", payer={"type": kind})
        unknown = {"type": kind, "entity_id": "nobody"}
        yield invoice(f"an unknown {kind}", "payer.entity_id", "not_found", payer=unknown)
        yield invoice(f"an unknown {kind}, final", "payer.entity_id", "not_found", payer=unknown, **FINAL)
    yield invoice("an entity of the org", "payer.entity_id", payer={"type": "org", "entity_id": "x"})
    yield invoice("shares of the org", "payer.allocated", payer={"type": "org", "allocated": True})
    yield invoice("final, without a request id", "request_id", status="final")
    yield invoice("nothing to invoice", "month", "conflict", **FINAL)
    yield invoice("a month that has not ended", "month", month="2099-12", **FINAL)
    long = {"month": None, "start": SPAN["start"], "end": "2099-01-01T00:00:00Z"}
    yield invoice("a period that has not ended", "start", **long, **FINAL)
    for text in ("-1", "1e1", "10000000", "1,5", ""):
        yield invoice(f"tax `{text}`", "tax_percent", tax_percent=text)
        yield invoice(f"markup `{text}`", "markup_percent", markup_percent=text)
    yield invoice("invoiced already", "month", "conflict", **{**JUNE, **FINAL})
    yield invoice("a draft of what is invoiced already", "month", "conflict", **JUNE)
    part = {**JUNE, "month": None, "start": "2025-06-15T00:00:00Z", "end": "2025-07-15T00:00:00Z"}
    yield invoice("partly invoiced already", "start", "conflict", **{**part, **FINAL})
    other = {**JUNE, "status": "final", "request_id": "june-ops", "tax_percent": "1"}
    yield invoice("an id of another request", "request_id", "conflict", **other)
    user = {"month": "2025-06", "payer": {"type": "user", "entity_id": "ada"}}
    yield Refused("a plain user name, refused", "prepare_invoice", user, "payer.entity_id", org=NAMELESS_ORG)

    def void(what: str, invoice_id: str, code: str = "conflict", **fields: Any) -> Refused:
        field = "reason" if "reason" in fields else "invoice_id"
        return Refused(what, "void_invoice", {"invoice_id": invoice_id, "reason": "another", **fields}, field, code)

    yield void("taken back already, for another reason", "$voided")
    yield void("a credit note", "$creditnote")
    yield void("a reason of spaces", "$invoice", "invalid_request", reason=" \t")
    yield void("no reason", "$invoice", "invalid_request", reason="")
    for signal in ("get_invoice", "void_invoice"):
        body = {"invoice_id": "$invoice", **({"reason": "x"} if signal == "void_invoice" else {})}
        yield Refused("an invoice of another org", signal, body, "invoice_id", "not_found", NAMELESS_ORG)
    for wanted in ("document", "pdf", "html"):
        for cursor in ("x", "WyJhIl0", "Wy0xXQ", "Wzk5OTk5OTk5OTk5OTk5OTk5OTk5XQ"):
            body = {"invoice_id": "$invoice", "format": wanted, "cursor": cursor}
            yield Refused(f"cursor `{cursor}` of {wanted}", "get_invoice", body, "cursor")
    changed = {"invoice_id": "$invoice", "format": "csv", "cursor": "WzUsImFiYyJd"}
    yield Refused("a cursor of another file", "get_invoice", changed, "cursor", "conflict")
