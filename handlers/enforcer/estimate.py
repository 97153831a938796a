"""What a call may cost at most, before it is made. Pure."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from handlers.context import Limits
from handlers.cost.org_prices import Prices
from handlers.cost.price import worst_case
from handlers.cost.rate_card import RateCard
from schemas.budget import CheckBudget
from schemas.errors import SignalError, invalid
from schemas.money import CALL_COST_NANOS_MAX, AmountError, parse_call_cost

# Without a tokenizer three UTF-8 bytes a token is an upper estimate for every script measured.
BYTES_PER_TOKEN = 3
MESSAGE_OVERHEAD_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Learned:
    """What calls like this one are observed to take at most: ``cost`` in nanos (None: unpriced) and ``tokens``.

    Of each blocking window's effective limit one reservation may leave ``share_cap_percent`` unreserved.
    """

    cost: int | None
    tokens: int
    share_cap_percent: int


@dataclass(slots=True)
class Estimate:
    """Worst-case amounts of one call. ``cost`` in nanos, None where nothing prices it.

    ``learned`` is set where the call is to be sized from observation; the worst case is what is stored all the same.
    """

    cost: int | None
    tokens: int
    card: RateCard | None = None
    prompt_tokens: int = 0
    max_completion_tokens: int = 0
    over_context: int | None = None
    warnings: list[str] = field(default_factory=list[str])
    learned: Learned | None = None


def estimate(request: CheckBudget, *, cards: Prices, at: datetime, limits: Limits) -> Estimate:
    """The worst case of a request. Raises SignalError ``invalid_request`` where it cannot be told."""
    if request.currency != "USD":
        raise invalid("only USD is kept so far", field="currency")
    if request.estimated_cost is not None:
        return _stated(request)
    if request.provider is None or request.model is None:
        missing = "provider" if request.provider is None else "model"
        raise invalid("is required unless 'estimated_cost' is given", field=missing)
    warnings: list[str] = []
    prompt = request.prompt_tokens
    if prompt is None:
        prompt = _count_text(request, warnings)
    card = cards.resolve(request.provider, request.model, at, service_tier=request.service_tier, batch=request.batch)
    completion = request.max_completion_tokens
    if completion is None:
        completion = _default_completion(prompt, card, limits, warnings)
    found = Estimate(None, prompt + completion, card, prompt, completion, None, warnings)
    if card is not None:
        found.cost = worst_case(card, prompt, completion)
        if card.context_window is not None and prompt + completion > card.context_window:
            found.over_context = card.context_window
        elif (found.cost or 0) > CALL_COST_NANOS_MAX:
            raise invalid("costs more than any one call can", field="max_completion_tokens")
        warnings.extend(card.warnings)
    return found


def stated_cost(text: str) -> int:
    """Nanos of ``estimated_cost``. Raises SignalError naming the field."""
    try:
        return parse_call_cost(text)
    except AmountError as error:
        raise invalid(str(error), field="estimated_cost") from None


def largest_completion(card: RateCard, prompt_tokens: int, budget_nanos: int, most: int) -> int:
    """The most completion tokens, at most ``most``, that cost no more than ``budget_nanos`` here; 0 if none does."""
    whole = worst_case(card, prompt_tokens, most)
    if whole is not None and whole <= budget_nanos:
        return most
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        cost = worst_case(card, prompt_tokens, middle)
        if cost is not None and cost <= budget_nanos:
            low = middle
        else:
            high = middle - 1
    return low


def _stated(request: CheckBudget) -> Estimate:
    prompt, completion = request.prompt_tokens or 0, request.max_completion_tokens or 0
    assert request.estimated_cost is not None
    cost = stated_cost(request.estimated_cost)
    return Estimate(cost, prompt + completion, None, prompt, completion)


def _default_completion(prompt: int, card: RateCard | None, limits: Limits, warnings: list[str]) -> int:
    completion = limits.completion_tokens_default
    if card is not None and card.context_window is not None:
        completion = max(0, min(completion, card.context_window - prompt))
    warnings.append(f"no max_completion_tokens: reserved for {completion}")
    return completion


def _count_text(request: CheckBudget, warnings: list[str]) -> int:
    if request.prompt is None and request.messages is None:
        raise invalid("is required, or 'prompt', 'messages' or 'estimated_cost'", field="prompt_tokens")
    size = len((request.prompt or "").encode("utf-8", "replace"))
    for message in request.messages or ():
        size += _message_bytes(message)
    warnings.append("prompt_tokens estimated from the size of the text")
    return -(-size // BYTES_PER_TOKEN) + MESSAGE_OVERHEAD_TOKENS * (1 + len(request.messages or ()))


def _message_bytes(message: dict[str, Any]) -> int:
    try:
        return len(msgspec.json.encode(message))
    except (RecursionError, UnicodeEncodeError):
        raise SignalError("invalid_request", "is nested too deeply or not text", field="messages") from None
