"""The commands for finance on the command line: their options, and what they ask."""

import argparse
import json
from pathlib import Path
from typing import Any, Final, cast

import uvloop

from agent import bill_file, console, export_file, focus_report, invoice_file
from handlers.finance.focus_columns import CURRENT, VERSIONS

COMMANDS: Final = ("export", "focus-check", "bill", "invoice")


def add(commands: Any) -> None:
    """Declare the commands."""
    export = commands.add_parser("export", help="write usage and cost of a period into a file")
    export.add_argument("--out", type=Path, required=True, help="the file to write")
    export.add_argument("--start", required=True, help="RFC 3339, included")
    export.add_argument("--end", required=True, help="RFC 3339, not included")
    export.add_argument("--format", default="focus-csv", choices=("focus-csv", "focus-parquet", "csv", "jsonl"))
    export.add_argument("--options", default="{}", help="further fields of export_usage as JSON")
    _of_agent(export)
    export.set_defaults(command="export")
    check = commands.add_parser("focus-check", help="check a FOCUS file (CSV, also gzipped, or Parquet)")
    check.add_argument("file", type=Path)
    check.add_argument("--focus-version", default=CURRENT, choices=VERSIONS)
    check.add_argument("--null", action="append", default=[], help="a text that means null, besides an empty field")
    check.add_argument("--accept", action="append", default=[], help="a finding to tolerate: rule or rule:Column")
    check.set_defaults(command="focus-check")
    bill = commands.add_parser("bill", help="import a provider's usage and cost files and print what differs")
    bill.add_argument("bill_id", help="what the bill is called, for example openai-2026-10")
    bill.add_argument("files", type=Path, nargs="+")
    bill.add_argument("--options", default="{}", help="further fields of reconcile_bill as JSON")
    _of_agent(bill)
    bill.set_defaults(command="bill")
    invoice = commands.add_parser("invoice", help="write an invoice or credit note into a file")
    invoice.add_argument("invoice", help="its number or id, for example INV-2026-000001")
    invoice.add_argument("--format", default="pdf", choices=("pdf", "html", "csv", "json"))
    invoice.add_argument("--out", type=Path, help="the file to write (default: its number)")
    _of_agent(invoice)
    invoice.set_defaults(command="invoice")


def _of_agent(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data-dir", type=Path, default=Path("data"), help="the agent's data folder")
    command.add_argument("--url", help="the bus, instead of what the data folder says")
    command.add_argument("--as", dest="user", help="who asks: one of TOKEN_MANAGER_LOCAL_USERS of the running agent")


def run(options: argparse.Namespace) -> int:
    """Run one of COMMANDS; the exit status."""
    if options.command == "focus-check":
        return focus_report.check(
            options.file, version=options.focus_version, nulls=options.null, accept=options.accept
        )
    where: dict[str, Any] = {"data_dir": options.data_dir, "url": options.url, "user": options.user}
    if options.command == "invoice":
        return uvloop.run(invoice_file.fetch(options.invoice, wanted=options.format, out=options.out, **where))
    more = _fields(options.options)
    if more is None:
        return console.complain("--options is not a JSON object")
    if options.command == "bill":
        body = more | {"bill_id": options.bill_id}
        return uvloop.run(bill_file.reconcile(body, files=options.files, **where))
    body = more | {"start": options.start, "end": options.end, "format": options.format}
    return uvloop.run(export_file.export(body, out=options.out, **where))


def _fields(text: str) -> dict[str, Any] | None:
    try:
        found: Any = json.loads(text)
    except ValueError:
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None
