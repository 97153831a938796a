"""Who bears what, what a plan would cost, and invoices."""

from typing import Any

from schemas import allocation, invoice, projection
from signals import Event, Request

ALLOCATE_COSTS = Request(
    name="allocate_costs",
    request=allocation.AllocateCosts,
    reply=allocation.Allocation,
    roles=("finance", "viewer"),
    group="cost",
    purpose="Who bears a period's cost, shared cost split by rules",
)
SET_ALLOCATION_RULES = Request(
    name="set_allocation_rules",
    request=allocation.SetAllocationRules,
    reply=allocation.AllocationRules,
    roles=("finance",),
    group="cost",
    purpose="Which usage is shared, and how its cost is split",
)
LIST_ALLOCATION_RULES = Request(
    name="list_allocation_rules",
    request=allocation.ListAllocationRules,
    reply=allocation.AllocationRuleSets,
    roles=("finance", "viewer"),
    group="cost",
    purpose="The rules by which shared cost is split",
)
PROJECT_COSTS = Request(
    name="project_costs",
    request=projection.ProjectCosts,
    reply=projection.Projection,
    roles=("finance", "viewer", "provider"),
    group="cost",
    purpose="What a plan would cost at the org's prices, and which budgets it would break",
)
PREPARE_INVOICE = Request(
    name="prepare_invoice",
    request=invoice.PrepareInvoice,
    reply=invoice.Invoice,
    roles=("finance",),
    group="cost",
    purpose="Draft the invoice of a period and payer, or issue it",
)
VOID_INVOICE = Request(
    name="void_invoice",
    request=invoice.VoidInvoice,
    reply=invoice.Invoice,
    roles=("finance",),
    group="cost",
    purpose="Take an invoice back by a credit note",
)
LIST_INVOICES = Request(
    name="list_invoices",
    request=invoice.ListInvoices,
    reply=invoice.InvoiceList,
    roles=("finance", "viewer"),
    group="cost",
    purpose="Invoices and credit notes, newest first",
)
GET_INVOICE = Request(
    name="get_invoice",
    request=invoice.GetInvoice,
    reply=invoice.FoundInvoice,
    roles=("finance", "viewer"),
    group="cost",
    purpose="One invoice: its lines, or a JSON, CSV, HTML or PDF file of it",
)

SIGNALS = (
    ALLOCATE_COSTS,
    SET_ALLOCATION_RULES,
    LIST_ALLOCATION_RULES,
    PROJECT_COSTS,
    PREPARE_INVOICE,
    VOID_INVOICE,
    LIST_INVOICES,
    GET_INVOICE,
)
EVENTS: tuple[Event[Any], ...] = ()
