"""``python -m agent invoice``: an invoice as a file on disk, taken part by part and checked against its hash."""

import base64
import hashlib
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from nats.aio.msg import Msg

from agent import console

SIGNAL: Final = "get_invoice"
# A file that has changed while it was read is another one: begin again, but not for ever.
ATTEMPTS_MAX: Final = 3
Ask = Callable[[str, bytes], Awaitable[Msg]]


async def fetch(
    invoice: str, *, wanted: str, out: Path | None, data_dir: Path, url: str | None, user: str | None
) -> int:
    """Write an invoice, by its id or number, to ``out`` (its own name, if None); the exit status."""
    try:
        async with console.asking(data_dir, url, user=user) as ask:
            for _ in range(ATTEMPTS_MAX):
                found = await _whole(ask, {"invoice_id": invoice, "format": wanted})
                if isinstance(found, str):
                    return console.complain(found)
                name, content, sha256 = found
                if hashlib.sha256(content).hexdigest() == sha256:
                    return _write(out or Path(Path(name).name), content)
    except console.Unanswered as error:
        return console.complain(str(error))
    return console.complain("the file changes while it is read; try again")


async def _whole(ask: Ask, body: dict[str, Any]) -> tuple[str, bytes, str] | str:
    """Name, content and hash of the file, or why there is none."""
    content, cursor = b"", None
    while True:
        reply = json.loads((await ask(SIGNAL, json.dumps(body | {"cursor": cursor}).encode())).data)
        if "error" in reply:
            return f"{reply['error'].get('field')}: {reply['error']['message']}"
        file = reply["file"]
        part = file["content"]
        content += base64.b64decode(part) if file["encoding"] == "base64" else part.encode()
        cursor = file["next_cursor"]
        if cursor is None:
            return file["filename"], content, file["sha256"]


def _write(path: Path, content: bytes) -> int:
    try:
        path.write_bytes(content)
    except OSError as error:
        return console.complain(f"cannot write {path}: {error.strerror}")
    sys.stdout.write(f"{path}: {len(content)} bytes\n")
    return 0
