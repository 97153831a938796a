"""What requests about currencies refuse: codes that are none, rates that are none, and rates that contradict others."""

from collections.abc import Iterator
from typing import Any

from tests.agent.good_requests import GOOD, RATE_RULE, RULE, Refused

STATED = {"base": "USD", "quote": "VND", "rate": "25400"}
TABLE = "Date,USD\n2026-10-30,1.1172\n"


def currencies() -> Iterator[Refused]:
    """Currencies in every place where one stands, and exchange rates."""
    for code in ("EUX", "XXX", "XAU"):
        what = f"currency `{code}`"
        for signal, body in (
            ("create_budget", GOOD["create_budget"]),
            ("track_usage", GOOD["track_usage"]),
            ("check_budget", {"estimated_cost": "1"}),
            ("extend_reservation", {**GOOD["extend_reservation"], "estimated_cost": "1"}),
            ("configure_manager", {}),
        ):
            yield Refused(what, signal, {**body, "currency": code}, "currency")
        throttle = {"enforcement": "throttle", "rate": {"limit": "1", "unit": "cost", "currency": code}}
        yield Refused(what, "create_budget", {**GOOD["create_budget"], **throttle}, "rate.currency")
        for rule in (RULE, RATE_RULE):
            parameters = {"limit": "1", "currency": code}
            yield Refused(what, "set_alert_rule", {**rule, "parameters": parameters}, "parameters.currency")
            action = {"do": "rate_limit", "rate": {"limit": "1", "unit": "cost", "currency": code}}
            yield Refused(what, "set_alert_rule", {**rule, "actions": [action]}, "actions[0].rate.currency")
        yield Refused(what, "get_exchange_rates", {"base": code}, "base")
        yield Refused(what, "get_exchange_rates", {"quotes": ["EUR", code]}, "quotes[1]")
        yield _rates(what, "rates[0].base", rates=[{**STATED, "base": code}])
        yield _rates(what, "rates[1].quote", rates=[STATED, {**STATED, "quote": code}])
    tokens = {"limit": "1", "unit": "tokens", "currency": "EUR"}
    yield Refused("tokens in euros", "set_alert_rule", {**RATE_RULE, "parameters": tokens}, "parameters.currency")
    yield from _stated()


def _stated() -> Iterator[Refused]:
    for text in ("0", "-1", "1e3", "NaN", "Infinity", "", "1,5", "\u0661", "0.0000000001", "1" + "0" * 10, "1" * 30):
        yield _rates(f"rate `{text[:12]}`", "rates[0].rate", rates=[{**STATED, "rate": text}])
    yield _rates("nothing", "rates")
    yield _rates("two things at once", "csv", rates=[STATED], csv=TABLE)
    yield Refused("no source", "update_exchange_rates", {"rates": [STATED]}, "source")
    yield _rates("a blank source", "source", rates=[STATED], source=" ")
    yield _rates("a currency in itself", "rates[0].quote", rates=[{**STATED, "base": "VND"}])
    yield _rates("a pair twice", "rates[1]", rates=[STATED, {"base": "VND", "quote": "USD", "rate": "0.00003937"}])
    yield _rates("a day to come", "as_of", rates=[STATED], as_of="2999-01-01")
    yield _rates("a day before the euro", "as_of", rates=[STATED], as_of="1998-12-31")
    yield _rates("a day of no calendar", "as_of", rates=[STATED], as_of="2026-02-30")
    yield _rates("days of its own, and another", "as_of", csv=TABLE, as_of="2026-10-30")
    for what, text in (
        ("no table", "hello"),
        ("no rate", "Date,USD\n"),
        ("no date", "Date,USD\nyesterday,1.1\n"),
        ("no number", "Date,USD\n2026-10-30,one\n"),
        ("no currency", "Date,EUX\n2026-10-30,1.1\n"),
        ("a day twice", "Date,USD\n2026-10-30,1.1\n2026-10-30,1.2\n"),
        ("a day to come", "Date,USD\n2999-10-30,1.1\n"),
    ):
        yield _rates(f"table: {what}", "csv", csv=text)
    far = [{"base": "EUR", "quote": "USD", "rate": "11.172"}]
    yield _rates("a rate ten times the last", "confirm", code="conflict", rates=far)
    ring = [{"base": "VND", "quote": "NGN", "rate": "0.06"}, {"base": "NGN", "quote": "AED", "rate": "0.0025"}]
    ring.append({"base": "AED", "quote": "VND", "rate": "6900"})
    yield _rates("a circle", "rates", code="conflict", rates=ring)
    yield Refused("a file that is not there", "update_exchange_rates", {"file": True}, "file", "conflict")


def _rates(what: str, field: str, code: str = "invalid_request", **body: Any) -> Refused:
    return Refused(what, "update_exchange_rates", {"source": "a bank", **body}, field, code)
