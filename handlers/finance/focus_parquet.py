"""FOCUS rows as one Parquet file in memory. Decimals are decimals: they come as text and are never floats."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from arro3.core import Array, DataType, Table
from arro3.io import write_parquet

from handlers.finance.focus_columns import FocusVersion, columns_of
from handlers.finance.focus_export import scale_of

_PRECISION: Final = 38
_TIME: Final = DataType.timestamp("us", tz="UTC")


def parquet_file(
    rows: Sequence[Sequence[str | None]], columns: Sequence[str], version: FocusVersion, *, told: Mapping[str, Any]
) -> bytes:
    """A whole Parquet file of ``rows``, values in the order of ``columns``; ``told`` goes into its metadata as JSON."""
    known = columns_of(version)
    arrays: dict[str, Array] = {}
    for i, name in enumerate(columns):
        column = known.get(name)
        kind = "decimal" if name == "x_RequestCount" else "string" if column is None else column.type
        texts = Array([row[i] for row in rows], DataType.string())
        arrays[name] = texts if kind in ("string", "json") else texts.cast(_type(kind, name))
    file = io.BytesIO()
    notes = {"FocusVersion": version, "FocusMetadata": msgspec.json.encode(told).decode()}
    write_parquet(Table(arrays), file, compression="zstd(3)", key_value_metadata=notes)
    return file.getvalue()


def _type(kind: str, name: str) -> DataType:
    return _TIME if kind == "time" else DataType.decimal128(_PRECISION, scale_of(name))
