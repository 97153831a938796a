"""Exchange rates on a real database: stated, bundled, and from the operator's file."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from handlers.context import Context, Limits, Services
from handlers.currency.rates import get_exchange_rates, update_exchange_rates
from handlers.currency.seed import begin, load_file, seed
from handlers.management.settings import configure_manager
from schemas.exchange import ExchangeRates, ExchangeRatesUpdated, GetExchangeRates, UpdateExchangeRates
from schemas.settings import ConfigureManager
from tests.support.services import context, outbox_events, refusal, services_for


async def get(ctx: Context, **fields: Any) -> ExchangeRates:
    return await get_exchange_rates(ctx, msgspec.convert(fields, GetExchangeRates))


async def put(ctx: Context, pair: str, rate: str, **fields: Any) -> ExchangeRatesUpdated:
    base, quote = pair.split("/")
    stated = {"rates": [{"base": base, "quote": quote, "rate": rate}], "source": "treasury", **fields}
    return await update_exchange_rates(ctx, msgspec.convert(stated, UpdateExchangeRates))


async def shown(ctx: Context, base: str, quote: str, **fields: Any) -> tuple[str, str, bool]:
    (rate,) = (await get(ctx, base=base, quotes=[quote], **fields)).rates
    return rate.rate, str(rate.as_of), rate.source == "treasury"


async def test_the_bundled_rates_are_stored_once_by_however_many_agents(services: Services, database_url: str) -> None:
    async with services_for(database_url) as other:
        await asyncio.gather(seed(services, days=40), seed(other, days=40))
        assert (await seed(other, days=40)).stored == 0
    rows = await services.database.fetch("SELECT count(*), count(DISTINCT (quote, as_of)) AS once FROM exchange_rate")
    assert rows[0]["count"] == rows[0]["once"] > 500
    ctx = context(services)
    found = await get(ctx, base="EUR", quotes=["USD", "VND"], on="2026-11-01")
    (dollar,) = found.rates
    assert (dollar.rate, str(dollar.as_of), dollar.source[:5]) == ("1.1172", "2026-10-30", "ECB (")
    assert found.missing == ["VND"]


async def test_own_rates_are_dated_versions_and_never_overwritten(services: Services, ctx: Context) -> None:
    await seed(services, days=40)
    today = services.clock().date()
    first = await put(ctx, "USD/VND", "25400")
    assert (first.stored, first.known, first.moved) == (1, 0, [])
    again = await put(ctx, "USD/VND", "25400")
    assert (again.stored, again.known, again.revision) == (0, 1, None)
    assert await shown(ctx, "USD", "VND") == ("25400", str(today), True)
    corrected = await put(ctx, "USD/VND", "25500")
    assert corrected.revision is not None and first.revision is not None and corrected.revision > first.revision
    assert (await shown(ctx, "USD", "VND"))[0] == "25500"
    yesterday = today - timedelta(days=1)
    await put(ctx, "USD/VND", "25000", as_of=str(yesterday))
    assert (await shown(ctx, "USD", "VND"))[0] == "25500"
    assert (await shown(ctx, "USD", "VND", on=str(yesterday)))[0] == "25000"
    rows = await services.database.fetch("SELECT rate FROM exchange_rate WHERE org_id = 'default' ORDER BY revision")
    assert [str(row["rate"]) for row in rows] == ["25400", "25500", "25000"]


async def test_own_rates_are_the_orgs_alone_and_come_first(services: Services, ctx: Context) -> None:
    await seed(services, days=40)
    await put(ctx, "EUR/USD", "1.15")
    assert await shown(ctx, "EUR", "USD") == ("1.15", str(services.clock().date()), True)
    assert (await shown(context(services, org="globex"), "EUR", "USD"))[0] == "1.1172"


async def test_a_change_is_told_and_audited(services: Services, ctx: Context) -> None:
    done = await put(ctx, "USD/VND", "25400", reason="the bank's letter")
    ((name, event),) = await outbox_events(services)
    assert name == "exchange_rates.changed"
    assert (event["revision"], event["source"], event["pairs"]) == (done.revision, "treasury", ["USD/VND"])
    (row,) = await services.database.fetch("SELECT entity, content FROM audit WHERE org_id = 'default'")
    entry = msgspec.json.decode(row["content"])
    assert (row["entity"], entry["reason"]) == ("exchange_rates", "the bank's letter")
    assert entry["after"]["rates"][0] | {"as_of": ""} == {"base": "USD", "quote": "VND", "rate": "25400", "as_of": ""}


async def test_a_rate_that_moves_far_takes_confirm(services: Services, ctx: Context) -> None:
    await seed(services, days=40)
    error = await refusal(put(ctx, "USD/EUR", "1.1172"))  # The pair the wrong way round.
    assert (error.code, error.field) == ("conflict", "confirm")
    assert (
        error.message.startswith("USD/EUR of ")
        and "moves by 24.8 % from 0.895094880057286072 to 1.1172" in error.message
    )
    assert await services.database.fetchval("SELECT count(*) FROM exchange_rate WHERE org_id = 'default'") == 0
    done = await put(ctx, "USD/EUR", "1.1172", confirm=True)
    assert [(m.base, m.quote, m.percent) for m in done.moved] == [("USD", "EUR", "24.8")]


async def test_a_table_is_stored_with_its_own_days(services: Services, ctx: Context) -> None:
    text = "Date,USD,JPY\n2026-10-30,1.1172,175.68\n2026-10-29,1.1130,N/A\n"
    done = await update_exchange_rates(ctx, UpdateExchangeRates(csv=text, source="ECB"))
    assert (done.stored, done.known) == (3, 0)
    assert (await shown(ctx, "EUR", "USD", on="2026-10-29"))[0] == "1.113"
    assert (await get(ctx, base="EUR", quotes=["JPY"], on="2026-10-29")).missing == ["JPY"]


async def test_a_circle_over_what_was_stated_before_is_refused(ctx: Context) -> None:
    await put(ctx, "USD/VND", "25400")
    error = await refusal(put(ctx, "VND/USD", "0.00003937"))
    assert (error.code, error.field) == ("conflict", "rates")
    assert "USD is stated in VND" in error.message or "circle" in error.message


async def test_an_org_keeps_so_many_rates_of_its_own(database_url: str) -> None:
    async with services_for(database_url, limits=Limits(exchange_rates_max=2)) as services:
        ctx = context(services)
        await put(ctx, "USD/VND", "25400")
        await put(ctx, "USD/NGN", "1500")
        error = await refusal(put(ctx, "USD/AED", "3.6725"))
        assert (error.code, error.field) == ("conflict", "rates")
        assert "at most 2" in error.message
        await put(context(services, org="globex"), "USD/AED", "3.6725")


async def test_a_request_states_so_many_rates(database_url: str) -> None:
    async with services_for(database_url, limits=Limits(exchange_request_rates_max=2)) as services:
        text = "Date,USD,JPY,GBP\n2026-10-30,1.1172,175.68,0.8338\n"
        error = await refusal(update_exchange_rates(context(services), UpdateExchangeRates(csv=text, source="x")))
        assert (error.field, "more than 2" in error.message) == ("csv", True)


async def test_the_operators_file_is_for_every_org_and_is_read_again_by_signal(
    services: Services, ctx: Context, tmp_path: Path
) -> None:
    await seed(services, days=40)
    file = tmp_path / "rates.csv"
    file.write_text("Date,USD\n2026-11-20,1.1200\n")
    services.exchange_rates_file = file
    await begin(services, days=40)
    other = context(services, org="globex")
    assert (await shown(other, "EUR", "USD"))[:2] == ("1.12", "2026-11-20")
    file.write_text("Date,USD\n2026-11-21,1.1300\n2026-11-20,1.9\n")
    done = await update_exchange_rates(ctx, UpdateExchangeRates(file=True))
    assert (done.stored, done.known) == (1, 1)  # What a day had stays.
    assert (await shown(other, "EUR", "USD"))[:2] == ("1.13", "2026-11-21")
    file.write_text("Date,USD\n2026-11-22,2.26\n")
    error = await refusal(update_exchange_rates(ctx, UpdateExchangeRates(file=True, confirm=True)))
    assert (error.code, error.field) == ("conflict", "file")
    assert "moves by 100 %" in error.message
    assert (await shown(other, "EUR", "USD"))[:2] == ("1.13", "2026-11-21")


async def test_a_file_that_cannot_be_used_stops_no_agent(services: Services, tmp_path: Path) -> None:
    services.exchange_rates_file = tmp_path / "none.csv"
    await begin(services, days=0)
    services.exchange_rates_file.write_bytes(b"PK nothing")
    await begin(services, days=0)
    error = await refusal(update_exchange_rates(context(services), UpdateExchangeRates(file=True)))
    assert (error.code, "not a zip archive" in error.message) == ("conflict", True)


async def test_a_file_is_read_only_so_far(database_url: str, tmp_path: Path) -> None:
    async with services_for(database_url, limits=Limits(exchange_file_bytes_max=20)) as services:
        services.exchange_rates_file = tmp_path / "rates.csv"
        services.exchange_rates_file.write_text("Date,USD\n2026-11-20,1.1200\n")
        error = await refusal(update_exchange_rates(context(services), UpdateExchangeRates(file=True)))
        assert "larger than 20 bytes" in error.message


async def test_without_a_base_it_is_the_orgs_currency(services: Services, ctx: Context) -> None:
    await seed(services, days=40)
    await configure_manager(ctx, ConfigureManager(currency="GBP"))
    found = await get(ctx, quotes=["EUR"])
    assert (found.base, found.rates[0].quote) == ("GBP", "EUR")


async def test_loading_again_stores_nothing(services: Services, tmp_path: Path) -> None:
    services.exchange_rates_file = tmp_path / "rates.csv"
    services.exchange_rates_file.write_text("Date,USD\n2026-11-20,1.1200\n")
    assert (await load_file(services)).stored == 1
    assert (await load_file(services)).stored == 0
