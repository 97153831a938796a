"""Finds the rate card in force for provider, model, tier, region and time: what every org of this agent has.

Sources of list prices in order, the first that knows wins; then the rules that correct them, the shipped ones and the
operator's. Answers, also the answer "unknown", are kept in a bounded cache with the time for which they hold, so dated
prices and daily windows stay right. Reads no clock.
"""

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from functools import lru_cache

from handlers.cost.bundled import PROVIDER_ALIASES, BundledPrices
from handlers.cost.defaults import default_rules
from handlers.cost.layer import ALWAYS, Answer, Answers, Layer, PriceQuery, Validity
from handlers.cost.rate_card import RateCard
from handlers.cost.rules import Rules, compiled, tier_key
from schemas.base import ID_CHARS_MAX
from schemas.pricing import PriceRule

CACHED_NAMES_MAX = 4096
OPERATOR_FILE = "operator-file"


@lru_cache(maxsize=CACHED_NAMES_MAX)
def provider_key(provider: str) -> str:
    """One spelling of a provider's name: what prices it, limits it and stops it must be the same."""
    return provider.strip().lower()


def query_of(
    provider: str, model: str, at: datetime, *, service_tier: str | None, batch: bool, region: str | None
) -> PriceQuery | None:
    """What a caller asks, in one spelling; None where a name is missing or longer than any."""
    tier = (service_tier or "").strip().lower()
    batch = batch or tier == "batch"
    tier = "" if tier == "batch" else tier_key(tier)
    place = (region or "").strip().lower()
    found = PriceQuery(provider_key(provider), model.strip(), tier, batch, at, place)
    if not found.provider or not found.model or max(map(len, (*found[:3], place))) > ID_CHARS_MAX:
        return None
    return found


class RateCards:
    """Resolves rate cards. Not for several threads at once, except ``warm``.

    ``generation`` grows whenever prices change: answers kept elsewhere are worth no more than it.
    """

    # What every org has is no org's own revision of its prices, and depends on no month's volume.
    revision = 0
    has_volumes = False

    def __init__(self, layers: Sequence[Layer] | None = None, *, cached_names_max: int = CACHED_NAMES_MAX) -> None:
        self._bundled = BundledPrices()
        self._layers: tuple[Layer, ...] = (self._bundled,) if layers is None else tuple(layers)
        self._rules: tuple[Rules, ...] = (default_rules(),) if layers is None else ()
        self._operator: tuple[PriceRule, ...] = ()
        self._answers = Answers(cached_names_max)
        self._dearest: dict[str, tuple[date, RateCard]] = {}
        self.generation = 0

    def warm(self) -> None:
        """Load the bundled prices now (some 200 ms); may run in a thread. Otherwise the first ``resolve`` pays."""
        self._bundled.warm()

    def forget(self) -> None:
        """Drop every cached answer, because a layer's prices have changed."""
        self._answers.clear()
        self._dearest.clear()
        self.generation += 1

    @property
    def operator_rules(self) -> tuple[PriceRule, ...]:
        """The rules of the operator's file."""
        return self._operator

    def use_rules(self, rules: Iterable[PriceRule]) -> None:
        """Take the operator's own rules, in the place of those taken before; they hold for every org of this agent.

        Raises ValueError, and changes nothing, where one of them cannot be applied.
        """
        found = tuple(rules)
        own = Rules(OPERATOR_FILE, (compiled(rule, version="file", validity=_validity(rule)) for rule in found))
        self._rules = (*(layer for layer in self._rules if layer.layer != OPERATOR_FILE), own)
        self._operator = found
        self.forget()

    def over(self, prices: BundledPrices) -> "RateCards":
        """The same with other list prices: for orgs that use a price file."""
        found = RateCards([prices if layer is self._bundled else layer for layer in self._layers])
        found._bundled = prices
        found._rules = self._rules
        found._operator = self._operator
        return found

    @property
    def bundled(self) -> BundledPrices:
        """The list prices in use."""
        return self._bundled

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
        """The card in force at ``at`` (with an offset), or None if no layer prices this model then."""
        key = (provider, model, service_tier, batch, region)
        answer = self._answers.find(key, at) if at.tzinfo is not None else None
        if answer is None:
            answer = self.answer(provider, model, at, service_tier=service_tier, batch=batch, region=region)
            self._answers.keep(key, answer)
        return answer.card

    def answer(
        self, provider: str, model: str, at: datetime, *, service_tier: str | None, batch: bool, region: str | None
    ) -> Answer:
        """The card in force, with how long that stays so; worked out anew."""
        if at.tzinfo is None:
            raise ValueError("the time of a price needs an offset")
        query = query_of(provider, model, at, service_tier=service_tier, batch=batch, region=region)
        return Answer(None) if query is None else self.answer_to(query)

    def answer_to(self, query: PriceQuery) -> Answer:
        """The same for a query in one spelling."""
        found = self._listed(query)
        for rules in self._rules:
            found = rules.apply(query, found, PROVIDER_ALIASES.get(query.provider, ""))
        return found

    def context_window(self, provider: str, model: str, at: datetime) -> int | None:
        """Tokens that fit the model's context, if known."""
        card = self.resolve(provider, model, at)
        return None if card is None else card.context_window

    def dearest(self, provider: str, at: datetime) -> RateCard | None:
        """The highest rate of each kind among a provider's models on that day; None for an unknown provider."""
        key, day = provider_key(provider), at.date()
        known = self._dearest.get(key)
        if known is None or known[0] != day:
            found = self._bundled.dearest(key, at) if self._bundled in self._layers else None
            if found is None:
                return None
            # Only providers that the data knows are kept: a bounded number.
            known = self._dearest[key] = (day, found)
        return known[1]

    def _listed(self, query: PriceQuery) -> Answer:
        validity = ALWAYS
        for layer in self._layers:
            answer = layer(query)
            if answer is None:
                continue
            # A later layer's answer holds only as long as the earlier ones stay silent.
            validity = validity.within(answer.validity)
            if answer.card is not None:
                return Answer(answer.card, validity)
        return Answer(None, validity)


def _validity(rule: PriceRule) -> Validity:
    return Validity(rule.valid_from or ALWAYS.since, rule.valid_to or ALWAYS.until)
