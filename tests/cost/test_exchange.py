"""Exchange rates: exact, dated, one value for each currency, frozen by revision."""

from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.currency.exchange import Books, Exchange, MissingRate, half_even, rate_text
from handlers.currency.seed import RateFileError, bundled, newest_days, read
from schemas.currencies import CODES, known_currency, minor_decimals
from schemas.errors import SignalError
from store.exchange import SHARED, RateRow

TODAY = date(2026, 11, 22)
FRIDAY, SATURDAY, SUNDAY, MONDAY = (date(2026, 10, 30) + timedelta(days=n) for n in range(4))


def row(
    pair: str, rate: str, as_of: date = FRIDAY, *, revision: int = 1, org: str = SHARED, source: str = "ECB"
) -> RateRow:
    base, quote = pair.split("/")
    return RateRow(org, revision, base, quote, as_of, Decimal(rate), source)


def exchange(*rows: RateRow, stale_days: int = 7) -> Exchange:
    books = Books(today=lambda: TODAY, stale_days=stale_days, limit=10, cache_max=100)
    found = books.of("acme")
    found.take(sorted(rows, key=lambda r: r.revision))
    return found


EUROPE = (row("EUR/USD", "1.1172"), row("EUR/JPY", "175.68"), row("EUR/GBP", "0.8338"))


def test_a_cross_rate_is_exact_and_rounds_once() -> None:
    rates = exchange(*EUROPE)
    assert rates.rate("EUR", "USD").value == Fraction("1.1172")
    assert rates.rate("USD", "EUR").value == 1 / Fraction("1.1172")
    assert rates.rate("USD", "JPY").value == Fraction("175.68") / Fraction("1.1172")
    # 1 USD = 175.68 / 1.1172 = 157.250268528...; in nanos of a yen 157_250_268_528.46..
    assert rates.convert(1_000_000_000, "USD", "JPY") == 157_250_268_528
    assert rates.convert(7, "EUR", "EUR") == 7


@pytest.mark.parametrize(("nanos", "half"), [(1, 0), (3, 2), (5, 2), (7, 4), (-1, 0), (-3, -2), (-5, -2)])
def test_halves_go_to_the_even_neighbour_below_zero_too(nanos: int, half: int) -> None:
    assert half_even(nanos, 2) == half


@given(st.integers(0, 10**15), st.sampled_from(["USD", "JPY", "GBP", "EUR"]), st.sampled_from(["USD", "JPY", "GBP"]))
def test_there_and_back_is_within_one_unit_of_rounding(nanos: int, one: str, other: str) -> None:
    rates = exchange(*EUROPE)
    there = rates.convert(nanos, one, other)
    rate = rates.rate(other, one).value
    # What is lost on the way is half a nano of the other currency, and half a nano of rounding back.
    assert abs(rates.convert(there, other, one) - nanos) <= rate / 2 + Fraction(1, 2)


@given(st.integers(0, 10**15), st.sampled_from(["JPY", "GBP", "EUR"]))
def test_what_is_set_aside_holds_what_is_charged(nanos: int, currency: str) -> None:
    rate = exchange(*EUROPE).rate("USD", currency)
    assert 0 <= rate.at_least(nanos) - rate.convert(nanos) <= 1
    assert rate.at_least(rate.affordable(nanos)) <= nanos < rate.at_least(rate.affordable(nanos) + 1)


def test_a_weekend_takes_the_last_rate_before_it_and_an_old_one_is_stale() -> None:
    rates = exchange(row("EUR/USD", "1.10", FRIDAY), row("EUR/USD", "1.20", MONDAY, revision=2))
    assert [rates.rate("EUR", "USD", on=day).value for day in (FRIDAY, SATURDAY, SUNDAY)] == [Fraction("1.10")] * 3
    assert rates.rate("EUR", "USD", on=SUNDAY).as_of == FRIDAY
    assert not rates.rate("EUR", "USD", on=SUNDAY).stale
    assert rates.rate("EUR", "USD", on=MONDAY).value == Fraction("1.20")
    newest = rates.rate("EUR", "USD")
    assert (newest.as_of, newest.stale) == (MONDAY, True)  # 20 days before today.
    with pytest.raises(MissingRate, match="EUR/USD on 2026-10-29 or before"):
        rates.rate("EUR", "USD", on=FRIDAY - timedelta(days=1))


def test_a_missing_rate_names_the_pair() -> None:
    with pytest.raises(MissingRate) as missing:
        exchange(*EUROPE).rate("USD", "VND")
    assert missing.value.pair == "USD/VND"
    assert str(missing.value) == "there is no exchange rate USD/VND"


def test_an_orgs_own_rate_comes_first_whatever_it_is_stated_in() -> None:
    own = row("USD/GBP", "0.80", revision=2, org="acme", source="treasury")
    rates = exchange(*EUROPE, own)
    assert rates.rate("USD", "GBP").value == Fraction("0.80")
    assert rates.rate("EUR", "GBP").value == Fraction("1.1172") * Fraction("0.80")
    assert rates.rate("EUR", "GBP").source == "treasury, ECB"
    assert rates.rate("USD", "GBP").source == "treasury"
    assert rates.rate("USD", "JPY") == exchange(*EUROPE).rate("USD", "JPY")


