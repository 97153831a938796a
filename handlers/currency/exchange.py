"""Exchange rates of an org: its own over those of every org, dated, exact, and frozen for each budget window.

Every currency is worth so many units of another one on a day; following these leads to a common base. One value per
currency, so conversions there and back and over a third currency agree. Pure but for ``Books.refresh``.
"""

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Final, NamedTuple

from store import exchange as exchange_store
from store.exchange import SHARED, RateRow
from store.pool import Connection

# The currency in which the European Central Bank states its rates: where every chain ends that can.
HUB: Final = "EUR"
_NO_DAY: Final = date.max
_ONE: Final = Fraction(1)
_DIGITS: Final = 18
_INTO_MAX: Final = 100


class MissingRate(LookupError):
    """Nothing says what one currency is worth in the other (on that day); the message is fit for a caller."""

    def __init__(self, base: str, quote: str, on: date | None = None) -> None:
        super().__init__(f"there is no exchange rate {base}/{quote}" + (f" on {on} or before" if on else ""))
        self.base = base
        self.quote = quote
        self.on = on

    @property
    def pair(self) -> str:
        """The pair as reasons and flags name it: ``EUR/VND``."""
        return f"{self.base}/{self.quote}"


@dataclass(frozen=True, slots=True)
class Rate:
    """``value`` units of ``quote`` are worth one of ``base``; of several days that made it, ``as_of`` is the oldest.

    ``stale``: that day lies further back than rates are trusted. ``revision`` is the newest that made it.
    """

    base: str
    quote: str
    value: Fraction
    as_of: date
    source: str
    stale: bool
    revision: int

    def convert(self, nanos: int) -> int:
        """Nanos of ``base`` in nanos of ``quote``, rounded once, half-even."""
        return half_even(nanos * self.value.numerator, self.value.denominator)

    def at_least(self, nanos: int) -> int:
        """The same rounded up: what is set aside must hold what will be charged."""
        return -(-nanos * self.value.numerator // self.value.denominator)

    def affordable(self, nanos: int) -> int:
        """The most nanos of ``base`` whose ``at_least`` is no more than ``nanos`` of ``quote``."""
        return nanos * self.value.denominator // self.value.numerator


def half_even(numerator: int, denominator: int) -> int:
    """The quotient as a whole number, halves to the even neighbour; the one rounding of a conversion."""
    whole, rest = divmod(numerator, denominator)
    twice = 2 * rest
    return whole + (twice > denominator or (twice == denominator and whole & 1))


class _Quote(NamedTuple):
    """One stored rate of a currency; they sort by day, of one day by revision."""

    as_of: date
    revision: int
    base: str
    # Units of the currency for one unit of ``base``, or the other way round.
    rate: Decimal
    inverse: bool
    source: str

    @property
    def units(self) -> Fraction:
        """Units of the currency for one unit of ``base``. Made when it is needed: there are many, and few are."""
        return 1 / Fraction(self.rate) if self.inverse else Fraction(self.rate)


def valued(base: str, quote: str) -> tuple[str, str]:
    """Which currency a rate says the worth of, and in what: the quote in the base, but never the hub itself."""
    return (base, HUB) if quote == HUB else (quote, base)


def rate_text(value: Fraction) -> str:
    """A rate as a plain decimal: exact, or its first 18 digits where it has more or no end."""
    with localcontext(prec=_DIGITS):
        return f"{(Decimal(value.numerator) / Decimal(value.denominator)).normalize():f}"


def _when(quote: _Quote) -> tuple[date, int]:
    return quote.as_of, quote.revision


class _Step(NamedTuple):
    """A currency, and the rate that says its worth; None where nothing does."""

    currency: str
    quote: _Quote | None


def _position(steps: list[_Step], currency: str) -> int:
    return next(i for i, step in enumerate(steps) if step.currency == currency)


class _History:
    """Every rate of one org (or of all), by currency and day."""

    def __init__(self) -> None:
        self.revision = 0
        self.quotes: dict[str, list[_Quote]] = {}
        # In which later revisions to look for a rate that an earlier one lacks.
        self.revisions: list[int] = []

    def add(self, row: RateRow) -> None:
        """Take in the next row, in the order of revisions."""
        currency, base = valued(row.base, row.quote)
        quote = _Quote(row.as_of, row.revision, base, row.rate, currency == row.base, row.source)
        insort(self.quotes.setdefault(currency, []), quote, key=_when)
        self.revision = max(self.revision, row.revision)
        if not self.revisions or self.revisions[-1] != row.revision:
            self.revisions.append(row.revision)

    def stated(self, base: str, quote: str, as_of: date) -> Decimal | None:
        """The newest rate of a pair for exactly that day."""
        currency, in_base = valued(base, quote)
        quotes = self.quotes.get(currency, [])
        for i in range(bisect_right(quotes, as_of, key=lambda q: q.as_of) - 1, -1, -1):
            found = quotes[i]
            if found.as_of != as_of:
                break
            if found.base == in_base and found.inverse == (currency == base):
                return found.rate
        return None

    def find(self, currency: str, on: date, revision: int | None) -> _Quote | None:
        """The newest rate of a currency on that day or before, as of a revision."""
        quotes = self.quotes.get(currency)
        if quotes is None:
            return None
        for i in range(bisect_right(quotes, on, key=lambda q: q.as_of) - 1, -1, -1):
            if revision is None or quotes[i].revision <= revision:
                return quotes[i]
        return None


class Exchange:
    """What one org knows of rates, as of ``revision``."""

    def __init__(
        self, shared: _History, *, today: Callable[[], date], stale_days: int = 7, cache_max: int = 10_000
    ) -> None:
        self.revision = 0
        self._own = _History()
        self._shared = shared
        self._today = today
        self._stale_days = stale_days
        self._cache_max = cache_max
        self._frozen: dict[tuple[int, str, str], Rate | None] = {}
        self._into: dict[tuple[str, int | None], dict[str, Fraction]] = {}

    @classmethod
    def empty(cls) -> "Exchange":
        """Of an org without any rate."""
        return cls(_History(), today=lambda: date.min)

    @property
    def own_revision(self) -> int:
        """The newest revision of the org's own rates."""
        return self._own.revision

    @property
    def quoted(self) -> list[str]:
        """Every currency that has a rate, sorted."""
        bases = {q.base for found in (self._own, self._shared) for quotes in found.quotes.values() for q in quotes}
        return sorted(bases | self._own.quotes.keys() | self._shared.quotes.keys())

    def take(self, rows: Iterable[RateRow]) -> None:
        """Take in what was stored since, of the org and of all."""
        # Another request may have read the same rows meanwhile.
        own, shared = self._own.revision, self._shared.revision
        for row in rows:
            if row.org_id != SHARED and row.revision > own:
                self._own.add(row)
            elif row.org_id == SHARED and row.revision > shared:
                self._shared.add(row)
        self.revision = max(self._own.revision, self._shared.revision)
        self._frozen.clear()
        self._into.clear()

    def rate(self, base: str, quote: str, *, on: date | None = None) -> Rate:
        """What one unit of ``base`` is worth in ``quote`` on a day: the newest rate on that day or before.

        Without a day: the newest there is. Raises MissingRate.
        """
        found = self._rate(base, quote, on or _NO_DAY, None)
        if found is None:
            raise MissingRate(base, quote, on)
        return found

    def convert(self, nanos: int, base: str, quote: str, *, on: date | None = None) -> int:
        """Nanos of ``base`` in nanos of ``quote``, rounded once, half-even. Raises MissingRate."""
        return nanos if base == quote else self.rate(base, quote, on=on).convert(nanos)

    def frozen(self, revision: int | None, base: str, quote: str) -> Rate | None:
        """The rate of a window that was created at ``revision``: the newest of that revision, whatever came later.

        Where that revision has none, the first later one that has; None: nobody has said it yet.
        """
        key = (revision or 0, base, quote)
        if key not in self._frozen:
            if len(self._frozen) >= self._cache_max:
                self._frozen.clear()
            self._frozen[key] = self._freeze(*key)
        return self._frozen[key]

    def into(self, currency: str, *, revision: int | None = None) -> dict[str, Fraction]:
        """What one unit of every currency is worth in ``currency``: for sums of many. Those without a rate are absent.

        The newest rates there are, or those that a window froze at ``revision``.
        """
        key = (currency, revision)
        found = self._into.get(key)
        if found is None:
            if len(self._into) >= _INTO_MAX:
                self._into.clear()
            found = self._into[key] = {currency: _ONE}
            for other in self.quoted:
                newest = self._rate(other, currency, _NO_DAY, None) if revision is None else None
                rate = newest if revision is None else self.frozen(revision, other, currency)
                if rate is not None:
                    found[other] = rate.value
        return found

    def stale(self, as_of: date, on: date | None = None) -> bool:
        """Whether a rate of ``as_of`` is older than rates are trusted, on a day (today)."""
        return as_of < (on or self._today()) - timedelta(days=self._stale_days)

    def own_bases(self) -> dict[str, set[str]]:
        """What the org's own rates, of whatever day, state each currency in."""
        return {currency: {quote.base for quote in quotes} for currency, quotes in self._own.quotes.items()}

    def own(self, base: str, quote: str, as_of: date) -> Decimal | None:
        """What the org itself last said of a pair, as it said it, for exactly that day."""
        return self._own.stated(base, quote, as_of)

    def _freeze(self, revision: int, base: str, quote: str) -> Rate | None:
        found = self._rate(base, quote, _NO_DAY, revision)
        if found is not None:
            return found
        later = {r for history in (self._own, self._shared) for r in history.revisions if r > revision}
        for candidate in sorted(later):
            if (found := self._rate(base, quote, _NO_DAY, candidate)) is not None:
                return found
        return None

    def _rate(self, base: str, quote: str, on: date, revision: int | None) -> Rate | None:
        if base == quote:
            day = self._today() if on is _NO_DAY else on
            return Rate(base, quote, _ONE, day, "the same currency", False, 0)
        # Where the two chains meet is the common base; what lies beyond it says nothing about this pair.
        of_base, of_quote = self._chain(base, on, revision), self._chain(quote, on, revision)
        meeting = next((i for i, step in enumerate(of_quote) if step.currency in {s.currency for s in of_base}), None)
        if meeting is None:
            return None
        common = of_quote[meeting].currency
        down = [step.quote for step in of_quote[:meeting] if step.quote is not None]
        up = [step.quote for step in of_base[: _position(of_base, common)] if step.quote is not None]
        value, as_of, newest = _ONE, _NO_DAY, 0
        for quoted in (*down, *up):
            as_of, newest = min(as_of, quoted.as_of), max(newest, quoted.revision)
        for quoted in down:
            value *= quoted.units
        for quoted in up:
            value /= quoted.units
        sources = ", ".join(dict.fromkeys(quoted.source for quoted in (*up, *down)))
        stale = self.stale(as_of, None if on is _NO_DAY else on)
        return Rate(base, quote, value, as_of, sources, stale, newest)

    def _chain(self, currency: str, on: date, revision: int | None) -> list[_Step]:
        """A currency, what its newest rate states it in, and so on; the org's own rate comes first."""
        steps: list[_Step] = []
        met = {currency}
        while True:
            found = None if currency == HUB else self._find(currency, on, revision, met)
            steps.append(_Step(currency, found))
            if found is None:
                return steps
            currency = found.base
            met.add(currency)

    def _find(self, currency: str, on: date, revision: int | None, met: set[str]) -> _Quote | None:
        for history in (self._own, self._shared):
            quote = history.find(currency, on, revision)
            if quote is not None and quote.base not in met:
                return quote
        return None


class Books:
    """The exchange of every org this agent knows; they share the rates that all of them have. Bounded by ``limit``."""

    def __init__(self, *, today: Callable[[], date], stale_days: int, limit: int, cache_max: int) -> None:
        self._today = today
        self._stale_days = stale_days
        self._limit = limit
        self._cache_max = cache_max
        self._shared = _History()
        self._known: dict[str, Exchange] = {}

    def of(self, org: str) -> Exchange:
        """What this agent knows of an org's rates so far."""
        found = self._known.get(org)
        if found is None:
            if len(self._known) >= self._limit:
                self._known.clear()
            found = self._known[org] = Exchange(
                self._shared, today=self._today, stale_days=self._stale_days, cache_max=self._cache_max
            )
        return found

    async def refresh(self, connection: Connection, org: str) -> Exchange:
        """Read what was stored since the last time; one statement."""
        found = self.of(org)
        own, shared = found.own_revision, self._shared.revision
        found.take(await exchange_store.since(connection, org, own=own, shared=shared))
        return found
