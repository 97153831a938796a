"""Keeps what is secret out of reasons and logs. Pure."""

import re
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import unquote, unquote_plus

REASON_CHARS_MAX: Final = 400
# Shorter pieces are words, and guessed anyway.
SECRET_CHARS_MIN: Final = 4
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_SEPARATORS: Final = re.compile(r"[/:@?&=,;+]+")


def pieces(part_of_url: str) -> Iterator[str]:
    """What stands between the separators of a part of a URL, as written and as meant."""
    for piece in _SEPARATORS.split(part_of_url):
        yield from (piece, unquote(piece), unquote_plus(piece))


def scrubbed(text: str, secrets: Iterable[str]) -> str:
    """A reason in one bounded line, without any URL or secret."""
    text = _URL.sub("***", text)
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= SECRET_CHARS_MIN:
            text = text.replace(secret, "***")
    return " ".join(text.split())[:REASON_CHARS_MAX]
