"""Which budgets apply to a call: an org's budgets as an index, reloaded whenever its version changes (R2)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from handlers.cost.price_book import NO_BOOK, PriceBook
from handlers.cost.resolve import RateCards
from handlers.counting.limits import NO_ORG_LIMITS, OrgLimits
from handlers.currency.exchange import Books, Exchange
from handlers.enforcer.ledger import effective_limit
from handlers.org_settings import OrgSettings
from handlers.patterns import EVERY, pattern_matches
from handlers.pricing.snapshots import Snapshots
from store import budgets as budget_store
from store import catalogue as catalogue_store
from store import model_limits as limit_store
from store import prices as price_store
from store.budgets import BudgetRow
from store.catalogue import Brake, Raise
from store.pool import Connection

# The attribute of a call that names the entity of each budget type.
ENTITY_FIELD: Final[dict[str, str]] = {
    "team": "team_id",
    "user": "user_id",
    "project": "project_id",
    "feature": "feature",
    "agent": "agent_id",
    "session": "session_id",
    "task": "task_id",
    "environment": "environment",
    "cost_center": "cost_center",
}
_NO_RATES: Final = Exchange.empty()

# Longer than raw usage is kept by default, so that all of it can be priced again.
PRICE_HISTORY_DAYS: Final = 400


@dataclass(frozen=True, slots=True)
class Match:
    """A budget that applies to a call, and the entity whose window is charged."""

    budget: BudgetRow
    entity_id: str


class Catalogue:
    """An immutable snapshot of everything an org's decisions are made from, at one version."""

    def __init__(
        self,
        org: str,
        version: int,
        rows: list[BudgetRow],
        settings: dict[str, Any],
        *,
        raises: Sequence[Raise] = (),
        brakes: Sequence[Brake] = (),
        members: Mapping[str, tuple[str, ...]] | None = None,
        model_limits: OrgLimits = NO_ORG_LIMITS,
        exchange: Exchange | None = None,
        book: PriceBook = NO_BOOK,
        cards: RateCards | None = None,
    ) -> None:
        self.org = org
        self.version = version
        self.settings = settings
        self.org_settings = OrgSettings.of(settings)
        self.book = book.with_settings(self.org_settings)
        # List prices of the org's own choice; None: those the agent came with.
        self.cards = cards
        self.exchange = exchange or _NO_RATES
        self.model_limits = model_limits
        self.brakes = tuple(brakes)
        self.members: Mapping[str, tuple[str, ...]] = members or {}
        self.raises: dict[tuple[str, str], list[Raise]] = {}
        for found in raises:
            self.raises.setdefault((found.budget_id, found.entity_id), []).append(found)
        self.by_id = {row.budget_id: row for row in rows}
        self._currencies = {row.currency for row in rows if row.unit == "cost"}
        self._global = [row for row in rows if row.active and row.type == "global"]
        self._scoped: dict[tuple[str, str], list[BudgetRow]] = {}
        for row in rows:
            if row.active and row.type != "global":
                self._scoped.setdefault((row.type, row.entity_id), []).append(row)

    def differs(self, currency: str) -> bool:
        """Whether any budget, an inactive one too, counts cost in another currency."""
        return not self._currencies <= {currency}

    def same_as(self, other: "Catalogue") -> bool:
        """Whether plans made from the other one hold for this one: the version, and the rates it goes on to know."""
        return self.version == other.version and self.exchange is other.exchange

    def raised(self, budget_id: str, entity_id: str, at: datetime) -> int:
        """By how much overrides raise a budget's limit for an entity at ``at``, in the budget's unit."""
        if not self.raises:
            return 0
        found = self.raises.get((budget_id, entity_id), ())
        return sum(r.amount for r in found if r.starts_at <= at < r.ends_at)

    def limit(self, budget: BudgetRow, entity_id: str, carry: int, at: datetime) -> int:
        """The effective limit of a window at ``at``."""
        return effective_limit(budget, carry, self.raised(budget.budget_id, entity_id, at))

    def unchanged_around(self, at: datetime) -> tuple[datetime | None, datetime | None]:
        """The time around ``at`` in which no override begins or ends: since (inclusive) and until, None: unbounded."""
        edges = [edge for found in self.raises.values() for r in found for edge in (r.starts_at, r.ends_at)]
        since = max((edge for edge in edges if edge <= at), default=None)
        return since, min((edge for edge in edges if edge > at), default=None)

    def matches(self, call: dict[str, str | None]) -> list[Match]:
        """Active budgets that apply to a call with these attributes (with ``provider`` and ``model``), by id."""
        found = [m for m in self._candidates(call) if filters_match(m.budget.filters, call)]
        return sorted(found, key=lambda m: (m.budget.budget_id, m.entity_id))

    def _candidates(self, call: dict[str, str | None]) -> Iterator[Match]:
        for row in self._global:
            yield Match(row, EVERY)
        for kind, field in ENTITY_FIELD.items():
            entity = call.get(field)
            if entity is None:
                continue
            for named in (entity, EVERY) if entity != EVERY else (EVERY,):
                for row in self._scoped.get((kind, named), ()):
                    yield Match(row, entity)


