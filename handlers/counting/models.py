"""Which vocabulary a model counts with, and how far another one is off where its own is not public. Pure data.

Our own table, because tiktoken's raises for names it does not know and new models appear weekly. The factors are
measured ratios to o200k_base, by kind of text: English, code and JSON, or text beyond ASCII.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal

Overhead = Literal["openai", "openai-0301", "openai-gpt5", "none"]
NAMES_KEPT_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class Ratio:
    """Tokens per 100 of o200k_base: what is reserved lies between ``low`` and ``high``."""

    middle: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Family:
    """How a model's tokens are counted.

    ``encoding`` counts; where it is not the model's own, ``ascii_ratio`` and ``other_ratio`` scale what it finds.
    ``exact`` names an optional vocabulary that is the model's own. ``overhead`` is the formula for messages, proven
    where ``chat_proven``: the provider's API said the same.
    """

    name: str
    encoding: str
    own: bool = False
    ascii_ratio: Ratio = Ratio(100, 100, 100)
    other_ratio: Ratio = Ratio(100, 100, 100)
    exact: str | None = None
    overhead: Overhead = "openai"
    chat_proven: bool = False
    notes: tuple[str, ...] = ()


def _openai(name: str, encoding: str, **more: object) -> Family:
    return Family(name, encoding, own=True, chat_proven=True, **more)  # pyright: ignore[reportArgumentType]


_GPT4O: Final = _openai("gpt-4o", "o200k_base")
_GPT4: Final = _openai("gpt-4", "cl100k_base")
_GPT35_0301: Final = _openai("gpt-3.5-0301", "cl100k_base", overhead="openai-0301")
# Priming is one token less than published for gpt-4o: seen in every recorded answer of the API, documented nowhere.
_GPT5: Final = Family("gpt-5", "o200k_base", own=True, overhead="openai-gpt5")
_REASONING: Final = Family("o-series", "o200k_base", own=True)
_EMBEDDING: Final = Family("embedding", "cl100k_base", own=True, overhead="none")
_NEWER: Final = Family(
    "openai-unknown", "o200k_base", ascii_ratio=Ratio(100, 97, 120), other_ratio=Ratio(100, 81, 120),
    notes=("unknown_model_encoding",),
)  # fmt: skip
# Measured for p50k_base against cl100k_base.
_OLDER: Final = Family(
    "openai-before-cl100k", "cl100k_base", ascii_ratio=Ratio(115, 97, 136), other_ratio=Ratio(147, 117, 205),
    overhead="none", notes=("vocabulary_not_carried",),
)  # fmt: skip
_CLAUDE_3: Final = Family(
    "claude-3", "o200k_base", ascii_ratio=Ratio(125, 107, 128), other_ratio=Ratio(146, 122, 193), exact="ctok-v3"
)
_CLAUDE_47: Final = Family(
    "claude-4.7", "o200k_base", ascii_ratio=Ratio(155, 146, 177), other_ratio=Ratio(155, 122, 204), exact="ctok-v4.7"
)
_CLAUDE_48: Final = replace(_CLAUDE_47, name="claude-4.8", exact="ctok-v4.8")
_GEMINI: Final = Family("gemini", "o200k_base", ascii_ratio=Ratio(115, 100, 137), other_ratio=Ratio(108, 81, 108))
_DEEPSEEK: Final = Family(
    "deepseek", "o200k_base", ascii_ratio=Ratio(108, 100, 113), other_ratio=Ratio(114, 96, 138), exact="deepseek"
)
_MISTRAL: Final = Family("mistral", "o200k_base", ascii_ratio=Ratio(106, 103, 113), other_ratio=Ratio(106, 103, 113))
_TEKKEN: Final = replace(_MISTRAL, name="mistral-tekken", exact="tekken")
_QWEN: Final = Family(
    "qwen", "o200k_base", ascii_ratio=Ratio(105, 99, 108), other_ratio=Ratio(137, 99, 137), exact="qwen"
)
_QWEN_35: Final = replace(_QWEN, name="qwen-3.5", exact="qwen3.5")
_LLAMA: Final = Family("llama", "o200k_base", ascii_ratio=Ratio(100, 99, 103), other_ratio=Ratio(111, 96, 248))
_UNKNOWN: Final = Family(
    "unknown", "o200k_base", ascii_ratio=Ratio(120, 97, 177), other_ratio=Ratio(120, 81, 248),
    notes=("model_not_in_table",),
)  # fmt: skip

# The first that matches a lower-case name without its vendor decides. Newest first where one name begins another.
_TABLE: Final[tuple[tuple[re.Pattern[str], Family], ...]] = tuple(
    (re.compile(pattern), family)
    for pattern, family in (
        (r"text-embedding-(ada-002|3-)", _EMBEDDING),
        (r"gpt-3\.?5-turbo-0301", _GPT35_0301),
        (r"gpt-(4o|4\.1|4\.5)|chatgpt-4o", _GPT4O),
        (r"gpt-5(?![0-9])", _GPT5),
        (r"o1(?![0-9])|o3(?![0-9])|o4-mini|gpt-oss", _REASONING),
        (r"gpt-4(?![0-9.])|gpt-3\.?5", _GPT4),
        (r"davinci|curie|babbage|ada|text-(davinci|curie|babbage|ada)|code-|gpt-?2|gpt-3$", _OLDER),
        (r"gpt-|o[0-9]|chatgpt|codex|computer-use", _NEWER),
        (r"mistral-(nemo|small-3|small-2[45]|large-2411)|open-mistral-nemo|ministral|pixtral", _TEKKEN),
        (r"(open-)?(mistral|mixtral|codestral|magistral|devstral)", _MISTRAL),
        (r"gemini|gemma|learnlm", _GEMINI),
        (r"deepseek-r1-distill-(llama|qwen)", _LLAMA),
        (r"deepseek", _DEEPSEEK),
        (r"qwen-?3\.[56]", _QWEN_35),
        (r"qwen|qwq|qvq", _QWEN),
        (r"(meta-)?llama|hermes|nous", _LLAMA),
    )
)
_CLAUDE_MARK: Final = re.compile(r"(?:^|[./])claude[-.]?(.*)", re.DOTALL)
_NUMBER: Final = re.compile(r"(?<![0-9])([0-9]{1,2})(?:[-.]([0-9]{1,2}))?(?![0-9])")
_OPENAI_VENDORS: Final = ("openai", "azure")


@lru_cache(maxsize=NAMES_KEPT_MAX)
def family_of(provider: str | None, model: str) -> Family:
    """How tokens of a model are counted; unknown names are an estimate that says so. Any spelling is fine."""
    name = model.strip().lower()
    if (claude := _CLAUDE_MARK.search(name)) is not None:
        return _claude(claude[1])
    for spelling in (name.removeprefix("ft:"), name.rsplit("/", 1)[-1].removeprefix("ft:"), _resold(name)):
        for pattern, family in _TABLE:
            if pattern.match(spelling):
                return family
    vendor = (provider or "").strip().lower()
    return _NEWER if vendor.startswith(_OPENAI_VENDORS) else _UNKNOWN


def _resold(name: str) -> str:
    """What stands after the vendor in names like ``us.meta.llama3-1-70b`` and ``mistral.mistral-large``."""
    parts = name.rsplit("/", 1)[-1].split(".")
    known = (i for i, part in enumerate(parts) if part in ("meta", "mistral", "deepseek", "openai", "qwen", "google"))
    first = next(known, None)
    return name if first is None else ".".join(parts[first + 1 :])


def _claude(rest: str) -> Family:
    """By version, which stands before or after the name: 4.7 changed the vocabulary, 4.8 the frame."""
    found = _NUMBER.search(rest)
    if found is None:
        return replace(_CLAUDE_48, notes=("claude_version_unknown",))
    version = (int(found[1]), int(found[2] or 0))
    if version >= (4, 8):
        return _CLAUDE_48
    return _CLAUDE_47 if version >= (4, 7) else _CLAUDE_3
