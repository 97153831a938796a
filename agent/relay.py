"""The outbox relay: events that were committed are published, and forgotten only after the PubAck (R17)."""

import asyncio
import logging
from typing import Any

import msgspec

from agent.backoff import Backoff
from agent.bus.stored import PublishFailed, PublishTooLarge, StoredPublisher
from handlers.identities import Identities
from handlers.tracker.dead import STREAM_PREFIX
from schemas.subjects import AGENT_DEAD_LETTER_PREFIX, EVENT_PREFIX, event_subject
from store import outbox as outbox_store
from store.outbox import OutboxRow
from store.pool import Database, is_unavailable

_log = logging.getLogger(__name__)


class Relay:
    """Publishes outbox rows in order of their ids; several relays share the work by SKIP LOCKED."""

    def __init__(
        self,
        database: Database,
        publisher: StoredPublisher,
        ready: asyncio.Event,
        identities: Identities,
        *,
        batch_max: int,
        poll_s: float,
        backoff: Backoff,
        single_account: bool = False,
        timeout_s: float = 5.0,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._ready = ready
        self._identities = identities
        self._batch_max = batch_max
        self._poll_s = poll_s
        self._backoff = backoff
        self._single = single_account
        self._timeout_s = timeout_s
        self.problem: str | None = None

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            try:
                if await self.publish_some() < self._batch_max:
                    await self._wait()
                self._backoff.reset()
                self.problem = None
            except PublishFailed as error:
                self.problem = f"events wait: {error}"
                await asyncio.sleep(self._backoff.next_s())
            except Exception as error:
                if not is_unavailable(error):
                    _log.exception("the outbox relay failed")
                self.problem = f"events wait: {type(error).__name__}"
                await asyncio.sleep(self._backoff.next_s())

    async def publish_some(self) -> int:
        """Publish one batch; returns how many. Rows whose publication failed stay."""
        self._ready.clear()
        async with self._database.transaction() as connection:
            rows = await outbox_store.take(connection, self._batch_max)
            if not rows:
                return 0
            for row in rows:
                await self._identities.learn(row.org_id, row.payload)
            results = await asyncio.gather(*(self._publish(row) for row in rows), return_exceptions=True)
            failed = [r for r in results if isinstance(r, BaseException)]
            done = [row.outbox_id for row, r in zip(rows, results, strict=True) if not isinstance(r, BaseException)]
            await outbox_store.delete(connection, done)
        if failed:
            raise failed[0]
        return len(rows)

    async def _publish(self, row: OutboxRow) -> None:
        if row.event.startswith(STREAM_PREFIX):
            subject = f"{AGENT_DEAD_LETTER_PREFIX}.{row.org_id}.{row.event.removeprefix(STREAM_PREFIX)}"
        elif self._single:
            subject = f"{EVENT_PREFIX}.{row.event}"
        else:
            subject = event_subject(row.org_id, row.event)
        msg_id, timeout_s = f"o:{row.outbox_id}", self._timeout_s
        forms = (lambda: self._identities.named(row.org_id, row.payload), lambda: row.payload, lambda: _emptied(row))
        for form in forms:
            try:
                await self._publisher.publish(subject, form(), msg_id=msg_id, timeout_s=timeout_s)
            except PublishTooLarge:  # Names are longer than surrogates; and what stayed would be in the way for ever.
                _log.warning("event %s of org %s is too large; it is told in less", row.event, row.org_id)
            else:
                return
        raise PublishFailed(f"event {row.event} is too large without its data")

    async def _wait(self) -> None:
        try:
            # Not wait_for, which in Python 3.11 can lose the cancellation that ends this job.
            async with asyncio.timeout(self._poll_s):
                await self._ready.wait()
        except TimeoutError:
            return


def _emptied(row: OutboxRow) -> bytes:
    """The event with the size of its data in the place of the data."""
    event: dict[str, Any] = msgspec.json.decode(row.payload)
    return msgspec.json.encode(event | {"data": {"omitted_bytes": len(row.payload)}})
