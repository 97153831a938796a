"""Tokens times rates, exactly: integers only, one rounding per call, line items that sum to the cost.

Pure and free of ``await``. A kind that was used but has no rate makes the whole call unpriced, never free, except
where providers themselves bill it as another kind: cached tokens without a rate of their own are ordinary input (models
without a cache discount, automatic caches that charge nothing for writing), an hour-long write without a rate is an
ordinary write, and reasoning is ordinary output. Audio, searches and output are never guessed.
"""

import msgspec

from handlers.cost.rate_card import RateCard, Rates

# Rates are nanos per million units.
PER = 1_000_000


class QuantityError(ValueError):
    """A subset is larger than the total that contains it; ``field`` names the subset."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class Quantities(msgspec.Struct, frozen=True, gc=False):
    """What one call used. Prompt and completion are inclusive totals; the others are contained in them.

    ``cache_write_tokens`` includes its 1 hour part. ``audio_cache_read_tokens`` is in both the cached and the audio
    part; where it is not known, as much overlap is assumed as the prompt total forces, and no more.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    web_searches: int = 0
    audio_cache_read_tokens: int = 0
    requests: int = 1
    cache_write_12h_tokens: int = 0
    image_input_tokens: int = 0
    image_output_tokens: int = 0
    video_input_tokens: int = 0


class LineItem(msgspec.Struct, frozen=True, gc=False):
    """Units of one kind at one rate. Kinds do not overlap: ``input`` is the uncached text.

    Rate and cost are both None for a kind that has no rate, which happens only where the whole call is unpriced.
    """

    kind: str
    quantity: int
    rate_nanos_per_million: int | None
    cost_nanos: int | None
    # What it would be at list price; None: the same.
    list_rate_nanos_per_million: int | None = None
    list_cost_nanos: int | None = None


class Priced(msgspec.Struct, frozen=True):
    """A cost and the parts that sum to it or, when ``unpriced_kinds`` is not empty, no cost at all."""

    cost_nanos: int | None
    line_items: tuple[LineItem, ...]
    unpriced_kinds: tuple[str, ...] = ()
    # What it would be at list price; None: the same.
    list_nanos: int | None = None

    @property
    def list_cost_nanos(self) -> int | None:
        """The cost without the org's own contracts."""
        return self.cost_nanos if self.list_nanos is None else self.list_nanos

    @property
    def cost_status(self) -> str:
        """``priced`` or ``unpriced``."""
        return "unpriced" if self.unpriced_kinds else "priced"


