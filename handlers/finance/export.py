"""``export_usage``: usage and cost as the parts of a file. Reads only, a bounded number of rows at a time."""

import asyncio
import base64
import contextlib
import csv
import io
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec

from handlers.context import Context
from handlers.cursor import PAGE_BYTES_MAX, decode_cursor, encode_cursor
from handlers.enforcer.answers import wire_time
from handlers.enforcer.catalogue import EVERY
from handlers.finance.focus_columns import FocusVersion
from handlers.finance.focus_export import exported_columns, focus_row, metadata, ordered
from handlers.finance.focus_parquet import parquet_file
from handlers.finance.spreadsheet import safe_text
from handlers.moment import in_utc
from schemas.codec import prefixed
from schemas.errors import SignalError, invalid
from schemas.export import ExportUsage, LeftOut, UnpricedUse, UsageExport
from schemas.money import format_cost
from signals import export as signals
from signals import route
from store import export as export_store
from store.export import ExportQuery
from store.pool import Connection
from store.sql import like_pattern

_AT = Annotated[datetime, msgspec.Meta(tz=True)]
_Posting = tuple[_AT, _AT, str, str, int]
_Charge = tuple[_AT, _AT, str]
_JSON: Final = msgspec.json.Encoder().encode
# Dimensions that rollups do not keep.
_ONLY_IN_EVENTS: Final = frozenset({"session_id", "task_id"})
_BUCKETS: Final = {"hour": timedelta(hours=1), "day": timedelta(days=1)}
MODELS_TOLD: Final = 20
# Rows written, or read, before others are served: some 5 ms.
ROWS_AT_ONCE: Final = 100


async def export_usage(ctx: Context, request: ExportUsage) -> UsageExport:
    """The next part of the file."""
    if request.names and request.format not in ("csv", "jsonl"):
        raise invalid("FOCUS holds surrogates; names are for csv and jsonl", field="names")
    return await (_charges(ctx, request) if request.format.startswith("focus") else _postings(ctx, request))


def _query(ctx: Context, request: ExportUsage, as_of: datetime | None) -> ExportQuery:
    start, end = in_utc(request.start, "start"), in_utc(request.end, "end")
    assert start is not None and end is not None
    if start >= end:
        raise invalid("must be after start", field="end")
    given = {name: value for name, value in msgspec.structs.asdict(request.filters).items() if value is not None}
    if "user_id" in given:
        given["user_id"] = _user(ctx, given["user_id"])
    now = ctx.now()
    bound = as_of or min(in_utc(request.as_of, "as_of") or now, now)
    return ExportQuery(
        org=ctx.org,
        start=start,
        end=end,
        as_of=bound,
        filters={name: like_pattern(value) for name, value in given.items()},
        billing=request.period == "billing",
    )


def _user(ctx: Context, name: str) -> str:
    if EVERY in name:
        raise invalid("user names are not stored with usage, so a pattern finds none", field="filters.user_id")
    try:
        return ctx.user_key(name)
    except SignalError as error:
        raise prefixed(error, "filters") from None


