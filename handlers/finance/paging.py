"""Pages whose items are numbered, beside a part that is on every page."""

from collections.abc import Iterable
from typing import Final, TypeVar

import msgspec

from handlers.cursor import PAGE_BYTES_MAX, encode_cursor

T = TypeVar("T")
_ENCODE: Final = msgspec.json.Encoder().encode


def fitting_beside(rest: object, items: Iterable[T]) -> list[T]:
    """The first items, as many as fit one message beside ``rest``; at least one, if there is any.

    No more items are made than one that no longer fits.
    """
    size = len(_ENCODE(rest))
    found: list[T] = []
    for item in items:
        size += len(_ENCODE(item)) + 1
        if found and size > PAGE_BYTES_MAX:
            break
        found.append(item)
    return found


def next_page(shown: int, count: int) -> str | None:
    """The cursor after the first ``shown`` of ``count`` items; None: these were the last."""
    return encode_cursor(shown) if shown < count else None
