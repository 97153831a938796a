"""Layers of prices: which rule states, which change, when, and what is list and what is net."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from handlers.cost.layer import Answer, PriceQuery
from handlers.cost.org_prices import OrgPrices
from handlers.cost.price import Quantities, price, worst_case
from handlers.cost.price_book import PriceBook
from handlers.cost.rate_card import RateCard, Rates, Tier, times
from handlers.cost.resolve import RateCards
from handlers.org_settings import OrgSettings
from schemas.money import parse_cost
from schemas.pricing import PriceRule
from store.prices import ModelAliasRow, PriceRuleRow

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LISTED = RateCard(
    provider="acme",
    model="large",
    source="test",
    version="list 1",
    rates=Rates(input=3_000_000_000, output=15_000_000_000, cache_read=300_000_000),
    tiers=(Tier(200_000, Rates(input=6_000_000_000, output=22_500_000_000, cache_read=600_000_000)),),
    context_window=1_000_000,
)


def _listed(query: PriceQuery) -> Answer | None:
    return Answer(LISTED) if query.provider == "acme" and query.model == "large" else None


def row(version: int = 1, *, layer: str = "contract", ended: bool = False, **rule: Any) -> PriceRuleRow:
    fields: dict[str, Any] = {"name": "rule", "layer": layer, **rule}
    built = msgspec.convert(fields, PriceRule)
    return PriceRuleRow(
        org_id="default",
        name=built.name,
        version=version,
        rule_id=f"{built.name}-{version}",
        layer=layer,
        definition=None if ended else msgspec.to_builtins(built),
        valid_from=built.valid_from,
        valid_to=built.valid_to,
        created_at=NOW,
        created_by="tester",
    )


def alias(provider: str, name: str, to_model: str | None, *, version: int = 1, **more: Any) -> ModelAliasRow:
    fields: dict[str, Any] = {"to_provider": None, "valid_from": None, **more}
    return ModelAliasRow(
        org_id="default",
        provider=provider,
        alias=name,
        version=version,
        to_model=to_model,
        created_at=NOW,
        created_by="tester",
        **fields,
    )


def prices(*rows: PriceRuleRow, aliases: tuple[ModelAliasRow, ...] = (), **settings: Any) -> OrgPrices:
    book = PriceBook(rows, aliases, changes=len(rows) + len(aliases), settings=OrgSettings(**settings))
    return OrgPrices(RateCards([_listed]), book)


def card_of(found: OrgPrices, at: datetime = NOW, provider: str = "acme", model: str = "large", **how: Any) -> RateCard:
    card = found.resolve(provider, model, at, **how)
    assert card is not None
    return card


def net(found: OrgPrices, at: datetime = NOW, **how: Any) -> int | None:
    return card_of(found, at, **how).rates.input


def test_without_rules_the_card_is_that_of_every_org() -> None:
    assert card_of(prices()) is LISTED


def test_a_contract_s_rates_are_net_and_the_list_price_stays() -> None:
    found = card_of(prices(row(op="rates", provider="acme", model="lar*", rates={"input": "2", "output": "10"})))

    assert (found.source, found.version, found.rules) == ("contract", "rule@1; list list 1", ("rule@1",))
    assert found.rates == Rates(input=2_000_000_000, output=10_000_000_000)
    assert found.list_rates == LISTED.rates
    # The list price keeps its tier: the net price has none.
    assert [(t.above, t.rates.input, t.list_rates and t.list_rates.input) for t in found.tiers] == [
        (200_000, 2_000_000_000, 6_000_000_000)
    ]


def test_an_operator_s_rates_are_the_list_price() -> None:
    found = card_of(prices(row(layer="operator", op="rates", model="large", rates={"input": "2", "output": "10"})))

    assert (found.source, found.version) == ("operator", "rule@1")
    assert found.list_rates is None and not found.tiers


def test_a_partial_rule_amends_the_layer_below_in_every_tier() -> None:
    found = card_of(prices(row(op="rates", model="large", rates={"cache_read": "0.1"}, partial=True)))

    assert found.source == "test" and found.version == "list 1; rule@1"
    assert found.rates == msgspec.structs.replace(LISTED.rates, cache_read=100_000_000)
    assert found.tiers[0].rates.cache_read == 100_000_000 and found.tiers[0].rates.input == 6_000_000_000
    assert found.list_rates == LISTED.rates


def test_changes_apply_in_the_order_of_position_operator_before_contract() -> None:
    found = card_of(
        prices(
            row(name="less", op="multiply", factor="0.5", position=2),
            row(name="more", op="add", rates={"input": "1"}, position=1),
            row(name="uplift", layer="operator", op="multiply", factor="1.1", kinds=["input"]),
        )
    )

    # (3 x 1.1 + 1) x 0.5 = 2.15; list 3 x 1.1
    assert found.rates.input == 2_150_000_000
    assert found.rates.output == 7_500_000_000
    assert found.list_rates is not None and found.list_rates.input == 3_300_000_000
    assert found.rules == ("uplift@1", "more@1", "less@1")
    assert found.version == "list 1; uplift@1; more@1; less@1"


def test_a_rule_for_one_spelling_of_a_provider_is_a_rule_for_the_others() -> None:
    for said in ("azure", "azure_openai", "Azure-OpenAI"):
        found = prices(row(op="rates", provider=said, rates={"input": "2", "output": "8"}))
        for asked in ("azure", "azure_openai", "AZURE"):
            assert net(found, provider=asked, model="deployment") == 2_000_000_000, (said, asked)


def test_the_most_particular_rule_states_the_rates() -> None:
    found = prices(
        row(name="every", op="rates", rates={"input": "1", "output": "1"}),
        row(name="vendor", op="rates", provider="acme", rates={"input": "2", "output": "2"}),
        row(name="family", op="rates", provider="acme", model="lar*", rates={"input": "3", "output": "3"}),
        row(name="model", op="rates", provider="acme", model="large", rates={"input": "4", "output": "4"}),
        row(name="part", op="rates", provider="acme", rates={"cache_read": "9"}, partial=True),
    )

    assert net(found) == 4_000_000_000
    # Less particular than what states the card.
    assert card_of(found).rates.cache_read is None
    assert net(found, model="larder") == 3_000_000_000
    assert net(found, model="small") == 2_000_000_000
    assert net(found, provider="other", model="x") == 1_000_000_000


def test_rules_ask_for_tier_region_and_batch() -> None:
    found = prices(
        row(name="batch", op="multiply", factor="0.5", batch=True),
        row(name="flex", op="multiply", factor="0.7", service_tier="Flex"),
        row(name="eu", op="multiply", factor="1.1", region="eu*"),
    )

    assert net(found) == 3_000_000_000
    assert net(found, batch=True) == net(found, service_tier="batch") == 1_500_000_000
    assert net(found, service_tier="flex") == 2_100_000_000
    assert net(found, region="EU-west") == 3_300_000_000
    assert net(found, region="us") == 3_000_000_000


def test_a_whole_card_that_says_nothing_of_batches_notes_it() -> None:
    stated = row(name="card", op="rates", model="large", rates={"input": "2", "output": "10"})

    assert card_of(prices(stated), batch=True).notes == ("batch_unknown",)
    half = row(name="half", op="multiply", factor="0.5", batch=True)
    answered = card_of(prices(stated, half), batch=True)
    assert answered.notes == () and answered.rates.input == 1_000_000_000


def test_versions_hold_from_their_date_until_the_next_one_does() -> None:
    found = prices(
        row(1, op="multiply", factor="0.9"),
        row(2, op="multiply", factor="0.8", valid_from="2026-12-01T00:00:00Z"),
        row(3, op="multiply", factor="0.7", valid_from="2027-01-01T00:00:00Z", valid_to="2027-02-01T00:00:00Z"),
        row(4, op="multiply", ended=True, valid_from="2027-06-01T00:00:00Z"),
    )
    december, january = datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    just = timedelta(microseconds=1)

    # Asked in an order that finds every cached answer's edges.
    assert net(found, december - just) == 2_700_000_000
    assert net(found, december) == 2_400_000_000
    assert net(found, january - just) == 2_400_000_000
    assert net(found, january) == 2_100_000_000
    assert net(found, datetime(2027, 2, 1, tzinfo=UTC)) == 3_000_000_000
    assert net(found, datetime(2027, 7, 1, tzinfo=UTC)) == 3_000_000_000
    assert net(found, december - just) == 2_700_000_000


def test_a_version_set_later_for_an_earlier_date_takes_the_place_of_those_between() -> None:
    found = prices(
        row(1, op="multiply", factor="0.9"),
        row(2, op="multiply", factor="0.8", valid_from="2026-12-01T00:00:00Z"),
        row(3, op="multiply", factor="0.7", valid_from="2026-11-01T00:00:00Z"),
    )

    assert net(found, datetime(2026, 10, 31, tzinfo=UTC)) == 2_700_000_000
    assert (
        net(found, datetime(2026, 11, 1, tzinfo=UTC)) == net(found, datetime(2027, 1, 1, tzinfo=UTC)) == 2_100_000_000
    )


BERLIN = ZoneInfo("Europe/Berlin")


def brute(start: str, end: str, zone: ZoneInfo, weekdays: set[int], at: datetime) -> bool:
    """Whether the hours hold, by the wall clock alone: right wherever the clock does not jump within the hours."""
    local = at.astimezone(zone)
    clock, today, before = local.strftime("%H:%M:%S"), local.isoweekday(), (local.isoweekday() - 2) % 7 + 1
    first, last = f"{start}:00", f"{end}:00"
    if first < last:
        return today in weekdays and first <= clock < last
    return (today in weekdays and clock >= first) or (before in weekdays and clock < last)


@pytest.mark.parametrize(
    ("start", "end", "weekdays"),
    [("08:00", "18:00", (1, 2, 3, 4, 5)), ("22:00", "06:00", (5, 6)), ("00:00", "12:00", ()), ("16:30", "00:30", (7,))],
)
def test_hours_follow_the_wall_clock_over_both_jumps_of_a_year(start: str, end: str, weekdays: tuple[int, ...]) -> None:
    daily = {"start": start, "end": end, "timezone": "Europe/Berlin", "weekdays": list(weekdays)}
    found = prices(row(op="multiply", factor="0.5", daily=daily))
    days = set(weekdays) or set(range(1, 8))

    for begin in (datetime(2026, 3, 26, tzinfo=UTC), datetime(2026, 10, 22, tzinfo=UTC)):
        for half_hours in range(48 * 7):
            at = begin + timedelta(minutes=30 * half_hours)
            expected = 1_500_000_000 if brute(start, end, BERLIN, days, at) else 3_000_000_000
            # From the cache of answers, which never holds one beyond an edge.
            assert net(found, at) == expected, at.astimezone(BERLIN)


def test_hours_that_begin_where_the_clock_jumps_begin_with_the_jump() -> None:
    daily = {"start": "02:30", "end": "04:00", "timezone": "Europe/Berlin"}
    found = prices(row(op="multiply", factor="0.5", daily=daily))

    # On 2026-03-29 02:00 becomes 03:00 at 01:00 UTC: 02:30 is read in winter time, 01:30 UTC.
    assert net(found, datetime(2026, 3, 29, 1, 29, tzinfo=UTC)) == 3_000_000_000
    assert net(found, datetime(2026, 3, 29, 1, 30, tzinfo=UTC)) == 1_500_000_000
    assert net(found, datetime(2026, 3, 29, 2, 0, tzinfo=UTC)) == 3_000_000_000


def test_an_alias_stands_for_a_model_from_its_date_on() -> None:
    names = (
        alias("azure", "my-*", "large", to_provider="acme"),
        alias("azure", "my-gpt", "large", to_provider="acme"),
        alias("azure", "my-gpt", None, version=2, valid_from=datetime(2026, 12, 1, tzinfo=UTC)),
        alias("acme", "old", "large"),
    )
    found = prices(row(op="multiply", provider="acme", model="large", factor="0.5"), aliases=names)

    card = card_of(found, provider="Azure", model="MY-GPT")
    assert (card.provider, card.model, card.rates.input) == ("acme", "large", 1_500_000_000)
    assert card.rules == ("rule@1", "alias azure/my-gpt@1")
    # Once the exact name ends, the pattern is left.
    assert card_of(found, datetime(2026, 12, 2, tzinfo=UTC), "azure", "my-gpt").rules[-1] == "alias azure/my-*@1"
    assert card_of(found, provider="acme", model="old").model == "large"
    assert found.resolve("azure", "other", NOW) is None


def test_self_hosted_calls_cost_nothing_and_say_so() -> None:
    found = prices(row(op="rates", provider="vllm", model="big", rates={"input": "1"}), self_hosted_providers=("VLLM",))

    free = card_of(found, provider="vllm", model="anything")
    assert free.source == "self-hosted"
    used = Quantities(prompt_tokens=100, completion_tokens=10, reasoning_tokens=5, audio_input_tokens=3, web_searches=1)
    assert price(free, used).cost_nanos == 0
    assert card_of(found, provider="vllm", model="big").source == "contract"
    assert found.resolve("ollama", "anything", NOW) is None


def test_rates_of_another_currency_make_a_card_of_that_currency_and_never_half_of_one() -> None:
    whole = card_of(prices(row(op="rates", model="large", rates={"input": "2", "output": "9"}, currency="EUR")))
    assert (whole.currency, whole.list_rates, whole.notes) == ("EUR", None, ("list_price_in_USD",))

    part = card_of(prices(row(op="rates", model="large", rates={"input": "2"}, currency="EUR", partial=True)))
    assert (part.currency, part.rates, part.notes) == ("USD", LISTED.rates, ("rule_not_applied:rule@1",))


def test_what_another_release_wrote_does_not_pass_unnoticed() -> None:
    unreadable = replace(row(op="multiply", factor="0.5"), definition={"op": "magic"})

    assert card_of(prices(unreadable)).notes == ("rule_unreadable:rule@1",)


def test_the_price_of_before_what_was_read_is_marked() -> None:
    book = PriceBook([row(op="multiply", factor="0.5")], changes=1, complete_since=NOW - timedelta(days=400))
    found = OrgPrices(RateCards([_listed]), book)

    assert card_of(found, NOW - timedelta(days=399)).notes == ()
    assert card_of(found, NOW - timedelta(days=401)).notes == ("price_history_incomplete",)
    assert card_of(found, NOW).notes == ()


def test_books_of_other_rules_or_settings_have_other_revisions() -> None:
    assert PriceBook().revision == 0
    found = {
        PriceBook(changes=1).revision,
        PriceBook(changes=2).revision,
        PriceBook(settings=OrgSettings(self_hosted_providers=("vllm",))).revision,
        PriceBook(settings=OrgSettings(on_unpriced="estimate")).revision,
        PriceBook(settings=OrgSettings(on_unpriced="estimate", unpriced_rates={"input": "1", "output": "2"})).revision,
    }
    assert len(found) == 5 and 0 not in found
    book = PriceBook(changes=1)
    assert book.with_settings(OrgSettings(pressure_percent=50)) is book


VOLUME: dict[str, Any] = {
    "op": "volume",
    "tiers_by": "tokens",
    "volume": [{"above": "1000", "factor": "0.8"}, {"above": "3000", "factor": "0.5"}],
}


def test_volume_tiers_are_marginal_and_split_the_call_that_crosses_one() -> None:
    card = card_of(prices(row(name="v", **VOLUME)))
    used = Quantities(prompt_tokens=3000, completion_tokens=500)
    found = price(card, used, {"v": 600})

    # 600 seen: 400 more at the rate, 2,000 at 0.8, then 600 input and all 500 output at 0.5.
    assert [(i.kind, i.quantity, i.rate_nanos_per_million, i.cost_nanos) for i in found.line_items] == [
        ("input", 400, 3_000_000_000, 1_200_000),
        ("input", 2000, 2_400_000_000, 4_800_000),
        ("input", 600, 1_500_000_000, 900_000),
        ("output", 500, 7_500_000_000, 3_750_000),
    ]
    assert found.cost_nanos == 10_650_000
    assert found.list_cost_nanos == 16_500_000  # 3,000 x 3 + 500 x 15
    assert found.counted == (("v", 600, 3500),)


def test_a_commitment_holds_for_the_first_amount_of_list_cost_in_a_month() -> None:
    card = card_of(prices(row(name="c", op="commitment", factor="0.7", amount="0.01")))
    found = price(card, Quantities(prompt_tokens=1000, completion_tokens=1000), {"c": parse_cost("0.004")})

    # 0.006 left: 1,000 input cost 0.003, 200 of the output the rest; 800 are beyond it.
    assert [(i.kind, i.quantity, i.rate_nanos_per_million) for i in found.line_items] == [
        ("input", 1000, 2_100_000_000),
        ("output", 200, 10_500_000_000),
        ("output", 800, 15_000_000_000),
    ]
    assert found.cost_nanos == 2_100_000 + 2_100_000 + 12_000_000
    assert found.list_cost_nanos == 18_000_000
    assert found.counted == (("c", 4_000_000, 18_000_000),)


def test_the_worst_case_takes_the_dearest_factor_that_can_apply() -> None:
    plain = worst_case(LISTED, 1000, 1000)
    assert plain == 18_000_000
    discounts = card_of(prices(row(name="v", **VOLUME)))
    assert worst_case(discounts, 1000, 1000) == plain
    always: dict[str, Any] = {**VOLUME, "volume": [{"above": "0", "factor": "0.8"}, {"above": "10", "factor": "1.5"}]}
    assert worst_case(card_of(prices(row(name="v", **always))), 1000, 1000) == 27_000_000


def test_a_factor_is_rounded_half_even_once() -> None:
    assert times(3, Fraction(1, 2)) == 2 and times(5, Fraction(1, 2)) == 2 and times(7, Fraction(1, 2)) == 4
