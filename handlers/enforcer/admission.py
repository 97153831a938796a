"""``check_budget``, group-committed: requests that arrive while a transaction runs form the next batch.

One transaction decides a batch: lock the windows in key order, decide in arrival order, write sums and reservations,
commit, reply. Several agents need no coordination beyond these locks.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import Any

from handlers.context import Inbound, Services
from handlers.counting.count import Job
from handlers.enforcer.alerts import Refusal, tell_refusals
from handlers.enforcer.catalogue import Catalogue
from handlers.enforcer.decide import Check, Desk, Outcome, decide, targets_of, too_many_entities
from handlers.enforcer.incoming import at_present_prices, hide_names, open_check, read_check
from handlers.enforcer.ledger import Sums
from handlers.enforcer.plan import Planner, Targets
from handlers.enforcer.repeats import Repeats
from handlers.enforcer.sizing import learn
from handlers.enforcer.tally import APPROVED
from handlers.enforcer.windows import StaleCatalogue, open_missing
from schemas.budget import CheckBudget
from schemas.errors import SignalError, unavailable
from store import budgets as budget_store
from store import reservations as reservation_store
from store import windows as window_store
from store.pool import RETRYABLE, UNAVAILABLE, Connection, is_unavailable
from store.windows import Opened

_log = logging.getLogger(__name__)


class _TryAgain(Exception):
    """The world moved between planning and locking; plan again."""


class _WindowsMissing(Exception):
    """Windows of a plan have to be opened first, in a transaction of their own."""

    def __init__(self, planner: Planner) -> None:
        super().__init__()
        self.planner = planner


class _SeenBefore(Exception):
    """A request id of this batch may have a reservation already; look before deciding."""


class Admission:
    """The admission queues of every org. Bounded: beyond the queue's limit callers are told ``unavailable``."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._orgs: dict[str, OrgAdmission] = {}
        self._parked: set[asyncio.Task[None]] = set()

    def submit(self, inbound: Inbound) -> None:
        """Take a request; it is answered by its batch. Never blocks and never raises.

        One whose texts have to be counted first waits apart, and delays no other.
        """
        try:
            request, job = open_check(self._services, inbound)
            if job is None:
                self.org(inbound.caller.org).submit(read_check(self._services, inbound, request, None))
            else:
                self._park(self._counted(inbound, request, job))
        except SignalError as error:
            inbound.fail(error)

    def _park(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._parked) >= self._services.limits.check_queue_max:
            work.close()
            raise unavailable("too many checks wait to be counted; retry with the same request_id")
        task = asyncio.get_running_loop().create_task(work)
        self._parked.add(task)
        task.add_done_callback(self._parked.discard)

    async def _counted(self, inbound: Inbound, request: CheckBudget, job: Job) -> None:
        try:
            counted = await self._services.counter.count(job)
            self.org(inbound.caller.org).submit(read_check(self._services, inbound, request, counted))
        except SignalError as error:
            inbound.fail(error)

    def org(self, org: str) -> "OrgAdmission":
        """The queue of one org."""
        found = self._orgs.get(org)
        if found is None:
            found = self._orgs[org] = OrgAdmission(self._services, org)
        return found

    async def drain(self) -> None:
        """Wait until everything submitted is answered."""
        while self._parked:
            await asyncio.wait(list(self._parked))
        for queue in list(self._orgs.values()):
            await queue.drain()

    def queued(self) -> int:
        """Requests that wait, over all orgs."""
        return len(self._parked) + sum(queue.queued for queue in self._orgs.values())


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
        careful = patient = False
        for _ in range(self._services.limits.transaction_attempts_max):
            try:
                await self._attempt(batch, careful=careful, patient=patient)
                return
            except (StaleCatalogue, _TryAgain):
                patient = True  # However often budgets change: they wait while this batch is planned.
            except _WindowsMissing as missing:
                await self._open_missing(missing.planner, batch)
            except _SeenBefore:
                careful = True
            except RETRYABLE:
                careful = True
        raise unavailable("the ledger is too busy; nothing was approved, retry with the same request_id")

    async def _reload(self) -> Planner:
        return self._planner_of(await self._services.reload_catalogue(self._org))

    def _planner_of(self, catalogue: Catalogue) -> Planner:
        services = self._services
        known = None if self._planner is None else self._planner.catalogue
        if self._planner is None or known is None or not known.same_as(catalogue):
            self._planner = Planner(
                catalogue,
                services.index(self._org),
                services.limits.match_cache_max,
                others_max=services.limits.offers_max,
            )
        return self._planner

    async def _attempt(self, checks: list[Check], *, careful: bool, patient: bool) -> None:
        planner = self._planner or await self._reload()
        if not patient:
            self._plan(planner, checks)
            await self._open_windows(planner, checks)
        if not checks:
            return
        if not careful and not patient and await self._decide_by_belief(planner, checks):
            return
        async with self._services.database.connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                if patient:
                    planner = await self._present(connection, checks)
                if not checks:
                    await transaction.rollback()
                    return
                answers, changed, decided = await self._transact(connection, planner, checks, careful=careful)
            except BaseException:
                await _undo(transaction)
                raise
            # A batch that changed nothing is not worth a disk flush.
            await (transaction.commit() if changed else transaction.rollback())
        for code, count in decided.items():
            self._services.tally.add(self._org, code, count)
        for check, answer in zip(checks, answers, strict=True):
            if isinstance(answer, SignalError):
                check.inbound.fail(answer)
            else:
                check.answer(answer)

    def _plan(self, planner: Planner, checks: list[Check]) -> None:
        settings = planner.catalogue.org_settings
        hide_names(self._services.identities, self._org, settings.user_names, checks)
        at_present_prices(self._services, planner.catalogue, checks)
        for check in checks:
            check.plan = planner.plan(check.key)
        learn(checks, self._org, settings.sizing, self._services.sizing)

    async def _present(self, connection: Connection, checks: list[Check]) -> Planner:
        """Plan anew under the catalogue lock, which the caller's transaction keeps. Raises _WindowsMissing."""
        planner = self._planner_of(await self._services.catalogues.reload(connection, self._org))
        self._plan(planner, checks)
        at = await budget_store.clock(connection)
        self._ahead = at - self._services.clock()
        if any(planner.resolve(check.plan, at) for check in checks):
            raise _WindowsMissing(planner)
        return planner

    async def _decide_by_belief(self, planner: Planner, checks: list[Check]) -> bool:
        """One round trip instead of four where everything fits: False, and nothing has happened, where it takes a look.

        The next batch may be decided from what this one leaves before PostgreSQL has confirmed it: if it does not,
        that one's premises are false as well.
        """
        services, beliefs = self._services, self._services.beliefs(self._org)
        targets = targets_of(checks)
        at = services.clock() + self._ahead
        found = beliefs.premises([check.plan for check in checks], planner.catalogue, targets, at)
        if found is None:
            return False
        premises, sums, carries = found
        desk = self._desk(planner, sums, at)
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
        services.tally.add(self._org, APPROVED, len(checks))
        self._ahead = decided_at - services.clock()
        desk.now = decided_at
        for check, reply in zip(checks, outcome.replies(desk), strict=True):
            check.answer(reply)
        return True

    def _desk(self, planner: Planner, sums: dict[int, Sums], now: datetime) -> Desk:
        catalogue, services = planner.catalogue, self._services
        return Desk(
            sums,
            now,
            on_unpriced=services.on_unpriced(catalogue),
            pressure_percent=catalogue.org_settings.pressure_percent,
            cards=services.prices_of(catalogue),
            exchange=catalogue.exchange,
        )

    async def _open_missing(self, planner: Planner, checks: list[Check]) -> None:
        """The same for a plan that may be out of date by now: then it is made anew."""
        try:
            await self._open_windows(planner, checks)
        except (StaleCatalogue, _TryAgain, *RETRYABLE):
            pass

    async def _open_windows(self, planner: Planner, checks: list[Check]) -> None:
        """Point every plan at the windows of now, creating those that are missing.

        A check that would open one new entity too many is denied here, and leaves ``checks`` (R16).
        """
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
            rows = await open_missing(
                services.database,
                planner.catalogue,
                services.index(self._org),
                missing,
                new_entities_max=planner.catalogue.org_settings.entity_windows_per_hour_max,
            )
            services.beliefs(self._org).learn(rows)
            opened = {(row.budget_id, row.entity_id) for row in rows}
            self._refuse_new_entities(planner, checks, at, opened)

    def _refuse_new_entities(
        self, planner: Planner, checks: list[Check], at: datetime, opened: set[tuple[str, str]]
    ) -> None:
        """Deny the checks whose windows were not opened. Raises _TryAgain where one was, and is forgotten already."""
        beyond: list[Check] = []
        for check in checks:
            missing = {(m.budget.budget_id, m.entity_id) for m in planner.resolve(check.plan, at)}
            if missing & opened:
                raise _TryAgain
            # An offer whose windows are beyond the cap is not made; the call itself is decided.
            if missing and planner.resolve(check.plan, at, every_offer=False):
                beyond.append(check)
        for check in beyond:
            checks.remove(check)
            check.answer(too_many_entities(check, at))
            self._services.tally.add(self._org, "too_many_entities")

    async def _transact(
        self, connection: Connection, planner: Planner, checks: list[Check], *, careful: bool
    ) -> tuple[list[bytes | SignalError], bool, dict[str, int]]:
        repeats = Repeats.none()
        if careful:
            repeats = await Repeats.look(connection, planner.catalogue, checks)
        window_ids = sorted(targets_of(checks))
        opened = await window_store.open_admission(connection, self._org, planner.catalogue.version, window_ids)
        self._ahead = opened.decided_at - self._services.clock()
        if opened.version != planner.catalogue.version or len(opened.window_ids) != len(window_ids):
            raise StaleCatalogue
        if window_ids != sorted(targets_of(checks)):
            raise _TryAgain  # Another batch pointed the plans at later windows meanwhile.
        fresh = [check for check in checks if check.request_id not in repeats.answered]
        if not all(check.plan.current(opened.decided_at) for check in fresh):
            raise _TryAgain
        targets = targets_of(checks)
        desk = self._desk(planner, _sums(opened, targets, planner.catalogue), opened.decided_at)
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
        decided = {APPROVED: len(fresh) - outcome.denials.total(), **outcome.denials}
        return [again.get(check.request_id) or answers[check.request_id] for check in checks], changed, decided

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
        if outcome.shadow_denied:
            await window_store.add_shadow_denied(connection, self._org, outcome.shadow_denied)
        told = await self._tell_exceeded(connection, targets, desk, outcome)
        return bool(outcome.new.ids or outcome.shadow_denied) or told

    async def _tell_exceeded(self, connection: Connection, targets: Targets, desk: Desk, outcome: Outcome) -> bool:
        """The first denial of a window is an event; later ones are not."""
        full = outcome.denied_windows | outcome.shadow_denied.keys()
        candidates = sorted(w for w in full if not desk.sums[w].exceeded)
        if not candidates:
            return False
        refusals = [
            Refusal(*targets[w], desk.sums[w], "denied" if w in outcome.denied_windows else "shadow")
            for w in candidates
        ]
        news = await tell_refusals(self._services, connection, self._org, refusals)
        self._services.outbox_ready.set()
        return news


def _all_reserved(checks: list[Check], outcome: Outcome) -> bool:
    """Whether every call is approved and set aside: a denial is looked at first, and a question writes nothing."""
    return (
        all(check.request.reserve for check in checks)
        and not any(isinstance(d, bytes) for d in outcome.decisions)
        and not outcome.shadow_denied
    )


def _sums(opened: Opened, targets: Targets, catalogue: Catalogue) -> dict[int, Sums]:
    return {
        window_id: Sums(
            window_id,
            catalogue.limit(
                targets[window_id][0], targets[window_id][1].entity_id, opened.carries[i], opened.decided_at
            ),
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
