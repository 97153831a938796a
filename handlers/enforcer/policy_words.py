"""The words of a policy: amounts, scopes, percentages as people write them, as fields of ``CreateBudget`` and back."""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, Final, TypeVar, cast, get_args

import msgspec

from handlers.enforcer.calendar import zone
from handlers.enforcer.catalogue import ENTITY_FIELD, EVERY
from schemas.base import Name
from schemas.budget import BudgetFilters, OnExpiry, OverridePolicy, Rate, Rollover
from schemas.currencies import known_currency
from schemas.errors import SignalError
from signals import ROLES

T = TypeVar("T")
Fields = dict[str, Any]

LIMIT_CHARS_MAX: Final = 100
_PER: Final = re.compile(r"(?P<what>.+?) *(?:/|\bper\b|\ba\b) *(?P<period>[A-Za-z]+)")
_ADVERB: Final = re.compile(r"(?P<what>.+?) +(?:in +)?(?P<period>hourly|daily|weekly|monthly|yearly|total)")
_WHAT: Final = re.compile(
    r"(?P<symbol>[$€£]|[A-Z]{3} )? *(?P<number>[0-9]+(?:[_,][0-9]{3})*(?:\.[0-9]+)?) *(?P<factor>[kKMBG](?![A-Za-z]))?"
    r" *(?P<of>[A-Za-z]+)?"
)
_FACTORS: Final = {"k": 1_000, "K": 1_000, "M": 1_000_000, "B": 1_000_000_000, "G": 1_000_000_000}
_SYMBOLS: Final = {"$": "USD", "€": "EUR", "£": "GBP"}
_UNITS: Final = {"token": "tokens", "tokens": "tokens", "request": "requests", "requests": "requests"}
_PERIODS: Final = {
    "minute": "minute",
    "hour": "hourly",
    "day": "daily",
    "week": "weekly",
    "month": "monthly",
    "year": "yearly",
    "total": "total",
}
_PERIOD_WORDS: Final = {period: word for word, period in _PERIODS.items()}
_ENDLESS: Final = ("unlimited", "infinite", "infinity", "none", "no limit")
_ENFORCEMENTS: Final = {
    "block": "block",
    "rate_limit": "throttle",
    "throttle": "throttle",
    "downgrade": "downgrade",
    "notify_only": "warn",
    "warn": "warn",
    "shadow": "shadow",
}
_EXAMPLES: Final = "such as '$500/month', '2M tokens/day' or '100 requests/minute'"
_OVERRIDE: Final = {
    "approvers": "approver_roles",
    "max_percent": "max_percent",
    "max_hours": "max_hours",
    "auto_approve_percent": "auto_approve_percent",
}


