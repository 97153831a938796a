"""How busy each process is while a load runs: with two cores for four of them, that is the explanation."""

import asyncio
import time
from collections.abc import Mapping

import psutil


async def cores_used(processes: Mapping[str, int], *, after_s: float, for_s: float) -> dict[str, float]:
    """Cores used by each process and its children, on average over `for_s` seconds from `after_s` on.

    The whole machine is named last: where it is far above the sum, something else ran, and the figures are too low.
    """
    await asyncio.sleep(after_s)
    before = _all(processes)
    began = time.monotonic()
    await asyncio.sleep(for_s)
    after, seconds = _all(processes), time.monotonic() - began
    return {name: (used - before[name]) / seconds for name, used in after.items()}


def cores_text(cores: Mapping[str, float]) -> str:
    """The same in one line."""
    return ", ".join(f"{name} {used:.2f}" for name, used in cores.items())


def memory_mib(pid: int) -> tuple[float, float]:
    """Resident memory of a process, and of its children with what they share counted once; in MiB."""
    process = psutil.Process(pid)
    shared = 0.0
    for child in process.children(recursive=True):
        try:
            shared += child.memory_full_info().pss
        except psutil.Error:
            continue
    return process.memory_info().rss / 2**20, shared / 2**20


def _all(processes: Mapping[str, int]) -> dict[str, float]:
    machine = psutil.cpu_times()
    busy = machine.user + machine.nice + machine.system
    return {**{name: _cpu_s(pid) for name, pid in processes.items()}, "whole machine": busy}


def _cpu_s(pid: int) -> float:
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0.0
    total = 0.0
    for member in family:
        try:
            times = member.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total
