"""``apply_policies``: an org's budgets as a document says, decided as a whole, changed in one transaction or not.

Budgets made from documents are ``managed``; those made by hand are never changed, deleted or taken over.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from handlers import audit
from handlers.access.scope import may_manage
from handlers.context import Caller, Context, Ids, Services
from handlers.cursor import fitting
from handlers.enforcer.catalogue import EVERY
from handlers.enforcer.drafts import IDENTITY, Whole, dated, deleted, drafted, rate_name, turned_into, with_rates
from handlers.enforcer.entities import entity_key
from handlers.enforcer.policy_file import Document, complete, read_document, read_text, rendered
from handlers.enforcer.transaction import catalogue_change
from handlers.enforcer.written import Change, announce, audited, check_scope, write
from schemas.budget import CreateBudget
from schemas.errors import SignalError, invalid
from schemas.policy import (
    DOCUMENT_CHARS_MAX,
    AppliedPolicies,
    ApplyPolicies,
    FieldChange,
    PolicyChange,
    PolicyError,
)
from signals import budget as signals
from signals import route
from store import budgets as budget_store
from store import catalogue as catalogue_store
from store import policies as policy_store
from store.budgets import BudgetRow
from store.pool import Connection

DEFAULT_ACTOR: Final = "policy:default"
ERRORS_MAX: Final = 200
_ENCODE: Final = msgspec.json.Encoder(order="deterministic").encode


@dataclass(frozen=True, slots=True)
class Wanted:
    """A document that was read without errors. ``text`` is what is kept of it."""

    text: str
    policies: tuple[CreateBudget, ...]


@dataclass(frozen=True, slots=True)
class State:
    """What an org has: managed budgets by name, the names of all others, who is in which team, the last document."""

    managed: Mapping[str, Whole]
    taken: frozenset[str]
    members: Mapping[str, tuple[str, ...]]
    version: int


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one budget: what is told, and what is written (deletions before creations)."""

    told: PolicyChange
    changes: tuple[Change, ...] = ()


async def apply_policies(ctx: Context, request: ApplyPolicies) -> AppliedPolicies:
    """Apply a document, or with ``dry_run`` say what it would change. Raises SignalError ``invalid_request``."""
    text, document = await _document(request)
    if document.errors:
        if not request.dry_run:
            raise _refused(document.errors)
        return AppliedPolicies(applied=False, version=0, diff=[], errors=list(document.errors[:ERRORS_MAX]))
    await ctx.services.catalogue(ctx.org)  # A new org has its default policies before they are looked at.
    wanted = _nameless(ctx, Wanted(text, document.policies))
    foreseen, clashes = await _foreseen(ctx, wanted, prune=request.prune)
    if clashes and not request.dry_run:
        raise _refused(clashes)
    if request.dry_run or foreseen.counts.keys() <= {"unchanged"}:
        return msgspec.structs.replace(foreseen, errors=clashes[:ERRORS_MAX], applied=not request.dry_run)
    return await _applied(ctx, wanted, prune=request.prune, reason=request.reason)


async def revert_policies(ctx: Context, before: Mapping[str, Any] | None, *, reason: str) -> AppliedPolicies:
    """Make managed budgets what they were: ``before`` is that of an audit entry of entity ``policy``, None: nothing.

    Budgets that were deleted since come back as new ones, which count from now. Raises SignalError
    ``invalid_request`` where the entry was too large for the trail to keep, or can no longer be applied.
    """
    policies: Any = [] if before is None else before.get("policies")
    if policies is None:
        raise invalid("the audit trail does not hold the policies of that time", field="before")
    document = read_document({"policies": policies})
    if document.errors:
        raise _refused(document.errors)
    text = _ENCODE({"version": 1, "policies": policies}).decode()
    return await _applied(ctx, Wanted(text, document.policies), prune=True, reason=reason)


def readable(text: str) -> Wanted:
    """A document that may be applied. Raises SignalError ``invalid_request`` that names the first error."""
    document = read_text(text)
    if document.errors:
        raise _refused(document.errors)
    return Wanted(text, document.policies)


async def apply_defaults(services: Services, org: str, wanted: Wanted) -> None:
    """Give an org that nobody has changed yet these policies; of agents that race, one does."""
    ctx = Context(services, Caller(org, DEFAULT_ACTOR, frozenset({"admin"})))
    async with services.database.transaction() as connection:
        await budget_store.lock_exclusive(connection, org)
        if await budget_store.version(connection, org) == 0:
            await budget_store.bump(connection, org)
            nameless = _nameless(ctx, wanted)
            await _apply(ctx, connection, nameless, prune=False, reason="the policies of a new org")
    services.outbox_ready.set()


