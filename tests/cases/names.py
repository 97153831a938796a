"""``cost/model_name_cases``: spellings of providers and models, asked of what finds their price.

One peer's cases say which entry of the price list a name means. The other's rewrite names into canonical ones; this
product keeps the name that was sent (DESIGN: a cost is explained by what was sent) and needs no more than that both
spellings have the same price.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from handlers.cost.rate_card import RateCard
from handlers.cost.resolve import RateCards, provider_key
from tests.cases.case import Result, Row, Verdict, rows, short

NOW = datetime(2026, 11, 22, tzinfo=UTC)
KEPT = "rewrites provider names into its own list; here a name is kept as sent, without case and blanks around it"
NO_PRICE = "neither spelling has a price, so there is nothing that they could disagree on"
OWN_NAME = "the canonical name is the peer's own, no provider knows it; the name that was sent has a price here"


def results() -> Iterator[Result]:
    """Every case in order."""
    cards = RateCards()
    for number, case in enumerate(rows("cost/model_name_cases.jsonl"), 1):
        provider = case.get("provider_id") or case["provider"]
        name = f"{number}: {provider} {case.get('model_ref', '')} ({short(case['source'])})"
        yield Result(name, *_outcome(cards, provider, case))


def _outcome(cards: RateCards, provider: str, case: Row) -> Verdict:
    expected = case["expected"]
    if "provider" in expected:
        return ("passed", "") if provider_key(provider) == expected["provider"] else ("differs", KEPT)
    found = cards.resolve(provider, case["model_ref"], NOW)
    if "model_id" in expected:
        told = None if found is None else (found.provider, found.model)
        right = told == (expected["provider_id"], expected["model_id"])
        return ("passed", "") if right else ("failed", f"found {told}")
    canonical = cards.resolve(provider, expected["model"], NOW)
    if found is None and canonical is None:
        return ("passed", "") if case["model_ref"] == expected["model"] else ("differs", NO_PRICE)
    if canonical is None:
        return "differs", OWN_NAME
    if _prices(found) == _prices(canonical):
        return "passed", ""
    return "failed", f"{_prices(found)} is not {_prices(canonical)}"


def _prices(card: RateCard | None) -> object:
    return None if card is None else (card.rates, card.tiers)
