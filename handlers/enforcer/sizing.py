"""Learned reservations: what a call sets aside where its org, or the call itself, sizes by observation.

The worst case stays what the estimate says and what the reservation stores; only what is held is smaller. Nothing here
asks PostgreSQL: the histograms are read between decisions, and what was observed is written by the apply loop.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from handlers.context import Services
from handlers.currency.exchange import Exchange
from handlers.enforcer.charging import converts, needed
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


def amounts(
    found: Estimate, plan: Plan, sums: Mapping[int, Sums], worst: Sequence[int], exchange: Exchange
) -> list[int]:
    """What a call sized by observation sets aside in each window of its plan, in the window's unit, like ``worst``.

    More than is observed where the rest would leave more than the share cap of a blocking window's limit unreserved.
    """
    sized = found.learned
    assert sized is not None
    measures = (sized.cost or 0, sized.tokens, 1)
    usual = [measures[unit] for unit in plan.units]
    if converts(plan, found.currency):
        converted = needed(zip(plan.matches, plan.refs, strict=True), measures, found.currency, exchange)
        usual = [converted.amounts[window_id] for window_id in plan.window_ids]
    taken: list[int] = []
    for amount, most, window_id in zip(usual, worst, plan.window_ids, strict=True):
        window = sums[window_id]
        part_of = window.limit * sized.share_cap_percent // 100
        taken.append(max(amount, most - part_of) if window.blocking else amount)
    return taken


def warning(units: Sequence[int], held: Sequence[int], worst: Sequence[int]) -> str | None:
    """Tells a caller that less than the worst case is held; None where it is all held, or nothing is."""
    amounts = list(zip(units, held, worst, strict=True))
    costs = [(taken, most) for unit, taken, most in amounts if unit == _COST]
    if costs and all(taken < most for taken, most in costs):
        taken, most = max(costs)
        return f"learned: reserved {format_cost(taken)} of at most {format_cost(most)}"
    tokens = [(taken, most) for unit, taken, most in amounts if unit == _TOKENS]
    if tokens and all(taken < most for taken, most in tokens):
        taken, most = max(tokens)
        return f"learned: reserved {taken} of at most {most} tokens"
    return None
