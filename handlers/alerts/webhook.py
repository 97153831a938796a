"""Webhooks: a JSON POST signed as Standard Webhooks has it. Blocking: it runs in a courier's thread.

https://github.com/standard-webhooks/standard-webhooks, read November 2026: ``webhook-id``, ``webhook-timestamp``
(seconds) and ``webhook-signature: v1,<base64 HMAC-SHA-256 of "id.timestamp.body">``; secrets are ``whsec_<base64>`` of
24 to 64 bytes.
"""

import base64
import binascii
import hmac
import ssl
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

import httpx

from handlers.alerts.content import DELIVERED, Content, Outcome
from handlers.alerts.scrub import pieces

SECRET_PREFIX: Final = "whsec_"  # noqa: S105
SECRET_BYTES: Final = range(24, 65)
# Asked to come again later, or a server that is not well: worth another attempt. Every other 4xx is a refusal.
PASSING: Final = frozenset({408, 409, 421, 423, 425, 429})


def key_of(secret: str) -> bytes:
    """The signing key in a secret. Raises ValueError saying what a secret looks like, never the secret."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or len(key) not in SECRET_BYTES:
        raise ValueError("is not 'whsec_' and the base64 of 24 to 64 bytes")
    return key


def shown_url(url: str) -> str:
    """Where a webhook leads, without what may be secret in it. Raises ValueError for what is no http URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")
        httpx.URL(url).host  # noqa: B018  Reading it decodes it.
    except (ValueError, httpx.InvalidURL):
        raise ValueError("is not an http or https URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() or c < " " for c in url):
        raise ValueError("is not an http or https URL")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}/…"


def secrets_of(url: str) -> list[str]:
    """Everything in a webhook's URL but where it leads."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    secret = (login, parts.path, parts.query, parts.fragment)
    return [*secret, *(piece for part in secret for piece in pieces(part))]


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``."""
    digest = hmac.digest(key, b".".join((message_id.encode(), str(timestamp).encode(), body)), "sha256")
    return "v1," + base64.b64encode(digest).decode()


def post(url: str, secret: str, content: Content, *, timeout_s: float) -> Outcome:
    """Send a message. Redirects are not followed, and of the answer only the status is read."""
    timestamp = int(content.sent_at.timestamp())
    headers = {
        "content-type": "application/json",
        "user-agent": "token-manager",
        "webhook-id": content.message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(key_of(secret), content.message_id, timestamp, content.body),
    }
    try:
        # The environment's proxies would hide where a name leads.
        with (
            httpx.Client(verify=_trusted(), trust_env=False, follow_redirects=False, timeout=timeout_s) as client,
            client.stream("POST", url, content=content.body, headers=headers) as response,
        ):
            return _outcome(response.status_code)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        return Outcome(False, "the URL cannot be used", final=True)
    except httpx.TimeoutException:
        return Outcome(False, "no answer in time")
    except httpx.HTTPError as error:
        return Outcome(False, f"cannot reach the receiver: {error or type(error).__name__}")


def _outcome(status: int) -> Outcome:
    if 200 <= status < 300:
        return DELIVERED
    if 300 <= status < 400:
        return Outcome(False, f"the receiver answered {status}; redirects are not followed", final=True)
    return Outcome(False, f"the receiver answered {status}", final=400 <= status < 500 and status not in PASSING)


@lru_cache(maxsize=1)
def _trusted() -> ssl.SSLContext:
    return ssl.create_default_context()
