"""Waiting for something to become true, bounded: the only way a test waits."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

Result = TypeVar("Result")

POLL_S = 0.01


async def eventually(
    check: Callable[[], Result | Awaitable[Result]], timeout_s: float = 10.0, message: str = ""
) -> Result:
    """Call `check` (plain or async) until it returns something true, and return that.

    An `AssertionError` inside `check` counts as "not yet". Raises `AssertionError` with `message` after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    last = "never true"
    while True:
        try:
            value = check()
            result = cast("Result", await value if inspect.isawaitable(value) else value)
            if result:
                return result
            last = f"last value {result!r}"
        except AssertionError as error:
            last = str(error)
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {message or check} ({last})")
        await asyncio.sleep(POLL_S)