class WordError(ValueError):
    """A value that is no such word; ``field`` is where below the value, e.g. ``[2]`` or ``.model``."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


def nearest(word: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """A hint at the known word that was probably meant, or nothing."""
    near = get_close_matches(word[:64], list(known), n=1, cutoff=0.6)
    return f"; did you mean `{near[0]}`?" if near else ""


def read_amount(value: Any) -> Fields:
    """``limit``, ``unit``, ``period`` and, where it is money, ``currency`` (None: not said) of an amount per period."""
    text = value.strip() if isinstance(value, str) else ""
    if text.lower() in _ENDLESS:
        raise WordError("a budget without a limit decides nothing: leave the entry out, or watch a limit (notify_only)")
    if not 0 < len(text) <= LIMIT_CHARS_MAX:
        raise WordError(f"is not an amount per period {_EXAMPLES}")
    split = _ADVERB.fullmatch(text) or _PER.fullmatch(text)
    found = _WHAT.fullmatch(text if split is None else split["what"])
    if found is None:
        raise WordError(f"is not an amount per period {_EXAMPLES}")
    if split is None:
        raise WordError(f"does not say per what: write a period {_EXAMPLES}, or 'total'")
    word = split["period"]
    period = _PERIODS.get(word, word)
    if period not in _PERIOD_WORDS:
        raise WordError(f"'{word}' is no period: {', '.join(_PERIODS)}{nearest(word, _PERIODS)}")
    return _measure(found["symbol"], found["of"]) | {"limit": _number(found), "period": period}


def _measure(symbol: str | None, of: str | None) -> Fields:
    """What an amount counts: money of a currency, tokens or requests; of nothing that is said, money."""
    code = None if symbol is None else _SYMBOLS.get(symbol) or symbol.strip()
    if of is None:
        return {"unit": "cost", "currency": None if code is None else _code(code)}
    if of.lower() in _UNITS:
        if code is not None:
            raise WordError(f"counts {of} and money at once")
        return {"unit": _UNITS[of.lower()]}
    if not re.fullmatch(r"[A-Z]{3}", of) or (code is not None and code != of):
        raise WordError(f"'{of}' is nothing that is counted: a currency, tokens or requests")
    return {"unit": "cost", "currency": _code(of)}


def _code(code: str) -> str:
    """A currency there is."""
    try:
        return known_currency(code)
    except SignalError as error:
        raise WordError(error.message) from None


def _number(found: re.Match[str]) -> str:
    number = Decimal(found["number"].replace("_", "").replace(",", "")) * _FACTORS.get(found["factor"] or "", 1)
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def amount_words(*, limit: str, unit: str, period: str, currency: str | None) -> str:
    """An amount per period as a policy says it."""
    what = f"{limit} {unit}"
    if unit == "cost":
        what = f"${limit}" if currency == "USD" else f"{limit} {currency}"
    return f"{what} total" if period == "total" else f"{what}/{_PERIOD_WORDS[period]}"


def read_scope(value: Any) -> Fields:
    """``type`` and ``entity_id``."""
    text = _name(value)
    if text in ("org", "global"):
        return {"type": "global", "entity_id": EVERY}
    kind, colon, entity = text.partition(":")
    if kind not in ENTITY_FIELD:
        kinds = (*ENTITY_FIELD, "org")
        raise WordError(f"'{kind[:64]}' is no scope: org, or one of {', '.join(ENTITY_FIELD)}{nearest(kind, kinds)}")
    if not colon or not entity.strip():
        raise WordError(f"does not say which {kind}: write '{kind}:name', or '{kind}:*' for each its own")
    return {"type": kind, "entity_id": entity.strip()}


def scope_words(*, type: str, entity_id: str) -> str:
    """A scope as a policy says it."""
    return "org" if type == "global" else f"{type}:{entity_id}"


def read_percent(value: Any, most: int = 1000) -> int:
    """A whole percentage: ``50`` or ``"50%"``."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,6} ?%?", value.strip()):
        value = int(value.strip().rstrip("% "))
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise WordError(f"is not a whole percentage up to {most} such as 50 or '50%'")
    return value


def read_rate(value: Any) -> Fields:
    """``rate``."""
    found = read_amount(value)
    if found["period"] not in ("minute", "hourly"):
        raise WordError("is not a rate per minute or hour such as '60 requests/minute'")
    return {"rate": Rate(**found)}


def rate_words(rate: Rate) -> str:
    """A rate as a policy says it."""
    return amount_words(limit=rate.limit, unit=rate.unit, period=rate.period, currency=rate.currency or "USD")


def read_alerts(value: Any) -> Fields:
    """``alert_thresholds``: a list of percentages above 0."""
    found = _items(value, read_percent, most=20)
    if 0 in found:
        raise WordError("everything is above 0 %: leave it out", f"[{found.index(0)}]")
    return {"alert_thresholds": found}


def read_rollover(value: Any) -> Fields:
    """``rollover``: none, full, a percentage of the limit, or both words as a mapping."""
    if value in ("none", "full"):
        return {"rollover": Rollover(policy=value)}
    if isinstance(value, dict):
        entry = cast("dict[str, Any]", value)
        _known(entry, ("policy", "percent"))
        percent = read_percent(entry.get("percent", 0), 100)
        return {"rollover": _convert({"policy": entry.get("policy"), "percent": percent}, Rollover)}
    try:
        return {"rollover": Rollover(policy="capped", percent=read_percent(value, 100))}
    except WordError:
        raise WordError("is not none, full or a percentage of the limit up to 100 such as '50%'") from None


def rollover_words(rollover: Rollover) -> Any:
    """A rollover as a policy says it."""
    if rollover.policy == "capped":
        return f"{rollover.percent}%"
    if rollover.percent == 0:
        return rollover.policy
    return {"policy": rollover.policy, "percent": rollover.percent}


