"""BaseAgent: connections, lifecycle, watchdog and drain of one process on the bus. It knows no signal."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from nats import errors as nats_errors

from agent.backoff import Backoff
from agent.bus.client import BusClient
from store.pool import is_unavailable

CANCEL_WAIT_S = 1.0
_log = logging.getLogger(__name__)


class BaseAgent:
    """Starts, watches and drains. Subclasses say what runs by overriding ``_start`` and ``_drain``."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.ready = False
        self._stop = asyncio.Event()
        self._jobs: set[asyncio.Task[None]] = set()
        self._failed: list[str] = []

    async def start(self) -> None:
        """Connect and begin to serve; raises what makes that impossible, and then nothing stays open."""
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise
        self.ready = True

    def stop(self) -> None:
        """Ask the agent to end; safe from a signal handler."""
        self._stop.set()

    async def wait(self) -> None:
        """Return when the agent was asked to end."""
        await self._stop.wait()

    async def drain(self) -> None:
        """Finish what was accepted, then close. Intake ends first, connections last."""
        self.ready = False
        await self._drain()
        await self._end_jobs()
        await self._close()

    async def _end_jobs(self) -> None:
        """Cancel until they have ended: a library on the way may lose a cancellation that comes at a bad moment."""
        while self._jobs:
            jobs = list(self._jobs)
            for job in jobs:
                job.cancel()
            await asyncio.wait(jobs, timeout=CANCEL_WAIT_S)

    async def _start(self) -> None:
        raise NotImplementedError

    async def _drain(self) -> None:
        raise NotImplementedError

    async def _close(self) -> None:
        raise NotImplementedError

    def _run(self, job: Coroutine[Any, Any, None], name: str) -> None:
        """Keep a background job; one that ends by an error ends the agent, which is better than half of one."""
        task = asyncio.get_running_loop().create_task(job, name=name)
        self._jobs.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.critical("job %s ended: the agent stops", task.get_name(), exc_info=error)
            self._failed.append(task.get_name())
            self.stop()

    async def _every(self, interval_s: float, job: Callable[[], Awaitable[object]], backoff: Backoff) -> None:
        """Run ``job`` again and again; failures of dependencies are waited out, defects are logged and go on."""
        while True:
            try:
                await job()
                backoff.reset()
                await asyncio.sleep(interval_s)
            except Exception as error:
                if not is_unavailable(error):
                    _log.exception("a scheduled job failed")
                await asyncio.sleep(max(interval_s, backoff.next_s()))

    async def _watch(self, client: BusClient, *, interval_s: float, timeout_s: float) -> None:
        """A message to oneself, again and again: a connection that has gone deaf is torn down and made anew."""
        heard = asyncio.Event()
        subject = f"{client.new_inbox()}.watchdog"
        await client.subscribe_direct(subject, lambda _s, _r, _d, _h: heard.set())
        while True:
            await asyncio.sleep(interval_s)
            if not client.is_connected:
                continue
            heard.clear()
            with contextlib.suppress(nats_errors.Error):
                client.publish_now(subject, b"")
            try:
                async with asyncio.timeout(timeout_s):
                    await heard.wait()
            except TimeoutError:
                _log.error("the bus connection is deaf: reconnecting")
                await client.force_reconnect()
