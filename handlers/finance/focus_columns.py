"""The columns of the FOCUS Cost and Usage dataset, by version of the specification. It decides nothing about rows.

Written from the FinOps Open Cost and Usage Specification 1.0 (June 2024), 1.1 (November 2024), 1.2 (May 2025), 1.3
(December 2025) and 1.4 (June 2026): one table, so that the next version is a few lines.
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

FocusVersion = Literal["1.0", "1.1", "1.2", "1.3", "1.4"]
VERSIONS: Final[tuple[FocusVersion, ...]] = get_args(FocusVersion)
CURRENT: Final[FocusVersion] = "1.4"
Level = Literal["mandatory", "conditional", "recommended"]
Type = Literal["string", "decimal", "time", "json"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column. ``until`` is the last version that has it; ``nullable`` is the specification's "Allows nulls"."""

    name: str
    type: Type
    level: Level
    nullable: bool
    since: FocusVersion = "1.0"
    until: FocusVersion = "1.4"
    allowed: tuple[str, ...] = ()


def _known(
    type_: Type,
    level: Level,
    names: str,
    *,
    nullable: bool = True,
    since: FocusVersion = "1.0",
    until: FocusVersion = "1.4",
) -> tuple[Column, ...]:
    return tuple(Column(name, type_, level, nullable, since, until) for name in names.split())


CATEGORIES: Final = ("Usage", "Purchase", "Tax", "Credit", "Adjustment")
SERVICES: Final[dict[str, tuple[str, ...]]] = {
    "AI and Machine Learning": (
        *("AI Platforms", "Bots", "Generative AI", "Machine Learning", "Natural Language Processing"),
        "Other (AI and Machine Learning)",
    ),
    "Analytics": (
        *("Analytics Platforms", "Business Intelligence", "Data Processing", "Search", "Streaming Analytics"),
        "Other (Analytics)",
    ),
    "Business Applications": ("Productivity and Collaboration", "Other (Business Applications)"),
    "Compute": (
        *("Containers", "End User Computing", "Quantum Compute", "Serverless Compute", "Virtual Machines"),
        "Other (Compute)",
    ),
    "Databases": (
        *("Caching", "Data Warehouses", "Ledger Databases", "NoSQL Databases", "Relational Databases"),
        *("Time Series Databases", "Other (Databases)"),
    ),
    "Developer Tools": (
        *("Developer Platforms", "Continuous Integration and Deployment", "Development Environments"),
        *("Source Code Management", "Quality Assurance", "Other (Developer Tools)"),
    ),
    "Identity": ("Identity and Access Management", "Other (Identity)"),
    "Integration": ("API Management", "Messaging", "Workflow Orchestration", "Other (Integration)"),
    "Internet of Things": ("IoT Analytics", "IoT Platforms", "Other (Internet of Things)"),
    "Management and Governance": (
        *("Architecture", "Compliance", "Cost Management", "Data Governance", "Disaster Recovery"),
        *("Endpoint Management", "Observability", "Support", "Other (Management and Governance)"),
    ),
    "Media": ("Content Creation", "Gaming", "Media Streaming", "Mixed Reality", "Other (Media)"),
    "Migration": ("Data Migration", "Resource Migration", "Other (Migration)"),
    "Mobile": ("Other (Mobile)",),
    "Multicloud": ("Multicloud Integration", "Other (Multicloud)"),
    "Networking": (
        *("Application Networking", "Content Delivery", "Network Connectivity", "Network Infrastructure"),
        *("Network Routing", "Network Security", "Other (Networking)"),
    ),
    "Security": (
        *("Secret Management", "Security Posture Management", "Threat Detection and Response", "Other (Security)"),
    ),
    "Storage": (
        *("Backup Storage", "Block Storage", "File Storage", "Object Storage", "Storage Platforms", "Other (Storage)"),
    ),
    "Web": ("Application Platforms", "Other (Web)"),
    "Other": ("Other (Other)",),
}

