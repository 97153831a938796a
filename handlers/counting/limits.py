"""How much a model takes and gives: its context window, and what bounds the prompt and the completion alone. Pure.

In order: what the org has set, the rate card (the window), and a bundled list of input and output limits. gpt-5 takes
272,000 tokens and gives 128,000, in a window of 400,000: three figures, none of which is the other.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

from handlers.cost.rate_card import RateCard
from handlers.cost.resolve import provider_key
from handlers.counting.models import NAMES_KEPT_MAX
from handlers.patterns import EVERY, pattern_matches
from schemas.tokens import ContextUse

BUNDLED: Final = Path(__file__).with_name("model_limits.json.gz")
# The list's name of a provider: ours.
_PROVIDERS: Final = {
    "azure_text": "azure",
    "azure_ai": "azure",
    "azure_openai": "azure",
    "azure-openai": "azure",
    "amazon_nova": "aws",
    "sagemaker": "aws",
    "amazon": "aws",
    "gemini": "google",
    "codestral": "mistral",
    "text-completion-codestral": "mistral",
    "text-completion-openai": "openai",
    "cohere_chat": "cohere",
    "xai": "x-ai",
    "grok": "x-ai",
    "together_ai": "together",
    "togetherai": "together",
    "fireworks_ai": "fireworks",
    "moonshot": "moonshotai",
    "voyage": "voyageai",
}
_PREFIXES: Final = (("bedrock", "aws"), ("vertex", "google"), ("fireworks_ai", "fireworks"))


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Tokens; None is unknown, which bounds nothing. ``source`` is whose word it is: org, bundled, or nobody's."""

    context_window: int | None = None
    max_input: int | None = None
    max_output: int | None = None
    source: str = "unknown"

    @property
    def window(self) -> int | None:
        """What a call is shown to use a part of: the window, or what is known of it."""
        return self.context_window or self.max_input

    def completion_room(self, prompt: int) -> int | None:
        """The most completion tokens that may follow such a prompt; None: not known."""
        window, most = self.context_window, self.max_output
        if window is None:
            return most
        room = window - prompt if window > prompt else 0
        return room if most is None or room < most else most

    def excess(self, prompt: int, completion: int) -> tuple[str, str] | None:
        """Code and text of the limit that a call is beyond, if any: providers refuse it."""
        both = prompt + completion
        if self.max_input is not None and prompt > self.max_input:
            text = f"{prompt} prompt tokens exceed the input limit of {self.max_input} tokens"
            beyond = self.context_window is not None and self.context_window <= self.max_input
            return ("context_window_exceeded" if beyond else "input_limit_exceeded"), text
        if self.context_window is not None and both > self.context_window:
            text = f"{both} prompt and completion tokens exceed the context window of {self.context_window} tokens"
            return "context_window_exceeded", text
        if self.max_output is not None and completion > self.max_output:
            text = f"{completion} completion tokens exceed the output limit of {self.max_output} tokens"
            return "output_limit_exceeded", text
        return None

    def use(self, prompt: int, completion: int) -> ContextUse:
        """What a call of this size takes of it."""
        used, window = prompt + completion, self.window
        return ContextUse(
            limit=window,
            used=used,
            utilisation_percent=utilisation_percent(used, window),
            would_exceed=self.excess(prompt, completion) is not None,
            input_limit=self.max_input,
            output_limit=self.max_output,
            max_completion=self.completion_room(prompt),
        )


UNKNOWN: Final = ModelLimits()


def utilisation_percent(used: int, limit: int | None) -> float | None:
    """Two decimals, rounded down; None where the limit is not known."""
    return None if not limit else used * 10_000 // limit / 100


@dataclass(frozen=True, slots=True)
class OrgLimit:
    """What an org has set for a provider and model, each a name or a pattern with ``*``; None leaves what is known."""

    provider: str
    model: str
    context_window: int | None
    max_input: int | None
    max_output: int | None


class OrgLimits:
    """An org's own limits over what is known of models."""

    def __init__(self, rows: Sequence[OrgLimit] = ()) -> None:
        self._exact = {(row.provider, row.model): row for row in rows if EVERY not in row.provider + row.model}
        patterns = [row for row in rows if EVERY in row.provider + row.model]
        # The longest pattern says most.
        self._patterns = sorted(patterns, key=lambda row: (-len(row.model), -len(row.provider), row.model))

    @classmethod
    def of_rows(cls, rows: Iterable[tuple[str, str, int | None, int | None, int | None]]) -> "OrgLimits":
        """Of provider, model, window, input and output limit."""
        return cls([OrgLimit(*row) for row in rows])

    def of(self, provider: str, model: str, card: RateCard | None) -> ModelLimits:
        """The limits of a model, whose rate card, if any, is ``card``."""
        known = bundled(provider, model) if card is None else _of_card(provider, model, card)
        if not self._exact and not self._patterns:
            return known
        found = self._find(provider_key(provider), model.strip())
        if found is None:
            return known
        window = found.context_window or known.context_window
        most = found.max_input if found.max_input is not None else known.max_input
        if found.context_window is not None and found.max_input is None:
            most = None  # What was known of another window says nothing of this one.
        output = found.max_output if found.max_output is not None else known.max_output
        return ModelLimits(window, most, output, "org")

    def _find(self, provider: str, model: str) -> OrgLimit | None:
        exact = self._exact.get((provider, model))
        if exact is not None:
            return exact
        for row in self._patterns:
            if pattern_matches(row.model, model) and pattern_matches(row.provider, provider):
                return row
        return None


NO_ORG_LIMITS: Final = OrgLimits()


def _of_card(provider: str, model: str, card: RateCard) -> ModelLimits:
    return _joined(provider, model, card.provider, card.model, card.context_window, card.max_output_tokens)


@lru_cache(maxsize=NAMES_KEPT_MAX)
def _joined(
    provider: str, model: str, card_provider: str, card_model: str, window: int | None, max_output: int | None
) -> ModelLimits:
    known = bundled(provider, model)
    if known.max_input is None and known.max_output is None:
        known = bundled(card_provider, card_model)
    output = max_output if max_output is not None else known.max_output
    source = known.source if window is None and output is None else "bundled"
    return ModelLimits(window, known.max_input, output, source)


@lru_cache(maxsize=NAMES_KEPT_MAX)
def bundled(provider: str, model: str) -> ModelLimits:
    """What the bundled list says of a model; nothing of one it does not name."""
    models = _list().get(_provider(provider_key(provider)), {})
    for name in _spellings(model.strip().lower()):
        if (found := models.get(name)) is not None:
            return ModelLimits(None, found[0], found[1], "bundled")
    return ModelLimits()


def warm() -> None:
    """Read the bundled list now: some 10 ms, once."""
    _list()


@cache
def _list() -> dict[str, dict[str, tuple[int | None, int | None]]]:
    content: dict[str, Any] = json.loads(gzip.decompress(BUNDLED.read_bytes()))
    found: dict[str, dict[str, tuple[int | None, int | None]]] = {}
    for provider, models in content["limits"].items():
        ours = found.setdefault(_provider(provider), {})
        for name, (most_in, most_out) in models.items():
            for spelling in _spellings(name.lower()):
                ours.setdefault(spelling, (most_in, most_out))
    return found


def _provider(name: str) -> str:
    for prefix, ours in _PREFIXES:
        if name.startswith(prefix):
            return ours
    return _PROVIDERS.get(name, name)


def _spellings(name: str) -> Iterator[str]:
    """A name as it is, and without the provider before it."""
    yield name
    if "/" in name:
        yield name.partition("/")[2]
