"""Blocking work away from the agent's loop: bounded, timed, and unable to hold up the loop or the process's end."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """At most ``most`` daemon threads, one per piece of work. A thread that hangs keeps its place until it ends.

    Not an executor of the standard library: the process would wait at its end for a thread that hangs.
    """

    def __init__(self, most: int) -> None:
        self._places = asyncio.Semaphore(most)

    async def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """The result of ``work``, or what it raises. Raises TimeoutError after ``timeout_s``, the wait included."""
        async with asyncio.timeout(timeout_s):
            await self._places.acquire()
            result, error = await self._begin(work)
        if error is not None:
            raise error
        return result[0]

    def _begin(self, work: Callable[[], T]) -> "asyncio.Future[tuple[list[T], BaseException | None]]":
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[list[T], BaseException | None]] = loop.create_future()

        def end(result: list[T], error: BaseException | None) -> None:
            self._places.release()
            if not done.done():  # Else nobody waits any more.
                done.set_result((result, error))

        def tell(result: list[T], error: BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # The loop may have ended before the work.
                loop.call_soon_threadsafe(end, result, error)

        threading.Thread(target=_do, args=(work, tell), name="courier", daemon=True).start()
        return done


def _do(work: Callable[[], T], tell: Callable[[list[T], BaseException | None], None]) -> None:
    """In the thread: whatever becomes of the work is told where it is awaited."""
    try:
        result = work()
    except BaseException as error:
        tell([], error)
    else:
        tell([result], None)
