"""What a channel sends now, what waits and what it never sends. Pure: decided from locked rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from handlers.alerts.quiet_hours import rank, waits
from schemas.channel import QuietHours
from store.deliveries import DeliveryRow, Traffic

HOUR: Final = timedelta(hours=1)
# Where the hour's bound is taken by messages that are still on their way, one looks again after this.
LOOK_AGAIN: Final = timedelta(seconds=30)
QUIET: Final = "quiet_hours"
FLOOD: Final = "flood"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a channel wants, and how much may be on its way at once."""

    min_level: str
    quiet_hours: QuietHours | None
    messages_per_hour_max: int
    at_once_max: int


@dataclass(slots=True)
class Plan:
    """Messages by id, each the deliveries it is made of; deliveries that wait, until when and why; those dropped."""

    messages: dict[str, list[DeliveryRow]] = field(default_factory=dict[str, list[DeliveryRow]])
    postponed: list[tuple[str, datetime, str]] = field(default_factory=list[tuple[str, datetime, str]])
    skipped: list[str] = field(default_factory=list[str])


def plan(terms: Terms, due: Sequence[DeliveryRow], levels: Mapping[str, str], traffic: Traffic, now: datetime) -> Plan:
    """Decide about the due deliveries of a channel; ``levels`` gives each delivery's level by id.

    Messages that were tried before stay what they were. What waited through quiet hours or a flood goes out as one
    message. Beyond the hour's bound everything waits until there is room. What finds no place at once stays due.
    """
    made = Plan()
    tried, fresh = _by_message(due)
    for rows in list(tried):
        urgent = max((levels[row.delivery_id] for row in rows), key=rank)
        if terms.quiet_hours is not None and (until := waits(terms.quiet_hours, urgent, now)) is not None:
            made.postponed += [(row.delivery_id, until, QUIET) for row in rows]
            tried.remove(rows)
    waited: list[DeliveryRow] = []
    single: list[DeliveryRow] = []
    for row in fresh:
        level = levels[row.delivery_id]
        if rank(level) < rank(terms.min_level):
            made.skipped.append(row.delivery_id)
        elif terms.quiet_hours is not None and (until := waits(terms.quiet_hours, level, now)) is not None:
            made.postponed.append((row.delivery_id, until, QUIET))
        elif row.postponed is not None:
            waited.append(row)
        else:
            single.append(row)
    wanted = [*tried, *([waited] if waited else []), *([row] for row in single)]
    # By time, or what fails again and again would keep its place before what was never tried.
    wanted.sort(key=lambda rows: min(row.not_before for row in rows))
    room = max(0, terms.messages_per_hour_max - traffic.messages)
    for rows in wanted[: min(room, terms.at_once_max)]:
        made.messages[rows[0].message_id or rows[0].delivery_id] = rows
    free_at = max(now + LOOK_AGAIN, traffic.oldest + HOUR) if traffic.oldest is not None else now + LOOK_AGAIN
    made.postponed += [(row.delivery_id, free_at, row.postponed or FLOOD) for rows in wanted[room:] for row in rows]
    return made


def _by_message(due: Sequence[DeliveryRow]) -> tuple[list[list[DeliveryRow]], list[DeliveryRow]]:
    tried: dict[str, list[DeliveryRow]] = {}
    fresh: list[DeliveryRow] = []
    for row in due:
        if row.message_id is None:
            fresh.append(row)
        else:
            tried.setdefault(row.message_id, []).append(row)
    return list(tried.values()), fresh
