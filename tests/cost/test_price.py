"""Money: hand-worked sums, and what must hold for any counts at any rates."""

from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.cost.price import LineItem, Priced, Quantities, QuantityError, contradiction, half_even, price, worst_case
from handlers.cost.rate_card import RateCard, RateError, Rates, Tier, rate_nanos


def usd(amount: str) -> int:
    return rate_nanos(Decimal(amount))


def card(*tiers: Tier, **rates: str) -> RateCard:
    flat = Rates(**{kind: usd(amount) for kind, amount in rates.items()})
    return RateCard(provider="p", model="m", source="test", version="1", rates=flat, tiers=tiers)


GPT_4O = card(input="2.5", output="10", cache_read="1.25")
CLAUDE = card(
    input="3", output="15", cache_read="0.3", cache_write="3.75", cache_write_1h="6", web_search="10000"
)  # USD per million, also searches: 10 per thousand
GEMINI = card(
    Tier(200_000, Rates(input=usd("2.5"), output=usd("15"), cache_read=usd("0.25"))),
    input="1.25",
    output="10",
    cache_read="0.125",
)
AUDIO = card(input="2.5", output="10", cache_read="1.25", audio_input="40", audio_output="80", audio_cache_read="2.5")
SONAR = card(input="2", output="8", reasoning="3", web_search="5000", request="12000")

GOLDEN = [
    # 2,006 prompt of which 1,920 cached, 300 completion:
    # 86 x 2.5 + 1,920 x 1.25 + 300 x 10 = 215 + 2,400 + 3,000 = 5,615 millionths
    (GPT_4O, Quantities(2006, 300, 1920, reasoning_tokens=128), "0.005615"),
    # 1,200 x 2.5 + 400 x 10 = 3,000 + 4,000
    (GPT_4O, Quantities(1200, 400), "0.007"),
    # one prompt token: 2.5 millionths
    (GPT_4O, Quantities(1, 0), "0.0000025"),
    (GPT_4O, Quantities(), "0"),
    # input 504 + write 123 (100 + 23 for an hour) + read 2,000 = 2,627; out 97:
    # 504 x 3 + 100 x 3.75 + 23 x 6 + 2,000 x 0.3 + 97 x 15 = 1,512 + 375 + 138 + 600 + 1,455 = 4,080; + 2 x 0.01
    (CLAUDE, Quantities(2627, 97, 2000, 123, 23, web_searches=2), "0.02408"),
    # exactly at the threshold: 200,000 x 1.25 + 1,000 x 10 = 250,000 + 10,000
    (GEMINI, Quantities(200_000, 1000), "0.26"),
    # one above re-prices everything: 200,001 x 2.5 + 1,000 x 15 = 500,002.5 + 15,000
    (GEMINI, Quantities(200_001, 1000), "0.5150025"),
    # the cached part counts for the threshold: 1 x 2.5 + 200,000 x 0.25 = 2.5 + 50,000
    (GEMINI, Quantities(200_001, 0, 200_000), "0.0500025"),
    # 1,000 prompt, 600 audio of which 100 cached, 300 cached in all; 50 out of which 40 audio:
    # text 1,000 - 300 - 500 = 200 x 2.5 + 200 x 1.25 + 500 x 40 + 100 x 2.5 + 10 x 10 + 40 x 80
    # = 500 + 250 + 20,000 + 250 + 100 + 3,200 = 24,300
    (
        AUDIO,
        Quantities(1000, 50, 300, audio_input_tokens=600, audio_output_tokens=40, audio_cache_read_tokens=100),
        "0.0243",
    ),
    # all of the prompt is cached and all of it is audio: 1,000 x 2.5
    (AUDIO, Quantities(1000, 0, 1000, audio_input_tokens=1000), "0.0025"),
    # 100 x 2 + 50 x 8 + 500 x 3 = 2,100; + 3 x 0.005 + one request 0.012
    (SONAR, Quantities(100, 550, reasoning_tokens=500, web_searches=3), "0.0291"),
]


@pytest.mark.parametrize(("rates", "used", "expected"), GOLDEN)
def test_cost_is_the_sum_worked_by_hand(rates: RateCard, used: Quantities, expected: str) -> None:
    assert price(rates, used).cost_nanos == int(Decimal(expected) * 10**9)


def test_line_items_name_disjoint_kinds_with_their_rates() -> None:
    priced = price(CLAUDE, Quantities(2627, 97, 2000, 123, 23, web_searches=2))

    assert priced == Priced(
        24_080_000,
        (
            LineItem("input", 504, 3_000_000_000, 1_512_000),
            LineItem("cache_read", 2000, 300_000_000, 600_000),
            LineItem("cache_write", 100, 3_750_000_000, 375_000),
            LineItem("cache_write_1h", 23, 6_000_000_000, 138_000),
            LineItem("output", 97, 15_000_000_000, 1_455_000),
            LineItem("web_search", 2, 10_000_000_000_000, 20_000_000),
        ),
    )


