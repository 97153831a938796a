"""What a delivery tells: an alert, or a note that somebody put in its payload."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from store.alerts import AlertRow
from store.deliveries import DeliveryRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One thing to tell. ``details`` is plain JSON, amounts in it decimal strings."""

    delivery_id: str
    level: str
    kind: str
    title: str
    message: str
    created_at: datetime
    alert_id: str | None = None
    rule: str | None = None
    budget_id: str | None = None
    window_id: int | None = None
    entity_id: str | None = None
    details: dict[str, Any] = field(default_factory=dict[str, Any])


def of_alert(delivery_id: str, alert: AlertRow) -> Note:
    """An alert to tell."""
    return Note(
        delivery_id=delivery_id,
        level=alert.level,
        kind=alert.kind,
        title=alert.title,
        message=alert.message,
        created_at=alert.created_at,
        alert_id=alert.alert_id,
        rule=alert.rule,
        budget_id=alert.budget_id,
        window_id=alert.window_id,
        entity_id=alert.entity_id,
        details=alert.details,
    )


def of_payload(row: DeliveryRow) -> Note | None:
    """What a delivery without an alert tells: ``title`` and ``message``, a ``level``, ``kind`` and ``details``."""
    payload = row.payload
    if payload is None or not isinstance(payload.get("title"), str):
        return None
    details = payload.get("details")
    return Note(
        delivery_id=row.delivery_id,
        level=str(payload.get("level", "info")),
        kind=str(payload.get("kind", "note")),
        title=payload["title"],
        message=str(payload.get("message", "")),
        created_at=row.created_at,
        details=details if isinstance(details, dict) else {},  # pyright: ignore[reportUnknownArgumentType]
    )
