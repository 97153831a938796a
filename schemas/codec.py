"""Bytes to structs, with errors that name the field. The one place where requests are validated."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import Any, Final, Generic, TypeVar, get_args

import msgspec

from .base import CloudEvent
from .errors import SignalError, invalid

T = TypeVar("T")

_AT: Final = re.compile(r" - at `(?:key` in `)?(.+)`$")
_UNKNOWN: Final = re.compile(r"unknown field `(.+?)`", re.DOTALL)
_MISSING: Final = re.compile(r"missing required field `(.+?)`")
_BYTE: Final = re.compile(r"\(byte (\d+)\)")
_KEY: Final = re.compile(rb'"([A-Za-z0-9_]{1,64})"\s*:')
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_ENVELOPE: Final = msgspec.json.Decoder(CloudEvent)
NAME_CHARS_MAX: Final = 64
_SPEC_VERSIONS: Final = ("1.0", "1.0.2")


class Codec(Generic[T]):
    """Decodes one request type from JSON, or from a CloudEvent whose ``data`` is that JSON."""

    def __init__(self, request: type[T]) -> None:
        self._type = request
        self._decoder = msgspec.json.Decoder(request)

    def decode(self, data: bytes | msgspec.Raw) -> T:
        """The request in ``data``. Raises SignalError ``invalid_request`` with the field's path."""
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as error:
            raise _explain(self._type, str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _unreadable(bytes(data), error) from None


def unwrap(data: bytes) -> tuple[bytes, CloudEvent | None]:
    """The request bytes, and the CloudEvents envelope around them if there is one.

    Raises SignalError ``invalid_request`` for an empty body, a NUL character, or an envelope without ``data``.
    """
    if not data or data.isspace():
        return b"{}", None
    if b"\\u0000" in data and (found := _NUL.search(data)):
        raise invalid("contains a NUL character", field=_last_key(data[: found.start()]))
    if b'"specversion"' not in data:
        return data, None
    try:
        keys = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return data, None  # Not an object: decoding it as a request says so.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(data, error) from None
    if "specversion" not in keys:
        return data, None
    return _open_envelope(data)


def _open_envelope(data: bytes) -> tuple[bytes, CloudEvent]:
    try:
        envelope = _ENVELOPE.decode(data)
    except msgspec.ValidationError as error:
        raise _explain(CloudEvent, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(data, error) from None
    if envelope.specversion not in _SPEC_VERSIONS:
        raise invalid(f"is not one of {', '.join(_SPEC_VERSIONS)}", field="specversion")
    if envelope.data is msgspec.UNSET or bytes(envelope.data) == b"null":
        raise invalid("a CloudEvent around a request carries it as JSON in 'data'", field="data")
    return bytes(envelope.data), envelope


def prefixed(error: SignalError, prefix: str) -> SignalError:
    """The same error with its field below ``prefix`` (an item of a batch)."""
    field = prefix if error.field is None else f"{prefix}.{error.field}"
    return SignalError(error.code, error.message, field=field)


def _explain(request: type[Any], text: str) -> SignalError:
    at = _AT.search(text)
    path = at[1].removeprefix("$").removeprefix(".") if at else ""
    message = text[: at.start()] if at else text
    if named := _UNKNOWN.search(message) or _MISSING.search(message):
        name = named[1]
        field = f"{path}.{name}" if path else name
        if "unknown" in message:
            if told := getattr(request, "NOT_FIELDS", {}).get(name):
                return invalid(told, field=field)
            near = _nearest(request, name)
            hint = f"; did you mean `{near}`?" if near else ""
            return invalid(f"unknown field `{name[:NAME_CHARS_MAX]}`{hint}", field=field)
        return invalid("is required", field=field)
    return invalid(message, field=path or None)


def _unreadable(data: bytes, error: Exception) -> SignalError:
    """Why these bytes are not JSON that can be read."""
    if isinstance(error, RecursionError):
        return invalid("is nested too deeply", field=_last_key(data[:4096]))
    if isinstance(error, UnicodeDecodeError):
        return invalid("is not valid UTF-8")
    return _malformed(data, str(error))


def _malformed(data: bytes, text: str) -> SignalError:
    position = _BYTE.search(text)
    return invalid(text, field=_last_key(data[: int(position[1])]) if position else None)


def _last_key(data: bytes) -> str | None:
    keys = _KEY.findall(data[-4096:])
    return keys[-1].decode() if keys else None


@lru_cache(maxsize=1024)
def _nearest(request: type[Any], name: str) -> str | None:
    """The known field a name was probably meant to be. Bounded: a batch may misspell a thousand of them."""
    if len(name) > NAME_CHARS_MAX:
        return None
    near = get_close_matches(name, _names(request), n=1, cutoff=0.5)
    return near[0] if near else None


@cache
def _names(request: type[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_walk(request)))


def _walk(kind: Any) -> Iterator[str]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for field in msgspec.structs.fields(kind):
            yield field.encode_name
            yield from _walk(field.type)
    else:
        for part in get_args(kind):
            yield from _walk(part)
