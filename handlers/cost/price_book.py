"""An org's own prices as stored, compiled: rules and aliases in every version, and the settings prices depend on."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from handlers.cost.layer import ALWAYS, Validity
from handlers.cost.rate_card import RateCard, Rates
from handlers.cost.resolve import provider_key
from handlers.cost.rules import Rule, Rules, compiled
from handlers.org_settings import OrgSettings
from handlers.patterns import EVERY, pattern_matches
from schemas.money import parse_cost
from schemas.pricing import PriceRule
from store.prices import ModelAliasRow, PriceRuleRow

CONTRACT: Final = "contract"
OPERATOR: Final = "operator"
SELF_HOSTED: Final = "self-hosted"


class Alias(msgspec.Struct, frozen=True):
    """Calls of ``provider`` and ``alias``, patterns in lower case, are calls of another model in ``validity``."""

    provider: str
    alias: str
    to_provider: str | None
    to_model: str
    validity: Validity
    label: str

    @property
    def particular(self) -> tuple[bool, int]:
        """Orders aliases of one name: exact names, then longer patterns win."""
        text = self.provider + self.alias
        return EVERY not in text, len(text.replace(EVERY, ""))


class PriceBook:
    """What an org has decided about its prices, as of one version of its catalogue. Immutable.

    ``revision`` tells two books of one org apart; 0 is the book of an org that has decided nothing. Prices of times
    before ``complete_since`` may lack rules that have not been read.
    """

    def __init__(
        self,
        rules: Sequence[PriceRuleRow] = (),
        aliases: Sequence[ModelAliasRow] = (),
        *,
        changes: int = 0,
        settings: OrgSettings | None = None,
        complete_since: datetime | None = None,
    ) -> None:
        self.changes = changes
        self.rows = tuple(rules)
        self.alias_rows = tuple(aliases)
        self.complete_since = complete_since if changes else None
        self.unreadable: list[str] = []
        found = self._compiled(rules)
        self.operator = Rules(OPERATOR, found[OPERATOR])
        self.contract = Rules(CONTRACT, found[CONTRACT])
        self.aliases = tuple(sorted(_aliases(aliases), key=lambda alias: alias.particular, reverse=True))
        self.settings = settings or OrgSettings()
        self.self_hosted = frozenset(map(provider_key, self.settings.self_hosted_providers))
        self.has_volumes = self.operator.has_volumes or self.contract.has_volumes
        self.revision = _revision(changes, self.settings)

    def with_settings(self, settings: OrgSettings) -> "PriceBook":
        """The same rules under other settings; this book where nothing of it changes."""
        if _revision(self.changes, settings) == self.revision:
            return self
        return PriceBook(
            self.rows,
            self.alias_rows,
            changes=self.changes,
            settings=settings,
            complete_since=self.complete_since,
        )

    @property
    def is_plain(self) -> bool:
        """Whether it changes nothing of what every org has."""
        return not (self.rows or self.aliases or self.self_hosted)

    def fallback(self) -> RateCard | None:
        """The org's rates for calls that nothing prices, where it has set any."""
        return fallback_card(self.settings.unpriced_rates)

    def _compiled(self, rows: Sequence[PriceRuleRow]) -> dict[str, list[Rule]]:
        found: dict[str, list[Rule]] = {OPERATOR: [], CONTRACT: []}
        for row, validity in in_force(rows):
            if row.definition is None:
                continue
            try:
                rule = msgspec.convert(row.definition, PriceRule)
                found[row.layer].append(compiled(rule, version=row.version, validity=validity))
            except (ValueError, ArithmeticError):
                # Written by another release; what it says is not known here, and must not pass unnoticed.
                self.unreadable.append(f"{row.name}@{row.version}")
        return found


def in_force(rows: Iterable[PriceRuleRow]) -> list[tuple[PriceRuleRow, Validity]]:
    """Versions with the time for which each holds: from its date, until its own end or a later version's date."""
    found: list[tuple[PriceRuleRow, Validity]] = []
    begins: dict[str, datetime] = {}
    for row in sorted(rows, key=lambda row: (row.name, -row.version)):
        since = row.valid_from or ALWAYS.since
        until = min(row.valid_to or ALWAYS.until, begins.get(row.name, ALWAYS.until))
        begins[row.name] = min(since, begins.get(row.name, ALWAYS.until))
        if since < until:
            found.append((row, Validity(since, until)))
    return found


def fallback_card(rates: Mapping[Any, str]) -> RateCard | None:
    """A card of rates in USD that stand in where nothing else is known."""
    if not rates:
        return None
    nanos = {kind: parse_cost(rate) for kind, rate in rates.items()}
    return RateCard(provider="*", model="*", source="estimate", version="unpriced_rates", rates=Rates(**nanos))


def request_card(provider: str, model: str, rates: Mapping[Any, str], currency: str = "USD") -> RateCard:
    """The card of rates that a request states itself. Raises RateError or AmountError for one that is none."""
    nanos = {kind: parse_cost(rate) for kind, rate in rates.items()}
    return RateCard(
        provider=provider_key(provider),
        model=model.strip(),
        source="request",
        version="request",
        rates=Rates(**nanos),
        currency=currency,
    )


def _aliases(rows: Sequence[ModelAliasRow]) -> list[Alias]:
    found: list[Alias] = []
    begins: dict[tuple[str, str], datetime] = {}
    for row in sorted(rows, key=lambda row: (row.provider, row.alias, -row.version)):
        name = row.provider, row.alias
        since, until = row.valid_from or ALWAYS.since, begins.get(name, ALWAYS.until)
        begins[name] = min(since, until)
        if since < until and row.to_model is not None:
            found.append(
                Alias(
                    provider_key(row.provider),
                    row.alias.strip().lower(),
                    None if row.to_provider is None else provider_key(row.to_provider),
                    row.to_model.strip(),
                    Validity(since, until),
                    f"alias {row.provider}/{row.alias}@{row.version}",
                )
            )
    return found


def named(alias: Alias, provider: str, model: str) -> bool:
    """Whether a call goes by an alias; ``model`` in lower case."""
    return pattern_matches(alias.provider, provider) and pattern_matches(alias.alias, model)


def _revision(changes: int, settings: OrgSettings) -> int:
    """A number that another book of the org does not have: 63 bits of what makes it."""
    parts = _chosen(settings)
    chosen = parts != _chosen(OrgSettings())
    if not changes and not chosen:
        return 0
    text = repr((changes, *parts) if chosen else changes).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def _chosen(settings: OrgSettings) -> tuple[Any, ...]:
    """The settings that a price depends on, and whether a reported cost is believed instead of it."""
    return (
        sorted(settings.self_hosted_providers),
        settings.on_unpriced,
        sorted(settings.unpriced_rates.items()),
        settings.reported_cost,
        sorted(settings.reported_cost_providers),
    )


NO_BOOK: Final = PriceBook()
