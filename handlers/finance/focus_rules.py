"""What the FOCUS specification says of the columns of one row together. Pure: values in, breaches out.

Each rule yields ``(rule, column, message)``. Null is None; a column that the dataset does not have is not judged.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Final

from handlers.finance.focus_columns import SERVICES, FocusVersion

Row = Mapping[str, str | None]
Breach = tuple[str, str, str]
Rule = Callable[[Row, FocusVersion], Iterator[Breach]]

NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")
# Quantities and prices of real datasets are rounded themselves: products meet the stated cost to this much.
ABSOLUTE: Final = Decimal("1e-9")
RELATIVE: Final = Decimal("1e-6")

_PRICED: Final = ("PricingQuantity", "PricingUnit", "ListUnitPrice", "ContractedUnitPrice", "PricingCategory")
_SKUS: Final = ("SkuId", "SkuPriceId")


def _is_regular(row: Row) -> bool:
    """Usage or a purchase that corrects nothing: what has a price and a quantity."""
    return row.get("ChargeCategory") in ("Usage", "Purchase") and row.get("ChargeClass") != "Correction"


def prices(row: Row, version: FocusVersion) -> Iterator[Breach]:
    """What is used or bought has a SKU, a price and a quantity; tax has none."""
    for name in (*_PRICED, *_SKUS):
        if name not in row:
            continue
        if _is_regular(row) and row[name] is None:
            yield "conditional_value", name, "is null where usage or a purchase is charged"
        if row.get("ChargeCategory") == "Tax" and row[name] is not None:
            yield "conditional_null", name, "has a value although the charge is a tax"
    if version >= "1.2" and "SkuPriceId" in row and row["SkuPriceId"] is None:
        for name in ("ListUnitPrice", "ContractedUnitPrice", "PricingQuantity", "PricingCategory", "SkuPriceDetails"):
            if row.get(name) is not None:
                yield "conditional_null", name, "has a value although SkuPriceId is null"
    if version >= "1.2" and "SkuMeter" in row and row.get("SkuId") is None and row["SkuMeter"] is not None:
        yield "conditional_null", "SkuMeter", "has a value although SkuId is null"


def consumption(row: Row, version: FocusVersion) -> Iterator[Breach]:
    """Only usage is consumed, and what is unused of a commitment is not."""
    unused = row.get("CommitmentDiscountStatus") == "Unused"
    for name in ("ConsumedQuantity", "ConsumedUnit"):
        if name not in row:
            continue
        if row.get("ChargeCategory") != "Usage" or unused:
            corrected = version < "1.4" and row.get("ChargeClass") == "Correction"
            if row[name] is not None and not corrected:
                yield "conditional_null", name, "has a value although nothing was consumed"
        elif row[name] is None and row.get("ChargeClass") != "Correction":
            yield "conditional_value", name, "is null where usage is charged"


# A column that is null exactly when the other is.
_TOGETHER: Final = (
    ("ConsumedUnit", "ConsumedQuantity"),
    ("PricingUnit", "PricingQuantity"),
    ("SubAccountType", "SubAccountId"),
    ("RegionName", "RegionId"),
    ("CommitmentDiscountCategory", "CommitmentDiscountId"),
    ("CommitmentDiscountType", "CommitmentDiscountId"),
    ("CommitmentDiscountUnit", "CommitmentDiscountQuantity"),
)
# A column that is null when the other is.
_BELONGING: Final = (
    ("SubAccountName", "SubAccountId"),
    ("ResourceName", "ResourceId"),
    ("ResourceType", "ResourceId"),
    ("CommitmentDiscountName", "CommitmentDiscountId"),
    ("CommitmentDiscountStatus", "CommitmentDiscountId"),
    ("CapacityReservationStatus", "CapacityReservationId"),
)


def pairs(row: Row, version: FocusVersion) -> Iterator[Breach]:
    """Names, types and units that belong to an identifier or a quantity."""
    for name, other in (*_TOGETHER, *_BELONGING):
        if name in row and other in row and row[name] is not None and row[other] is None:
            yield "conditional_null", name, f"has a value although {other} is null"
    for name, other in _TOGETHER:
        if name in row and other in row and row[name] is None and row[other] is not None:
            yield "conditional_value", name, f"is null although {other} has a value"
    for name, other in (
        ("CommitmentDiscountStatus", "CommitmentDiscountId"),
        ("CapacityReservationStatus", "CapacityReservationId"),
    ):
        used = row.get("ChargeCategory") == "Usage" and row.get(other) is not None
        if name in row and used and row[name] is None:
            yield "conditional_value", name, f"is null although usage names a {other}"
    committed = row.get("CommitmentDiscountStatus") is not None
    if version >= "1.1" and row.get("PricingCategory") == "Committed" and not committed:
        yield "allowed_value", "PricingCategory", "is Committed although no commitment discount applies"


def identities(row: Row, version: FocusVersion) -> Iterator[Breach]:
    """A cost is its unit price times the pricing quantity."""
    quantity = number(row.get("PricingQuantity"))
    corrected = row.get("ChargeClass") == "Correction" and version < "1.3"
    for cost, price in (("ListCost", "ListUnitPrice"), ("ContractedCost", "ContractedUnitPrice")):
        stated, unit = number(row.get(cost)), number(row.get(price))
        if stated is None or unit is None or quantity is None or corrected:
            continue
        if abs(stated - unit * quantity) > max(ABSOLUTE, RELATIVE * abs(stated)):
            yield "cost_identity", cost, f"is {stated}, but {price} x PricingQuantity is {unit * quantity}"


def costs(row: Row, version: FocusVersion) -> Iterator[Breach]:
    """How the four costs of a row follow from each other."""
    billed, effective = number(row.get("BilledCost")), number(row.get("EffectiveCost"))
    contracted = number(row.get("ContractedCost"))
    for name in ("ListUnitPrice", "ContractedUnitPrice"):
        price = number(row.get(name))
        if price is not None and price < 0:
            yield "negative", name, f"is {price}; a unit price is not negative"
    if version < "1.3" or billed is None:
        return
    alone = row.get("ChargeCategory") == "Usage" and row.get("CommitmentDiscountId") is None
    if alone and not row.get("ContractApplied") and effective is not None and effective != billed:
        yield (
            "effective_cost",
            "EffectiveCost",
            f"is {effective}, not BilledCost {billed}: nothing covers it",
        )
    if row.get("ChargeCategory") == "Credit" and contracted is not None and contracted != billed:
        yield "credit", "ContractedCost", f"is {contracted}, not BilledCost {billed}, of a credit"


def periods(row: Row, version: FocusVersion) -> Iterator[Breach]:
    """Periods are half-open and not empty; a correction is billed after what it corrects."""
    for kind in ("Billing", "Charge"):
        start, end = row.get(f"{kind}PeriodStart"), row.get(f"{kind}PeriodEnd")
        if start is not None and end is not None and start >= end:
            yield "period", f"{kind}PeriodEnd", f"{end} is not after {start}"
    billed_from, charged_from = row.get("BillingPeriodStart"), row.get("ChargePeriodStart")
    corrects = version >= "1.3" and row.get("ChargeClass") == "Correction"
    if corrects and billed_from is not None and charged_from is not None and charged_from >= billed_from:
        yield "period", "BillingPeriodStart", "of a correction is not after the period that it corrects"


def services(row: Row, version: FocusVersion) -> Iterator[Breach]:
    """A subcategory belongs to its category."""
    category, sub = row.get("ServiceCategory"), row.get("ServiceSubcategory")
    if version >= "1.1" and category in SERVICES and sub is not None and sub not in SERVICES[category]:
        yield "subcategory", "ServiceSubcategory", f"{sub!r} is not one of {category!r}"


RULES: Final[tuple[Rule, ...]] = (prices, consumption, pairs, identities, costs, periods, services)


def number(text: str | None) -> Decimal | None:
    """The number a text states; None also for what is none, which the format rule tells."""
    return Decimal(text) if text is not None and NUMBER.fullmatch(text) else None
