"""``refresh_prices``: public list prices from the operator's file or mirror, compared before anybody pays by them.

What is older than what is in use, moves a used price far, or no longer prices a used model, takes somebody's approval
of exactly that file (its digest). Prices that were in use are kept, so that every cost can be computed again.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from handlers.context import Caller, Context, Services
from handlers.cost.resolve import provider_key
from handlers.cost.snapshot import BadPriceFile, Snapshot, is_older, pack, read, stated_until
from handlers.enforcer.transaction import catalogue_change
from handlers.pricing.differences import Difference, Moved, Names, RateChange, difference, moved
from handlers.pricing.snapshots import OLDER_THAN_BUNDLED, Held
from handlers.pricing.told import announce, record
from schemas.errors import SignalError, conflict, invalid
from schemas.money import format_cost
from schemas.price_data import (
    PriceDifference,
    PriceRefresh,
    RefreshPrices,
    SnapshotInfo,
    SuspiciousPrice,
)
from schemas.pricing import PricingChanged
from signals import pricing as signals
from signals import route
from store import budgets as budget_store
from store import price_snapshots as snapshot_store
from store import prices as price_store
from store.pool import Connection
from store.price_snapshots import SnapshotUse

ENTITY: Final = "price_snapshot"
ACTOR: Final = "policy:prices"
OLDER_THAN_IN_USE: Final = "older_than_in_use"
BUNDLED: Final = "bundled with the agent"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """List prices that may be used. ``content`` None: what is bundled, which is not stored."""

    held: Held
    source: str
    content: bytes | None


@dataclass(frozen=True)
class Found:
    """What a candidate means for one org."""

    candidate: Candidate
    current: Held
    row: SnapshotUse | None
    older: tuple[str, ...]
    moves: Sequence[Moved]
    difference: Difference
    at: datetime

    @property
    def unchanged(self) -> bool:
        """Whether it is what the org uses already."""
        return self.candidate.held is self.current

    @property
    def reasons(self) -> list[str]:
        """Every kind of suspicion there is, once."""
        return list(dict.fromkeys((*self.older, *(move.why for move in self.moves))))


async def refresh_prices(ctx: Context, request: RefreshPrices) -> PriceRefresh:
    """Compare and, with ``apply``, use. Raises SignalError ``conflict`` where refreshing is off or approval is needed.

    ``unavailable`` where the file or mirror cannot be read, ``invalid_request`` where it holds no prices.
    """
    if request.approve is not None and not request.apply:
        raise invalid("is of apply: look first, then apply with the digest you were shown", field="approve")
    candidate = await candidate_of(ctx.services, request.source)
    found = await compare(ctx, candidate)
    if not request.apply or found.unchanged:
        return _shown(ctx, found, applied=False, revision=await _revision(ctx))
    digest = candidate.held.snapshot.digest
    if request.approve is not None and request.approve != digest:
        raise conflict(f"is not the digest of what was found, {digest}: look again", field="approve")
    if found.reasons and request.approve is None:
        raise conflict(_needs_approval(found), field="approve")
    revision = await apply(ctx, found, request.reason)
    return _shown(ctx, found, applied=True, revision=revision)


async def candidate_of(services: Services, source: str) -> Candidate:
    """The list prices that are bundled, or those of the operator's file or mirror, read and checked."""
    if source == "bundled":
        return Candidate(await services.snapshots.bundled(), BUNDLED, None)
    content = await services.price_source.fetch()
    shown = services.price_source.shown
    try:
        snapshot = await asyncio.to_thread(read, content)
    except BadPriceFile as error:
        raise SignalError("invalid_request", f"{shown} {error}", field="source") from None
    return Candidate(await services.snapshots.hold(snapshot), shown, content)


