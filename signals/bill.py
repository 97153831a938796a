"""Providers' bills beside our own usage."""

from typing import Any

from schemas import bill
from signals import Event, Request

RECONCILE_BILL = Request(
    name="reconcile_bill",
    request=bill.ReconcileBill,
    reply=bill.ReconciledBill,
    roles=("finance",),
    group="cost",
    purpose="Import a provider's usage or cost CSV and show per day and model what differs from our usage, and why",
)
LIST_BILLS = Request(
    name="list_bills",
    request=bill.ListBills,
    reply=bill.BillList,
    roles=("finance",),
    group="cost",
    purpose="Imported bills and what their comparisons found",
)

SIGNALS = (RECONCILE_BILL, LIST_BILLS)
EVENTS: tuple[Event[Any], ...] = ()