def price(card: RateCard, used: Quantities) -> Priced:
    """Cost of a call at a card's rates, rounded once half-even to nanos. Raises QuantityError on impossible counts."""
    rates = card.rates_for(used.prompt_tokens) if card.tiers else card.rates
    parts = _parts(rates, used)
    scaled = 0
    floors = 0
    largest = -1
    at = 0
    items: list[LineItem] = []
    for kind, quantity, rate in parts:
        if rate is None:
            return _unpriced(parts)
        amount = quantity * rate
        nanos = amount // PER
        if amount > largest:
            largest = amount
            at = len(items)
        scaled += amount
        floors += nanos
        items.append(LineItem(kind, quantity, rate, nanos))
    cost = half_even(scaled)
    if cost != floors:
        # Floors never exceed the sum, so the remainder is positive and no item can become negative.
        kind, quantity, rate = parts[at]
        items[at] = LineItem(kind, quantity, rate, largest // PER + cost - floors)
    return Priced(cost, tuple(items))


def worst_case(card: RateCard, prompt_tokens: int, max_completion_tokens: int) -> int | None:
    """Nanos this call can cost at most, rounded up; None if the card states no rate for what it needs.

    The prompt is taken at the dearest of the input and ordinary cache rates, the completion at the dearest of text and
    reasoning. Searches, audio and hour-long writes have to be estimated by whoever asks for them.
    """
    rates = card.rates_for(prompt_tokens)
    if (prompt_tokens and rates.input is None) or (max_completion_tokens and rates.output is None):
        return None
    dearest_in = max(rates.input or 0, rates.cache_write or 0, rates.cache_read or 0)
    dearest_out = max(rates.output or 0, rates.reasoning or 0)
    scaled = prompt_tokens * dearest_in + max_completion_tokens * dearest_out + (rates.request or 0)
    return -(-scaled // PER)


def half_even(scaled: int) -> int:
    """Nanos of an amount in nanos per million units, rounded half-even; the only rounding of a cost."""
    nanos, rest = divmod(scaled, PER)
    twice = rest * 2
    if twice > PER or (twice == PER and nanos & 1):
        return nanos + 1
    return nanos


def contradiction(used: Quantities) -> QuantityError | None:
    """Why these counts cannot be: a subset larger than what contains it. None if they can."""
    if used.cache_read_tokens + used.cache_write_tokens > used.prompt_tokens:
        field = "cache_read_tokens" if used.cache_read_tokens >= used.cache_write_tokens else "cache_write_tokens"
        return QuantityError(field, "cached tokens are part of prompt_tokens and exceed it")
    if used.cache_write_1h_tokens > used.cache_write_tokens:
        return QuantityError("cache_write_1h_tokens", "is part of cache_write_tokens and exceeds it")
    if used.audio_input_tokens + used.cache_write_tokens > used.prompt_tokens:
        return QuantityError("audio_input_tokens", "is part of prompt_tokens and exceeds it")
    if used.audio_cache_read_tokens > min(used.audio_input_tokens, used.cache_read_tokens):
        return QuantityError("audio_cache_read_tokens", "is part of the audio and the cached tokens and exceeds one")
    if used.reasoning_tokens + used.audio_output_tokens > used.completion_tokens:
        field = "reasoning_tokens" if used.reasoning_tokens >= used.audio_output_tokens else "audio_output_tokens"
        return QuantityError(field, "reasoning and audio are part of completion_tokens and exceed it")
    return None


_Parts = list[tuple[str, int, int | None]]


def _parts(rates: Rates, used: Quantities) -> _Parts:
    """Disjoint kinds with quantity and rate (None: used, but no rate). Leaves out what was not used."""
    parts: _Parts = []
    read = used.cache_read_tokens
    write = used.cache_write_tokens
    text = used.prompt_tokens - read - write
    output = used.completion_tokens - used.reasoning_tokens - used.audio_output_tokens
    if text < 0 or output < 0 or used.cache_write_1h_tokens > write:
        raise contradiction(used) or QuantityError("prompt_tokens", "is smaller than its parts")
    if used.audio_input_tokens:
        text, read = _split_audio(rates, used, text, parts)
    if text:
        parts.append(("input", text, rates.input))
    if read:
        parts.append(("cache_read", read, rates.input if rates.cache_read is None else rates.cache_read))
    if write:
        _split_write(rates, write, used.cache_write_1h_tokens, parts)
    if output:
        parts.append(("output", output, rates.output))
    if used.reasoning_tokens:
        parts.append(("reasoning", used.reasoning_tokens, rates.output if rates.reasoning is None else rates.reasoning))
    if used.audio_output_tokens:
        parts.append(("audio_output", used.audio_output_tokens, rates.audio_output))
    if used.web_searches:
        parts.append(("web_search", used.web_searches, rates.web_search))
    if rates.request is not None and used.requests:
        parts.append(("request", used.requests, rates.request))
    return parts


def _unpriced(parts: _Parts) -> Priced:
    """No cost; every kind is still listed, those with a rate at what they would cost alone."""
    items = (LineItem(k, n, rate, None if rate is None else half_even(n * rate)) for k, n, rate in parts)
    return Priced(None, tuple(items), tuple(kind for kind, _, rate in parts if rate is None))


def _split_write(rates: Rates, write: int, hour: int, parts: _Parts) -> None:
    rate = rates.input if rates.cache_write is None else rates.cache_write
    if write > hour:
        parts.append(("cache_write", write - hour, rate))
    if hour:
        parts.append(("cache_write_1h", hour, rate if rates.cache_write_1h is None else rates.cache_write_1h))


def _split_audio(rates: Rates, used: Quantities, text: int, parts: _Parts) -> tuple[int, int]:
    """Append the audio parts; return the uncached text and the cached text that remain."""
    audio = used.audio_input_tokens
    cached = max(used.audio_cache_read_tokens, audio - text)
    if cached > min(audio, used.cache_read_tokens):
        raise contradiction(used) or QuantityError("audio_input_tokens", "is part of prompt_tokens and exceeds it")
    if audio > cached:
        parts.append(("audio_input", audio - cached, rates.audio_input))
    if cached:
        # Without a rate for cached audio nothing says it is cheaper than audio.
        rate = rates.audio_input if rates.audio_cache_read is None else rates.audio_cache_read
        parts.append(("audio_cache_read", cached, rate))
    return text - (audio - cached), used.cache_read_tokens - cached
