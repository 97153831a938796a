"""Where a bill and our usage differ, and why. Pure: both sides in, rows out, the largest differences first.

The difference of costs splits exactly, kind by kind, into what other quantities make (at our rate) and what other rates
make (on their quantity). Where the bill does not break its cost down, what would explain it is tried: list prices,
cached tokens at the full rate, a batch or tier factor.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from fractions import Fraction
from typing import Any, Final

from handlers.finance.bill_sides import CACHE_KINDS, TOKEN_KINDS, Key, Ours, Sides, Theirs
from schemas.bill import BillRow, Compared, ComparedCost, ComparedKind, ReasonCode, Why
from schemas.money import format_cost

_DAY: Final = timedelta(days=1)
_ORDER: Final = ("input", "cache_read", "cache_write", "cache_write_1h", "cache_write_12h", "output", "reasoning")
# What providers ask for batch and flexible tiers, and for fast ones.
_FACTORS: Final = (Fraction(1, 2), Fraction(2), Fraction(7, 4), Fraction(3, 2), Fraction(5, 2))


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What counts as equal: nanos of cost, and tokens of one kind."""

    cost: int
    tokens: int


@dataclass(slots=True)
class Cell:
    """One day and model under comparison. A side that is empty has nothing there."""

    key: Key
    ours: Ours
    theirs: Theirs
    has_ours: bool
    has_theirs: bool
    reasons: list[Why] = field(default_factory=list[Why])
    matched: bool = False
    currency_differs: bool = False

    @property
    def cost_difference(self) -> int | None:
        """Nanos, theirs less ours; None where it cannot be told."""
        return None if self.theirs.cost is None or self.currency_differs else self.theirs.cost - self.ours.cost


def compare(sides: Sides, tolerance: Tolerance) -> list[Cell]:
    """Every day and model of either side, explained."""
    cells = {key: _cell(sides, key) for key in _keys(sides)}
    for cell in cells.values():
        _judge(sides, cell, tolerance)
    for cell in cells.values():
        _boundary(sides, cells, cell, tolerance)
    return sorted(cells.values(), key=_size)


def _size(cell: Cell) -> tuple[bool, int, int, date, str]:
    difference = abs(cell.cost_difference or 0)
    tokens = sum(abs(cell.theirs.quantities.get(k, 0) - cell.ours.quantities.get(k, 0)) for k in TOKEN_KINDS)
    return cell.matched, -difference, -tokens, cell.key[0], cell.key[1] or ""


def _keys(sides: Sides) -> list[Key]:
    """Where a bill states one cost for all models of a day, that is compared with all of ours."""
    return sorted({*sides.ours, *sides.theirs}, key=lambda key: (key[0], key[1] or ""))


def _cell(sides: Sides, key: Key) -> Cell:
    theirs = sides.theirs.get(key)
    if key[1] is None:
        ours = _all_models(sides, key[0])
        return Cell(key, ours, theirs or Theirs(), ours.calls != 0 or ours.cost != 0, theirs is not None)
    ours = sides.ours.get(key)
    shown = ours or Ours()
    used = shown.calls != 0 or shown.cost != 0 or any(shown.quantities.values())
    given = theirs is not None and (any(theirs.quantities.values()) or bool(theirs.cost) or bool(theirs.calls))
    if theirs is None and sides.states_costs and not _in_whole_day(sides, key):
        theirs = Theirs(cost=0)
    return Cell(key, shown, theirs or Theirs(), used, given)


def _all_models(sides: Sides, day: date) -> Ours:
    """The sum of our models of a day whose cost the bill does not state by itself."""
    total = Ours()
    for (at, model), ours in sides.ours.items():
        theirs = sides.theirs.get((at, model))
        if at == day and (theirs is None or theirs.cost is None):
            total.names |= ours.names
            total.calls += ours.calls
            total.cost += ours.cost
            total.list_cost += ours.list_cost
            total.unpriced += ours.unpriced
            total.recorded_cost += ours.recorded_cost
            total.adjustments += ours.adjustments
    return total


