"""``python -m tests.scenario.move_clock FOLDER TIME``: move the ledger's clock of an agent with private servers.

For trying out what a month's end does without waiting for it. Only on a data folder to throw away: the time that
usage and budgets see is wrong from then on.
"""

import argparse
import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from agent.console import asking
from tests.support.polling import eventually

FOLLOWED_S = 30.0


async def set_offset(connection: "asyncpg.Connection[asyncpg.Record]", database_url: str, to: datetime) -> None:
    """Let ``ledger_clock()`` say ``to`` now, and end every other connection, which would still say what it was."""
    name = urlsplit(database_url).path[1:]
    offset = f"{(to - datetime.now(UTC)).total_seconds():.6f} s"
    await connection.execute(f"ALTER DATABASE {name} SET token_manager.clock_offset = '{offset}'")
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()", name
    )


async def move(folder: Path, to: datetime) -> None:
    """Move the clock and return when the agent has followed, on a new connection."""
    database_url = json.loads((folder / "runtime.json").read_text(encoding="utf-8"))["database_url"]
    connection = await asyncpg.connect(database_url)
    try:
        await set_offset(connection, database_url, to)
    finally:
        await connection.close()

    async with asking(folder, None) as ask:

        async def followed() -> bool:
            status = json.loads((await ask("get_status", b"{}")).data)
            apart = abs(datetime.fromisoformat(status["now"]) - to) if "now" in status else FAR
            return apart < timedelta(seconds=FOLLOWED_S) and status["healthy"]

        await eventually(followed, FOLLOWED_S, "the agent does not follow the clock")


FAR = timedelta(days=1)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.scenario.move_clock", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("to", type=datetime.fromisoformat, help="such as 2030-03-01T00:05:00Z")
    options = parser.parse_args()
    asyncio.run(move(options.folder, options.to))
    sys.stdout.write(f"it is {options.to:%A, %d %B %Y, %H:%M}\n")
