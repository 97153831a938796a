"""Alert signals and events."""

from schemas import alert
from signals import Event, Request

SET_ALERT_RULE = Request(
    name="set_alert_rule",
    request=alert.SetAlertRule,
    reply=alert.AlertRule,
    roles=("admin",),
    group="alerts",
    purpose="Create or replace a rule: what to tell whom, and what to do then",
    idempotent=False,
)
LIST_ALERT_RULES = Request(
    name="list_alert_rules",
    request=alert.ListAlertRules,
    reply=alert.AlertRuleList,
    roles=("admin",),
    group="alerts",
    purpose="The alert rules of the org",
)
DELETE_ALERT_RULE = Request(
    name="delete_alert_rule",
    request=alert.DeleteAlertRule,
    reply=alert.DeletedAlertRule,
    roles=("admin",),
    group="alerts",
    purpose="Take an alert rule away",
    idempotent=False,
)
LIST_ALERTS = Request(
    name="list_alerts",
    request=alert.ListAlerts,
    reply=alert.AlertList,
    roles=("viewer", "manager"),
    group="alerts",
    purpose="What was noticed, newest first",
)
ACKNOWLEDGE_ALERT = Request(
    name="acknowledge_alert",
    request=alert.AcknowledgeAlert,
    reply=alert.Alert,
    roles=("viewer", "manager"),
    group="alerts",
    purpose="Look after an alert: nobody is told again",
)
RAISED = Event(name="alert.raised", payload=alert.Alert, purpose="Something was noticed, once")
ACKNOWLEDGED = Event(name="alert.acknowledged", payload=alert.Alert, purpose="Somebody looks after an alert")

SIGNALS = (SET_ALERT_RULE, LIST_ALERT_RULES, DELETE_ALERT_RULE, LIST_ALERTS, ACKNOWLEDGE_ALERT)
EVENTS = (RAISED, ACKNOWLEDGED)
