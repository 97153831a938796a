"""Alerts and rules as replies show them."""

import msgspec

from schemas.alert import Alert, AlertAction, AlertParameters, AlertRule, AlertScope
from store.alert_rules import AlertRuleRow
from store.alerts import AlertRow


def alert_reply(row: AlertRow) -> Alert:
    """An alert as callers see it."""
    return Alert(
        alert_id=row.alert_id,
        kind=row.kind,
        level=row.level,  # pyright: ignore[reportArgumentType]  # A CHECK holds the column to these values.
        title=row.title,
        message=row.message,
        rule=row.rule,
        rules=len(row.rule_ids),
        budget_id=row.budget_id,
        entity_id=row.entity_id,
        details=row.details,
        created_at=row.created_at,
        notified_at=row.notified_at,
        renotify_at=row.renotify_at,
        ended_at=row.ended_at,
        acknowledged_by=row.acknowledged_by,
        acknowledged_at=row.acknowledged_at,
        comment=row.comment,
    )


def rule_reply(row: AlertRuleRow) -> AlertRule:
    """A rule as callers see it."""
    return AlertRule(
        rule_id=row.rule_id,
        version=row.version,
        name=row.name,
        kind=row.kind,
        scope=msgspec.convert(row.scope, AlertScope),
        parameters=msgspec.convert(row.parameters, AlertParameters),
        level=row.level,  # pyright: ignore[reportArgumentType]  # A CHECK holds the column to these values.
        channels=list(row.channels),
        actions=[msgspec.convert(action, AlertAction) for action in row.actions],
        renotify_s=row.renotify_s,
        active=row.active,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
