"""Patterns of names: only ``*`` is special, and stands for any text. store.sql.like_pattern says the same in SQL."""

from typing import Final

EVERY: Final = "*"


def pattern_matches(pattern: str, text: str) -> bool:
    """Whether a filter's pattern matches: only ``*`` is special.

    Linear, unlike a regular expression: patterns come from callers.
    """
    if EVERY not in pattern:
        return pattern == text
    first, *middle, last = pattern.split(EVERY)
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
