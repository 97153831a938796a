"""UUIDv7 (RFC 9562): ids that sort by time, and in one process in the order they were made."""

import os
import struct
import time
from collections.abc import Iterator

_STEPS = 1_024
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

    __slots__ = ("_ms", "_prefix", "_steps", "_tail")

    def __init__(self) -> None:
        self._ms = -1
        self._prefix = ""
        self._tail = 0
        self._steps: Iterator[int] = iter(())

    def __call__(self) -> str:
        ms = time.time_ns() // 1_000_000
        if ms > self._ms:
            self._ms = ms
            self._prefix = f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7"
            tail = int.from_bytes(os.urandom(_TAIL_BYTES)) & _START_MASK
        else:
            tail = self._tail + 1 + (next(self._steps, None) or self._step())
        self._tail = tail
        low = "%x" % (_VARIANT | tail & _LOW_MASK)
        return f"{self._prefix}{tail >> _LOW_BITS:03x}-{low[:4]}-{low[4:]}"

    def _step(self) -> int:
        """The first of a new supply of random steps."""
        self._steps = iter(struct.unpack(f"{_STEPS}I", os.urandom(4 * _STEPS)))
        return next(self._steps)


new_id = UuidV7()
"""The ids of this process."""
