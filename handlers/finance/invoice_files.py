"""An invoice as JSON, CSV, HTML or PDF. Pure: an invoice in plain JSON in, bytes out; nothing is fetched from anywhere.

Every name in it may have been made up by a stranger: HTML escapes it, typst is given it as data, and a CSV cell that a
spreadsheet would run as a formula is made text.
"""

import csv
import io
import re
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import jinja2
import msgspec
import typst

from handlers.finance.invoice_page import page_of
from handlers.finance.spreadsheet import safe_text

_TEMPLATES: Final = Path(__file__).parent / "templates"
_COLUMNS: Final = (
    *("number", "row", "position", "section", "kind", "description", "period_start", "period_end", "provider", "model"),
    *("project_id", "rule", "corrects", "requests", "unpriced_requests", "input_tokens", "cache_read_tokens"),
    *("cache_write_tokens", "output_tokens", "reasoning_tokens", "cost_currency", "cost", "currency", "list_price"),
    *("discount", "net"),
)
_AMOUNTS: Final = frozenset({"cost", "list_price", "discount", "net"})
# The fonts that come with typst know Latin, Greek and Cyrillic; names in other scripts need those of the host.
_OTHER_SCRIPTS: Final = re.compile("[\u0590-\u1dff\u2c00-\uffff\U00010000-\U0010ffff]")
# What screen readers need is most of a large file: 1.5 KB a line.
TAGGED_LINES_MAX: Final = 500
_TOTALS: Final = ("subtotal", "markup", "tax", "rounding", "due")


class Format(NamedTuple):
    """What a file of a format is."""

    media_type: str
    text: bool


FORMATS: Final = {
    "json": Format("application/json", text=True),
    "csv": Format("text/csv; charset=utf-8", text=True),
    "html": Format("text/html; charset=utf-8", text=True),
    "pdf": Format("application/pdf", text=False),
}


def file_of(invoice: dict[str, Any], wanted: str) -> bytes:
    """The whole file, the same for the same invoice. A PDF of many pages takes seconds: not for the agent's loop."""
    if wanted == "json":
        return msgspec.json.format(msgspec.json.encode(invoice), indent=2)
    if wanted == "csv":
        return _csv(invoice).encode()
    page = page_of(invoice)
    return _html(page).encode() if wanted == "html" else _pdf(page)


def _csv(invoice: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(_COLUMNS)
    for line in invoice["lines"]:
        row = {**line, "number": invoice["number"], "row": "line", "cost_currency": line["currency"]}
        writer.writerow(_cells(row | {"currency": invoice["currency"]}))
    for name in _TOTALS:
        net = {
            "number": invoice["number"],
            "row": name,
            "currency": invoice["currency"],
            "net": invoice["totals"][name],
        }
        writer.writerow(_cells(net))
    return text.getvalue()


def _cells(row: dict[str, Any]) -> list[Any]:
    return [_cell(name, row.get(name)) for name in _COLUMNS]


def _cell(name: str, value: Any) -> Any:
    """Text that a spreadsheet takes for a formula gets an apostrophe before it; numbers are ours and stay numbers."""
    if isinstance(value, str) and name not in _AMOUNTS:
        return safe_text(value)
    return "" if value is None else value


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("invoice.html")


def _html(page: dict[str, Any]) -> str:
    return _template().render(page)


@cache
def _source() -> bytes:
    return (_TEMPLATES / "invoice.typ").read_bytes()


def _pdf(page: dict[str, Any]) -> bytes:
    data = {"data": msgspec.json.encode(page).decode()}
    tags = sum(len(section["rows"]) for section in page["sections"]) <= TAGGED_LINES_MAX
    own_fonts = _OTHER_SCRIPTS.search(data["data"]) is None
    return typst.compile(_source(), sys_inputs=data, ignore_system_fonts=own_fonts, timestamp=0, pdf_tags=tags)
