"""What a call may cost at most, before it is made. Pure."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from handlers.context import Limits
from handlers.cost.org_prices import Prices
from handlers.cost.price import worst_case
from handlers.cost.rate_card import RateCard
from handlers.counting.limits import NO_ORG_LIMITS, UNKNOWN, ModelLimits, OrgLimits, utilisation_percent
from handlers.enforcer.catalogue import Catalogue
from schemas.budget import CheckBudget, DenialReason
from schemas.currencies import known_currency
from schemas.errors import invalid
from schemas.money import CALL_COST_NANOS_MAX, AmountError, parse_call_cost
from schemas.tokens import ContextUse, TokenCount


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
    """Worst-case amounts of one call. ``cost`` in nanos of ``currency``, None where nothing prices it.

    ``learned`` is set where the call is to be sized from observation; the worst case is what is stored all the same.
    """

    cost: int | None
    tokens: int
    card: RateCard | None = None
    prompt_tokens: int = 0
    max_completion_tokens: int = 0
    over_context: DenialReason | None = None
    warnings: list[str] = field(default_factory=list[str])
    learned: Learned | None = None
    currency: str = "USD"
    # Of the org's prices; with others the call is estimated again before it is decided.
    revision: int = 0
    # What was said when the prompt was counted, which happens once.
    counting: tuple[str, ...] = ()
    terms: "Terms | None" = None
    bounds: ModelLimits = UNKNOWN
    count: TokenCount | None = None

    @property
    def context_json(self) -> str:
        """The same in JSON, written out because every approval carries it (a test compares them)."""
        if self.terms is None:
            return "null"
        bounds, used, window = self.bounds, self.prompt_tokens + self.max_completion_tokens, self.bounds.window
        return (
            f'{{"limit":{_number(window)},"used":{used},'
            f'"utilisation_percent":{_number(utilisation_percent(used, window))},'
            f'"would_exceed":{"false" if self.over_context is None else "true"},'
            f'"input_limit":{_number(bounds.max_input)},"output_limit":{_number(bounds.max_output)},'
            f'"max_completion":{_number(bounds.completion_room(self.prompt_tokens))}}}'
        )

    @property
    def context(self) -> ContextUse | None:
        """What the call takes of its model's context; None where it named no model."""
        return None if self.terms is None else self.bounds.use(self.prompt_tokens, self.max_completion_tokens)


class Terms(NamedTuple):
    """What else of an org's settings an estimate depends on; with others the call is estimated again."""

    bounds: OrgLimits = NO_ORG_LIMITS
    completion_tokens_default: int = Limits.completion_tokens_default


def terms_of(catalogue: Catalogue | None, limits: Limits) -> Terms:
    """An org's, as of a catalogue."""
    if catalogue is None:
        return Terms(NO_ORG_LIMITS, limits.completion_tokens_default)
    chosen = "completion_tokens_default" in catalogue.settings
    default = catalogue.org_settings.completion_tokens_default if chosen else limits.completion_tokens_default
    return Terms(catalogue.model_limits, default)


def estimate(
    request: CheckBudget,
    *,
    cards: Prices,
    at: datetime,
    terms: Terms,
    on_unpriced: str = "flag",
    count: TokenCount | None = None,
) -> Estimate:
    """The worst case of a request. Raises SignalError ``invalid_request`` where it cannot be told.

    ``count`` is that of its prompt, where it states none; its upper bound is what may be charged.
    """
    known_currency(request.currency)
    if request.estimated_cost is not None:
        return _stated(request)
    if request.provider is None or request.model is None:
        missing = "provider" if request.provider is None else "model"
        raise invalid("is required unless 'estimated_cost' is given", field=missing)
    warnings: list[str] = []
    prompt = request.prompt_tokens
    if prompt is None:
        if count is None:
            raise invalid("is required, or 'prompt', 'messages' or 'estimated_cost'", field="prompt_tokens")
        prompt = count.high
        warnings.append(told(count))
    else:
        count = None
    found = _of_prompt(request, prompt, warnings, cards=cards, at=at, terms=terms, on_unpriced=on_unpriced)
    found.count = count
    return found


