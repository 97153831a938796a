"""One summed charge as a row of FOCUS: every value as the text a CSV holds. Pure, and integers only.

``BilledCost`` and ``EffectiveCost`` are what the postings cost, to the nano. ``ListCost`` and ``ContractedCost`` are
the exact products of quantity and rate that the specification asks for, so they carry what rounding each call to nanos
took (less than a nano for each line item of a call).
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from handlers.finance.focus_columns import Column, FocusVersion, columns_of
from handlers.finance.focus_names import Meter, Vendor, meter_of, vendor_of

_ENCODE: Final = msgspec.json.Encoder(order="sorted").encode
# Decimals: nanos; rates in nanos per million units times units.
NANO_DIGITS: Final = 9
PRODUCT_DIGITS: Final = 15
_COLUMNS: Final = (
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd"),
    *("BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency"),
    *("ChargePeriodEnd", "ChargePeriodStart", "ConsumedQuantity", "ConsumedUnit", "ContractedCost"),
    *("ContractedUnitPrice", "EffectiveCost", "HostProviderName", "InvoiceId", "InvoiceIssuerName", "ListCost"),
    *("ListUnitPrice", "PricingCategory", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName"),
    *("RegionId", "RegionName", "ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName"),
    *("ServiceProviderName", "ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId"),
    *("SubAccountId", "SubAccountName", "SubAccountType", "Tags"),
)
OWN_COLUMNS: Final = (
    *("x_AdjustmentId", "x_CostCenter", "x_Environment", "x_Feature", "x_Model", "x_PriceSource", "x_PriceVersion"),
    *("x_ProjectId", "x_Provider", "x_RequestCount", "x_ServiceTier", "x_TeamId", "x_TokenKind", "x_UserId"),
)
_SUB_ACCOUNTS: Final = {"team_id": "Team", "project_id": "Project", "cost_center": "Cost Center"}
Charge = Mapping[str, Any]
Row = dict[str, str | None]


def exported_columns(version: FocusVersion) -> tuple[str, ...]:
    """The columns of an export: those of the specification first, in alphabetical order, then our own."""
    known = columns_of(version)
    return (*(name for name in _COLUMNS if name in known), *OWN_COLUMNS)


def focus_row(charge: Charge, *, org: str, bucket: str, sub_account: str) -> Row:
    """The row of a charge as ``store.export.charges`` sums it. It has the columns of every version."""
    vendor = vendor_of(charge["provider"])
    row: Row = dict.fromkeys((*_COLUMNS, *OWN_COLUMNS))
    row |= _fixed(charge, vendor, org) | _periods(charge, bucket) | _own(charge)
    row |= _owner(charge, sub_account)
    if charge["kind"] is None or charge["rate"] is None:
        row |= _unitless(charge)
    else:
        row |= _metered(charge, meter_of(charge["kind"]))
    return row


def _fixed(charge: Charge, vendor: Vendor, org: str) -> Row:
    billed = decimal_text(int(charge["nanos"]), NANO_DIGITS)
    return {
        "BilledCost": billed,
        "EffectiveCost": billed,
        "BillingAccountId": org,
        "BillingAccountName": org,
        "BillingCurrency": charge["currency"],
        "ChargeClass": "Correction" if charge["late"] else None,
        "ChargeFrequency": "Usage-Based",
        "HostProviderName": vendor.name,
        "InvoiceIssuerName": vendor.name,
        "ProviderName": vendor.name,
        "PublisherName": vendor.name,
        "ServiceProviderName": vendor.name,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceSubcategory": "Generative AI",
        "ServiceName": vendor.service,
        "RegionId": charge["region"],
        "RegionName": charge["region"],
    }


def _periods(charge: Charge, bucket: str) -> Row:
    start: datetime = charge["charged_from"]
    month: datetime = charge["billed_from"]
    return {
        "ChargePeriodStart": time_text(start),
        "ChargePeriodEnd": time_text(start + (timedelta(hours=1) if bucket == "hour" else timedelta(days=1))),
        "BillingPeriodStart": time_text(month),
        "BillingPeriodEnd": time_text((month + timedelta(days=32)).replace(day=1)),
    }


def _own(charge: Charge) -> Row:
    return {
        "x_AdjustmentId": charge["adjustment_id"],
        "x_CostCenter": charge["cost_center"],
        "x_Environment": charge["environment"],
        "x_Feature": charge["feature"],
        "x_Model": charge["model"],
        "x_PriceSource": charge["price_source"],
        "x_PriceVersion": charge["price_version"],
        "x_ProjectId": charge["project_id"],
        "x_Provider": charge["provider"],
        "x_RequestCount": str(charge["requests"]),
        "x_ServiceTier": charge["service_tier"],
        "x_TeamId": charge["team_id"],
        "x_TokenKind": charge["kind"],
        "x_UserId": charge["user_id"],
        "Tags": _ENCODE(charge["tags"]).decode() if charge["tags"] else None,
    }


def _owner(charge: Charge, sub_account: str) -> Row:
    agent, account = charge["agent_id"], charge[sub_account]
    return {
        "ResourceId": agent,
        "ResourceName": agent,
        "ResourceType": None if agent is None else "Agent",
        "SubAccountId": account,
        "SubAccountName": account,
        "SubAccountType": None if account is None else _SUB_ACCOUNTS[sub_account],
    }


def _unitless(charge: Charge) -> Row:
    """An amount without a quantity: what a refund or a stated cost is beyond the line items."""
    cost = decimal_text(int(charge["nanos"]), NANO_DIGITS)
    what = f"Adjustment of {charge['model']}"
    return {"ChargeCategory": "Adjustment", "ChargeDescription": what, "ContractedCost": cost, "ListCost": cost}


def _metered(charge: Charge, meter: Meter) -> Row:
    rate, list_rate, quantity = int(charge["rate"]), int(charge["list_rate"]), int(charge["quantity"])
    if rate < 0:
        # A unit price is never negative: what is given back is a negative quantity.
        rate, list_rate, quantity = -rate, abs(list_rate), -quantity
    sku = f"{charge['provider']}/{charge['model']}/{charge['kind']}"
    tier = charge["service_tier"] or "standard"
    variants = [tier, *(["batch"] if charge["batch"] else []), *([charge["region"]] if charge["region"] else [])]
    per = 10**meter.price_digits
    undone = " taken back" if charge["sign"] < 0 else ""
    return {
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{meter.name} of {charge['model']}{undone}",
        "ConsumedQuantity": str(quantity),
        "ConsumedUnit": meter.unit,
        "PricingCategory": "Standard",
        "PricingQuantity": decimal_text(quantity, meter.price_digits),
        "PricingUnit": meter.pricing_unit,
        "ContractedUnitPrice": decimal_text(rate * per, PRODUCT_DIGITS),
        "ContractedCost": decimal_text(rate * quantity, PRODUCT_DIGITS),
        "ListUnitPrice": decimal_text(list_rate * per, PRODUCT_DIGITS),
        "ListCost": decimal_text(list_rate * quantity, PRODUCT_DIGITS),
        "SkuId": sku,
        "SkuMeter": meter.name,
        "SkuPriceId": "/".join([sku, *variants]),
        "SkuPriceDetails": _details(charge, meter, tier),
    }


def _details(charge: Charge, meter: Meter, tier: str) -> str:
    found: dict[str, Any] = {"x_Batch": charge["batch"], "x_Model": charge["model"], "x_ServiceTier": tier}
    if meter.direction is not None:
        found["x_TokenDirection"] = meter.direction
    if meter.cache_action is not None:
        found["x_TokenCacheAction"] = meter.cache_action
    return _ENCODE(found).decode()


def decimal_text(scaled: int, digits: int) -> str:
    """A plain decimal of ``scaled`` / 10**digits: no exponent, no trailing zeros."""
    sign = "-" if scaled < 0 else ""
    if digits == 0:
        return f"{sign}{abs(scaled)}"
    whole, part = divmod(abs(scaled), 10**digits)
    rest = f"{part:0{digits}d}".rstrip("0")
    return f"{sign}{whole}.{rest}" if rest else f"{sign}{whole}"


def time_text(at: datetime) -> str:
    """UTC as FOCUS writes it."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