async def _document(request: ApplyPolicies) -> tuple[str, Document]:
    """The document's text, and what it says. A long one is read beside the event loop."""
    if (request.document is None) == (request.policies is None):
        raise invalid("give either 'document' or 'policies'", field="document")
    if request.document is not None:
        return request.document, await asyncio.to_thread(read_text, request.document)
    content = {"version": 1, "policies": request.policies}
    text = _ENCODE(content).decode()
    if len(text) > DOCUMENT_CHARS_MAX:
        raise SignalError("too_large", f"the policies have more than {DOCUMENT_CHARS_MAX} characters", field="policies")
    return text, await asyncio.to_thread(read_document, content)


def _nameless(ctx: Context, wanted: Wanted) -> Wanted:
    """The same policies with surrogates for users. A text that names users is not kept: what it says is, in JSON."""
    policies: list[CreateBudget] = []
    for i, request in enumerate(wanted.policies):
        try:
            entity_id = entity_key(ctx, type=request.type, entity_id=request.entity_id)
        except SignalError as error:
            raise invalid(error.message, field=f"policies[{i}].scope") from None
        policies.append(msgspec.structs.replace(request, entity_id=entity_id))
    if not any(request.type == "user" and request.entity_id != EVERY for request in wanted.policies):
        return wanted
    drafts = [drafted(request, org=ctx.org, now=ctx.now(), new_id=ctx.new_id) for request in policies]
    return Wanted(_ENCODE({"version": 1, "policies": _entries(drafts)}).decode(), tuple(policies))


def _refused(errors: Sequence[PolicyError]) -> SignalError:
    first, more = errors[0], len(errors) - 1
    others = f" ({more} more {'errors' if more > 1 else 'error'}: dry_run lists all)" if more else ""
    return invalid(f"{first.message}{others}", field=first.field)


async def _foreseen(ctx: Context, wanted: Wanted, *, prune: bool) -> tuple[AppliedPolicies, list[PolicyError]]:
    """What applying would change now; nothing is."""
    async with ctx.database.transaction() as connection:
        await budget_store.lock_shared(connection, ctx.org)
        state = await _state(connection, ctx.org, wanted)
        now = await budget_store.clock(connection)
        steps = _steps(ctx, wanted, state, prune=prune, now=now)
        await check_scope(ctx, connection, _rows(steps))
    return _reply(steps, state.version, applied=False), _clashes(wanted, state)


async def _applied(ctx: Context, wanted: Wanted, *, prune: bool, reason: str | None) -> AppliedPolicies:
    async def work(connection: Connection) -> AppliedPolicies:
        return await _apply(ctx, connection, wanted, prune=prune, reason=reason)

    return await catalogue_change(ctx, work, taken=("document", "a budget of one of these names exists"))


async def _apply(
    ctx: Context, connection: Connection, wanted: Wanted, *, prune: bool, reason: str | None
) -> AppliedPolicies:
    """Everything at once, under the exclusive catalogue lock; without changes no document is kept."""
    state = await _state(connection, ctx.org, wanted)
    if clashes := _clashes(wanted, state):
        raise _refused(clashes)
    now = await budget_store.clock(connection)
    steps = _steps(ctx, wanted, state, prune=prune, now=now)
    changes = [change for step in steps for change in step.changes]
    if not changes:
        return _reply(steps, state.version, applied=True)
    await check_scope(ctx, connection, _rows(steps))
    # A deletion frees the name that a creation takes.
    for change in sorted(changes, key=lambda c: c.after.main.deleted_at is None):
        await write(connection, change, now)
    told = await announce(ctx, connection, changes, now)
    digest = hashlib.sha256(wanted.text.encode()).hexdigest()
    version = await policy_store.add(
        connection, ctx.org, document=wanted.text, sha256=digest, applied_by=ctx.caller.actor, applied_at=now
    )
    await audited(ctx, connection, told, reason)
    await audit.record(
        connection,
        ctx.caller,
        action="applied",
        entity="policy",
        entity_id=str(version),
        before={"version": state.version, "policies": _entries(state.managed.values())},
        after={"version": version, "sha256": digest, "policies": _entries(_managed_after(state, changes))},
        reason=reason,
    )
    return _reply(steps, version, applied=True)