def test_a_rate_into_the_euro_and_chains_without_it() -> None:
    own = (row("AED/EUR", "0.25", revision=2, org="acme"), row("AED/VND", "6900", revision=2, org="acme"))
    rates = exchange(*EUROPE, *own)
    assert rates.rate("EUR", "AED").value == 4
    assert rates.rate("EUR", "VND").value == 4 * 6900
    apart = exchange(row("USD/VND", "25400"), row("USD/AED", "3.6725"))
    assert apart.rate("AED", "VND").value == Fraction(25400) / Fraction("3.6725")
    with pytest.raises(MissingRate):
        apart.rate("EUR", "VND")


def test_a_frozen_rate_does_not_move_and_a_missing_one_is_the_first_that_comes() -> None:
    rates = exchange(
        row("EUR/USD", "1.10"), row("EUR/USD", "1.30", MONDAY, revision=3), row("USD/VND", "25000", revision=4)
    )
    frozen = rates.frozen(1, "USD", "EUR")
    assert frozen is not None and frozen.value == 1 / Fraction("1.10")
    rates.take([row("EUR/USD", "1.05", FRIDAY, revision=5), row("USD/VND", "30000", MONDAY, revision=6)])
    for revision, value in ((1, "1.10"), (2, "1.10"), (3, "1.30"), (5, "1.30"), (None, "1.10")):
        found = rates.frozen(revision, "EUR", "USD")
        assert found is not None and found.value == Fraction(value), revision
    for revision in (None, 1, 3, 4, 5):  # Revision 4 is the first that says it.
        vietnam = rates.frozen(revision, "USD", "VND")
        assert vietnam is not None and (vietnam.value, vietnam.revision) == (25000, 4)
    assert rates.frozen(9, "USD", "NGN") is None


def test_rows_that_two_readers_bring_count_once() -> None:
    books = Books(today=lambda: TODAY, stale_days=7, limit=10, cache_max=100)
    one, two = books.of("acme"), books.of("globex")
    one.take(EUROPE)
    two.take(EUROPE)
    two.take([row("EUR/USD", "2", revision=2, org="globex")])
    assert one.rate("EUR", "USD").value == Fraction("1.1172")
    assert two.rate("EUR", "USD").value == 2
    assert sum(len(quotes) for quotes in books._shared.quotes.values()) == 3  # pyright: ignore[reportPrivateUsage]


def test_a_rate_is_written_as_a_plain_decimal() -> None:
    assert rate_text(Fraction("25400")) == "25400"
    assert rate_text(Fraction("1.1172")) == "1.1172"
    assert rate_text(1 / Fraction("1.1172")) == "0.895094880057286072"


def test_the_bundled_table_is_decimals_of_currencies_there_are() -> None:
    rates = newest_days(read(bundled()), 30)
    newest = {rate.quote: rate for rate in rates if rate.as_of == rates[0].as_of}
    assert {"USD", "JPY", "GBP", "CHF", "INR"} <= newest.keys()
    assert all(isinstance(rate.rate, Decimal) and rate.quote in CODES for rate in rates)
    assert {rate.as_of for rate in rates} <= {rates[0].as_of - timedelta(days=n) for n in range(30)}
    on_30_october = next(rate for rate in read(bundled()) if (rate.quote, rate.as_of) == ("USD", FRIDAY))
    assert on_30_october.rate == Decimal("1.1172")  # As the European Central Bank published it.


def test_the_table_of_one_day_is_read_too() -> None:
    text = "Date, USD, JPY, \n30 October 2026, 1.1172, 175.68, \n"
    assert [(r.quote, r.as_of, str(r.rate)) for r in read(text)] == [
        ("USD", FRIDAY, "1.1172"),
        ("JPY", FRIDAY, "175.68"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1"),
        ("Day,USD\n", "line 1"),
        ("Date,USD\n30.10.2026,1.1\n", "line 2: '30.10.2026' is not a date"),
        ("Date,USD\n2026-10-30,1e3\n", "line 2, USD: is not a plain decimal"),
        ("Date,USD\n2026-10-30,0\n", "line 2, USD: a rate lies between"),
        ("Date,USD\n" + "2" * 200_000, "line 2: field larger"),
    ],
)
def test_a_table_that_is_none_says_in_which_line(text: str, said: str) -> None:
    with pytest.raises(RateFileError) as error:
        list(read(text))
    assert said in str(error.value)


def test_a_code_that_is_none_is_refused_with_the_nearest() -> None:
    assert known_currency("EUR") == "EUR"
    with pytest.raises(SignalError) as error:
        known_currency("EUX", field="rates[0].quote")
    assert (error.value.field, error.value.message) == (
        "rates[0].quote",
        "'EUX' is not an ISO 4217 currency code; did you mean 'EUR'?",
    )
    assert [minor_decimals(code) for code in ("EUR", "JPY", "KWD", "VND", "CLF")] == [2, 0, 3, 0, 4]
    assert len(CODES) == 165 and not CODES & {"XXX", "XTS", "XAU", "BGN", "HRK"}
