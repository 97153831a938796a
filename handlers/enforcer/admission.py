"""``check_budget``, group-committed: requests that arrive while a transaction runs form the next batch.

One transaction decides a batch: lock the windows in key order, decide in arrival order, write sums and reservations,
commit, reply. Several agents need no coordination beyond these locks.
"""

import asyncio
import hashlib
import logging
from collections import deque
from datetime import timedelta

import msgspec

from handlers.context import Inbound, Services
from handlers.enforcer.answers import window_reply
from handlers.enforcer.decide import Check, Desk, Outcome, decide
from handlers.enforcer.estimate import estimate
from handlers.enforcer.ledger import Sums, effective_limit
from handlers.enforcer.plan import Planner, call_key
from handlers.enforcer.repeats import Repeats
from handlers.enforcer.windows import StaleCatalogue, WindowRef, open_missing
from handlers.events import cloud_event
from schemas.budget import BudgetExceeded, CheckBudget
from schemas.codec import Codec, unwrap
from schemas.errors import SignalError, invalid, unavailable
from signals import budget as budget_signals
from store import budgets as budget_store
from store import outbox as outbox_store
from store import reservations as reservation_store
from store import windows as window_store
from store.budgets import BudgetRow
from store.pool import RETRYABLE, UNAVAILABLE, Connection, is_unavailable
from store.windows import Opened

_log = logging.getLogger(__name__)
_CODEC = Codec(CheckBudget)
# The same body in another order of keys is the same body.
_PACK = msgspec.msgpack.Encoder(order="deterministic").encode


Targets = dict[int, tuple[BudgetRow, WindowRef]]


class _TryAgain(Exception):
    """The world moved between planning and locking; plan again."""


class _SeenBefore(Exception):
    """A request id of this batch may have a reservation already; look before deciding."""


