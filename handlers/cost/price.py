"""Tokens times rates, exactly: integers only, one rounding per call, line items that sum to the cost.

Pure and free of ``await``. A kind that was used but has no rate makes the whole call unpriced, never free, except
where providers themselves bill it as another kind: cached tokens without a rate of their own are ordinary input (models
without a cache discount, automatic caches that charge nothing for writing), an hour-long write without a rate is an
ordinary write, reasoning is ordinary output, and images and video in the prompt are ordinary input. Audio, images that
come out, 12 hour writes, searches and output are never guessed.
"""

from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import msgspec

from handlers.cost.rate_card import BILLED_AS, RateCard, Rates, Volume, stated, times

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
    """A cost and the parts that sum to it or, when ``unpriced_kinds`` is not empty, no cost at all.

    ``counted`` says for each rule that depends on the month's volume what it had seen before this call, and what this
    call adds to it.
    """

    cost_nanos: int | None
    line_items: tuple[LineItem, ...]
    unpriced_kinds: tuple[str, ...] = ()
    # What it would be at list price; None: the same.
    list_nanos: int | None = None
    counted: tuple[tuple[str, int, int], ...] = ()

    @property
    def list_cost_nanos(self) -> int | None:
        """The cost without the org's own contracts."""
        return self.cost_nanos if self.list_nanos is None else self.list_nanos

    @property
    def cost_status(self) -> str:
        """``priced`` or ``unpriced``."""
        return "unpriced" if self.unpriced_kinds else "priced"


_FROM_NOUGHT: Final[Mapping[str, int]] = MappingProxyType({})


def price(card: RateCard, used: Quantities, seen: Mapping[str, int] = _FROM_NOUGHT) -> Priced:
    """Cost of a call at a card's rates, rounded once half-even to nanos. Raises QuantityError on impossible counts.

    ``seen`` is what each rule with volume tiers had seen of the month before this call, by its name; nought if it is
    left out.
    """
    rates = card.rates_for(used.prompt_tokens) if card.tiers else card.rates
    parts = _parts(rates, used)
    if card.list_rates is not None or card.volumes:
        return _at_list_and_net(card, used, parts, seen)
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


class _Part(msgspec.Struct, gc=False):
    """Units of a kind at one net and one list rate; ``stated`` is the list rate before volume discounts."""

    kind: str
    quantity: int
    net: int
    listed: int
    stated: int


def _at_list_and_net(card: RateCard, used: Quantities, parts: "_Parts", seen: Mapping[str, int]) -> Priced:
    if any(rate is None for _, _, rate in parts):
        return _unpriced(parts)
    listed = parts if card.list_rates is None else _parts(card.list_rates_for(used.prompt_tokens), used)
    net_rates = {kind: rate for kind, _, rate in parts}
    list_rates = {kind: rate for kind, _, rate in listed}
    found: list[_Part] = []
    for kind, quantity in {kind: quantity for kind, quantity, _ in (*parts, *listed)}.items():
        # Only requests may be billed at one of the two alone. A kind that has no list price has its net price.
        net = net_rates.get(kind) or 0
        at_list = list_rates.get(kind, 0)
        at_list = net if at_list is None else at_list
        found.append(_Part(kind, quantity, net, at_list, at_list))
    counted: list[tuple[str, int, int]] = []
    for volume in card.volumes:
        before = seen.get(volume.name, 0)
        found, amount = _by_volume(found, volume, before)
        counted.append((volume.name, before, amount))
    net_costs = _shared([part.quantity * part.net for part in found])
    list_costs = _shared([part.quantity * part.listed for part in found])
    items = tuple(map(_item, found, net_costs, list_costs))
    net, at_list = sum(net_costs), sum(list_costs)
    return Priced(net, items, (), None if at_list == net else at_list, tuple(counted))


def _item(part: _Part, net: int, at_list: int) -> LineItem:
    if part.net == part.listed and net == at_list:
        return LineItem(part.kind, part.quantity, part.net, net)
    return LineItem(part.kind, part.quantity, part.net, net, part.listed, at_list)