async def _state(connection: Connection, org: str, wanted: Wanted) -> State:
    rows = await budget_store.managed(connection, org)
    mains = [row for row in rows if row.gate_id is None]
    budgets = with_rates(mains, [row for row in rows if row.gate_id is not None])
    names = [name for request in wanted.policies for name in _names(request)]
    latest = await policy_store.latest(connection, org)
    return State(
        managed={whole.main.name: whole for whole in budgets},
        taken=frozenset(row.name for row in await budget_store.named(connection, org, names) if not row.managed),
        members=await catalogue_store.load_members(connection, org),
        version=0 if latest is None else latest.version,
    )


def _clashes(wanted: Wanted, state: State) -> list[PolicyError]:
    """Policies whose names budgets made by hand have."""
    return [
        PolicyError(
            field=f"policies[{i}].name", message=f"a budget made by hand is called '{name}'; rename one of them"
        )
        for i, request in enumerate(wanted.policies)
        for name in _names(request)
        if name in state.taken
    ]


def _names(request: CreateBudget) -> list[str]:
    return [request.name] if request.rate is None else [request.name, rate_name(request.name)]


def _steps(ctx: Context, wanted: Wanted, state: State, *, prune: bool, now: datetime) -> list[Step]:
    """What a document comes to, in its order; then, with ``prune``, what it no longer names."""
    steps: list[Step] = []
    for request in wanted.policies:
        draft = drafted(request, org=ctx.org, now=now, new_id=ctx.new_id, managed=True)
        after = dated(draft, now=now, since=now)
        steps.append(_step(state.managed.get(request.name), after, now=now, new_id=ctx.new_id))
    named = {request.name for request in wanted.policies}
    for name, whole in state.managed.items():
        row = whole.main
        mine = may_manage(ctx.caller, type=row.type, entity_id=row.entity_id, members=state.members)
        if prune and name not in named and mine:
            gone = Change(whole, deleted(whole, now))
            changes = {key: FieldChange(before=value, after=None) for key, value in rendered(whole).items()}
            steps.append(
                Step(PolicyChange(name=name, action="delete", budget_id=row.budget_id, changes=changes), (gone,))
            )
    return steps


def _step(before: Whole | None, wanted: Whole, *, now: datetime, new_id: Ids) -> Step:
    name = wanted.main.name
    if before is None:
        changes = {key: FieldChange(before=None, after=value) for key, value in rendered(wanted).items()}
        told = PolicyChange(name=name, action="create", budget_id=wanted.main.budget_id, changes=changes)
        return Step(told, (Change(None, wanted),))
    known = before.main.budget_id
    if any(getattr(before.main, field) != getattr(wanted.main, field) for field in IDENTITY):
        told = PolicyChange(name=name, action="replace", budget_id=known, changes=_differences(before, wanted))
        return Step(told, (Change(before, deleted(before, now)), Change(None, wanted)))
    after = turned_into(before, wanted, now=now, new_id=new_id)
    if after == before:
        return Step(PolicyChange(name=name, action="unchanged", budget_id=known))
    told = PolicyChange(name=name, action="update", budget_id=known, changes=_differences(before, after))
    return Step(told, (Change(before, after),))


def _differences(before: Whole, after: Whole) -> dict[str, FieldChange]:
    old, new = complete(before), complete(after)
    return {key: FieldChange(before=old[key], after=new[key]) for key in old if old[key] != new[key]}


def _managed_after(state: State, changes: Iterable[Change]) -> list[Whole]:
    after = {whole.main.budget_id: whole for whole in state.managed.values()}
    after |= {change.after.main.budget_id: change.after for change in changes}
    return sorted((w for w in after.values() if w.main.deleted_at is None), key=lambda w: w.main.name)


def _entries(budgets: Iterable[Whole]) -> list[dict[str, Any]]:
    return [rendered(whole) for whole in budgets]


def _rows(steps: Iterable[Step]) -> list[BudgetRow]:
    """Every budget that is changed, as it was and as it becomes."""
    wholes = [whole for step in steps for change in step.changes for whole in (change.before, change.after)]
    return [whole.main for whole in wholes if whole is not None]


def _reply(steps: Sequence[Step], version: int, *, applied: bool) -> AppliedPolicies:
    diff = [step.told for step in steps]
    if not applied:  # What is only foreseen has no id yet.
        diff = [msgspec.structs.replace(told, budget_id=None) if told.action == "create" else told for told in diff]
    counts: dict[str, int] = {}
    for told in diff:
        counts[told.action] = counts.get(told.action, 0) + 1
    shown = fitting(diff)
    return AppliedPolicies(
        applied=applied, version=version, diff=shown, counts=counts, truncated=len(shown) < len(diff)
    )


ROUTES = (route(signals.APPLY_POLICIES, apply_policies),)
