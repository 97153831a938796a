"""Our FOCUS validator: a sound dataset passes, every planted damage is found, a real dataset is told apart by rule."""

import csv
import gzip
import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from arro3.core import Array, DataType, Table
from arro3.io import write_parquet

from handlers.finance.focus_check import Checker
from handlers.finance.focus_columns import VERSIONS, FocusVersion, columns_of
from handlers.finance.focus_file import UnreadableFile, check_file

SAMPLE = Path("../shared/data/focus/focus_1_0_sample_1000.csv.gz")
# One sound row of what a token costs: 8.4 million tokens at 5 USD a million, as in the specification's own example.
SOUND: dict[str, str] = {
    "BilledCost": "42",
    "BillingAccountId": "acct-1001",
    "BillingAccountName": "Acme Corp",
    "BillingCurrency": "USD",
    "BillingPeriodEnd": "2025-06-01T00:00:00Z",
    "BillingPeriodStart": "2025-05-01T00:00:00Z",
    "ChargeCategory": "Usage",
    "ChargeClass": "",
    "ChargeDescription": "Input tokens",
    "ChargeFrequency": "Usage-Based",
    "ChargePeriodEnd": "2025-06-01T00:00:00Z",
    "ChargePeriodStart": "2025-05-01T00:00:00Z",
    "CommitmentDiscountCategory": "",
    "CommitmentDiscountId": "",
    "CommitmentDiscountName": "",
    "CommitmentDiscountStatus": "",
    "CommitmentDiscountType": "",
    "ConsumedQuantity": "8400000",
    "ConsumedUnit": "Tokens",
    "ContractedCost": "42",
    "ContractedUnitPrice": "5",
    "EffectiveCost": "42",
    "HostProviderName": "Solora AI",
    "InvoiceIssuerName": "Solora AI",
    "ListCost": "42.0",
    "ListUnitPrice": "5",
    "PricingCategory": "Standard",
    "PricingQuantity": "8.4",
    "PricingUnit": "1000000 Tokens",
    "RegionId": "",
    "RegionName": "",
    "ResourceId": "",
    "ResourceName": "",
    "ServiceCategory": "AI and Machine Learning",
    "ServiceName": "Solora API",
    "ServiceProviderName": "Solora AI",
    "ServiceSubcategory": "Generative AI",
    "SkuId": "saturn/input",
    "SkuMeter": "Input Tokens",
    "SkuPriceDetails": '{"x_TokenDirection":"Input"}',
    "SkuPriceId": "saturn/input/standard",
    "SubAccountId": "t1",
    "SubAccountName": "t1",
    "SubAccountType": "Team",
    "Tags": '{"env":"prod","canary":true}',
}


def found(*rows: dict[str, str], version: FocusVersion = "1.4", accept: tuple[str, ...] = ()) -> set[tuple[str, str]]:
    checker = Checker(version, accept=frozenset(accept))
    checker.header(list(rows[0]))
    for row in rows:
        checker.row(row)
    return {(finding.rule, finding.column) for finding in checker.findings}


def test_the_specifications_own_example_is_sound() -> None:
    assert found(SOUND) == set()


def test_each_version_has_the_columns_of_its_specification() -> None:
    assert {version: len(columns_of(version)) for version in VERSIONS} == {
        "1.0": 43,
        "1.1": 50,
        "1.2": 57,
        "1.3": 65,
        "1.4": 65,
    }
    assert "ProviderName" in columns_of("1.3") and "ProviderName" not in columns_of("1.4")
    mandatory = [c.name for c in columns_of("1.4").values() if c.level == "mandatory"]
    assert len(mandatory) == 21 and "HostProviderName" in mandatory


