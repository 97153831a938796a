"""``adjust_usage``: void, correct or refund what was recorded (R15). Never an edit: a row beside the event, its reason
and who made it; rollups and windows follow by the difference.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from handlers import audit
from handlers.adjustments.adjusted import adjusted_usage, duplicate_of, refused
from handlers.adjustments.corrections import adjusted
from handlers.adjustments.posting import Decided, Posting
from handlers.adjustments.standing import History
from handlers.context import ORG_DEFAULTS, Context
from handlers.cost.org_prices import Prices
from handlers.cursor import PAGE_BYTES_MAX
from handlers.enforcer.catalogue import Catalogue
from handlers.enforcer.transaction import ledger_transaction
from schemas.adjustment import AdjustedUsage, AdjustedUsages, Adjustment, AdjustUsage
from schemas.errors import SignalError, conflict, invalid, not_found
from signals import adjustment as signals
from signals import route
from store import adjustments as adjustment_store
from store import budgets as budget_store
from store.adjustments import AdjustmentRow
from store.pool import Connection

_PACK: Final = msgspec.msgpack.Encoder(order="deterministic").encode
_ENCODE: Final = msgspec.json.Encoder().encode
_ONE: Final = tuple(name for name in Adjustment.__struct_fields__)
_DONE: Final = {"void": "voided", "correct": "corrected", "refund": "refunded"}

Outcome = AdjustedUsage | SignalError


async def adjust_usage(ctx: Context, request: AdjustUsage) -> AdjustedUsages:
    """Make adjustments in the order asked, in bounded transactions; each is made or refused by itself.

    Raises SignalError where a single one is refused. What was done stays done where a later part cannot be.
    """
    single = not request.adjustments
    asked = [_single(request)] if single else _many(request)
    outcomes: list[Outcome] = []
    most = ctx.services.limits.adjust_batch_max
    for start in range(0, len(asked), most):
        outcomes += await _Batch(ctx, asked[start : start + most], dry_run=request.dry_run).run()
    if single and isinstance(outcomes[0], SignalError):
        raise outcomes[0]
    return _reply(asked, outcomes, dry_run=request.dry_run)


def _single(request: AdjustUsage) -> Adjustment:
    for name in ("usage_id", "kind", "reason"):
        if getattr(request, name) is None:
            raise invalid("is required", field=name)
    return Adjustment(**{name: getattr(request, name) for name in _ONE})


def _many(request: AdjustUsage) -> list[Adjustment]:
    for name in _ONE:
        if getattr(request, name) is not None:
            raise invalid("give one adjustment or a list of them, not both", field=name)
    return request.adjustments


def _reply(asked: Sequence[Adjustment], outcomes: Sequence[Outcome], *, dry_run: bool) -> AdjustedUsages:
    items = [
        refused(one, outcome) if isinstance(outcome, SignalError) else outcome
        for one, outcome in zip(asked, outcomes, strict=True)
    ]
    accepted = sum(item.accepted for item in items)
    reply = AdjustedUsages(adjustments=items, accepted=accepted, rejected=len(items) - accepted, dry_run=dry_run)
    if len(_ENCODE(reply)) > PAGE_BYTES_MAX:
        # What was done must be answered: the windows can be listed.
        without = [msgspec.structs.replace(item, budgets=[]) for item in items]
        reply = msgspec.structs.replace(reply, adjustments=without)
    return reply


def body_hash(asked: Adjustment) -> bytes:
    """What tells a repeat from another adjustment under the same id."""
    return hashlib.blake2b(_PACK(msgspec.structs.asdict(asked)), digest_size=16).digest()


@dataclass(slots=True)
class _Made:
    """An adjustment that was decided in this transaction, and the warnings its sender is told."""

    decided: Decided
    warnings: list[str]


class _Batch:
    """The adjustments of one transaction, which may run again from the start."""

    def __init__(self, ctx: Context, asked: Sequence[Adjustment], *, dry_run: bool) -> None:
        self._ctx = ctx
        self._asked = asked
        self._dry_run = dry_run
        self._prices: Prices = ctx.prices
        self._settings = ORG_DEFAULTS

    async def run(self) -> list[Outcome]:
        """Outcomes in the order asked, committed."""
        outcomes = await ledger_transaction(self._ctx.services, self._ctx.org, self._work)
        self._ctx.services.outbox_ready.set()
        return outcomes

    async def _work(self, connection: Connection, catalogue: Catalogue) -> list[Outcome]:
        org = self._ctx.org
        self._prices, self._settings = self._ctx.services.prices_of(catalogue), catalogue.org_settings
        ids = sorted({one.usage_id for one in self._asked})
        named = sorted({one.adjustment_id for one in self._asked if one.adjustment_id is not None})
        histories = await histories_of(connection, org, ids)
        known = await adjustment_store.by_ids(connection, org, named) if named else {}
        at = await budget_store.clock(connection)
        posting = Posting(self._ctx.services, connection, catalogue, made_by=self._ctx.caller.actor, made_at=at)
        await posting.learn(list(histories.values()))
        found = [await self._decide(one, histories, known, posting) for one in self._asked]
        rows = {row.adjustment_id: row for row in await posting.post(dry_run=self._dry_run)}
        repeated = [row for row in found if isinstance(row, AdjustmentRow)]
        await posting.learn_charged(repeated)
        if rows and not self._dry_run:
            await self._audit(connection, posting)
        return [self._outcome(one, rows, posting, catalogue) for one in found]

    async def _decide(
        self,
        asked: Adjustment,
        histories: dict[str, History],
        known: dict[str, AdjustmentRow],
        posting: Posting,
    ) -> _Made | AdjustmentRow | SignalError:
        """The adjustment that will be made, the same one made before, or why it cannot be."""
        hashed = body_hash(asked)
        try:
            before = known.get(asked.adjustment_id or "")
            if before is not None:
                return _same(before, hashed)
            for made in posting.decided:
                if made.adjustment_id == asked.adjustment_id:
                    raise conflict("is used twice in this request", field="adjustment_id")
            history = histories.get(asked.usage_id)
            if history is None:
                raise not_found("there is no usage with this id", field="usage_id")
            if history.sequence >= self._ctx.services.limits.adjustments_per_event_max:
                raise conflict(f"the event was adjusted {history.sequence} times already", field="usage_id")
            stand = history.stand
            after, warnings = adjusted(asked, history, self._prices, self._settings)
            made = Decided(
                history=history,
                adjustment_id=asked.adjustment_id or self._ctx.new_id(),
                sequence=history.sequence + 1,
                kind=asked.kind,
                reason=asked.reason,
                body_hash=hashed,
                before=stand,
                after=after,
            )
            await posting.decide(made)
        except SignalError as error:
            return error
        return _Made(made, warnings)

    def _outcome(
        self,
        found: _Made | AdjustmentRow | SignalError,
        rows: dict[str, AdjustmentRow],
        posting: Posting,
        catalogue: Catalogue,
    ) -> Outcome:
        if isinstance(found, SignalError):
            return found
        if isinstance(found, AdjustmentRow):
            return duplicate_of(found, posting.refs, catalogue.by_id)
        recharge = found.decided.recharge
        pairs = [
            f"no exchange rate {pair}: a budget in the other currency does not count it" for pair in recharge.no_rate
        ]
        row = rows[found.decided.adjustment_id]
        told = adjusted_usage(row, posting.refs, catalogue.by_id, warnings=[*found.warnings, *sorted(pairs)])
        # Nobody should keep the id of what was not made.
        return msgspec.structs.replace(told, adjustment_id=None) if self._dry_run else told

    async def _audit(self, connection: Connection, posting: Posting) -> None:
        """One entry for all of them: each with what it changed; a single one in full."""
        made = posting.decided
        if len(made) == 1:
            await audit.record(
                connection,
                self._ctx.caller,
                action=_DONE[made[0].kind],
                entity="usage",
                entity_id=made[0].history.event.id,
                before=made[0].audited(made[0].before),
                after=made[0].audited(made[0].after),
                reason=made[0].reason,
            )
            return
        await record_many(connection, self._ctx, made, reason=None)


async def record_many(connection: Connection, ctx: Context, made: Sequence[Decided], *, reason: str | None) -> None:
    """One audit entry that lists adjustments."""
    listed = [
        {
            "usage_id": one.history.event.id,
            "adjustment_id": one.adjustment_id,
            "kind": one.kind,
            "currency": one.after.event.currency,
            "cost_before": one.before.cost,
            "cost_after": one.after.cost,
            **({"reason": one.reason} if reason is None else {}),
        }
        for one in made
    ]
    await audit.record(
        connection,
        ctx.caller,
        action="adjusted",
        entity="usage",
        entity_id=f"{made[0].history.event.id} and {len(made) - 1} more" if len(made) > 1 else made[0].history.event.id,
        before=None,
        after={"adjustments": listed},
        reason=reason,
    )


async def histories_of(connection: Connection, org: str, ids: Sequence[str]) -> dict[str, History]:
    """Events with their adjustments, by id, locked against other adjustments; ids in order."""
    arrived = await adjustment_store.lock_claims(connection, org, ids)
    rows = await adjustment_store.events(connection, org, ids, arrived)
    made = await adjustment_store.of_events(connection, org, sorted(rows))
    return {usage_id: History(row, made.get(usage_id, ())) for usage_id, row in rows.items()}


def _same(row: AdjustmentRow, hashed: bytes) -> AdjustmentRow:
    if row.body_hash != hashed:
        raise conflict("this id was used for another adjustment", field="adjustment_id")
    return row


ROUTES = (route(signals.ADJUST_USAGE, adjust_usage),)
