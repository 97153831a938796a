"""Idempotent checks (R5): a repeated request id is answered from what the first one left."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from handlers.enforcer import sizing
from handlers.enforcer.answers import approval, wire_time
from handlers.enforcer.catalogue import Catalogue
from handlers.enforcer.decide import Check, Desk, foreign
from handlers.enforcer.windows import StaleCatalogue
from schemas.budget import CheckBudget
from schemas.errors import SignalError, conflict
from store import budgets as budget_store
from store import reservations as reservation_store
from store.pool import Connection
from store.reservations import ReservationRow

# The same body in another order of keys is the same body.
_PACK = msgspec.msgpack.Encoder(order="deterministic").encode


@dataclass(slots=True)
class Repeats:
    """What earlier reservations of a batch's request ids say.

    ``answered`` need no decision; ``closed`` are decided anew, and an approval takes over the request id.
    """

    answered: dict[str, tuple[Check, ReservationRow]]
    closed: dict[str, str]

    @classmethod
    def none(cls) -> "Repeats":
        """Nothing was asked before."""
        return cls({}, {})

    @classmethod
    async def look(cls, connection: Connection, catalogue: Catalogue, checks: Sequence[Check]) -> "Repeats":
        """Lock the newest reservations of the batch's request ids: after the catalogue, before the windows (R1)."""
        if await budget_store.lock_shared(connection, catalogue.org) != catalogue.version:
            raise StaleCatalogue
        named = {check.request_id: check for check in checks if check.named}
        rows = await reservation_store.lock_requests(connection, catalogue.org, list(named))
        found = cls.none()
        for request_id, row in rows.items():
            if row.status in ("released", "expired"):
                found.closed[request_id] = row.reservation_id
            else:
                found.answered[request_id] = (named[request_id], row)
        return found

    def superseded(self, approved: Sequence[str]) -> list[str]:
        """Closed reservations whose request id a new approval takes over."""
        return sorted(self.closed[r] for r in approved if r in self.closed)

    def answers(self, desk: Desk) -> dict[str, bytes | SignalError]:
        """Live: the same answer. Settled, or another body: conflict."""
        return {request_id: _answer(check, row, desk) for request_id, (check, row) in self.answered.items()}


def _answer(check: Check, row: ReservationRow, desk: Desk) -> bytes | SignalError:
    if row.status == "settled":
        return conflict("this request_id was already settled; a new call needs a new one", field="request_id")
    if row.body_hash != check.body_hash:
        return conflict("this request_id has a live reservation for another request", field="request_id")
    return approval(
        request_id=row.request_id,
        reservation_id=row.reservation_id,
        expires_at=wire_time(row.expires_at),
        cost=row.estimated_cost,
        currency=row.currency,
        budgets=desk.texts(check.plan, desk.reserved(check.plan)),
        warnings=_warnings(check, row, desk),
        alternatives=[],
        context=check.estimate.context_json,
        count=check.estimate.count,
    )


def _warnings(check: Check, row: ReservationRow, desk: Desk) -> list[str]:
    warnings, plan = check.estimate.warnings, check.plan
    if check.estimate.learned is None or row.window_ids != plan.window_ids:
        return warnings
    worst, _ = foreign(plan, (row.estimated_cost or 0, row.estimated_tokens, 1), row.currency, desk.exchange)
    said = sizing.warning(plan.units, row.held, worst)
    return warnings if said is None else [*warnings, said]


def body_hash(request: CheckBudget, texts: bytes = b"") -> bytes:
    """What tells a repeat from another request under the same id (R5); ``texts`` is the digest of those it carried."""
    return hashlib.blake2b(_PACK(request) + texts, digest_size=16).digest()
