"""The layer of public list prices: genai-prices' bundled data, flattened into rate cards.

It reads the data and does not calculate with it, because that library prices silently at nought what it has no rate for
(audio on a text model, searches, durations, pages), ignores a batch or service tier on resold models, and keeps every
model name it ever matched. Its import takes 150 ms, so it happens on first use or in ``warm``, which a thread may run.
"""

import hashlib
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlers.cost.known_names import is_known
from handlers.cost.layer import ALWAYS, Answer, PriceQuery, Validity
from handlers.cost.rate_card import KINDS, STANDARD_TIERS, RateCard, Rates, Tier, rate_nanos

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

    from handlers.cost.snapshot import Snapshot

SOURCE = "genai-prices"

# Our kind: the key of the data, and how many of its units make a million of ours.
PRICE_KEYS = {
    "input": ("input_mtok", 1),
    "output": ("output_mtok", 1),
    "cache_read": ("cache_read_mtok", 1),
    "cache_write": ("cache_write_mtok", 1),
    "cache_write_1h": ("cache_write_1h_mtok", 1),
    "reasoning": ("output_reasoning_mtok", 1),
    "audio_input": ("input_audio_mtok", 1),
    "audio_cache_read": ("cache_audio_read_mtok", 1),
    "audio_output": ("output_audio_mtok", 1),
    "image_input": ("input_image_mtok", 1),
    "image_output": ("output_image_mtok", 1),
    "video_input": ("input_video_mtok", 1),
    "web_search": ("web_searches_kcount", 1000),
    "request": ("requests_kcount", 1000),
}
# Names other tools use that the data would not know, or would take for the model's maker.
PROVIDER_ALIASES = {
    "azure_openai": "azure",
    "azure-openai": "azure",
    "azure_ai": "azure",
    "azure.ai.openai": "azure",
    "az.ai.openai": "azure",
    "grok": "x-ai",
    "togetherai": "together",
    "fireworks_ai": "fireworks",
    "open_router": "openrouter",
}
_KNOWN_KEYS = frozenset(key for key, _ in PRICE_KEYS.values())


class BundledPrices:
    """Callable layer over the bundled data, or over a price file that was read. Holds no cache of its own."""

    def __init__(self, snapshot: "Snapshot | None" = None) -> None:
        self._version = "" if snapshot is None else f"{SOURCE} file+{snapshot.digest[:12]}"
        self._providers: list[Provider] = [] if snapshot is None else list(snapshot.providers)

    def warm(self) -> None:
        """Import the data and learn its version: some 200 ms, once. Safe to call from any thread, and again."""
        if self._providers:
            return
        from genai_prices import __version__, data  # noqa: PLC0415 - 150 ms, not paid by whoever never prices

        digest = hashlib.sha256(Path(data.__file__).read_bytes()).hexdigest()
        self._version = f"{SOURCE} {__version__}+{digest[:8]}"
        self._providers = data.providers

    def __call__(self, query: PriceQuery) -> Answer | None:
        """The card for a query, with the time for which it holds; None if the data does not price this model."""
        self.warm()
        found = self.find(query.provider, query.model)
        if found is None:
            return None
        provider, model = found
        validity = _validity(model, query.at)
        rates, tiers, notes = self._rates(provider, model, query)
        if rates.input is None and rates.output is None:
            # Free and unknown look the same in the data, and pages or seconds cannot be told from a token count.
            return Answer(None, validity)
        card = RateCard(
            provider=provider.id,
            model=model.id,
            source=SOURCE,
            version=self._version,
            rates=rates,
            tiers=tiers,
            context_window=model.context_window,
            notes=(*notes, *_remarks(model, query.model)),
        )
        return Answer(card, validity)

    def dearest(self, provider_id: str, at: datetime) -> RateCard | None:
        """The highest rate of each kind that any model of a provider has, however long the prompt; some 5 ms."""
        self.warm()
        from genai_prices.data_snapshot import find_provider_by_id  # noqa: PLC0415 - see warm

        provider = find_provider_by_id(self._providers, PROVIDER_ALIASES.get(provider_id, provider_id))
        if provider is None:
            return None
        highest: dict[str, int] = {}
        for model in provider.models:
            base, tiers = _flatten(model.get_prices(at, None))
            for rates in (base, *(tier.rates for tier in tiers)):
                for kind in KINDS:
                    rate: int | None = getattr(rates, kind)
                    if rate is not None:
                        highest[kind] = max(rate, highest.get(kind, 0))
        if not {"input", "output"} <= highest.keys():
            return None
        return RateCard(provider=provider.id, model="*", source=SOURCE, version=self._version, rates=Rates(**highest))

    def find(self, provider_id: str, model_ref: str) -> "tuple[Provider, ModelInfo] | None":
        """The entry that prices calls of a provider and model, both stripped and the provider in lower case."""
        self.warm()
        from genai_prices.data_snapshot import find_provider_by_id  # noqa: PLC0415 - see warm

        if provider_id == "litellm" and "/" in model_ref:
            provider_id, _, model_ref = model_ref.partition("/")
        provider_id = PROVIDER_ALIASES.get(provider_id, provider_id)
        # Not find_provider_model: its snapshot remembers every model name, for ever.
        provider = find_provider_by_id(self._providers, provider_id)
        if provider is None:
            return None
        for spelling in _spellings(provider_id, model_ref):
            model = provider.find_model(spelling, all_providers=self._providers)
            if model is not None:
                return provider, model
        # Some matchers do not know their own canonical id, which is the name a card tells.
        named = next((model for model in provider.models if model.id.lower() == model_ref.lower()), None)
        return None if named is None else (provider, named)

    def _rates(
        self, provider: "Provider", model: "ModelInfo", query: PriceQuery
    ) -> tuple[Rates, tuple[Tier, ...], tuple[str, ...]]:
        context = _context(query)
        prices = model.get_prices(query.at, context or None)
        rates, tiers = _flatten(prices)
        notes = _foreign(prices)
        if not context or _has_variant(model, context, query.at):
            return rates, tiers, notes
        return rates, tiers, (*notes, "batch_unknown" if query.batch else "service_tier_unknown")


