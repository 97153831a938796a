"""A stand-in for the agent: `python -m tests.embedded.holder FOLDER` runs both servers until it is killed.

Prints one line of JSON when ready, or `{"error": ...}` and exits with 1.
"""

import asyncio
import json
import sys
from pathlib import Path

import asyncpg

from agent.embedded import DataDir, EmbeddedNats, EmbeddedPostgres, EmbeddedServerError


async def hold(path: Path) -> None:
    with DataDir(path) as data:
        bus, database = EmbeddedNats(data), EmbeddedPostgres(data)
        await asyncio.gather(bus.start(), database.start())
        rows = await add_row(database.url)
        data.write_runtime(nats_url=bus.url, http_url=None, database_url=database.url)
        ready = {"pids": [bus.pid, database.pid], "ports": [bus.port, database.port], "rows": rows}
        print(json.dumps(ready), flush=True)
        if "--once" in sys.argv:
            await asyncio.gather(bus.stop(), database.stop())
            data.remove_runtime()
            return
        await asyncio.Event().wait()


async def add_row(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS kept (at timestamptz DEFAULT now())")
        await connection.execute("INSERT INTO kept DEFAULT VALUES")
        return int(await connection.fetchval("SELECT count(*) FROM kept"))
    finally:
        await connection.close()


if __name__ == "__main__":
    try:
        asyncio.run(hold(Path(sys.argv[1])))
    except EmbeddedServerError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(1)