class Admission:
    """The admission queues of every org. Bounded: beyond the queue's limit callers are told ``unavailable``."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._orgs: dict[str, OrgAdmission] = {}

    def submit(self, inbound: Inbound) -> None:
        """Take a request; it is answered by its batch. Never blocks and never raises."""
        try:
            self.org(inbound.caller.org).submit(self._check(inbound))
        except SignalError as error:
            inbound.fail(error)

    def _check(self, inbound: Inbound) -> Check:
        """Decode and estimate a request. Raises SignalError where it is wrong."""
        services = self._services
        data, envelope = unwrap(inbound.data)
        request = _CODEC.decode(data)
        if envelope is not None and request.request_id is None:
            request = msgspec.structs.replace(request, request_id=f"{envelope.source}#{envelope.id}"[:256])
        reservation_id = services.new_id()
        named = request.request_id is not None
        return Check(
            inbound=inbound,
            request=request,
            request_id=request.request_id or reservation_id,
            named=named,
            body_hash=_body_hash(request) if named else b"",
            estimate=estimate(request, cards=services.rate_cards, at=services.clock(), limits=services.limits),
            key=call_key(request),
            reservation_id=reservation_id,
            ttl_s=request.ttl_s or services.limits.reservation_ttl_s,
        )

    def org(self, org: str) -> "OrgAdmission":
        """The queue of one org."""
        found = self._orgs.get(org)
        if found is None:
            found = self._orgs[org] = OrgAdmission(self._services, org)
        return found

    async def drain(self) -> None:
        """Wait until everything submitted is answered."""
        for queue in list(self._orgs.values()):
            await queue.drain()

    def queued(self) -> int:
        """Requests that wait, over all orgs."""
        return sum(queue.queued for queue in self._orgs.values())


class OrgAdmission:
    """One org's queue. Its loop runs only while there is something to decide."""

    def __init__(self, services: Services, org: str) -> None:
        self._services = services
        self._org = org
        self._queue: deque[Check] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._planner: Planner | None = None
        self._ahead = timedelta(0)

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def submit(self, check: Check) -> None:
        """Queue a request. Raises SignalError ``unavailable`` where the queue is full."""
        if len(self._queue) >= self._services.limits.check_queue_max:
            raise unavailable("too many checks are waiting; retry with the same request_id")
        self._queue.append(check)
        # A second batch waits for the locks of the first while that one commits; it starts only when it is worth it.
        if not self._workers or (
            len(self._queue) >= self._services.limits.check_overlap_min
            and len(self._workers) < self._services.limits.check_batches_max
        ):
            self._start()

    async def drain(self) -> None:
        """Wait until the queue is empty and its last batch answered."""
        while self._workers:
            await asyncio.wait(list(self._workers))

    def _start(self) -> None:
        worker = asyncio.get_running_loop().create_task(self._run())
        self._workers.add(worker)
        worker.add_done_callback(self._ended)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if self._queue and not self._workers:
            self._start()

    async def _run(self) -> None:
        while self._queue:
            batch = self._take()
            try:
                await self._decide(batch)
            except SignalError as error:
                _fail(batch, error)
            except Exception as error:  # One batch that fails must not leave the next ones unanswered.
                self._give_up(batch, error)

    def _give_up(self, batch: list[Check], error: Exception) -> None:
        if not is_unavailable(error):
            _log.error("a batch of checks failed", exc_info=error)
            _fail(batch, SignalError("internal", "the check could not be decided; nothing was approved"))
            return
        if isinstance(error, TimeoutError):
            # A ledger that hangs: what waits behind this batch would wait as long again, each in turn.
            batch += self._queue
            self._queue.clear()
        _fail(batch, unavailable("the ledger cannot be reached; ask again with the same request_id"))

    def _take(self) -> list[Check]:
        """The next batch; a request id occurs in it once, a repeated one waits for the next."""
        batch: list[Check] = []
        seen: set[str] = set()
        later: list[Check] = []
        most = self._services.limits.check_batch_max
        # A queue full of one request id must not be looked through for every batch.
        while self._queue and len(batch) < most and len(later) < most:
            check = self._queue.popleft()
            if check.request_id in seen:
                later.append(check)
            else:
                seen.add(check.request_id)
                batch.append(check)
        self._queue.extendleft(reversed(later))
        return batch

    async def _decide(self, batch: list[Check]) -> None:
        careful = False
        for _ in range(self._services.limits.transaction_attempts_max):
            try:
                await self._attempt(batch, careful=careful)
                return
            except (StaleCatalogue, _TryAgain):
                await self._reload()
            except _SeenBefore:
                careful = True
            except RETRYABLE:
                careful = True
        raise unavailable("the ledger is too busy; nothing was approved, retry with the same request_id")

    async def _reload(self) -> Planner:
        services = self._services
        catalogue = await services.reload_catalogue(self._org)
        if self._planner is None or self._planner.catalogue.version != catalogue.version:
            self._planner = Planner(catalogue, services.index(self._org), services.limits.match_cache_max)
        return self._planner

    async def _attempt(self, checks: list[Check], *, careful: bool) -> None:
        planner = self._planner or await self._reload()
        for check in checks:
            check.plan = planner.plan(check.key)
        await self._open_windows(planner, checks)
        if not careful and await self._decide_by_belief(planner, checks):
            return
        async with self._services.database.connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                answers, changed = await self._transact(connection, planner, checks, careful=careful)
            except BaseException:
                await _undo(transaction)
                raise
            # A batch that changed nothing is not worth a disk flush.
            await (transaction.commit() if changed else transaction.rollback())
        for check, answer in zip(checks, answers, strict=True):
            if isinstance(answer, SignalError):
                check.inbound.fail(answer)
            else:
                check.inbound.answer(answer)

    async def _decide_by_belief(self, planner: Planner, checks: list[Check]) -> bool:
        """One round trip instead of four where everything fits: False, and nothing has happened, where it takes a look.

        The next batch may be decided from what this one leaves before PostgreSQL has confirmed it: if it does not,
        that one's premises are false as well.
        """
        services, beliefs = self._services, self._services.beliefs(self._org)
        targets = _targets(checks)
        budgets = {window_id: budget for window_id, (budget, _) in targets.items()}
        found = beliefs.premises([check.plan for check in checks], planner.catalogue.version, budgets)
        if found is None:
            return False
        premises, sums, carries = found
        desk = Desk(sums, services.clock() + self._ahead, self._on_unpriced(planner))
        outcome = decide(checks, desk)
        if not _all_reserved(checks, outcome):
            return False
        beliefs.put((sums[w], carries[w]) for w in premises.window_ids)
        more = [sums[w].reserved - r for w, r in zip(premises.window_ids, premises.reserved, strict=True)]
        try:
            async with services.database.connection() as connection:
                decided_at = await reservation_store.commit_admission(
                    connection, self._org, premises, more=more, new=outcome.new
                )
        except BaseException:
            beliefs.forget(premises.window_ids)
            raise
        if decided_at is None:
            beliefs.forget(premises.window_ids)
            return False
        beliefs.proved()
        self._ahead = decided_at - services.clock()
        desk.now = decided_at
        for check, reply in zip(checks, outcome.replies(desk), strict=True):
            check.inbound.answer(reply)
        return True

    def _on_unpriced(self, planner: Planner) -> str:
        return str(planner.catalogue.settings.get("on_unpriced", self._services.limits.on_unpriced))

    async def _open_windows(self, planner: Planner, checks: list[Check]) -> None:
        """Point every plan at the windows of now, creating those that are missing."""
        services = self._services
        at = services.clock() + self._ahead
        if not any(planner.resolve(check.plan, at) for check in checks):
            return
        # Only PostgreSQL's clock opens windows (R3): one opened early would carry over what is yet to be spent.
        async with services.database.connection() as connection:
            at = await budget_store.clock(connection)
        self._ahead = at - services.clock()
        missing = [(m, at) for check in checks for m in planner.resolve(check.plan, at)]
        if missing:
            await open_missing(services.database, planner.catalogue, services.index(self._org), missing)
            for check in checks:
                planner.resolve(check.plan, at)

    async def _transact(
        self, connection: Connection, planner: Planner, checks: list[Check], *, careful: bool
    ) -> tuple[list[bytes | SignalError], bool]:
        repeats = Repeats.none()
        if careful:
            repeats = await Repeats.look(connection, planner.catalogue, checks)
        window_ids = sorted({ref.window_id for check in checks for ref in check.plan.refs})
        opened = await window_store.open_admission(connection, self._org, planner.catalogue.version, window_ids)
        self._ahead = opened.decided_at - self._services.clock()
        if opened.version != planner.catalogue.version or len(opened.window_ids) != len(window_ids):
            raise StaleCatalogue
        if window_ids != sorted({ref.window_id for check in checks for ref in check.plan.refs}):
            raise _TryAgain  # Another batch pointed the plans at later windows meanwhile.
        fresh = [check for check in checks if check.request_id not in repeats.answered]
        if not all(check.plan.current(opened.decided_at) for check in fresh):
            raise _TryAgain
        targets = _targets(checks)
        desk = Desk(_sums(opened, targets), opened.decided_at, self._on_unpriced(planner))
        outcome = decide(fresh, desk)
        if not careful:
            await self._look_for_repeats(connection, fresh, outcome)
        writing = asyncio.ensure_future(self._write(connection, targets, desk, outcome, repeats))
        await asyncio.sleep(0)
        # The replies are written while PostgreSQL writes; nobody hears them before the commit.
        try:
            replies = outcome.replies(desk)
        finally:
            changed = await writing
        carries = zip(opened.window_ids, opened.carries, strict=True)
        self._services.beliefs(self._org).put((desk.sums[window_id], carry) for window_id, carry in carries)
        answers = {check.request_id: reply for check, reply in zip(fresh, replies, strict=True)}
        again = repeats.answers(desk)
        return [again.get(check.request_id) or answers[check.request_id] for check in checks], changed

    async def _look_for_repeats(self, connection: Connection, checks: list[Check], outcome: Outcome) -> None:
        """A reservation finds its own repeat by the unique index; others must look, since a live answer stands (R5)."""
        others = [
            c.request_id
            for c, decision in zip(checks, outcome.decisions, strict=True)
            if c.named and (isinstance(decision, bytes) or not c.request.reserve)
        ]
        if others and await reservation_store.any_request(connection, self._org, others):
            raise _SeenBefore

    async def _write(
        self, connection: Connection, targets: Targets, desk: Desk, outcome: Outcome, repeats: Repeats
    ) -> bool:
        superseded = repeats.superseded(outcome.new.request_ids)
        if superseded:
            await reservation_store.supersede(connection, self._org, superseded)
        if outcome.new.ids:
            touched = sorted(outcome.touched)
            await reservation_store.admit(
                connection,
                self._org,
                decided_at=desk.now,
                window_ids=touched,
                reserved=[desk.sums[w].reserved for w in touched],
                high_limits=[desk.sums[w].high_limit for w in touched],
                new=outcome.new,
            )
        told = await self._tell_exceeded(connection, targets, desk, outcome)
        return bool(outcome.new.ids) or told

    async def _tell_exceeded(self, connection: Connection, targets: Targets, desk: Desk, outcome: Outcome) -> bool:
        """The first denial of a window is an event; later ones are not."""
        candidates = sorted(w for w in outcome.denied_windows if not desk.sums[w].exceeded)
        if not candidates:
            return False
        news = set(await window_store.mark_exceeded(connection, self._org, candidates))
        events: list[tuple[str, bytes]] = []
        for window_id in sorted(news):
            budget, ref = targets[window_id]
            payload = BudgetExceeded(cause="denied", window=window_reply(budget, ref, desk.sums[window_id]))
            event = cloud_event(self._services, self._org, budget_signals.EXCEEDED, payload, subject=budget.budget_id)
            events.append(event)
        await outbox_store.add(connection, self._org, events)
        self._services.outbox_ready.set()
        return bool(news)