def test_the_rounding_remainder_goes_to_the_largest_line_item() -> None:
    # 0.0006 + 0.0006 + 0.0009 USD per million: 0.6 + 0.6 + 0.9 nanos = 2.1 -> 2, floors 0 + 0 + 0
    third = card(input="0.0006", cache_read="0.0006", output="0.0009")

    assert [(i.kind, i.cost_nanos) for i in price(third, Quantities(2, 1, 1)).line_items] == [
        ("input", 0),
        ("cache_read", 0),
        ("output", 2),
    ]


@pytest.mark.parametrize(
    ("scaled", "nanos"), [(500_000, 0), (1_500_000, 2), (2_500_000, 2), (500_001, 1), (499_999, 0)]
)
def test_half_a_nano_rounds_to_even(scaled: int, nanos: int) -> None:
    assert half_even(scaled) == nanos


@pytest.mark.parametrize(
    ("used", "kinds"),
    [
        (Quantities(10, 10, audio_input_tokens=5), ("audio_input",)),
        (Quantities(10, 10, audio_output_tokens=5), ("audio_output",)),
        (Quantities(10, 10, web_searches=1), ("web_search",)),
        (Quantities(10, 10, audio_input_tokens=5, web_searches=1), ("audio_input", "web_search")),
    ],
)
def test_a_used_kind_without_a_rate_makes_the_call_unpriced(used: Quantities, kinds: tuple[str, ...]) -> None:
    priced = price(GPT_4O, used)

    assert (priced.cost_nanos, priced.unpriced_kinds, priced.cost_status) == (None, kinds, "unpriced")
    assert {i.kind for i in priced.line_items if i.rate_nanos_per_million is None} == set(kinds)


def test_output_without_an_output_rate_is_unpriced() -> None:
    embedding = card(input="0.02")

    assert price(embedding, Quantities(1_000_000)).cost_nanos == 20_000_000
    assert price(embedding, Quantities(10, 1)).unpriced_kinds == ("output",)
    assert price(embedding, Quantities(10, 1, reasoning_tokens=1)).unpriced_kinds == ("reasoning",)


def test_kinds_billed_as_another_kind_fall_back_to_its_rate() -> None:
    plain = card(input="2", output="8")
    writes = card(input="2", output="8", cache_write="3")
    used = Quantities(100, 40, 30, 20, 5, 10)

    assert [(i.kind, i.rate_nanos_per_million) for i in price(plain, used).line_items] == [
        ("input", usd("2")),
        ("cache_read", usd("2")),
        ("cache_write", usd("2")),
        ("cache_write_1h", usd("2")),
        ("output", usd("8")),
        ("reasoning", usd("8")),
    ]
    assert {i.kind: i.rate_nanos_per_million for i in price(writes, used).line_items}["cache_write_1h"] == usd("3")


@pytest.mark.parametrize(
    ("used", "field"),
    [
        (Quantities(10, 0, 11), "cache_read_tokens"),
        (Quantities(10, 0, 6, 5), "cache_read_tokens"),
        (Quantities(10, 0, 0, 11), "cache_write_tokens"),
        (Quantities(10, 0, 0, 4, 5), "cache_write_1h_tokens"),
        (Quantities(10, 10, reasoning_tokens=11), "reasoning_tokens"),
        (Quantities(10, 10, reasoning_tokens=5, audio_output_tokens=6), "audio_output_tokens"),
        (Quantities(10, 0, audio_input_tokens=11), "audio_input_tokens"),
        (Quantities(10, 0, 0, 5, audio_input_tokens=6), "audio_input_tokens"),
        (Quantities(10, 0, 4, audio_input_tokens=6, audio_cache_read_tokens=5), "audio_cache_read_tokens"),
    ],
)
def test_a_subset_larger_than_its_total_is_refused_by_name(used: Quantities, field: str) -> None:
    found = contradiction(used)

    assert found is not None
    assert found.field == field
    with pytest.raises(QuantityError) as refusal:
        price(AUDIO, used)
    assert refusal.value.field == field


def test_a_rate_keeps_nine_decimals_and_rounds_floating_point_artefacts_only() -> None:
    assert usd("2.5") == 2_500_000_000
    assert usd("0.003625") == 3_625_000
    assert usd("0.18000000000000002") == 180_000_000
    assert usd("0.041666666666666664") == 41_666_667
    assert usd("0") == 0
    for refused in ("-1", "NaN", "Infinity", "2000000000"):
        with pytest.raises(RateError):
            usd(refused)


