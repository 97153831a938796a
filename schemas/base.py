"""Base structs, bounded scalar types and the attribution every message shares."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

# A thousand times the largest context there is; sums over years still fit a bigint.
TOKENS_MAX = 1_000_000_000
ID_CHARS_MAX = 256

Tokens = Annotated[int, Meta(ge=0, le=TOKENS_MAX, description="A count of tokens; inclusive totals contain subsets.")]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000, description="A count.")]
Name = Annotated[str, Meta(min_length=1, max_length=ID_CHARS_MAX, description="A name or identifier.")]
Text = Annotated[str, Meta(max_length=2048, description="Free text.")]
Amount = Annotated[str, Meta(min_length=1, max_length=40, description="A decimal string, e.g. '12.5'.")]
Currency = Annotated[str, Meta(pattern="^[A-Z]{3}$", description="An ISO 4217 code.")]
Time = Annotated[datetime, Meta(tz=True, description="RFC 3339 with an offset; replies are UTC.")]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every request: unknown fields are refused."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Base of replies and events: they may gain fields."""

    @property
    def verbatim(self) -> bool:
        """Whether it reaches the caller as it is stored: with surrogates in the place of user names."""
        return False


class Attribution(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who and what a call was for. The org is not here: it comes from the subject, never from a payload."""

    user_id: Name | None = None
    team_id: Name | None = None
    project_id: Name | None = None
    feature: Name | None = None
    agent_id: Name | None = None
    session_id: Name | None = None
    task_id: Name | None = None
    environment: Name | None = None
    cost_center: Name | None = None
    tags: dict[Name, Annotated[str, Meta(max_length=ID_CHARS_MAX)]] | None = None


ATTRIBUTION_FIELDS = (
    "user_id",
    "team_id",
    "project_id",
    "feature",
    "agent_id",
    "session_id",
    "task_id",
    "environment",
    "cost_center",
)


class CloudEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A CloudEvents 1.0 structured envelope (also specversion ``1.0.2`` as Jido writes it); extensions are ignored."""

    specversion: str
    id: Name
    source: Name
    type: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    data_base64: str | msgspec.UnsetType = msgspec.UNSET
    time: Time | None = None
    subject: str | None = None


def to_builtins(value: object) -> Any:
    """Plain JSON-ready objects of a struct."""
    return msgspec.to_builtins(value)
