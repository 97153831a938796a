"""Learned reservations: what a call sets aside where its org, or the call itself, sizes by observation.

The worst case stays what the estimate says and what the reservation stores; only what is held is smaller. Nothing here
asks PostgreSQL: the histograms are read between decisions, and what was observed is written by the apply loop.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from handlers.context import Services
from handlers.enforcer.estimate import Estimate, Learned
from handlers.enforcer.histograms import Histogram, Histograms, levels, part
from handlers.enforcer.ledger import Sums
from handlers.enforcer.plan import Plan
from schemas.budget import CheckBudget
from schemas.money import format_cost
from schemas.settings import Sizing
from store.sizing import Key

_COST, _TOKENS = 0, 1


class Sized(Protocol):
    """A request on its way, as far as its size goes."""

    @property
    def request(self) -> CheckBudget: ...

    @property
    def estimate(self) -> Estimate: ...


def learn(checks: Iterable[Sized], org: str, rule: Sizing, histograms: Histograms) -> None:
    """Size what is to be sized by observation, by the rule that the decision is made under.

    Called again when the catalogue has changed meanwhile: then the newer rule counts (R2).
    """
    for check in checks:
        if (check.request.sizing or rule.default) == "learned":
            check.estimate.learned = learned(check.request, check.estimate, rule, histograms.ask(org))
        elif check.estimate.learned is not None:
            check.estimate.learned = None


async def refresh(services: Services) -> None:
    """Read what has been observed since the last time, between decisions. Raises what the database raises."""
    limits = services.limits
    await services.sizing.refresh(services.database, keys_max=limits.sizing_keys_max, cache_max=limits.sizing_cache_max)


def learned(request: CheckBudget, found: Estimate, rule: Sizing, known: Mapping[Key, Histogram]) -> Learned:
    """What calls like this one take at most; the worst case where too few of them were seen."""
    cost, tokens = found.cost, found.tokens
    if request.provider is not None and request.model is not None:
        key = (request.provider, request.model, request.feature or "", request.agent_id or "")
        seen = [known[level] for level in levels(key) if level in known]
        enough = next((h for h in seen if h.cost_total >= rule.samples_min), None)
        if cost and enough is not None and (edge := enough.edge(cost=True, percentile=rule.percentile)) is not None:
            cost = part(cost, edge)
        enough = next((h for h in seen if h.tokens_total >= rule.samples_min), None)
        if enough is not None and (edge := enough.edge(cost=False, percentile=rule.percentile)) is not None:
            tokens = part(tokens, edge)
    return Learned(cost, tokens, rule.share_cap_percent)


def amounts(found: Estimate, plan: Plan, sums: Mapping[int, Sums]) -> list[int]:
    """What a call sized by observation sets aside in each window of its plan, in the window's unit.

    More than is observed where the rest would leave more than the share cap of a blocking window's limit unreserved.
    """
    sized = found.learned
    assert sized is not None
    worst = (found.cost or 0, found.tokens, 1)
    usual = (sized.cost or 0, sized.tokens, 1)
    taken: list[int] = []
    for unit, window_id in zip(plan.units, plan.window_ids, strict=True):
        window, amount = sums[window_id], usual[unit]
        if window.blocking:
            amount = max(amount, worst[unit] - window.limit * sized.share_cap_percent // 100)
        taken.append(amount)
    return taken


def warning(found: Estimate, units: Sequence[int], held: Sequence[int]) -> str | None:
    """Tells a caller that less than the worst case is held; None where it is all held, or nothing is."""
    costs = [amount for unit, amount in zip(units, held, strict=True) if unit == _COST]
    if costs and found.cost is not None and max(costs) < found.cost:
        return f"learned: reserved {format_cost(max(costs))} of at most {format_cost(found.cost)}"
    tokens = [amount for unit, amount in zip(units, held, strict=True) if unit == _TOKENS]
    if tokens and max(tokens) < found.tokens:
        return f"learned: reserved {max(tokens)} of at most {found.tokens} tokens"
    return None