def _judge(sides: Sides, cell: Cell, tolerance: Tolerance) -> None:
    others = sides.other_currencies.get(cell.key)
    if others:
        cell.currency_differs = True
        shown = {code: format_cost(cost) for code, cost in sorted(others.items())}
        _tell(cell, "currency", f"costs are not all in {sides.currency}, so they are not compared", evidence=shown)
    volume = _volume(sides, cell, tolerance)
    difference = cell.cost_difference
    if difference is None:
        # What the bill states no cost of is compared by what it does state; or it is in the cost of the whole day.
        if cell.has_ours and not cell.has_theirs and not cell.reasons and not _in_whole_day(sides, cell.key):
            _missing(cell)
        cell.matched = not cell.reasons
        return
    doubt = cell.theirs.doubt + len(cell.ours.quantities)
    if abs(difference) <= max(tolerance.cost, doubt):
        cell.matched = not volume and not cell.reasons
        if difference and abs(difference) <= doubt and cell.matched:
            _tell(cell, "rounding", "the bill's amounts are rounded", difference)
        return
    _why(sides, cell, difference, doubt=max(tolerance.cost, doubt), volume=volume)


def _in_whole_day(sides: Sides, key: Key) -> bool:
    """Whether the bill states one cost for all models of the day."""
    return (key[0], None) in sides.theirs


def _missing(cell: Cell) -> None:
    text = f"{cell.ours.calls} calls that we recorded are not on the bill"
    _tell(cell, "not_billed", text, -cell.ours.cost, {"calls": cell.ours.calls, "names": sorted(cell.ours.names)})


def _tell(
    cell: Cell, code: ReasonCode, message: str, nanos: int | None = None, evidence: dict[str, Any] | None = None
) -> None:
    amount = None if nanos is None else format_cost(nanos)
    cell.reasons.append(Why(code=code, message=message, amount=amount, evidence=evidence or {}))


# Quantities.


def kinds_of(sides: Sides, cell: Cell) -> list[str]:
    """The kinds of a row, the usual ones first."""
    found = {*cell.ours.quantities, *cell.theirs.quantities, *cell.ours.costs, *cell.theirs.costs} - {""}
    return [*(kind for kind in _ORDER if kind in found), *sorted(found - set(_ORDER))]


def _volume(sides: Sides, cell: Cell, tolerance: Tolerance) -> bool:
    """Tell where calls or tokens differ; whether they do."""
    ours, theirs = cell.ours, cell.theirs
    if cell.key[1] is None or not (sides.states_tokens or sides.states_calls):
        return False
    differing = {
        kind: theirs.quantities.get(kind, 0) - ours.quantities.get(kind, 0)
        for kind in sorted(sides.kinds)
        if abs(theirs.quantities.get(kind, 0) - ours.quantities.get(kind, 0)) > tolerance.tokens
    }
    amount = _at_our_rates(cell, differing)
    calls = None if theirs.calls is None else theirs.calls - ours.calls
    if sides.states_calls and not cell.has_theirs:
        calls = -ours.calls
    if not differing and not calls:
        return False
    evidence: dict[str, Any] = {"tokens": dict(differing)}
    if calls is not None:
        evidence["calls"] = calls
    if not cell.has_ours or (calls or 0) > 0:
        what = f"{calls} calls" if calls else "calls"
        _tell(cell, "usage_not_tracked", f"the bill has {what} that we did not record", amount, evidence)
    elif not cell.has_theirs or (calls or 0) < 0:
        what = f"{-calls} calls" if calls else "calls"
        _tell(cell, "not_billed", f"we recorded {what} that the bill does not have", amount, evidence)
    else:
        _tell(cell, "token_count_differs", "as many calls, other counts of tokens", amount, evidence)
    return True


def _at_our_rates(cell: Cell, differing: dict[str, int]) -> int | None:
    """What other quantities make of the cost, at our own rates; None where we have no rate."""
    if not cell.has_ours and cell.theirs.cost is not None:
        return cell.theirs.cost
    if not cell.has_theirs:
        return -cell.ours.cost
    total = Fraction(0)
    for kind, value in differing.items():
        rate = rate_of(cell.ours.quantities.get(kind), cell.ours.costs.get(kind))
        if rate is None:
            return None
        total += value * rate
    return round(total)


def rate_of(quantity: int | None, cost: int | None) -> Fraction | None:
    """Nanos for one unit; None where nothing was counted or charged."""
    return Fraction(cost, quantity) if quantity and cost is not None else None


# Costs.


