"""The audit trail: what it shows, that nothing can be changed unnoticed, and that it can be checked without us."""

import asyncio
import hashlib
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from agent.audit_file import verify_file
from handlers import audit
from handlers.context import Caller, Context, Limits, Services
from handlers.management.audit import get_audit_trail
from schemas.audit import AuditEntry, AuditHead, AuditTrail, ExpectedHead, GetAuditTrail, Verification
from tests.support.services import ORG, context, refusal, services_for

DOCS: Final = Path(__file__).parents[2] / "docs" / "audit.md"
COLUMNS: Final = ("seq", "at", "actor", "action", "entity", "entity_id", "content", "previous_hash", "hash", "org_id")


async def record(services: Services, n: int = 0, *, org: str = ORG, **given: Any) -> int:
    values: dict[str, Any] = {
        "action": "updated",
        "entity": "budget",
        "entity_id": f"b{n}",
        "before": {"limit": str(n)},
        "after": {"limit": str(n + 1), "name": 'größer "quoted" \\ {}'},
        "reason": "need it\nnow",
    } | given
    caller = Caller(org, values.pop("actor", "alice"), frozenset())
    async with services.database.transaction() as connection:
        return await audit.record(connection, caller, **values)


async def ask(ctx: Context, **request: Any) -> AuditTrail:
    return await get_audit_trail(ctx, GetAuditTrail(**request))


async def verified(ctx: Context, **request: Any) -> Verification:
    """The last part's answer."""
    cursor: str | None = None
    while True:
        reply = await ask(ctx, verify=True, cursor=cursor, **request)
        assert reply.verification is not None
        cursor = reply.next_cursor
        if cursor is None:
            return reply.verification


async def exported(ctx: Context, **request: Any) -> str:
    text, cursor = "", None
    while True:
        reply = await ask(ctx, format="jsonl", cursor=cursor, **request)
        assert reply.jsonl is not None and reply.entries == []
        text, cursor = text + reply.jsonl, reply.next_cursor
        if cursor is None:
            return text


@pytest_asyncio.fixture
async def small(database_url: str) -> AsyncIterator[Context]:
    """A context whose checks read two entries at a time and three at once, so that every boundary is crossed."""
    async with services_for(database_url, limits=Limits(audit_batch_max=2, audit_verify_entries_max=3)) as services:
        yield context(services)


@asynccontextmanager
async def unguarded(services: Services) -> AsyncGenerator[Any]:
    """What somebody who owns the database can do: every trigger is off."""
    async with services.database.connection() as connection, connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        yield connection


# --- reading


async def test_an_entry_says_who_did_what_when_and_why(ctx: Context, services: Services) -> None:
    since = services.clock() - timedelta(seconds=5)
    await record(services, 7)
    reply = await ask(ctx)
    (entry,) = reply.entries
    assert (entry.seq, entry.actor, entry.action, entry.entity, entry.entity_id) == (
        1,
        "alice",
        "updated",
        "budget",
        "b7",
    )
    assert since < entry.at < services.clock() + timedelta(seconds=5)
    assert msgspec.json.decode(entry.before) == {"limit": "7"}
    assert msgspec.json.decode(entry.after) == {"limit": "8", "name": 'größer "quoted" \\ {}'}
    assert (entry.reason, entry.previous_hash, entry.intact) == ("need it\nnow", "", True)
    assert reply.head == AuditHead(seq=1, hash=entry.hash)
    msgspec.json.encode(reply)


async def test_an_empty_trail_is_sound(ctx: Context) -> None:
    assert await ask(ctx) == AuditTrail(head=AuditHead(seq=0, hash=""), entries=[])
    assert await exported(ctx) == ""
    assert await verified(ctx) == Verification(ok=True, complete=True, entries=0, head_seq=0, head_hash="")


async def test_entries_come_newest_first_in_pages(ctx: Context, services: Services) -> None:
    for n in range(7):
        await record(services, n)
    seen: list[int] = []
    cursor: str | None = None
    for _ in range(3):
        reply = await ask(ctx, limit=3, cursor=cursor)
        seen += [entry.seq for entry in reply.entries]
        cursor = reply.next_cursor
    assert (seen, cursor) == ([7, 6, 5, 4, 3, 2, 1], None)


