"""NKeys of users: their text form, which is base32 of a prefix byte, an Ed25519 public key and a CRC.

Source: the NATS project's nkeys documentation (https://docs.nats.io/running-a-nats-service/nats_admin/security/nkeys).
"""

import base64
import binascii
from typing import Final

USER_PREFIX: Final = 20 << 3  # Makes the text begin with U.
TEXT_CHARS: Final = 56
KEY_BYTES: Final = 32


def decode_user_key(text: str) -> bytes:
    """The 32 bytes of a user's public key. Raises ValueError where ``text`` is not one."""
    if len(text) != TEXT_CHARS:
        raise ValueError(f"a user's NKey has {TEXT_CHARS} characters")
    try:
        raw = base64.b32decode(text)
    except binascii.Error:
        raise ValueError("is not base32") from None
    body, checksum = raw[:-2], raw[-2:]
    if body[0] != USER_PREFIX:
        raise ValueError("is not the NKey of a user, which begins with U")
    if binascii.crc_hqx(body, 0).to_bytes(2, "little") != checksum:
        raise ValueError("has a wrong checksum")
    return body[1:]


def encode_user_key(key: bytes) -> str:
    """The text of a user's public key of 32 bytes."""
    assert len(key) == KEY_BYTES
    body = bytes([USER_PREFIX]) + key
    return base64.b32encode(body + binascii.crc_hqx(body, 0).to_bytes(2, "little")).decode()


def is_user_key(text: str) -> bool:
    """Whether ``text`` is the public key of a user."""
    try:
        decode_user_key(text)
    except ValueError:
        return False
    return True
