"""The deliverer: takes alerts that are due, has them sent, and never waits for one of them before it takes the next."""

import asyncio
import logging
from collections import Counter

from agent.backoff import Backoff
from handlers.alerts import deliver
from handlers.alerts.content import Outcome
from handlers.alerts.deliver import Claimed
from handlers.context import Services
from store.pool import UNAVAILABLE, is_unavailable

# Channels known to work; beyond it all are forgotten and found out anew.
PROVEN_MAX = 10_000
_log = logging.getLogger(__name__)


class Deliverer:
    """Several of them share the work by leases. ``places`` messages are on their way at once, half of one org's."""

    def __init__(self, services: Services, *, places: int, poll_s: float, backoff: Backoff) -> None:
        self._services = services
        self._places = places
        self._poll_s = poll_s
        self._backoff = backoff
        self._sending: set[asyncio.Task[None]] = set()
        self._channels: Counter[tuple[str, str]] = Counter()
        # Channels whose last message arrived; others get one at a time, so that a receiver that hangs takes one place.
        self._proven: set[tuple[str, str]] = set()
        self._stopping = False
        self.problem: str | None = None

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            try:
                if not await self.deliver_some():
                    await self._wait()
                self._backoff.reset()
                self.problem = None
            except Exception as error:
                if not is_unavailable(error):
                    _log.exception("the deliverer failed")
                self.problem = f"alerts wait: {type(error).__name__}"
                await asyncio.sleep(self._backoff.next_s())

    async def deliver_some(self) -> int:
        """Take what is due and begin to send it; returns how many messages."""
        self._services.delivery_ready.clear()
        begun = 0
        if self._stopping or len(self._sending) >= self._places:
            return 0
        for org, channel in await deliver.due(self._services, except_for=self._busy(), limit=self._places):
            most = min(self._places - len(self._sending), self._org_room(org), self._channel_room((org, channel)))
            if most <= 0:
                continue
            for claimed in await deliver.claim(self._services, org, channel, most=most):
                self._begin(claimed)
                begun += 1
        return begun

    async def stop(self, timeout_s: float) -> None:
        """Take nothing more and let what is on its way arrive; what does not is sent again when its lease ends."""
        self._stopping = True
        if self._sending:
            await asyncio.wait(self._sending, timeout=timeout_s)

    def _begin(self, claimed: Claimed) -> None:
        self._channels[claimed.key] += 1
        task = asyncio.get_running_loop().create_task(self._send(claimed), name="delivery")
        self._sending.add(task)

        def end(task: asyncio.Task[None]) -> None:
            self._sending.discard(task)
            self._channels[claimed.key] -= 1
            self._channels += Counter()  # Forgets channels with nothing on its way.
            self._services.delivery_ready.set()

        task.add_done_callback(end)

    async def _send(self, claimed: Claimed) -> None:
        """One message, and what became of it. A defect costs this attempt; the lease brings the message back."""
        try:
            outcome = await deliver.send(self._services, claimed)
            status = await self._settled(claimed, outcome)
        except Exception as error:
            if not is_unavailable(error):
                _log.exception("a delivery failed")
            self.problem = f"an alert waits: {type(error).__name__}"
            return
        if outcome.delivered:
            _log.info(
                "told channel %s of org %s (%d)", claimed.channel.name, claimed.channel.org_id, len(claimed.notes)
            )
        else:
            place = (claimed.channel.name, claimed.channel.org_id)
            _log.warning("channel %r of org %s was not told, now %s: %s", *place, status, outcome.reason)

    async def _settled(self, claimed: Claimed, outcome: Outcome) -> str | None:
        """Written as soon as the database is there: what has arrived must not be sent again for its absence."""
        lease_s = deliver.lease_s(self._services)
        backoff = Backoff(self._poll_s, lease_s)
        async with asyncio.timeout(lease_s):
            while True:
                try:
                    return await deliver.settle(self._services, claimed, outcome)
                except UNAVAILABLE as error:
                    if not is_unavailable(error):
                        raise
                await asyncio.sleep(backoff.next_s())

    def _busy(self) -> list[tuple[str, str]]:
        return [key for key in self._channels if min(self._org_room(key[0]), self._channel_room(key)) <= 0]

    def _org_room(self, org: str) -> int:
        """One org's receivers that hang must not hold up everybody else's."""
        return max(1, self._places // 2) - sum(count for key, count in self._channels.items() if key[0] == org)

    def _channel_room(self, key: tuple[str, str]) -> int:
        most = self._services.limits.delivery_channel_at_once_max if key in self._proven else 1
        return most - self._channels[key]

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._poll_s):
                await self._services.delivery_ready.wait()
        except TimeoutError:
            return
