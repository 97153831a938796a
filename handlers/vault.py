"""What is kept secret at rest, and the surrogates that stand for user names. Everything comes from one master key.

The key is a setting, or made once in the data folder; PostgreSQL never sees it.
"""

import base64
import hashlib
import hmac
from typing import Final

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES_MIN: Final = 16
SURROGATE_PREFIX: Final = "uk_"
_SURROGATE_BYTES: Final = 16


class Vault:
    """Seals channel secrets and derives surrogates and proofs. Holds keys: never log or encode one."""

    def __init__(self, master: str) -> None:
        if len(master.encode()) < KEY_BYTES_MIN:
            raise ValueError(f"the secret key needs at least {KEY_BYTES_MIN} bytes")
        self._fernet = Fernet(base64.urlsafe_b64encode(_derived(master, "seal")))
        self._surrogates = _derived(master, "surrogate")
        self.fingerprint = hashlib.sha256(_derived(master, "fingerprint")).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Vault({self.fingerprint})"

    def seal(self, text: str) -> bytes:
        """Encrypt and authenticate ``text``."""
        return self._fernet.encrypt(text.encode())

    def unseal(self, sealed: bytes) -> str:
        """What was sealed. Raises ValueError where it was sealed with another key or was changed."""
        try:
            return self._fernet.decrypt(sealed).decode()
        except InvalidToken:
            raise ValueError("sealed with another secret key, or damaged") from None

    def surrogate(self, org: str, name: str) -> str:
        """What stands for a user's name in an org: always the same, and nobody without the key can undo it."""
        digest = hmac.digest(self._surrogates, f"{org}\x00{name}".encode(), "sha256")[:_SURROGATE_BYTES]
        return SURROGATE_PREFIX + base64.b32encode(digest).decode().rstrip("=").lower()


def _derived(master: str, purpose: str) -> bytes:
    key = HKDF(algorithm=hashes.SHA256(), length=32, salt=b"token-manager", info=purpose.encode())
    return key.derive(master.encode())
