"""Token counts: ``count_tokens``, and the texts that other requests may carry in the place of counts."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .base import Name, Reply, Request, Tokens

Method = Literal["reported", "counted", "estimated"]
# A text that is decoded by whoever counts it, away from the agent's loop; ``Texts`` says what it must be.
RawText = msgspec.Raw | msgspec.UnsetType


class Texts(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is counted. Requests hold each of these as raw JSON, so that a large one delays nobody else."""

    text: Annotated[str, Meta(description="Plain text.")] | None = None
    texts: Annotated[list[str], Meta(description="Several texts, as embeddings take them.")] | None = None
    prompt: Annotated[str, Meta(description="The prompt as plain text.")] | None = None
    messages: Annotated[list[dict[str, Any]], Meta(description="A chat, as the provider's API takes it.")] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(description="Tools or functions, as the API takes them.")] | None = None
    tool_choice: Annotated[str | dict[str, Any], Meta(description="As the API takes it.")] | None = None
    completion: Annotated[str, Meta(description="The answer as plain text.")] | None = None


class TokenCount(Reply, frozen=True, kw_only=True, omit_defaults=True):
    """A count and how sure it is. What is reserved is ``high``; what a provider reports replaces it.

    ``counted`` used the model's own vocabulary; ``exact`` is true only where that says it all: plain text.
    """

    tokens: int
    method: Method
    exact: bool
    tokenizer: str
    tokenizer_version: str
    low: int
    high: int
    components: dict[str, int] = {}
    notes: list[str] = []


class ContextUse(Reply, frozen=True, kw_only=True):
    """How much of a model's context window a call takes. What is not known of a model is null.

    ``used`` is the prompt and what is asked for as completion; ``input_limit`` and ``output_limit`` bound each alone.
    """

    limit: int | None
    used: int
    utilisation_percent: float | None
    would_exceed: bool
    input_limit: int | None = None
    output_limit: int | None = None
    max_completion: int | None = None


class CountTokens(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Count ``text``, ``texts``, ``prompt``, ``messages`` or ``tools`` (at least one) for a model."""

    provider: Name
    model: Name
    text: RawText = msgspec.UNSET
    texts: RawText = msgspec.UNSET
    prompt: RawText = msgspec.UNSET
    messages: RawText = msgspec.UNSET
    tools: RawText = msgspec.UNSET
    tool_choice: RawText = msgspec.UNSET
    max_completion_tokens: Tokens | None = None


class CountedTokens(TokenCount, frozen=True, kw_only=True):
    """The count, and the model's context with it."""

    provider: str
    model: str
    context: ContextUse