async def test_filters_find_what_they_name(ctx: Context, services: Services) -> None:
    await record(services, 1)
    await record(services, 2, actor="bob")
    await record(services, 1, action="deleted")
    await record(services, 3, entity="brake", entity_id="org/*")
    entries = (await ask(ctx)).entries
    at = {entry.seq: entry.at for entry in entries}
    for filters, found in (
        ({"entity": "budget"}, [3, 2, 1]),
        ({"entity": "budget", "entity_id": "b1"}, [3, 1]),
        ({"entity_id": "org/*"}, [4]),
        ({"actor": "bob"}, [2]),
        ({"actor": "nobody"}, []),
        ({"action": "deleted", "entity": "budget"}, [3]),
        ({"start": at[2]}, [4, 3, 2]),
        ({"end": at[2]}, [1]),
        ({"start": at[2], "end": at[4]}, [3, 2]),
    ):
        assert [entry.seq for entry in (await ask(ctx, **filters)).entries] == found, filters


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"cursor": "x"}, "cursor"),
        ({"verify": True, "entity": "budget"}, "entity"),
        ({"verify": True, "format": "jsonl"}, "format"),
        ({"format": "jsonl", "actor": "alice"}, "actor"),
        ({"expected_head": ExpectedHead(seq=1, hash="0" * 64)}, "expected_head"),
        ({"after_seq": 3}, "after_seq"),
        ({"after_seq": 3, "verify": True}, "after_seq"),
    ],
)
async def test_what_cannot_be_answered_as_asked_is_refused(ctx: Context, request_: dict[str, Any], field: str) -> None:
    error = await refusal(ask(ctx, **request_))
    assert (error.code, error.field) == ("invalid_request", field)


async def test_a_cursor_is_for_what_it_came_from(ctx: Context, services: Services) -> None:
    for n in range(3):
        await record(services, n)
    for request in ({}, {"format": "jsonl"}):
        cursor = (await ask(ctx, limit=1, **request)).next_cursor
        assert cursor is not None
        for other in ({"verify": True}, {"format": "jsonl"} if not request else {}):
            assert (await refusal(ask(ctx, cursor=cursor, **other))).field == "cursor"
    now = services.clock()
    assert (await refusal(ask(ctx, start=now, end=now))).field == "end"


async def test_entries_of_any_size_can_be_listed_exported_and_verified(ctx: Context, services: Services) -> None:
    quotes = '"\\' * 15_000
    for n in range(12):
        await record(services, n, before={"x": quotes}, after={"x": quotes})
    await record(services, 99, before={"x": "y" * 3_000_000}, after=None)
    listed: list[AuditEntry] = []
    for request in ({"limit": 1000}, {"limit": 1000, "format": "jsonl"}):
        cursor: str | None = None
        pages = 0
        while pages == 0 or cursor is not None:
            reply = await ask(ctx, cursor=cursor, **request)
            assert len(msgspec.json.encode(reply)) < 1_000_000
            listed += reply.entries
            cursor, pages = reply.next_cursor, pages + 1
        assert pages > 1
    assert [entry.seq for entry in listed] == list(range(13, 0, -1))
    kept = msgspec.json.decode(listed[0].before)
    text = msgspec.json.encode({"x": "y" * 3_000_000})
    assert kept == {"omitted_bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    assert (await verified(ctx)).ok


async def test_an_org_reads_and_verifies_only_its_own(ctx: Context, services: Services) -> None:
    await record(services, 1)
    await record(services, 2, org="other")
    other = context(services, org="other")
    assert [(e.seq, e.entity_id) for e in (await ask(other)).entries] == [(1, "b2")]
    assert '"org":"other"' in await exported(other) and '"b1"' not in await exported(other)
    async with unguarded(services) as connection:
        await connection.execute("UPDATE audit SET actor = 'x' WHERE org_id = 'other'")
    assert (await verified(ctx)).ok
    assert not (await verified(other)).ok


# --- what the database refuses


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'nobody'",
        "UPDATE audit SET content = content",
        "DELETE FROM audit",
        "TRUNCATE audit",
        "TRUNCATE audit CASCADE",
        "INSERT INTO audit SELECT * FROM audit ON CONFLICT (org_id, seq) DO UPDATE SET actor = 'nobody'",
    ],
)
async def test_the_tables_owner_cannot_change_an_entry(services: Services, statement: str) -> None:
    await record(services)
    before = await services.database.fetch("SELECT * FROM audit")
    name = await services.database.fetchval("SELECT 'keeper_of_' || current_database()")
    await services.database.execute(f"CREATE ROLE {name} LOGIN NOSUPERUSER")
    try:
        await services.database.execute(f"ALTER TABLE audit OWNER TO {name}")
        async with services.database.connection() as connection, connection.transaction():
            await connection.execute(f"SET LOCAL ROLE {name}")
            assert await connection.fetchval("SELECT count(*) FROM audit") == 1
            with pytest.raises(asyncpg.RestrictViolationError, match="audit is append-only"):
                async with connection.transaction():
                    await connection.execute(statement)
        assert await services.database.fetch("SELECT * FROM audit") == before
    finally:
        await services.database.execute("ALTER TABLE audit OWNER TO CURRENT_USER")
        await services.database.execute(f"DROP ROLE {name}")


