"""Decides who bears what: sums of usage and rules in, exact parts out. Pure.

Everything is a fraction of the reply's currency until the end; then all parts become nanos together, so that what is
allocated and what is not sum to the rounded total, to the nano.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from typing import Final, NamedTuple

from handlers.finance.shares import apportion_pairs, percent_of
from schemas.allocation import AllocationRule
from store.finance import BorneSum

_NONE: Final = Fraction(0)
_OWN_USE: Final = {"by_cost": "cost", "by_tokens": "tokens", "by_requests": "requests"}


@dataclass(slots=True)
class Use:
    """What was used, in fractions of nanos of one currency."""

    cost: Fraction = _NONE
    list_cost: Fraction = _NONE
    requests: int = 0
    tokens: int = 0
    unpriced: int = 0

    def add(self, found: BorneSum, rate: Fraction) -> None:
        """Add a sum at what its currency is worth."""
        self.cost += found.cost * rate
        self.list_cost += found.list_cost * rate
        self.requests += found.requests
        self.tokens += found.tokens
        self.unpriced += found.unpriced


class Part(NamedTuple):
    """Nanos at net and at list price."""

    cost: int
    list_cost: int


_NOTHING: Final = Part(0, 0)


@dataclass(slots=True)
class Bearer:
    """One entity: what it used itself, and what it bears of each shared cost (by the rule's position)."""

    use: Use = field(default_factory=Use)
    direct: Part = _NOTHING
    shares: dict[int, Part] = field(default_factory=dict[int, Part])

    @property
    def cost(self) -> int:
        """All it bears."""
        return self.direct.cost + sum(part.cost for part in self.shares.values())

    @property
    def list_cost(self) -> int:
        """The same at list price."""
        return self.direct.list_cost + sum(part.list_cost for part in self.shares.values())


@dataclass(slots=True)
class Pool:
    """One shared cost: what was used of it, who bears it, and the rest that nobody does, with the reason.

    Everybody bears their weight's part of ``of``; what ``of`` is more than all weights, nobody bears.
    """

    use: Use = field(default_factory=Use)
    weights: dict[str, int] = field(default_factory=dict[str, int])
    of: int = 1
    rest: Part = _NOTHING
    reason: str | None = None

    def ratio(self, entity: str) -> Fraction:
        """The part of one that an entity bears."""
        return Fraction(self.weights.get(entity, 0), self.of)

    @property
    def left(self) -> int:
        """The weight of nobody."""
        return self.of - sum(self.weights.values())


@dataclass(slots=True)
class Allocated:
    """The whole: entities by name, shared costs in the order of the rules, usage of nobody, and the totals."""

    bearers: dict[str, Bearer]
    pools: list[Pool]
    nobody: Use
    unattributed: Part
    total: int
    total_list: int


def allocate(sums: Sequence[BorneSum], rules: Sequence[AllocationRule], rate: Callable[[str], Fraction]) -> Allocated:
    """Split sums by rules; ``rate`` says what one unit of a currency is worth in the reply's."""
    bearers: dict[str, Bearer] = {}
    pools = [Pool() for _ in rules]
    nobody = Use()
    for found in sums:
        if found.rule is not None:
            pools[found.rule].use.add(found, rate(found.currency))
        elif found.entity is None:
            nobody.add(found, rate(found.currency))
        else:
            bearers.setdefault(found.entity, Bearer()).use.add(found, rate(found.currency))
    own = {entity: bearer.use for entity, bearer in sorted(bearers.items())}
    for rule, pool in zip(rules, pools, strict=True):
        pool.weights, pool.of, pool.reason = _weights(rule, own)
        for entity in pool.weights:
            bearers.setdefault(entity, Bearer())
    result = Allocated(dict(sorted(bearers.items())), pools, nobody, _NOTHING, 0, 0)
    _round(result)
    return result


def shares_of(
    entity: str, sums: Sequence[BorneSum], rules: Sequence[AllocationRule], rate: Callable[[str], Fraction]
) -> dict[tuple[str, str], Part]:
    """What one entity bears of each shared cost, by rule and currency, in nanos of that currency.

    Over all entities, and what nobody bears, the parts of a shared cost sum to it, to the nano.
    """
    result = allocate(sums, rules, rate)
    found: dict[tuple[str, str], Part] = {}
    for number, (rule, pool) in enumerate(zip(rules, result.pools, strict=True)):
        if entity not in pool.weights:
            continue
        place = list(pool.weights).index(entity)
        weights = [*pool.weights.values(), pool.left]
        for currency in sorted({borne.currency for borne in sums if borne.rule == number}):
            own = [borne for borne in sums if borne.rule == number and borne.currency == currency]
            cost, list_cost = sum(borne.cost for borne in own), sum(borne.list_cost for borne in own)
            costs = apportion_pairs([(cost * weight, pool.of) for weight in weights])
            lists = apportion_pairs([(list_cost * weight, pool.of) for weight in weights])
            found[rule.name, currency] = Part(costs[place], lists[place])
    return found


_Weights = tuple[dict[str, int], int, str | None]


def _weights(rule: AllocationRule, own: dict[str, Use]) -> _Weights:
    """What each entity bears, of how much, and why nobody does where there is nobody."""
    if rule.split == "fixed":
        parts = {entity: percent_of(percent) for entity, percent in sorted(rule.percents.items())}
        scale = lcm(*(part.denominator for part in parts.values()))
        return {entity: int(part * scale) for entity, part in parts.items()}, scale, None
    wanted = sorted(rule.among) or list(own)
    if rule.split == "even":
        reason = None if wanted else "nobody has usage of their own in this period"
        return dict.fromkeys(wanted, 1), max(len(wanted), 1), reason
    measure = _OWN_USE[rule.split]
    used = {entity: Fraction(getattr(own[entity], measure)) for entity in wanted if entity in own}
    scale = lcm(*(value.denominator for value in used.values()))
    # Whose corrections exceed its usage bears nothing, rather than being paid by the others.
    weights = {entity: int(value * scale) for entity, value in used.items() if value > 0}
    if not weights:
        return {}, 1, f"nobody has {measure} of their own in this period to split by"
    return weights, sum(weights.values()), None


def _round(result: Allocated) -> None:
    """Make every part whole nanos, all at once."""
    places: list[tuple[str | None, int]] = []  # Entity (None: nobody) and rule (-1: of its own).
    net: list[tuple[int, int]] = []
    gross: list[tuple[int, int]] = []

    def part(entity: str | None, rule: int, use: Use, weight: int = 1, of: int = 1) -> None:
        places.append((entity, rule))
        net.append((use.cost.numerator * weight, use.cost.denominator * of))
        gross.append((use.list_cost.numerator * weight, use.list_cost.denominator * of))

    for entity, bearer in result.bearers.items():
        part(entity, -1, bearer.use)
    part(None, -1, result.nobody)
    for number, pool in enumerate(result.pools):
        for entity, weight in pool.weights.items():
            part(entity, number, pool.use, weight, pool.of)
        part(None, number, pool.use, pool.left, pool.of)
    costs, lists = apportion_pairs(net), apportion_pairs(gross)
    for (entity, number), cost, list_cost in zip(places, costs, lists, strict=True):
        found = Part(cost, list_cost)
        if entity is None and number < 0:
            result.unattributed = found
        elif entity is None:
            result.pools[number].rest = found
        elif number < 0:
            result.bearers[entity].direct = found
        else:
            result.bearers[entity].shares[number] = found
    result.total, result.total_list = sum(costs), sum(lists)
