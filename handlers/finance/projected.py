"""What a plan costs: calls times the org's rates, by model, month and kind of token. Pure but for asking for prices.

Amounts are fractions of nanos of the reply's currency until the end; then every cell becomes whole nanos together, so
that models, months and items each sum to the whole.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, NamedTuple

import msgspec

from handlers.cost.org_prices import Prices
from handlers.cost.price import Quantities, price
from handlers.cost.rate_card import RateCard, Volume
from handlers.finance.scenario import Stretch, marginal
from handlers.finance.shares import apportion, percent_of
from schemas.projection import ModelShare

_NONE: Final = Fraction(0)
_ONE: Final = Fraction(1)
_UNKNOWN: Final = object()
VOLUME: Final = "volume: "


class Kind(NamedTuple):
    """Units of one kind at one rate; rates are nanos per million in ``currency``."""

    name: str
    rate: int
    list_rate: int
    currency: str


@dataclass(slots=True)
class Amount:
    """Units, and what they cost."""

    quantity: Fraction = _NONE
    cost: Fraction = _NONE
    list_cost: Fraction = _NONE

    def add(self, quantity: Fraction, cost: Fraction, list_cost: Fraction) -> None:
        """Add to it."""
        self.quantity += quantity
        self.cost += cost
        self.list_cost += list_cost


@dataclass(slots=True)
class Part:
    """One model in one month: its amounts by kind, and the volume rules its cards have."""

    requests: Fraction = _NONE
    prompt: Fraction = _NONE
    completion: Fraction = _NONE
    kinds: dict[Kind, Amount] = field(default_factory=dict[Kind, Amount])
    volumes: dict[str, Volume] = field(default_factory=dict[str, Volume])


@dataclass(slots=True)
class Model:
    """One model of the plan: a part for each month, what it is priced by, and what has no price."""

    share: ModelShare
    parts: list[Part] = field(default_factory=list[Part])
    # For each month the part of the model's traffic that each card prices; None: no price.
    cards: list[list[tuple[Fraction, RateCard | None]]] = field(
        default_factory=list[list[tuple[Fraction, RateCard | None]]]
    )
    card: RateCard | None = None
    rules: set[str] = field(default_factory=set[str])
    unpriced: set[str] = field(default_factory=set[str])
    notes: dict[str, None] = field(default_factory=dict[str, None])
    # The one card of all hours of the latest day asked for, in batches and not.
    steady: dict[bool, object] = field(default_factory=dict[bool, object])


class Cell(NamedTuple):
    """Whole nanos of one kind of one model in one month (positions in the lists)."""

    model: int
    month: int
    kind: Kind
    quantity: Fraction
    cost: int
    list_cost: int


class Plan:
    """A plan's conversations, priced model by model; ``worth`` is what a unit of a currency is in the reply's."""

    def __init__(
        self,
        calls: tuple[Quantities, ...],
        per_day: int,
        months: Sequence[Stretch],
        hours: Sequence[int],
        prices: Prices,
        worth: Callable[[str], Fraction],
    ) -> None:
        self._calls = calls
        self._prompt = sum(call.prompt_tokens for call in calls)
        self._completion = sum(call.completion_tokens for call in calls)
        self._per_day = per_day
        self.months = months
        self._hours = tuple(hours)
        self._prices = prices
        self.worth = worth
        self._memory: dict[RateCard, _Conversation] = {}

    def conversations(self, month: Stretch) -> Fraction:
        """How many a month of the plan has."""
        return self._per_day * month.days * month.growth

    def looked_up(self, share: ModelShare) -> Model:
        """A model with the cards that its calls are priced by; asks for prices, and counts nothing yet."""
        found = Model(share)
        batch = percent_of(share.batch_percent)
        for month in self.months:
            cards = [
                (ratio * hours, card)
                for is_batch, ratio in ((False, 1 - batch), (True, batch))
                if ratio
                for card, hours in self._cards(found, month, is_batch)
            ]
            found.cards.append(cards)
        return found

    def count(self, model: Model) -> None:
        """Fill in what a model's calls use and cost in every month. Asks nobody: it may run in a thread."""
        for month, cards in zip(self.months, model.cards, strict=True):
            part = Part()
            conversations = self.conversations(month) * percent_of(model.share.percent)
            part.requests = conversations * len(self._calls)
            part.prompt = conversations * self._prompt
            part.completion = conversations * self._completion
            for ratio, card in cards:
                if card is None:
                    model.unpriced.add("model")
                    continue
                model.card = model.card or card
                model.rules.update(card.rules)
                model.notes.update(dict.fromkeys(card.warnings))
                part.volumes.update({volume.name: volume for volume in card.volumes})
                self._count(model, part, card, conversations * ratio)
            model.parts.append(part)
        if model.unpriced:
            for part in model.parts:
                part.kinds.clear()

    def _cards(self, model: Model, month: Stretch, batch: bool) -> Iterable[tuple[RateCard | None, Fraction]]:
        """The cards in force over the month's first day, and the part of the traffic in the hours of each.

        A card that held all day in the month before, and holds again, is taken to hold all day.
        """
        share = model.share

        def ask(hour: int) -> RateCard | None:
            at = month.at(hour)
            return self._prices.resolve(
                share.provider, share.model, at, service_tier=share.service_tier, batch=batch, region=share.region
            )

        first = ask(self._hours[0])
        if model.steady.get(batch, _UNKNOWN) == first:
            return [(first, _ONE)]
        found: dict[RateCard | None, int] = {first: 1}
        for hour in self._hours[1:]:
            card = ask(hour)
            found[card] = found.get(card, 0) + 1
        model.steady[batch] = first if len(found) == 1 else _UNKNOWN
        if len(found) > 1:
            text = "; ".join(f"{count} of {len(self._hours)} hours at {_named(card)}" for card, count in found.items())
            model.notes[f"prices differ by the hour: {text}"] = None
        return [(card, Fraction(count, len(self._hours))) for card, count in found.items()]

    def _count(self, model: Model, part: Part, card: RateCard, conversations: Fraction) -> None:
        worth = self.worth(card.currency)
        one = self._conversation(card)
        model.unpriced.update(one.unpriced)
        for kind, (quantity, cost, gross) in one.kinds.items():
            amount = part.kinds.setdefault(kind, Amount())
            amount.add(quantity * conversations, cost * worth * conversations, gross * worth * conversations)

    def _conversation(self, card: RateCard) -> "_Conversation":
        """One conversation at a card, before discounts by the month's volume."""
        found = self._memory.get(card)
        if found is None:
            plain = msgspec.structs.replace(card, volumes=())
            found = self._memory[card] = _conversation(plain, self._calls)
        return found


