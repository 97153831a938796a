"""Which models the policies of budgets would rather have: read from the budgets, once for each kind of call. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from store.budgets import BudgetRow


@dataclass(frozen=True, slots=True)
class Preference:
    """A model that a policy names."""

    provider: str
    model: str
    kind: Literal["preferred", "fallback"]


def preferences_of(budgets: Iterable[BudgetRow], provider: str | None) -> list[Preference]:
    """Preferred models in the order of their budgets, then fallbacks; a model named twice counts once.

    A name without a provider is one of ``provider``, the call's own; where that is unknown it says nothing.
    """
    known = list(budgets)
    found: dict[str, Preference | None] = {}
    for budget in known:
        for name in budget.preferred_models:
            found.setdefault(name, _preference(name, provider, "preferred"))
    for budget in known:
        if budget.fallback_model is not None:
            found.setdefault(budget.fallback_model, _preference(budget.fallback_model, provider, "fallback"))
    return [preference for preference in found.values() if preference is not None]


def _preference(name: str, provider: str | None, kind: Literal["preferred", "fallback"]) -> Preference | None:
    """``provider/model``, or ``model``."""
    stated, slash, model = name.partition("/")
    if slash and stated and model:
        return Preference(stated, model, kind)
    return None if provider is None else Preference(provider, name, kind)
