"""What a provider states of one call, before the total check and the clamping; no totals are made here."""

import msgspec

from handlers.payloads.reader import PayloadReader, whole


class Draft(msgspec.Struct, kw_only=True):
    """Counts as the provider states them. ``prompt`` None: it states none.

    ``cache_inside`` and ``reasoning_inside`` are the provider's own rule, which the stated total may overrule where
    ``total_decides``.
    """

    prompt: int | None
    completion: int | None
    total: int | None = None
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    cache_write_12h: int = 0
    reasoning: int = 0
    audio_input: int = 0
    audio_cache_read: int = 0
    audio_output: int = 0
    image_input: int = 0
    image_output: int = 0
    video_input: int = 0
    web_searches: int = 0
    cache_inside: bool = True
    reasoning_inside: bool = True
    total_decides: bool = True
    # What the context held, where that is not what is billed.
    context_tokens: int | None = None
    reported_cost_nanos: int | None = None
    service_tier: str | None = None
    region: str | None = None
    batch: bool = False
    flags: list[str] = msgspec.field(default_factory=lambda: [])


def ticks(read: PayloadReader) -> int | None:
    """xAI's charge, in ten-billionths of a dollar; half-even to nanos."""
    value = read.value("cost_in_usd_ticks")
    if value is None:
        return None
    found, rest = divmod(whole(value, field="cost_in_usd_ticks"), 10)
    return found + (rest > 5 or (rest == 5 and found & 1))
