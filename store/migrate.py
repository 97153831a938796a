"""Forward-only numbered migrations under an advisory lock. Applied files are remembered with their digest."""

import asyncio
import hashlib
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import asyncpg

from store import partitions
from store.pool import Connection

MIGRATIONS: Final = Path(__file__).parent / "migrations"
_LOCK: Final = 0x746D_6D69_6772
_CONNECT_WAIT_S: Final = 0.2
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS schema_migration (
    version integer PRIMARY KEY, name text NOT NULL, digest text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)"""


class MigrationError(RuntimeError):
    """The database was written by a newer release, or an applied migration file has changed."""


class DatabaseUnreachable(RuntimeError):
    """PostgreSQL does not answer, or refuses the agent; the text says which."""


def files() -> list[tuple[int, Path]]:
    """Migration files by number."""
    return sorted((int(path.name.split("_", 1)[0]), path) for path in MIGRATIONS.glob("[0-9]*_*.sql"))


async def migrate(dsn: str, *, timeout_s: float = 30.0) -> list[int]:
    """Bring the database at ``dsn`` to this release; returns the versions applied. Safe to run from many agents.

    Waits up to ``timeout_s`` for a server that is still starting. Raises DatabaseUnreachable or MigrationError.
    """
    connection = await _connect(dsn, timeout_s)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        return await _apply(connection)
    finally:
        await connection.close()


async def _connect(dsn: str, timeout_s: float) -> Connection:
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = max(0.1, deadline - time.monotonic())
        try:
            return await asyncpg.connect(dsn, timeout=left_s)
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError) as error:
            if time.monotonic() + _CONNECT_WAIT_S > deadline:
                text = f"PostgreSQL does not answer within {timeout_s:g} s: {str(error) or type(error).__name__}"
                raise DatabaseUnreachable(text) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:  # waiting does not mend these
            raise DatabaseUnreachable(f"PostgreSQL refuses the agent: {error}") from error
        await asyncio.sleep(_CONNECT_WAIT_S)


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
