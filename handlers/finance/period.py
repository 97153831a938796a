"""The period a request about money is about: a calendar month of a time zone, or a range on full quarter hours."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from handlers.enforcer.calendar import zone
from handlers.moment import in_utc
from handlers.tracker.rollup import bucket_of
from schemas.errors import invalid
from schemas.finance import PeriodRequest

_INSTANT = timedelta(microseconds=1)
# Nobody called a model before, and calendars end: a day beyond has no date in every time zone.
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST = datetime(2200, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Period:
    """Half-open, UTC; ``field`` is what a caller would have to change about it."""

    start: datetime
    end: datetime
    timezone: str
    field: str

    @property
    def first_day(self) -> date:
        """The first day, in its own time zone."""
        return self.start.astimezone(zone(self.timezone)).date()

    @property
    def last_day(self) -> date:
        """The last day, in its own time zone: the day whose exchange rates hold."""
        return (self.end - _INSTANT).astimezone(zone(self.timezone)).date()


def period_of(request: PeriodRequest) -> Period:
    """The period a request names. Raises SignalError naming the field that is wrong."""
    start, end = in_utc(request.start, "start"), in_utc(request.end, "end")
    tz = zone(request.timezone)
    if request.month is not None:
        if start is not None or end is not None:
            raise invalid("names the period already; leave out start and end", field="month")
        year, month = int(request.month[:4]), int(request.month[5:])
        after = (year + month // 12, month % 12 + 1)
        first, following = (datetime(y, m, 1, tzinfo=tz).astimezone(UTC) for y, m in ((year, month), after))
        return Period(first, following, request.timezone, "month")
    if start is None or end is None:
        raise invalid("a month, or start and end, is needed", field="month" if start is end else _missing(start))
    for field, at in (("start", start), ("end", end)):
        if at != bucket_of(at):
            raise invalid("must be on a full quarter of an hour: sums are kept by the quarter", field=field)
        if not _EARLIEST <= at <= _LATEST:
            raise invalid("must be between the years 2000 and 2200", field=field)
    if start >= end:
        raise invalid("must be after start", field="end")
    return Period(start, end, request.timezone, "start")


def _missing(start: datetime | None) -> str:
    return "start" if start is None else "end"
