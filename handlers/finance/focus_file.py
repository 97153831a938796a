"""Reading FOCUS datasets from files, row by row: CSV (also gzipped) and Parquet. Judging them is focus_check's."""

import csv
import gzip
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Final, cast

from arro3.core import DataType, Schema
from arro3.io import read_parquet

from handlers.finance.focus_check import Checker
from handlers.finance.focus_columns import columns_of

BATCH_ROWS: Final = 10_000
# No field of a real dataset is nearly as long; a file that is no CSV is refused instead of read whole.
FIELD_CHARS_MAX: Final = 1_000_000


class UnreadableFile(Exception):
    """The file is neither CSV nor Parquet; the text is fit for a person."""


def check_file(path: Path, checker: Checker) -> None:
    """Let ``checker`` judge a whole file. Raises UnreadableFile or OSError."""
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(max(path.stat().st_size - 4, 0))
        end = file.read(4)
    if magic == b"PAR1":
        if end != magic:
            raise UnreadableFile("not a Parquet file: its end is missing")
        _check_parquet(path, checker)
        return
    with _text(path, packed=magic[:2] == b"\x1f\x8b") as lines:
        _check_csv(lines, checker)


@contextmanager
def _text(path: Path, *, packed: bool) -> Generator[IO[str]]:
    opened = gzip.open if packed else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        yield file


def _check_csv(lines: Iterable[str], checker: Checker) -> None:
    csv.field_size_limit(FIELD_CHARS_MAX)
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise UnreadableFile("the file is empty")
        checker.header(header)
        for values in reader:
            if len(values) != len(header):
                raise UnreadableFile(f"line {reader.line_num} has {len(values)} fields, the header {len(header)}")
            checker.row(dict(zip(header, values, strict=True)))
    except (csv.Error, UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UnreadableFile(f"line {reader.line_num + 1} is not CSV in UTF-8: {error}") from None


def _check_parquet(path: Path, checker: Checker) -> None:
    try:
        reader = read_parquet(path, batch_size=BATCH_ROWS)
    except BaseException as error:
        # The library panics on a file that is cut off, and its panic is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UnreadableFile(f"not a Parquet file: {error}") from None
    checker.header(reader.schema.names)
    for breach in _types(reader.schema, checker):
        checker.breach(*breach)
    for batch in reader:
        names = batch.schema.names
        columns = [cast("list[Any]", batch.column(i).to_pylist()) for i in range(len(names))]  # pyright: ignore[reportUnknownMemberType]
        for values in zip(*columns, strict=True):
            checker.row({name: _plain(value) for name, value in zip(names, values, strict=True)})


def _types(schema: Schema, checker: Checker) -> Iterator[tuple[str, str, str]]:
    """A column that is stored as another type than the specification's."""
    known = columns_of(checker.version)
    for field in schema:
        column = known.get(field.name)
        if column is not None and not _fits(column.type, field.type):
            yield "type", field.name, f"is stored as {field.type}, not as {column.type}"


def _fits(kind: str, stored: DataType) -> bool:
    if kind == "decimal":
        return DataType.is_decimal(stored) or DataType.is_integer(stored) or DataType.is_floating(stored)
    return DataType.is_timestamp(stored) if kind == "time" else DataType.is_string(stored)


def _plain(value: Any) -> str | None:
    """The text a CSV would hold."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, Decimal | float):
        return format(Decimal(value), "f")
    return None if value is None else str(value)
