"""``cost/cost_cases``: what other tools' own tests say a usage costs, made again by the product's engine."""

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import msgspec

from handlers.context import Limits
from handlers.cost.price import Priced, QuantityError, contradiction, price
from handlers.cost.rate_card import RateCard, RateError
from handlers.cost.resolve import RateCards
from handlers.counting.count import Job, run
from handlers.counting.counter import vocabularies
from handlers.org_settings import OrgSettings
from handlers.tracker.priced import priced
from schemas.errors import SignalError
from schemas.usage import UsageEvent
from tests.cases.case import Result, Row, Verdict, rows, short
from tests.cases.engine import COUNTS, KINDS, card_of, nanos, not_carried, used_of

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
# When the cases with a service tier were read from OpenAI's list; ours has rates per tier of today only.
AUGUST = datetime(2026, 8, 15, 12, tzinfo=UTC)

# List prices of their day in USD per million tokens (OpenAI, 'Pricing', 2023 and 2024; Azure the same).
HISTORIC: dict[str, tuple[str, str]] = {
    "gpt-3.5-turbo": ("1.5", "2"),
    "gpt-3.5-turbo-0301": ("1.5", "2"),
    "gpt-3.5-turbo-0613": ("1.5", "2"),
    "gpt-3.5-turbo-16k-0613": ("3", "4"),
    "gpt-3.5-turbo-1106": ("1", "2"),
    "gpt-4": ("30", "60"),
    "gpt-4-0314": ("30", "60"),
    "gpt-4-0613": ("30", "60"),
    "gpt-4-32k-0314": ("60", "120"),
    "gpt-4-1106-preview": ("10", "30"),
    "gpt-4-vision-preview": ("10", "30"),
    "azure/gpt-4o": ("2.5", "10"),
    "text-embedding-ada-002": ("0.1", "0.1"),
}

FRACTIONS = "tokens are whole (DESIGN 5.2; no provider's API states parts of a token), so the counts are refused"
PER_TOTAL = "the other tool has a price of its own for the total; a total is the sum of its kinds here"
UNPRICED = "used and without a rate: {}; charged as nothing there, unpriced here (DESIGN, promise P5)"
AUDIO_CACHE = "refused there for want of a rate for cached audio; charged as audio here, which is never too little"
OUTPUT_AS_TEXT = "output of a kind without a rate: {}; charged as text there, unpriced here (DESIGN, promise P5)"
PRICE_CHANGED = (
    "the list price was lowered since: in August 2026 the standard rates are twice what is expected here, and flex "
    "was and is half of the standard rates (OpenAI, 'Pricing', flex processing)"
)
BY_URL = "a provider is named here; none is looked up by the URL of its API"
CLAUDE_COUNT = (
    "counted there with the vocabulary of Claude 2; that of Claude 3 is not public, so it is an estimate here "
    "(Anthropic, 'Token counting')"
)


def results() -> Iterator[Result]:
    """Every case in order."""
    for number, case in enumerate(rows("cost/cost_cases.jsonl"), 1):
        name = f"{number}: {case.get('model_ref', '-')} ({short(case['source'])})"
        outcome, reason = _outcome(case)
        yield Result(name, outcome, reason)


def _outcome(case: Row) -> Verdict:
    if "prompt" in case or "completion" in case:
        return _text(case)
    if "unit_prices" in case:
        return _provided(case)
    if "service_tier" in case:
        return _tier(case)
    if "rates" in case:
        return _rates(case)
    if "expected_error" in case:
        return _unknown(case)
    return _historic(case)


def _passed(told: object, expected: object, what: str) -> Verdict:
    return ("passed", "") if told == expected else ("failed", f"{what}: {told} is not {expected}")


def _text(case: Row) -> Verdict:
    """A text is counted, then priced at the list price of its day."""
    model, prompt = case["model_ref"], case.get("prompt")
    name = "messages" if isinstance(prompt, list) else "text"
    texts = {name: msgspec.json.encode(prompt or case["completion"])}
    count = run(Job("openai", model, texts, 4_000_000), vocabularies())[1]
    assert count is not None
    if count.method != "counted":
        return "differs", CLAUDE_COUNT
    rate = HISTORIC[model][0 if prompt else 1]
    expected = nanos(case["expected"]["input_price" if prompt else "output_price"])
    return _passed(nanos(count.tokens * Decimal(rate) / 10**6), expected, f"{count.tokens} tokens at {rate}")


def _historic(case: Row) -> Verdict:
    rate_in, rate_out = HISTORIC[case["model_ref"]]
    card = card_of({"input_mtok": rate_in, "output_mtok": rate_out})
    assert card is not None
    found = price(card, used_of(case["usage"]))
    return _passed(found.cost_nanos, nanos(case["expected"]["total_price"]), "nanos")


def _tier(case: Row) -> Verdict:
    """Unit rates of a service tier, from the price list that comes with the product."""
    card = RateCards().resolve("openai", case["model_ref"], NOW, service_tier=case["service_tier"])
    if card is None:
        return "failed", "no price is known"
    found = (card.rates.input, card.rates.output)
    expected = (nanos(case["expected"]["input_rate_mtok"]), nanos(case["expected"]["output_rate_mtok"]))
    if found != expected and case["service_tier"] == "flex":
        then = RateCards().resolve("openai", case["model_ref"], AUGUST)
        if then is not None and (then.rates.input, then.rates.output) == (2 * expected[0], 2 * expected[1]):
            return "differs", PRICE_CHANGED
    return _passed(found, expected, "rates")


