"""How well the org keeps to asking first: for ``get_status``, and through it for the metrics."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

from handlers.currency.told import Teller
from handlers.enforcer.tally import APPROVED
from schemas.management import Compliance, DecisionCount, NeverSettled, OverrunCause
from schemas.money import format_cost
from store import compliance as compliance_store
from store import sizing as sizing_store
from store.compliance import Unsettled
from store.pool import Connection
from store.sizing import Overrun


async def compliance(
    connection: Connection, org: str, now: datetime, teller: Teller, *, days: int, callers_max: int
) -> Compliance:
    """Figures of the last ``days`` days: this one, in UTC, and those before it; costs as ``teller`` tells them."""
    since = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days - 1)
    requests, reserved = await compliance_store.reserved_requests(connection, org, since)
    decisions = await compliance_store.decisions(connection, org, since.date())
    checks, approved = sum(decisions.values()), decisions.get(APPROVED, 0)
    unsettled = await compliance_store.unsettled(connection, org, since.date(), callers_max)
    overruns = await sizing_store.overruns(connection, org, since=since.date(), until=now.date() + timedelta(days=1))
    never_settled, overrun = _never_settled(unsettled, teller), _overrun(overruns, teller)
    return Compliance(
        since=since,
        requests=requests,
        reserved_requests=reserved,
        reserved_first_percent=_percent(reserved, requests),
        checks=checks,
        approved=approved,
        within_budget_percent=_percent(approved, checks),
        decisions=[DecisionCount(name=code, count=count) for code, count in decisions.items()],
        never_settled=never_settled,
        overrun=overrun,
        rates=teller.rates,
        missing_rates=teller.missing,
    )


def _percent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 4) if whole else None


def _never_settled(rows: Sequence[Unsettled], teller: Teller) -> list[NeverSettled]:
    costs: dict[str, dict[str, int]] = {}
    counts: Counter[str] = Counter()
    for row in rows:
        costs.setdefault(row.caller, {})[row.currency] = row.cost
        counts[row.caller] += row.count
    return [
        NeverSettled(name=caller, count=count, cost=format_cost(teller.total(costs[caller])), currency=teller.currency)
        for caller, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _overrun(rows: Sequence[Overrun], teller: Teller) -> list[OverrunCause]:
    amounts: dict[tuple[str, str], dict[str, int]] = {}
    charges: Counter[tuple[str, str]] = Counter()
    for row in rows:
        key = (row.cause, row.unit)
        amounts.setdefault(key, {})[row.currency] = row.amount
        charges[key] += row.charges
    return [
        OverrunCause(
            name=f"{cause}_{unit}",
            cause=cause,
            unit=unit,
            amount=format_cost(teller.total(found)) if unit == "cost" else str(sum(found.values())),
            charges=charges[cause, unit],
            currency=teller.currency if unit == "cost" else None,
        )
        for (cause, unit), found in sorted(amounts.items())
    ]
