"""Cron expressions of five fields: what they mean, and when they are due next. Pure."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# APScheduler 3 has no types.

import re
from datetime import datetime, timedelta
from typing import Final

from apscheduler.triggers.cron import CronTrigger

from handlers.enforcer.calendar import zone
from schemas.errors import invalid

_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
_NUMBERS: Final = re.compile(r"(\*|\d{1,2})(?:-(\d{1,2}))?(?:/(\d{1,2}))?")
_INSTANT: Final = timedelta(microseconds=1)


def next_run(cron: str, timezone: str, after: datetime) -> datetime | None:
    """The first planned time later than ``after``; None where there is none (30 February).

    Raises SignalError ``invalid_request`` naming ``cron`` or ``timezone``.
    """
    place = zone(timezone)
    fields = cron.split()
    if len(fields) != 5 or not cron.isascii():
        raise invalid("has five fields: minute, hour, day of month, month, day of week", field="cron")
    fields[4] = ",".join(_weekdays(part) for part in fields[4].split(","))
    try:
        trigger = CronTrigger.from_crontab(" ".join(fields), timezone=place)
        due: datetime | None = trigger.get_next_fire_time(None, after + _INSTANT)
    except ValueError as error:
        raise invalid(f"is not a cron expression: {error}", field="cron") from None
    return None if due is None else due.astimezone(after.tzinfo)


def _weekdays(part: str) -> str:
    """Names for the numbers of a day-of-week field: in cron 0 is Sunday, in APScheduler Monday."""
    match = _NUMBERS.fullmatch(part)
    if match is None or part == "*":
        return part
    first, last, step = match.groups()
    begin, end = (0, 6) if first == "*" else (int(first), int(last or (6 if step else first)))
    if begin > end or end >= len(_DAYS) or (step is not None and int(step) == 0):
        raise invalid(f"'{part}' is not a day of the week (0 to 7, 0 and 7 are Sunday)", field="cron")
    return ",".join(dict.fromkeys(_DAYS[day] for day in range(begin, end + 1, int(step or 1))))