@dataclass(slots=True)
class _Conversation:
    """Units, and nanos at net and at list price of the card's currency, of each kind; what has no rate."""

    kinds: dict[Kind, tuple[int, int, int]] = field(default_factory=dict[Kind, tuple[int, int, int]])
    unpriced: set[str] = field(default_factory=set[str])


def _conversation(card: RateCard, calls: Iterable[Quantities]) -> _Conversation:
    found = _Conversation()
    for call in calls:
        priced = price(card, call)
        found.unpriced.update(priced.unpriced_kinds)
        for item in priced.line_items:
            rate, cost = item.rate_nanos_per_million, item.cost_nanos
            if rate is None or cost is None:
                continue
            listed = item.list_rate_nanos_per_million
            kind = Kind(item.kind, rate, rate if listed is None else listed, card.currency)
            before = found.kinds.get(kind, (0, 0, 0))
            gross = cost if item.list_cost_nanos is None else item.list_cost_nanos
            found.kinds[kind] = (before[0] + item.quantity, before[1] + cost, before[2] + gross)
    return found


def counted(plan: Plan, models: Sequence[Model]) -> list[Cell]:
    """What all models cost, volume rules included."""
    for model in models:
        plan.count(model)
    discount_by_volume(models, len(plan.months), plan.worth)
    return cells(models)


def discount_by_volume(models: Sequence[Model], months: int, worth: Callable[[str], Fraction]) -> None:
    """Add what the rules on a month's volume change, as an item of its own; a month begins with nothing used."""
    for month in range(months):
        parts = [(model, model.parts[month]) for model in models]
        rules = {name: volume for _, part in parts for name, volume in part.volumes.items()}
        for name, volume in sorted(rules.items()):
            concerned = [(model, part) for model, part in parts if name in part.volumes]
            amounts = [_amounts(part, volume) for _, part in concerned]
            seen = sum((_measure(kind, amount, volume, worth) for found in amounts for kind, amount in found), _NONE)
            factor = marginal(volume.steps, seen)
            if factor == 1:
                continue
            for (model, part), found in zip(concerned, amounts, strict=True):
                model.rules.add(volume.label)
                for currency in {kind.currency for kind, _ in found}:
                    own = [amount for kind, amount in found if kind.currency == currency]
                    saved = sum((amount.cost for amount in own), _NONE) * (factor - 1)
                    gross = _NONE if volume.net_only else sum((a.list_cost for a in own), _NONE) * (factor - 1)
                    part.kinds[Kind(VOLUME + name, 0, 0, currency)] = Amount(_NONE, saved, gross)


def cells(models: Sequence[Model]) -> list[Cell]:
    """Every amount in whole nanos; their sums are the rounded sums of the whole."""
    places = [
        (number, month, kind, amount)
        for number, model in enumerate(models)
        for month, part in enumerate(model.parts)
        for kind, amount in part.kinds.items()
    ]
    costs = apportion([place[3].cost for place in places])
    lists = apportion([place[3].list_cost for place in places])
    return [
        Cell(number, month, kind, amount.quantity, cost, list_cost)
        for (number, month, kind, amount), cost, list_cost in zip(places, costs, lists, strict=True)
    ]


def _amounts(part: Part, volume: Volume) -> list[tuple[Kind, Amount]]:
    return [(kind, amount) for kind, amount in part.kinds.items() if kind.name in volume.kinds]


def _measure(kind: Kind, amount: Amount, volume: Volume, worth: Callable[[str], Fraction]) -> Fraction:
    """What a volume rule counts: tokens, or list cost in the card's own currency."""
    return amount.list_cost / worth(kind.currency) if volume.by_cost else amount.quantity


def _named(card: RateCard | None) -> str:
    if card is None:
        return "no price"
    rates = ((name, getattr(card.rates, name)) for name in ("input", "output"))
    return " and ".join(f"{name} {rate / 10**9:g}" for name, rate in rates if rate is not None)
