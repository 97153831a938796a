"""Usage events whose stream broke off before its counts came: they wait until what was received is counted."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from handlers.context import Services
from handlers.payloads.counts import counted
from handlers.payloads.normalise import Uncounted
from handlers.tracker.priced import Receipt, priced
from schemas.codec import prefixed
from schemas.errors import SignalError, unavailable
from schemas.usage import UsageEvent

_BUSY: Final = "too many streams without counts wait to be counted; send it again with the same ids"


@dataclass(frozen=True, slots=True)
class Partial:
    """A valid event that cannot be priced yet."""

    org: str
    event: UsageEvent
    event_id: str
    arrived_at: datetime
    stream: Uncounted


def receipt_of(
    services: Services, org: str, event: UsageEvent, *, event_id: str, arrived_at: datetime
) -> Receipt | Partial:
    """The priced event, or what has to be counted first. Raises SignalError naming the field."""
    try:
        return priced(
            event,
            org=org,
            event_id=event_id,
            arrived_at=arrived_at,
            cards=services.prices(org),
            limits=services.limits,
            settings=services.org_settings(org),
            model_limits=services.model_limits(org),
        )
    except Uncounted as stream:
        return Partial(org, event, event_id, arrived_at, stream)


async def settled(services: Services, partial: Partial) -> Receipt:
    """Count what was received, then price it. Raises SignalError naming the field."""
    org, limits = partial.org, services.limits
    found = await counted(services.counter, partial.event, partial.stream, exact_chars=limits.count_exact_chars_max)
    return priced(
        partial.event,
        org=org,
        event_id=partial.event_id,
        arrived_at=partial.arrived_at,
        cards=services.prices(org),
        limits=limits,
        settings=services.org_settings(org),
        model_limits=services.model_limits(org),
        found=found,
    )


class Waiting:
    """Requests with such events, counted beside those that need none. Bounded by ``count_requests_max`` requests."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, receipts: list[Receipt | SignalError | Partial], *, batch: bool, then: Callable[[], None]) -> None:
        """Replace every ``Partial`` by its receipt or its error, then call ``then``. Raises ``unavailable`` if full."""
        if len(self._tasks) >= self._services.limits.count_requests_max:
            raise unavailable(_BUSY)
        task = asyncio.get_running_loop().create_task(self._settle(receipts, batch, then))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Wait until nothing is being counted."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def _settle(
        self, receipts: list[Receipt | SignalError | Partial], batch: bool, then: Callable[[], None]
    ) -> None:
        for at, receipt in enumerate(receipts):
            if isinstance(receipt, Partial):
                try:
                    receipts[at] = await settled(self._services, receipt)
                except SignalError as error:
                    receipts[at] = prefixed(error, f"events[{at}]") if batch else error
        then()
