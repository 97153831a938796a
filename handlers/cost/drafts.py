"""A rate card while rules work on it: what is stated, at list and net, for each tier of the prompt's length."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from handlers.cost.layer import PriceQuery
from handlers.cost.rate_card import BILLED_AS, RateCard, Rates, Tier, Volume, stated, times

if TYPE_CHECKING:
    from handlers.cost.rules import Rule

# Below every prompt: the first step holds the base rates.
_BASE: Final = -1
# A kind is changed where it is stated, or where what it is billed as is. 12 hour writes are billed as nothing else: a
# list price may derive them from the ordinary write, a contract has nothing to take off.
_DERIVED: Final = {**BILLED_AS, "cache_write_12h": "cache_write"}
# Notes that a card of the org's own keeps of the one it takes the place of.
_RETIRED: Final = "deprecated"
_OTHER_LIST: Final = "list_price_in_"

_Stated = dict[str, int]


class _Step:
    """Rates above a length of the prompt."""

    __slots__ = ("above", "listed", "net")

    def __init__(self, above: int, net: Mapping[str, int], listed: Mapping[str, int]) -> None:
        self.above = above
        self.net = dict(net)
        self.listed = dict(listed)


class RateDraft:
    """The rates of a query as far as the layers below have come."""

    def __init__(self, query: PriceQuery) -> None:
        self.stated = False
        self._provider, self._model = query.provider, query.model
        self._source = self._version = ""
        self._currency = "USD"
        self._context_window: int | None = None
        self._max_output_tokens: int | None = None
        self._steps: list[_Step] = []
        self._notes: list[str] = []
        self._rules: list[str] = []
        self._versions: list[str] = []
        self._volumes: list[Volume] = []

    @classmethod
    def of(cls, card: RateCard | None, query: PriceQuery) -> "RateDraft":
        """What a card states; with nothing stated where there is none."""
        draft = cls(query)
        if card is not None:
            draft.stated = True
            draft._provider, draft._model = card.provider, card.model
            draft._source, draft._currency = card.source, card.currency
            draft._versions = [card.version]
            draft._context_window, draft._max_output_tokens = card.context_window, card.max_output_tokens
            draft._notes, draft._rules, draft._volumes = list(card.notes), list(card.rules), list(card.volumes)
            net = stated(card.rates)
            draft._steps = [_Step(_BASE, net, net if card.list_rates is None else stated(card.list_rates))]
            for tier in card.tiers:
                net = stated(tier.rates)
                listed = net if tier.list_rates is None else stated(tier.list_rates)
                draft._steps.append(_Step(tier.above, net, listed))
        return draft

    def replace(self, rule: "Rule", *, source: str, net_only: bool) -> None:
        """A rule states the whole card. A contract leaves the list price where there is one to compare with."""
        before = self._steps
        keeps_list = net_only and self.stated
        if keeps_list and rule.currency != self._currency:
            keeps_list = False
            self._notes.append(f"{_OTHER_LIST}{self._currency}")
        steps = {_BASE: dict(rule.rates)} | {above: {**rule.rates, **rates} for above, rates in rule.tiers}
        aboves = sorted({*steps, *(step.above for step in before if keeps_list)})
        self._steps = []
        for above in aboves:
            net = steps[max(start for start in steps if start <= above)]
            self._steps.append(_Step(above, net, _at(before, above).listed if keeps_list else net))
        self.stated = True
        self._source, self._currency = source, rule.currency
        self._volumes = [volume for volume in self._volumes if keeps_list and not volume.net_only]
        self._notes = [note for note in self._notes if note == _RETIRED or note.startswith(_OTHER_LIST)]
        self._context_window = rule.context_window or self._context_window
        below = f"list {'; '.join(self._versions)}"
        self._rules = [*self._rules, rule.label] if keeps_list else [rule.label]
        self._versions = [rule.label, below] if keeps_list else [rule.label]

    def assume(self, rule: "Rule", query: PriceQuery) -> None:
        """Note what a whole card says nothing about."""
        if query.batch and rule.batch is None:
            self._notes.append("batch_unknown")
        if query.service_tier and rule.service_tier is None:
            self._notes.append("service_tier_unknown")

    def overlay(self, rule: "Rule", *, source: str, net_only: bool) -> None:
        """A rule states some rates; the others are those of the layer below."""
        if not self.stated:
            self.replace(rule, source=source, net_only=False)
            return
        if rule.currency != self._currency:
            # Rates of two currencies do not make one card.
            self._notes.append(f"rule_not_applied:{rule.label}")
            return
        before = self._steps
        steps = {_BASE: dict(rule.rates)} | {above: {**rule.rates, **rates} for above, rates in rule.tiers}
        aboves = sorted({*steps, *(step.above for step in before)})
        self._steps = []
        for above in aboves:
            below, says = _at(before, above), steps[max(start for start in steps if start <= above)]
            listed = below.listed if net_only else {**below.listed, **says}
            self._steps.append(_Step(above, {**below.net, **says}, listed))
        self._context_window = rule.context_window or self._context_window
        self._mark(rule)

    def change(self, rule: "Rule", *, net_only: bool) -> None:
        """A rule changes what is stated."""
        if rule.op == "note":
            self._notes.append(rule.name)
            return
        needs = rule.rates or (rule.volume is not None and rule.volume.by_cost)
        if needs and rule.currency != self._currency:
            self._notes.append(f"rule_not_applied:{rule.label}")
            return
        if rule.volume is not None:
            self._volumes.append(rule.volume)
            self._rules.append(rule.label)
            return
        before = [(dict(step.net), dict(step.listed)) for step in self._steps]
        for step in self._steps:
            _change(step.net, rule, BILLED_AS if net_only else _DERIVED)
            if not net_only:
                _change(step.listed, rule, _DERIVED)
        if before == [(step.net, step.listed) for step in self._steps]:
            return
        answered = {
            "batch_unknown" if rule.batch else None,
            None if rule.service_tier is None else "service_tier_unknown",
        }
        self._notes = [note for note in self._notes if note not in answered]
        self._mark(rule)

    def card(self) -> RateCard:
        """The card."""
        base, *others = self._steps
        differs = any(step.net != step.listed for step in self._steps)
        return RateCard(
            provider=self._provider,
            model=self._model,
            source=self._source,
            version="; ".join(self._versions),
            rates=Rates(**base.net),
            list_rates=Rates(**base.listed) if differs else None,
            tiers=tuple(
                Tier(step.above, Rates(**step.net), Rates(**step.listed) if differs else None) for step in others
            ),
            rules=tuple(self._rules),
            context_window=self._context_window,
            max_output_tokens=self._max_output_tokens,
            currency=self._currency,
            notes=tuple(self._notes),
            volumes=tuple(self._volumes),
        )

    def _mark(self, rule: "Rule") -> None:
        self._rules.append(rule.label)
        self._versions.append(rule.label)


def _change(rates: _Stated, rule: "Rule", derived: Mapping[str, str]) -> None:
    before = dict(rates)
    kinds = rule.kinds or tuple(rule.rates if rule.op == "add" else before)
    for kind in kinds:
        rate = before.get(kind)
        billed_as = derived.get(kind, "")
        if rate is None and billed_as not in kinds:
            rate = before.get(billed_as)
        if rate is not None:
            rates[kind] = rate + rule.rates.get(kind, 0) if rule.op == "add" else times(rate, rule.factor)


def _at(steps: list[_Step], above: int) -> _Step:
    """The step that a prompt just above a length is on."""
    return [step for step in steps if step.above <= above][-1]
