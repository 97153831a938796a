"""Work that takes longer than a decision may wait for is done in threads, a few at a time."""

from collections.abc import Callable
from typing import TypeVar

from handlers.context import Context
from schemas.errors import unavailable

T = TypeVar("T")


async def aside(ctx: Context, work: Callable[[], T]) -> T:
    """The result of pure ``work``. Raises SignalError ``unavailable`` where it takes, or waits, too long."""
    try:
        return await ctx.services.finance_threads.run(work, ctx.services.limits.finance_timeout_s)
    except TimeoutError:
        raise unavailable("this takes too long, or too much is asked at once; try again") from None
