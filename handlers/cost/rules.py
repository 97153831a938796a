"""Price rules, compiled: which apply to a query, how long that stays so, and what they make of a rate card. Pure.

A layer of rules first states rates (the most particular rule that states a whole card, then partial ones over it, the
more particular later), then changes them in the order of ``position``. The operator's layers move list and net price
alike, a contract moves the net price and leaves the list price of the layers below it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import msgspec

from handlers.cost.bundled import PROVIDER_ALIASES
from handlers.cost.drafts import RateDraft
from handlers.cost.hours import Hours
from handlers.cost.layer import ALWAYS, Answer, PriceQuery, Validity
from handlers.cost.rate_card import KINDS, STANDARD_TIERS, TOKEN_KINDS, Volume, rate_nanos
from handlers.patterns import EVERY, pattern_matches
from schemas.money import parse_cost, parse_count
from schemas.pricing import PriceRule

# Besides those of the wire.
NOTE: Final = "note"


class Names(msgspec.Struct, frozen=True):
    """Every name a query's provider and model go by, in lower case."""

    providers: tuple[str, ...]
    models: tuple[str, ...]

    @classmethod
    def of(cls, query: PriceQuery, *more: str) -> "Names":
        """The names of a query, with other names of its provider."""
        model = query.model.lower()
        bare = model.removeprefix("models/")
        return cls(tuple(dict.fromkeys(name for name in (query.provider, *more) if name)), (*{model, bare},))


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a rule, ready to be applied. Rates in nanos per million.

    ``instead_of`` is a note of the layer below without which the rule does not apply; the rule answers it.
    """

    name: str
    label: str
    op: str
    provider: str
    model: str
    kinds: tuple[str, ...]
    service_tier: str | None
    region: str | None
    batch: bool | None
    rates: Mapping[str, int]
    tiers: tuple[tuple[int, Mapping[str, int]], ...]
    partial: bool
    currency: str
    context_window: int | None
    factor: Fraction
    volume: Volume | None
    validity: Validity
    hours: Hours | None
    position: int
    instead_of: str | None = None

    @property
    def particular(self) -> tuple[int, bool, int, int, str]:
        """Orders rules that state rates: longer patterns, then exact names, then more conditions win."""
        text = self.provider + self.model
        conditions = (self.service_tier, self.region, self.batch, self.hours)
        return (
            len(text.replace(EVERY, "")),
            EVERY not in text,
            sum(condition is not None for condition in conditions),
            self.position,
            self.name,
        )

    def concerns(self, query: PriceQuery, names: Names) -> bool:
        """Whether it is about such calls, at whatever time."""
        if self.batch is not None and self.batch != query.batch:
            return False
        if self.service_tier is not None and self.service_tier != query.service_tier:
            return False
        if self.region is not None and not pattern_matches(self.region, query.region):
            return False
        return any(pattern_matches(self.provider, name) for name in names.providers) and any(
            pattern_matches(self.model, name) for name in names.models
        )

    def during(self, at: datetime) -> tuple[bool, Validity]:
        """Whether it holds at a time, and how long that stays so."""
        since, until = self.validity
        if at < since:
            return False, Validity(ALWAYS.since, since)
        if at >= until:
            return False, Validity(until, ALWAYS.until)
        if self.hours is None:
            return True, self.validity
        held, around = self.hours.during(at)
        return held, around.within(self.validity)


def compiled(
    rule: PriceRule, *, version: int | str, validity: Validity = ALWAYS, instead_of: str | None = None
) -> Rule:
    """A rule of the wire, ready to be applied in ``validity``. Raises ValueError where a figure of it is none."""
    label = f"{rule.name}@{version}"
    provider = rule.provider.strip().lower()
    tier = None if rule.service_tier is None else tier_key(rule.service_tier)
    return Rule(
        name=rule.name,
        label=label,
        op=rule.op,
        provider=PROVIDER_ALIASES.get(provider, provider),
        model=rule.model.strip().lower(),
        kinds=tuple(rule.kinds),
        service_tier=tier,
        region=None if rule.region is None else rule.region.strip().lower(),
        batch=rule.batch,
        rates=_nanos(rule.rates),
        tiers=tuple(sorted((t.above_prompt_tokens, _nanos(t.rates)) for t in rule.tiers)),
        partial=rule.partial,
        currency=rule.currency,
        context_window=rule.context_window,
        factor=Fraction(1) if rule.factor is None else Fraction(Decimal(rule.factor)),
        volume=_volume(rule, label) if rule.op in ("volume", "commitment") else None,
        validity=validity,
        hours=None if rule.daily is None else Hours.of(rule.daily),
        position=rule.position,
        instead_of=instead_of,
    )


def noting(note: str, *, provider: str, model: str, validity: Validity) -> Rule:
    """A rule that changes no rate: it puts a note on the card."""
    rule = PriceRule(name=note, layer="operator", op="multiply", provider=provider, model=model)
    return msgspec.structs.replace(compiled(rule, version=note, validity=validity), op=NOTE)


def tier_key(service_tier: str) -> str:
    """One spelling of a service tier; the ordinary one has many names."""
    found = service_tier.strip().lower()
    return "" if found in STANDARD_TIERS else found


def _nanos(rates: Mapping[Any, str]) -> dict[str, int]:
    return {kind: rate_nanos(Decimal(rate)) for kind, rate in rates.items()}


def _volume(rule: PriceRule, label: str) -> Volume:
    by_cost = rule.op == "commitment" or rule.tiers_by == "list_cost"
    if rule.op == "commitment":
        factor = Fraction(1) if rule.factor is None else Fraction(Decimal(rule.factor))
        steps = [(0, factor), (parse_cost(rule.amount or "0"), Fraction(1))]
    else:
        parse = parse_cost if by_cost else parse_count
        steps = [(parse(step.above), Fraction(Decimal(step.factor))) for step in rule.volume]
    kinds = rule.kinds or (KINDS if by_cost else TOKEN_KINDS)
    counted = frozenset(kinds) if by_cost else frozenset(kinds) & frozenset(TOKEN_KINDS)
    steps.sort(key=lambda step: step[0])
    return Volume(rule.name, label, counted, by_cost, tuple(steps), rule.layer == "contract")


class Rules:
    """The rules of one layer, in every version that prices may be asked for."""

    def __init__(self, layer: str, rules: Iterable[Rule]) -> None:
        self.layer = layer
        self.rules: tuple[Rule, ...] = tuple(rules)
        self.has_volumes = any(rule.volume is not None for rule in self.rules)
        self._by_provider: dict[str, list[Rule]] = {}
        self._others: list[Rule] = []
        for rule in self.rules:
            if EVERY in rule.provider:
                self._others.append(rule)
            else:
                self._by_provider.setdefault(rule.provider, []).append(rule)

    def __bool__(self) -> bool:
        return bool(self.rules)

    def apply(self, query: PriceQuery, below: Answer, *also: str) -> Answer:
        """The answer of the layer below as these rules change it; ``also`` are other names of the provider."""
        if not self.rules:
            return below
        card = below.card
        names = Names.of(query, *also, "" if card is None else card.provider)
        held, validity = self._held(query, names, below.validity)
        notes = () if card is None else card.notes
        held = [rule for rule in held if rule.instead_of is None or rule.instead_of in notes]
        if not held:
            return Answer(card, validity)
        draft = RateDraft.of(card, query)
        self._state(draft, [rule for rule in held if rule.op == "rates"], query)
        if draft.stated:
            for rule in sorted((r for r in held if r.op != "rates"), key=lambda r: (r.position, r.name)):
                draft.change(rule, net_only=self.layer == "contract")
        return Answer(draft.card() if draft.stated else None, validity)

    def _held(self, query: PriceQuery, names: Names, validity: Validity) -> tuple[list[Rule], Validity]:
        held: list[Rule] = []
        for rules in (*(self._by_provider.get(name, ()) for name in names.providers), self._others):
            for rule in rules:
                if rule.concerns(query, names):
                    now, around = rule.during(query.at)
                    validity = validity.within(around)
                    if now:
                        held.append(rule)
        return held, validity

    def _state(self, draft: RateDraft, rules: Sequence[Rule], query: PriceQuery) -> None:
        """Let the most particular whole card replace what is below, and more particular partial ones amend it."""
        net_only = self.layer == "contract"
        ranked = sorted(rules, key=lambda rule: rule.particular)
        whole = max((i for i, rule in enumerate(ranked) if not rule.partial), default=-1)
        if whole >= 0:
            draft.replace(ranked[whole], source=self.layer, net_only=net_only)
            draft.assume(ranked[whole], query)
        for rule in ranked[whole + 1 :]:
            draft.overlay(rule, source=self.layer, net_only=net_only)
