"""Usage and cost as files: ``export_usage``."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from .base import Reply, Request, Text, Time
from .usage import UsageFilters

ExportFormat = Literal["focus-csv", "focus-parquet", "csv", "jsonl"]
FocusProfile = Literal["1.2", "1.3", "1.4"]
FocusDimension = Literal["user_id", "team_id", "project_id", "feature", "agent_id", "environment", "cost_center"]


class ExportUsage(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a file of usage and cost in [``start``, ``end``); its parts, in order, are the whole file.

    ``csv`` and ``jsonl``: one row for each event and for what adjustments posted. ``focus-csv`` and ``focus-parquet``:
    FOCUS, one row for each hour or day (UTC) x what ``dimensions`` tell apart x price; ``start`` and ``end`` lie on
    such hours or days. ``period`` ``billing``: corrections of earlier months stand in the month they were made in.
    Later parts hold nothing that was recorded after ``as_of``. A Parquet part is a whole Parquet file.
    """

    start: Time
    end: Time
    format: ExportFormat = "focus-csv"
    period: Literal["charge", "billing"] = "charge"
    filters: UsageFilters = UsageFilters()
    focus_version: FocusProfile = "1.4"
    granularity: Literal["hour", "day"] = "hour"
    dimensions: Annotated[tuple[FocusDimension, ...], Meta(max_length=7)] = (
        "team_id",
        "project_id",
        "feature",
        "agent_id",
        "environment",
        "cost_center",
    )
    tags: Annotated[bool, Meta(description="FOCUS: whether rows are told apart by tags, too.")] = True
    sub_account: Literal["team_id", "project_id", "cost_center"] = "team_id"
    names: Annotated[bool, Meta(description="csv and jsonl: user names in the place of surrogates.")] = False
    as_of: Time | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 5_000
    cursor: Text | None = None


class UnpricedUse(Reply, frozen=True, kw_only=True):
    """Requests and tokens of one model without a price."""

    provider: str
    model: str
    requests: int
    total_tokens: int


class LeftOut(Reply, frozen=True, kw_only=True):
    """What FOCUS cannot hold, because a cost must not be null there and unpriced is not nought; the largest models."""

    requests: int
    total_tokens: int
    models: list[UnpricedUse]


class UsageExport(Reply, frozen=True, kw_only=True):
    """One part. ``content`` is text, or base64 where ``encoding`` says so. On the first part of FOCUS: ``left_out`` and
    the ``metadata`` that the specification asks for. ``next_cursor``: send the same again with it as ``cursor``.
    """

    format: ExportFormat
    encoding: Literal["text", "base64"]
    content: str
    rows: int
    as_of: Time
    left_out: LeftOut | None = None
    metadata: dict[str, Any] | None = None
    next_cursor: str | None = None

    @property
    def verbatim(self) -> bool:
        """Names would break the file's own quoting; where they are wanted they are in it already."""
        return True
