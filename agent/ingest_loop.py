"""Pulls stored usage, applies it in groups, and acknowledges only what PostgreSQL has committed."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

from agent.backoff import Backoff
from agent.bus.client import BusClient
from agent.bus.pull import PulledMessage, PullLoop, PullSettings
from handlers.tracker.ingest import Ingest, StreamMessage
from schemas.errors import SignalError
from schemas.subjects import APPLY_CONSUMER, USAGE_STREAM
from store.pool import is_unavailable

_log = logging.getLogger(__name__)


class IngestLoop:
    """The apply loop. While PostgreSQL is away it stops pulling, keeps what it has, and tries again by itself."""

    def __init__(
        self,
        client: BusClient,
        ingest: Ingest,
        *,
        stream_created: datetime,
        batch_max: int,
        pending_max: int,
        keep_s: float,
        backoff: Backoff,
        on_failed: Callable[[], None],
    ) -> None:
        self._ingest = ingest
        self._epoch = f"s{int(stream_created.timestamp() * 1_000_000)}"
        self._batch_max = batch_max
        self._backoff = backoff
        self._on_failed = on_failed
        self._waiting: deque[PulledMessage] = deque()
        self._applying: list[PulledMessage] = []
        self._keep_s = keep_s
        self._keeper: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self.problem: str | None = None
        self._pull = PullLoop(
            client,
            stream=USAGE_STREAM,
            consumer=APPLY_CONSUMER,
            on_message=self._receive,
            on_problem=self._refused,
            settings=PullSettings(max_pending_messages=pending_max, batch=min(500, pending_max)),
        )

    def start(self) -> None:
        """Begin to pull and apply."""
        self._pull.start()
        loop = asyncio.get_running_loop()
        self._task, self._keeper = loop.create_task(self._run()), loop.create_task(self._keep())
        self._task.add_done_callback(self._ended)

    async def stop(self, timeout_s: float) -> None:
        """Stop pulling, apply what was delivered; what cannot be applied in time is delivered again, to any agent."""
        await self._pull.stop()
        self._stopping = True
        self._arrived.set()
        if self._task is None:
            return
        done, _ = await asyncio.wait([self._task], timeout=timeout_s)
        if not done:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1.0)
        if self._keeper is not None:
            self._keeper.cancel()
        for message in self._waiting:
            self._pull.nak(message)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A defect that ends the loop must not leave an agent that looks well and applies nothing."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.problem = f"the apply loop ended: {type(error).__name__}"
            _log.critical("the apply loop ended: the agent stops", exc_info=error)
            self._on_failed()

    def _receive(self, message: PulledMessage) -> None:
        self._waiting.append(message)
        self._arrived.set()

    def _refused(self, code: int, text: str) -> None:
        self.problem = f"{code} {text}"
        _log.warning("the usage consumer answers %s %s", code, text)

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                if self._stopping:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                continue
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._batch_max))]
            self._applying = batch
            try:
                await self._apply(batch)
            except asyncio.CancelledError:
                self._waiting.extendleft(reversed(batch))
                raise
            finally:
                self._applying = []

    async def _apply(self, batch: list[PulledMessage]) -> None:
        messages = [self._message(pulled) for pulled in batch]
        while not await self._attempt(messages, batch):
            self._pull.pause()
            await asyncio.sleep(self._backoff.next_s())
        self._backoff.reset()
        self.problem = None
        for pulled in batch:
            self._pull.ack(pulled)
        if self._pull.paused and not self._stopping:
            self._pull.resume()

    async def _attempt(self, messages: list[StreamMessage], batch: list[PulledMessage]) -> bool:
        """Apply; False where PostgreSQL is away or too busy. Anything else is a defect and is tried again as well:
        nothing is acknowledged that was not committed.
        """
        try:
            await self._ingest.apply(messages)
            return True
        except Exception as error:
            expected = is_unavailable(error) or isinstance(error, SignalError)
            self.problem = f"usage cannot be applied: {type(error).__name__}"
            _log.log(
                logging.WARNING if expected else logging.ERROR,
                "usage cannot be applied, %d messages wait: %s",
                len(batch) + len(self._waiting),
                error,
                exc_info=None if expected else error,
            )
            return False

    async def _keep(self) -> None:
        """Tell the server that messages are being worked on, so that they are not delivered elsewhere meanwhile.

        Also between attempts and while PostgreSQL is away: the ack wait is short, so that what an agent that died had
        taken is soon applied by another one. Until then nothing expires (R9).
        """
        while True:
            await asyncio.sleep(self._keep_s)
            for pulled in (*self._applying, *self._waiting):
                self._pull.in_progress(pulled)

    def _message(self, pulled: PulledMessage) -> StreamMessage:
        return StreamMessage(
            # The bus carries any bytes in a subject; PostgreSQL takes neither all of them nor NUL.
            pulled.subject.decode("utf-8", "backslashreplace").replace("\x00", "\\x00"),
            pulled.data,
            f"{self._epoch}-{pulled.stream_seq}",
            datetime.fromtimestamp(pulled.timestamp_ns / 1e9, UTC),
        )
