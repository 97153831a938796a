"""Amounts of several currencies in one: at which rate each was converted, and what is said about it."""

from collections.abc import Mapping
from datetime import date
from fractions import Fraction

from handlers.context import Context
from handlers.currency.exchange import Exchange, MissingRate, Rate
from handlers.finance.shares import decimal_text, whole
from schemas.currencies import known_currency
from schemas.errors import invalid
from schemas.finance import ConvertedAmount
from schemas.money import format_cost

# Of a rate between two stated ones the decimals have no end; what was computed with is exact.
RATE_DECIMALS = 12


class Conversion:
    """Everything into one currency, at the rates of a day (or the newest); ``frozen``: those an invoice has fixed."""

    def __init__(
        self, exchange: Exchange, currency: str, on: date | None, frozen: Mapping[str, Fraction] | None = None
    ) -> None:
        self.currency = currency
        self._exchange = exchange
        self._on = on
        self._frozen = frozen or {}
        self._rates: dict[str, Rate] = {}
        self._used: dict[str, int] = {}

    def rate(self, currency: str) -> Fraction:
        """What one unit is worth. Raises SignalError naming the missing rate and the field ``currency``."""
        if currency == self.currency:
            return Fraction(1)
        if currency in self._frozen:
            return self._frozen[currency]
        if currency not in self._rates:
            try:
                self._rates[currency] = self._exchange.rate(currency, self.currency, on=self._on)
            except MissingRate as missing:
                text = f"{missing}; give it with update_exchange_rates, or ask in another currency"
                raise invalid(text, field="currency") from None
        return self._rates[currency].value

    def at_rates(self, frozen: Mapping[str, Fraction]) -> "Conversion":
        """The same, but at these rates where they are stated."""
        return Conversion(self._exchange, self.currency, self._on, frozen)

    def convert(self, nanos: int, currency: str) -> int:
        """Nanos of a currency in this one, rounded once, half-even."""
        return whole(nanos * self.rate(currency))

    def saw(self, currency: str, nanos: int) -> None:
        """Remember that so much of a currency was converted, for ``told``."""
        self._used[currency] = self._used.get(currency, 0) + nanos

    def told(self) -> list[ConvertedAmount]:
        """Every other currency that was seen, with the rate it was converted at."""
        found: list[ConvertedAmount] = []
        for currency, nanos in sorted(self._used.items()):
            if currency == self.currency:
                continue
            self.rate(currency)
            rate = self._rates[currency]
            found.append(
                ConvertedAmount(
                    currency=currency,
                    cost=format_cost(nanos),
                    rate=decimal_text(rate.value, RATE_DECIMALS),
                    as_of=rate.as_of,
                    source=rate.source,
                    stale=rate.stale,
                    converted=format_cost(rate.convert(nanos)),
                )
            )
        return found

    def exact(self) -> dict[str, str]:
        """The exact rates used, as fractions in text, to be kept with an invoice."""
        return {currency: str(rate.value) for currency, rate in sorted(self._rates.items())}


async def conversion_for(ctx: Context, currency: str | None, on: date | None) -> Conversion:
    """The conversion into ``currency``, the org's own where none is given. Raises SignalError naming ``currency``."""
    async with ctx.database.connection() as connection:
        exchange, own = await ctx.services.reporting(connection, ctx.org)
    return Conversion(exchange, own if currency is None else known_currency(currency), on)
