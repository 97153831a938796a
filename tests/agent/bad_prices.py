"""What is refused of price rules, names of models and price files, each for a reason of its own."""

from collections.abc import Iterator
from typing import Any, Final

from tests.agent.bad_fields import BEYOND_UTC, INVALID
from tests.agent.good_requests import FUTURE, GOOD, PRICE, SPAN, Refused

CHANGE: Final[dict[str, Any]] = {"name": "new", "layer": "contract", "op": "multiply", "provider": "nobody"}
HALF: Final[dict[str, Any]] = {**CHANGE, "factor": "0.5"}
VOLUME: Final[dict[str, Any]] = {**CHANGE, "op": "volume"}
COMMITMENT: Final[dict[str, Any]] = {**CHANGE, "op": "commitment", "factor": "0.5", "amount": "100"}


def _tiers(*above: str) -> list[dict[str, str]]:
    return [{"above": text, "factor": "0.9"} for text in above]


def price_rules() -> Iterator[Refused]:
    """Rules that would not do what they seem to, and versions nobody read."""

    def rule(what: str, field: str, body: dict[str, Any], **fields: Any) -> Refused:
        return Refused(what, "update_pricing", {"rules": [{**body, **fields}]}, f"rules[0].{field}")

    yield Refused("nothing to do", "update_pricing", {}, "rules")
    yield Refused("a name twice", "update_pricing", {"rules": [HALF, HALF]}, "rules[1].name")
    both = {"rules": [HALF], "end": [{"name": "new", "version": 0}]}
    yield Refused("a name to set and to end", "update_pricing", both, "end[0].name")
    yield Refused(
        "one bad rule among good ones", "update_pricing", {"rules": [HALF, {**PRICE, "rates": {}}]}, "rules[1].rates"
    )
    yield rule("rates that are none", "rates", PRICE, rates={})
    yield rule("rates and a factor", "factor", PRICE, factor="0.5")
    yield rule("rates and kinds", "kinds", PRICE, kinds=["input"])
    yield rule("rates and volume", "volume", PRICE, volume=_tiers("1"))
    yield rule("a factor that is missing", "factor", CHANGE)
    yield rule("a factor of 1,001", "factor", HALF, factor="1001")
    yield rule("a factor and rates", "rates", HALF, rates={"input": "1"})
    yield rule("a factor and partial", "partial", HALF, partial=True)
    yield rule("a factor in euros", "currency", HALF, currency="EUR")
    yield rule("a kind twice", "kinds", HALF, kinds=["input", "input"])
    yield rule("what is added is missing", "rates", CHANGE, op="add")
    yield rule("volume without tiers", "volume", VOLUME)
    yield rule("volume that descends", "volume[1].above", VOLUME, volume=_tiers("2", "1"))
    yield rule("volume from half a token", "volume[0].above", VOLUME, volume=_tiers("0.5"))
    yield rule("a commitment without an amount", "amount", {k: v for k, v in COMMITMENT.items() if k != "amount"})
    yield rule("a commitment of nothing", "amount", COMMITMENT, amount="0")
    yield rule("a commitment without a factor", "factor", {k: v for k, v in COMMITMENT.items() if k != "factor"})
    tier = {"above_prompt_tokens": 1000, "rates": {"input": "2"}}
    yield rule("tiers that do not ascend", "tiers[1].above_prompt_tokens", PRICE, tiers=[tier, tier])
    yield rule("a tier without rates", "tiers[0].rates", PRICE, tiers=[{**tier, "rates": {}}])
    other = {**tier, "rates": {"reasoning": "2"}}
    yield rule("a tier of a kind without a rate", "tiers[0].rates.reasoning", PRICE, tiers=[other])
    yield rule("no currency", "currency", PRICE, currency="EUX")
    for zone in ("Mars/Base", "../../etc/passwd", "localtime"):
        daily = {"start": "10:00", "end": "12:00", "timezone": zone}
        yield rule(f"time zone `{zone}`", "daily.timezone", HALF, daily=daily)
    yield rule("hours that are none", "daily.end", HALF, daily={"start": "10:00", "end": "10:00"})
    weekdays = {"start": "10:00", "end": "12:00", "weekdays": [1, 1]}
    yield rule("a day twice", "daily.weekdays", HALF, daily=weekdays)
    yield rule("a blank name", "name", HALF, name=" \t")
    yield rule("a date in the past", "valid_from", HALF, valid_from=SPAN["start"])
    yield rule("an end before now", "valid_to", HALF, valid_to=SPAN["start"])
    yield rule("an end before its start", "valid_to", HALF, valid_from=FUTURE, valid_to=SPAN["start"])
    backdated = {"rules": [{**HALF, "valid_from": "1999-12-31T23:59:59Z"}], "backdate": True}
    yield Refused("a date before 2000", "update_pricing", backdated, "rules[0].valid_from")
    for text in BEYOND_UTC:
        yield rule(f"time: {text}", "valid_from", HALF, valid_from=text)
        yield Refused(f"time: {text}", "list_price_rules", {"at": text}, "at")
    yield from _versions()
    for what, start, end, field in (
        ("end at start", SPAN["start"], SPAN["start"], "end"),
        ("a preview of three years", "2023-01-01T00:00:00Z", SPAN["end"], "start"),
    ):
        body = {"rules": [HALF], "dry_run": True, "preview": {"start": start, "end": end}}
        yield Refused(what, "update_pricing", body, f"preview.{field}")
    applied = {"rules": [HALF], "preview": SPAN}
    yield Refused("a preview of what is applied", "update_pricing", applied, "preview")


