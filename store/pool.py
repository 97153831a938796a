"""The connection pool and what its failures mean."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import asyncpg

# asyncpg's classes are generic only for type checkers.
if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
    _Plain = asyncpg.Connection[asyncpg.Record]
else:
    Connection = _Plain = asyncpg.Connection

# The server or the way to it is gone; what was asked may or may not have happened.
UNAVAILABLE: Final = (
    OSError,
    TimeoutError,
    asyncio.TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)
# Another transaction was in the way; the same transaction may simply run again.
RETRYABLE: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.UniqueViolationError)


def is_unavailable(error: BaseException) -> bool:
    """Whether the server is away, as opposed to refusing the data (asyncpg counts those among interface errors)."""
    return isinstance(error, UNAVAILABLE) and not isinstance(error, ValueError)


class _Connection(_Plain):
    """A connection that needs no reset: no session state is ever set on it."""

    def get_reset_query(self) -> str:
        return ""


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """Bounds of the pool; times in seconds."""

    min_size: int = 2
    max_size: int = 12
    connect_timeout_s: float = 5.0
    command_timeout_s: float = 15.0
    acquire_timeout_s: float = 5.0


class Database:
    """A bounded pool of connections to one PostgreSQL."""

    def __init__(self, dsn: str, settings: PoolSettings | None = None) -> None:
        self._dsn = dsn
        self._settings = settings or PoolSettings()
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def open(self) -> None:
        """Open the pool. Raises what asyncpg raises where the server cannot be reached."""
        self._pool = await asyncpg.create_pool(
            self._dsn,
            min_size=self._settings.min_size,
            max_size=self._settings.max_size,
            timeout=self._settings.connect_timeout_s,
            command_timeout=self._settings.command_timeout_s,
            max_inactive_connection_lifetime=0,
            connection_class=_Connection,
            server_settings={"application_name": "token-manager", "jit": "off", "timezone": "UTC"},
        )

    async def close(self, timeout_s: float = 5.0) -> None:
        """Close the pool, waiting at most ``timeout_s`` for connections in use."""
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._pool.close()
        except (TimeoutError, *UNAVAILABLE):
            self._pool.terminate()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """Borrow a connection."""
        assert self._pool is not None, "open() comes first"
        async with self._pool.acquire(timeout=self._settings.acquire_timeout_s) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        """Borrow a connection inside a READ COMMITTED transaction; leaving normally commits."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[Connection]:
        """Borrow a connection that only reads, and sees all of its reads as of one moment."""
        async with (
            self.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield connection

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """Rows of one statement outside a transaction."""
        async with self.connection() as connection:
            return await connection.fetch(query, *args)

    async def fetchval(self, query: str, *args: Any) -> Any:
        """First value of one statement outside a transaction."""
        async with self.connection() as connection:
            return await connection.fetchval(query, *args)

    async def execute(self, query: str, *args: Any) -> str:
        """Run one statement outside a transaction."""
        async with self.connection() as connection:
            return await connection.execute(query, *args)