async def compare(ctx: Context, candidate: Candidate) -> Found:
    """What a candidate would change for the org, and what of that is suspicious."""
    limits = ctx.services.limits
    async with ctx.database.connection() as connection:
        at = await budget_store.clock(connection)
        current, row = await ctx.services.snapshots.in_use(connection, ctx.org)
        since = at - timedelta(days=limits.price_used_days)
        used = await snapshot_store.used_models(connection, ctx.org, since=since, limit=limits.price_used_models_max)
    bundled = await ctx.services.snapshots.bundled()
    names = sorted({ctx.services.prices(ctx.org).target(provider, model, at) for provider, model in used})
    return await asyncio.to_thread(
        _compare, candidate, current, row, bundled.snapshot, names, at, limits.price_move_percent_max
    )


async def apply(ctx: Context, found: Found, reason: str | None) -> int:
    """Use what was compared; returns the revision of the org's prices. Raises ``conflict`` where they changed since."""
    candidate = found.candidate
    snapshot = candidate.held.snapshot
    data = None if candidate.content is None else await asyncio.to_thread(pack, candidate.content)

    async def work(connection: Connection) -> int:
        now = await budget_store.clock(connection)
        present = await snapshot_store.in_use(connection, ctx.org)
        before = 0 if present is None else present.sequence
        if before != (0 if found.row is None else found.row.sequence):
            raise conflict("other list prices came into use meanwhile: look again", field="apply")
        if data is not None:
            await snapshot_store.keep(
                connection,
                ctx.org,
                digest=snapshot.digest,
                source=candidate.source,
                stated_until=stated_until(snapshot, now.date()),
                models=snapshot.models,
                stored_at=now,
                data=data,
            )
        used = SnapshotUse(
            sequence=before + 1,
            digest=None if data is None else snapshot.digest,
            approved=found.reasons,
            applied_at=now,
            applied_by=ctx.caller.actor,
        )
        await snapshot_store.use(connection, ctx.org, used, reason=reason)
        revision = await price_store.add_rules(connection, ctx.org, [])
        await _tell(ctx, connection, found, used, revision, reason)
        return revision

    return await catalogue_change(ctx, work)


async def refresh_every_org(services: Services, orgs: Sequence[str]) -> str:
    """What the schedule does: every org uses the operator's file, unless it is suspicious for that org."""
    candidate = await candidate_of(services, "configured")
    counts: dict[str, int] = {"applied": 0, "unchanged": 0, "suspicious": 0, "refused": 0}
    for org in orgs:
        counts[await _refreshed(services, org, candidate)] += 1
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    return f"{candidate.held.snapshot.digest[:12]} from {candidate.source}: {told}"


async def _refreshed(services: Services, org: str, candidate: Candidate) -> str:
    """One org's part of a scheduled refresh; what becomes of it."""
    await services.catalogue(org)
    ctx = Context(services, Caller(org, ACTOR, frozenset({"admin"})))
    found = await compare(ctx, candidate)
    if found.unchanged:
        return "unchanged"
    if found.reasons:
        _log.warning("org %s keeps its list prices: %s", org, _needs_approval(found))
        return "suspicious"
    try:
        await apply(ctx, found, "scheduled refresh")
    except SignalError as error:  # Somebody changed prices meanwhile, or the ledger is busy: the next time.
        _log.warning("org %s keeps its list prices: %s", org, error.message)
        return "refused"
    return "applied"


def _compare(
    candidate: Candidate,
    current: Held,
    row: SnapshotUse | None,
    bundled: Snapshot,
    names: Sequence[Names],
    at: datetime,
    percent: int,
) -> Found:
    """In a thread: two whole files take some 100 ms."""
    new, old, today = candidate.held.snapshot, current.snapshot, at.date()
    if candidate.held is current:
        return Found(candidate, current, row, (), (), Difference(), at)
    older = [OLDER_THAN_BUNDLED] if new is not bundled and is_older(new, bundled, today) else []
    if old is not bundled and is_older(new, old, today):
        older.append(OLDER_THAN_IN_USE)
    used = [(provider_key(provider), model.strip()) for provider, model in names]
    moves = list(moved(used, current.prices.find, candidate.held.prices.find, at=at, percent=percent))
    return Found(candidate, current, row, tuple(older), moves, difference(old, new, at), at)


