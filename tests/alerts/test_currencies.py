"""Sums over several currencies: told in the org's own at a stated rate, or by currency, and never added as they are."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from handlers.alerts.notes import of_alert
from handlers.alerts.spending import spending_of
from handlers.enforcer.budgets import create_budget
from handlers.management.settings import configure_manager
from handlers.management.status import get_status
from handlers.tracker.query import aggregate_usage
from schemas.budget import CreateBudget
from schemas.errors import SignalError
from schemas.management import GetStatus
from schemas.settings import ConfigureManager
from schemas.usage import AggregateUsage, UsageSums
from store import alerts as alert_store
from tests.alerts.scene import alerts, look, rule
from tests.support.ledger import START, LedgerAgent, World

DAY = timedelta(days=1)


async def totals(agent: LedgerAgent, **fields: Any) -> UsageSums:
    span = {"start": START - DAY, "end": START + DAY}
    return await aggregate_usage(agent.context, msgspec.convert({**span, **fields}, AggregateUsage))


async def spend(agent: LedgerAgent) -> None:
    """A dollar of one team, two euros of another, half a euro of the first."""
    await agent.track(completion_tokens=100, team_id="a", feature="chat")
    await agent.track(model="eurocent", completion_tokens=200, team_id="b", feature="search")
    await agent.track(model="eurocent", completion_tokens=50, team_id="a", feature="chat")


@pytest.mark.parametrize("interval", ["hour", "minute"])  # From rollups, and from the events.
async def test_sums_are_told_in_the_orgs_currency_at_one_stated_rate(world: World, interval: str) -> None:
    one, two = world.agents
    await one.rates("EUR/USD", "1.25")
    await spend(one)
    found = await totals(two, interval=interval, group_by=["team_id"])
    assert {row.group["team_id"]: (row.cost, row.currency, row.costs) for row in found.rows} == {
        "a": ("1.625", "USD", {"EUR": "0.5", "USD": "1"}),
        "b": ("2.5", "USD", {"EUR": "2"}),
    }
    assert (found.totals.cost, found.totals.costs) == ("4.125", {"EUR": "2.5", "USD": "1"})
    assert [(r.base, r.quote, r.rate, r.stale) for r in found.rates] == [("EUR", "USD", "1.25", False)]
    assert found.missing_rates == []
    await configure_manager(one.context, ConfigureManager(currency="EUR"))
    found = await totals(two, interval=interval)
    assert (found.totals.cost, found.totals.currency) == ("3.3", "EUR")
    assert [(r.base, r.quote, r.rate) for r in found.rates] == [("USD", "EUR", "0.8")]


async def test_what_nothing_converts_is_named_and_not_added(world: World) -> None:
    one, _ = world.agents
    await spend(one)
    found = await totals(one)
    assert (found.totals.cost, found.totals.costs) == ("1", {"EUR": "2.5", "USD": "1"})
    assert (found.rates, found.missing_rates) == ([], ["EUR/USD"])


async def test_dollars_alone_are_told_as_ever(world: World) -> None:
    one, _ = world.agents
    await one.track(completion_tokens=100)
    found = await totals(one)
    assert (found.totals.cost, found.totals.currency, found.totals.costs, found.rates) == ("1", "USD", {}, [])


async def test_the_largest_rows_are_the_largest_in_one_currency(world: World) -> None:
    one, _ = world.agents
    await one.rates("USD/JPY", "160")
    await one.rates("EUR/USD", "1.25")
    await spend(one)
    await configure_manager(one.context, ConfigureManager(currency="JPY"))
    found = await totals(one, group_by=["team_id"], limit=1)
    assert [(row.group["team_id"], row.cost, row.currency) for row in found.rows] == [("b", "400", "JPY")]
    assert (found.truncated, found.totals.cost) == (True, "660")


async def test_a_day_that_is_over_is_told_at_its_own_rate(world: World) -> None:
    one, _ = world.agents
    await one.rates("EUR/USD", "1.25")
    await spend(one)
    await world.go_to(START + 5 * DAY)
    await one.rates("EUR/USD", "2")
    assert (await totals(one)).totals.cost == "4.125"
    assert (await totals(one, end=START + 30 * DAY)).totals.cost == "6"


async def test_what_was_never_settled_and_found_no_room_is_told_in_one_currency(world: World) -> None:
    one, two = world.agents
    await one.rates("EUR/USD", "1.25")
    for currency, limit in (("EUR", "0.5"), ("USD", "0.5")):
        request = CreateBudget(name=currency, type="global", limit=limit, currency=currency, enforcement="warn")
        await create_budget(one.context, request)
    await one.hold(max_completion_tokens=100, ttl_s=1)
    await one.hold(model="eurocent", max_completion_tokens=100, ttl_s=1)
    await world.wait(minutes=5)
    await two.sweep()
    await one.track(model="eurocent", completion_tokens=100)
    figures = (await get_status(one.context, GetStatus())).compliance
    assert figures is not None
    (caller,) = figures.never_settled
    assert (caller.count, caller.cost, caller.currency) == (2, "2.25", "USD")
    # 0.5 EUR beyond one limit, and 0.75 USD beyond the other.
    (overrun,) = figures.overrun
    assert (overrun.cause, overrun.amount, overrun.currency, overrun.charges) == ("unreserved", "1.375", "USD", 2)
    assert [(r.base, r.rate) for r in figures.rates] == [("EUR", "1.25")]


async def test_an_hourly_rate_in_euros_counts_every_currency(world: World) -> None:
    one, _ = world.agents
    await one.rates("EUR/USD", "1.25")
    await rule(one, "fast", "hourly_rate", parameters={"limit": "1.3", "currency": "EUR"})
    await one.track(completion_tokens=100)
    assert await look(one) == 0
    await one.track(model="eurocent", completion_tokens=50)
    assert await look(one) == 1
    (alert,) = await alerts(one)
    assert alert.title == "All calls: 1.3 EUR in the last 60 minutes"
    assert (alert.details["amount"], alert.details["currency"]) == ("1.3", "EUR")


async def test_a_dear_call_is_compared_in_the_currency_of_the_limit(world: World) -> None:
    one, _ = world.agents
    await one.rates("EUR/USD", "1.25")
    await configure_manager(one.context, ConfigureManager(currency="EUR"))
    made = await rule(one, "dear", "request_cost", parameters={"limit": "1"})
    assert made.parameters.currency == "EUR"  # As the org's currency was when it was set.
    await one.track(completion_tokens=125)
    assert await alerts(one) == []
    await one.track(completion_tokens=126)
    (alert,) = await alerts(one)
    assert (alert.title, alert.message) == (
        "All calls: acme/cent: 1.26 USD for one call",
        "The rule's limit is 1 EUR.",
    )


async def test_top_features_of_a_euro_budget_count_every_currency_at_the_frozen_rate(world: World) -> None:
    one, _ = world.agents
    await one.rates("EUR/USD", "1.25")
    request = CreateBudget(name="b", type="global", limit="4", currency="EUR", alert_thresholds=[50])
    await create_budget(one.context, request)
    await spend(one)
    await one.rates("EUR/USD", "2.5")
    (alert,) = await alerts(one)
    async with world.connection() as connection:
        row = await alert_store.find(connection, world.org, alert.alert_id)
        assert row is not None
        found = await spending_of(one.services, connection, world.org, of_alert("d", row), world.now())
    assert [(f.feature, f.cost) for f in found.top_features] == [("search", "2"), ("chat", "1.3")]
    assert found.currency == "EUR"


async def test_an_unknown_reporting_currency_is_refused(world: World) -> None:
    one, _ = world.agents
    with pytest.raises(SignalError) as error:
        await configure_manager(one.context, ConfigureManager(currency="EUX"))
    assert (error.value.field, "did you mean 'EUR'" in error.value.message) == ("currency", True)
