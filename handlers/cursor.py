"""Opaque page cursors, and pages that fit one message of the bus."""

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar, cast

import msgspec

from schemas.errors import SignalError, invalid

T = TypeVar("T")
# A nats-server takes messages of 1 MiB unless it is told otherwise; the rest is room for the envelope of the page.
PAGE_BYTES_MAX: Final = 750_000
_ENCODE: Final = msgspec.json.Encoder().encode


def encode_cursor(*position: Any) -> str:
    """Where a page ended: the sort key of its last item."""
    return base64.urlsafe_b64encode(_ENCODE(position)).decode().rstrip("=")


def decode_cursor(text: str | None, position: type[T]) -> T | None:
    """The sort key in a cursor, None for the first page. Raises SignalError naming the field ``cursor``."""
    if text is None:
        return None
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        if b"\\u0000" in data:
            raise _refused()
        found = msgspec.json.decode(data, type=position)
        for part in cast("tuple[Any, ...]", found):
            if isinstance(part, datetime):
                part.astimezone(UTC)  # Raises what PostgreSQL would: a time that UTC cannot express.
        return found
    except (binascii.Error, ValueError, OverflowError, RecursionError):
        raise _refused() from None


def page(items: Sequence[T], *, limit: int, key: Callable[[T], tuple[Any, ...]]) -> tuple[list[T], str | None]:
    """The items of one page and the cursor of the next. The caller has read one item more than ``limit``.

    A page is shorter than ``limit`` where its items would not fit one message; it holds at least one.
    """
    taken = fitting(items[:limit])
    if len(taken) == len(items):
        return taken, None
    return taken, encode_cursor(*key(taken[-1]))


def fitting(items: Sequence[T]) -> list[T]:
    """The first items, as many as fit one message; at least one."""
    size = 0
    for count, item in enumerate(items):
        size += len(_ENCODE(item)) + 1
        if count and size > PAGE_BYTES_MAX:
            return list(items[:count])
    return list(items)


def _refused() -> SignalError:
    return invalid("is not a cursor of an earlier page", field="cursor")
