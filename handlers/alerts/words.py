"""Amounts and times as people read them in a message. Pure."""

from datetime import datetime
from typing import Final

from handlers.enforcer.calendar import zone

_DECIMALS: Final = 2


def amount_words(text: str, unit: str, currency: str | None) -> str:
    """``1,234.50 USD`` or ``12,000 tokens`` of a decimal string; what is no number is repeated as it is."""
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    whole, _, decimals = digits.partition(".")
    if not whole.isdecimal() or (decimals and not decimals.isdecimal()):
        return text
    shown = f"{sign}{int(whole):,}"
    if unit != "cost":
        return f"{shown} {unit}"
    if int(whole) or not decimals:
        decimals = decimals[:_DECIMALS]
    else:  # Of small amounts the first figures count.
        zeros = len(decimals) - len(decimals.lstrip("0"))
        decimals = decimals[: max(_DECIMALS, zeros + 2)]
    return f"{shown}.{decimals.ljust(_DECIMALS, '0')} {currency or 'USD'}"


def day_words(at: datetime, timezone: str) -> str:
    """``on Thu 19 Nov, 14:30`` in a zone."""
    local = at.astimezone(zone(timezone))
    return f"on {local:%a} {local.day} {local:%b}, {local:%H:%M}"


def time_words(at: datetime, timezone: str) -> str:
    """``Thu 19 Nov 2026, 14:30 CET``."""
    local = at.astimezone(zone(timezone))
    return f"{local:%a} {local.day} {local:%b %Y, %H:%M} {local.tzname()}"
