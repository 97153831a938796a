"""Times that callers state, made UTC."""

from datetime import UTC, datetime

from schemas.errors import invalid


def in_utc(at: datetime | None, field: str) -> datetime | None:
    """The same moment in UTC. Raises SignalError naming the field for a moment outside the years 1 to 9999 there."""
    try:
        return None if at is None else at.astimezone(UTC)
    except OverflowError:
        raise invalid("is out of range", field=field) from None