def read_override(value: Any) -> Fields:
    """``override_policy``."""
    entry = _mapping(value)
    _known(entry, tuple(_OVERRIDE))
    fields: Fields = {}
    for key, name in _OVERRIDE.items():
        if key in entry:
            percent = key.endswith("percent")
            fields[name] = _below(f".{key}", read_percent, entry[key]) if percent else entry[key]
    names = {name: key for key, name in _OVERRIDE.items()}
    policy = _convert(fields, OverridePolicy, names)
    for i, role in enumerate(policy.approver_roles):
        if role not in ROLES:
            raise WordError(f"is no role: {', '.join(ROLES)}{nearest(role, ROLES)}", f".approvers[{i}]")
    return {"override_policy": policy}


def override_words(policy: OverridePolicy) -> dict[str, Any]:
    """What may be overridden, as a policy says it."""
    return {key: getattr(policy, name) for key, name in _OVERRIDE.items()}


def read_filters(value: Any) -> Fields:
    """``filters``."""
    entry = _mapping(value)
    _known(entry, BudgetFilters.__struct_fields__)
    for key, pattern in entry.items():
        _below(f".{key}", _name, pattern)
    return {"filters": _convert(entry, BudgetFilters)}


def read_enforcement(value: Any) -> Fields:
    """``enforcement``."""
    if not isinstance(value, str) or value not in _ENFORCEMENTS:
        hint = nearest(value, _ENFORCEMENTS) if isinstance(value, str) else ""
        raise WordError(f"is not one of {', '.join(_ENFORCEMENTS)}{hint}")
    return {"enforcement": _ENFORCEMENTS[value]}


def read_timezone(value: Any) -> Fields:
    """``timezone``: an IANA name."""
    try:
        zone(_name(value))
    except SignalError as error:
        raise WordError(error.message) from None
    return {"timezone": value}


def read_currency(value: Any) -> Fields:
    """``currency``: three capitals."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Z]{3}", value):
        raise WordError("is not an ISO 4217 code such as USD")
    return {"currency": _code(value)}


def read_active(value: Any) -> Fields:
    """``active``."""
    if not isinstance(value, bool):
        raise WordError("is not true or false")
    return {"active": value}


def read_expiry(value: Any) -> Fields:
    """``on_expiry``."""
    if value not in get_args(OnExpiry):
        raise WordError(f"is not one of {', '.join(get_args(OnExpiry))}")
    return {"on_expiry": value}


def read_name(value: Any) -> Fields:
    """``name``."""
    return {"name": _name(value)}


def read_fallback(value: Any) -> Fields:
    """``fallback_model``."""
    return {"fallback_model": _name(value)}


def read_preferred(value: Any) -> Fields:
    """``preferred_models``: a list of names."""
    return {"preferred_models": _items(value, _name, most=50)}


def read_overage(value: Any) -> Fields:
    """``overage_percent``."""
    return {"overage_percent": read_percent(value)}


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise WordError("is not text: put it in quotes")
    return _convert(value, Name)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WordError("is not a mapping of keys to values")
    return cast("dict[str, Any]", value)


def _items(value: Any, read: Callable[[Any], T], *, most: int) -> list[T]:
    if not isinstance(value, list):
        raise WordError("is not a list")
    items = cast("list[Any]", value)
    if len(items) > most:
        raise WordError(f"lists more than {most} items")
    return [_below(f"[{i}]", read, item) for i, item in enumerate(items)]


def _below(field: str, read: Callable[[Any], T], value: Any) -> T:
    try:
        return read(value)
    except WordError as error:
        raise WordError(error.message, field + error.field) from None


def _known(entry: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in entry:
        if key not in keys:
            raise WordError(f"unknown key `{key[:64]}`{nearest(key, keys)}", f".{key[:64]}")


def _convert(value: Any, kind: Any, names: Mapping[str, str] | None = None) -> Any:
    """``value`` as a type of the contract; ``names`` are its fields as a policy calls them."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text, _, at = str(error).partition(" - at `$")
        field = at.rstrip("`")
        for name, key in (names or {}).items():
            field = field.replace(f".{name}", f".{key}", 1)
        raise WordError(text, field) from None
