"""Exact parts of exact wholes: fractions in, integers out that sum to the whole, largest remainders first. Pure."""

from collections.abc import Sequence
from fractions import Fraction
from math import lcm
from typing import Final

from handlers.currency.exchange import half_even

HUNDRED: Final = Fraction(100)
_DECIMALS: Final = 4


def whole(value: Fraction) -> int:
    """The nearest integer, halves to even."""
    return half_even(value.numerator, value.denominator)


def apportion(parts: Sequence[Fraction]) -> list[int]:
    """Integers next to the parts that sum to their rounded sum, to the unit.

    Every part is rounded down; the units that are left go to the parts that lost most, the first ones among equals. A
    part that is an integer stays what it is.
    """
    return apportion_pairs([(part.numerator, part.denominator) for part in parts])


def apportion_pairs(parts: Sequence[tuple[int, int]]) -> list[int]:
    """The same of quotients that need not be reduced; many of them with few denominators are quick."""
    denominator = lcm(*{below for _, below in parts})
    scale = {below: denominator // below for _, below in parts}
    scaled = [above * scale[below] for above, below in parts]
    floors: list[int] = []
    rests: list[int] = []
    for value in scaled:
        floor, rest = divmod(value, denominator)
        floors.append(floor)
        rests.append(rest)
    left = half_even(sum(scaled), denominator) - sum(floors)
    if left:
        for i in sorted(range(len(rests)), key=lambda i: (-rests[i], i))[:left]:
            floors[i] += 1
    return floors


def percent_text(part: Fraction | int, of: Fraction | int) -> str:
    """What percentage ``part`` is, to four decimals, as a decimal string; of nothing: ``"0"``."""
    if not of:
        return "0"
    scaled = whole(Fraction(part) * 100 * 10**_DECIMALS / Fraction(of))
    sign, scaled = ("-", -scaled) if scaled < 0 else ("", scaled)
    text = f"{scaled // 10**_DECIMALS}.{scaled % 10**_DECIMALS:0{_DECIMALS}d}"
    return sign + text.rstrip("0").rstrip(".")


def decimal_text(value: Fraction, decimals: int = 12) -> str:
    """A fraction as a decimal string of at most ``decimals`` digits after the point, without trailing zeros."""
    scaled = whole(value * 10**decimals)
    sign, scaled = ("-", -scaled) if scaled < 0 else ("", scaled)
    text = f"{scaled // 10**decimals}.{scaled % 10**decimals:0{decimals}d}"
    return sign + text.rstrip("0").rstrip(".")


def percent_of(text: str) -> Fraction:
    """A percentage's share of one: ``"12.5"`` is an eighth."""
    return Fraction(text) / HUNDRED
