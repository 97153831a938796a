"""Usage into the stream, durable before it is acknowledged."""

import asyncio

from agent.backoff import Backoff
from agent.stored import PublishFailed, StoredPublisher
from handlers.context import Ids
from schemas.errors import unavailable
from schemas.subjects import AGENT_BATCH_PREFIX, AGENT_INGEST_PREFIX


class StreamSink:
    """Publishes batches and waits for the PubAck, trying again with the same id until ``timeout_s`` is over.

    A batch stored twice is harmless: PostgreSQL decides by event id.
    """

    def __init__(self, publisher: StoredPublisher, new_id: Ids, *, timeout_s: float, attempt_s: float = 5.0) -> None:
        self._publisher = publisher
        self._new_id = new_id
        self._timeout_s = timeout_s
        self._attempt_s = attempt_s

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
                        return
                    except PublishFailed:
                        await asyncio.sleep(backoff.next_s())
        except TimeoutError:
            raise unavailable("the usage stream does not confirm; send it again with the same ids") from None
