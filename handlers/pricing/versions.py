"""Versions of price rules: decided from a request, and shown to people. Pure; it stores and prices nothing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from handlers.moment import in_utc
from handlers.pricing.checks import check, check_among, warnings_of
from schemas.base import to_builtins
from schemas.codec import prefixed
from schemas.errors import SignalError, conflict, invalid, not_found
from schemas.pricing import EndPriceRule, PriceRule, PriceRuleDraft, PriceRuleVersion, RuleOrigin, UpdatePricing
from store.price_listing import ListedRule
from store.prices import PriceRuleRow

_FIELDS: Final = tuple(f.name for f in msgspec.structs.fields(PriceRule))
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Book:
    """What a request is decided from: the newest version of each rule it names, and those of the org yet to end."""

    newest: Mapping[str, PriceRuleRow]
    others: Sequence[ListedRule]
    count: int


@dataclass(frozen=True, slots=True)
class Decided:
    """A new version and the one before it; ``action`` is what the audit trail calls it."""

    before: PriceRuleRow | None
    after: PriceRuleRow
    action: str


class Writer:
    """Whoever makes versions: of which org, by whom, when (PostgreSQL's clock), with which ids."""

    def __init__(self, org: str, actor: str, now: datetime, new_id: Callable[[], str]) -> None:
        self.org = org
        self.actor = actor
        self.now = now
        self._new_id = new_id

    def version(
        self, rule: PriceRule | None, before: PriceRuleRow | None, *, name: str, at: datetime, reason: str | None
    ) -> PriceRuleRow:
        """The version after ``before`` that holds from ``at`` on; ``rule`` None: there the rule ends."""
        if rule is not None:
            rule = msgspec.structs.replace(rule, valid_from=at)
        assert rule is not None or before is not None, "only what there is can end"
        return PriceRuleRow(
            org_id=self.org,
            name=name,
            version=1 if before is None else before.version + 1,
            rule_id=self._new_id(),
            layer=rule.layer if rule is not None else "" if before is None else before.layer,
            definition=None if rule is None else to_builtins(rule),
            valid_from=at,
            valid_to=None if rule is None else rule.valid_to,
            created_at=self.now,
            created_by=self.actor,
            reason=reason,
        )


def decide(request: UpdatePricing, book: Book, writer: Writer, *, rules_max: int) -> list[Decided]:
    """The versions a request asks for, in its order. Raises SignalError naming the field; it is all or nothing."""
    names = [rule.name for rule in request.rules] + [ended.name for ended in request.end]
    for i, name in enumerate(names):
        if name in names[:i]:
            at = f"rules[{i}]" if i < len(request.rules) else f"end[{i - len(request.rules)}]"
            raise invalid("is named twice", field=f"{at}.name")
    found = [_set(draft, f"rules[{i}]", request, book, writer) for i, draft in enumerate(request.rules)]
    found += [_end(ended, f"end[{i}]", request, book, writer) for i, ended in enumerate(request.end)]
    new = sum(decided.before is None for decided in found)
    if new and book.count + new > rules_max:
        raise conflict(
            f"there are {book.count} rules, and {rules_max} at most (names that were used count)", field="rules"
        )
    _check_others(found, book.others, set(names))
    return found


def rule_of(row: PriceRuleRow) -> PriceRule | None:
    """What a version says; None: the rule ends with it."""
    return None if row.definition is None else msgspec.convert(row.definition, PriceRule)


def warnings(decided: Iterable[Decided]) -> list[str]:
    """What is allowed, and worth a second look."""
    return [text for one in decided if (rule := rule_of(one.after)) is not None for text in warnings_of(rule)]


def earliest(decided: Iterable[Decided]) -> datetime:
    """From when on the first of these versions holds."""
    return min(one.after.valid_from or _EARLIEST for one in decided)


def shown(row: PriceRuleRow, at: datetime, replaced_at: datetime | None = None) -> PriceRuleVersion:
    """A version of the org's own as people see it at a time; ``replaced_at`` is when a later one takes over."""
    ends = [end for end in (row.valid_to, replaced_at) if end is not None]
    return PriceRuleVersion(
        name=row.name,
        version=row.version,
        origin="org",
        layer=row.layer,  # pyright: ignore[reportArgumentType]  # A CHECK holds the column to these values.
        state=_state(row, at, replaced_at),
        rule=rule_of(row),
        valid_from=row.valid_from,
        valid_to=min(ends, default=None),
        set_at=row.created_at,
        set_by=row.created_by,
        reason=row.reason,
    )


def of_agent(rule: PriceRule, origin: RuleOrigin, at: datetime, version: int = 1) -> PriceRuleVersion:
    """A rule that is the agent's and no org's."""
    state = "in_force"
    if rule.valid_from is not None and rule.valid_from > at:
        state = "scheduled"
    elif rule.valid_to is not None and rule.valid_to <= at:
        state = "over"
    return PriceRuleVersion(
        name=rule.name,
        version=version,
        origin=origin,
        layer=rule.layer,
        state=state,
        rule=rule,
        valid_from=rule.valid_from,
        valid_to=rule.valid_to,
    )


def moment(stated: datetime | None, field: str, now: datetime, *, backdate: bool) -> datetime:
    """From when on something holds, in UTC: ``now`` unless said otherwise. Raises SignalError naming the field."""
    at = in_utc(stated, field)
    if at is None:
        return now
    if at < _EARLIEST:
        raise invalid("is before the year 2000", field=field)
    if at < now and not backdate:
        text = "is in the past: that needs backdate, and past usage changes only by reprice_usage"
        raise invalid(text, field=field)
    return at


def _state(row: PriceRuleRow, at: datetime, replaced_at: datetime | None) -> Any:
    since = row.valid_from or _EARLIEST
    if replaced_at is not None and (replaced_at <= at or replaced_at <= since):
        return "superseded"
    if since > at:
        return "scheduled"
    return "over" if row.definition is None or (row.valid_to is not None and row.valid_to <= at) else "in_force"


def _set(draft: PriceRuleDraft, field: str, request: UpdatePricing, book: Book, writer: Writer) -> Decided:
    before = book.newest.get(draft.name)
    try:
        rule = _dated(draft, writer.now, backdate=request.backdate)
        check(rule)
        _check_version(draft.version, before)
    except SignalError as error:
        raise prefixed(error, field) from None
    assert rule.valid_from is not None, "it was dated"
    after = writer.version(rule, before, name=rule.name, at=rule.valid_from, reason=request.reason)
    return Decided(before, after, "created" if before is None else "updated")


def _end(ended: EndPriceRule, field: str, request: UpdatePricing, book: Book, writer: Writer) -> Decided:
    before = book.newest.get(ended.name)
    if before is None:
        raise not_found("there is no such price rule", field=f"{field}.name")
    try:
        _check_version(ended.version, before)
        at = moment(ended.at, "at", writer.now, backdate=request.backdate)
    except SignalError as error:
        raise prefixed(error, field) from None
    if before.definition is None or (before.valid_to is not None and before.valid_to <= at):
        raise conflict("the rule has ended already", field=f"{field}.name")
    after = writer.version(None, before, name=ended.name, at=at, reason=request.reason)
    return Decided(before, after, "ended")


def _dated(draft: PriceRuleDraft, now: datetime, *, backdate: bool) -> PriceRule:
    """The rule with its times in UTC, from now on unless it says otherwise."""
    fields = {name: getattr(draft, name) for name in _FIELDS}
    fields["valid_from"] = moment(draft.valid_from, "valid_from", now, backdate=backdate)
    fields["valid_to"] = in_utc(draft.valid_to, "valid_to")
    return PriceRule(**fields)


def _check_version(version: int, before: PriceRuleRow | None) -> None:
    present = 0 if before is None else before.version
    if version != present:
        raise conflict(f"the rule is at version {present}; read it again", field="version")


def _check_others(found: list[Decided], others: Sequence[ListedRule], named: set[str]) -> None:
    """Refuse two names for the same thing: nothing would say which of them holds."""
    new = [rule for one in found if (rule := rule_of(one.after)) is not None]
    old: list[PriceRule] = []
    for row, replaced_at in others:
        rule = rule_of(row)
        if rule is not None and row.name not in named:
            ends = [end for end in (rule.valid_to, replaced_at) if end is not None]
            old.append(msgspec.structs.replace(rule, valid_to=min(ends, default=None)))
    for calls, rule, other in check_among(new, old):
        i = next(i for i, one in enumerate(found) if one.after.name == rule.name)
        text = f"states rates for {calls} at times at which '{other.name}' does: end that one, or be more particular"
        raise conflict(text, field=f"rules[{i}].name")
