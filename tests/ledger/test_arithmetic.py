"""The arithmetic of windows, against a model that keeps every nano by name instead of keeping sums."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from handlers.enforcer.ledger import Sums, thresholds_reached
from handlers.enforcer.settle import Holding, book, settle, unreserved
from store.reservations import ReservationRow
from tests.support.ledger import examples

WINDOWS: Final[tuple[int, int, int]] = (1, 2, 3)
NOW: Final = datetime(2030, 3, 13, tzinfo=UTC)
amounts = st.integers(0, 30)


@dataclass
class Model:
    """One window: the limit, what each reservation holds, and every charge with the part that found no room."""

    limit: int
    held: dict[str, int] = field(default_factory=dict[str, int])
    charges: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    blocking: bool = True

    @property
    def spent(self) -> int:
        return sum(amount for amount, _ in self.charges)

    @property
    def overrun(self) -> int:
        return sum(over for _, over in self.charges)

    @property
    def reserved(self) -> int:
        return sum(self.held.values())

    def charge(self, amount: int, *, within: int = 0) -> None:
        """Book ``amount``, of which ``within`` had its room already; unit by unit, each finds room or does not."""
        over = 0
        self.charges.append((within, 0))
        for _ in range(amount - within):
            taken = self.spent - self.overrun + (self.reserved if self.blocking else 0)
            room = taken < self.limit
            self.charges.append((1, 0 if room else 1))
            over += not room


@dataclass(frozen=True)
class Step:
    """What happens: to which reservation (by number), how much in each window."""

    kind: str
    number: int
    amounts: tuple[int, int, int]
    final: bool


steps = st.builds(
    Step,
    st.sampled_from(("hold", "hold", "settle", "settle", "release", "expire", "unreserved", "limit")),
    st.integers(0, 5),
    st.tuples(amounts, amounts, amounts),
    st.booleans(),
)


def _row(number: int, held: dict[int, int]) -> ReservationRow:
    return ReservationRow(
        org_id="o",
        reservation_id=str(number),
        request_id=str(number),
        body_hash=b"",
        status="live",
        superseded=False,
        presumed=False,
        decided_at=NOW,
        expires_at=NOW,
        closed_at=None,
        provider=None,
        model=None,
        attribution={},
        estimated_cost=None,
        estimated_tokens=0,
        window_ids=list(held),
        held=list(held.values()),
        caller=None,
    )


class Both:
    """The product's arithmetic and the model, driven by the same steps."""

    def __init__(self, limits: tuple[int, int, int], blocking: tuple[bool, bool, bool]) -> None:
        self.sums = {
            w: Sums(w, limit, block, 0, 0, 0, None) for w, limit, block in zip(WINDOWS, limits, blocking, strict=True)
        }
        self.models = {
            w: Model(limit, blocking=block) for w, limit, block in zip(WINDOWS, limits, blocking, strict=True)
        }
        self.high: dict[int, int] = dict(zip(WINDOWS, limits, strict=True))
        self.holdings: dict[int, Holding] = {}
        self.told: dict[int, int] = dict.fromkeys(WINDOWS, 0)

    def take(self, step: Step) -> None:
        wanted: dict[int, int] = dict(zip(WINDOWS, step.amounts, strict=True))
        holding = self.holdings.get(step.number)
        if step.kind == "limit":
            for window, limit in wanted.items():
                self.models[window].limit = limit
                self.high[window] = max(self.high[window], limit)
                s = self.sums[window]
                self.sums[window] = Sums(window, limit, s.blocking, s.spent, s.reserved, s.overrun, s.high_limit)
        elif step.kind == "hold" and (holding is None or not holding.live):
            self._hold(step.number, wanted)
        elif step.kind in ("release", "expire") and holding is not None and holding.live:
            for window, amount in holding.held.items():
                self.sums[window].release(amount)
                del self.models[window].held[str(step.number)]
            holding.status = "released"
        elif step.kind == "settle" and holding is not None and holding.live:
            self._settle(step.number, holding, wanted, final=step.final)
        elif step.kind == "unreserved":
            self._told(book(unreserved({w: a for w, a in wanted.items() if a}), self.sums))
            for window, amount in wanted.items():
                self.models[window].charge(amount)

    def _hold(self, number: int, wanted: dict[int, int]) -> None:
        fits = {w: self.sums[w].fits(amount) for w, amount in wanted.items()}
        for window, amount in wanted.items():
            model = self.models[window]
            assert fits[window] == (not model.blocking or model.spent + model.reserved + amount <= model.limit)
        if all(fits.values()):
            for window, amount in wanted.items():
                self.sums[window].hold(amount)
                self.models[window].held[str(number)] = amount
            self.holdings[number] = Holding.of(_row(number, wanted))

    def _settle(self, number: int, holding: Holding, actual: dict[int, int], *, final: bool) -> None:
        charged = {w: a for w, a in actual.items() if a}
        self._told(book(settle(holding, charged, final=final), self.sums))
        for window in WINDOWS:
            model = self.models[window]
            held = model.held.pop(str(number))
            within = min(held, actual[window])
            if not final:
                model.held[str(number)] = held - within
            model.charge(actual[window], within=within)

    def _told(self, overrun: dict[int, int]) -> None:
        for window, amount in overrun.items():
            assert amount > 0
            self.told[window] += amount

    def agree(self) -> None:
        for window in WINDOWS:
            s, m = self.sums[window], self.models[window]
            assert (s.spent, s.reserved, s.overrun) == (m.spent, m.reserved, m.overrun)
            assert self.told[window] == s.overrun
            if s.blocking:
                assert s.high_limit == self.high[window]
                assert s.high_limit is not None
                assert s.spent - s.overrun + s.reserved <= s.high_limit
                assert s.free() == max(0, m.limit - m.spent - m.reserved)


