"""The audit trail."""

from schemas import audit
from signals import Request

GET_AUDIT_TRAIL = Request(
    name="get_audit_trail",
    request=audit.GetAuditTrail,
    reply=audit.AuditTrail,
    roles=("admin",),
    group="management",
    purpose="Who changed what and why; export it, or verify its hash chain",
)

SIGNALS = (GET_AUDIT_TRAIL,)
EVENTS = ()
