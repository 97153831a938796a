"""The peer for reservations: Redis with a Lua script that checks and reserves in four windows, every write fsynced.

Driven by redis-benchmark, a C client, so the reference is not held back by Python.
"""

import asyncio
import re
import shutil
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.stand import BenchError, end

READY_S = 10.0
RUN_S = 60.0
OUTSTANDING = 256
# All or nothing in every window, idempotent by the reservation's key; what a reservation holds is kept with it.
SCRIPT = """
if redis.call('EXISTS', KEYS[5]) == 1 then return redis.call('HGET', KEYS[5], 'status') end
local amount = tonumber(ARGV[1])
for i = 1, 4 do
  local w = redis.call('HMGET', KEYS[i], 'limit', 'spent', 'reserved')
  if tonumber(w[2]) + tonumber(w[3]) + amount > tonumber(w[1]) then return 'denied' end
end
for i = 1, 4 do redis.call('HINCRBY', KEYS[i], 'reserved', amount) end
redis.call('HSET', KEYS[5], 'status', 'live', 'amount', ARGV[1], 'expires', ARGV[2], 'provider', 'openai',
  'model', 'gpt-4o', 'attribution', ARGV[3], 'windows', table.concat({KEYS[1], KEYS[2], KEYS[3], KEYS[4]}, ','))
return 'live'
"""
WINDOWS = ("w:global", "w:team:t1", "w:user:u1", "w:project:p1")
ATTRIBUTION = '{"team_id":"t1","user_id":"u1","project_id":"p1"}'


def is_installed() -> bool:
    """Whether server and client are here."""
    return all(shutil.which(program) for program in ("redis-server", "redis-benchmark", "redis-cli"))


@asynccontextmanager
async def redis(folder: Path) -> "AsyncGenerator[int]":
    """A private Redis with append-only file, fsync on every write; its port."""
    port = _free_port()
    options = ("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--bind", "127.0.0.1")
    server = await asyncio.create_subprocess_exec(
        "redis-server", "--port", str(port), "--dir", str(folder), *options, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        await _wait_ready(port)
        yield port
    finally:
        await end(server)


async def reserves_per_s(port: int, requests: int) -> float:
    """Reservations per second at 256 outstanding. Raises BenchError when one was denied."""
    for window in WINDOWS:
        await _cli(port, "HSET", window, "limit", "900000000000000000", "spent", "0", "reserved", "0")
    sha = await _cli(port, "SCRIPT", "LOAD", SCRIPT)
    output = await _output(
        "redis-benchmark",
        *("-p", str(port), "-c", str(OUTSTANDING), "-n", str(requests), "-r", "1000000000", "--csv"),
        *("EVALSHA", sha, "5", *WINDOWS, "res:__rand_int__", "7000000", "1900000000", ATTRIBUTION),
    )
    reserved = int(await _cli(port, "HGET", WINDOWS[0], "reserved"))
    if reserved < requests * 7_000_000 * 0.999:
        raise BenchError(f"Redis reserved {reserved} for {requests} requests")
    found = re.search(r'^"EVALSHA.*?","([0-9.]+)","', output, re.MULTILINE)
    if found is None:
        raise BenchError(f"redis-benchmark printed no rate: {output[-500:]}")
    return float(found[1])


async def _wait_ready(port: int) -> None:
    deadline = asyncio.get_running_loop().time() + READY_S
    while asyncio.get_running_loop().time() < deadline:
        if await _output("redis-cli", "-p", str(port), "PING", check=False) == "PONG":
            return
        await asyncio.sleep(0.05)
    raise BenchError(f"redis-server was not ready within {READY_S:g} s")


async def _cli(port: int, *words: str) -> str:
    return await _output("redis-cli", "-p", str(port), *words)


async def _output(*command: str, check: bool = True) -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    try:
        output, _ = await asyncio.wait_for(process.communicate(), RUN_S)
    finally:
        await end(process)
    if check and process.returncode:
        raise BenchError(f"{command[0]}: {output.decode(errors='replace')[-500:]}")
    return output.decode(errors="replace").strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
