"""An invoice as people read it: sections, aligned amounts and dates, the same for every format with pages. Pure.

Works on an invoice in plain JSON, in which users already have their names. Amounts stand in full: what a table shows
adds up to what it says, and only what is due is rounded to what can be paid.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from schemas.currencies import minor_decimals

_SECTIONS: Final = {
    "usage": "Usage",
    "adjustment": "Adjustments of this period",
    "share": "Shared costs",
    "commitment": "Commitments",
    "billed": "Billed on earlier invoices",
    "earlier": "Changes in earlier periods",
}
_PAYERS: Final = {
    "org": "Organisation",
    "team": "Team",
    "project": "Project",
    "cost_center": "Cost centre",
    "user": "User",
}
_KINDS: Final = {"cache_read": "cached input", "cache_write": "cache write", "cache_write_1h": "cache write, 1 h"}
_OPEN: Final = "open"
_DASH: Final = "\u2013"
_MINUS: Final = "\u2212"


def page_of(invoice: dict[str, Any]) -> dict[str, Any]:
    """What templates show: texts only."""
    credit = invoice["kind"] == "credit_note"
    draft = invoice["status"] == "draft"
    title = "Credit note" if credit else "Draft invoice" if draft else "Invoice"
    lines: list[dict[str, Any]] = invoice["lines"]
    decimals = decimals_of(line[name] for line in lines for name in ("list_price", "discount", "net"))
    return {
        "title": title,
        "number": invoice["number"] or "",
        "void": f"Taken back by {invoice['credited_by']}" if invoice["credited_by"] else "",
        "issuer": invoice["issuer"].splitlines(),
        "bill_to": _bill_to(invoice),
        "facts": _facts(invoice, credit=credit, draft=draft),
        "currency": invoice["currency"],
        "sections": list(_sections(lines, decimals)),
        "totals": _totals(invoice),
        "by_model": _subtotals(invoice["by_model"], "not by model", _unpriced(invoice)),
        "by_project": _subtotals(invoice["by_project"], "no project", frozenset()),
        "rates": _rates(invoice["rates"]),
        "open_points": [
            [f"{p['provider']} {p['model']}", p["project_id"] or _DASH, count(p["requests"]), count(p["total_tokens"])]
            for p in invoice["open_points"]
        ],
        "exchange": [
            [f"1 {r['currency']}", f"{r['rate']} {invoice['currency']}", r["as_of"], r["source"]]
            for r in invoice["exchange_rates"]
        ],
        "notes": invoice["notes"],
        "note": invoice["note"].splitlines(),
    }


def _bill_to(invoice: dict[str, Any]) -> list[str]:
    who = _PAYERS[invoice["payer_type"]]
    name = invoice["entity_id"] or invoice["org"]
    return [*invoice["bill_to"].splitlines(), f"{who} {name}"]


def _facts(invoice: dict[str, Any], *, credit: bool, draft: bool) -> list[list[str]]:
    period = f"{invoice['first_day']} {_DASH} {invoice['last_day']}"
    facts = [] if draft else [["Number", invoice["number"]]]
    if credit:
        facts.append(["For invoice", invoice["corrects"]])
    facts.append(["Drawn up" if draft else "Date", invoice["issued_on"]])
    if not credit and not draft:
        facts.append(["Due", invoice["due_on"]])
    facts += [["Period", period], ["Time zone", invoice["timezone"]], ["Currency", invoice["currency"]]]
    if credit:
        facts.append(["Reason", invoice["reason"]])
    return facts


def _sections(lines: Sequence[dict[str, Any]], decimals: int) -> Iterable[dict[str, Any]]:
    for name, title in _SECTIONS.items():
        own = [line for line in lines if line["section"] == name]
        if own:
            yield {
                "title": title,
                "rows": [_row(line, decimals) for line in own],
                "sums": [amount_sum([line[column] for line in own], decimals) for column in _AMOUNTS],
            }


_AMOUNTS: Final = ("list_price", "discount", "net")


def _row(line: dict[str, Any], decimals: int) -> list[str]:
    about = [line["project_id"]] if line["project_id"] else []
    if line["corrects"]:
        about.append(f"for {line['corrects']}")
    if line["unpriced_requests"] > 0:
        about.append(f"{count(line['unpriced_requests'])} requests without a price")
    cached = line["cache_read_tokens"] + line["cache_write_tokens"]
    tokens = [count(line["requests"]), count(line["input_tokens"]), count(cached), count(line["output_tokens"])]
    if line["kind"] in ("share", "commitment"):
        tokens = [""] * 4
    amounts = [amount(line[name], decimals) for name in _AMOUNTS]
    if line["unpriced_requests"] > 0 and not _is_not_zero(line["list_price"]):
        # Not nought: nobody knows yet.
        amounts = ["", "", _OPEN]
    return [line["description"], ", ".join(about), *tokens, *amounts]


def _totals(invoice: dict[str, Any]) -> list[list[str]]:
    """Label, amount, and whether it is the one that counts."""
    totals = invoice["totals"]
    names = ("list_price", "discount", "subtotal", "markup", "tax", "total", "rounding", "due")
    decimals = decimals_of((totals[name] for name in names), minor_decimals(invoice["currency"]))
    rows = [["List price", "list_price"], ["Discount", "discount"]] if _is_not_zero(totals["discount"]) else []
    rows.append(["Subtotal", "subtotal"])
    if _is_not_zero(totals["markup_percent"]):
        rows.append([f"Markup {totals['markup_percent']} %", "markup"])
    if _is_not_zero(totals["tax_percent"]):
        rows.append([f"{totals['tax_label']} {totals['tax_percent']} %", "tax"])
    if _is_not_zero(totals["rounding"]):
        rows += [["Total", "total"], ["Rounding", "rounding"]]
    shown = [[label, _signed(name, totals[name], decimals), ""] for label, name in rows]
    due = "Credit" if invoice["kind"] == "credit_note" else "Amount due"
    shown.append([f"{due} {invoice['currency']}", amount(totals["due"], minor_decimals(invoice["currency"])), "due"])
    return shown


def _signed(name: str, text: str, decimals: int) -> str:
    """A discount is taken off."""
    if name != "discount":
        return amount(text, decimals)
    return amount(text[1:] if text.startswith("-") else f"-{text}", decimals)


def _unpriced(invoice: dict[str, Any]) -> frozenset[tuple[str, str]]:
    return frozenset((point["provider"], point["model"]) for point in invoice["open_points"])


def _subtotals(found: Sequence[dict[str, Any]], others: str, unpriced: frozenset[tuple[str, str]]) -> list[list[str]]:
    decimals = decimals_of(item[name] for item in found for name in _AMOUNTS)
    rows: list[list[str]] = []
    for item in found:
        name = " ".join(item[part] for part in ("provider", "model", "project_id") if item[part])
        tokens = [count(item["requests"]), count(item["total_tokens"])]
        amounts = [amount(item[column], decimals) for column in _AMOUNTS]
        if (item["provider"], item["model"]) in unpriced and not _is_not_zero(item["list_price"]):
            amounts = ["", "", _OPEN]
        if item["others"]:
            name = f"{item['others']} others"
        rows.append([name or others, *tokens, *amounts])
    return rows


def _rates(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    decimals = decimals_of(item["cost"] for item in found)
    rates = decimals_of(
        item[name] for item in found for name in ("rate_per_million", "list_rate_per_million") if item[name]
    )
    rows: list[list[str]] = []
    for item in found:
        listed, net = item["list_rate_per_million"], item["rate_per_million"]
        kind: str = _KINDS.get(item["kind"]) or item["kind"].replace("_", " ")
        rows.append(
            [
                f"{item['provider']} {item['model']}",
                kind,
                count(item["quantity"]),
                _DASH if listed is None else amount(listed, rates),
                "as reported" if net is None else amount(net, rates),
                f"{amount(item['cost'], decimals)} {item['currency']}",
            ]
        )
    return rows


def decimals_of(amounts: Iterable[str], least: int = 2) -> int:
    """The decimals the longest of these amounts has."""
    return max([least, *(len(text.partition(".")[2]) for text in amounts)])


def amount(text: str, decimals: int) -> str:
    """A decimal string with that many decimals (it has no more), thousands apart, and a true minus."""
    sign, digits = (_MINUS, text[1:]) if text.startswith("-") else ("", text)
    units, _, rest = digits.partition(".")
    shown = f"{int(units):,}"
    if decimals:
        shown += "." + rest.ljust(decimals, "0")
    return sign + shown


def amount_sum(texts: Iterable[str], decimals: int) -> str:
    """The sum of decimal strings."""
    scale = 10**decimals
    total = sum(_scaled(text, decimals) for text in texts)
    sign, total = ("-", -total) if total < 0 else ("", total)
    digits = f"{total // scale}.{total % scale:0{decimals}d}" if decimals else str(total)
    return amount(sign + digits, decimals)


def _scaled(text: str, decimals: int) -> int:
    digits = text.lstrip("-")
    units, _, rest = digits.partition(".")
    value = int(units + rest.ljust(decimals, "0"))
    return -value if text.startswith("-") else value


def count(number: int) -> str:
    """A count with thousands apart."""
    return f"{number:,}".replace("-", _MINUS)


def _is_not_zero(text: str) -> bool:
    return bool(text.strip("-0."))