CORRECTION = {
    "ChargeClass": "Correction",
    "BillingPeriodStart": "2025-06-01T00:00:00Z",
    "BillingPeriodEnd": "2025-07-01T00:00:00Z",
}
UNPRICED = {
    **dict.fromkeys(("SkuId", "SkuMeter", "SkuPriceId", "SkuPriceDetails", "PricingCategory", "PricingQuantity"), ""),
    **dict.fromkeys(("PricingUnit", "ListUnitPrice", "ContractedUnitPrice", "ConsumedQuantity", "ConsumedUnit"), ""),
}
TAX = {"ChargeCategory": "Tax", **UNPRICED}
# What is planted -> rule and column that must be found, and nothing else.
DAMAGES: list[tuple[str, dict[str, str | None], set[tuple[str, str]]]] = [
    ("a mandatory column is missing", {"BilledCost": None}, {("missing_column", "BilledCost")}),
    ("a column of an older version", {"ProviderName": "x"}, {("unknown_column", "ProviderName")}),
    ("a column without x_", {"Id": "7"}, {("unknown_column", "Id")}),
    ("a cost is null", {"BilledCost": ""}, {("null", "BilledCost")}),
    ("a time is null", {"ChargePeriodStart": ""}, {("null", "ChargePeriodStart")}),
    ("a blank text", {"ServiceName": " "}, {("empty_text", "ServiceName")}),
    ("a currency sign", {"ListCost": "$42"}, {("number_format", "ListCost")}),
    ("an exponent", {"ConsumedQuantity": "8.4E6"}, {("number_format", "ConsumedQuantity")}),
    ("a plus", {"ConsumedQuantity": "+1"}, {("number_format", "ConsumedQuantity")}),
    ("thousands", {"ConsumedQuantity": "8,400,000"}, {("number_format", "ConsumedQuantity")}),
    ("no number", {"ConsumedQuantity": "NaN"}, {("number_format", "ConsumedQuantity")}),
    ("a time without a zone", {"ChargePeriodEnd": "2025-06-01T00:00:00"}, {("time_format", "ChargePeriodEnd")}),
    ("a time with an offset", {"ChargePeriodEnd": "2025-06-01T00:00:00+00:00"}, {("time_format", "ChargePeriodEnd")}),
    ("a day that is none", {"ChargePeriodEnd": "2025-06-31T00:00:00Z"}, {("time_format", "ChargePeriodEnd")}),
    ("tags that are no JSON", {"Tags": "{env:prod}"}, {("json_format", "Tags")}),
    ("tags that are a list", {"Tags": "[]"}, {("json_format", "Tags")}),
    ("tags with a nested value", {"Tags": '{"a":{"b":1}}'}, {("json_format", "Tags")}),
    ("an own key without x_", {"SkuPriceDetails": '{"TokenType":"in"}'}, {("custom_key", "SkuPriceDetails")}),
    ("a currency that is none", {"BillingCurrency": "USX"}, {("currency", "BillingCurrency")}),
    ("a currency in lower case", {"BillingCurrency": "usd"}, {("currency", "BillingCurrency")}),
    ("a category that is none", {"ChargeFrequency": "Usage-based"}, {("allowed_value", "ChargeFrequency")}),
    ("a class that is none", {"ChargeClass": "Refund"}, {("allowed_value", "ChargeClass")}),
    (
        "a service category that is none",
        {"ServiceCategory": "AI"},
        {("allowed_value", "ServiceCategory")},
    ),
    ("a subcategory of another one", {"ServiceSubcategory": "Containers"}, {("subcategory", "ServiceSubcategory")}),
    ("a pricing category that is none", {"PricingCategory": "On-Demand"}, {("allowed_value", "PricingCategory")}),
    ("committed to nothing", {"PricingCategory": "Committed"}, {("allowed_value", "PricingCategory")}),
    (
        "usage without a quantity",
        {"ConsumedQuantity": "", "ConsumedUnit": ""},
        {("conditional_value", "ConsumedQuantity"), ("conditional_value", "ConsumedUnit")},
    ),
    ("usage without a price", {"ListUnitPrice": ""}, {("conditional_value", "ListUnitPrice")}),
    ("usage without a SKU", {"SkuId": "", "SkuMeter": ""}, {("conditional_value", "SkuId")}),
    ("a meter of no SKU", {"SkuId": ""}, {("conditional_value", "SkuId"), ("conditional_null", "SkuMeter")}),
    ("a tax with a SKU", {**TAX, "SkuId": "x"}, {("conditional_null", "SkuId")}),
    (
        "a tax is consumed",
        {**TAX, "ConsumedQuantity": "1", "ConsumedUnit": "Tokens"},
        {("conditional_null", "ConsumedQuantity"), ("conditional_null", "ConsumedUnit")},
    ),
    (
        "a price without a SKU price",
        {**UNPRICED, "ChargeCategory": "Adjustment", "ListUnitPrice": "5"},
        {("conditional_null", "ListUnitPrice")},
    ),
    (
        "a unit without a quantity",
        {**UNPRICED, "ChargeCategory": "Adjustment", "PricingUnit": "Tokens"},
        {("conditional_null", "PricingUnit")},
    ),
    ("a quantity without a unit", {"PricingUnit": ""}, {("conditional_value", "PricingUnit")}),
    ("a sub account without a type", {"SubAccountType": ""}, {("conditional_value", "SubAccountType")}),
    (
        "the name of no sub account",
        {"SubAccountId": "", "SubAccountType": ""},
        {("conditional_null", "SubAccountName")},
    ),
    ("a region without a name", {"RegionId": "eu"}, {("conditional_value", "RegionName")}),
    ("the name of no resource", {"ResourceName": "a"}, {("conditional_null", "ResourceName")}),
    (
        "a discount without category, type and status",
        {"CommitmentDiscountId": "d", "EffectiveCost": "1"},
        {
            ("conditional_value", "CommitmentDiscountCategory"),
            ("conditional_value", "CommitmentDiscountType"),
            ("conditional_value", "CommitmentDiscountStatus"),
        },
    ),
    ("a list cost that is no product", {"ListCost": "42.001"}, {("cost_identity", "ListCost")}),
    ("a contracted cost that is no product", {"ContractedCost": "4.2"}, {("cost_identity", "ContractedCost")}),
    ("a price below nought", {"ListUnitPrice": "-5", "ListCost": "-42"}, {("negative", "ListUnitPrice")}),
    ("effective is not billed", {"EffectiveCost": "41"}, {("effective_cost", "EffectiveCost")}),
    (
        "a credit of two amounts",
        {**UNPRICED, "ChargeCategory": "Credit", "ContractedCost": "41"},
        {("credit", "ContractedCost")},
    ),
    ("an empty period", {"ChargePeriodEnd": "2025-05-01T00:00:00Z"}, {("period", "ChargePeriodEnd")}),
    ("a correction in its own period", {"ChargeClass": "Correction"}, {("period", "BillingPeriodStart")}),
]


