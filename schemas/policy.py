"""Policies: budgets as a document that people keep under version control."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from .base import Reply, Request, Text

# Far more budgets than people write; a longer document would keep admission waiting for its transaction.
POLICIES_MAX = 500
DOCUMENT_CHARS_MAX = 262_144


class ApplyPolicies(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Make the org's budgets those of a document: YAML text in ``document``, or its entries in ``policies``.

    ``dry_run`` only shows what would change. ``prune`` deletes the budgets of earlier documents that this one no longer
    names; budgets made by hand are never touched.
    """

    document: Annotated[str, Meta(max_length=DOCUMENT_CHARS_MAX)] | None = None
    policies: Annotated[list[dict[str, Any]], Meta(max_length=POLICIES_MAX)] | None = None
    dry_run: bool = False
    prune: bool = False
    reason: Text | None = None


class PolicyError(Reply, frozen=True, kw_only=True):
    """What is wrong in a document; ``field`` is a path such as ``policies[3].limit``."""

    field: str
    message: str


class FieldChange(Reply, frozen=True, kw_only=True):
    """One key of a policy before and after, as it is written in a document; null where there was or is none."""

    before: Any
    after: Any


class PolicyChange(Reply, frozen=True, kw_only=True):
    """What a document does to one budget. ``replace``: its identity differs, so it is deleted and created anew.

    ``budget_id`` is that of the budget there was, of a new one its own once it is created.
    """

    name: str
    action: Literal["create", "update", "replace", "delete", "unchanged"]
    budget_id: str | None = None
    changes: dict[str, FieldChange] = {}


class AppliedPolicies(Reply, frozen=True, kw_only=True):
    """What a document changed, or would change; with ``errors`` it changes nothing.

    ``counts`` counts all changes by action; ``diff`` is cut where it would not fit a message, ``truncated`` says so.
    ``version`` is the number of the document applied last.
    """

    applied: bool
    version: int
    diff: list[PolicyChange]
    counts: dict[str, int] = {}
    truncated: bool = False
    errors: list[PolicyError] = []
