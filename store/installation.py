"""Rows of ``installation``: what every agent of one database must agree on."""

from typing import Final

from store.pool import Connection

# An update that changes nothing returns the row, whoever wrote it.
_REMEMBER: Final = """
INSERT INTO installation (key, value) VALUES ($1, $2)
ON CONFLICT (key) DO UPDATE SET value = installation.value RETURNING value
"""


async def remember(connection: Connection, key: str, value: str) -> str:
    """The value that was stored first under ``key``: this one, if none was."""
    return await connection.fetchval(_REMEMBER, key, value)


async def known(connection: Connection, key: str) -> bool:
    """Whether anything is stored under ``key``."""
    return await connection.fetchval("SELECT EXISTS (SELECT FROM installation WHERE key = $1)", key)
