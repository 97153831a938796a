"""What SQL alone cannot bring to this release: users' names whose surrogates only the agents' secret key can make."""

from collections.abc import Mapping

from store.pool import Connection
from store.sql import queries

_SQL = queries("upgrade")


async def named_users(connection: Connection) -> dict[str, list[str]]:
    """By org, the users whose names stand in budgets, windows or open reservations."""
    found: dict[str, list[str]] = {}
    for org, name in await connection.fetch(_SQL["named_users"]):
        found.setdefault(org, []).append(name)
    return found


async def rename_users(connection: Connection, org: str, keys: Mapping[str, str]) -> None:
    """Let surrogates stand for names. The org's catalogue lock is held exclusively: nobody decides meanwhile."""
    columns = (list(keys), list(keys.values()))
    for name in ("rename_reservations", "rename_windows", "rename_budgets"):
        await connection.execute(_SQL[name], org, *columns)