def _all_reserved(checks: list[Check], outcome: Outcome) -> bool:
    """Whether every call is approved and set aside: a denial is looked at first, and a question writes nothing."""
    return all(check.request.reserve for check in checks) and not any(isinstance(d, bytes) for d in outcome.decisions)


def _targets(checks: list[Check]) -> Targets:
    """Budget and bounds of every window of a batch, from its plans: no cache has to remember them meanwhile."""
    plans = {id(check.plan): check.plan for check in checks}.values()
    return {
        ref.window_id: (match.budget, ref)
        for plan in plans
        for match, ref in zip(plan.matches, plan.refs, strict=False)
    }


def _body_hash(request: CheckBudget) -> bytes:
    """What tells a repeat from another request under the same id (R5)."""
    try:
        return hashlib.blake2b(_PACK(request), digest_size=16).digest()
    except (OverflowError, RecursionError):
        text = "is nested too deeply, or holds a whole number beyond 64 bits"
        raise invalid(text, field="messages") from None


def _sums(opened: Opened, targets: Targets) -> dict[int, Sums]:
    return {
        window_id: Sums(
            window_id,
            effective_limit(targets[window_id][0], opened.carries[i]),
            targets[window_id][0].blocking,
            opened.spent[i],
            opened.reserved[i],
            opened.overrun[i],
            opened.high_limits[i],
            opened.exceeded[i],
        )
        for i, window_id in enumerate(opened.window_ids)
    }


async def _undo(transaction: object) -> None:
    try:
        await transaction.rollback()  # type: ignore[attr-defined]
    except UNAVAILABLE:
        pass  # The connection is gone, and with it the transaction.


def _fail(batch: list[Check], error: SignalError) -> None:
    for check in batch:
        check.inbound.fail(error)
