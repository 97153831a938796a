"""Requests that prove who sends them, for buses without accounts: a signature by the user's NKey, or an API key.

Header ``Token-Manager-Key`` carries an API key. A signature takes four: ``Token-Manager-User``,
``Token-Manager-Timestamp`` (ms since 1970), ``Token-Manager-Nonce`` (16 to 128 characters, never used before) and
``Token-Manager-Signature``: base64url of the Ed25519 signature over the text of ``signed_text``.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent.directory import Directory
from handlers.access.api_keys import KEY_PREFIX, hashed
from handlers.access.nkeys import decode_user_key
from schemas.errors import SignalError, unavailable
from schemas.subjects import DEFAULT_ORG
from store.api_keys import ApiKeyRow
from store.users import UserRow

KEY_HEADER: Final = "Token-Manager-Key"
USER_HEADER: Final = "Token-Manager-User"
TIMESTAMP_HEADER: Final = "Token-Manager-Timestamp"
NONCE_HEADER: Final = "Token-Manager-Nonce"
SIGNATURE_HEADER: Final = "Token-Manager-Signature"
CLOCKS_APART_S: Final = 60.0
VERSION: Final = "TOKEN-MANAGER-V1"
_OURS: Final = b"\r\nToken-Manager-"
_NAMES: Final = (KEY_HEADER, USER_HEADER, TIMESTAMP_HEADER, NONCE_HEADER, SIGNATURE_HEADER)
_NONCE: Final = re.compile(r"[A-Za-z0-9_.:-]{16,128}")
_MS: Final = re.compile(r"[0-9]{10,15}")


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that holds: by whom, and the nonce that must be new on every agent for ``keep_s`` seconds."""

    user: UserRow
    nonce: str
    keep_s: float


def signed_text(*, user: str, subject: str, timestamp_ms: int, nonce: str, payload: bytes) -> bytes:
    """What a signature is over; ``subject`` is that of the request, ``payload`` its bytes as sent."""
    digest = hashlib.sha256(payload).hexdigest()
    return f"{VERSION}\n{user}\n{subject}\n{timestamp_ms}\n{nonce}\n{digest}".encode()


def own_headers(headers: bytes | None) -> dict[str, str]:
    """Those of our headers that are there. Raises SignalError ``unauthenticated`` where one is there twice."""
    if headers is None or _OURS not in headers:
        return {}
    found: dict[str, str] = {}
    for line in headers.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        text = name.decode("ascii", "replace")
        if not colon or text not in _NAMES:
            continue
        if text in found:
            raise refused(f"the header {text} is there twice")
        found[text] = value.strip().decode("ascii", "replace")
    return found


def refused(reason: str) -> SignalError:
    """An ``unauthenticated``."""
    return SignalError("unauthenticated", reason)


class Proofs:
    """Verifies keys and signatures against the directory, and remembers the nonces this agent has seen."""

    def __init__(self, directory: Directory, *, window_s: float, nonces_max: int) -> None:
        self._directory = directory
        self._window_ms = int(window_s * 1000)
        self._nonces_max = nonces_max
        self._seen: OrderedDict[tuple[str, str], int] = OrderedDict()

    def key(self, text: str, now: datetime) -> tuple[ApiKeyRow, UserRow]:
        """The key in ``text`` and its user. Raises SignalError ``unauthenticated``; it does not say what is wrong."""
        prefix, _, rest = text.partition("_")
        key_id, _, secret = rest.partition("_")
        found = self._directory.key(DEFAULT_ORG, key_id) if prefix == KEY_PREFIX else None
        # The hash is computed in any case, so that time tells nothing of which keys there are.
        same = hmac.compare_digest(hashed(secret), found.secret_hash if found is not None else b"")
        user = None if found is None else self._directory.user(DEFAULT_ORG, found.user_name)
        if found is None or user is None or not same or not user.active or found.revoked_at is not None:
            raise refused("the API key is not known")
        if found.expires_at is not None and found.expires_at <= now:
            raise refused("the API key has expired")
        self._directory.note_used(found)
        return found, user

    def signature(self, headers: dict[str, str], *, subject: str, payload: bytes, now: datetime) -> Signed:
        """Who signed a request. Raises SignalError ``unauthenticated``, also for a nonce this agent has seen."""
        missing = [name for name in _NAMES[1:] if name not in headers]
        if missing:
            raise refused(f"a signed request has the header {missing[0]}")
        stamp, nonce = headers[TIMESTAMP_HEADER], headers[NONCE_HEADER]
        if not _MS.fullmatch(stamp) or not _NONCE.fullmatch(nonce):
            raise refused("the timestamp or the nonce is not written as it should be")
        at_ms, now_ms = int(stamp), int(now.timestamp() * 1000)
        if abs(now_ms - at_ms) > self._window_ms:
            raise refused(f"the request was not signed within {self._window_ms // 1000} s of now")
        user = self._directory.user(DEFAULT_ORG, headers[USER_HEADER])
        if user is None or not user.active or user.public_key is None or user.name != headers[USER_HEADER]:
            raise refused("the signature is not by a known user's key")
        text = signed_text(user=user.name, subject=subject, timestamp_ms=at_ms, nonce=nonce, payload=payload)
        if not _holds(user.public_key, headers[SIGNATURE_HEADER], text):
            raise refused("the signature is not by a known user's key")
        self._take((user.name, nonce), now_ms)
        return Signed(user, nonce, 2 * self._window_ms / 1000 + CLOCKS_APART_S)

    def _take(self, nonce: tuple[str, str], now_ms: int) -> None:
        """Remember a nonce for as long as its timestamp might be taken again; never forget one before."""
        while self._seen and next(iter(self._seen.values())) < now_ms:
            self._seen.popitem(last=False)
        if nonce in self._seen:
            raise refused("the request was sent before")
        if len(self._seen) >= self._nonces_max:
            raise unavailable("too many signed requests at once; try again, signed anew")
        self._seen[nonce] = now_ms + 2 * self._window_ms


def _holds(public_key: str, signature: str, text: bytes) -> bool:
    try:
        raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
        Ed25519PublicKey.from_public_bytes(decode_user_key(public_key)).verify(raw, text)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True
