"""Amounts on the wire and inside: decimal strings outside, integers inside, floats nowhere.

Cost is counted in nanos (1e-9 of the currency unit); tokens and requests are counted as they are.
"""

from decimal import Decimal, InvalidOperation
from typing import Final

NANOS: Final = 1_000_000_000
NANOS_DIGITS: Final = 9
# A limit or cost above a billion units is a typing error, and far below what a bigint of nanos holds (9.2 billion).
COST_NANOS_MAX: Final = 1_000_000_000 * NANOS
# One call that costs more than this is an error in the counts, and a few thousand of them would outgrow a sum.
CALL_COST_NANOS_MAX: Final = 1_000_000 * NANOS
COUNT_MAX: Final = 1_000_000_000_000_000


class AmountError(ValueError):
    """The text is not an amount within bounds; the message says why and is fit for a caller."""


def parse_cost(text: str) -> int:
    """Nanos of a decimal string such as ``"12.5"``; at most nine decimals, no exponent, not negative."""
    return _parse(text, digits=NANOS_DIGITS, most=COST_NANOS_MAX)


def parse_call_cost(text: str) -> int:
    """Nanos of what one call costs; as ``parse_cost``, at most a million units."""
    return _parse(text, digits=NANOS_DIGITS, most=CALL_COST_NANOS_MAX)


def parse_count(text: str) -> int:
    """Tokens or requests of a decimal string such as ``"1000000"``; whole and not negative."""
    return _parse(text, digits=0, most=COUNT_MAX)


def format_cost(nanos: int) -> str:
    """Canonical decimal string of nanos: no exponent, no trailing zeros (``7_000_000`` is ``"0.007"``)."""
    if nanos < 0:
        return "-" + format_cost(-nanos)
    digits = str(nanos)
    if len(digits) <= NANOS_DIGITS:
        digits = digits.zfill(NANOS_DIGITS + 1)
    kept, point = digits.rstrip("0"), len(digits) - NANOS_DIGITS
    return digits[:point] if len(kept) <= point else f"{digits[:point]}.{kept[point:]}"


def _parse(text: str, *, digits: int, most: int) -> int:
    if not text or len(text) > 40 or not all(c in "0123456789." for c in text):
        raise AmountError("is not a plain decimal number such as '12.5'")
    try:
        value = Decimal(text).scaleb(digits)
    except InvalidOperation:
        raise AmountError("is not a plain decimal number such as '12.5'") from None
    if value > most:
        raise AmountError("is larger than any amount this service keeps")
    if value != int(value):
        raise AmountError(f"has more than {digits} decimals" if digits else "must be a whole number")
    return int(value)
