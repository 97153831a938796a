"""Every change by a person or a policy leaves an entry in the org's audit trail, in the transaction that makes it."""

import hashlib
from typing import Any, Final

import msgspec

from handlers.context import Caller
from store import audit as audit_store
from store import budgets as budget_store
from store.audit import AuditRow
from store.pool import Connection

_ENCODE = msgspec.json.Encoder(order="deterministic").encode
# Two of these, escaped as text in JSON, still fit a page: an entry must never be too large to be read or exported.
CHANGE_BYTES_MAX: Final = 150_000


async def record(
    connection: Connection,
    caller: Caller,
    *,
    action: str,
    entity: str,
    entity_id: str,
    before: object,
    after: object,
    reason: str | None = None,
) -> int:
    """Append an entry and return its number. Call it last in a transaction: the head is the last lock of all (R1).

    ``action`` is what was done (``created``, ``updated``, ``deleted``, ``approved``), ``entity`` to what (``budget``);
    ``before`` and ``after`` are structs or plain JSON, None where there is none. Never pass a secret.
    Of what is larger than ``CHANGE_BYTES_MAX`` as JSON the entry keeps its size and SHA-256.
    """
    seq, previous = await audit_store.lock_head(connection, caller.org)
    at = await budget_store.clock(connection)
    entry: dict[str, Any] = {
        "org": caller.org,
        "seq": seq + 1,
        "at": at,
        "actor": caller.actor,
        "action": action,
        "entity": entity,
        "entity_id": entity_id,
        "before": _bounded(before),
        "after": _bounded(after),
        "reason": reason,
    }
    content = _ENCODE(entry).decode()
    row = AuditRow(
        org_id=caller.org,
        seq=seq + 1,
        at=at,
        actor=caller.actor,
        action=action,
        entity=entity,
        entity_id=entity_id,
        content=content,
        previous_hash=previous,
        hash=audit_store.chained(previous, content),
    )
    await audit_store.append(connection, row)
    return row.seq


def _bounded(state: object) -> msgspec.Raw:
    text = _ENCODE(state)
    if len(text) > CHANGE_BYTES_MAX:
        text = _ENCODE({"omitted_bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()})
    return msgspec.Raw(text)
