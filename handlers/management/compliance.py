"""How well the org keeps to asking first: for ``get_status``, and through it for the metrics."""

from datetime import datetime, timedelta

from handlers.enforcer.tally import APPROVED
from schemas.management import Compliance, DecisionCount, NeverSettled, OverrunCause
from schemas.money import format_cost
from store import compliance as compliance_store
from store import sizing as sizing_store
from store.pool import Connection


async def compliance(connection: Connection, org: str, now: datetime, *, days: int, callers_max: int) -> Compliance:
    """Figures of the last ``days`` days: this one, in UTC, and those before it."""
    since = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days - 1)
    requests, reserved = await compliance_store.reserved_requests(connection, org, since)
    decisions = await compliance_store.decisions(connection, org, since.date())
    checks, approved = sum(decisions.values()), decisions.get(APPROVED, 0)
    unsettled = await compliance_store.unsettled(connection, org, since.date(), callers_max)
    overruns = await sizing_store.overruns(connection, org, since=since.date(), until=now.date() + timedelta(days=1))
    return Compliance(
        since=since,
        requests=requests,
        reserved_requests=reserved,
        reserved_first_percent=_percent(reserved, requests),
        checks=checks,
        approved=approved,
        within_budget_percent=_percent(approved, checks),
        decisions=[DecisionCount(name=code, count=count) for code, count in decisions.items()],
        never_settled=[NeverSettled(name=u.caller, count=u.count, cost=format_cost(u.cost)) for u in unsettled],
        overrun=_overrun(overruns),
    )


def _percent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 4) if whole else None


def _overrun(rows: list[sizing_store.Overrun]) -> list[OverrunCause]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for row in rows:
        amount, charges = sums.get((row.cause, row.unit), (0, 0))
        sums[row.cause, row.unit] = (amount + row.amount, charges + row.charges)
    return [
        OverrunCause(
            name=f"{cause}_{unit}",
            cause=cause,
            unit=unit,
            amount=format_cost(amount) if unit == "cost" else str(amount),
            charges=charges,
        )
        for (cause, unit), (amount, charges) in sorted(sums.items())
    ]