@contextlib.asynccontextmanager
async def _snapshot(ctx: Context) -> AsyncGenerator[Connection]:
    async with (
        ctx.database.connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield connection


# One row for each posting.

_TEXTS: Final = (
    *("usage_id", "adjustment_id", "provider", "model", "service_tier", "region", "user_id", "team_id", "project_id"),
    *("feature", "agent_id", "session_id", "task_id", "environment", "cost_center", "price_source", "price_version"),
)
POSTING_COLUMNS: Final = (
    *("timestamp", "posted_at", "usage_id", "adjustment_id", "sign", "provider", "model", "service_tier", "region"),
    *("batch", "status", "user_id", "team_id", "project_id", "feature", "agent_id", "session_id", "task_id"),
    *("environment", "cost_center", "tags", "requests", "prompt_tokens", "completion_tokens", "cache_read_tokens"),
    *("cache_write_tokens", "reasoning_tokens", "cost", "list_cost", "currency", "cost_status", "price_source"),
    *("price_version", "line_items"),
)


async def _postings(ctx: Context, request: ExportUsage) -> UsageExport:
    position = decode_cursor(request.cursor, _Posting)
    query = _query(ctx, request, position[0] if position else None)
    after = position[1:] if position else None
    rows: list[dict[str, Any]] = []
    async with _snapshot(ctx) as connection:
        found = export_store.postings(connection, query, after=after, limit=request.limit + 1)
        async with contextlib.aclosing(found) as postings:
            size = 0
            async for row in postings:
                rows.append(row)
                size += len(_csv_line(_shown(row)))
                if size > PAGE_BYTES_MAX:
                    break
                if len(rows) % ROWS_AT_ONCE == 0:
                    await asyncio.sleep(0)
    if request.names:
        await _name(ctx, rows)
    render = _csv_line if request.format == "csv" else _json_line
    part = _Part("" if position or request.format != "csv" else _csv([*POSTING_COLUMNS]))
    for number, row in enumerate(rows[: request.limit], 1):
        if number % ROWS_AT_ONCE == 0:
            await asyncio.sleep(0)
        if not part.take(render(_shown(row)), _key(row)):
            break
    return UsageExport(
        format=request.format,
        encoding="text",
        content=part.text,
        rows=part.rows,
        as_of=query.as_of,
        next_cursor=encode_cursor(query.as_of, *part.last) if part.rows < len(rows) else None,
    )


async def _name(ctx: Context, rows: Sequence[dict[str, Any]]) -> None:
    """Names in the place of surrogates, where they are known."""
    identities = ctx.services.identities
    await identities.learn(ctx.org, _JSON([row["user_id"] for row in rows]))
    for row in rows:
        if row["user_id"] is not None:
            row["user_id"] = identities.spoken(ctx.org, row["user_id"])


def _key(row: dict[str, Any]) -> tuple[datetime, str, str, int]:
    return row["timestamp"], row["usage_id"], row["adjustment_id"] or "", row["sign"]


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A posting with money as decimal strings and times in UTC."""
    shown = {name: row[name] for name in POSTING_COLUMNS}
    for name in ("timestamp", "posted_at"):
        shown[name] = wire_time(row[name])
    for name in ("cost", "list_cost"):
        shown[name] = None if row[name] is None else format_cost(row[name])
    return shown


def _json_line(row: dict[str, Any]) -> str:
    return _JSON(row).decode() + "\n"


def _csv_line(row: dict[str, Any]) -> str:
    cells: list[Any] = []
    for name in POSTING_COLUMNS:
        value = row[name]
        if name in ("tags", "line_items"):
            value = None if not value else _JSON(value).decode()
        elif isinstance(value, bool):
            value = "true" if value else "false"
        elif name in _TEXTS and value is not None:
            value = safe_text(value)
        cells.append(value)
    return _csv(cells)


def _csv(cells: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


class _Part:
    """The lines of one part, as many as fit a message; ``last`` is the key of the last one taken."""

    def __init__(self, text: str) -> None:
        self._lines = [text]
        self._size = len(_JSON(text))
        self.rows = 0
        self.last: tuple[Any, ...] = ()

    @property
    def text(self) -> str:
        return "".join(self._lines)

    def take(self, line: str, key: tuple[Any, ...]) -> bool:
        """Whether the line still fits; the first always does."""
        size = len(_JSON(line))
        if self.rows and self._size + size > PAGE_BYTES_MAX:
            return False
        self._lines.append(line)
        self._size += size
        self.rows += 1
        self.last = key
        return True


# FOCUS: one row for each summed charge.


async def _charges(ctx: Context, request: ExportUsage) -> UsageExport:
    position = decode_cursor(request.cursor, _Charge)
    query = _query(ctx, request, position[0] if position else None)
    for field, at in (("start", query.start), ("end", query.end)):
        if _floor(at, request.granularity) != at:
            raise invalid(f"does not begin a whole {request.granularity} of UTC", field=field)
    columns = exported_columns(request.focus_version)
    told = metadata(request.focus_version, created=ctx.now()) if position is None else None
    async with _snapshot(ctx) as connection:
        rows, last = await _read(
            connection,
            query,
            request,
            position,
            _maker(columns, request, ctx.org),
            windows_max=ctx.services.limits.export_windows_max,
        )
        left_out = await _left_out(connection, query) if position is None else None
    return UsageExport(
        format=request.format,
        encoding="text" if request.format == "focus-csv" else "base64",
        content=await _content(rows, columns, request, first=position is None, created=ctx.now()),
        rows=len(rows),
        as_of=query.as_of,
        left_out=left_out,
        metadata=told,
        next_cursor=None if last is None else encode_cursor(query.as_of, *last),
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of FOCUS, also as a line of CSV, and how much of a message it takes at most."""

    values: list[str | None]
    line: str
    size: int


def _maker(columns: Sequence[str], request: ExportUsage, org: str) -> Callable[[dict[str, Any]], _Row]:
    """What makes the row of a charge."""

    def made(charge: dict[str, Any]) -> _Row:
        row = focus_row(charge, org=org, bucket=request.granularity, sub_account=request.sub_account)
        values = ordered(row, columns)
        line = _csv(values)
        size = len(_JSON(line))
        return _Row(values, line, size if request.format == "focus-csv" else size * 3 // 2)

    return made


async def _content(
    rows: Sequence[_Row], columns: Sequence[str], request: ExportUsage, *, first: bool, created: datetime
) -> str:
    if request.format == "focus-csv":
        return "".join([*([_csv(columns)] if first else []), *(row.line for row in rows)])
    version: FocusVersion = request.focus_version
    told = metadata(version, created=created)
    # Compressing takes its time; decisions go on meanwhile.
    file = await asyncio.to_thread(parquet_file, [row.values for row in rows], columns, version, told=told)
    return base64.b64encode(file).decode()


async def _read(
    connection: Connection,
    query: ExportQuery,
    request: ExportUsage,
    position: tuple[Any, ...] | None,
    made: Callable[[dict[str, Any]], _Row],
    *,
    windows_max: int,
) -> tuple[list[_Row], tuple[datetime, str] | None]:
    """The rows of a part, and where the next one goes on; None: this is the last.

    Windows of time are summed one after the other, wider ones where there is little, so that no part sums everything.
    """
    step = _BUCKETS[request.granularity]
    dimensions = [*request.dimensions, request.sub_account]
    rows: list[_Row] = []
    size, width = 0, 1
    last: tuple[datetime, str] = (position[1], position[2]) if position else (datetime.min.replace(tzinfo=UTC), "")
    since = position[1] if position else None
    for _ in range(windows_max):
        at = await export_store.next_time(connection, query, since)
        if at is None:
            return rows, None
        begin = _floor(at, request.granularity)
        until = begin + step * width
        found = export_store.charges(
            connection,
            query,
            bucket=request.granularity,
            dimensions=dimensions,
            tags=request.tags,
            window=(begin, until),
            after=last,
            limit=request.limit + 1 - len(rows),
        )
        before = len(rows)
        async with contextlib.aclosing(found) as charges:
            async for charge in charges:
                row = made(charge)
                if len(rows) == request.limit or (rows and size + row.size > PAGE_BYTES_MAX):
                    return rows, last
                rows.append(row)
                if len(rows) % ROWS_AT_ONCE == 0:
                    await asyncio.sleep(0)
                size += row.size
                last = (charge["charged_from"], charge["row_key"])
        width = min(width * 2, WINDOW_BUCKETS_MAX) if len(rows) - before < request.limit // 8 else 1
        since = until
    return rows, (since or query.start, "")


# A window this wide may turn out to be busy.
WINDOW_BUCKETS_MAX: Final = 24


def _floor(at: datetime, granularity: str) -> datetime:
    at = at.astimezone(UTC)
    hour = at.hour if granularity == "hour" else 0
    return at.replace(hour=hour, minute=0, second=0, microsecond=0)


async def _left_out(connection: Connection, query: ExportQuery) -> LeftOut:
    """What has no cost. Sums by quarter hours know it at once, but not by session and task."""
    found = await export_store.unpriced(
        connection, query, from_rollups=_ONLY_IN_EVENTS.isdisjoint(query.filters) and not query.billing
    )
    return LeftOut(
        requests=sum(row["requests"] for row in found),
        total_tokens=sum(row["total_tokens"] for row in found),
        models=[UnpricedUse(**row) for row in found[:MODELS_TOLD]],
    )


ROUTES = (route(signals.EXPORT_USAGE, export_usage),)
