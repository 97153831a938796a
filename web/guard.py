"""Keeps web pages of other sites away from a service on the loopback interface.

A browser can be made to send requests here: by a name that resolves to 127.0.0.1 (DNS rebinding) or by a form on any
page. Both are told by headers a page cannot forge: Host, Origin and Content-Type.
"""

from urllib.parse import urlsplit

from litestar.connection import Request
from litestar.datastructures import State
from litestar.exceptions import ClientException, PermissionDeniedException

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
JSON_TYPES = frozenset({"", "application/json"})
CHANGING_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class UnsupportedMediaType(ClientException):
    """The body is announced as something other than JSON."""

    status_code = 415


def check_origin(request: Request[object, object, State], *, hosts: frozenset[str]) -> None:
    """Refuse a request that a foreign page may have sent: an unknown Host, a foreign Origin, a form's body type.

    `hosts` are the accepted host names besides loopback, without ports. A missing Content-Type passes: a page cannot
    leave it out of a request that has a body.
    """
    host = request.headers.get("host", "")
    if _name(host) not in LOOPBACK_HOSTS | hosts:
        raise PermissionDeniedException(f"the host name {host!r} is not served here")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise PermissionDeniedException(f"requests from pages of {origin!r} are not accepted")
    if request.method in CHANGING_METHODS:
        _check_content_type(request.headers.get("content-type", ""))


def _check_content_type(value: str) -> None:
    if value.partition(";")[0].strip().lower() not in JSON_TYPES:
        raise UnsupportedMediaType(f"send application/json, not {value!r}")


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