async def _tell(
    ctx: Context, connection: Connection, found: Found, used: SnapshotUse, revision: int, reason: str | None
) -> None:
    before, after = _in_use(found), _info(found.candidate.held, found.candidate.source, found.at, used)
    told = PricingChanged(
        actor=ctx.caller.actor,
        entity=ENTITY,
        entity_id=found.candidate.held.snapshot.digest,
        action="created" if found.row is None else "updated",
        before=before,
        after={"snapshot": after, "approved": found.reasons, "counts": _counts(found)},
        revision=revision,
        reason=reason,
    )
    await announce(ctx, connection, [told])
    await record(ctx, connection, told)


async def _revision(ctx: Context) -> int:
    async with ctx.database.connection() as connection:
        return await price_store.revision(connection, ctx.org)


def _needs_approval(found: Found) -> str:
    first = found.older[0] if found.older else _move_text(found.moves[0])
    count = len(found.older) + len(found.moves)
    digest = found.candidate.held.snapshot.digest
    return f"{count} suspicious, first of all {first}: look with apply false, then repeat the digest {digest}"


def _move_text(move: Moved) -> str:
    if move.change is None:
        return f"{move.why} {move.provider}/{move.model}"
    change = move.change
    return f"{move.why} {move.provider}/{move.model} {change.key} {_rate(change.before)} -> {_rate(change.after)}"


def _shown(ctx: Context, found: Found, *, applied: bool, revision: int) -> PriceRefresh:
    most = ctx.services.limits.price_changes_shown_max
    suspicious = [SuspiciousPrice(why=why) for why in found.older]  # pyright: ignore[reportArgumentType]
    suspicious += [_suspicious(move) for move in found.moves]
    candidate = _info(found.candidate.held, found.candidate.source, found.at, None)
    return PriceRefresh(
        applied=applied,
        unchanged=found.unchanged,
        in_use=candidate if applied else _in_use(found),
        found=candidate,
        suspicious=suspicious[:most],
        changes=[_difference(change) for change in found.difference.changes[:most]],
        new_models=["/".join(names) for names in found.difference.gained[:most]],
        vanished_models=["/".join(names) for names in found.difference.lost[:most]],
        counts=_counts(found),
        revision=revision,
    )


def _counts(found: Found) -> dict[str, int]:
    return {
        "suspicious": len(found.older) + len(found.moves),
        "changes": len(found.difference.changes),
        "new_models": len(found.difference.gained),
        "vanished_models": len(found.difference.lost),
    }


def _in_use(found: Found) -> SnapshotInfo:
    row = found.row
    if row is None or row.digest != found.current.snapshot.digest:
        return _info(found.current, BUNDLED, found.at, row if row is not None and row.digest is None else None)
    return _info(found.current, row.source or "", found.at, row)


def _info(held: Held, source: str, at: datetime, row: SnapshotUse | None) -> SnapshotInfo:
    until = stated_until(held.snapshot, at.date())
    return SnapshotInfo(
        digest=held.snapshot.digest,
        source=source,
        models=held.snapshot.models,
        stated_until=None if until is None else until.isoformat(),
        applied_at=None if row is None else row.applied_at,
        applied_by=None if row is None else row.applied_by,
    )


def _suspicious(move: Moved) -> SuspiciousPrice:
    told: dict[str, Any] = {}
    if move.change is not None:
        told = {
            "key": move.change.key,
            "since": move.change.since,
            "before": _rate(move.change.before),
            "after": _rate(move.change.after),
        }
    return SuspiciousPrice(
        why=move.why,  # pyright: ignore[reportArgumentType]  # One of its values.
        provider=move.provider,
        model=move.model,
        **told,
    )


def _difference(change: RateChange) -> PriceDifference:
    return PriceDifference(
        provider=change.provider,
        model=change.model,
        key=change.key,
        since=change.since,
        before=_rate(change.before),
        after=_rate(change.after),
    )


def _rate(nanos: int | None) -> str | None:
    return None if nanos is None else format_cost(nanos)


ROUTES = (route(signals.REFRESH_PRICES, refresh_prices),)
