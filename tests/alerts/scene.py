"""What tests of alerts say and look at: rules, alerts, deliveries and the periodic look of one agent."""

from collections.abc import Mapping
from typing import Any

import msgspec

from handlers.alerts.inbox import list_alerts
from handlers.alerts.rules import set_alert_rule
from handlers.alerts.watch import Watch
from schemas.alert import Alert, AlertRule, ListAlerts, SetAlertRule
from tests.support.ledger import LedgerAgent, World


async def rule(agent: LedgerAgent, name: str, kind: str, **fields: Any) -> AlertRule:
    """A rule, set as a caller sets it."""
    return await set_alert_rule(agent.context, msgspec.convert({"name": name, "kind": kind, **fields}, SetAlertRule))


async def alerts(agent: LedgerAgent, **filters: Any) -> list[Alert]:
    """Alerts as a caller sees them, newest first."""
    return (await list_alerts(agent.context, ListAlerts(limit=1000, **filters))).alerts


async def look(agent: LedgerAgent) -> int:
    """One periodic look by an agent that remembers nothing; returns how many alerts it raised."""
    return await Watch(agent.services).run()


async def deliveries(world: World) -> list[Mapping[str, Any]]:
    """What is in the queue to be delivered, oldest first."""
    return await world.fetch("SELECT * FROM delivery WHERE org_id = $1 ORDER BY created_at, delivery_id", world.org)


async def actions(world: World) -> list[tuple[str, str]]:
    """What alerts have set off, as (status, result)."""
    sql = "SELECT status, result FROM alert_action WHERE org_id = $1 ORDER BY created_at, alert_id, position"
    return [(row["status"], row["result"]) for row in await world.fetch(sql, world.org)]


async def audited(world: World, entity: str) -> list[tuple[str, str]]:
    """The audit trail of an entity, as (actor, action), oldest first."""
    sql = "SELECT actor, action FROM audit WHERE org_id = $1 AND entity = $2 ORDER BY seq"
    return [(row["actor"], row["action"]) for row in await world.fetch(sql, world.org, entity)]