def filters_match(filters: dict[str, str], call: dict[str, str | None]) -> bool:
    """Whether every filter matches; ``*`` in a filter stands for any text, a missing attribute matches nothing."""
    for field, pattern in filters.items():
        value = call.get(field)
        if value is None or not pattern_matches(pattern, value):
            return False
    return True


def counts(budget: BudgetRow, charged_at: datetime) -> bool:
    """Whether a budget counts a charge of that time: a new budget counts from its creation (R4)."""
    return charged_at >= budget.counting_since


class Catalogues:
    """The newest known catalogue of each org; bounded by ``limit`` orgs."""

    def __init__(self, limit: int = 10_000, books: Books | None = None) -> None:
        self._known: dict[str, Catalogue] = {}
        self.limit = limit
        self.books = books
        self.snapshots: Snapshots | None = None
        # How far back the versions of price rules are known; older ones are read by nobody.
        self.price_history_days = PRICE_HISTORY_DAYS

    def known(self, org: str) -> Catalogue | None:
        """The cached catalogue, which may be stale: its version is compared under the lock before it decides."""
        return self._known.get(org)

    async def reload(self, connection: Connection, org: str) -> Catalogue:
        """Read the catalogue in one snapshot, under the shared lock that the caller's transaction takes here."""
        version = await budget_store.lock_shared(connection, org)
        rows = await budget_store.load(connection, org)
        settings = await budget_store.load_settings(connection, org)
        raises = await catalogue_store.load_raises(connection, org)
        brakes = await catalogue_store.load_brakes(connection, org)
        members = await catalogue_store.load_members(connection, org)
        limits = OrgLimits.of_rows(await limit_store.load(connection, org))
        exchange = None if self.books is None else await self.books.refresh(connection, org)
        book, cards = await self._book(connection, org)
        if len(self._known) >= self.limit:
            self._known.clear()
        catalogue = Catalogue(
            org, version, rows, settings, raises=raises, brakes=brakes, members=members, exchange=exchange, book=book,
            model_limits=limits, cards=cards,
        )  # fmt: skip
        self._known[org] = catalogue
        return catalogue

    async def _book(self, connection: Connection, org: str) -> tuple[PriceBook, RateCards | None]:
        """The org's prices and what they stand on; read only where they have changed."""
        changes = await price_store.revision(connection, org)
        known = self._known.get(org)
        if known is not None and known.book.changes == changes:
            return known.book, known.cards
        if not changes:
            return NO_BOOK, None
        since = await price_store.history_since(connection, self.price_history_days)
        book = PriceBook(
            await price_store.load_rules(connection, org, since=since),
            await price_store.load_aliases(connection, org, since=since),
            changes=changes,
            complete_since=since,
        )
        return book, None if self.snapshots is None else await self.snapshots.cards(connection, org)
