"""Rows of ``policy_document``: every document of policies that changed an org's budgets, as it was given."""

from dataclasses import dataclass
from datetime import datetime

from store.pool import Connection
from store.sql import queries

_SQL = queries("policies")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDocumentRow:
    """One applied document; ``version`` counts from 1 in each org, ``sha256`` is the text's digest in hex."""

    org_id: str
    version: int
    document: str
    sha256: str
    applied_by: str
    applied_at: datetime


async def latest(connection: Connection, org: str) -> PolicyDocumentRow | None:
    """The document applied last."""
    record = await connection.fetchrow(_SQL["latest"], org)
    return None if record is None else PolicyDocumentRow(**dict(record))


async def add(
    connection: Connection, org: str, *, document: str, sha256: str, applied_by: str, applied_at: datetime
) -> int:
    """Keep a document and return its version. The exclusive catalogue lock is held, so versions have no gaps."""
    return await connection.fetchval(_SQL["add"], org, document, sha256, applied_by, applied_at)
