"""``get_audit_trail``: reading, exporting and verifying the chain. Writes nothing; entries are handlers.audit's."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated, Final, Literal

import msgspec

from handlers.context import Context
from handlers.cursor import PAGE_BYTES_MAX, decode_cursor, encode_cursor, page
from handlers.management.chain import Broken, Chain, check_entry, content_of, line_of
from handlers.moment import in_utc
from schemas.audit import (
    SEQ_MAX,
    AuditEntry,
    AuditHead,
    AuditTrail,
    ExpectedHead,
    GetAuditTrail,
    HashText,
    Seq,
    Verification,
)
from schemas.errors import invalid
from signals import audit as signals
from signals import route
from store import audit as audit_store
from store.audit import AuditRow
from store.pool import Connection

# More than a page takes, so that a page that is cut for its bytes is known to have a successor.
_READ_BYTES_MAX: Final = 2 * PAGE_BYTES_MAX
_FILTERS: Final = ("entity", "entity_id", "actor", "action", "start", "end")
_OF_USERS: Final = ("user", "identity")
_Older = tuple[Literal["before"], Seq]
_Newer = tuple[Literal["after"], Seq]
_Followed = tuple[Literal["followed"], Seq, HashText, Annotated[int, msgspec.Meta(ge=0, le=SEQ_MAX)]]


async def get_audit_trail(ctx: Context, request: GetAuditTrail) -> AuditTrail:
    """Entries newest first, whole lines of the export oldest first, or the result of following the chain."""
    _check(request)
    if request.verify:
        return await _verified(ctx, request)
    return await (_exported(ctx, request) if request.format == "jsonl" else _listed(ctx, request))


def _check(request: GetAuditTrail) -> None:
    """Refuse what would be answered for less than was asked."""
    whole = "verify" if request.verify else "jsonl" if request.format == "jsonl" else None
    for name in _FILTERS:
        if whole is not None and getattr(request, name) is not None:
            raise invalid(f"{whole} is of the whole chain: it takes no filter", field=name)
    if request.verify and request.format != "entries":
        raise invalid("verify replies no lines", field="format")
    if request.expected_head is not None and not request.verify:
        raise invalid("needs verify: true", field="expected_head")
    if request.after_seq and (request.verify or request.format != "jsonl"):
        raise invalid("is for the export only (format: jsonl)", field="after_seq")
    start, end = in_utc(request.start, "start"), in_utc(request.end, "end")
    if start is not None and end is not None and start >= end:
        raise invalid("is not after start", field="end")


async def _listed(ctx: Context, request: GetAuditTrail) -> AuditTrail:
    position = decode_cursor(request.cursor, _Older)
    async with _snapshot(ctx) as connection:
        rows = await audit_store.listing(
            connection,
            ctx.org,
            before_seq=SEQ_MAX if position is None else position[1],
            entity=request.entity,
            entity_ids=_forms(ctx, request.entity_id, named=request.entity in _OF_USERS),
            actors=_forms(ctx, request.actor, named=True),
            action=request.action,
            start=request.start,
            end=request.end,
            limit=request.limit + 1,
            bytes_max=_READ_BYTES_MAX,
        )
        head = await _head(connection, ctx.org)
    entries, cursor = page([_shown(row) for row in rows], limit=request.limit, key=lambda entry: ("before", entry.seq))
    return AuditTrail(head=head, entries=entries, next_cursor=cursor)


def _forms(ctx: Context, text: str | None, *, named: bool) -> list[str] | None:
    """What the trail may call somebody, or something, that is looked for; names stand in it as surrogates."""
    if text is None:
        return None
    return [text, ctx.services.vault.surrogate(ctx.org, text)] if named else [text]


async def _exported(ctx: Context, request: GetAuditTrail) -> AuditTrail:
    position = decode_cursor(request.cursor, _Newer)
    after = request.after_seq if position is None else position[1]
    async with _snapshot(ctx) as connection:
        rows = await audit_store.chain(
            connection, ctx.org, after_seq=after, limit=request.limit + 1, bytes_max=_READ_BYTES_MAX
        )
        head = await _head(connection, ctx.org)
    lines = [(row.seq, line_of(row) + "\n") for row in rows]
    taken, cursor = page(lines, limit=request.limit, key=lambda line: ("after", line[0]))
    return AuditTrail(head=head, entries=[], jsonl="".join(text for _, text in taken), next_cursor=cursor)


async def _verified(ctx: Context, request: GetAuditTrail) -> AuditTrail:
    position = decode_cursor(request.cursor, _Followed)
    _, seq, hash_, before = position or ("followed", 0, "", 0)
    chain = Chain(seq=seq, hash_=bytes.fromhex(hash_))
    broken: Broken | None = None
    complete = True
    async with _snapshot(ctx) as connection:
        head = await _head(connection, ctx.org)
        try:
            complete = await _follow(ctx, connection, chain)
            if complete:
                chain.end(seq=head.seq, hash_=bytes.fromhex(head.hash))
                await _compare(connection, ctx.org, chain, request.expected_head)
        except Broken as error:
            broken, complete = error, True
    entries = before + chain.seq - seq
    found = Verification(
        ok=broken is None,
        complete=complete,
        entries=entries,
        head_seq=head.seq,
        head_hash=head.hash,
        first_bad_seq=None if broken is None else broken.seq,
        problem=None if broken is None else broken.problem,
        detail=None if broken is None else broken.detail,
    )
    cursor = None if complete else encode_cursor("followed", chain.seq, chain.hash.hex(), entries)
    return AuditTrail(head=head, entries=[], verification=found, next_cursor=cursor)


async def _follow(ctx: Context, connection: Connection, chain: Chain) -> bool:
    """Follow the chain in batches; whether its end was reached. Raises Broken."""
    limits = ctx.services.limits
    until = chain.seq + limits.audit_verify_entries_max
    while chain.seq < until:
        size = min(limits.audit_batch_max, until - chain.seq)
        rows = await audit_store.chain(
            connection, ctx.org, after_seq=chain.seq, limit=size, bytes_max=limits.audit_batch_bytes_max
        )
        for row in rows:
            chain.follow(row)
        if not rows:
            return True
    return False


async def _compare(connection: Connection, org: str, chain: Chain, expected: ExpectedHead | None) -> None:
    """Compare with what somebody wrote down. The entry's stored hash is the computed one: the chain was followed."""
    if expected is None:
        return
    if expected.seq > chain.seq:
        raise Broken("not_as_expected", chain.seq + 1, "the entry of the expected head is not there")
    if (await audit_store.hash_at(connection, org, expected.seq)).hex() != expected.hash:
        raise Broken("not_as_expected", expected.seq, "the chain is sound, but not the one of the expected head")


@contextlib.asynccontextmanager
async def _snapshot(ctx: Context) -> AsyncGenerator[Connection]:
    async with (
        ctx.database.connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield connection


async def _head(connection: Connection, org: str) -> AuditHead:
    seq, hash_ = await audit_store.head(connection, org)
    return AuditHead(seq=seq, hash=hash_.hex())


def _shown(row: AuditRow) -> AuditEntry:
    content = content_of(row.content)
    return AuditEntry(
        seq=row.seq,
        at=row.at,
        actor=row.actor,
        action=row.action,
        entity=row.entity,
        entity_id=row.entity_id,
        before=None if content is None else content.before,
        after=None if content is None else content.after,
        reason=None if content is None else content.reason,
        previous_hash=row.previous_hash.hex(),
        hash=row.hash.hex(),
        intact=_intact(row),
    )


def _intact(row: AuditRow) -> bool:
    try:
        check_entry(row)
    except Broken:
        return False
    return True


ROUTES = (route(signals.GET_AUDIT_TRAIL, get_audit_trail),)
