"""User names: they stand behind surrogates, and can be deleted for good."""

from typing import Annotated

from msgspec import Meta

from .base import Name, Reply, Request, Time

Reason = Annotated[str, Meta(min_length=1, max_length=2000, description="Why; kept in the audit trail. Name nobody.")]


class AnonymizeUser(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Delete the name behind a user's surrogate. ``user_id`` is the name, or the surrogate itself."""

    user_id: Name
    reason: Reason


class AnonymizedUser(Reply, frozen=True, kw_only=True):
    """What is left: the surrogate. ``dead_letters`` are messages kept aside in which the name was replaced by it."""

    user_key: str
    anonymized_at: Time
    dead_letters: int