def _shared(amounts: list[int]) -> list[int]:
    """Nanos of amounts in nanos per million units, rounded once together; the remainder goes to the largest."""
    costs = [amount // PER for amount in amounts]
    rest = half_even(sum(amounts)) - sum(costs)
    if rest:
        costs[amounts.index(max(amounts))] += rest
    return costs


def _by_volume(parts: list[_Part], volume: Volume, before: int) -> tuple[list[_Part], int]:
    """Split parts where the month's volume crosses a step, in the order of the line items; and what they add to it.

    A step counted in cost is crossed by whole tokens: the one that reaches over it is beyond it.
    """
    found: list[_Part] = []
    # In millionths of a nano where cost is counted, so that no rounding adds up.
    unit = PER if volume.by_cost else 1
    at = start = before * unit
    for part in parts:
        if part.kind not in volume.kinds:
            found.append(part)
            continue
        per_unit = part.stated if volume.by_cost else 1
        left = part.quantity
        while left:
            factor, ends = _step(volume, at, unit)
            taken = left if ends is None or not per_unit else min(left, (ends - at) // per_unit)
            if not taken:
                # Less than one unit fits before the step.
                assert ends is not None
                factor, taken = _step(volume, ends, unit)[0], 1
            found.append(_discounted(part, taken, factor, net_only=volume.net_only))
            at += taken * per_unit
            left -= taken
    return _merged(found), half_even(at - start) if volume.by_cost else at - start


def _step(volume: Volume, at: int, unit: int) -> tuple[Fraction, int | None]:
    """The factor at a volume, and where the next step begins."""
    factor, ends = Fraction(1), None
    for above, next_factor in volume.steps:
        if at < above * unit:
            ends = above * unit
            break
        factor = next_factor
    return factor, ends


def _discounted(part: _Part, quantity: int, factor: Fraction, *, net_only: bool) -> _Part:
    listed = part.listed if net_only else times(part.listed, factor)
    return _Part(part.kind, quantity, times(part.net, factor), listed, part.stated)


def _merged(parts: list[_Part]) -> list[_Part]:
    """Neighbours of one kind at the same rates as one part."""
    found: list[_Part] = []
    for part in parts:
        last = found[-1] if found else None
        if last is not None and (last.kind, last.net, last.listed) == (part.kind, part.net, part.listed):
            last.quantity += part.quantity
        else:
            found.append(part)
    return found


def worst_case(card: RateCard, prompt_tokens: int, max_completion_tokens: int) -> int | None:
    """Nanos this call can cost at most, rounded up; None if the card states no rate for what it needs.

    The prompt is taken at the dearest of the input and ordinary cache rates, the completion at the dearest of text and
    reasoning. Searches, audio and hour-long writes have to be estimated by whoever asks for them.
    """
    rates = card.rates_for(prompt_tokens)
    if card.volumes:
        rates = _dearest(rates, card.volumes)
    if (prompt_tokens and rates.input is None) or (max_completion_tokens and rates.output is None):
        return None
    dearest_in = max(rates.input or 0, rates.cache_write or 0, rates.cache_read or 0)
    dearest_out = max(rates.output or 0, rates.reasoning or 0)
    scaled = prompt_tokens * dearest_in + max_completion_tokens * dearest_out + (rates.request or 0)
    return -(-scaled // PER)


@lru_cache(maxsize=1024)
def _dearest(rates: Rates, volumes: tuple[Volume, ...]) -> Rates:
    """The rates where every discount by volume is at its worst."""
    found = stated(rates)
    for kind, billed_as in BILLED_AS.items():
        # A rule may change a kind that has no rate of its own, or leave it at the rate it is billed at.
        if kind not in found and billed_as in found:
            found[kind] = found[billed_as]
    for volume in volumes:
        found = {k: -(-rate * volume.dearest // 1) if k in volume.kinds else rate for k, rate in found.items()}
    return Rates(**found)


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
    if used.cache_write_1h_tokens + used.cache_write_12h_tokens > used.cache_write_tokens:
        return QuantityError("cache_write_12h_tokens", "is part of cache_write_tokens and exceeds it")
    if used.audio_input_tokens + used.cache_write_tokens > used.prompt_tokens:
        return QuantityError("audio_input_tokens", "is part of prompt_tokens and exceeds it")
    seen = used.image_input_tokens + used.video_input_tokens
    if seen + used.audio_input_tokens + used.cache_write_tokens > used.prompt_tokens:
        field = "image_input_tokens" if used.image_input_tokens >= used.video_input_tokens else "video_input_tokens"
        return QuantityError(field, "is part of prompt_tokens and exceeds it")
    if used.audio_cache_read_tokens > min(used.audio_input_tokens, used.cache_read_tokens):
        return QuantityError("audio_cache_read_tokens", "is part of the audio and the cached tokens and exceeds one")
    if used.reasoning_tokens + used.audio_output_tokens > used.completion_tokens:
        field = "reasoning_tokens" if used.reasoning_tokens >= used.audio_output_tokens else "audio_output_tokens"
        return QuantityError(field, "reasoning and audio are part of completion_tokens and exceed it")
    if used.reasoning_tokens + used.audio_output_tokens + used.image_output_tokens > used.completion_tokens:
        return QuantityError("image_output_tokens", "is part of completion_tokens and exceeds it")
    return None


_Parts = list[tuple[str, int, int | None]]


def _parts(rates: Rates, used: Quantities) -> _Parts:
    """Disjoint kinds with quantity and rate (None: used, but no rate). Leaves out what was not used."""
    parts: _Parts = []
    read = used.cache_read_tokens
    write = used.cache_write_tokens
    text = used.prompt_tokens - read - write
    output = used.completion_tokens - used.reasoning_tokens - used.audio_output_tokens - used.image_output_tokens
    long = used.cache_write_1h_tokens + used.cache_write_12h_tokens
    if text < 0 or output < 0 or long > write:
        raise contradiction(used) or QuantityError("prompt_tokens", "is smaller than its parts")
    if used.audio_input_tokens:
        text, read = _split_audio(rates, used, text, parts)
    if used.image_input_tokens or used.video_input_tokens:
        text = _split_seen(rates, used, text, parts)
    if text:
        parts.append(("input", text, rates.input))
    if read:
        parts.append(("cache_read", read, rates.input if rates.cache_read is None else rates.cache_read))
    if write:
        _split_write(rates, used, parts)
    if output:
        parts.append(("output", output, rates.output))
    if used.reasoning_tokens:
        parts.append(("reasoning", used.reasoning_tokens, rates.output if rates.reasoning is None else rates.reasoning))
    if used.audio_output_tokens:
        parts.append(("audio_output", used.audio_output_tokens, rates.audio_output))
    if used.image_output_tokens:
        parts.append(("image_output", used.image_output_tokens, rates.image_output))
    if used.web_searches:
        parts.append(("web_search", used.web_searches, rates.web_search))
    if rates.request is not None and used.requests:
        parts.append(("request", used.requests, rates.request))
    return parts


def _unpriced(parts: _Parts) -> Priced:
    """No cost; every kind is still listed, those with a rate at what they would cost alone."""
    items = (LineItem(k, n, rate, None if rate is None else half_even(n * rate)) for k, n, rate in parts)
    return Priced(None, tuple(items), tuple(kind for kind, _, rate in parts if rate is None))


def _split_write(rates: Rates, used: Quantities, parts: _Parts) -> None:
    rate = rates.input if rates.cache_write is None else rates.cache_write
    hour, half_day = used.cache_write_1h_tokens, used.cache_write_12h_tokens
    rest = used.cache_write_tokens - hour - half_day
    if rest:
        parts.append(("cache_write", rest, rate))
    if hour:
        parts.append(("cache_write_1h", hour, rate if rates.cache_write_1h is None else rates.cache_write_1h))
    if half_day:
        parts.append(("cache_write_12h", half_day, rates.cache_write_12h))


def _split_seen(rates: Rates, used: Quantities, text: int, parts: _Parts) -> int:
    """Append images and video, those that are not cached; return the uncached text that remains.

    How much of them was cached no provider says: text is taken to be cached first, so that they cost what they can.
    """
    for kind, quantity, rate in (
        ("image_input", used.image_input_tokens, rates.image_input),
        ("video_input", used.video_input_tokens, rates.video_input),
    ):
        uncached = min(quantity, text)
        if uncached:
            parts.append((kind, uncached, rates.input if rate is None else rate))
            text -= uncached
    return text


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
