"""Who bears a period's cost: ``allocate_costs`` and the rules by which shared cost is split."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from .base import Name, Reply, Request, Text, Time
from .finance import AllocationBy, ConvertedAmount, Percent, PeriodRequest

Split = Annotated[
    Literal["even", "by_cost", "by_tokens", "by_requests", "fixed"],
    Meta(description="How a shared cost is split; all but `even` and `fixed` by what each used itself."),
]
Stated = Name | None | UnsetType
RULES_MAX = 50
ENTITIES_MAX = 1_000


class SharedUsage(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which usage is shared: every given field must match (``*``: any text); null matches what has no such value."""

    provider: Name | UnsetType = UNSET
    model: Name | UnsetType = UNSET
    team_id: Stated = UNSET
    project_id: Stated = UNSET
    cost_center: Stated = UNSET
    user_id: Stated = UNSET
    feature: Stated = UNSET
    environment: Stated = UNSET
    agent_id: Stated = UNSET


class AllocationRule(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One shared cost. Rules take usage in their order: what one has taken, the next ones do not see.

    ``among``: only these bear it (without: everybody with usage of their own). ``percents``: for ``fixed``, of 100.
    """

    name: Name
    shared: SharedUsage
    split: Split
    among: Annotated[list[Name], Meta(max_length=ENTITIES_MAX)] = []
    percents: Annotated[dict[Name, Percent], Meta(max_length=ENTITIES_MAX)] = {}


Rules = Annotated[list[AllocationRule], Meta(max_length=RULES_MAX)]


class SetAllocationRules(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rules for one way of allocating, as a whole; none: it has no shared cost. ``version``: the one you read."""

    by: AllocationBy
    tag: Name | None = None
    rules: Rules
    version: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    reason: Text | None = None


class ListAllocationRules(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every set of rules, by ``by`` and ``tag``."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class AllocationRules(Reply, frozen=True, kw_only=True):
    """The rules for one way of allocating, and who set them last."""

    by: str
    tag: str | None
    rules: list[AllocationRule]
    version: int
    updated_at: Time
    updated_by: str


class AllocationRuleSets(Reply, frozen=True, kw_only=True):
    """One page of sets of rules."""

    rule_sets: list[AllocationRules]
    next_cursor: str | None


class AllocateCosts(PeriodRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Split a period's cost. ``shared``: the rules to split by; left out: those that are stored for ``by``."""

    by: AllocationBy
    tag: Name | None = None
    shared: Rules | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1_000
    cursor: Text | None = None


class AllocatedShare(Reply, frozen=True, kw_only=True):
    """What somebody bears of one shared cost; ``percent`` of it, rounded."""

    rule: str
    cost: str
    list_cost: str
    percent: str


class AllocatedCost(Reply, frozen=True, kw_only=True):
    """What one entity bears: ``cost`` is ``direct`` and its shares. ``percent`` of the total, rounded."""

    entity_id: str
    cost: str
    list_cost: str
    direct: str
    direct_list: str
    shares: list[AllocatedShare]
    percent: str
    requests: int
    total_tokens: int
    unpriced_requests: int


class SharedCost(Reply, frozen=True, kw_only=True):
    """One shared cost. ``unallocated`` is what nobody could be given, ``reason`` says why."""

    rule: str
    split: str
    cost: str
    list_cost: str
    requests: int
    total_tokens: int
    allocated: str
    unallocated: str
    entities: int
    unpriced_requests: int
    reason: str | None = None


class UnallocatedCost(Reply, frozen=True, kw_only=True):
    """What nobody bears: usage without a value of the dimension that no rule shares, and shares without a taker."""

    cost: str
    list_cost: str
    unattributed: str
    not_shared_out: str
    requests: int
    total_tokens: int
    unpriced_requests: int


class Allocation(Reply, frozen=True, kw_only=True):
    """A period's cost and who bears it, the largest first: what is allocated and what is not sum to ``total``, exactly.

    ``allocations`` is one page; everything else is of the whole. ``unpriced_requests`` have no cost yet, not none.
    """

    period_start: Time
    period_end: Time
    by: str
    tag: str | None
    currency: str
    total: str
    total_list: str
    allocated: str
    entities: int
    allocations: list[AllocatedCost]
    unallocated: UnallocatedCost
    shared: list[SharedCost]
    rules_version: int | None
    currencies: list[ConvertedAmount]
    unpriced_requests: int
    warnings: list[str]
    next_cursor: str | None
