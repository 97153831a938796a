"""Money that changes under way: prices, trust and sums between a check, its usage and a correction."""

from fractions import Fraction

import msgspec

from handlers.cost.price import Quantities, price, worst_case
from handlers.cost.rate_card import RateCard, Rates, Volume
from handlers.management.reconcile import reconcile
from handlers.org_settings import OrgSettings
from handlers.tracker.priced import priced
from schemas.usage import UsageEvent
from tests.ledger.test_currency_rules import EURO, create, event, sums
from tests.ledger.test_price_rules import set_rule
from tests.support.ledger import CENT, USD, World
from tests.support.services import refusal


async def test_line_items_sum_to_list_and_net_however_much_of_a_dearer_contract_is_refunded(world: World) -> None:
    one, two = world.agents
    await world.budget(limit=100)
    await set_rule(world, op="multiply", factor="1.5")
    await one.track(id="e", completion_tokens=100)
    await two.adjust("e", "refund", amount="1.2")
    await two.adjust("e", "refund", amount="0.3")
    assert (await two.reprice(only="all")).repriced == 0
    rows = await world.fetch("SELECT after FROM adjustment WHERE org_id = $1 ORDER BY sequence", world.org)
    found: list[tuple[int, int]] = []
    for row in rows:
        state = msgspec.json.decode(row["after"])
        items = state["line_items"]
        assert sum(item[3] for item in items) == state["cost"]
        assert sum(item[5] if len(item) > 4 else item[3] for item in items) == state["list_cost"]
        found.append((state["cost"], state["list_cost"]))
    assert found == [(30 * CENT, 0), (0, 0)]


async def test_whether_a_reported_cost_is_believed_is_decided_when_it_is_applied(world: World) -> None:
    one, two = world.agents
    given = {"provider": "acme", "model": "cent", "prompt_tokens": 0, "completion_tokens": 100, "reported_cost": "0.5"}
    waiting = [
        priced(
            msgspec.convert(given, UsageEvent),
            org=world.org,
            event_id=event_id,
            arrived_at=one.services.clock(),
            cards=one.services.rate_cards,
            limits=one.services.limits,
            settings=OrgSettings(),
        ).event
        for event_id in ("believed", "doubted")
    ]
    assert [found.cost for found in waiting] == [USD, USD]
    await world.put_setting("reported_cost", "always")
    assert await two.apply(waiting[:1]) == {0: "applied"}
    assert ((await event(world, "believed"))["cost"], waiting[0].cost) == (USD // 2, USD // 2)
    await world.put_setting("reported_cost", "never")
    assert await one.apply(waiting[1:]) == {0: "applied"}
    assert (await event(world, "doubted"))["cost"] == USD


def test_a_volume_rule_of_a_kind_without_a_rate_of_its_own_is_part_of_the_worst_case() -> None:
    rates = Rates(input=1_000_000, output=1_000_000)
    used = Quantities(prompt_tokens=100, cache_read_tokens=100, completion_tokens=100, reasoning_tokens=100)
    for kinds, factor in (({"reasoning", "cache_read"}, 2), ({"output", "input"}, Fraction(1, 2))):
        volume = Volume("v", "v@1", frozenset(kinds), False, ((0, Fraction(factor)),))
        card = RateCard(provider="a", model="m", source="s", version="1", rates=rates, volumes=(volume,))
        worst, found = worst_case(card, 100, 100), price(card, used).cost_nanos
        assert worst is not None and found is not None and found <= worst, kinds


async def test_a_call_in_parts_pays_for_its_request_once(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit=100)
    rates = {"input": "0", "output": "10000", "request": "1000000"}
    await set_rule(world, op="rates", provider="acme", model="asks", rates=rates)
    await one.track(id="a", model="asks", completion_tokens=10, final=False, request_id="r")
    await two.track(id="b", model="asks", completion_tokens=10, request_id="r")
    assert (await world.sums(budget))[0] == USD + 20 * CENT
    assert (await one.reprice(only="all")).repriced == 0
    await two.adjust("a", "correct", completion_tokens=20)
    assert (await world.sums(budget))[0] == USD + 30 * CENT


async def test_what_a_correction_overruns_is_counted_in_the_budget_s_currency(world: World) -> None:
    one, two = world.agents
    await create(one, limit="1", currency="EUR")
    await world.budget(limit=1)
    await one.rates("EUR/USD", "1.25")
    await one.track(id="e", model="eurocent", completion_tokens=80)
    await two.adjust("e", "correct", completion_tokens=150)
    sql = "SELECT cause, unit, amount, currency FROM overrun_cause WHERE org_id = $1 ORDER BY currency"
    found = [tuple(row.values()) for row in await world.fetch(sql, world.org)]
    assert found == [
        ("correction", "cost", EURO // 2, "EUR"),
        ("correction", "cost", 875_000_000, "USD"),
    ]


async def test_a_window_that_holds_as_much_as_any_sum_stops_counting_and_every_other_budget_goes_on(
    world: World,
) -> None:
    one, two = world.agents
    await one.rates("USD/VND", "25000")
    dong = await create(one, limit="1000000000", currency="VND", enforcement="block")
    watched = await create(one, limit="1000000000", currency="VND", enforcement="warn")
    dollars = await create(one, limit="1000000")
    dear = {"completion_tokens": 3_900_000}
    for i in range(8):
        assert await one.track(**dear, id=f"d{i}") == "applied"
    counted = await sums(world, dong)
    batch = [two.event(**dear, id=f"more{i}") for i in range(3)]
    assert set((await two.apply(batch)).values()) == {"applied"}
    assert await sums(world, dong) == counted
    assert (await sums(world, watched))[0] == counted[0]
    assert (await sums(world, dollars))[0] == 11 * 39_000 * USD
    assert (await event(world, "more0"))["flags"] == ["beyond_budget"]
    assert not await world.fetch("SELECT message FROM dead_letter WHERE org_id = $1", world.org)
    # What still fits is counted, what does not is refused where a person asks for it, and what falls falls.
    assert await one.track(completion_tokens=100, id="small") == "applied"
    assert (await sums(world, dong))[0] == counted[0] + 25_000 * EURO
    error = await refusal(two.adjust("small", "correct", completion_tokens=3_900_000))
    assert (error.code, error.field) == ("conflict", "cost")
    await two.adjust("d0", "void")
    assert (await sums(world, dong))[0] == counted[0] + 25_000 * EURO - 975_000_000 * EURO
    assert (await reconcile(one.context)).ok
