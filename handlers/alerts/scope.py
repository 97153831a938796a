"""What a rule watches: budgets of a kind, or calls of an entity. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from handlers.enforcer.catalogue import ENTITY_FIELD, EVERY, Catalogue, filters_match
from store.alert_rules import AlertRuleRow
from store.budgets import BudgetRow

# Rules about budgets and their windows; the others are about calls.
OF_BUDGETS: Final = frozenset({"threshold", "exceeded", "overrun", "pacing"})
PERIODIC: Final = ("hourly_rate", "absolute_tokens", "pacing")


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of one entity of a type (``*``: each for itself) that match filters; ``budget`` stands for them."""

    type: str
    entity_id: str
    filters: dict[str, str]
    budget: BudgetRow | None = None

    def entity_of(self, call: Any) -> str | None:
        """The entity a call (an event) is counted for, None where it is not counted."""
        if self.type == "global":
            entity: str | None = EVERY
        else:
            entity = getattr(call, ENTITY_FIELD[self.type])
            if entity is None or self.entity_id not in (entity, EVERY):
                return None
        if self.filters and not filters_match(self.filters, {name: getattr(call, name) for name in self.filters}):
            return None
        return entity

    def of(self, entity_id: str) -> dict[str, Any]:
        """The calls of one entity, as the details of an alert keep them."""
        return {"type": self.type, "entity_id": entity_id, "filters": self.filters}


def watches(rule: AlertRuleRow, budget: BudgetRow, entity_id: str) -> bool:
    """Whether a rule about budgets watches the window of this budget and entity."""
    scope = rule.scope
    if (wanted := scope.get("budget_id")) is not None and wanted != budget.budget_id:
        return False
    if (wanted := scope.get("budget")) is not None and wanted != budget.name:
        return False
    if (wanted := scope.get("type")) is not None and wanted != budget.type:
        return False
    return scope.get("entity_id", EVERY) in (EVERY, entity_id)


def watched(rule: AlertRuleRow, catalogue: Catalogue) -> list[BudgetRow]:
    """The active budgets that a rule about budgets may watch, in the order of their ids."""
    found = [b for b in catalogue.by_id.values() if b.active and b.deleted_at is None and _may_watch(rule, b)]
    return sorted(found, key=lambda budget: budget.budget_id)


def _may_watch(rule: AlertRuleRow, budget: BudgetRow) -> bool:
    if budget.entity_id == EVERY:
        return watches(rule, budget, rule.scope.get("entity_id", EVERY))
    return watches(rule, budget, budget.entity_id)


def calls_of(rule: AlertRuleRow, budgets: Iterable[BudgetRow]) -> Calls | None:
    """The calls a rule watches, None where its budget is gone."""
    scope = rule.scope
    if "budget_id" in scope or "budget" in scope:
        found = scoped_budget(scope, budgets)
        return None if found is None else Calls(found.type, found.entity_id, found.filters, found)
    return Calls(scope.get("type", "global"), scope.get("entity_id", EVERY), scope.get("filters", {}))


def scoped_budget(scope: dict[str, Any], budgets: Iterable[BudgetRow]) -> BudgetRow | None:
    """The budget that a scope names by id or by name."""
    for budget in budgets:
        if budget.deleted_at is None and (
            scope.get("budget_id") == budget.budget_id or ("budget" in scope and scope["budget"] == budget.name)
        ):
            return budget
    return None