_ALL: Final = (
    *_known("decimal", "mandatory", "BilledCost ContractedCost EffectiveCost ListCost", nullable=False),
    *_known("string", "mandatory", "BillingAccountId BillingCurrency InvoiceIssuerName ServiceName", nullable=False),
    *_known("string", "mandatory", "BillingAccountName ChargeDescription PricingUnit"),
    *_known("string", "mandatory", "ProviderName PublisherName", nullable=False, until="1.3"),
    *_known("time", "mandatory", "BillingPeriodEnd BillingPeriodStart", nullable=False),
    *_known("time", "mandatory", "ChargePeriodEnd ChargePeriodStart", nullable=False),
    *_known("decimal", "mandatory", "PricingQuantity"),
    Column("ChargeCategory", "string", "mandatory", False, allowed=CATEGORIES),
    Column("ChargeClass", "string", "mandatory", True, allowed=("Correction",)),
    Column("ServiceCategory", "string", "mandatory", False, allowed=tuple(SERVICES)),
    Column("ChargeFrequency", "string", "recommended", False, allowed=("One-Time", "Recurring", "Usage-Based")),
    *_known("string", "recommended", "AvailabilityZone"),
    *_known("decimal", "conditional", "ConsumedQuantity ContractedUnitPrice ListUnitPrice"),
    *_known("string", "conditional", "ConsumedUnit RegionId RegionName ResourceId ResourceName ResourceType"),
    *_known("string", "conditional", "SkuId SkuPriceId SubAccountId SubAccountName"),
    *_known("string", "conditional", "CommitmentDiscountId CommitmentDiscountName CommitmentDiscountType"),
    *_known("json", "conditional", "Tags"),
    Column("CommitmentDiscountCategory", "string", "conditional", True, allowed=("Spend", "Usage")),
    Column("CommitmentDiscountStatus", "string", "conditional", True, allowed=("Used", "Unused")),
    Column("PricingCategory", "string", "conditional", True, allowed=("Standard", "Dynamic", "Committed", "Other")),
    *_known("string", "conditional", "CapacityReservationId CommitmentDiscountUnit SkuMeter", since="1.1"),
    *_known("decimal", "conditional", "CommitmentDiscountQuantity", since="1.1"),
    *_known("json", "conditional", "SkuPriceDetails", since="1.1"),
    Column("CapacityReservationStatus", "string", "conditional", True, "1.1", allowed=("Used", "Unused")),
    Column(
        "ServiceSubcategory",
        "string",
        "recommended",
        False,
        "1.1",
        allowed=tuple(name for names in SERVICES.values() for name in names),
    ),
    *_known("string", "conditional", "BillingAccountType PricingCurrency", nullable=False, since="1.2"),
    *_known("string", "conditional", "InvoiceId SubAccountType", since="1.2"),
    *_known("decimal", "conditional", "PricingCurrencyEffectiveCost", nullable=False, since="1.2"),
    *_known("decimal", "conditional", "PricingCurrencyContractedUnitPrice PricingCurrencyListUnitPrice", since="1.2"),
    *_known("string", "mandatory", "HostProviderName ServiceProviderName", nullable=False, since="1.3"),
    *_known("string", "conditional", "AllocatedMethodId AllocatedResourceId AllocatedResourceName", since="1.3"),
    *_known("json", "conditional", "AllocatedMethodDetails AllocatedTags ContractApplied", since="1.3"),
    *_known("string", "conditional", "InvoiceDetailId", since="1.4"),
    *_known("json", "conditional", "CommitmentProgramEligibilityDetails", since="1.4"),
)


def columns_of(version: FocusVersion) -> dict[str, Column]:
    """The columns of one version by name, in alphabetical order."""
    found = [column for column in _ALL if column.since <= version <= column.until]
    return {column.name: column for column in sorted(found, key=lambda column: column.name)}
