"""Reading, exporting and verifying the audit trail: ``get_audit_trail``."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from .base import Name, Reply, Request, Text, Time

SEQ_MAX = 2**63 - 1
Seq = Annotated[int, Meta(ge=0, le=SEQ_MAX, description="An entry's number in the org's chain, from 1; 0: none.")]
HashText = Annotated[
    str, Meta(pattern="^([0-9a-f]{64})?$", description="A SHA-256 in hexadecimal; empty before the first entry.")
]
Problem = Literal[
    "entry_missing",
    "link_broken",
    "hash_differs",
    "column_differs",
    "tail_missing",
    "head_differs",
    "not_as_expected",
]


class AuditHead(Reply, frozen=True, kw_only=True):
    """The end of a chain: whoever writes it down can tell later whether everything up to it is still the same."""

    seq: Seq
    hash: HashText


class ExpectedHead(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A ``head`` of an earlier reply, written down outside the system."""

    seq: Annotated[int, Meta(ge=1, le=SEQ_MAX)]
    hash: Annotated[str, Meta(pattern="^[0-9a-f]{64}$(?!\\n)", description="A SHA-256 in hexadecimal.")]


class GetAuditTrail(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Entries newest first; or whole lines of the export, oldest first (``format``); or a check (``verify``).

    The export and the check are of the whole chain, so they take no filter. [``start``, ``end``) is half-open. A check
    of a very long chain is answered in parts: send the same again with ``next_cursor`` as ``cursor``.
    """

    entity: Name | None = None
    entity_id: Name | None = None
    actor: Name | None = None
    action: Name | None = None
    start: Time | None = None
    end: Time | None = None
    format: Literal["entries", "jsonl"] = "entries"
    after_seq: Annotated[int, Meta(ge=0, le=SEQ_MAX, description="Export only what comes after this entry.")] = 0
    verify: bool = False
    expected_head: ExpectedHead | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class AuditEntry(Reply, frozen=True, kw_only=True):
    """One change. ``before`` and ``after`` are what changed, as far as they tell it; None where there was nothing.

    ``intact`` is whether the entry matches its own hash; that nothing is missing around it is for ``verify``.
    """

    seq: int
    at: Time
    actor: str
    action: str
    entity: str
    entity_id: str
    before: Any
    after: Any
    reason: str | None
    previous_hash: str
    hash: str
    intact: bool


class Verification(Reply, frozen=True, kw_only=True):
    """The chain recomputed from its entries, in one snapshot.

    ``complete`` is false where there is more to check. ``ok``: nothing wrong so far. ``entries``: how many were
    checked, all parts together. ``first_bad_seq`` is the first entry that is wrong or missing; of
    ``not_as_expected`` the entry of ``expected_head``, at or before which everything was written anew.
    """

    ok: bool
    complete: bool
    entries: int
    head_seq: int
    head_hash: str
    first_bad_seq: int | None = None
    problem: Problem | None = None
    detail: str | None = None


class AuditTrail(Reply, frozen=True, kw_only=True):
    """``entries``, or ``jsonl`` (whole lines, for a file), or ``verification``, as asked; ``head`` is its end."""

    head: AuditHead
    entries: list[AuditEntry]
    jsonl: str | None = None
    verification: Verification | None = None
    next_cursor: str | None = None

    @property
    def verbatim(self) -> bool:
        """Lines for a file are what was hashed, to the byte."""
        return self.jsonl is not None
