"""What an org decides about itself: ``configure_manager``, ``get_configuration``, ``settings.changed``."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from .base import Amount, Count, Currency, Name, Reply, Request, Text
from .pricing import RateKind

AttributionField = Literal[
    "user_id",
    "team_id",
    "project_id",
    "feature",
    "agent_id",
    "session_id",
    "task_id",
    "environment",
    "cost_center",
]
OnUnpriced = Annotated[
    Literal["reject", "estimate", "flag"],
    Meta(
        description="A check without a price that a blocking cost budget covers: denied; reserved at the dearest known "
        "rates of its provider (else at unpriced_rates, else denied); or approved and flagged. Usage is always kept."
    ),
]
UnpricedRates = Annotated[
    dict[RateKind, Amount],
    Meta(
        max_length=20,
        description="on_unpriced estimate: USD per million of calls at providers none of whose prices is known.",
    ),
]
ReportingCurrency = Annotated[
    Currency,
    Meta(description="What sums over several currencies are told in. Budgets have their own."),
]
SelfHostedProviders = Annotated[
    tuple[Name, ...],
    Meta(max_length=100, description="Providers whose calls cost nothing where no price rule says otherwise."),
]
RequiredAttribution = Annotated[
    tuple[AttributionField, ...],
    Meta(max_length=9, description="What a check must carry not to be denied; a team may come from the directory."),
]
OnMismatch = Annotated[
    Literal["flag", "reject"],
    Meta(description="A check whose team is not one of its user's in the directory. Usage is always kept."),
]
EntityWindowsPerHour = Annotated[
    int,
    Meta(ge=0, le=10_000_000, description="New entities of '*' budgets per hour; made-up names end there. 0: no cap."),
]
PressurePercent = Annotated[
    int, Meta(ge=1, le=100, description="From this use of a window on approvals list cheaper alternatives.")
]
UserNames = Annotated[
    Literal["keep", "surrogate", "refuse"],
    Meta(description="User names on arrival: kept, replaced by their surrogate, or refused."),
]
ReportedCost = Annotated[
    Literal["never", "listed", "always"],
    Meta(description="Whose reported_cost is believed: nobody's, that of reported_cost_providers, everybody's."),
]
ReportedCostProviders = Annotated[
    tuple[Name, ...],
    Meta(max_length=100, description="Whose reported_cost is believed where that is 'listed'."),
]
SizingMode = Annotated[
    Literal["worst", "learned"],
    Meta(description="What a check that does not say reserves: the worst case, or what was learned from actual use."),
]
Percentile = Annotated[
    int, Meta(ge=50, le=100, description="Learned: the percentile of actual / worst case that is reserved.")
]
SamplesMin = Annotated[
    int, Meta(ge=1, le=1_000_000, description="Learned: calls that must have been seen; before, the worst case.")
]
ShareCapPercent = Annotated[
    int,
    Meta(ge=1, le=100, description="Learned: the most one reservation leaves unreserved of any blocking limit."),
]
InvoiceIssuer = Annotated[
    str,
    Meta(
        max_length=2_048, description="Who issues the org's invoices: name, address, tax number; lines as they stand."
    ),
]


CompletionTokensDefault = Annotated[
    int,
    Meta(
        ge=1, le=10_000_000, description="What a check without max_completion_tokens reserves, if the model gives it."
    ),
]


class Sizing(Reply, frozen=True, kw_only=True):
    """How much a check reserves."""

    default: SizingMode = "worst"
    percentile: Percentile = 99
    samples_min: SamplesMin = 200
    share_cap_percent: ShareCapPercent = 5


class SizingChange(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change of ``sizing``; what is left out stays."""

    default: SizingMode | UnsetType = UNSET
    percentile: Percentile | UnsetType = UNSET
    samples_min: SamplesMin | UnsetType = UNSET
    share_cap_percent: ShareCapPercent | UnsetType = UNSET


class OrgConfiguration(Reply, frozen=True, kw_only=True):
    """Every setting of an org, with what holds where it has decided nothing."""

    on_unpriced: OnUnpriced = "flag"
    required_attribution: RequiredAttribution = ()
    on_mismatch: OnMismatch = "reject"
    entity_windows_per_hour_max: EntityWindowsPerHour = 100_000
    pressure_percent: PressurePercent = 80
    sizing: Sizing = Sizing()
    completion_tokens_default: CompletionTokensDefault = 4_096
    user_names: UserNames = "keep"
    reported_cost: ReportedCost = "listed"
    reported_cost_providers: ReportedCostProviders = ()
    invoice_issuer: InvoiceIssuer = ""
    unpriced_rates: UnpricedRates = {}
    self_hosted_providers: SelfHostedProviders = ()
    currency: ReportingCurrency = "USD"


class ConfigureManager(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Change the org's settings; what is left out stays. Without any the reply says what holds."""

    on_unpriced: OnUnpriced | UnsetType = UNSET
    required_attribution: RequiredAttribution | UnsetType = UNSET
    on_mismatch: OnMismatch | UnsetType = UNSET
    entity_windows_per_hour_max: EntityWindowsPerHour | UnsetType = UNSET
    pressure_percent: PressurePercent | UnsetType = UNSET
    sizing: SizingChange | UnsetType = UNSET
    completion_tokens_default: CompletionTokensDefault | UnsetType = UNSET
    user_names: UserNames | UnsetType = UNSET
    reported_cost: ReportedCost | UnsetType = UNSET
    reported_cost_providers: ReportedCostProviders | UnsetType = UNSET
    invoice_issuer: InvoiceIssuer | UnsetType = UNSET
    unpriced_rates: UnpricedRates | UnsetType = UNSET
    self_hosted_providers: SelfHostedProviders | UnsetType = UNSET
    currency: ReportingCurrency | UnsetType = UNSET
    reason: Text | None = None


class GetConfiguration(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The org's settings."""


class Configuration(Reply, frozen=True, kw_only=True):
    """``chosen`` names the settings the org has decided on; the others are defaults. ``version`` grows with changes
    of anything decisions are made from.
    """

    settings: OrgConfiguration
    chosen: list[str]
    version: Count


class SettingsChanged(Reply, frozen=True, kw_only=True):
    """Event ``settings.changed``: only the settings that changed, as they were and as they are."""

    actor: str
    before: dict[str, Any]
    after: dict[str, Any]
    reason: str | None = None
