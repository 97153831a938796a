"""Numbers for people: medians of runs, ratios, tables, and the machine they are true for."""

import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import psutil

from agent.embedded.nats import find_binary

SYNC_BYTES = 8192
SYNC_WRITES = 200


def median(values: Sequence[float]) -> float:
    """The median; the one number a run is reduced to."""
    return statistics.median(values)


def ratio(ours: float, reference: float) -> str:
    """How many times the reference."""
    return f"{ours / reference:.2f}x" if reference else "-"


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median, and the lowest and highest of all runs."""
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{middle} ({low}-{high})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is aligned to the right."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(folder: Path) -> str:
    """What the numbers were measured on and with."""
    parts = [
        f"{os.cpu_count()} cores ({_cpu_model()})",
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        f"{platform.system()} {platform.release().partition('-')[0]}",
        f"data on {_file_system(folder)}, fdatasync of 8 kB {_sync_ms(folder):.2f} ms",
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in ("nats-py", "asyncpg", "uvloop", "msgspec")),
        _output(str(find_binary()), "--version"),
        "PostgreSQL 18 (embedded, fsync on)",
    ]
    if redis := shutil.which("redis-server"):
        parts.append("Redis " + _output(redis, "--version").partition("v=")[2].split(" ")[0])
    return ", ".join(parts)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _file_system(folder: Path) -> str:
    found = [p for p in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(p.mountpoint)]
    return max(found, key=lambda partition: len(partition.mountpoint)).fstype if found else "an unknown file system"


def _sync_ms(folder: Path) -> float:
    """The median time of one small durable write: nothing that promises durability is faster."""
    path = folder / "sync.test"
    times: list[float] = []
    handle = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        os.write(handle, bytes(SYNC_BYTES * SYNC_WRITES))
        os.fsync(handle)
        os.lseek(handle, 0, os.SEEK_SET)
        for _ in range(SYNC_WRITES):
            began = time.perf_counter()
            os.write(handle, b"x" * SYNC_BYTES)
            os.fdatasync(handle)
            times.append(time.perf_counter() - began)
    finally:
        os.close(handle)
        path.unlink()
    return median(times) * 1000


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
