"""Budget signals and events."""

from schemas import budget, policy
from signals import Event, Request

CHECK_BUDGET = Request(
    name="check_budget",
    request=budget.CheckBudget,
    reply=budget.BudgetDecision,
    roles=("provider",),
    group="budget",
    purpose="May this call be made? Reserves what it may cost",
)
RELEASE_RESERVATION = Request(
    name="release_reservation",
    request=budget.ReleaseReservation,
    reply=budget.ReservationReply,
    roles=("provider",),
    group="budget",
    purpose="Free what a reservation holds",
)
EXTEND_RESERVATION = Request(
    name="extend_reservation",
    request=budget.ExtendReservation,
    reply=budget.ReservationReply,
    roles=("provider",),
    group="budget",
    purpose="Keep a reservation longer, or change its estimate",
)
GET_BUDGET_STATUS = Request(
    name="get_budget_status",
    request=budget.GetBudgetStatus,
    reply=budget.BudgetStatus,
    roles=("viewer",),
    group="budget",
    purpose="A budget's window, or every budget that applies to an attribution and why",
)
LIST_BUDGETS = Request(
    name="list_budgets",
    request=budget.ListBudgets,
    reply=budget.BudgetList,
    roles=("viewer",),
    group="budget",
    purpose="The budgets of the org",
)
LIST_RESERVATIONS = Request(
    name="list_reservations",
    request=budget.ListReservations,
    reply=budget.ReservationList,
    roles=("viewer",),
    group="budget",
    purpose="Reservations and what they hold",
)
CREATE_BUDGET = Request(
    name="create_budget",
    request=budget.CreateBudget,
    reply=budget.Budget,
    roles=("manager",),
    group="budget",
    purpose="Create a budget",
    idempotent=False,
)
UPDATE_BUDGET = Request(
    name="update_budget",
    request=budget.UpdateBudget,
    reply=budget.Budget,
    roles=("manager",),
    group="budget",
    purpose="Change a budget",
    idempotent=False,
)
DELETE_BUDGET = Request(
    name="delete_budget",
    request=budget.DeleteBudget,
    reply=budget.Budget,
    roles=("manager",),
    group="budget",
    purpose="Take a budget away for good; its history stays",
    idempotent=False,
)
APPLY_POLICIES = Request(
    name="apply_policies",
    request=policy.ApplyPolicies,
    reply=policy.AppliedPolicies,
    roles=("manager",),
    group="budget",
    purpose="Make the budgets those of a document, shown as a diff first",
)
THRESHOLD = Event(name="budget.threshold", payload=budget.BudgetThreshold, purpose="Spent reached a threshold")
EXCEEDED = Event(name="budget.exceeded", payload=budget.BudgetExceeded, purpose="A window is full: it denies")
OVERRUN = Event(name="budget.overrun", payload=budget.BudgetOverrun, purpose="Spending found no room under the limit")
CHANGED = Event(name="budget.changed", payload=budget.BudgetChanged, purpose="A budget was created, changed or deleted")

SIGNALS = (
    CHECK_BUDGET,
    RELEASE_RESERVATION,
    EXTEND_RESERVATION,
    GET_BUDGET_STATUS,
    LIST_BUDGETS,
    LIST_RESERVATIONS,
    CREATE_BUDGET,
    UPDATE_BUDGET,
    DELETE_BUDGET,
    APPLY_POLICIES,
)
EVENTS = (THRESHOLD, EXCEEDED, OVERRUN, CHANGED)
