"""Events as CloudEvents 1.0 structured JSON, written to the outbox in the transaction that makes them true."""

from typing import Any, TypeVar

import msgspec

from handlers.context import Services
from signals import Event

P = TypeVar("P")
_ENCODER = msgspec.json.Encoder()


def cloud_event(services: Services, org: str, event: Event[P], payload: P, *, subject: str) -> tuple[str, bytes]:
    """The event's name and its envelope; ``subject`` says what it is about (a budget id, a usage id)."""
    envelope: dict[str, Any] = {
        "specversion": "1.0",
        "id": services.new_id(),
        "source": f"/token-manager/{services.instance}",
        "type": f"token.{event.name}",
        "time": services.clock(),
        "subject": subject,
        "datacontenttype": "application/json",
        "org": org,
        "data": payload,
    }
    return event.name, _ENCODER.encode(envelope)
