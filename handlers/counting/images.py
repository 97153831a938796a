"""Tokens of images by the formulas providers document; without its size, an image is estimated. Pure.

Sources, read 2026-11-22: OpenAI's and Anthropic's vision guides, Google's token guide. Multipliers of OpenAI's patch
models have drifted, so those are estimates even with a size.
"""

import base64
import binascii
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_HEAD_CHARS: Final = 64 * 1024
_TILE_MODELS: Final = (
    ("gpt-4o-mini", 2833, 5667),
    ("gpt-4o", 85, 170),
    ("gpt-4.1", 85, 170),
    ("gpt-4.5", 85, 170),
    ("gpt-4", 85, 170),
    ("gpt-5", 70, 140),
    ("o1", 75, 150),
    ("o3", 75, 150),
)
_PATCH_MODELS: Final = ("gpt-5-mini", "gpt-5-nano", "gpt-4.1-mini", "gpt-4.1-nano", "o4-mini", "gpt-5.2")
_PATCHES_MAX: Final = 1_536
_USUAL: Final = (1024, 1024)
_LARGEST: Final = (768, 2048)


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """``low`` and ``high`` differ where the size, or the formula, is not known."""

    tokens: int
    low: int
    high: int


def image_tokens(family: str, model: str, size: tuple[int, int] | None, *, detail: str | None) -> ImageTokens:
    """Of one image of width x height pixels; None: the size is not known here."""
    name = model.strip().lower().rsplit("/", 1)[-1]
    if family.startswith("claude"):
        return _of(size, lambda s: _claude(s, newer=family != "claude-3"), largest=(1568, 1568))
    if family == "gemini":
        return _of(size, _gemini, largest=(3072, 3072))
    if name.startswith(_PATCH_MODELS):
        found = _of(size, _patches, largest=(2048, 2048))
        return ImageTokens(found.tokens * 162 // 100, found.low, found.high * 246 // 100)
    base, tile = next(((b, t) for mark, b, t in _TILE_MODELS if name.startswith(mark)), (85, 170))
    if detail == "low":
        return ImageTokens(base, base, base)
    found = _of(size, lambda s: base + tile * tiles(s), largest=_LARGEST)
    return found if size is not None else ImageTokens(found.tokens, base, found.high)


def tiles(size: tuple[int, int]) -> int:
    """512-pixel tiles after fitting into 2048 x 2048 and shrinking the short side to 768."""
    width, height = size
    for most, side_of in ((2048, max), (768, min)):
        side = side_of(width, height)
        if side > most:
            width, height = width * most // side or 1, height * most // side or 1
    return -(-width // 512) * -(-height // 512)


def _claude(size: tuple[int, int], *, newer: bool) -> int:
    budget = 4_784 if newer else 1_568
    return min(-(-size[0] // 28) * -(-size[1] // 28), budget)


def _gemini(size: tuple[int, int]) -> int:
    if max(size) <= 384:
        return 258
    return 258 * -(-size[0] // 768) * -(-size[1] // 768)


def _patches(size: tuple[int, int]) -> int:
    return min(-(-size[0] // 32) * -(-size[1] // 32), _PATCHES_MAX)


def _of(
    size: tuple[int, int] | None, formula: Callable[[tuple[int, int]], int], *, largest: tuple[int, int]
) -> ImageTokens:
    if size is not None:
        found = formula(size)
        return ImageTokens(found, found, found)
    return ImageTokens(formula(_USUAL), formula((1, 1)), formula(largest))


def size_in(data: str) -> tuple[int, int] | None:
    """Width and height in the head of base64 data (a PNG, GIF, WebP or JPEG), or None. Reads 64 kB at most."""
    try:
        head = base64.b64decode(data[:_HEAD_CHARS] + "=" * (-len(data[:_HEAD_CHARS]) % 4))
        return _size(head)
    except (binascii.Error, ValueError, struct.error, IndexError):
        return None


def _size(head: bytes) -> tuple[int, int] | None:
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return _real(struct.unpack(">II", head[16:24]))
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return _real(struct.unpack("<HH", head[6:10]))
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
        return _real((width, height))
    return _jpeg(head) if head[:2] == b"\xff\xd8" else None


def _jpeg(head: bytes) -> tuple[int, int] | None:
    """The first frame header; segments before it are skipped by their length."""
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", head[at + 5 : at + 9])
            return _real((width, height))
        at += 2 + max(2, length)
    return None


def _real(size: tuple[int, ...]) -> tuple[int, int] | None:
    """None for a size that no image has: what follows multiplies it."""
    width, height = size
    return (width, height) if 0 < width <= 100_000 and 0 < height <= 100_000 else None
