"""Sums over several currencies as replies tell them: in one, each other one converted at one stated rate, or left out
and named. Never added as they are.
"""

from collections.abc import Mapping
from datetime import date

from handlers.currency.exchange import Exchange, MissingRate, Rate, rate_text
from schemas.exchange import ExchangeRate


class Teller:
    """Tells sums in ``currency``, at the rates of a day or the newest; remembers what it needed to."""

    def __init__(self, exchange: Exchange, currency: str, *, on: date | None = None) -> None:
        self.currency = currency
        self._exchange = exchange
        self._on = on
        self._rates: dict[str, Rate] = {}
        self._missing: set[str] = set()

    def total(self, costs: Mapping[str, int]) -> int:
        """Nanos of ``currency`` of nanos by currency; those that nothing says the worth of are not in it."""
        return sum(self._converted(currency, nanos) for currency, nanos in costs.items())

    @property
    def rates(self) -> list[ExchangeRate]:
        """The rates that were used."""
        return [shown_rate(rate) for _, rate in sorted(self._rates.items())]

    @property
    def missing(self) -> list[str]:
        """The pairs without a rate that were asked for: ``EUR/VND``."""
        return sorted(self._missing)

    def _converted(self, currency: str, nanos: int) -> int:
        if currency == self.currency or not nanos:
            return nanos
        rate = self._rates.get(currency)
        if rate is None:
            try:
                rate = self._rates[currency] = self._exchange.rate(currency, self.currency, on=self._on)
            except MissingRate as missing:
                self._missing.add(missing.pair)
                return 0
        return rate.convert(nanos)


def shown_rate(rate: Rate) -> ExchangeRate:
    """A rate as callers see it."""
    return ExchangeRate(
        base=rate.base,
        quote=rate.quote,
        rate=rate_text(rate.value),
        as_of=rate.as_of,
        source=rate.source,
        stale=rate.stale,
        revision=rate.revision,
    )