def estimated_again(
    found: Estimate, request: CheckBudget, *, cards: Prices, at: datetime, terms: Terms, on_unpriced: str
) -> Estimate:
    """The same call at other prices and limits; its prompt is not counted again. Raises SignalError as ``estimate``."""
    if request.estimated_cost is not None:
        return replace(found, revision=cards.revision)
    counting = list(found.counting)
    again = _of_prompt(request, found.prompt_tokens, counting, cards=cards, at=at, terms=terms, on_unpriced=on_unpriced)
    again.count = found.count
    return again


def _of_prompt(
    request: CheckBudget,
    prompt: int,
    warnings: list[str],
    *,
    cards: Prices,
    at: datetime,
    terms: Terms,
    on_unpriced: str,
) -> Estimate:
    """The worst case of a request whose prompt is that long."""
    assert request.provider is not None
    assert request.model is not None
    counting = tuple(warnings)
    card = cards.resolve(
        request.provider,
        request.model,
        at,
        service_tier=request.service_tier,
        batch=request.batch,
        region=request.region,
    )
    completion = request.max_completion_tokens
    bounds = terms.bounds.of(request.provider, request.model, card)
    if completion is None:
        completion = _default_completion(prompt, bounds, terms, warnings)
    found = Estimate(None, prompt + completion, card, prompt, completion, None, warnings)
    found.terms, found.bounds = terms, bounds
    if (beyond := bounds.excess(prompt, completion)) is not None:
        found.over_context = DenialReason(code=beyond[0], message=beyond[1])  # pyright: ignore[reportArgumentType]
    found.revision, found.counting = cards.revision, counting
    if card is not None:
        found.currency = card.currency
        found.cost = worst_case(card, prompt, completion)
        if found.over_context is None and (found.cost or 0) > CALL_COST_NANOS_MAX:
            raise invalid("costs more than any one call can", field="max_completion_tokens")
        warnings.extend(card.warnings)
    if found.cost is None and on_unpriced == "estimate":
        _stand_in(found, cards.dearest(request.provider, at), request)
    return found


def _stand_in(found: Estimate, dearest: RateCard | None, request: CheckBudget) -> None:
    """Estimate a call that nothing prices at the dearest rates known of its provider, or as the org has set."""
    cost = None if dearest is None else worst_case(dearest, found.prompt_tokens, found.max_completion_tokens)
    if dearest is None or cost is None:
        return
    if cost > CALL_COST_NANOS_MAX:
        raise invalid("costs more than any one call can", field="max_completion_tokens")
    found.cost, found.currency = cost, dearest.currency
    what = "the org's unpriced_rates" if dearest.version == "unpriced_rates" else f"the dearest of {dearest.provider}"
    found.warnings.append(f"unpriced: {request.provider}/{request.model} has no price; reserved at {what}")


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


def _number(value: float | None) -> str:
    return "null" if value is None else str(value)


def _stated(request: CheckBudget) -> Estimate:
    prompt, completion = request.prompt_tokens or 0, request.max_completion_tokens or 0
    assert request.estimated_cost is not None
    cost = stated_cost(request.estimated_cost)
    return Estimate(cost, prompt + completion, None, prompt, completion, currency=request.currency)


def _default_completion(prompt: int, bounds: ModelLimits, terms: Terms, warnings: list[str]) -> int:
    room = bounds.completion_room(prompt)
    completion = terms.completion_tokens_default if room is None else min(terms.completion_tokens_default, room)
    warnings.append(f"no max_completion_tokens: reserved for {completion}")
    return completion


def told(count: TokenCount) -> str:
    """What an approval says about a prompt that was counted and is reserved with its upper bound."""
    if count.high == count.tokens and count.method == "counted":
        return f"prompt_tokens counted: {count.tokens} ({count.tokenizer})"
    return f"prompt_tokens {count.method}: {count.tokens}, reserved for {count.high} ({count.tokenizer})"
