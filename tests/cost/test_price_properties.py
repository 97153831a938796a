"""What holds of every price, whatever is used and whatever rules an org has."""

import gc
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from handlers.cost.layer import Answer, PriceQuery
from handlers.cost.org_prices import OrgPrices
from handlers.cost.price import Quantities, contradiction, half_even, price, worst_case
from handlers.cost.price_book import PriceBook
from handlers.cost.rate_card import KINDS, RateCard, Rates, Tier
from handlers.cost.resolve import RateCards
from schemas.pricing import PriceRule
from store.prices import PriceRuleRow
from tests.support.ledger import examples

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
amounts = st.integers(min_value=0, max_value=5_000)
rate = st.integers(min_value=0, max_value=100_000_000_000)
rates = st.builds(Rates, **{kind: st.one_of(st.none(), rate) for kind in KINDS})
quantities = st.builds(Quantities, **{f.name: amounts for f in msgspec.structs.fields(Quantities)})
discount = st.sampled_from(["0", "0.1", "0.333333333", "0.5", "0.85", "0.999999999", "1"])


@st.composite
def possible(draw: st.DrawFn) -> Quantities:
    """Counts whose subsets lie within their totals."""
    used = draw(quantities)
    write = used.cache_write_1h_tokens + used.cache_write_12h_tokens + used.cache_write_tokens
    seen = used.image_input_tokens + used.video_input_tokens
    prompt = write + used.cache_read_tokens + used.audio_input_tokens + seen + used.prompt_tokens
    said = used.reasoning_tokens + used.audio_output_tokens + used.image_output_tokens + used.completion_tokens
    cached_audio = min(used.audio_cache_read_tokens, used.audio_input_tokens, used.cache_read_tokens)
    return msgspec.structs.replace(
        used,
        prompt_tokens=prompt,
        completion_tokens=said,
        cache_write_tokens=write,
        audio_cache_read_tokens=cached_audio,
    )


@st.composite
def listed(draw: st.DrawFn) -> RateCard:
    aboves = sorted(draw(st.sets(st.integers(min_value=0, max_value=20_000), max_size=2)))
    tiers = tuple(Tier(above, draw(rates)) for above in aboves)
    return RateCard(provider="acme", model="large", source="test", version="1", rates=draw(rates), tiers=tiers)


@st.composite
def discounts(draw: st.DrawFn) -> list[PriceRule]:
    """Rules of a contract that only ever take off."""
    found: list[PriceRule] = []
    for number in range(draw(st.integers(min_value=1, max_value=4))):
        op = draw(st.sampled_from(["multiply", "volume", "commitment"]))
        kinds = tuple(sorted(draw(st.sets(st.sampled_from(KINDS), max_size=3))))
        fields: dict[str, Any] = {"name": f"r{number}", "layer": "contract", "op": op, "kinds": kinds}
        if op == "volume":
            by = draw(st.sampled_from(["tokens", "list_cost"]))
            steps = sorted(draw(st.sets(st.integers(min_value=0, max_value=30_000), min_size=1, max_size=4)))
            fields |= {"tiers_by": by, "volume": [{"above": str(s), "factor": draw(discount)} for s in steps]}
            if by == "list_cost":
                fields["volume"] = [{**t, "above": f"0.{int(t['above']):06d}"} for t in fields["volume"]]
        else:
            fields["factor"] = draw(discount)
        if op == "commitment":
            fields["amount"] = f"0.{draw(st.integers(min_value=1, max_value=999_999)):06d}"
        found.append(msgspec.convert(fields, PriceRule))
    return found


def card_under(card: RateCard, rules: list[PriceRule]) -> RateCard:
    rows = [
        PriceRuleRow(
            org_id="default",
            name=rule.name,
            version=1,
            rule_id=rule.name,
            layer=rule.layer,
            definition=msgspec.to_builtins(rule),
            valid_from=None,
            valid_to=None,
            created_at=NOW,
            created_by="tester",
        )
        for rule in rules
    ]

    def source(query: PriceQuery) -> Answer:
        return Answer(card)

    found = OrgPrices(RateCards([source]), PriceBook(rows, changes=1)).resolve("acme", "large", NOW)
    assert found is not None
    return found


@examples(300)
@given(listed(), possible())
def test_line_items_sum_to_the_cost_and_to_what_was_used(card: RateCard, used: Quantities) -> None:
    assert contradiction(used) is None
    found = price(card, used)

    tokens = [item.quantity for item in found.line_items if item.kind not in ("web_search", "request")]
    assert sum(tokens) == used.prompt_tokens + used.completion_tokens
    assert all(item.quantity > 0 for item in found.line_items)
    if found.cost_nanos is None:
        assert found.unpriced_kinds
        return
    scaled = sum(item.quantity * (item.rate_nanos_per_million or 0) for item in found.line_items)
    assert sum(item.cost_nanos or 0 for item in found.line_items) == found.cost_nanos == half_even(scaled)
    assert all((item.cost_nanos or 0) >= 0 for item in found.line_items)


