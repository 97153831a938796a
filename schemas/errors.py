"""Error codes (contract) and the exception that carries one to dispatch."""

from typing import Final, Literal

from .base import Reply

ErrorCode = Literal[
    "invalid_request",
    "unauthenticated",
    "forbidden",
    "not_found",
    "conflict",
    "too_large",
    "rate_limited",
    "unpriced",
    "internal",
    "unavailable",
]

STATUS: Final[dict[str, int]] = {
    "invalid_request": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "too_large": 413,
    "rate_limited": 429,
    "unpriced": 422,
    "internal": 500,
    "unavailable": 503,
}


class Error(Reply, frozen=True, kw_only=True):
    """What went wrong. ``field`` is a path such as ``events[3].model``; texts may change, codes may not."""

    code: ErrorCode
    message: str
    field: str | None = None
    correlation_id: str | None = None


class ErrorReply(Reply, frozen=True, kw_only=True):
    """The body of every error reply; the headers carry the same code as a number."""

    error: Error


# An error quotes what a caller sent, which may be as long as a message; the reply must fit one all the same.
MESSAGE_CHARS_MAX: Final = 2000
FIELD_CHARS_MAX: Final = 512


class SignalError(Exception):
    """A refusal with a contract code. Handlers raise it; only dispatch turns it into a reply."""

    def __init__(self, code: ErrorCode, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message[:MESSAGE_CHARS_MAX]
        self.field = None if field is None else field[:FIELD_CHARS_MAX]


def invalid(message: str, *, field: str | None = None) -> SignalError:
    """An ``invalid_request`` naming the field."""
    return SignalError("invalid_request", message, field=field)


def not_found(message: str, *, field: str | None = None) -> SignalError:
    """A ``not_found`` naming the field that named it."""
    return SignalError("not_found", message, field=field)


def conflict(message: str, *, field: str | None = None) -> SignalError:
    """A ``conflict``: the same identity with other content, or a stale version."""
    return SignalError("conflict", message, field=field)


def unavailable(message: str) -> SignalError:
    """A dependency is away; the caller may retry with the same ids."""
    return SignalError("unavailable", message)
