"""Forward-only numbered migrations under an advisory lock. Applied files are remembered with their digest."""

import asyncio
import hashlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import asyncpg

from store import partitions
from store.pool import Connection

MIGRATIONS: Final = Path(__file__).parent / "migrations"
_LOCK: Final = 0x746D_6D69_6772
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS schema_migration (
    version integer PRIMARY KEY, name text NOT NULL, digest text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)"""


class MigrationError(RuntimeError):
    """The database was written by a newer release, or an applied migration file has changed."""


def files() -> list[tuple[int, Path]]:
    """Migration files by number."""
    return sorted((int(path.name.split("_", 1)[0]), path) for path in MIGRATIONS.glob("[0-9]*_*.sql"))


async def migrate(dsn: str, *, timeout_s: float = 60.0) -> list[int]:
    """Bring the database at ``dsn`` to this release; returns the versions applied. Safe to run from many agents."""
    connection = await asyncpg.connect(dsn, timeout=timeout_s)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        return await _apply(connection)
    finally:
        await connection.close()


async def _apply(connection: Connection) -> list[int]:
    await connection.execute("SET client_min_messages = warning; SET timezone = 'UTC'; " + _TABLE)
    rows = await connection.fetch("SELECT version, name, digest FROM schema_migration ORDER BY version")
    applied = {row["version"]: row for row in rows}
    known = dict(files())
    unknown = sorted(set(applied) - set(known))
    if unknown:
        raise MigrationError(f"the database has migration {unknown[-1]}, which this release does not know: update it")
    done: list[int] = []
    for version, path in sorted(known.items()):
        text = path.read_text(encoding="utf-8")
        digest = hashlib.sha256(text.encode()).hexdigest()
        if version in applied:
            if applied[version]["digest"] != digest:
                raise MigrationError(f"migration {path.name} was changed after it was applied")
            continue
        async with connection.transaction():
            await connection.execute(text)
            if version == 1:
                await partitions.create_history(connection, datetime.now(UTC).date())
            await connection.execute(
                "INSERT INTO schema_migration (version, name, digest) VALUES ($1, $2, $3)", version, path.name, digest
            )
        done.append(version)
    return done


if __name__ == "__main__":
    versions = asyncio.run(migrate(sys.argv[1]))
    sys.stdout.write(f"applied {versions or 'nothing'}\n")