def _why(sides: Sides, cell: Cell, difference: int, *, doubt: int, volume: bool) -> None:
    """Explain a cost difference that is more than the tolerance."""
    ours = cell.ours
    if ours.unpriced:
        text = f"{ours.unpriced} of our calls have no price"
        _tell(cell, "unpriced_here", text, evidence={"calls": ours.unpriced, "names": sorted(ours.names)})
    if ours.adjustments and cell.theirs.cost is not None and abs(cell.theirs.cost - ours.recorded_cost) <= doubt:
        evidence = {"as_recorded": format_cost(ours.recorded_cost), "adjustments": ours.adjustments}
        _tell(cell, "adjusted", "the bill is what we recorded before it was adjusted here", difference, evidence)
        return
    if not cell.has_ours or not cell.has_theirs:
        if not volume and not cell.has_ours:
            _tell(cell, "usage_not_tracked", "the bill has a cost, and we recorded no call", difference)
        elif not volume:
            _missing(cell)
        return
    tiers = _tiers(cell)
    by_kind = list(_prices(cell)) if cell.theirs.costs.keys() - {""} else []
    for code, kind, nanos, evidence in by_kind:
        text = f"{kind}: another rate than ours"
        _tell(cell, code, text, nanos, evidence | ({"tiers": tiers} if tiers else {}))
    if tiers and (by_kind or not volume):
        _tell(cell, "batch_or_tier", "the bill counts other tokens as batch, or in another tier", evidence=tiers)
    if not by_kind and not tiers and not ours.unpriced:
        _guess(cell, difference, doubt=doubt, volume=volume)


def _prices(cell: Cell) -> Iterator[tuple[ReasonCode, str, int, dict[str, Any]]]:
    """Kinds whose implied rate is another than ours by more than rounding: reason, kind, amount, both rates."""
    for kind, cost in cell.theirs.costs.items():
        quantity = cell.theirs.quantities.get(kind)
        if not quantity:
            # A bill without quantities: ours stand in, where the kinds agree.
            quantity = cell.ours.quantities.get(kind) if not cell.theirs.quantities else None
        mine = rate_of(cell.ours.quantities.get(kind), cell.ours.costs.get(kind))
        if not quantity or mine is None:
            continue
        expected = round(quantity * mine)
        if abs(cost - expected) > cell.theirs.doubts.get(kind, 0) + 1:
            evidence = {
                "kind": kind,
                "our_rate": per_million(mine),
                "their_rate": per_million(Fraction(cost, quantity)),
            }
            code: ReasonCode = "cache_priced_differently" if kind in CACHE_KINDS else "price_differs"
            yield code, kind, cost - expected, evidence


def per_million(rate: Fraction) -> str:
    """A rate per million units as a decimal string of at most nine decimals."""
    return format_cost(round(rate * 1_000_000))


def _tiers(cell: Cell) -> dict[str, Any]:
    """Tokens by tier, where the two sides see them in different ones."""
    ours = {tier: n for tier, n in cell.ours.tiers.items() if n}
    theirs = {tier: n for tier, n in cell.theirs.tiers.items() if n}
    if not theirs or not ours or ours.keys() == theirs.keys():
        return {}
    return {"ours": ours, "theirs": theirs}


def _guess(cell: Cell, difference: int, *, doubt: int, volume: bool) -> None:
    """One cost for all kinds: try what would explain the rest."""
    ours, theirs = cell.ours, cell.theirs.cost or 0
    explained = 0
    if volume:
        amounts = [why.amount for why in cell.reasons if why.amount is not None]
        if not amounts:
            return
        explained = round(Fraction(amounts[-1]) * 10**9)
        if abs(difference - explained) <= doubt:
            return
    base, rest = ours.cost + explained, difference - explained
    if ours.list_cost != ours.cost and abs(theirs - ours.list_cost) <= doubt:
        evidence = {"list_cost": format_cost(ours.list_cost)}
        _tell(cell, "price_differs", "the bill is at list price, without the contract's", rest, evidence)
        return
    cached = sum(ours.costs.get(kind, 0) for kind in CACHE_KINDS)
    full = rate_of(ours.quantities.get("input"), ours.costs.get("input"))
    tokens = sum(ours.quantities.get(kind, 0) for kind in CACHE_KINDS)
    if full is not None and tokens and abs(base - cached + round(tokens * full) - theirs) <= doubt:
        text = "the bill has the cached tokens at the rate of ordinary input"
        _tell(cell, "cache_priced_differently", text, rest, {"cached_tokens": tokens})
        return
    for factor in _FACTORS:
        if base and abs(round(base * factor) - theirs) <= doubt:
            text = f"the bill is {float(factor):g} times our cost, as batch or another tier would be"
            _tell(cell, "batch_or_tier", text, rest, {"factor": f"{float(factor):g}", "our_tiers": ours.tiers})
            return
    if base > 0 and cell.theirs.quantities and not volume:
        evidence = {"factor": format_cost(round(Fraction(theirs, base) * 10**9))}
        _tell(
            cell, "price_differs", "the same tokens at other rates; the bill does not say of which kind", rest, evidence
        )
        return
    _tell(cell, "unexplained", "what the bill states does not say why", rest)