@examples(400)
@given(listed(), discounts(), possible(), st.integers(min_value=0, max_value=40_000_000))
def test_net_never_exceeds_list_under_discounts_and_both_sum_exactly(
    card: RateCard, rules: list[PriceRule], used: Quantities, before: int
) -> None:
    under = card_under(card, rules)
    seen = {volume.name: before if volume.by_cost else before // 1_000 for volume in under.volumes}
    found, at_list = price(under, used, seen), price(card, used)

    assert found.unpriced_kinds == at_list.unpriced_kinds
    if found.cost_nanos is None or found.list_cost_nanos is None or at_list.cost_nanos is None:
        return
    items = found.line_items
    net = sum(item.cost_nanos or 0 for item in items)
    listed_sum = sum((i.cost_nanos if i.list_cost_nanos is None else i.list_cost_nanos) or 0 for i in items)
    assert net == found.cost_nanos == half_even(sum(i.quantity * (i.rate_nanos_per_million or 0) for i in items))
    assert listed_sum == found.list_cost_nanos == at_list.cost_nanos
    assert 0 <= found.cost_nanos <= found.list_cost_nanos
    # However a call is split, all of it is priced.
    used_by_kind = {item.kind: item.quantity for item in at_list.line_items}
    split: dict[str, int] = {}
    for item in items:
        split[item.kind] = split.get(item.kind, 0) + item.quantity
    assert split == used_by_kind


@examples(200)
@given(listed(), discounts(), st.integers(0, 20_000), st.integers(0, 20_000), st.integers(0, 40_000_000))
def test_no_call_costs_more_than_its_worst_case(
    card: RateCard, rules: list[PriceRule], prompt: int, completion: int, before: int
) -> None:
    under = card_under(card, rules)
    worst = worst_case(under, prompt, completion)
    found = price(under, Quantities(prompt_tokens=prompt, completion_tokens=completion), dict.fromkeys("r", before))
    assert (worst is None) == (found.cost_nanos is None)
    assert worst is None or found.cost_nanos is None or found.cost_nanos <= worst


@examples(200)
@given(listed(), discounts(), possible(), st.integers(1, 20))
def test_a_month_s_volume_is_the_same_however_it_is_cut_into_calls(
    card: RateCard, rules: list[PriceRule], used: Quantities, cuts: int
) -> None:
    """What volume rules count adds up: they see every token, and every nano of list cost, once."""
    under = card_under(card, rules)
    seen = dict.fromkeys([volume.name for volume in under.volumes], 0)
    for _ in range(cuts):
        found = price(under, used, seen)
        for name, at, amount in found.counted:
            assert at == seen[name]
            seen[name] += amount
    for volume in under.volumes:
        if not volume.by_cost and price(under, used).cost_nanos is not None:
            one = sum(item.quantity for item in price(card, used).line_items if item.kind in volume.kinds)
            assert seen[volume.name] == one * cuts


@examples(300)
@given(quantities)
def test_subsets_beyond_their_totals_are_never_priced(used: Quantities) -> None:
    whole = RateCard(provider="a", model="b", source="t", version="1", rates=Rates(**dict.fromkeys(KINDS, 1)))
    problem = contradiction(used)
    try:
        found = price(whole, used)
    except Exception as error:
        assert problem is not None, error
        assert getattr(error, "field", None)
    else:
        tokens = [item.quantity for item in found.line_items if item.kind not in ("web_search", "request")]
        assert problem is not None or sum(tokens) == used.prompt_tokens + used.completion_tokens


def test_twenty_thousand_model_names_do_not_grow_memory_under_rules_and_guesses() -> None:
    def name(number: int) -> str:
        return f"claude-sonnet-4-5-{number:x}-{'x' * 40}"

    row = PriceRuleRow(
        org_id="default",
        name="off",
        version=1,
        rule_id="1",
        layer="contract",
        definition={"name": "off", "layer": "contract", "op": "multiply", "factor": "0.9"},
        valid_from=None,
        valid_to=None,
        created_at=NOW,
        created_by="tester",
    )
    found = OrgPrices(RateCards(), PriceBook([row], changes=1))
    for number in range(5_000):  # Every cache is full now.
        found.resolve("anthropic", name(number), NOW)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(5_000, 25_000):
            card = found.resolve("anthropic", name(number), NOW)
            assert card is not None and "model_guessed:claude-sonnet-4-5" in card.notes
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    # The cached 4,096 answers are other ones now, traced since; 20,000 would be some 40 MB.
    assert grown < 16_000_000, grown
