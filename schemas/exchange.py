"""Exchange rates: what one currency is worth in another, from when on, and who says so."""

from datetime import date
from typing import Annotated

from msgspec import Meta

from .base import Amount, Count, Currency, Reply, Request, Text, Time

Source = Annotated[str, Meta(min_length=1, max_length=200, description="Who says so: a bank, a file, a contract.")]
RateTable = Annotated[
    str, Meta(min_length=1, max_length=500_000, description="CSV: the first column is Date, each other a currency.")
]
Code = Annotated[str, Meta(min_length=1, max_length=8, description="An ISO 4217 code.")]
Quotes = Annotated[tuple[Code, ...], Meta(max_length=200, description="Left out: every currency that has a rate.")]


class GetExchangeRates(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one unit of ``base`` is worth; on a day, else the newest. Left out, ``base`` is the org's own currency."""

    base: Currency | None = None
    quotes: Quotes = ()
    on: date | None = None


class ExchangeRate(Reply, frozen=True, kw_only=True):
    """``rate`` units of ``quote`` are worth one of ``base``: exact, or the first 18 digits where it has no end.

    Of several days that a cross rate is made of, ``as_of`` is the oldest; ``stale`` says that it lies too far back.
    ``revision`` is the newest change that made it.
    """

    base: str
    quote: str
    rate: str
    as_of: date
    source: str
    stale: bool
    revision: Count


class ExchangeRates(Reply, frozen=True, kw_only=True):
    """Rates by quote. ``missing`` are the quotes whose worth nothing says; ``revision`` is the newest there is."""

    base: str
    on: date | None
    rates: list[ExchangeRate]
    missing: list[str]
    revision: Count


class StatedRate(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``rate`` units of ``quote`` for one of ``base``, a plain decimal above 0."""

    base: Currency
    quote: Currency
    rate: Amount


class UpdateExchangeRates(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates of the org's own, which come before those that every org has: ``rates`` of the day ``as_of`` (today), or
    ``csv``, a table as the European Central Bank publishes it, with its own days; or ``file``: what is new in the file
    that the agent's operator named, for every org. Never overwritten: what is stated again for a day is a newer version
    of it. One that moves further than the agent's ``exchange_move_percent`` from the last takes ``confirm``.
    """

    rates: Annotated[tuple[StatedRate, ...], Meta(max_length=500)] = ()
    csv: RateTable | None = None
    file: bool = False
    as_of: date | None = None
    source: Source | None = None
    confirm: bool = False
    reason: Text | None = None


class MovedRate(Reply, frozen=True, kw_only=True):
    """A rate beside the last one of that pair, and by how many percent it moved."""

    base: str
    quote: str
    as_of: date
    before: str
    after: str
    percent: str


class ExchangeRatesUpdated(Reply, frozen=True, kw_only=True):
    """What was stored. ``revision`` is None where everything was known already. ``moved`` are the largest moves."""

    stored: Count
    known: Count
    revision: Count | None
    moved: list[MovedRate]


class ExchangeRatesChanged(Reply, frozen=True, kw_only=True):
    """Event ``exchange_rates.changed``: rates of the org's own were added."""

    actor: str
    revision: Count
    source: str
    stored: Count
    pairs: list[str]
    first: date
    last: date
    changed_at: Time
    reason: str | None = None