# --- damage by whoever owns the server


async def chain_of(services: Services, count: int) -> None:
    for n in range(count):
        await record(services, n)


def _text_damages(table: str, column: str, key: str, value: str) -> list[str]:
    """Every character replaced, one at a time."""
    found: list[str] = []
    for i, old in enumerate(value):
        new = "x" if old != "x" else "y"
        text = (value[:i] + new + value[i + 1 :]).replace("'", "''")
        found.append(f"UPDATE {table} SET {column} = '{text}' WHERE {key}")
    return found


def _bytes_damages(table: str, column: str, key: str, value: bytes) -> list[str]:
    return [
        f"UPDATE {table} SET {column} = set_byte({column}, {i}, {byte ^ (1 << (i % 8))}) WHERE {key}"
        for i, byte in enumerate(value)
    ]


def _number_damages(table: str, key: str, value: int) -> list[str]:
    return [f"UPDATE {table} SET seq = {value ^ (1 << bit)} WHERE {key}" for bit in range(0, 63)]


def _damages(rows: list[dict[str, Any]], head: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for row in rows:
        key = f"org_id = '{row['org_id']}' AND seq = {row['seq']}"
        for column in COLUMNS:
            value = row[column]
            if column == "at":
                steps = [f"{1 << bit} * interval '1 us'" for bit in range(60)]  # The last are 18,268 years.
                found += [f"UPDATE audit SET at = at + {step} WHERE {key}" for step in steps]
            elif isinstance(value, bytes):
                found += _bytes_damages("audit", column, key, value)
            elif isinstance(value, int):
                found += _number_damages("audit", key, value)
            else:
                found += _text_damages("audit", column, key, value)
    key = f"org_id = '{head['org_id']}'"
    found += _number_damages("audit_head", key, head["seq"])
    found += _text_damages("audit_head", "org_id", key, head["org_id"])
    return found + _bytes_damages("audit_head", "hash", key, head["hash"])


async def test_damage_to_any_single_byte_is_found(services: Services, ctx: Context) -> None:
    """Every byte of every column of every entry, and of the head, changed one at a time with the triggers off."""
    await chain_of(services, 2)
    rows = [dict(row) for row in await services.database.fetch("SELECT * FROM audit ORDER BY seq")]
    (head,) = [dict(row) for row in await services.database.fetch("SELECT * FROM audit_head")]
    damages = _damages(rows, head)
    missed: list[str] = []
    impossible = 0
    for damage in damages:
        try:
            async with unguarded(services) as connection:
                await connection.execute(damage)
        except asyncpg.UniqueViolationError:
            impossible += 1  # The key itself refuses it.
            continue
        found = await verified(ctx)
        if found.ok or found.first_bad_seq not in (1, 2, 3) or found.problem is None:
            missed.append(damage)
        async with unguarded(services) as connection:
            await connection.execute("DELETE FROM audit")
            await connection.execute("DELETE FROM audit_head")
            await connection.executemany(
                "INSERT INTO audit VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)", [tuple(r.values()) for r in rows]
            )
            await connection.execute("INSERT INTO audit_head VALUES ($1, $2, $3)", *head.values())
    assert missed == []
    assert len(damages) > 900 and impossible == 0
    assert (await verified(ctx)).ok


@pytest.mark.parametrize(
    ("damage", "problem", "seq"),
    [
        (("DELETE FROM audit WHERE seq = 4",), "entry_missing", 4),
        (("DELETE FROM audit WHERE seq = 1",), "entry_missing", 1),
        (("DELETE FROM audit WHERE seq >= 6",), "tail_missing", 6),
        (("DELETE FROM audit",), "tail_missing", 1),
        (("DELETE FROM audit_head",), "head_differs", 1),
        (("UPDATE audit_head SET seq = 5",), "head_differs", 6),
        (("UPDATE audit SET content = replace(content, 'b3', 'b4') WHERE seq = 4",), "hash_differs", 4),
        (("UPDATE audit SET actor = 'bob' WHERE seq = 5",), "column_differs", 5),
        (("UPDATE audit SET entity_id = 'b9' WHERE seq = 5",), "column_differs", 5),
        (("UPDATE audit SET at = 'infinity' WHERE seq = 5",), "column_differs", 5),
        (("UPDATE audit SET at = '-infinity' WHERE seq = 5",), "column_differs", 5),
        (("UPDATE audit SET at = '0044-03-15 BC' WHERE seq = 5",), "column_differs", 5),
        (("UPDATE audit SET at = '294276-12-31' WHERE seq = 5",), "column_differs", 5),
        # Two entries change places; then one is taken out and the others close ranks.
        (("UPDATE audit SET seq = seq + 100 WHERE seq IN (3, 4)", "UPDATE audit SET seq = 107 - seq WHERE seq > 100"),
         "link_broken", 3),
        (("DELETE FROM audit WHERE seq = 4", "UPDATE audit SET seq = seq - 1 WHERE seq > 4",
          "UPDATE audit_head SET seq = 6"), "link_broken", 4),
        # An entry that tells another story and has the right hash for it breaks the next link.
        (("UPDATE audit SET content = replace(content, 'alice', 'mallo'), actor = 'mallo' WHERE seq = 2",
          "UPDATE audit SET hash = sha256(previous_hash || convert_to(content, 'UTF8')) WHERE seq = 2"),
         "link_broken", 3),
        # At the end of the chain only the head knows.
        (("UPDATE audit SET content = replace(content, 'alice', 'mallo'), actor = 'mallo' WHERE seq = 7",
          "UPDATE audit SET hash = sha256(previous_hash || convert_to(content, 'UTF8')) WHERE seq = 7"),
         "head_differs", 7),
        (("INSERT INTO audit SELECT org_id, 8, at, actor, action, entity, entity_id, content, hash, hash FROM audit "
          "WHERE seq = 7",), "hash_differs", 8),
    ],
)  # fmt: skip
async def test_damage_is_named_and_located(small: Context, damage: tuple[str, ...], problem: str, seq: int) -> None:
    services = small.services
    await chain_of(services, 7)
    sound = await verified(small)
    assert (sound.ok, sound.entries, sound.head_seq) == (True, 7, 7)
    async with unguarded(services) as connection:
        for statement in damage:
            await connection.execute(statement)
    found = await verified(small)
    assert (found.ok, found.problem, found.first_bad_seq, found.complete) == (False, problem, seq, True)
    assert found.detail


async def rewrite(services: Services, *, until: int) -> None:
    """Forge the whole chain, hashes and head included, as somebody with all rights can."""
    rows = await services.database.fetch("SELECT * FROM audit ORDER BY seq LIMIT $1", until)
    previous = b""
    async with unguarded(services) as connection:
        await connection.execute("DELETE FROM audit WHERE seq > $1", until)
        for row in rows:
            content = row["content"].replace("alice", "mallo")
            hash_ = hashlib.sha256(previous + content.encode()).digest()
            await connection.execute(
                "UPDATE audit SET actor = 'mallo', content = $2, previous_hash = $3, hash = $4 WHERE seq = $1",
                *(row["seq"], content, previous, hash_),
            )
            previous = hash_
        await connection.execute("UPDATE audit_head SET seq = $1, hash = $2", until, previous)


@pytest.mark.parametrize(("until", "bad"), [(7, 5), (3, 4)])
async def test_a_chain_written_anew_is_told_by_a_head_written_down_before(small: Context, until: int, bad: int) -> None:
    services = small.services
    await chain_of(services, 5)
    known = (await ask(small)).head
    expected = ExpectedHead(seq=known.seq, hash=known.hash)
    await chain_of(services, 2)
    assert (await verified(small, expected_head=expected)).ok
    await rewrite(services, until=until)
    assert (await verified(small)).ok, "nothing inside the database can tell"
    found = await verified(small, expected_head=expected)
    assert (found.ok, found.problem, found.first_bad_seq) == (False, "not_as_expected", bad)


async def test_a_listing_marks_what_was_damaged(ctx: Context, services: Services) -> None:
    await chain_of(services, 3)
    async with unguarded(services) as connection:
        await connection.execute("UPDATE audit SET actor = 'bob' WHERE seq = 1")
        await connection.execute("UPDATE audit SET content = 'not json', at = '294276-12-31' WHERE seq = 2")
    newest, middle, oldest = (await ask(ctx)).entries
    assert (newest.intact, middle.intact, oldest.intact) == (True, False, False)
    assert (middle.before, middle.after, middle.reason, middle.entity_id) == (None, None, None, "b1")
    assert "not json" in await exported(ctx)


async def test_a_long_chain_is_verified_in_parts(small: Context) -> None:
    await chain_of(small.services, 7)
    parts: list[tuple[bool, int]] = []
    cursor: str | None = None
    while not parts or cursor is not None:
        reply = await ask(small, verify=True, cursor=cursor)
        assert reply.verification is not None and reply.verification.ok
        parts.append((reply.verification.complete, reply.verification.entries))
        cursor = reply.next_cursor
    assert parts == [(False, 3), (False, 6), (True, 7)]


# --- appending


async def test_four_connections_at_once_append_one_chain_without_a_gap(database_url: str, ctx: Context) -> None:
    async def append(name: str) -> list[int]:
        async with services_for(database_url) as services:
            return [await record(services, n, actor=name) for n in range(25)]

    numbers = await asyncio.gather(*(append(f"agent-{i}") for i in range(4)))
    assert sorted(n for found in numbers for n in found) == list(range(1, 101))
    assert all(found == sorted(found) for found in numbers)
    result = await verified(ctx)
    assert (result.ok, result.entries) == (True, 100)


async def test_what_is_rolled_back_leaves_no_gap(ctx: Context, services: Services) -> None:
    await record(services, 1)
    with pytest.raises(ZeroDivisionError):
        async with services.database.transaction() as connection:
            await audit.record(
                connection, ctx.caller, action="a", entity="e", entity_id="i", before=None, after=None
            )  # fmt: skip
            raise ZeroDivisionError
    assert await record(services, 2) == 2
    assert (await verified(ctx)).ok


async def test_entries_come_in_the_order_of_their_times(ctx: Context, services: Services) -> None:
    await chain_of(services, 5)
    times = [entry.at for entry in (await ask(ctx)).entries]
    assert times == sorted(times, reverse=True)


async def test_verifying_sees_one_moment_while_others_append(small: Context, database_url: str) -> None:
    await chain_of(small.services, 3)
    async with services_for(database_url) as services:
        appending = asyncio.ensure_future(chain_of(services, 30))
        results = [await verified(small) for _ in range(10)]
        await appending
    assert all(result.ok for result in results), results
    assert (await verified(small)).entries == 33


# --- the export, and checking it without us


async def test_an_export_continues_where_the_last_one_ended(ctx: Context, services: Services) -> None:
    await chain_of(services, 5)
    first = await exported(ctx, limit=2)
    await chain_of(services, 2)
    rest = await exported(ctx, after_seq=5)
    assert first + rest == await exported(ctx, limit=1)
    assert [msgspec.json.decode(line)["entry"]["seq"] for line in first.splitlines()] == [1, 2, 3, 4, 5]


async def test_an_exported_file_is_checked_offline(ctx: Context, services: Services, tmp_path: Path) -> None:
    await chain_of(services, 5)
    file = tmp_path / "trail.jsonl"
    file.write_text(await exported(ctx), encoding="utf-8")
    head = (await ask(ctx)).head
    whole = verify_file(file)
    assert (whole.ok, whole.entries, whole.first_seq, whole.head_seq, whole.head_hash) == (True, 5, 1, 5, head.hash)
    assert verify_file(file, expected=(head.seq, head.hash)).ok
    for expected in ((head.seq, "0" * 64), (head.seq + 1, head.hash)):
        found = verify_file(file, expected=expected)
        assert (found.ok, found.problem) == (False, "not_as_expected")
    part = tmp_path / "part.jsonl"
    part.write_text(await exported(ctx, after_seq=3), encoding="utf-8")
    found = verify_file(part)
    assert (found.ok, found.entries, found.first_seq, found.head_hash) == (True, 2, 4, head.hash)


async def test_any_changed_byte_of_a_file_is_found(ctx: Context, services: Services, tmp_path: Path) -> None:
    await chain_of(services, 2)
    data = (await exported(ctx)).encode()
    head = (await ask(ctx)).head
    file = tmp_path / "trail.jsonl"
    for i in range(len(data) - 1):  # The last byte is the newline at the end, which nothing depends on.
        file.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        assert not verify_file(file, expected=(head.seq, head.hash)).ok, data[max(0, i - 20) : i + 20]


@pytest.mark.parametrize(
    ("order", "problem", "seq"),
    [([0, 1, 3], "entry_missing", 3), ([0, 2, 1, 3], "entry_missing", 2), ([0, 1, 1, 2], "entry_missing", 3)],
)
async def test_lines_missing_or_moved_are_found(
    ctx: Context, services: Services, tmp_path: Path, order: list[int], problem: str, seq: int
) -> None:
    await chain_of(services, 4)
    lines = (await exported(ctx)).splitlines(keepends=True)
    file = tmp_path / "trail.jsonl"
    file.write_text("".join(lines[i] for i in order), encoding="utf-8")
    found = verify_file(file)
    assert (found.ok, found.problem, found.first_bad_seq) == (False, problem, seq)


async def test_the_way_to_check_by_hand_that_is_documented_works(
    ctx: Context, services: Services, tmp_path: Path
) -> None:
    await chain_of(services, 4)
    text = await exported(ctx)
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    script = tmp_path / "check.py"
    script.write_text(code, encoding="utf-8")

    def run(data: str) -> "subprocess.CompletedProcess[str]":
        (tmp_path / "trail.jsonl").write_text(data, encoding="utf-8")
        return subprocess.run(
            [sys.executable, "-I", str(script), str(tmp_path / "trail.jsonl")],
            capture_output=True,
            text=True,
            check=False,
        )

    good = run(text)
    assert good.returncode == 0, good.stderr
    assert good.stdout.strip() == f"4 {(await ask(ctx)).head.hash}"
    assert run(text.replace("b2", "b3")).returncode != 0
    assert run("".join(text.splitlines(keepends=True)[::2])).returncode != 0


async def test_the_sql_that_is_documented_names_the_damage(ctx: Context, services: Services) -> None:
    await chain_of(services, 4)
    (statement,) = re.findall(r"```sql\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert await services.database.fetch(statement.rstrip().rstrip(";").replace(":'org'", f"'{ORG}'")) == []
    async with unguarded(services) as connection:
        await connection.execute("UPDATE audit SET content = content || ' ' WHERE seq = 3")
    rows = await services.database.fetch(statement.rstrip().rstrip(";").replace(":'org'", f"'{ORG}'"))
    assert [row["seq"] for row in rows] == [3]
