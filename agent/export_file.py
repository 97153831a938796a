"""``python -m agent export``: usage and cost into one file on disk, part by part over the bus, in constant memory.

The file appears under its name when it is whole. Beside a FOCUS file its metadata is written, which the specification
wants to be apart from the data. A Parquet file is gathered as an Arrow stream first, because its parts are files.
"""

import base64
import contextlib
import io
import json
import sys
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import IO, Any, Final, Protocol

from arro3.core import Table
from arro3.io import read_ipc_stream, read_parquet, write_ipc_stream, write_parquet
from nats.aio.msg import Msg

from agent import console

SIGNAL: Final = "export_usage"
ROW_GROUP_ROWS: Final = 50_000
# What ends an Arrow stream: a message without a body.
_END: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"
Ask = Callable[[str, bytes], Awaitable[Msg]]


class Sink(Protocol):
    """Where parts go."""

    def add(self, content: str) -> None:
        """Take one part."""
        ...

    def close(self, notes: dict[str, str]) -> None:
        """The last part was taken; ``notes`` belong into the file, where it can hold them."""
        ...


async def export(body: dict[str, Any], *, out: Path, data_dir: Path, url: str | None, user: str | None) -> int:
    """Ask for every part of the file and write it; the exit status."""
    try:
        async with console.asking(data_dir, url, user=user) as ask:
            return await _export(ask, body, out)
    except console.Unanswered as error:
        return console.complain(str(error))
    except OSError as error:
        return console.complain(f"cannot write {out}: {error.strerror}")


async def _export(ask: Ask, body: dict[str, Any], out: Path) -> int:
    rows = parts = 0
    metadata: dict[str, Any] | None = None
    left_out: dict[str, Any] | None = None
    with _unfinished(out) as path, path.open("wb") as file:
        sink: Sink = _Parquet(file, out) if body["format"] == "focus-parquet" else _Text(file)
        cursor: str | None = None
        while parts == 0 or cursor is not None:
            reply = await ask(SIGNAL, json.dumps(body | ({"cursor": cursor} if cursor else {})).encode())
            page: dict[str, Any] = json.loads(reply.data)
            if "error" in page:
                field = page["error"].get("field")
                return console.complain(f"{field}: {page['error']['message']}" if field else page["error"]["message"])
            sink.add(page["content"])
            rows, parts, cursor = rows + page["rows"], parts + 1, page["next_cursor"]
            metadata, left_out = metadata or page["metadata"], left_out or page["left_out"]
        sink.close({} if metadata is None else {"FocusMetadata": json.dumps(metadata)})
        file.flush()
        path.replace(out)
    if metadata is not None:
        described = out.with_name(f"{out.name}.metadata.json")
        described.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{out}: {rows} rows\n")
    if left_out is not None and left_out["requests"]:
        models = ", ".join(f"{model['provider']}/{model['model']}" for model in left_out["models"])
        sys.stdout.write(f"left out, because they have no price: {left_out['requests']} requests ({models})\n")
    return 0


@contextlib.contextmanager
def _unfinished(out: Path) -> Generator[Path]:
    """A file beside ``out``, removed unless it has become ``out``."""
    path = out.with_name(f"{out.name}.part")
    try:
        yield path
    finally:
        for left in (path, _gathered(out)):
            left.unlink(missing_ok=True)


def _gathered(out: Path) -> Path:
    return out.with_name(f"{out.name}.arrows")


class _Text:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def add(self, content: str) -> None:
        self._file.write(content.encode())

    def close(self, notes: dict[str, str]) -> None:
        """Text holds no notes."""


class _Parquet:
    """Parts are read and kept as one Arrow stream on disk, which becomes a Parquet file in the end, batch by batch."""

    def __init__(self, file: IO[bytes], out: Path) -> None:
        self._file = file
        self._gathered = _gathered(out)
        self._stream = self._gathered.open("wb")
        self._schema_bytes: int | None = None

    def add(self, content: str) -> None:
        table = read_parquet(io.BytesIO(base64.b64decode(content))).read_all()
        if self._schema_bytes is None:
            # Every part has the same schema, so what comes before its batches is the same bytes.
            head = _stream_of(Table.from_batches([], schema=table.schema))
            self._schema_bytes = len(head) - len(_END)
            self._stream.write(head[: self._schema_bytes])
        self._stream.write(_stream_of(table)[self._schema_bytes : -len(_END)])

    def close(self, notes: dict[str, str]) -> None:
        self._stream.write(_END)
        self._stream.close()
        write_parquet(
            read_ipc_stream(self._gathered),
            self._file,
            compression="zstd(3)",
            max_row_group_size=ROW_GROUP_ROWS,
            key_value_metadata=notes,
        )


def _stream_of(table: Table) -> bytes:
    file = io.BytesIO()
    write_ipc_stream(table, file)
    return file.getvalue()
