"""``python -m agent audit``: exporting the audit trail over the bus, and checking an exported file alone."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent import console
from handlers.management.chain import Broken, Chain, row_of

PAGE_ENTRIES: Final = 1000
# No entry is nearly as long; a file without line ends is refused piece by piece instead of read whole.
LINE_BYTES_MAX: Final = 8_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCheck:
    """What a file holds. ``first_seq`` above 1: it continues an earlier file, whose end it does not prove."""

    ok: bool
    entries: int
    first_seq: int
    head_seq: int
    head_hash: str
    problem: str | None = None
    first_bad_seq: int | None = None
    detail: str | None = None


async def export(*, data_dir: Path, url: str | None, after_seq: int) -> int:
    """Write the trail after an entry to standard output, a line for each; the exit status."""
    body: dict[str, Any] = {"format": "jsonl", "limit": PAGE_ENTRIES, "after_seq": after_seq}
    try:
        async with console.asking(data_dir, url) as ask:
            while True:
                reply = await ask("get_audit_trail", json.dumps(body).encode())
                page: dict[str, Any] = json.loads(reply.data)
                if "error" in page:
                    return console.complain(page["error"]["message"])
                sys.stdout.write(page["jsonl"])
                if page["next_cursor"] is None:
                    return 0
                body["cursor"] = page["next_cursor"]
    except console.Unanswered as error:
        return console.complain(str(error))


def verify(path: Path, *, head: str | None) -> int:
    """Check a file and say what it holds; the exit status is 1 where something is wrong with it."""
    expected: tuple[int, str] | None = None
    if head is not None:
        seq, _, hash_ = head.partition(":")
        if not seq.isdecimal() or not hash_:
            return console.complain("--head is SEQ:HASH, as get_audit_trail replied it")
        expected = (int(seq), hash_.lower())
    try:
        found = verify_file(path, expected=expected)
    except OSError as error:
        return console.complain(f"cannot read {path}: {error.strerror}")
    if not found.ok:
        return console.complain(f"{path}: entry {found.first_bad_seq}: {found.problem}: {found.detail}")
    sys.stdout.write(f"{path}: {found.entries} entries from {found.first_seq} on are sound\n")
    sys.stdout.write(f"head {found.head_seq}:{found.head_hash}\n")
    return 0


def verify_file(path: Path, *, expected: tuple[int, str] | None = None) -> FileCheck:
    """Follow the chain in an exported file; ``expected`` is a head that was written down. Raises OSError."""
    trail = _Trail()
    broken: Broken | None = None
    try:
        with path.open("rb") as file:
            for line in iter(lambda: file.readline(LINE_BYTES_MAX), b""):
                trail.take(line, watched=0 if expected is None else expected[0])
        trail.end(expected)
    except Broken as error:
        broken = error
    return FileCheck(
        ok=broken is None,
        entries=trail.chain.seq - trail.first_seq + 1 if trail.first_seq else 0,
        first_seq=trail.first_seq,
        head_seq=trail.chain.seq,
        head_hash=trail.chain.hash.hex(),
        problem=None if broken is None else broken.problem,
        first_bad_seq=None if broken is None else broken.seq,
        detail=None if broken is None else broken.detail,
    )


class _Trail:
    """The lines of a file as far as they were read. Its first line says where the chain is taken up."""

    def __init__(self) -> None:
        self.chain = Chain()
        self.first_seq = 0
        self._watched: str | None = None

    def take(self, line: bytes, *, watched: int) -> None:
        """Follow one line. Raises Broken."""
        try:
            row = row_of(line.removesuffix(b"\n"))
        except ValueError as error:
            raise Broken("hash_differs", self.chain.seq + 1, f"the line {error}") from None
        if not self.first_seq and row.seq > 1:
            self.chain = Chain(seq=row.seq - 1, hash_=row.previous_hash)
        self.chain.follow(row)
        self.first_seq = self.first_seq or row.seq
        if row.seq == watched:
            self._watched = row.hash.hex()

    def end(self, expected: tuple[int, str] | None) -> None:
        """Compare with what was written down. Raises Broken."""
        if expected is not None and self._watched != expected[1]:
            raise Broken("not_as_expected", expected[0], "the file is sound, but not the chain of the expected head")
