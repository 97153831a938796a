"""A clock for open loops: wakes an event loop more often than its own timers, which are whole milliseconds."""

import asyncio
import ctypes
import os
from types import TracebackType
from typing import Self

CLOCK_MONOTONIC = 1
NONBLOCK = 0o4000
NANOS = 1_000_000_000


class _Time(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanos", ctypes.c_long)]


class _Interval(ctypes.Structure):
    _fields_ = [("interval", _Time), ("first", _Time)]


class Ticker:
    """Ticks every `interval_s` by a timerfd (Linux); elsewhere by the event loop's timers. Use as a context manager."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._fd = -1
        self._due = asyncio.Event()

    def __enter__(self) -> Self:
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "timerfd_create"):
            self._fd = libc.timerfd_create(CLOCK_MONOTONIC, NONBLOCK)
        if self._fd >= 0:
            seconds, nanos = divmod(int(self._interval_s * NANOS), NANOS)
            every = _Time(seconds, nanos)
            libc.timerfd_settime(self._fd, 0, ctypes.byref(_Interval(every, every)), None)
            asyncio.get_running_loop().add_reader(self._fd, self._expired)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)

    async def tick(self) -> None:
        """Wait for the next tick; at once if one was missed."""
        if self._fd < 0:
            await asyncio.sleep(self._interval_s)
            return
        await self._due.wait()
        self._due.clear()

    def _expired(self) -> None:
        os.read(self._fd, 8)
        self._due.set()
