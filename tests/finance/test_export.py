"""export_usage: every posting once, to the nano; parts that do not shift; FOCUS that our validator finds sound."""

import base64
import csv
import io
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from arro3.io import read_parquet

from handlers.adjustments.adjust import adjust_usage
from handlers.adjustments.reprice import reprice_usage
from handlers.context import Context, Limits, Services
from handlers.finance import export
from handlers.finance.export import POSTING_COLUMNS, export_usage
from handlers.finance.focus_check import Checker
from handlers.finance.focus_columns import FocusVersion
from handlers.finance.focus_export import focus_row
from handlers.finance.focus_file import check_file
from handlers.pricing.update import update_pricing
from schemas.adjustment import AdjustUsage, RepriceUsage
from schemas.export import ExportUsage, UsageExport
from schemas.pricing import UpdatePricing
from schemas.usage import UsageEvent, UsageFilters
from tests.support.services import apply_usage, context, gpt, refusal, services_for, user

MONTH = datetime(2025, 10, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = 24 * HOUR
CLAUDE: dict[str, Any] = {"provider": "anthropic", "model": "claude-sonnet-4-5"}


def request(**fields: Any) -> ExportUsage:
    values: dict[str, Any] = {"start": MONTH, "end": MONTH + 31 * DAY} | fields
    return ExportUsage(**values)


async def parts(ctx: Context, **fields: Any) -> list[UsageExport]:
    """Every part, each asked for with the cursor of the one before."""
    found: list[UsageExport] = []
    cursor: str | None = None
    while True:
        found.append(await export_usage(ctx, request(cursor=cursor, **fields)))
        cursor = found[-1].next_cursor
        if cursor is None:
            return found


async def rows_of(ctx: Context, **fields: Any) -> list[dict[str, str]]:
    """The rows of the whole CSV file."""
    text = "".join(part.content for part in await parts(ctx, **fields))
    return list(csv.DictReader(io.StringIO(text)))


def judged(text: str, version: FocusVersion = "1.4") -> Checker:
    checker = Checker(version)
    reader = csv.reader(io.StringIO(text))
    header = next(reader)
    checker.header(header)
    for values in reader:
        checker.row(dict(zip(header, values, strict=True)))
    return checker


def claude(**fields: Any) -> UsageEvent:
    values: dict[str, Any] = CLAUDE | {"prompt_tokens": 2627, "completion_tokens": 97, "cache_read_tokens": 2000}
    values |= {"cache_write_tokens": 123, "cache_write_1h_tokens": 23, "web_searches": 2}
    values |= fields
    return UsageEvent(**values)


async def sown(services: Services) -> None:
    """Two months of usage of two providers with everything that can be told of a call, some of it without a price."""
    events: list[UsageEvent] = []
    for i in range(60):
        at = MONTH - 20 * DAY + i * 17 * HOUR
        events.append(gpt(1_000 + 7 * i, 100 + i, id=f"g{i}", timestamp=at, team_id=f"t{i % 3}", user_id=f"u{i % 5}"))
        events.append(
            claude(
                id=f"c{i}",
                timestamp=at + timedelta(minutes=i),
                team_id="t1" if i % 2 else None,
                project_id="p1",
                agent_id="a1",
                environment="prod",
                cost_center="cc-7",
                tags={"Größe": "x,y", "canary": str(i % 2)},
                reasoning_tokens=3,
            )
        )
    events += [gpt(5, 5, id=f"free{i}", timestamp=MONTH + i * DAY, provider="nobody", model="x") for i in range(4)]
    await apply_usage(services, *events)


async def nanos(services: Services, condition: str, *args: Any) -> int:
    sql = f"SELECT coalesce(sum(cost), 0)::bigint FROM usage_posting WHERE org_id = 'default' AND {condition}"
    return await services.database.fetchval(sql, *args)


def total(rows: list[dict[str, str]], column: str) -> Decimal:
    return sum((Decimal(row[column]) for row in rows), Decimal(0))


@pytest.mark.parametrize("granularity", ["hour", "day"])
@pytest.mark.parametrize("limit", [3, 5_000])
async def test_focus_sums_to_the_nano_and_is_sound(
    ctx: Context, services: Services, granularity: str, limit: int
) -> None:
    await sown(services)
    rows = await rows_of(ctx, granularity=granularity, limit=limit)
    expected = await nanos(services, '"timestamp" >= $1 AND "timestamp" < $2', MONTH, MONTH + 31 * DAY)
    assert expected > 0
    assert int(total(rows, "BilledCost") * 10**9) == expected == int(total(rows, "EffectiveCost") * 10**9)
    text = "".join(part.content for part in await parts(ctx, granularity=granularity, limit=limit))
    checker = judged(text)
    assert (checker.findings, checker.rows) == ([], len(rows)) and len(rows) > 100
    # Tokens: what calls used, by kind; nothing twice and nothing lost.
    used = Counter[str]()
    for row in rows:
        used[row["x_TokenKind"]] += int(row["ConsumedQuantity"])
    (counted,) = await services.database.fetch(
        "SELECT sum(prompt_tokens)::bigint AS p, sum(completion_tokens)::bigint AS c,"
        " sum(cache_read_tokens)::bigint AS r"
        ' FROM usage_event WHERE cost IS NOT NULL AND "timestamp" >= $1',
        MONTH,
    )
    assert used["input"] + used["cache_read"] + used["cache_write"] + used["cache_write_1h"] == counted["p"]
    assert used["output"] + used["reasoning"] == counted["c"] and used["cache_read"] == counted["r"]


async def test_products_are_exact_and_differ_from_the_bill_by_rounding_only(ctx: Context, services: Services) -> None:
    await sown(services)
    rows = await rows_of(ctx)
    for row in rows:
        quantity = Decimal(row["PricingQuantity"])
        assert Decimal(row["ListUnitPrice"]) * quantity == Decimal(row["ListCost"])
        assert Decimal(row["ContractedUnitPrice"]) * quantity == Decimal(row["ContractedCost"])
        assert "E" not in "".join(row[name] for name in ("ListCost", "ListUnitPrice", "PricingQuantity"))
        # Each call is rounded once, and the remainder goes to one of its items.
        calls = int(row["x_RequestCount"])
        assert abs(Decimal(row["BilledCost"]) - Decimal(row["ContractedCost"])) < calls * 8 * Decimal("1e-9")


CACHE_READ = {
    "BilledCost": "0.0006",
    "BillingAccountId": "default",
    "BillingAccountName": "default",
    "BillingCurrency": "USD",
    "BillingPeriodEnd": "2025-11-01T00:00:00Z",
    "BillingPeriodStart": "2025-10-01T00:00:00Z",
    "ChargeCategory": "Usage",
    "ChargeClass": "",
    "ChargeDescription": "Cached Input Tokens of claude-sonnet-4-5",
    "ChargeFrequency": "Usage-Based",
    "ChargePeriodEnd": "2025-10-06T10:00:00Z",
    "ChargePeriodStart": "2025-10-06T09:00:00Z",
    "ConsumedQuantity": "2000",
    "ConsumedUnit": "Tokens",
    "ContractedCost": "0.0006",
    "ContractedUnitPrice": "0.3",
    "EffectiveCost": "0.0006",
    "HostProviderName": "Anthropic",
    "InvoiceId": "",
    "InvoiceIssuerName": "Anthropic",
    "ListCost": "0.0006",
    "ListUnitPrice": "0.3",
    "PricingCategory": "Standard",
    "PricingQuantity": "0.002",
    "PricingUnit": "1000000 Tokens",
    "RegionId": "eu",
    "RegionName": "eu",
    "ResourceId": "a1",
    "ResourceName": "a1",
    "ResourceType": "Agent",
    "ServiceCategory": "AI and Machine Learning",
    "ServiceName": "Claude API",
    "ServiceProviderName": "Anthropic",
    "ServiceSubcategory": "Generative AI",
    "SkuId": "anthropic/claude-sonnet-4-5/cache_read",
    "SkuMeter": "Cached Input Tokens",
    "SkuPriceDetails": '{"x_Batch":false,"x_Model":"claude-sonnet-4-5","x_ServiceTier":"standard",'
    '"x_TokenCacheAction":"Read","x_TokenDirection":"Input"}',
    "SkuPriceId": "anthropic/claude-sonnet-4-5/cache_read/standard/eu",
    "SubAccountId": "t1",
    "SubAccountName": "t1",
    "SubAccountType": "Team",
    "Tags": '{"k":"v"}',
    "x_AdjustmentId": "",
    "x_CostCenter": "cc",
    "x_Environment": "",
    "x_Feature": "",
    "x_Model": "claude-sonnet-4-5",
    "x_PriceSource": "genai-prices",
    "x_ProjectId": "p1",
    "x_Provider": "anthropic",
    "x_RequestCount": "1",
    "x_ServiceTier": "",
    "x_TeamId": "t1",
    "x_TokenKind": "cache_read",
    "x_UserId": "",
}


async def test_a_row_says_what_was_used_in_the_specifications_own_terms(ctx: Context, services: Services) -> None:
    at = MONTH + 5 * DAY + timedelta(hours=9, minutes=59, seconds=59)
    attribution: dict[str, Any] = {"team_id": "t1", "project_id": "p1", "agent_id": "a1", "cost_center": "cc"}
    await apply_usage(services, claude(timestamp=at, region="eu", tags={"k": "v"}, **attribution))
    rows = {row["x_TokenKind"]: row for row in await rows_of(ctx)}
    assert list(rows["input"])[:4] == ["BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency"]
    assert {name: value for name, value in rows["cache_read"].items() if name != "x_PriceVersion"} == CACHE_READ
    searches = rows["web_search"]
    assert (searches["ConsumedQuantity"], searches["ConsumedUnit"], searches["PricingQuantity"]) == (
        "2",
        "Searches",
        "0.002",
    )
    assert (searches["PricingUnit"], searches["ListUnitPrice"], searches["ListCost"]) == ("1000 Searches", "10", "0.02")


async def test_unpriced_usage_is_left_out_and_told_never_nought(ctx: Context, services: Services) -> None:
    await sown(services)
    first, *rest = await parts(ctx, limit=50)
    assert rest and first.left_out is not None and first.metadata is not None
    assert (first.left_out.requests, first.left_out.total_tokens) == (4, 40)
    (model,) = first.left_out.models
    assert (model.provider, model.model, model.requests, model.total_tokens) == ("nobody", "x", 4, 40)
    assert all(part.left_out is None and part.metadata is None for part in rest)
    by_session = await export_usage(ctx, request(filters=UsageFilters(session_id="none")))
    assert by_session.left_out is not None and by_session.left_out.requests == 0
    assert not any(row["x_Provider"] == "nobody" for row in await rows_of(ctx))
    plain = [row for row in await rows_of(ctx, format="csv") if row["provider"] == "nobody"]
    assert [(row["cost"], row["cost_status"]) for row in plain] == [("", "unpriced")] * 4


async def test_the_metadata_names_the_version_and_every_column(ctx: Context, services: Services) -> None:
    await sown(services)
    for version in ("1.2", "1.3", "1.4"):
        (part,) = await parts(ctx, focus_version=version, limit=10_000, end=MONTH + 2 * DAY)
        header = part.content.partition("\n")[0].split(",")
        assert part.metadata is not None
        schema = part.metadata["Schema"]
        assert schema["FocusVersion"] == version and part.metadata["DataGenerator"]
        assert [column["ColumnName"] for column in schema["ColumnDefinition"]] == header
        assert judged(part.content, version).findings == []  # pyright: ignore[reportArgumentType]
        assert ("ProviderName" in header, "ServiceProviderName" in header) == (version < "1.4", version > "1.2")


async def test_parquet_holds_the_same_as_csv_with_decimals(ctx: Context, services: Services, tmp_path: Path) -> None:
    await sown(services)
    rows = await rows_of(ctx)
    path = tmp_path / "part.parquet"
    seen: list[dict[str, Any]] = []
    for part in await parts(ctx, format="focus-parquet", limit=70):
        assert part.encoding == "base64"
        path.write_bytes(base64.b64decode(part.content))
        checker = Checker("1.4")
        check_file(path, checker)
        assert checker.findings == [] and checker.rows == part.rows
        table: Any = read_parquet(path).read_all()
        types = {field.name: str(field.type) for field in table.schema}
        assert "Decimal128(38, 9)" in types["BilledCost"] and "Decimal128(38, 15)" in types["ListCost"]
        assert "Timestamp" in types["ChargePeriodStart"] and not any("Float" in kind for kind in types.values())
        columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in types}
        seen += [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    assert len(seen) == len(rows)
    for stored, row in zip(seen, rows, strict=True):
        assert stored["BilledCost"] == Decimal(row["BilledCost"]) and stored["Tags"] == (row["Tags"] or None)
        assert stored["ListUnitPrice"] == Decimal(row["ListUnitPrice"])
        assert stored["ChargePeriodStart"] == datetime.fromisoformat(row["ChargePeriodStart"])


async def test_corrections_are_rows_of_their_own_in_the_month_they_were_made(ctx: Context, services: Services) -> None:
    now = datetime.now(UTC)
    past = (now.replace(day=1) - 3 * DAY).replace(minute=5, second=0, microsecond=0)
    await apply_usage(services, gpt(id="old", timestamp=past), gpt(id="old2", timestamp=past), gpt(id="new"))
    changes: dict[str, dict[str, Any]] = {"old": {"kind": "void"}, "old2": {"kind": "refund", "amount": "0.001"}}
    for name, what in changes.items():
        await adjust_usage(ctx, AdjustUsage(usage_id=name, reason="wrong", adjustment_id=f"adj-{name}", **what))
    await adjust_usage(ctx, AdjustUsage(usage_id="new", kind="correct", prompt_tokens=400, reason="wrong"))
    wide: dict[str, Any] = {
        "start": (past - 40 * DAY).replace(hour=0, minute=0),
        "end": (now + 2 * DAY).replace(hour=0, minute=0, second=0, microsecond=0),
    }
    rows = await rows_of(ctx, **wide)
    assert judged("".join(part.content for part in await parts(ctx, **wide))).findings == []
    assert int(total(rows, "BilledCost") * 10**9) == await nanos(services, "true")
    late = [row for row in rows if row["ChargeClass"] == "Correction"]
    assert {row["x_AdjustmentId"] for row in late} == {"adj-old", "adj-old2"}
    this_month = now.strftime("%Y-%m-01T00:00:00Z")
    assert {row["BillingPeriodStart"] for row in late} == {this_month}
    assert {row["ChargePeriodStart"] for row in late} == {past.strftime("%Y-%m-%dT%H:00:00Z")}
    void = [row for row in late if row["x_AdjustmentId"] == "adj-old"]
    assert total(void, "BilledCost") == Decimal("-0.0035") and all(Decimal(r["ListUnitPrice"]) > 0 for r in void)
    assert total([row for row in late if row["x_AdjustmentId"] == "adj-old2"], "BilledCost") == Decimal("-0.001")
    own = [row for row in rows if row["x_AdjustmentId"] and row not in late]
    assert own and all(row["ChargeClass"] == "" for row in own)
    # The month as it is billed: late corrections belong to the month they were made in, and to no other.
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    billed = await rows_of(ctx, start=month, end=wide["end"], period="billing")
    before = await rows_of(ctx, start=wide["start"], end=month, period="billing")
    assert [row for row in billed if row["ChargeClass"]] == late
    assert {row["BillingPeriodStart"] for row in billed} == {this_month}
    assert total(billed, "BilledCost") + total(before, "BilledCost") == total(rows, "BilledCost")


async def test_later_arrivals_shift_no_part(ctx: Context, services: Services) -> None:
    await apply_usage(services, *[gpt(id=f"e{i}", timestamp=MONTH + i * HOUR) for i in range(10)])
    first = await export_usage(ctx, request(format="csv", limit=3))
    for kind in ("csv", "focus-csv"):
        whole = await rows_of(ctx, format=kind)
        first = await export_usage(ctx, request(format=kind, limit=3))
        name = f"late-{kind}"
        await apply_usage(services, *[gpt(id=f"{name}{i}", timestamp=MONTH + i * HOUR) for i in range(10)])
        text, cursor = first.content, first.next_cursor
        while cursor is not None:
            part = await export_usage(ctx, request(format=kind, limit=3, cursor=cursor))
            assert part.as_of == first.as_of
            text, cursor = text + part.content, part.next_cursor
        assert list(csv.DictReader(io.StringIO(text))) == whole
    again = await rows_of(ctx, format="csv", as_of=first.as_of)
    assert len(again) == 20 and len(await rows_of(ctx, format="csv")) == 30
    assert len(await rows_of(ctx, format="csv", as_of=datetime.now(UTC) + 9 * DAY)) == 30


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
async def test_postings_are_all_there_whatever_the_size_of_parts(ctx: Context, services: Services, kind: str) -> None:
    await sown(services)
    found: dict[int, list[dict[str, Any]]] = {}
    for limit in (1, 7, 10_000):
        every = await parts(ctx, format=kind, limit=limit)
        assert all(part.rows <= limit for part in every)
        text = "".join(part.content for part in every)
        found[limit] = (
            list(csv.DictReader(io.StringIO(text))) if kind == "csv" else [json.loads(x) for x in text.splitlines()]
        )
    assert found[1] == found[7] == found[10_000]
    rows = found[7]
    assert list(rows[0]) == list(POSTING_COLUMNS)
    expected = await nanos(services, '"timestamp" >= $1', MONTH)
    assert int(sum(Decimal(row["cost"] or 0) for row in rows) * 10**9) == expected
    assert len({row["usage_id"] for row in rows}) == len(rows) == 124 - 2 * sum(i * 17 < 480 for i in range(60))
    assert [row["timestamp"] for row in rows] == sorted(row["timestamp"] for row in rows)
    tagged = next(row for row in rows if row["tags"])
    tags = json.loads(tagged["tags"]) if kind == "csv" else tagged["tags"]
    assert tags["Größe"] == "x,y"


async def test_parts_fit_a_message_whatever_they_hold(ctx: Context, services: Services) -> None:
    names: dict[str, Any] = {
        "team_id": "ü" * 256,
        "project_id": '"' * 256,
        "feature": "\u2028" * 256,
        "agent_id": "\\" * 256,
    }
    tags: Any = {f"{i}" + "k" * 200: '"\\' * 100 for i in range(60)}
    await apply_usage(
        services, *[gpt(id=f"e{i}", timestamp=MONTH, tags=tags, cost_center=f"{i}", **names) for i in range(60)]
    )
    for kind in ("csv", "jsonl", "focus-csv", "focus-parquet"):
        every = await parts(ctx, format=kind)
        assert len(every) > 1 and all(len(part.content.encode()) < 900_000 for part in every)
        assert sum(part.rows for part in every) == (120 if kind.startswith("focus") else 60)
        assert all(len(export._JSON(part)) < 1_000_000 for part in every)  # pyright: ignore[reportPrivateUsage]


async def test_formulas_are_defused_where_names_are_free_and_focus_keeps_values(
    ctx: Context, services: Services
) -> None:
    await apply_usage(services, gpt(timestamp=MONTH, team_id="=cmd|' /C calc'!A0", project_id="-1+1", feature="ok"))
    (row,) = await rows_of(ctx, format="csv")
    assert (row["team_id"], row["project_id"], row["feature"]) == ("'=cmd|' /C calc'!A0", "'-1+1", "ok")
    (line,) = [json.loads(part.content) for part in await parts(ctx, format="jsonl")]
    assert line["team_id"] == "=cmd|' /C calc'!A0"
    assert {row["SubAccountId"] for row in await rows_of(ctx)} == {"=cmd|' /C calc'!A0"}


async def test_user_names_only_where_they_are_asked_for(ctx: Context, services: Services) -> None:
    await apply_usage(
        services, gpt(timestamp=MONTH, user_id='=Ann, "the" O\'Neil'), gpt(timestamp=MONTH, user_id="bob")
    )
    key = user("bob")
    assert all(row["user_id"][:3] == "uk_" for row in await rows_of(ctx, format="csv"))
    named = {row["user_id"] for row in await rows_of(ctx, format="csv", names=True)}
    assert named == {"bob", "'=Ann, \"the\" O'Neil"}
    lines = [json.loads(x) for p in await parts(ctx, format="jsonl", names=True) for x in p.content.splitlines()]
    assert {line["user_id"] for line in lines} == {"bob", '=Ann, "the" O\'Neil'}
    (bob,) = await rows_of(ctx, format="csv", filters=UsageFilters(user_id="bob"))
    assert bob["user_id"] == key
    told_apart = await rows_of(ctx, dimensions=["user_id"])
    assert key in {row["x_UserId"] for row in told_apart} and len(told_apart) == 4
    assert {row["x_UserId"] for row in await rows_of(ctx)} == {""}


async def test_rows_are_told_apart_by_what_was_asked(ctx: Context, services: Services) -> None:
    await sown(services)
    narrow = await rows_of(ctx, dimensions=[], tags=False, sub_account="cost_center", granularity="day")
    assert {row["SubAccountId"] for row in narrow} == {"", "cc-7"}
    assert {row["SubAccountType"] for row in narrow} == {"", "Cost Center"}
    assert {row["x_TeamId"] for row in narrow} == {row["Tags"] for row in narrow} == {""}
    wide = await rows_of(ctx, granularity="day")
    assert total(narrow, "BilledCost") == total(wide, "BilledCost") and len(narrow) < len(wide)
    only = await rows_of(ctx, filters=UsageFilters(model="claude-*"))
    assert {row["x_Model"] for row in only} == {"claude-sonnet-4-5"}


async def test_a_wide_quiet_range_is_answered_in_bounded_parts(database_url: str) -> None:
    async with services_for(database_url, limits=Limits(export_windows_max=3)) as services:
        ctx = context(services)
        await apply_usage(services, *[gpt(id=f"e{i}", timestamp=MONTH + i * 3 * DAY) for i in range(9)])
        found = await parts(ctx)
        assert len(found) > 2 and sum(part.rows for part in found) == 18


async def test_other_orgs_are_not_exported(ctx: Context, services: Services) -> None:
    await apply_usage(services, gpt(timestamp=MONTH), org="other")
    for kind in ("csv", "jsonl", "focus-csv", "focus-parquet"):
        (part,) = await parts(ctx, format=kind)
        assert part.rows == 0
        assert (await parts(context(services, org="other"), format=kind))[0].rows > 0


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"end": MONTH}, "end"),
        ({"start": MONTH + timedelta(minutes=1)}, "start"),
        ({"end": MONTH + HOUR + timedelta(seconds=1)}, "end"),
        ({"end": MONTH + HOUR, "granularity": "day"}, "end"),
        ({"names": True}, "names"),
        ({"filters": UsageFilters(user_id="a*")}, "filters.user_id"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "x", "format": "csv"}, "cursor"),
    ],
)
async def test_what_cannot_be_exported_is_refused(ctx: Context, fields: dict[str, Any], field: str) -> None:
    error = await refusal(export_usage(ctx, request(**fields)))
    assert (error.code, error.field) == ("invalid_request", field)


