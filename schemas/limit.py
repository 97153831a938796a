"""What models take and give: ``set_model_limit`` and ``list_model_limits``."""

from typing import Annotated

from msgspec import Meta

from .base import Name, Reply, Request, Text, Time

TokenLimit = Annotated[int, Meta(ge=1, le=1_000_000_000, description="Tokens.")]


class SetModelLimit(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the org says of a model, or of all that match (``*`` stands for any text); the longest pattern counts.

    What is left out is what is known of the model. Without any limit the org's own are taken away.
    """

    provider: Name
    model: Name
    context_window: TokenLimit | None = None
    max_input_tokens: TokenLimit | None = None
    max_output_tokens: TokenLimit | None = None
    reason: Text | None = None


class ModelLimit(Reply, frozen=True, kw_only=True):
    """What an org has set for a provider and model."""

    provider: str
    model: str
    context_window: int | None
    max_input_tokens: int | None
    max_output_tokens: int | None
    set_by: str
    set_at: Time


class KnownLimits(Reply, frozen=True, kw_only=True):
    """What holds for calls of a model now. ``source``: the org's word, bundled data, or nobody's."""

    provider: str
    model: str
    context_window: int | None
    max_input_tokens: int | None
    max_output_tokens: int | None
    source: str


class ModelLimitReply(Reply, frozen=True, kw_only=True):
    """``limit`` is null once it is taken away; ``changed`` is false where it was so already.

    ``holds`` is what calls of a model of this very name are bound by now.
    """

    limit: ModelLimit | None
    changed: bool
    holds: KnownLimits


class ListModelLimits(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The org's own limits by provider and model; with ``provider`` and ``model`` also what holds for that one."""

    provider: Name | None = None
    model: Name | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text | None = None


class ModelLimitList(Reply, frozen=True, kw_only=True):
    """One page of the org's own limits."""

    limits: list[ModelLimit]
    next_cursor: str | None
    holds: KnownLimits | None = None
