"""The prices one org's calls are made at: its own rules and aliases over what every org has."""

from datetime import datetime
from typing import Protocol

from handlers.cost.rate_card import RateCard
from handlers.cost.resolve import RateCards


class Prices(Protocol):
    """Whatever finds the rate card of a call."""

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


class OrgPrices:
    """An org's prices as of one version of its catalogue."""

    def __init__(self, cards: RateCards) -> None:
        self._cards = cards

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
        return self._cards.resolve(provider, model, at, service_tier=service_tier, batch=batch, region=region)