async def test_other_currencies_and_reported_costs_are_charges_like_others(ctx: Context, services: Services) -> None:
    rule = {
        "name": "eu",
        "layer": "contract",
        "op": "rates",
        "provider": "openai",
        "model": "gpt-4o",
        "currency": "EUR",
    }
    rule |= {"rates": {"input": "2", "output": "8"}, "valid_from": "2025-01-01T00:00:00Z"}
    await apply_usage(services, gpt(1_000, 100, id="euro", timestamp=MONTH))
    await update_pricing(ctx, msgspec.convert({"rules": [rule], "backdate": True}, UpdatePricing))
    day = {"start": MONTH, "end": MONTH + DAY, "only": "all", "dry_run": False}
    assert (await reprice_usage(ctx, msgspec.convert(day, RepriceUsage))).repriced == 1
    await apply_usage(services, gpt(50, 5, id="stated", model="gpt-4o-mini", timestamp=MONTH))
    await adjust_usage(ctx, AdjustUsage(usage_id="stated", kind="correct", cost="0.0123", reason="as billed"))
    rows = await rows_of(ctx)
    assert judged("".join(part.content for part in await parts(ctx))).findings == []
    sums = {c: total([row for row in rows if row["BillingCurrency"] == c], "BilledCost") for c in ("EUR", "USD")}
    # 1,000 x 2 + 100 x 8, per million; the event's first price in dollars was taken back.
    assert sums == {"EUR": Decimal("0.0028"), "USD": Decimal("0.0123")}


