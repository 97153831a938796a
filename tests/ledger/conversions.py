"""What charges in other currencies must be, worked out anew from the stored rates: knowing nothing of the code.

A search over every pair that anybody stated, from one currency to the other, on rates as old as the window: an org's
own statement about a currency hides what all orgs have about it.
"""

from collections import defaultdict
from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

from store.pool import Connection

RULE = "R18 a charge is the cost at the rate that its window froze, and nothing where there is none"
_WIDE = Context(prec=120)
_CHARGES = """
    SELECT e.id, e.cost, e.currency, e.flags, b.currency AS into, w.window_id, coalesce(w.fx_revision, 0) AS revision,
        coalesce((SELECT sum(c.amount) FROM unnest(e.charge_windows, e.charge_amounts) AS c (window_id, amount)
            WHERE c.window_id = w.window_id), 0)::bigint AS charged
    FROM usage_event e
    JOIN budget b ON b.org_id = e.org_id AND b.unit = 'cost' AND b.currency <> e.currency AND b.filters = '{}'
        AND b.counting_since >= b.created_at AND b.counting_since <= e.charged_at
    JOIN budget_window w ON w.org_id = b.org_id AND w.budget_id = b.budget_id AND w.starts_at <= e.charged_at
        AND (w.ends_at IS NULL OR w.ends_at > e.charged_at)
        AND w.entity_id = CASE b.type WHEN 'global' THEN '*' WHEN 'team' THEN e.team_id WHEN 'user' THEN e.user_id END
    WHERE e.org_id = $1 AND e.cost > 0 AND (b.active OR w.window_id = ANY (e.charge_windows))"""


async def violations(connection: Connection, org: str) -> list[Mapping[str, Any]]:
    """Charges that are not what they must be."""
    charges = await connection.fetch(_CHARGES, org)
    if not charges:
        return []
    rows = await connection.fetch("SELECT * FROM exchange_rate WHERE org_id IN ('', $1)", org)
    wrong: list[Mapping[str, Any]] = []
    for charge in charges:
        worth = _frozen(rows, charge["revision"], charge["currency"], charge["into"])
        flag = f"no_exchange_rate:{charge['currency']}/{charge['into']}"
        if worth is None:
            if charge["charged"] or flag not in charge["flags"]:
                wrong.append(dict(charge))
        elif flag in charge["flags"] or ("beyond_budget" in charge["flags"] and not charge["charged"]):
            # The rate came after the event, or no sum can hold it: nothing was charged.
            if charge["charged"]:
                wrong.append(dict(charge))
        else:
            over, under = worth
            exact = _WIDE.divide(Decimal(charge["cost"]) * over, under)
            if charge["charged"] != int(exact.to_integral_value(ROUND_HALF_EVEN)):
                wrong.append({**charge, "expected": exact})
    return wrong


def _frozen(rows: list[Any], revision: int, base: str, quote: str) -> tuple[Decimal, Decimal] | None:
    later = sorted({row["revision"] for row in rows if row["revision"] > revision})
    for at in (revision, *later):
        found = _search([row for row in rows if row["revision"] <= at], base, quote)
        if found is not None:
            return found
    return None


def _search(rows: list[Any], base: str, quote: str) -> tuple[Decimal, Decimal] | None:
    """What one unit of ``base`` is in ``quote`` as numerator and denominator."""
    newest: dict[tuple[bool, str], Any] = {}
    for row in sorted(rows, key=lambda r: (r["as_of"], r["revision"])):
        said_of = row["base"] if row["quote"] == "EUR" else row["quote"]
        newest[row["org_id"] == "", said_of] = row
    ways: dict[str, list[tuple[str, Decimal, Decimal]]] = defaultdict(list)
    for (shared, said_of), row in newest.items():
        if shared and (False, said_of) in newest:
            continue
        ways[row["base"]].append((row["quote"], row["rate"], Decimal(1)))
        ways[row["quote"]].append((row["base"], Decimal(1), row["rate"]))
    seen: set[str] = set()
    ahead = [(base, Decimal(1), Decimal(1))]
    while ahead:
        at, over, under = ahead.pop(0)
        if at == quote:
            return over, under
        if at not in seen:
            seen.add(at)
            ahead += [(to, _WIDE.multiply(over, x), _WIDE.multiply(under, y)) for to, x, y in ways[at]]
    return None
