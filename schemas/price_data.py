"""Public list prices from a file or a mirror: what a refresh finds, and when it needs somebody's approval."""

from typing import Annotated, Literal

from msgspec import Meta

from .base import Reply, Request, Text, Time

Digest = Annotated[str, Meta(max_length=64, pattern="^[0-9a-f]{64}$", description="SHA-256 of a price file, in hex.")]


class RefreshPrices(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read the operator's price file or mirror and show what differs; ``apply``: use it from now on.

    A file that is older, moves a used price far or lacks a used model is applied only with ``approve`` and its digest.
    """

    source: Annotated[
        Literal["configured", "bundled"], Meta(description="bundled: what came with the agent, no file.")
    ] = "configured"
    apply: bool = False
    approve: Digest | None = None
    reason: Text | None = None


Suspicion = Annotated[
    Literal["older_than_bundled", "older_than_in_use", "price_moved", "price_gone", "model_gone"],
    Meta(description="Why a snapshot needs approval."),
]


class SuspiciousPrice(Reply, frozen=True, kw_only=True):
    """Why a snapshot needs approval; of an older one only the ``why`` is told."""

    why: Suspicion
    provider: str | None = None
    model: str | None = None
    key: str | None = None
    since: Time | None = None
    before: str | None = None
    after: str | None = None


class PriceDifference(Reply, frozen=True, kw_only=True):
    """A public list price that differs, ``key`` as the data names it, e.g. ``input_mtok``: per million tokens."""

    provider: str
    model: str
    key: str
    since: Time
    before: str | None
    after: str | None


class SnapshotInfo(Reply, frozen=True, kw_only=True):
    """A price file. ``stated_until`` is the newest past date it states: it is not older than that."""

    digest: str | None
    source: str
    models: int
    stated_until: str | None
    applied_at: Time | None = None
    applied_by: str | None = None


class PriceRefresh(Reply, frozen=True, kw_only=True):
    """What a refresh found and, where ``applied``, uses. Lists are cut; ``counts`` says how long they are."""

    applied: bool
    unchanged: bool
    in_use: SnapshotInfo
    found: SnapshotInfo
    suspicious: list[SuspiciousPrice]
    changes: list[PriceDifference]
    new_models: list[str]
    vanished_models: list[str]
    counts: dict[str, int]
    revision: int