def _remarks(model: "ModelInfo", asked: str) -> tuple[str, ...]:
    """What a caller should know about the entry itself: that it is gone, or that the name was not quite its."""
    found = ("deprecated",) if model.deprecated else ()
    return found if is_known(model, asked) else (*found, f"model_guessed:{model.id}")


def _spellings(provider_id: str, model: str) -> Iterator[str]:
    bare = model.removeprefix("models/")
    yield bare
    if bare.startswith(f"{provider_id}/"):
        yield bare[len(provider_id) + 1 :]


def _context(query: PriceQuery) -> dict[str, str]:
    context: dict[str, str] = {}
    if query.batch:
        context["processing"] = "batch"
    if query.service_tier not in STANDARD_TIERS:
        context["service_tier"] = query.service_tier
        if query.service_tier == "fast":
            context["speed"] = "fast"
    return context


def _has_variant(model: "ModelInfo", context: dict[str, str], at: datetime) -> bool:
    """Whether the data has rates of its own for everything that was asked (a batch, a tier) at that time."""
    active = [v.when for v in model.price_variants or () if v.constraint is None or v.constraint.active(at)]
    matching = [when for when in active if when.items() <= context.items()]
    asked = {"processing"} & context.keys() or context.keys()
    return any(asked & when.keys() for when in matching)


def _flatten(prices: "ModelPrice") -> tuple[Rates, tuple[Tier, ...]]:
    stated: dict[str, Any] = {}
    for kind, (key, scale) in PRICE_KEYS.items():
        value: Any = prices.__dict__.get(key)
        if value is not None:
            stated[kind] = (value, scale)
    starts = sorted({tier.start for value, _ in stated.values() for tier in getattr(value, "tiers", ())})
    tiers = tuple(Tier(start, _rates_above(stated, start)) for start in starts)
    return _rates_above(stated, -1), tiers


def _rates_above(stated: dict[str, Any], start: int) -> Rates:
    """Rates of a prompt just above ``start``; -1 is the base."""
    flat: dict[str, int] = {}
    for kind, (value, scale) in stated.items():
        rate: Decimal = getattr(value, "base", value)
        for tier in getattr(value, "tiers", ()):
            if tier.start <= start:
                rate = tier.price
        flat[kind] = rate_nanos(rate * scale)
    return Rates(**flat)


def _foreign(prices: "ModelPrice") -> tuple[str, ...]:
    """A note per rate of the data that no usage event can carry (pages, seconds, images apart from text)."""
    stated = sorted(key for key, value in prices.__dict__.items() if value is not None and key not in _KNOWN_KEYS)
    return tuple(f"unit_ignored:{key}" for key in stated)


def _validity(model: "ModelInfo", at: datetime) -> Validity:
    """The longest stretch around ``at`` in which no dated price starts and no daily window opens or closes."""
    constraints = [price.constraint for price in model.prices] if isinstance(model.prices, list) else []
    constraints += [variant.constraint for variant in model.price_variants or ()]
    edges: list[datetime] = []
    moment = at.astimezone(UTC)
    for constraint in constraints:
        start: date | None = getattr(constraint, "start_date", None)
        if start is not None:
            edges.append(datetime.combine(start, time(), UTC))
        elif constraint is not None:
            edges += _daily_edges(moment.date(), constraint)
    since = max((edge for edge in edges if edge <= moment), default=ALWAYS.since)
    until = min((edge for edge in edges if edge > moment), default=ALWAYS.until)
    return Validity(since, until)


def _daily_edges(day: date, window: Any) -> Iterator[datetime]:
    """Openings and closings of a daily window on the days around ``day``; its times are UTC or carry an offset."""
    for offset in (-1, 0, 1):
        for clock in (window.start_time, window.end_time):
            edge = datetime.combine(day + timedelta(days=offset), clock)
            yield edge.astimezone(UTC) if edge.tzinfo else edge.replace(tzinfo=UTC)