def test_a_reported_cost_is_one_request_at_that_cost() -> None:
    charge: dict[str, Any] = dict.fromkeys(("service_tier", "region", "adjustment_id", "price_version", "tags"))
    charge |= dict.fromkeys(("user_id", "team_id", "project_id", "feature", "agent_id", "environment", "cost_center"))
    charge |= {"charged_from": MONTH, "billed_from": MONTH, "late": False, "sign": 1, "batch": False, "requests": 3}
    charge |= {"provider": "openrouter", "model": "a/b", "currency": "USD", "kind": "reported", "quantity": 3}
    # Three calls at 0.0123 each: a rate is nanos for a million.
    charge |= {
        "rate": 12_300_000_000_000,
        "list_rate": 12_300_000_000_000,
        "nanos": 36_900_000,
        "price_source": "reported",
    }
    row = focus_row(charge, org="acme", bucket="hour", sub_account="team_id")
    assert (row["SkuMeter"], row["PricingUnit"], row["PricingQuantity"]) == (
        "Requests at Reported Cost",
        "Requests",
        "3",
    )
    assert (row["ListUnitPrice"], row["ListCost"], row["BilledCost"]) == ("0.0123", "0.0369", "0.0369")
    unknown = focus_row(charge | {"kind": "new_thing"}, org="acme", bucket="hour", sub_account="team_id")
    assert (unknown["SkuMeter"], unknown["ConsumedUnit"], unknown["ListCost"]) == ("New Thing", "Units", "0.0369")
    refund = focus_row(
        charge | {"kind": None, "rate": None, "nanos": -5}, org="acme", bucket="day", sub_account="team_id"
    )
    assert (refund["ChargeCategory"], refund["BilledCost"], refund["ListCost"]) == (
        "Adjustment",
        "-0.000000005",
        "-0.000000005",
    )
    assert refund["SkuPriceId"] is refund["PricingQuantity"] is refund["ConsumedUnit"] is None
