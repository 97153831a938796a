"""A document of policies: all of its entries as requests for budgets, or all of its errors. And back. Pure.

version: 1
defaults: {timezone: Europe/Vienna}
policies:
  - {name: engineering, scope: "team:engineering", limit: $500/month, alerts: [50%, 90%], enforcement: block}
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec

from handlers.enforcer import policy_words as words
from handlers.enforcer.calendar import EPOCH
from handlers.enforcer.drafts import Whole, drafted, rate_name, rate_of
from handlers.enforcer.policy_words import Fields, WordError, nearest
from handlers.enforcer.policy_yaml import YamlError, read_yaml
from schemas.budget import CreateBudget, OverridePolicy, Rollover
from schemas.errors import SignalError
from schemas.money import format_cost
from schemas.policy import POLICIES_MAX, PolicyError

VERSION: Final = 1
_BREAK: Final = re.compile(r"[.\[]")
_TOP: Final = ("version", "defaults", "policies")
# The keys of an entry, in the order in which they are written, and how each is read.
KEYS: Final[Mapping[str, Callable[[Any], Fields]]] = {
    "name": words.read_name,
    "scope": words.read_scope,
    "filters": words.read_filters,
    "limit": words.read_amount,
    "currency": words.read_currency,
    "timezone": words.read_timezone,
    "overage": words.read_overage,
    "enforcement": words.read_enforcement,
    "rate": words.read_rate,
    "alerts": words.read_alerts,
    "rollover": words.read_rollover,
    "prefer": words.read_preferred,
    "fallback": words.read_fallback,
    "override": words.read_override,
    "on_expiry": words.read_expiry,
    "active": words.read_active,
}
_REQUIRED: Final = ("name", "scope", "limit")
# What a check of the whole entry calls its fields, and what a policy calls them.
_KEY_OF: Final = {
    "entity_id": "scope",
    "overage_percent": "overage",
    "rate.limit": "rate",
    "alert_thresholds": "alerts",
}


@dataclass(frozen=True, slots=True)
class Document:
    """What a document says; with ``errors`` it says nothing that may be applied."""

    policies: tuple[CreateBudget, ...]
    errors: tuple[PolicyError, ...]


def read_text(text: str) -> Document:
    """The policies of YAML text."""
    try:
        return read_document(read_yaml(text))
    except YamlError as error:
        return Document((), (PolicyError(field="document", message=str(error)),))


def read_document(document: Any) -> Document:
    """The policies of a document that has been parsed: a mapping with ``policies``, or their bare list."""
    top = cast("dict[str, Any]", document) if isinstance(document, dict) else {"policies": document}
    unknown = [key for key in top if key not in _TOP]
    errors = [PolicyError(field=key[:64], message=f"unknown key{nearest(key, _TOP)}") for key in unknown]
    if top.get("version", VERSION) != VERSION:
        errors.append(PolicyError(field="version", message=f"is not {VERSION}, the only one there is"))
    defaults = _defaults(top.get("defaults"), errors)
    entries: Any = top.get("policies")
    if not isinstance(entries, list):
        errors.append(PolicyError(field="policies", message="is not a list of policies"))
        entries = []
    listed = cast("list[Any]", entries)
    if len(listed) > POLICIES_MAX:
        errors.append(PolicyError(field="policies", message=f"lists more than {POLICIES_MAX} policies"))
        listed = []
    found = [_entry(f"policies[{i}]", entry, defaults, errors) for i, entry in enumerate(listed)]
    errors += _twice(found)
    return Document(() if errors else tuple(f for f in found if f is not None), tuple(errors))


def rendered(whole: Whole) -> dict[str, Any]:
    """A budget as an entry of a document, with every key that is not what it would be anyway."""
    entry = complete(whole)
    return {key: value for key, value in entry.items() if key in _REQUIRED or value != _UNSAID[key]}


def complete(whole: Whole) -> dict[str, Any]:
    """A budget as an entry of a document, with every key."""
    row = whole.main
    limit = format_cost(row.base_limit) if row.unit == "cost" else str(row.base_limit)
    rollover = msgspec.convert({"policy": row.rollover_policy, "percent": row.rollover_percent}, Rollover)
    return {
        "name": row.name,
        "scope": words.scope_words(type=row.type, entity_id=row.entity_id),
        "filters": row.filters,
        "limit": words.amount_words(limit=limit, unit=row.unit, period=row.period, currency=row.currency),
        "timezone": row.timezone,
        "overage": f"{row.overage_percent}%",
        "enforcement": row.enforcement,
        "rate": None if whole.rate is None else words.rate_words(rate_of(whole.rate)),
        "alerts": list(row.alert_thresholds),
        "rollover": words.rollover_words(rollover),
        "prefer": list(row.preferred_models),
        "fallback": row.fallback_model,
        "override": words.override_words(msgspec.convert(row.override_policy, OverridePolicy)),
        "on_expiry": row.on_expiry,
        "active": row.active,
    }


def _defaults(value: Any, errors: list[PolicyError]) -> dict[str, Any]:
    """What entries say that leave it out. Each value is checked here, and once more where it is used."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        errors.append(PolicyError(field="defaults", message="is not a mapping of keys to values"))
        return {}
    defaults = cast("dict[str, Any]", value)
    allowed = {key: read for key, read in KEYS.items() if key != "name"}
    _, wrong = _fields("defaults", defaults, allowed)
    errors += wrong
    return {} if wrong else defaults


