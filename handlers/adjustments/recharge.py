"""Which windows follow when an event comes to stand for something else, and by how much (R15). Pure.

A window's part of an event is what the event and its adjustments charged it, and what it was backfilled with: the
difference to what the event stands for now is what is charged, so the sums are exact whatever happened in between.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import msgspec

from handlers.adjustments.standing import History, Stand
from handlers.enforcer.catalogue import ENTITY_FIELD, EVERY, Catalogue, Match, counts, filters_match
from handlers.enforcer.charging import NO_RATE, charge, flags_of
from handlers.enforcer.plan import CALL_FIELDS, UNITS, CallKey, call_key
from handlers.enforcer.windows import Key, WindowIndex, WindowRef, key_of
from handlers.identities import is_surrogate
from handlers.tracker.priced import PricedEvent
from store.budgets import BudgetRow


@dataclass(slots=True)
class Recharge:
    """Signed amounts by window, in each budget's unit, and how many windows are gone for good."""

    amounts: dict[int, int] = field(default_factory=dict[int, int])
    # Windows that have to be looked for before this can be said, and such as are not there.
    unknown: list[tuple[Match, datetime]] = field(default_factory=list[tuple[Match, datetime]])
    missing: list[tuple[Match, datetime]] = field(default_factory=list[tuple[Match, datetime]])
    gone: int = 0
    # Pairs of currencies that have no rate, so that a budget cannot count the cost.
    no_rate: set[str] = field(default_factory=set[str])