@examples(300)
@given(
    st.tuples(amounts, amounts, amounts),
    st.tuples(st.just(True), st.booleans(), st.just(True)),
    st.lists(steps, max_size=40),
)
def test_every_sum_is_the_one_that_counting_unit_by_unit_gives(
    limits: tuple[int, int, int], blocking: tuple[bool, bool, bool], todo: list[Step]
) -> None:
    both = Both(limits, blocking)
    for step in todo:
        both.take(step)
        both.agree()


@examples(200)
@given(st.lists(steps, max_size=30))
def test_where_nothing_unreserved_is_booked_and_no_limit_sinks_nothing_is_ever_over(todo: list[Step]) -> None:
    both = Both((40, 40, 40), (True, True, True))
    for step in todo:
        if step.kind in ("unreserved", "limit"):
            continue
        holding = both.holdings.get(step.number)
        if step.kind == "settle" and holding is not None:
            within = [min(a, holding.held[w]) for w, a in zip(WINDOWS, step.amounts, strict=True)]
            both.take(Step("settle", step.number, (within[0], within[1], within[2]), step.final))
        else:
            both.take(step)
        for sums in both.sums.values():
            assert sums.overrun == 0
            assert sums.spent + sums.reserved <= 40


@examples(200)
@given(amounts, amounts, amounts, amounts, amounts)
def test_a_presumed_charge_that_is_replaced_leaves_what_the_actual_alone_would_have_left(
    limit: int, others: int, held: int, actual: int, unrelated: int
) -> None:
    """Taken back first, overrun first: never above the limit, and the sum of what was really used."""
    sums = Sums(1, limit + held, True, 0, 0, 0, None)
    sums.hold(min(held, sums.free()))
    held = sums.reserved
    sums.settle(held, held)
    sums.charge(others)
    holding = Holding.of(_row(1, {1: held}))
    holding.status, holding.presumed = "expired", True

    told = book(settle(holding, {1: actual} if actual else {}, final=True), {1: sums})
    told_later = sums.charge(unrelated)

    assert (holding.status, holding.presumed) == ("settled", False)
    assert sums.spent == others + actual + unrelated
    assert sums.spent - sums.overrun <= sums.limit
    assert told.get(1, 0) + told_later >= 0
    assert sums.overrun >= max(0, sums.spent - sums.limit)


@examples(200)
@given(
    st.lists(st.integers(0, 40), max_size=20),
    st.integers(0, 100),
    st.lists(st.integers(1, 150), max_size=6, unique=True),
)
def test_each_threshold_fires_once_when_it_is_reached_and_never_before(
    spends: list[int], limit: int, thresholds: list[int]
) -> None:
    spent, fired = 0, frozenset[int]()
    for amount in spends:
        spent += amount
        reached = thresholds_reached(spent, limit, tuple(thresholds), fired)
        assert not fired & set(reached)
        fired |= set(reached)
        assert fired == {t for t in thresholds if spent and spent * 100 >= limit * t}
