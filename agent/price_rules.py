"""The operator's price rules for every org of an agent: read once from a file, checked before the agent serves."""

from pathlib import Path
from typing import Any, Final, cast

import msgspec

from handlers.enforcer.policy_yaml import YamlError, read_yaml
from handlers.pricing.checks import check, check_among
from schemas.codec import Codec
from schemas.errors import SignalError
from schemas.pricing import PriceRule

FILE_CHARS_MAX: Final = 1_000_000
RULES_MAX: Final = 5_000
_CODEC: Final = Codec(PriceRule)
_LISTS: Final = ("tiers", "volume")
_AMOUNTS: Final = ("factor", "amount", "above")


class BadPriceRules(RuntimeError):
    """The file of price rules cannot be read, or says what cannot be applied; the text says which and where."""


def read_price_rules(path: Path) -> tuple[PriceRule, ...]:
    """The rules of a YAML or JSON file: a list of them, or a mapping with ``rules``. Raises BadPriceRules."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadPriceRules(f"the price rules in {path} cannot be read: {error}") from None
    if len(text) > FILE_CHARS_MAX:
        raise BadPriceRules(f"the price rules in {path} have more than {FILE_CHARS_MAX} characters")
    try:
        return _rules(read_yaml(text))
    except YamlError as error:
        raise BadPriceRules(f"the price rules in {path}: {error}") from None
    except SignalError as error:
        raise BadPriceRules(f"the price rules in {path}: {error.field}: {error.message}") from None


def _rules(document: Any) -> tuple[PriceRule, ...]:
    if isinstance(document, dict):
        top = cast("dict[str, Any]", document)
        if list(top) != ["rules"]:
            raise SignalError(
                "invalid_request", "a file is a list of rules, or has `rules` and nothing else", field="file"
            )
        document = top["rules"]
    if not isinstance(document, list):
        raise SignalError("invalid_request", "is not a list", field="rules")
    listed = cast("list[Any]", document)
    if len(listed) > RULES_MAX:
        raise SignalError("invalid_request", f"lists more than {RULES_MAX} rules", field="rules")
    found: list[PriceRule] = []
    for i, entry in enumerate(listed):
        rule = _rule(entry, f"rules[{i}]")
        if any(rule.name == other.name for other in found):
            raise SignalError("invalid_request", f"'{rule.name}' is there twice", field=f"rules[{i}].name")
        found.append(rule)
    for calls, rule, other in check_among(found, ()):
        text = f"states rates for {calls} at times at which '{other.name}' does"
        raise SignalError("invalid_request", text, field=f"rules[{found.index(rule)}].name")
    return tuple(found)


def _rule(entry: Any, field: str) -> PriceRule:
    try:
        rule = _CODEC.decode(msgspec.json.encode(_amounts(entry)))
        check(rule)
    except SignalError as error:
        at = field if error.field is None else f"{field}.{error.field}"
        raise SignalError(error.code, error.message, field=at) from None
    if rule.layer != "operator":
        text = "the operator's file states list prices: layer operator; a contract is an org's own"
        raise SignalError("invalid_request", text, field=f"{field}.layer")
    return rule


def _amounts(entry: Any) -> Any:
    """Amounts as the text they are on the wire: people write ``input: 2`` in a file."""
    if not isinstance(entry, dict):
        return entry
    found = dict(cast("dict[str, Any]", entry))
    for name in _LISTS:
        if isinstance(found.get(name), list):
            found[name] = [_amounts(item) for item in cast("list[Any]", found[name])]
    for name in _AMOUNTS:
        found |= {name: _text(found[name])} if name in found else {}
    if isinstance(found.get("rates"), dict):
        found["rates"] = {kind: _text(rate) for kind, rate in cast("dict[str, Any]", found["rates"]).items()}
    return found


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