@pytest.mark.parametrize(("what", "damage", "rules"), DAMAGES, ids=[what for what, _, _ in DAMAGES])
def test_a_planted_damage_is_found_and_nothing_else(
    what: str, damage: dict[str, str | None], rules: set[tuple[str, str]]
) -> None:
    row = {name: value for name, value in (SOUND | damage).items() if value is not None}
    assert found(row) == rules


def test_what_the_specification_allows_is_not_found() -> None:
    assert found(SOUND | CORRECTION) == set()
    assert found(SOUND | TAX) == set()
    assert (
        found(SOUND | {"ConsumedQuantity": "-1", "PricingQuantity": "-8.4", "ListCost": "-42", "ContractedCost": "-42"})
        == set()
    )
    assert found({**SOUND, "x_Own": "anything"}) == set()


def test_rules_across_rows_and_columns() -> None:
    other = {**SOUND, "SkuId": "saturn/output"}
    assert found(SOUND, other) == {("sku_parent", "SkuPriceId")}
    assert found({"x_Own": "1", **SOUND}, version="1.2") >= {("column_order", "BilledCost")}
    checker = Checker("1.4")
    checker.header([*SOUND, "BilledCost"])
    assert [(f.rule, f.column, f.row) for f in checker.findings] == [("duplicate_column", "BilledCost", 0)]


def test_findings_say_where_first_and_how_often() -> None:
    checker = Checker("1.4")
    checker.header(list(SOUND))
    for row in (SOUND, SOUND | {"BilledCost": "1e3"}, SOUND | {"BilledCost": "x"}):
        checker.row(row)
    (finding,) = checker.findings
    assert (finding.rule, finding.column, finding.row, finding.count) == ("number_format", "BilledCost", 2, 2)
    assert "'1e3'" in finding.message and checker.rows == 3


