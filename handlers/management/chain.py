"""Whether entries are a chain: pure, the same for rows of the database and for lines of an exported file."""

import re
from datetime import datetime
from typing import Final

import msgspec

from schemas.audit import Problem
from store.audit import AuditRow, chained

_LINE: Final = re.compile(rb'\{"hash":"([0-9a-f]{64})","previous_hash":"((?:[0-9a-f]{64})?)","entry":(\{.*\})\}')


class Content(msgspec.Struct, frozen=True):
    """What an entry's content says. The columns beside it are for searching, and must say the same."""

    org: str
    seq: int
    at: datetime
    actor: str
    action: str
    entity: str
    entity_id: str
    before: msgspec.Raw
    after: msgspec.Raw
    reason: str | None


_DECODER: Final = msgspec.json.Decoder(Content)


def content_of(text: str) -> Content | None:
    """What a content says, None where it is damaged beyond reading."""
    try:
        return _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


class Broken(Exception):
    """The first thing that is wrong with a chain."""

    def __init__(self, problem: Problem, seq: int, detail: str) -> None:
        super().__init__(detail)
        self.problem: Problem = problem
        self.seq = seq
        self.detail = detail


class Chain:
    """Follows a chain entry by entry, from its beginning or from a link that was followed before."""

    def __init__(self, *, seq: int = 0, hash_: bytes = b"") -> None:
        self.seq: int = seq
        self.hash: bytes = hash_

    def follow(self, row: AuditRow) -> None:
        """Take the next entry. Raises Broken and stays where it was."""
        if row.seq != self.seq + 1:
            raise Broken("entry_missing", self.seq + 1, f"entry {row.seq} follows entry {self.seq}")
        if row.previous_hash != self.hash:
            raise Broken("link_broken", row.seq, "the hash before it is not that of the entry before it")
        check_entry(row)
        self.seq, self.hash = row.seq, row.hash

    def end(self, *, seq: int, hash_: bytes) -> None:
        """There are no more entries. Raises Broken unless the chain's head, which is kept apart, says the same."""
        if seq > self.seq:
            raise Broken("tail_missing", self.seq + 1, f"the head says there are {seq} entries")
        if (seq, hash_) != (self.seq, self.hash):
            raise Broken("head_differs", min(seq + 1, max(self.seq, 1)), "the head is not that of the last entry")


def check_entry(row: AuditRow) -> None:
    """Check an entry against its own hash and columns. Raises Broken."""
    if chained(row.previous_hash, row.content) != row.hash:
        raise Broken("hash_differs", row.seq, "the content is not what was hashed")
    content = content_of(row.content)
    said = None if content is None else (content.org, content.seq, content.at, content.actor, content.action)
    if content is None or said != (row.org_id, row.seq, row.at, row.actor, row.action):
        raise Broken("column_differs", row.seq, "the columns do not say what the content says")
    if (content.entity, content.entity_id) != (row.entity, row.entity_id):
        raise Broken("column_differs", row.seq, "the columns do not say what the content says")


def line_of(row: AuditRow) -> str:
    """An entry as a line of an export, without the newline: the content stands in it to the byte."""
    return f'{{"hash":"{row.hash.hex()}","previous_hash":"{row.previous_hash.hex()}","entry":{row.content}}}'


def row_of(line: bytes) -> AuditRow:
    """The entry of a line. Raises ValueError where it is none."""
    found = _LINE.fullmatch(line)
    text = found[3].decode() if found is not None else ""
    content = content_of(text)
    if found is None or content is None:
        raise ValueError("is not a line of an export")
    return AuditRow(
        org_id=content.org,
        seq=content.seq,
        at=content.at,
        actor=content.actor,
        action=content.action,
        entity=content.entity,
        entity_id=content.entity_id,
        content=text,
        previous_hash=bytes.fromhex(found[2].decode()),
        hash=bytes.fromhex(found[1].decode()),
    )
