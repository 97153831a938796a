"""Text that a spreadsheet shows instead of running it."""

from typing import Final

# The last four are the full-width ones, which some take for the same.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def safe_text(text: str) -> str:
    """Free text with an apostrophe before what a spreadsheet would take for a formula; other text as it is."""
    return f"'{text}" if text.startswith(_FORMULA) else text