# What is wrong with the real sample, rule by rule: three quirks of how it was published, then what its issuers did.
QUIRKS = {
    "unknown_column:Id": 1,
    "time_format:BillingPeriodEnd": 1000,
    "time_format:BillingPeriodStart": 1000,
    "time_format:ChargePeriodEnd": 1000,
    "time_format:ChargePeriodStart": 1000,
    "conditional_null:ResourceType": 36,
    "cost_identity:ContractedCost": 18,
    "conditional_value:RegionName": 2,
    "negative:ContractedUnitPrice": 1,
    "allowed_value:ChargeFrequency": 7,
    "null:ContractedCost": 7,
    "conditional_value:ContractedUnitPrice": 5,
    "conditional_value:PricingCategory": 5,
    "conditional_value:SkuPriceId": 5,
    "conditional_null:RegionName": 7,
    "cost_identity:ListCost": 31,
    "conditional_null:ConsumedQuantity": 2,
    "conditional_null:ConsumedUnit": 2,
}


@pytest.mark.skipif(not SAMPLE.exists(), reason="the shared sample is not here")
def test_a_real_dataset_is_accepted_with_its_known_quirks_and_only_with_them() -> None:
    strict = Checker("1.0", nulls=frozenset({"", "NULL"}))
    check_file(SAMPLE, strict)
    assert strict.rows == 1000
    assert {f"{finding.rule}:{finding.column}": finding.count for finding in strict.findings} == QUIRKS
    checker = Checker("1.0", nulls=frozenset({"", "NULL"}), accept=frozenset(QUIRKS))
    check_file(SAMPLE, checker)
    assert checker.findings == [] and checker.rows == 1000
    words = Checker("1.0", accept=frozenset(QUIRKS))
    check_file(SAMPLE, words)
    assert ("json_format", "Tags") in {(finding.rule, finding.column) for finding in words.findings}


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode())


def test_files_are_read_as_csv_gzip_and_parquet(tmp_path: Path) -> None:
    plain, packed, stored = (tmp_path / name for name in ("a.csv", "a.csv.gz", "a.parquet"))
    write_csv(plain, [SOUND, SOUND | {"BilledCost": "x"}])
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (plain, packed):
        checker = Checker("1.4")
        check_file(path, checker)
        assert [(f.rule, f.column, f.row) for f in checker.findings] == [
            ("number_format", "BilledCost", 2),
        ]
    arrays = {name: Array([value or None], DataType.string()) for name, value in SOUND.items()}
    for name, column in columns_of("1.4").items():
        if name in arrays and column.type == "decimal":
            arrays[name] = arrays[name].cast(DataType.decimal128(38, 9))
        if name in arrays and column.type == "time":
            arrays[name] = arrays[name].cast(DataType.timestamp("us", tz="UTC"))
    write_parquet(Table(arrays), stored)
    sound = Checker("1.4")
    check_file(stored, sound)
    assert (sound.findings, sound.rows) == ([], 1)
    arrays["BilledCost"] = Array(["42"], DataType.string())
    write_parquet(Table(arrays), stored)
    texts = Checker("1.4")
    check_file(stored, texts)
    assert [(f.rule, f.column) for f in texts.findings] == [("type", "BilledCost")]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"\xff\xfe\x00", "not CSV in UTF-8"),
        (b"PAR1 and nothing else", "not a Parquet file"),
        (b"\x1f\x8b and nothing else", "not CSV in UTF-8"),
        (b'a,b\n"1', "not CSV in UTF-8"),
        (b"BilledCost,x_a\n1\n", "line 2 has 1 fields, the header 2"),
    ],
)
def test_what_is_no_dataset_is_refused_in_one_line(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=told):
        check_file(path, Checker("1.4"))


def test_numbers_of_any_size_are_judged() -> None:
    huge: dict[str, Any] = {"ListCost": "9" * 50, "ListUnitPrice": "9" * 50, "PricingQuantity": "1"}
    assert found(SOUND | huge) == {("cost_identity", "ContractedCost")}
    assert Decimal(huge["ListCost"]) > 0