_TYPES: Final = {"string": "STRING", "decimal": "DECIMAL", "time": "DATETIME", "json": "JSON"}


def metadata(version: FocusVersion, *, created: datetime) -> dict[str, Any]:
    """What the specification wants said beside a dataset: its generator, and the schema with every column."""
    known = columns_of(version)
    definitions = [_definition(name, known.get(name)) for name in exported_columns(version)]
    digest = hashlib.sha256(_ENCODE([version, definitions])).hexdigest()
    schema_id = "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))
    return {
        "DataGenerator": {"DataGenerator": "token-manager"},
        "Schema": {
            "SchemaId": schema_id,
            "FocusVersion": version,
            "CreationDate": time_text(created),
            "ColumnDefinition": definitions,
        },
    }


def _definition(name: str, column: Column | None) -> dict[str, Any]:
    kind = "decimal" if name == "x_RequestCount" else "string" if column is None else column.type
    found: dict[str, Any] = {"ColumnName": name, "DataType": _TYPES[kind]}
    if kind == "decimal":
        found |= {"NumericPrecision": 38, "NumberScale": scale_of(name)}
    if kind in ("string", "json"):
        found["StringEncoding"] = "UTF-8"
    return found


def scale_of(name: str) -> int:
    """How many decimals the values of a column have at most."""
    if name in ("BilledCost", "EffectiveCost"):
        return NANO_DIGITS
    if name in ("ConsumedQuantity", "x_RequestCount"):
        return 0
    return 6 if name == "PricingQuantity" else PRODUCT_DIGITS


def ordered(row: Row, columns: Sequence[str]) -> list[str | None]:
    """The values of some columns."""
    return [row[name] for name in columns]