class Recharger:
    """Recharges of one org at one version of its catalogue."""

    def __init__(self, catalogue: Catalogue, index: WindowIndex, surrogate: Callable[[str], str]) -> None:
        self._catalogue = catalogue
        self._surrogate = surrogate
        self._index = index
        self._backfilling = [b for b in catalogue.by_id.values() if b.counting_since < b.created_at]
        # Windows that were looked for and are not there.
        self.absent: set[Key] = set()
        self._matches: dict[CallKey, dict[str, Match]] = {}

    def recharge(self, history: History, after: Stand, refs: Mapping[int, WindowRef]) -> Recharge:
        """What changes where ``history`` comes to stand for ``after``; ``refs``: those of its windows still there.

        Raises Unconvertible where a budget could not count the cost, and StaleCatalogue.
        """
        found = Recharge()
        at = history.charged_at
        now = {} if after.void else self._matching(after.event, at)
        done: set[int] = set()
        for window_id, charged in history.charged.items():
            ref = refs.get(window_id)
            if ref is None:
                found.gone += 1
                continue
            done.add(window_id)
            budget = self._catalogue.by_id[ref.budget_id]
            match = now.get(ref.budget_id)
            stays = match is not None and ref.entity_id in (match.entity_id, self._named_now(match))
            target = self._amount(after, budget, ref, found) if stays else 0
            base = self._backfilled(history, budget, ref)
            _put(found, window_id, target - base - charged)
        for match in self._others(history, now, at):
            self._first_time(history, after, match, done, found, stays=match.budget.budget_id in now)
        return found

    def _first_time(
        self, history: History, after: Stand, match: Match, done: set[int], found: Recharge, *, stays: bool
    ) -> None:
        """A window that neither the event nor its adjustments charged so far."""
        budget = match.budget
        if not _backfills(budget, history):  # A backfill counts what was recorded, by the name it was recorded with.
            match = Match(budget, self._named_now(match))
        ref = self._index.find(match, history.charged_at)
        if ref is None:
            unit = UNITS.index(budget.unit)
            takes = stays and budget.active and after.measures[unit] != 0 and self._counts(history, budget)
            stood = self._stood(history, budget)
            holds = stood is not None and stood.measures[unit] != 0
            if takes or holds:
                self._not_known((match, history.charged_at), found, holds=holds)
            return
        if ref.window_id in done:
            return
        base = self._backfilled(history, budget, ref)
        if base or (budget.active and self._counts(history, budget)):
            target = self._amount(after, budget, ref, found) if stays else 0
            _put(found, ref.window_id, target - base)

    def _not_known(self, wanted: tuple[Match, datetime], found: Recharge, *, holds: bool) -> None:
        """A window this agent has not seen is looked for; one that is not there is created, unless it once was."""
        if key_of(*wanted) not in self.absent:
            found.unknown.append(wanted)
        elif found.gone or holds:
            found.gone += 1
        else:
            found.missing.append(wanted)

    def _others(self, history: History, now: dict[str, Match], at: datetime) -> Iterable[Match]:
        """What matches now, and budgets created since with backfill, which counted what it stood for then."""
        yield from now.values()
        for budget in self._backfilling:
            if budget.budget_id not in now and _backfills(budget, history):
                match = self._matching(history.stood_at(budget.created_at).event, at).get(budget.budget_id)
                if match is not None:
                    yield match

    def _counts(self, history: History, budget: BudgetRow) -> bool:
        """Whether an event belongs to a budget that never charged it: it took nothing of it, or was not its."""
        if budget.created_at > history.applied_at:
            return _backfills(budget, history)
        stand = Stand(history.event)
        was_its = budget.budget_id in self._matching(history.event, history.charged_at)
        # Else the budget was inactive then, and goes on not knowing it.
        return not was_its or not stand.measures[UNITS.index(budget.unit)] or lacks_rate(stand)

    def _backfilled(self, history: History, budget: BudgetRow, ref: WindowRef) -> int:
        """What a window holds of an event because it was created after it, with backfill."""
        stood = self._stood(history, budget)
        return 0 if stood is None else self._amount(stood, budget, ref, Recharge())

    def _stood(self, history: History, budget: BudgetRow) -> Stand | None:
        """What an event stood for when a budget's backfill counted it; None where it did not."""
        if not _backfills(budget, history):
            return None
        stood = history.stood_at(budget.created_at)
        counted = not stood.void and budget.budget_id in self._matching(stood.event, history.charged_at)
        return stood if counted else None

    def _amount(self, stand: Stand, budget: BudgetRow, ref: WindowRef, found: Recharge) -> int:
        """What an event takes from a window: its cost at the rate that was frozen with the window."""
        pairs = [(Match(budget, ref.entity_id), ref)]
        charged = charge(pairs, stand.measures, stand.event.currency, self._catalogue.exchange)
        found.no_rate.update(charged.lacking.values())
        return charged.amounts.get(ref.window_id, 0)

    def _matching(self, event: PricedEvent, at: datetime) -> dict[str, Match]:
        """Budgets, active or not, that match an event and count its time, by id."""
        key = call_key(event)
        found = self._matches.get(key)
        if found is None:
            found = self._matches[key] = self._match_all(dict(zip(CALL_FIELDS, key, strict=True)))
        return {budget_id: match for budget_id, match in found.items() if counts(match.budget, at)}

    def _named_now(self, match: Match) -> str:
        """What an entity is called since users have surrogates: usage recorded before keeps its names."""
        named = match.budget.type == "user" and not is_surrogate(match.entity_id)
        return self._surrogate(match.entity_id) if named else match.entity_id

    def _match_all(self, call: dict[str, str | None]) -> dict[str, Match]:
        found: dict[str, Match] = {}
        for budget in self._catalogue.by_id.values():
            entity = EVERY if budget.type == "global" else call.get(ENTITY_FIELD[budget.type])
            if entity is None or not filters_match(budget.filters, call):
                continue
            match = Match(budget, entity)
            if budget.type == "global" or budget.entity_id in (entity, EVERY, self._named_now(match)):
                found[budget.budget_id] = match
        return found


def lacks_rate(stand: Stand) -> bool:
    """Whether a budget in another currency did not count its cost, for want of an exchange rate."""
    return any(flag.startswith(NO_RATE) for flag in stand.event.flags)


def with_flags(stand: Stand, found: Recharge) -> Stand:
    """The stand with a flag for each pair of currencies that lacks a rate now."""
    flags = [*(flag for flag in stand.event.flags if not flag.startswith(NO_RATE)), *flags_of(found.no_rate)]
    return replace(stand, event=msgspec.structs.replace(stand.event, flags=flags))


def _backfills(budget: BudgetRow, history: History) -> bool:
    """Whether a budget's backfill has counted an event (if it matched): it was there, and in the window, before."""
    return budget.counting_since < budget.created_at and (
        history.applied_at < budget.created_at and budget.counting_since <= history.charged_at
    )


def _put(found: Recharge, window_id: int, amount: int) -> None:
    if amount:
        found.amounts[window_id] = amount