def _unknown(case: Row) -> Verdict:
    """A provider or model that nobody knows has no price."""
    if "provider_id" not in case:
        return "skipped", BY_URL
    card = RateCards().resolve(case["provider_id"], case["model_ref"], NOW)
    return ("passed", "") if card is None else ("failed", f"priced as {card.provider}/{card.model}")


def _provided(case: Row) -> Verdict:
    """A cost that the caller states is the cost; prices are per token there."""
    if case["provided_costs"]:
        parts = case["provided_costs"]
        total = parts["total"] if "total" in parts else sum(Decimal(str(cost)) for cost in parts.values())
        found = _believed(case["usage_types"] or {"input": 0, "output": 0}, str(total))
        return _passed(found, nanos(case["expected"]["total"]), "nanos")
    used = case["usage_types"]
    if not used:
        return _refused({}, "prompt_tokens")
    if any(count != int(count) for count in used.values()):
        outcome, reason = _refused({"prompt_tokens": used["input"]}, "prompt_tokens")
        return (outcome, reason) if outcome == "failed" else ("differs", FRACTIONS)
    card = card_of({f"{k}_mtok": str(Decimal(case["unit_prices"][k]) * 10**6) for k in ("input", "output")})
    assert card is not None
    items = price(card, used_of({"input_tokens": used["input"], "output_tokens": used["output"]})).line_items
    parts = {item.kind: item.cost_nanos for item in items}
    outcome, reason = _passed(parts, {k: nanos(case["expected"][k]) for k in ("input", "output")}, "nanos")
    return (outcome, reason) if outcome == "failed" else ("differs", PER_TOTAL)


def _believed(used: Row, cost: str) -> int | None:
    event = UsageEvent(
        provider="openai",
        model="gpt-4o",
        prompt_tokens=used["input"],
        completion_tokens=used["output"],
        reported_cost=cost,
    )
    believing = OrgSettings(reported_cost="always")
    kept = priced(
        event,
        org="default",
        event_id="1",
        arrived_at=NOW,
        cards=RateCards(),
        limits=Limits(),
        settings=believing,
    ).event
    assert kept.price_source == "reported"
    return kept.cost


def _refused(counts: Row, field: str) -> Verdict:
    """Counts that are missing, or none, are refused and cost nothing that would be called nought."""
    data = msgspec.json.encode({"provider": "openai", "model": "gpt-4o", **counts})
    try:
        event = msgspec.json.decode(data, type=UsageEvent)
        priced(event, org="default", event_id="1", arrived_at=NOW, cards=RateCards(), limits=Limits())
    except SignalError as error:
        return _passed(error.field, field, "field")
    except msgspec.ValidationError:
        return "passed", ""
    return "failed", "was taken"


def _rates(case: Row) -> Verdict:
    """Arithmetic with the rates that the case gives."""
    usage, rates = case["usage"], _needed(case["rates"], case["usage"])
    try:
        card = card_of(rates)
        if card is None:
            return "skipped", f"no event carries {', '.join(sorted(_not_kinds(rates)))}"
        missing = not_carried(usage, rates)
        if missing and any(usage[key] != int(usage[key]) for key in missing):
            return "differs", FRACTIONS
        if missing:
            return "skipped", f"no event carries {', '.join(missing)}"
        problem = contradiction(used_of(usage))
        if problem is not None:
            raise problem
        found = price(card, used_of(usage))
    except (RateError, QuantityError) as error:
        return ("passed", "") if "expected_error" in case else ("failed", str(error))
    if "expected_error" in case:
        cached_audio = usage.get("cache_audio_read_tokens") and "cache_audio_read_mtok" not in rates
        return ("differs", AUDIO_CACHE) if cached_audio else ("failed", f"was not refused: {case['expected_error']}")
    return _as_expected(case, card, found)


def _as_expected(case: Row, card: RateCard, found: Priced) -> Verdict:
    expected = case["expected"]
    if "input_rate_mtok" in expected:
        rates = card.rates_for(case["usage"]["input_tokens"])
        return _passed(rates.input, nanos(expected["input_rate_mtok"]), "rate")
    if found.unpriced_kinds:
        kinds = ", ".join(found.unpriced_kinds)
        as_text = any(kind.endswith("_output") for kind in found.unpriced_kinds)
        return "differs", (OUTPUT_AS_TEXT if as_text else UNPRICED).format(kinds)
    total = Decimal(expected.get("input_price", "0")) + Decimal(expected.get("output_price", "0"))
    if "total_price" in expected:
        total = Decimal(expected["total_price"])
    return _passed(found.cost_nanos, nanos(total), "nanos")


def _needed(rates: Row, usage: Row) -> Row:
    """The rates without those of units that no event carries and that this usage does not have."""
    return {key: rate for key, rate in rates.items() if key in KINDS or usage.get(_counted(key))}


def _counted(key: str) -> str:
    """The usage that a rate is of."""
    return {"audio_hours": "audio_seconds"}.get(key, key.replace("_mtok", "_tokens"))


def _not_kinds(rates: Row) -> set[str]:
    return {_counted(key) for key in rates if key not in KINDS and _counted(key) not in COUNTS} or set(rates)
