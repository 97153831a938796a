"""Usage into the stream, durable before it is acknowledged."""

import asyncio
import logging
import time

from agent.backoff import Backoff
from agent.bus.stored import PublishFailed, StoredPublisher
from handlers.context import Ids
from schemas.errors import unavailable
from schemas.subjects import AGENT_BATCH_PREFIX, AGENT_INGEST_PREFIX

_log = logging.getLogger(__name__)


class StreamSink:
    """Publishes batches and waits for the PubAck, trying again with the same id until ``timeout_s`` is over.

    A batch stored twice is harmless: PostgreSQL decides by event id.
    """

    def __init__(self, publisher: StoredPublisher, new_id: Ids, *, timeout_s: float, attempt_s: float = 5.0) -> None:
        self._publisher = publisher
        self._new_id = new_id
        self._timeout_s = timeout_s
        self._attempt_s = attempt_s
        self._silent_since: float | None = None
        self.problem: str | None = None

    @property
    def silent_s(self) -> float:
        """How long the stream has said nothing at all; 0 after any answer, a refusal included."""
        return 0.0 if self._silent_since is None else time.monotonic() - self._silent_since

    def forget(self) -> None:
        """What was wrong has been mended, or the next attempt will say."""
        self._silent_since = self.problem = None

    async def store(self, payload: bytes) -> None:
        """Return once ``payload`` is in the stream. Raises SignalError ``unavailable``; it may be stored then, too."""
        await self._publish(f"{AGENT_BATCH_PREFIX}.0", payload)

    async def resend(self, org: str, payload: bytes, subject: str) -> None:
        """Put one raw usage message of ``org`` into the stream again. Raises as ``store``."""
        kept = subject if subject.startswith(f"{AGENT_INGEST_PREFIX}.{org}.") else f"{AGENT_INGEST_PREFIX}.{org}.retry"
        await self._publish(kept, payload)

    async def _publish(self, subject: str, payload: bytes) -> None:
        message_id = f"b:{self._new_id()}"
        backoff = Backoff(0.05, 1.0)
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    try:
                        await self._publisher.publish(subject, payload, msg_id=message_id, timeout_s=self._attempt_s)
                        self.forget()
                        return
                    except PublishFailed as error:
                        self._note(str(error), silent=not error.code)
                        await asyncio.sleep(backoff.next_s())
        except TimeoutError:
            if self.problem is None:
                self._note("no answer of the stream", silent=True)
            raise unavailable("the usage stream does not confirm; send it again with the same ids") from None

    def _note(self, reason: str, *, silent: bool) -> None:
        if self.problem is None:
            _log.warning("usage cannot be stored: %s", reason)
        self.problem = f"usage cannot be stored: {reason}"
        if not silent:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = time.monotonic()
