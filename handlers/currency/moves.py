"""Rates that move suspiciously far from the last one of their pair: a slip, or a pair the wrong way round."""

from collections.abc import Sequence
from fractions import Fraction

from handlers.currency.exchange import Exchange, MissingRate, rate_text
from schemas.exchange import MovedRate
from store.exchange import DatedRate


def moved(exchange: Exchange, new: Sequence[DatedRate], percent: int) -> list[MovedRate]:
    """Rates, oldest first, that differ from the last one of their pair by more than ``percent``; the furthest first."""
    last: dict[tuple[str, str], Fraction] = {}
    found: list[tuple[Fraction, MovedRate]] = []
    for rate in new:
        pair = (rate.base, rate.quote)
        before = last.get(pair) or _known(exchange, rate)
        last[pair] = after = Fraction(rate.rate)
        if before is None:
            continue
        move = abs(after / before - 1) * 100
        if move > percent:
            shown = MovedRate(
                base=rate.base,
                quote=rate.quote,
                as_of=rate.as_of,
                before=rate_text(before),
                after=rate_text(after),
                percent=rate_text(Fraction(round(move * 10), 10)),
            )
            found.append((move, shown))
    return [shown for _, shown in sorted(found, key=lambda pair: -pair[0])]


def _known(exchange: Exchange, rate: DatedRate) -> Fraction | None:
    """What a pair was worth on that day or before; of a day before all others, what it is worth now."""
    for on in (rate.as_of, None):
        try:
            return exchange.rate(rate.base, rate.quote, on=on).value
        except MissingRate:
            continue
    return None