def _versions() -> Iterator[Refused]:
    for dry_run in (False, True):

        def change(what: str, field: str, code: str = "conflict", dry_run: bool = dry_run, **fields: Any) -> Refused:
            return Refused(what, "update_pricing", {**fields, "dry_run": dry_run}, field, code)

        half = {**HALF, "name": "half", "model": "half"}
        yield change("a version that nobody read", "rules[0].version", rules=[{**half, "version": 9}])
        yield change("no version of a rule that is there", "rules[0].version", rules=[half])
        yield change("a version of a rule that is not", "rules[0].version", rules=[{**HALF, "version": 1}])
        yield change("the end of a rule that is not", "end[0].name", "not_found", end=[{"name": "new", "version": 1}])
        yield change("a version that nobody read", "end[0].version", end=[{"name": "half", "version": 9}])
        yield change("an end of what has ended", "end[0].name", end=[{"name": "over", "version": 2}])
        past = {"name": "half", "version": 1, "at": SPAN["start"]}
        yield change("an end in the past", "end[0].at", INVALID, end=[past])
        same = [{**PRICE, "name": name, "model": "x"} for name in ("one", "two")]
        yield change("two rates for the same calls", "rules[1].name", rules=same)


def aliases() -> Iterator[Refused]:
    """Names that stand for nothing, for many, or for themselves."""

    def name(what: str, field: str, code: str = INVALID, **fields: Any) -> Refused:
        return Refused(what, "set_model_alias", {**GOOD["set_model_alias"], **fields}, field, code)

    for field in ("provider", "alias", "to_model"):
        yield name("blank", field, **{field: "  "})
    yield name("a model of many", "to_model", to_model="gpt-*")
    yield name("a provider of many", "to_provider", to_provider="*")
    yield name("many providers, the same as asked", "to_provider", provider="*", to_provider=None)
    yield name("an end, and where to", "to_provider", to_model=None)
    yield name("itself", "to_model", to_provider="Local", to_model="FAST")
    yield name("everything is one model", "alias", provider="*", alias="*")
    yield name("a date in the past", "valid_from", valid_from=SPAN["start"])
    yield name("a version of what is not there", "version", "conflict", version=3)
    yield name("the end of what is not there", "alias", "not_found", to_provider=None, to_model=None)
    ours = {"provider": "azure", "alias": "ours", "to_provider": None}
    yield name("no version of what is there", "version", "conflict", **ours)
    over = {"provider": "azure", "alias": "over", "to_provider": None, "to_model": None, "version": 2}
    yield name("an end of what has ended", "alias", "conflict", **over)
    for text in BEYOND_UTC:
        yield name(f"time: {text}", "valid_from", valid_from=text)


def refreshes() -> Iterator[Refused]:
    """No request says where prices come from, and nothing is approved unseen."""
    digest = "0" * 64
    yield Refused("no price file is set", "refresh_prices", {}, "source", "conflict")
    yield Refused("no price file is set", "refresh_prices", {"apply": True}, "source", "conflict")
    yield Refused("approval without apply", "refresh_prices", {"source": "bundled", "approve": digest}, "approve")
    for text in ("x", "0" * 63, "A" * 64, digest + "\n"):
        body = {"source": "bundled", "apply": True, "approve": text}
        yield Refused("a digest that is none", "refresh_prices", body, "approve")
    url = {"url": "http://127.0.0.1/data.json"}
    yield Refused("a URL in a request", "refresh_prices", url, "url")
