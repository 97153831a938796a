"""UUIDv7 (RFC 9562): ids that sort by time, and in one process in the order they were made."""

import os
import time

_POOL_BYTES = 4_096
_STEP_BYTES = 4
_TAIL_BYTES = 10
_LOW_BITS = 62
_LOW_MASK = (1 << _LOW_BITS) - 1
_VARIANT = 0b10 << _LOW_BITS
# Each millisecond starts in the lower half of the 74 random bits, so that the steps within it never overflow.
_START_MASK = (1 << 73) - 1


class UuidV7:
    """Makes UUIDv7s as text; each is greater than the one before, also when the clock steps back. For one thread.

    The random bits come from the operating system: a new start every millisecond, a random step within one.
    """

    __slots__ = ("_at", "_ms", "_pool", "_prefix", "_tail")

    def __init__(self) -> None:
        self._ms = -1
        self._prefix = ""
        self._tail = 0
        self._pool = b""
        self._at = 0

    def __call__(self) -> str:
        ms = time.time_ns() // 1_000_000
        if ms > self._ms:
            self._ms = ms
            self._prefix = f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7"
            self._tail = self._random(_TAIL_BYTES) & _START_MASK
        else:
            self._tail += 1 + self._random(_STEP_BYTES)
        low = f"{_VARIANT | self._tail & _LOW_MASK:x}"
        return f"{self._prefix}{self._tail >> _LOW_BITS:03x}-{low[:4]}-{low[4:]}"

    def _random(self, size: int) -> int:
        start = self._at
        if start + size > len(self._pool):
            self._pool, start = os.urandom(_POOL_BYTES), 0
        self._at = start + size
        return int.from_bytes(self._pool[start : self._at])


new_id = UuidV7()
"""The ids of this process."""
