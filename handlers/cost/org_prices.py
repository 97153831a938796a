"""The prices one org's calls are made at: its own rules and aliases over what every org has."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Protocol

import msgspec

from handlers.cost.bundled import PROVIDER_ALIASES
from handlers.cost.layer import ALWAYS, Answer, Answers, PriceQuery, Validity
from handlers.cost.price_book import NO_BOOK, SELF_HOSTED, PriceBook, named
from handlers.cost.rate_card import KINDS, RateCard, Rates, stated
from handlers.cost.resolve import RateCards, provider_key, query_of

# Names whose answers an org with rules of its own keeps.
CACHED_NAMES_MAX: Final = 4096
_FREE: Final = Rates(**dict.fromkeys(KINDS, 0))
_INCOMPLETE: Final = "price_history_incomplete"


class Prices(Protocol):
    """Whatever finds the rate card of a call. ``revision`` tells an org's prices from those it had before."""

    @property
    def revision(self) -> int:
        """0: the org has decided nothing about its prices."""
        ...

    @property
    def has_volumes(self) -> bool:
        """Whether any price depends on what a month has seen so far."""
        ...

    def resolve(
        self,
        provider: str,
        model: str,
        at: datetime,
        *,
        service_tier: str | None = None,
        batch: bool = False,
        region: str | None = None,
    ) -> RateCard | None:
        """The card in force at ``at`` (with an offset), or None if nothing prices this model then."""
        ...

    def dearest(self, provider: str, at: datetime) -> RateCard | None:
        """The highest known rate of each kind among a provider's models; None where none is known."""
        ...


class OrgPrices:
    """An org's prices as of one version of its catalogue. Layers: contract, operator, then what every org has."""

    def __init__(self, cards: RateCards, book: PriceBook = NO_BOOK) -> None:
        self._cards = cards
        self._generation = cards.generation
        self._plain = book.is_plain
        self._answers = Answers(CACHED_NAMES_MAX)
        self.book = book
        self.revision = book.revision
        self.has_volumes = book.has_volumes

    def resolve(
        self,
        provider: str,
        model: str,
        at: datetime,
        *,
        service_tier: str | None = None,
        batch: bool = False,
        region: str | None = None,
    ) -> RateCard | None:
        """As ``Prices.resolve``."""
        if self._plain:
            return self._cards.resolve(provider, model, at, service_tier=service_tier, batch=batch, region=region)
        if at.tzinfo is None:
            raise ValueError("the time of a price needs an offset")
        if self._generation != self._cards.generation:
            self._answers.clear()
            self._generation = self._cards.generation
        key = (provider, model, service_tier, batch, region)
        answer = self._answers.find(key, at)
        if answer is None:
            query = query_of(provider, model, at, service_tier=service_tier, batch=batch, region=region)
            answer = Answer(None) if query is None else self._answer(query)
            self._answers.keep(key, answer)
        return answer.card

    def dearest(self, provider: str, at: datetime) -> RateCard | None:
        """As ``Prices.dearest``, the org's own rates and the rates it has set for unpriced calls included."""
        found = self._cards.dearest(provider, at)
        highest = {} if found is None else stated(found.rates)
        for rates in self._own_rates(provider_key(provider), at):
            for kind, rate in rates.items():
                highest[kind] = max(rate, highest.get(kind, 0))
        if not {"input", "output"} <= highest.keys():
            return self.book.fallback()
        return RateCard(
            provider=provider_key(provider),
            model="*",
            source="estimate",
            version="dearest",
            rates=Rates(**highest),
        )

    def _own_rates(self, provider: str, at: datetime) -> list[Mapping[str, int]]:
        """Rates in USD that the org's own rules state for a provider."""
        rules = (*self.book.operator.rules, *self.book.contract.rules)
        found = (rule for rule in rules if rule.op == "rates" and rule.provider == provider and rule.currency == "USD")
        return [rule.rates for rule in found if rule.during(at)[0]]

    def target(self, provider: str, model: str, at: datetime) -> tuple[str, str]:
        """Provider and model by the names that list prices know them by: those an alias stands for."""
        query = query_of(provider, model, at, service_tier=None, batch=False, region=None)
        if query is None:
            return provider_key(provider), model.strip()
        found, _, _ = self._renamed(query)
        return found.provider, found.model

    def _answer(self, query: PriceQuery) -> Answer:
        query, label, validity = self._renamed(query)
        below = self._below(query)
        found = Answer(below.card, below.validity.within(validity))
        other_name = PROVIDER_ALIASES.get(query.provider, "")
        for rules in (self.book.operator, self.book.contract):
            found = rules.apply(query, found, other_name)
        card = found.card
        if card is None:
            return found
        if label:
            card = msgspec.structs.replace(card, rules=(*card.rules, label))
        notes = [f"rule_unreadable:{name}" for name in self.book.unreadable]
        since = self.book.complete_since
        if since is not None:
            if query.at < since:
                notes.append(_INCOMPLETE)
            found = Answer(card, found.validity.within(_side(since, query.at)))
        if notes:
            card = msgspec.structs.replace(card, notes=(*card.notes, *notes))
        return Answer(card, found.validity)

    def _below(self, query: PriceQuery) -> Answer:
        if query.provider in self.book.self_hosted:
            return Answer(
                RateCard(
                    provider=query.provider,
                    model=query.model,
                    source=SELF_HOSTED,
                    version="self_hosted_providers",
                    rates=_FREE,
                )
            )
        return self._cards.answer_to(query)

    def _renamed(self, query: PriceQuery) -> tuple[PriceQuery, str | None, Validity]:
        """The call by its model's own name, the alias it went by, and how long that stays so."""
        validity = ALWAYS
        model = query.model.lower()
        for alias in self.book.aliases:
            if named(alias, query.provider, model):
                if alias.validity.covers(query.at):
                    to_provider = alias.to_provider or query.provider
                    renamed = query._replace(provider=to_provider, model=alias.to_model)
                    return renamed, alias.label, validity.within(alias.validity)
                validity = validity.within(_side(alias.validity.since, query.at))
                validity = validity.within(_side(alias.validity.until, query.at))
        return query, None, validity


def _side(edge: datetime, at: datetime) -> Validity:
    """The time on that side of an edge on which ``at`` is."""
    return Validity(edge, ALWAYS.until) if at >= edge else Validity(ALWAYS.since, edge)
