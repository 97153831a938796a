"""What each signal refuses for reasons of its own: one mistake in a request that would be served."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tests.agent.bad_adjustments import adjustments
from tests.agent.bad_alerts import channels, rules
from tests.agent.bad_bills import bills, exports
from tests.agent.bad_currencies import currencies
from tests.agent.bad_fields import BEYOND_UTC, CURSORS, INVALID
from tests.agent.bad_finance import finance
from tests.agent.bad_money import amounts, brakes, budgets, overrides, policies
from tests.agent.bad_prices import aliases, price_rules, refreshes
from tests.agent.good_requests import (
    CALL,
    COUNTS,
    GOOD,
    KEY,
    NAMELESS_ORG,
    NKEY,
    NOBODY,
    ORG,
    PLAN,
    RAISE,
    SPAN,
    Refused,
)


def _ids() -> Iterator[Refused]:
    """Ids that are none, and of nothing; other spellings of an id are that id."""
    for signal, field, wrong in (
        ("retry_dead_letter", "dead_letter_id", INVALID),
        ("release_reservation", "reservation_id", INVALID),
        ("extend_reservation", "reservation_id", INVALID),
        ("get_budget_status", "budget_id", INVALID),
        ("update_budget", "budget_id", INVALID),
        ("delete_budget", "budget_id", INVALID),
        ("request_override", "budget_id", INVALID),
        ("review_override", "override_id", INVALID),
        ("retry_delivery", "delivery_id", "not_found"),
        ("acknowledge_alert", "alert_id", INVALID),
        ("get_invoice", "invoice_id", "not_found"),
        ("void_invoice", "invoice_id", "not_found"),
        ("revoke_api_key", "key_id", "not_found"),
    ):
        for text in ("x", NOBODY[:-1], NOBODY + "0", "{" + NOBODY + "}", NOBODY.replace("-", ""), "$budget "):
            yield Refused("an id that is none", signal, {**GOOD[signal], field: text}, field, wrong)
        yield Refused("an id of nothing", signal, {**GOOD[signal], field: NOBODY}, field, "not_found")
    for signal, field in (
        ("list_reservations", "budget_id"),
        ("list_overrides", "budget_id"),
        ("list_alerts", "budget_id"),
        ("list_deliveries", "alert_id"),
    ):
        yield Refused("an id that is none", signal, {field: "x"}, field)
    for signal in ("delete_channel", "test_channel", "delete_alert_rule", "delete_user", "delete_schedule"):
        yield Refused("a name of nothing", signal, {**GOOD[signal], "name": "nobody"}, "name", "not_found")
    for signal, field in (
        ("update_budget", "budget_id"),
        ("delete_budget", "budget_id"),
        ("request_override", "budget_id"),
    ):
        yield Refused("a deleted budget", signal, {**GOOD[signal], field: "$deleted"}, field, "not_found")


def _cursors() -> Iterator[Refused]:
    for signal in GOOD:
        if signal in ("get_usage", "get_audit_trail") or signal.startswith("list_"):
            for what, text in CURSORS.items():
                # Two texts are where a page of kill switches, or of limits, may end.
                if signal not in ("list_brakes", "list_model_limits") or what != "year 1 beyond UTC":
                    yield Refused(f"cursor: {what}", signal, {"cursor": text}, "cursor")
    for mode in ({"verify": True}, {"format": "jsonl"}):
        for what, text in (
            *CURSORS.items(),
            ("of another mode", "WyJiZWZvcmUiLDFd"),
            ("of a seq below 0", "WyJhZnRlciIsLTFd"),
        ):
            yield Refused(f"cursor: {what}", "get_audit_trail", {**mode, "cursor": text}, "cursor")


def _tokens() -> Iterator[Refused]:
    yield Refused("nothing to count", "count_tokens", CALL, "text")
    for body in ({**CALL, "text": "x", "prompt_tokens": 1}, {**CALL, "text": "x", "usage": {"prompt_tokens": 1}}):
        yield Refused(
            "texts and counts", "calculate_cost", body, next(k for k in ("usage", "prompt_tokens") if k in body)
        )
    yield Refused(
        "an answer and its size",
        "calculate_cost",
        {**CALL, "text": "x", "completion": "y", "completion_tokens": 1},
        "completion_tokens",
    )
    yield Refused("a model without a provider", "list_model_limits", {"model": "gpt-4o"}, "provider")
    for field in ("provider", "model"):
        yield Refused("a name of blanks", "set_model_limit", {**GOOD["set_model_limit"], field: "  "}, field)


def _usage() -> Iterator[Refused]:
    for signal, body in (("track_usage", GOOD["track_usage"]), ("check_budget", GOOD["check_budget"])):
        named = {**body, "user_id": "ada"}
        yield Refused("a plain user name, refused", signal, named, "user_id", org=NAMELESS_ORG)
    for signal, body in (("get_usage", {}), ("aggregate_usage", SPAN)):
        for what, name, org in (("a pattern of users", "a*", ORG), ("a plain user name, refused", "ada", NAMELESS_ORG)):
            yield Refused(what, signal, {**body, "filters": {"user_id": name}}, "filters.user_id", org=org)
        yield Refused("end before start", signal, {"start": SPAN["end"], "end": SPAN["start"]}, "end")
        yield Refused("end at start", signal, {"start": SPAN["end"], "end": SPAN["end"]}, "end")
    yield Refused("seven dimensions", "aggregate_usage", {**SPAN, "group_by": ["model"] * 7}, "group_by")
    yield Refused("no provider and no cost", "check_budget", {"prompt_tokens": 1}, "provider")
    yield Refused(
        "no model and no cost", "extend_reservation", {**GOOD["extend_reservation"], "prompt_tokens": 1}, "provider"
    )
    yield Refused(
        "a released reservation",
        "extend_reservation",
        {"reservation_id": "$released", "ttl_s": 1},
        "reservation_id",
        "conflict",
    )
    yield Refused("a model without a price", "get_pricing", {"provider": "x", "model": "y"}, "model", "unpriced")
    yield Refused(
        "more reasoning than completion",
        "calculate_cost",
        {**GOOD["calculate_cost"], "reasoning_tokens": 101},
        "reasoning_tokens",
    )
    for what, rates, field in (
        ("a rate below 0", {"input": "-1"}, "rates.input"),
        ("a rate that is no number", {"output": "free"}, "rates.output"),
        ("a kind that is none", {"inputs": "1"}, "rates"),
    ):
        yield Refused(what, "calculate_cost", {**GOOD["calculate_cost"], "rates": rates}, field)
    unknown = {**GOOD["calculate_cost"], "rates": {"input": "1"}, "currency": "XXY"}
    yield Refused("rates of a currency that is none", "calculate_cost", unknown, "currency")
    for signal in ("track_usage", "calculate_cost"):
        body = {**CALL, "usage": {"prompt_tokens": -1}}
        yield Refused("raw usage below 0", signal, body, "usage.prompt_tokens")

    def retry(what: str, field: str, payload: Any) -> Refused:
        return Refused(what, "retry_dead_letter", {"dead_letter_id": "$letter", "payload": payload}, field)

    whole = GOOD["track_usage"]
    yield Refused(
        "sent again already", "retry_dead_letter", {"dead_letter_id": "$retried"}, "dead_letter_id", "conflict"
    )
    yield retry("a correction without a model", "payload.model", {"provider": "x", **COUNTS})
    yield retry("a correction below 0", "payload.prompt_tokens", {**whole, "prompt_tokens": -1})
    yield retry("a correction with an unknown field", "payload.promt", {**whole, "promt": 1})
    yield retry("a correction, empty", "payload.provider", {})
    yield retry("a correction of no events", "payload.events", {"events": []})
    yield retry("a correction of 1,001 events", "payload.events", {"events": [1] * 1001})
    yield retry("a correction, one event bad", "payload.events[1].model", {"events": [whole, {**whole, "model": 7}]})
    yield retry("a correction with more beside its events", "payload.model", {"events": [whole], "model": "x"})
    yield retry(
        "a correction in an envelope without data",
        "payload.data",
        {"specversion": "1.0", "id": "1", "source": "/", "type": "t"},
    )
    envelope = {"specversion": "1.0", "id": "1", "source": "/", "type": "t", "data": {**whole, "model": 7}}
    yield retry("a correction in an envelope, bad", "payload.model", envelope)
    named = {"dead_letter_id": "$theirs", "payload": {**whole, "user_id": "ada"}}
    yield Refused("a plain user name, refused", "retry_dead_letter", named, "payload.user_id", org=NAMELESS_ORG)


def _settings() -> Iterator[Refused]:
    def choose(what: str, field: str, **fields: Any) -> Refused:
        return Refused(what, "configure_manager", fields, field)

    yield choose("a field that calls do not have", "required_attribution[0]", required_attribution=["user"])
    yield choose("what nobody does", "on_unpriced", on_unpriced="guess")
    yield choose("rates without the output's", "unpriced_rates", unpriced_rates={"input": "1"})
    yield choose("a rate below 0", "unpriced_rates.output", unpriced_rates={"input": "1", "output": "-1"})
    yield choose("a kind that is none", "unpriced_rates", unpriced_rates={"inputs": "1"})
    yield choose("a provider without a name", "self_hosted_providers[0]", self_hosted_providers=[""])
    yield choose("the 49th percentile", "sizing.percentile", sizing={"percentile": 49})
    yield choose("a share of 0", "sizing.share_cap_percent", sizing={"share_cap_percent": 0})
    yield choose("pressure at 101 percent", "pressure_percent", pressure_percent=101)
    both = {"pressure_percent": 50, "user_names": "hide"}
    yield choose("one good and one bad", "user_names", **both)
    for field, value in (("entity", "budget"), ("actor", "ada"), ("start", SPAN["start"])):
        for mode in ({"verify": True}, {"format": "jsonl"}):
            yield Refused("a filter of the whole chain", "get_audit_trail", {**mode, field: value}, field)
    yield Refused("a check as lines", "get_audit_trail", {"verify": True, "format": "jsonl"}, "format")
    head = {"seq": 1, "hash": "0" * 64}
    yield Refused("a head without a check", "get_audit_trail", {"expected_head": head}, "expected_head")
    for text in ("x", "0" * 63, "0" * 64 + "\n", "A" * 64):
        check = {"verify": True, "expected_head": {**head, "hash": text}}
        yield Refused("a head of another form", "get_audit_trail", check, "expected_head.hash")
    yield Refused("an export of a list", "get_audit_trail", {"after_seq": 1}, "after_seq")
    yield Refused("end before start", "get_audit_trail", {"start": SPAN["end"], "end": SPAN["start"]}, "end")
    yield Refused("a signal that is not there", "describe", {"signal": "nonsense"}, "signal", "not_found")
    yield Refused("a signal of 500 KB", "describe", {"signal": "x" * 500_000}, "signal", "not_found")
    yield Refused("a reason of spaces", "anonymize_user", {"user_id": "somebody", "reason": " \t"}, "reason")
    yield Refused(
        "a user who may still sign in", "anonymize_user", {"user_id": "ada", "reason": "r"}, "user_id", "conflict"
    )


def _access() -> Iterator[Refused]:
    def user(what: str, field: str, code: str = INVALID, **fields: Any) -> Refused:
        return Refused(what, "set_user", {"name": "eve", "roles": [], **fields}, field, code)

    for name in ("", "a b", "a/b", ".hidden", "a*", "a>", "é", "eve\n", "x" * 65, "anonymous", NKEY):
        shown = name.replace("\n", "\\n") if len(name) < 40 else f"{name[:1]}… ({len(name)} characters)"
        yield user(f"a user called `{shown}`", "name", name=name)
    for what, text in (
        ("empty", ""),
        ("a word", "U"),
        ("in small letters", NKEY.lower()),
        ("with a wrong checksum", NKEY[:-1] + "A"),
        ("of an account", "A" + NKEY[1:]),
        ("a seed", "SU" + NKEY[2:]),
        ("not base32", "U" + "1" * 55),
        ("not ASCII", "U" + "é" * 55),
        ("of 65 characters", "U" * 65),
    ):
        yield user(f"an NKey {what}", "public_key", public_key=text)
    yield user("the NKey of another user", "public_key", "conflict", public_key="$nkey")
    yield user("a role that is none", "roles[1]", roles=["viewer", "root"])
    yield user("seven roles", "roles", roles=["viewer"] * 7)
    yield user("one's own role of an admin", "name", "conflict", name="acme-admin", roles=["viewer"])
    yield user("oneself, not active", "name", "conflict", name="acme-admin", roles=["admin"], active=False)
    yield Refused("oneself", "delete_user", {"name": "acme-admin"}, "name", "conflict")
    for count in (2001, 100_001):
        many = {"team_id": "ops", "members": [f"{i}" for i in range(count)]}
        yield Refused(f"{count:,} members", "set_team", many, "members")
    yield Refused(
        "a plain user name, refused", "set_team", {"team_id": "ops", "members": ["ada"]}, "members[0]", org=NAMELESS_ORG
    )
    yield Refused("an empty member", "set_team", {"team_id": "ops", "members": ["ada", ""]}, "members[1]")

    def key(what: str, field: str, code: str = INVALID, **fields: Any) -> Refused:
        return Refused(what, "create_api_key", {**KEY, **fields}, field, code)

    yield key("a key of nobody", "user", "not_found", user="nobody")
    yield key("a key of a deleted user", "user", "not_found", user="gone")
    yield key("roles that the user has not", "roles", roles=["admin"])
    yield key("in the past", "expires_at", expires_at=SPAN["start"])
    yield Refused("a key of another org", "revoke_api_key", {"key_id": "$key"}, "key_id", "not_found", NAMELESS_ORG)


def _schedules() -> Iterator[Refused]:
    def plan(what: str, field: str, **fields: Any) -> Refused:
        return Refused(what, "set_schedule", {**PLAN, **fields}, field)

    for cron in (
        "* * * *  ",
        "* * * * * *",
        "60 9 * * 1",
        "0 24 * * *",
        "0 9 32 * *",
        "0 9 * 13 *",
        "0 9 * * 8",
        "0 9 * * 5-2",
        "*/0 * * * *",
        "0 9 * * */0",
        "a b c d e",
        "0 9 30 2 *",
        "-1 9 * * *",
        "1e1 9 * * *",
        "@weekly  ",
        "0 9 * * \u0661",
        "9999999999 * * * *",
        "0 9 L * 1-",
    ):
        yield plan(f"cron `{cron}`", "cron", cron=cron)
    for zone in ("Mars/Base", "../../etc/passwd", "Europe"):
        yield plan(f"time zone `{zone}`", "timezone", timezone=zone)
    for signal in ("nonsense", "create_budget", "set_schedule", "get_audit_trail", "list_api_keys"):
        yield plan(f"`{signal}` on a schedule", "signal", signal=signal)
    yield plan("a request its signal refuses", "request.limit", request={"limit": 0})
    yield plan("a request its signal does not know", "request.limt", request={"limt": 1})
    for name in ("a b", "a/b", "é", "x" * 65, "weekly\n"):
        yield plan("a name that is none", "name", name=name)


def _moments() -> Iterator[Refused]:
    """Times that PostgreSQL and Python know, and UTC does not."""
    for text in BEYOND_UTC:
        yield Refused(f"time: {text}", "create_api_key", {**KEY, "expires_at": text}, "expires_at")
        yield Refused(f"time: {text}", "request_override", {**RAISE, "until": text}, "until")
        for field in ("start", "end"):
            yield Refused(f"time: {text}", "get_audit_trail", {field: text}, field)


TOPICS: Final[Mapping[str, tuple[Refused, ...]]] = {
    "Ids and names": tuple(_ids()),
    "Pages": tuple(_cursors()),
    "Amounts": tuple(amounts()),
    "Currencies": tuple(currencies()),
    "Adjustments": tuple(adjustments()),
    "Times": tuple(_moments()),
    "Budgets": tuple(budgets()),
    "Policies": tuple(policies()),
    "Overrides": tuple(overrides()),
    "Kill switches": tuple(brakes()),
    "Usage, prices and dead letters": (*_usage(), *_tokens()),
    "Exports and bills": (*exports(), *bills()),
    "Price rules": tuple(price_rules()),
    "Allocation, projections and invoices": tuple(finance()),
    "Names of models and price files": (*aliases(), *refreshes()),
    "Alert rules": tuple(rules()),
    "Channels and deliveries": tuple(channels()),
    "Settings, audit trail and the contract": tuple(_settings()),
    "Users, teams, keys and schedules": (*_access(), *_schedules()),
}
REFUSED: Final = tuple(case for cases in TOPICS.values() for case in cases)
