"""Recorded traffic: reads the Azure, BurstGPT and Mooncake formats into one kind of row.

Sources: Azure/AzurePublicDataset (LLM inference trace 2023), HPMLL/BurstGPT, kvcache-ai/Mooncake (FAST'25 traces).
"""

import csv
import gzip
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TextIO

import msgspec

HASHES_MAX = 512
BURSTGPT_MODELS = {"ChatGPT": "gpt-3.5-turbo", "GPT-4": "gpt-4"}


class TraceError(Exception):
    """The file is not a trace this program reads; the text says why, and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One recorded call. `offset_s` counts from the first row; `model` is None where the trace names none."""

    offset_s: float
    prompt_tokens: int
    completion_tokens: int
    model: str | None = None
    failed: bool = False
    prefix_hashes: tuple[str, ...] = ()


class _MooncakeRow(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = []


def read_trace(path: Path, *, limit: int | None = None) -> list[Row]:
    """The first `limit` rows of a trace, plain or gzipped.

    Raises:
        TraceError: the file cannot be read, has no known format, or a line of it is wrong.
    """
    try:
        with _open(path) as file:
            first = file.readline()
            rows = list(itertools.islice(_format(first, path)(first, file, path), limit))
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"cannot read {path}: {error}") from error
    if not rows:
        raise TraceError(f"{path} has no rows")
    return _from_zero(rows)


def _open(path: Path) -> TextIO:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rt", encoding="utf-8") if zipped else path.open(encoding="utf-8")


Reader = Callable[[str, TextIO, Path], Iterator[Row]]


def _format(first: str, path: Path) -> Reader:
    header = first.lstrip("\ufeff").strip()
    if header == "TIMESTAMP,ContextTokens,GeneratedTokens":
        return _azure
    if header.startswith("Timestamp,Model,Request tokens,Response tokens"):
        return _burstgpt
    if header.startswith("{") and '"input_length"' in header:
        return _mooncake
    raise TraceError(
        f"{path} is not a trace I know: it begins with {first[:60]!r}, not with the header of an Azure or BurstGPT CSV"
        " or a line of Mooncake JSON"
    )


def _azure(first: str, file: TextIO, path: Path) -> Iterator[Row]:
    del first
    for line, fields in _csv(file, path):
        yield _row(
            line,
            path,
            lambda f=fields: Row(
                offset_s=datetime.fromisoformat(f[0]).timestamp(),
                prompt_tokens=int(f[1]),
                completion_tokens=int(f[2]),
            ),
        )


def _burstgpt(first: str, file: TextIO, path: Path) -> Iterator[Row]:
    """A call that failed has no response tokens (the data set's own description)."""
    del first
    for line, fields in _csv(file, path):
        yield _row(
            line,
            path,
            lambda f=fields: Row(
                offset_s=float(f[0]),
                model=BURSTGPT_MODELS.get(f[1], f[1]),
                prompt_tokens=int(f[2]),
                completion_tokens=int(f[3]),
                failed=int(f[3]) == 0,
            ),
        )


def _mooncake(first: str, file: TextIO, path: Path) -> Iterator[Row]:
    decoder = msgspec.json.Decoder(_MooncakeRow)
    for line, text in enumerate(itertools.chain((first,), file), 1):
        if text.strip():
            yield _row(line, path, lambda t=text: _mooncake_row(decoder.decode(t)))


def _mooncake_row(record: _MooncakeRow) -> Row:
    return Row(
        offset_s=record.timestamp / 1000,
        prompt_tokens=record.input_length,
        completion_tokens=record.output_length,
        prefix_hashes=tuple(str(block) for block in record.hash_ids[:HASHES_MAX]),
    )


def _csv(file: TextIO, path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        for line, fields in enumerate(csv.reader(file), 2):
            if fields:
                yield line, fields
    except csv.Error as error:
        raise TraceError(f"{path}: {error}") from error


def _row(line: int, path: Path, read: Callable[[], Row]) -> Row:
    try:
        row = read()
    except (ValueError, IndexError, msgspec.DecodeError) as error:
        raise TraceError(f"{path}, line {line}: {error}") from error
    if row.prompt_tokens < 0 or row.completion_tokens < 0:
        raise TraceError(f"{path}, line {line}: a negative number of tokens")
    return row


def _from_zero(rows: list[Row]) -> list[Row]:
    start = rows[0].offset_s
    return [replace(row, offset_s=max(0.0, row.offset_s - start)) for row in rows]