def test_the_worst_case_takes_the_dearest_rates_of_the_prompt_s_tier() -> None:
    # 1,000 x 3.75 + 100 x 15 = 5,250 millionths
    assert worst_case(CLAUDE, 1000, 100) == 5_250_000
    assert worst_case(GEMINI, 200_000, 0) == 250_000_000
    assert worst_case(GEMINI, 200_001, 0) == 500_002_500
    # 1 x 0.0001 nanos rounds up
    assert worst_case(card(input="0.0000001", output="1"), 1, 0) == 1
    assert worst_case(card(input="1"), 10, 1) is None
    assert worst_case(card(input="1"), 10, 0) == 10_000


tokens = st.integers(0, 3_000_000)
rate = st.none() | st.integers(0, 200_000_000_000)
sure = st.integers(0, 200_000_000_000)


@st.composite
def any_rates(draw: st.DrawFn) -> Rates:
    optional = ("cache_read", "cache_write", "cache_write_1h", "reasoning", "audio_cache_read", "request")
    drawn = {kind: draw(rate) for kind in optional}
    return Rates(
        input=draw(sure),
        output=draw(sure),
        audio_input=draw(sure),
        audio_output=draw(sure),
        web_search=draw(sure),
        **drawn,
    )


@st.composite
def any_card(draw: st.DrawFn) -> RateCard:
    starts = sorted(draw(st.sets(st.integers(0, 1_000_000), max_size=2)))
    tiers = tuple(Tier(start, draw(any_rates())) for start in starts)
    return RateCard(provider="p", model="m", source="test", version="1", rates=draw(any_rates()), tiers=tiers)


@st.composite
def any_use(draw: st.DrawFn, *, plain: bool = False) -> Quantities:
    prompt, completion = draw(tokens), draw(tokens)
    read = draw(st.integers(0, prompt))
    write = draw(st.integers(0, prompt - read))
    reasoning = draw(st.integers(0, completion))
    if plain:
        return Quantities(prompt, completion, read, write, 0, reasoning)
    audio = draw(st.integers(0, prompt - write))
    return Quantities(
        prompt,
        completion,
        read,
        write,
        draw(st.integers(0, write)),
        reasoning,
        audio,
        draw(st.integers(0, completion - reasoning)),
        draw(st.integers(0, 20)),
        draw(st.integers(0, min(audio, read))),
    )


@given(any_card(), any_use())
def test_line_items_sum_to_the_cost_and_cover_every_token_once(rates: RateCard, used: Quantities) -> None:
    priced = price(rates, used)
    costs = [item.cost_nanos for item in priced.line_items]
    inside = ("input", "cache_read", "cache_write", "cache_write_1h", "audio_input", "audio_cache_read")
    quantities = {item.kind: item.quantity for item in priced.line_items}

    assert contradiction(used) is None
    assert priced.cost_nanos == sum(cost for cost in costs if cost is not None)
    assert all(cost is not None and cost >= 0 for cost in costs)
    assert all(quantity > 0 for quantity in quantities.values())
    assert sum(quantities.get(kind, 0) for kind in inside) == used.prompt_tokens
    assert sum(quantities.get(kind, 0) for kind in ("output", "reasoning", "audio_output")) == used.completion_tokens


@given(any_card(), any_use())
def test_the_cost_is_the_exact_sum_rounded_once(rates: RateCard, used: Quantities) -> None:
    priced = price(rates, used)
    exact = sum((Fraction(i.quantity * (i.rate_nanos_per_million or 0), 10**6) for i in priced.line_items), Fraction())

    assert priced.cost_nanos == round(exact)


@given(any_rates(), any_use(), tokens, tokens)
def test_more_tokens_never_cost_less_within_a_tier(rates: Rates, used: Quantities, prompt: int, output: int) -> None:
    flat = RateCard(provider="p", model="m", source="test", version="1", rates=rates)
    before, after = (price(flat, q).cost_nanos for q in (used, _longer(used, prompt, output)))

    assert before is not None
    assert after is not None
    assert before <= after


def _longer(used: Quantities, prompt: int, output: int) -> Quantities:
    # A longer prompt would otherwise free audio that had to overlap with the cache.
    overlap = max(used.audio_cache_read_tokens, used.cache_read_tokens + used.audio_input_tokens - _readable(used))
    return msgspec.structs.replace(
        used,
        prompt_tokens=used.prompt_tokens + prompt,
        completion_tokens=used.completion_tokens + output,
        audio_cache_read_tokens=overlap,
    )


def _readable(used: Quantities) -> int:
    return used.prompt_tokens - used.cache_write_tokens


@given(any_card(), any_use(plain=True))
def test_the_worst_case_covers_every_split_of_the_same_totals(rates: RateCard, used: Quantities) -> None:
    cost = price(rates, used).cost_nanos
    worst = worst_case(rates, used.prompt_tokens, used.completion_tokens)

    assert cost is not None
    assert worst is not None
    assert cost <= worst
