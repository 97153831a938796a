"""Our usage and their bill in the same form: per day and model, quantities and costs by kind. Pure.

Models are matched by what prices them, so that a dated snapshot, an alias of the org and the name on an invoice
("Claude Sonnet 4.5") meet. Kinds that the bill does not tell apart are counted where it counts them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

from handlers.finance.bill_lines import CALLS
from store.bills import LineRecord

# Where a kind is counted if the bill does not know it by itself.
COUNTED_WITH: Final[dict[str, str]] = {
    "reasoning": "output",
    "cache_write_12h": "cache_write_1h",
    "cache_write_1h": "cache_write",
    "cache_write": "input",
    "cache_read": "input",
    "audio_cache_read": "audio_input",
    "audio_input": "input",
    "image_input": "input",
    "video_input": "input",
    "audio_output": "output",
    "image_output": "output",
}
CACHE_KINDS: Final = frozenset({"cache_read", "cache_write", "cache_write_1h", "cache_write_12h", "audio_cache_read"})
TOKEN_KINDS: Final = frozenset({"input", "output", *COUNTED_WITH})
Counts = dict[str, int]


@dataclass(slots=True)
class Ours:
    """What we recorded for one day and model; costs in nanos of ``currency``, by kind where line items say."""

    names: set[str] = field(default_factory=set[str])
    calls: int = 0
    quantities: Counts = field(default_factory=Counts)
    costs: Counts = field(default_factory=Counts)
    tiers: Counts = field(default_factory=Counts)
    cost: int = 0
    list_cost: int = 0
    unpriced: int = 0
    recorded_cost: int = 0
    recorded_calls: int = 0
    adjustments: int = 0


@dataclass(slots=True)
class Theirs:
    """What the bill says for one day and model. ``cost`` and ``calls`` None: not stated. ``doubt``: what rounding may
    have taken from the cost, in nanos, and by kind in ``doubts``.
    """

    names: set[str] = field(default_factory=set[str])
    calls: int | None = None
    quantities: Counts = field(default_factory=Counts)
    costs: Counts = field(default_factory=Counts)
    tiers: Counts = field(default_factory=Counts)
    cost: int | None = None
    doubt: int = 0
    doubts: Counts = field(default_factory=Counts)


Key = tuple[date, str | None]


@dataclass(slots=True)
class Sides:
    """Both, by day and model, in one currency. ``kinds`` are those whose quantities the bill tells apart."""

    currency: str
    ours: dict[Key, Ours] = field(default_factory=dict[Key, Ours])
    theirs: dict[Key, Theirs] = field(default_factory=dict[Key, Theirs])
    kinds: frozenset[str] = frozenset()
    cost_kinds: frozenset[str] = frozenset()
    states_calls: bool = False
    states_costs: bool = False
    other_currencies: dict[Key, dict[str, int]] = field(default_factory=dict[Key, dict[str, int]])

    @property
    def states_tokens(self) -> bool:
        """Whether the bill has quantities at all."""
        return bool(self.kinds)


# Of each name that usage or the bill has, the name under which it is compared.
Names = Mapping[str, str]


def their_side(lines: Sequence[LineRecord], names: Names, *, currency: str | None) -> Sides:
    """The bill by day and model. ``currency`` None: that of most of its costs.

    Quantities of a cost export repeat those of a usage export, so they count only where there is none.
    """
    stated = [line for line in lines if line.cost is not None]
    sides = Sides(currency or _commonest(line.currency for line in stated) or "USD")
    usage = any(not line.format.endswith(("_costs", "_cost")) for line in lines if line.quantity is not None)
    kinds: set[str] = set()
    cost_kinds: set[str] = set()
    for line in lines:
        key = (line.day, names[line.model] if line.model else None)
        found = sides.theirs.setdefault(key, Theirs())
        if line.model:
            found.names.add(line.model)
        if line.quantity is not None and (not usage or not line.format.endswith(("_costs", "_cost"))):
            _count(found, line)
            if line.kind != CALLS:
                kinds.add(line.kind)
        if line.cost is not None and line.currency == sides.currency:
            _charge(found, line)
            cost_kinds.add(line.kind)
        elif line.cost is not None:
            others = sides.other_currencies.setdefault(key, {})
            others[line.currency] = others.get(line.currency, 0) + line.cost
    sides.kinds = frozenset(kinds)
    sides.cost_kinds = frozenset(cost_kinds - {""})
    sides.states_calls = any(found.calls is not None for found in sides.theirs.values())
    sides.states_costs = bool(stated)
    return sides


def _commonest(codes: Iterable[str]) -> str | None:
    counted: Counts = {}
    for code in codes:
        counted[code] = counted.get(code, 0) + 1
    return max(sorted(counted), key=lambda code: counted[code], default=None)


def _count(found: Theirs, line: LineRecord) -> None:
    quantity = line.quantity or 0
    if line.kind == CALLS:
        found.calls = (found.calls or 0) + quantity
        return
    _add(found.quantities, line.kind, quantity)
    if line.kind in TOKEN_KINDS:
        _add(found.tiers, line.tier, quantity)


def _charge(found: Theirs, line: LineRecord) -> None:
    cost = line.cost or 0
    found.cost = (found.cost or 0) + cost
    _add(found.costs, line.kind, cost)
    # Half a unit of the last decimal for each amount that was added.
    doubt = line.cells * 10 ** (9 - line.decimals) // 2
    found.doubt += doubt
    _add(found.doubts, line.kind, doubt)


def add_ours(
    sides: Sides, calls: Sequence[Mapping[str, Any]], kinds: Sequence[Mapping[str, Any]], names: Names, *, net: bool
) -> None:
    """Our usage beside the bill, as ``store.bills`` sums it; what is in another currency is kept apart."""
    for row in calls:
        key = (row["day"], names[row["model"]])
        if row["currency"] != sides.currency and row["cost"]:
            others = sides.other_currencies.setdefault(key, {})
            others[row["currency"]] = others.get(row["currency"], 0) + row["cost"]
        found = sides.ours.setdefault(key, Ours())
        found.names.add(row["model"])
        found.calls += row["calls"]
        found.unpriced += row["unpriced"]
        found.recorded_calls += row["recorded_calls"]
        found.adjustments += row["adjustments"]
        if row["currency"] == sides.currency:
            found.cost += row["cost"] if net else row["list_cost"]
            found.list_cost += row["list_cost"]
            found.recorded_cost += row["recorded_cost"]
    for row in kinds:
        key = (row["day"], names[row["model"]])
        found = sides.ours.setdefault(key, Ours())
        kind = counted_as(row["kind"], sides.kinds or sides.cost_kinds)
        _add(found.quantities, kind, row["quantity"])
        if row["kind"] in TOKEN_KINDS:
            _add(found.tiers, row["tier"], row["quantity"])
        cost = row["cost"] if net else row["list_cost"]
        if cost is not None and row["currency"] == sides.currency:
            _add(found.costs, kind, cost)


def counted_as(kind: str, known: frozenset[str]) -> str:
    """The kind under which the bill counts one of ours."""
    found = kind
    while found not in known and found in COUNTED_WITH:
        found = COUNTED_WITH[found]
    return found if found in known else kind


def _add(counts: Counts, key: str, value: int) -> None:
    counts[key] = counts.get(key, 0) + value


_VERSION: Final = re.compile(r"claude-(opus|sonnet|haiku)-([0-9]+(?:-[0-9]+)?)")


def spellings(name: str) -> tuple[str, ...]:
    """How a model's name on a bill may be written elsewhere, the likeliest first."""
    slug = name.strip().lower().replace(" ", "-")
    dashed = slug.replace(".", "-")
    older = _VERSION.fullmatch(dashed)
    found = (name.strip(), slug, dashed, *((f"claude-{older[2]}-{older[1]}",) if older else ()))
    return tuple(dict.fromkeys(found))
