"""Token counting and what models take."""

from typing import Any

from schemas import limit, tokens
from signals import Event, Request

COUNT_TOKENS = Request(
    name="count_tokens",
    request=tokens.CountTokens,
    reply=tokens.CountedTokens,
    roles=("provider",),
    group="tracking",
    purpose="How many tokens text, a chat or tools have for a model, how sure that is, and the context they take",
)
SET_MODEL_LIMIT = Request(
    name="set_model_limit",
    request=limit.SetModelLimit,
    reply=limit.ModelLimitReply,
    roles=("admin",),
    group="management",
    purpose="Say what a model takes and gives: context window, input and output limit",
)
LIST_MODEL_LIMITS = Request(
    name="list_model_limits",
    request=limit.ListModelLimits,
    reply=limit.ModelLimitList,
    roles=("viewer",),
    group="management",
    purpose="The org's own limits of models, and what holds for one",
)

SIGNALS = (COUNT_TOKENS, SET_MODEL_LIMIT, LIST_MODEL_LIMITS)
EVENTS: tuple[Event[Any], ...] = ()
