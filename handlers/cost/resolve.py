"""Finds the rate card in force for provider, model, tier and time: layers in order, the first that knows wins.

Answers, also the answer "unknown", are kept in a bounded cache with the time for which they hold, so dated prices and
daily windows stay right. Reads no clock.
"""

from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

from handlers.cost.bundled import BundledPrices
from handlers.cost.layer import ALWAYS, Answer, Layer, PriceQuery
from handlers.cost.rate_card import RateCard
from schemas.base import ID_CHARS_MAX

CACHED_NAMES_MAX = 4096
# A name's answers of different times; two price changes and the daily windows of a day fit.
ANSWERS_PER_NAME_MAX = 8

Key = tuple[str, str, str | None, bool]


@lru_cache(maxsize=CACHED_NAMES_MAX)
def provider_key(provider: str) -> str:
    """One spelling of a provider's name: what prices it, limits it and stops it must be the same."""
    return provider.strip().lower()


class RateCards:
    """Resolves rate cards. Not for several threads at once, except ``warm``."""

    def __init__(self, layers: Sequence[Layer] | None = None, *, cached_names_max: int = CACHED_NAMES_MAX) -> None:
        self._bundled = BundledPrices()
        self._layers: tuple[Layer, ...] = (self._bundled,) if layers is None else tuple(layers)
        self._cached_names_max = cached_names_max
        self._cache: OrderedDict[Key, list[Answer]] = OrderedDict()

    def warm(self) -> None:
        """Load the bundled prices now (some 200 ms); may run in a thread. Otherwise the first ``resolve`` pays."""
        self._bundled.warm()

    def forget(self) -> None:
        """Drop every cached answer, because a layer's prices have changed."""
        self._cache.clear()

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
        if at.tzinfo is None:
            raise ValueError("the time of a price needs an offset")
        key = (provider, model, service_tier, batch)
        answers = self._cache.get(key)
        if answers is not None:
            for answer in answers:
                if answer.validity.covers(at):
                    self._cache.move_to_end(key)
                    return answer.card
        answer = self._ask(provider, model, at, service_tier=service_tier, batch=batch)
        self._keep(key, answer)
        return answer.card

    def context_window(self, provider: str, model: str, at: datetime) -> int | None:
        """Tokens that fit the model's context, if known."""
        card = self.resolve(provider, model, at)
        return None if card is None else card.context_window

    def _ask(self, provider: str, model: str, at: datetime, *, service_tier: str | None, batch: bool) -> Answer:
        tier = (service_tier or "").strip().lower()
        if tier == "batch":
            tier, batch = "", True
        query = PriceQuery(provider_key(provider), model.strip(), tier, batch, at)
        if not query.provider or not query.model or max(map(len, query[:3])) > ID_CHARS_MAX:
            return Answer(None)
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

    def _keep(self, key: Key, answer: Answer) -> None:
        if max(len(key[0]), len(key[1]), len(key[2] or "")) > ID_CHARS_MAX:
            return
        answers = self._cache.setdefault(key, [])
        answers.insert(0, answer)
        del answers[ANSWERS_PER_NAME_MAX:]
        self._cache.move_to_end(key)
        if len(self._cache) > self._cached_names_max:
            self._cache.popitem(last=False)
