"""Exports. They read usage and record nothing."""

from typing import Any

from schemas import export
from signals import Event, Request

EXPORT_USAGE = Request(
    name="export_usage",
    request=export.ExportUsage,
    reply=export.UsageExport,
    roles=("viewer",),
    group="tracking",
    purpose="Usage and cost as a file, part by part: FOCUS (CSV, Parquet), CSV or JSON lines",
)

SIGNALS = (EXPORT_USAGE,)
EVENTS: tuple[Event[Any], ...] = ()