# Days.


def _boundary(sides: Sides, cells: dict[Key, Cell], cell: Cell, tolerance: Tolerance) -> None:
    """Where two days that follow each other are even together, calls near midnight were counted on the other day."""
    day, model = cell.key
    after = cells.get((day + _DAY, model))
    pair = (cell, after) if after is not None else None
    if pair is None or cell.matched or pair[1].matched or not _even(sides, pair, tolerance):
        return
    for one in pair:
        if any(why.code == "day_boundary" for why in one.reasons):
            return
    for one in pair:
        kept = [why for why in one.reasons if why.code not in _BY_VOLUME]
        one.reasons = kept
        text = f"{day} and {day + _DAY} together are even: calls near midnight are counted on the other day"
        _tell(one, "day_boundary", text, one.cost_difference)


_BY_VOLUME: Final = frozenset(
    {"usage_not_tracked", "not_billed", "token_count_differs", "unexplained", "price_differs"}
)


def _even(sides: Sides, pair: tuple[Cell, Cell], tolerance: Tolerance) -> bool:
    differences = [cell.cost_difference for cell in pair]
    known = [value for value in differences if value is not None]
    if sides.states_costs and len(known) < 2:
        return False
    doubt = sum(cell.theirs.doubt for cell in pair)
    if abs(sum(known)) > max(tolerance.cost, doubt):
        return False
    moved = any(known)
    for kind in sides.kinds:
        deltas = [cell.theirs.quantities.get(kind, 0) - cell.ours.quantities.get(kind, 0) for cell in pair]
        if abs(sum(deltas)) > tolerance.tokens:
            return False
        moved = moved or any(deltas)
    return moved


# The wire.


def row_of(sides: Sides, cell: Cell) -> BillRow:
    """A cell as it is told."""
    difference = cell.cost_difference
    return BillRow(
        day=cell.key[0],
        model=cell.key[1],
        our_names=sorted(cell.ours.names),
        their_names=sorted(cell.theirs.names),
        calls=compared(cell.ours.calls, _their_calls(sides, cell)),
        kinds=[_kind(sides, cell, kind) for kind in kinds_of(sides, cell)],
        cost=ComparedCost(
            ours=format_cost(cell.ours.cost),
            theirs=None if cell.theirs.cost is None else format_cost(cell.theirs.cost),
            difference=None if difference is None else format_cost(difference),
        ),
        currency=sides.currency,
        matched=cell.matched,
        reasons=cell.reasons,
    )


def _their_calls(sides: Sides, cell: Cell) -> int | None:
    return 0 if cell.theirs.calls is None and sides.states_calls and not cell.has_theirs else cell.theirs.calls


def compared(ours: int | None, theirs: int | None) -> Compared:
    """Two counts and their difference."""
    return Compared(ours=ours, theirs=theirs, difference=None if ours is None or theirs is None else theirs - ours)


def _kind(sides: Sides, cell: Cell, kind: str) -> ComparedKind:
    ours, theirs = cell.ours, cell.theirs
    stated = kind in sides.kinds and (cell.has_theirs or sides.states_tokens)
    quantity = compared(ours.quantities.get(kind, 0), theirs.quantities.get(kind, 0) if stated else None)
    mine, cost = ours.costs.get(kind), theirs.costs.get(kind)
    paid = None
    if mine is not None or cost is not None:
        paid = ComparedCost(
            ours=None if mine is None else format_cost(mine),
            theirs=None if cost is None else format_cost(cost),
            difference=None if mine is None or cost is None else format_cost(cost - mine),
        )
    our_rate, their_rate = rate_of(ours.quantities.get(kind), mine), rate_of(theirs.quantities.get(kind), cost)
    return ComparedKind(
        kind=kind,
        quantity=quantity,
        cost=paid,
        our_rate=None if our_rate is None else per_million(our_rate),
        their_rate=None if their_rate is None else per_million(their_rate),
    )
