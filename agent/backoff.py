"""Waits between attempts: doubling, bounded, shortened by chance so that agents do not march in step."""

import random


class Backoff:
    """The next wait in seconds; ``reset`` after a success."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._next_s = first_s

    def next_s(self) -> float:
        """How long to wait now."""
        wait = self._next_s * random.uniform(0.5, 1.0)  # noqa: S311
        self._next_s = min(self._most_s, self._next_s * 2)
        return wait

    def reset(self) -> None:
        """It worked."""
        self._next_s = self._first_s