def _entry(path: str, value: Any, defaults: Mapping[str, Any], errors: list[PolicyError]) -> CreateBudget | None:
    if not isinstance(value, dict):
        errors.append(PolicyError(field=path, message="is not a mapping of keys to values"))
        return None
    entry = {**defaults, **cast("dict[str, Any]", value)}
    fields, wrong = _fields(path, entry, KEYS)
    wrong += [PolicyError(field=f"{path}.{key}", message="is required") for key in _REQUIRED if entry.get(key) is None]
    if entry.get("limit") is not None and "limit" in fields and fields.get("currency", "USD") is None:
        wrong.append(PolicyError(field=f"{path}.limit", message="does not say of what: a currency, tokens or requests"))
    if all(key in fields for key in ("name", "type", "limit")):
        known = {_BREAK.split(error.field.removeprefix(path))[1] for error in wrong}
        wrong += [error for key, error in _whole(path, fields) if key not in known]
    errors += wrong
    return None if wrong else CreateBudget(**fields)


def _fields(
    path: str, entry: Mapping[str, Any], known: Mapping[str, Callable[[Any], Fields]]
) -> tuple[Fields, list[PolicyError]]:
    """The fields of everything that can be read, and the errors of the rest. Null is as good as left out."""
    fields: Fields = {}
    errors: list[PolicyError] = []
    for key, value in entry.items():
        if key not in known:
            errors.append(PolicyError(field=f"{path}.{key[:64]}", message=f"unknown key{nearest(key, KEYS)}"))
        elif value is not None:
            try:
                fields |= _merged(fields, known[key](value))
            except WordError as error:
                errors.append(PolicyError(field=f"{path}.{key}{error.field}", message=error.message))
    return fields, errors


def _merged(fields: Fields, more: Fields) -> Fields:
    """An amount without a currency takes that of the entry; one with another contradicts it."""
    stated, added = fields.get("currency"), more.get("currency")
    if "currency" in more and stated is not None:
        if added is not None and added != stated:
            raise WordError(f"is in {added} here and in {stated} elsewhere")
        return more | {"currency": stated}
    return more


def _whole(path: str, fields: Fields) -> list[tuple[str, PolicyError]]:
    """What is wrong with an entry as a whole, by key: one by one, each time without what was wrong before."""
    errors: list[tuple[str, PolicyError]] = []
    left = {name: value for name, value in fields.items() if name != "currency" or value is not None}
    for _ in KEYS:
        try:
            drafted(CreateBudget(**left), org="", now=EPOCH, new_id=str)
            break
        except SignalError as error:
            field = error.field or "limit"
            key = _KEY_OF.get(field, field)
            errors.append((key, PolicyError(field=f"{path}.{key}", message=error.message)))
            if key in _REQUIRED or left.pop(field.partition(".")[0], None) is None:
                break
    return errors


def _twice(found: list[CreateBudget | None]) -> list[PolicyError]:
    """Names that two budgets of a document would have; a rate is a budget too."""
    errors: list[PolicyError] = []
    names: dict[str, int] = {}
    for i, request in enumerate(found):
        if request is not None:
            taken = [request.name, *([rate_name(request.name)] if request.rate is not None else [])]
            for name in taken:
                if (other := names.setdefault(name, i)) != i:
                    text = f"'{name[:64]}' is also a name of policies[{other}]"
                    errors.append(PolicyError(field=f"policies[{i}].name", message=text))
    return errors


def _unsaid() -> dict[str, Any]:
    plain = CreateBudget(name="", type="global", limit="0")
    return complete(drafted(plain, org="", now=EPOCH, new_id=str))


# What each key is where an entry leaves it out.
_UNSAID: Final = _unsaid()
