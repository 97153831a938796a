"""The words of policies: what people write is what is meant, or is refused with the place and the reason."""

from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from handlers.enforcer.calendar import EPOCH
from handlers.enforcer.drafts import Whole, drafted
from handlers.enforcer.policy_file import complete, read_document, read_text, rendered
from handlers.enforcer.policy_yaml import YamlError, read_yaml
from schemas.budget import BudgetFilters, CreateBudget, OverridePolicy, Rate, Rollover
from signals import ROLES
from tests.support.ledger import examples


def entry(**keys: Any) -> dict[str, Any]:
    return {"name": "p", "scope": "org", "limit": "$5/month"} | keys


def one(**keys: Any) -> CreateBudget:
    document = read_document([entry(**keys)])
    assert document.errors == ()
    return document.policies[0]


def wrong(document: Any) -> dict[str, str]:
    found = read_text(document) if isinstance(document, str) else read_document(document)
    assert found.errors and found.policies == ()
    return {error.field: error.message for error in found.errors}


@pytest.mark.parametrize(
    ("words", "unit", "limit", "period"),
    [
        ("$500/month", "cost", "500", "monthly"),
        ("$500 / month", "cost", "500", "monthly"),
        ("500 USD / month", "cost", "500", "monthly"),
        ("USD 500 per month", "cost", "500", "monthly"),
        ("$0.5/hour", "cost", "0.5", "hourly"),
        ("$1,000.50 a week", "cost", "1000.5", "weekly"),
        ("$5k/year", "cost", "5000", "yearly"),
        ("$500 total", "cost", "500", "total"),
        ("$500 in total", "cost", "500", "total"),
        ("$500/total", "cost", "500", "total"),
        ("$500 monthly", "cost", "500", "monthly"),
        ("2M tokens/day", "tokens", "2000000", "daily"),
        ("1.5 M tokens daily", "tokens", "1500000", "daily"),
        ("1_000_000 tokens per week", "tokens", "1000000", "weekly"),
        ("2B Tokens/year", "tokens", "2000000000", "yearly"),
        ("100 requests/minute", "requests", "100", "minute"),
        ("1 request per minute", "requests", "1", "minute"),
        ("0 requests/day", "requests", "0", "daily"),
    ],
)
def test_amounts_per_period(words: str, unit: str, limit: str, period: str) -> None:
    found = one(limit=words)
    assert (found.unit, found.limit, found.period) == (unit, limit, period)


@pytest.mark.parametrize("words", ["500 EUR a month", "€500/month", "EUR 500 per month", "500 EUR monthly"])
def test_amounts_in_another_currency(words: str) -> None:
    found = one(limit=words, enforcement="throttle", rate="0.5 GBP/hour")
    assert (found.limit, found.currency, found.period) == ("500", "EUR", "monthly")
    assert found.rate is not None and (found.rate.limit, found.rate.currency) == ("0.5", "GBP")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("unlimited", "without a limit"),
        ("none", "without a limit"),
        ("$500", "per what"),
        ("500 tokens", "per what"),
        ("500/month", "of what"),
        ("$500/fortnight", "no period"),
        ("$500/mouth", "did you mean `month`"),
        ("2m tokens/day", "is not an amount"),
        ("12,5 USD/month", "is not an amount"),
        ("1.000.000 tokens/day", "is not an amount"),
        ("1__000 tokens/day", "is not an amount"),
        ("-5 tokens/day", "is not an amount"),
        ("1e6 tokens/day", "is not an amount"),
        ("$ /month", "is not an amount"),
        ("", "is not an amount"),
        ("$" + "9" * 120 + "/month", "is not an amount"),
        ("$5 tokens/day", "money at once"),
        ("5 bananas/day", "nothing that is counted"),
        ("USD 5 EUR/day", "nothing that is counted"),
        ("1.5 tokens/day", "whole number"),
        ("$0.0000000001/day", "decimals"),
        ("$2B/year", "larger than any amount"),
        ("5 EUX/day", "did you mean 'EUR'"),
        (500, "is not an amount"),
        (["$5/day"], "is not an amount"),
    ],
)
def test_what_is_no_amount_says_why(words: Any, said: str) -> None:
    ((field, message),) = wrong([entry(limit=words)]).items()
    assert field in ("policies[0].limit", "policies[0].currency")
    assert said in message


@pytest.mark.parametrize(
    ("scope", "type_", "entity_id"),
    [
        ("org", "global", "*"),
        ("global", "global", "*"),
        ("team:engineering", "team", "engineering"),
        ("team:*", "team", "*"),
        ("user: ann", "user", "ann"),
        ("project:a:b", "project", "a:b"),
        ("cost_center:4711", "cost_center", "4711"),
        ("environment:prod", "environment", "prod"),
    ],
)
def test_scopes(scope: str, type_: str, entity_id: str) -> None:
    found = one(scope=scope)
    assert (found.type, found.entity_id) == (type_, entity_id)


@pytest.mark.parametrize(
    ("keys", "field", "said"),
    [
        ({"scope": "tem:x"}, "scope", "did you mean `team`"),
        ({"scope": "team"}, "scope", "which team"),
        ({"scope": "team: "}, "scope", "which team"),
        ({"scope": None}, "scope", "required"),
        ({"name": 5}, "name", "put it in quotes"),
        ({"name": ""}, "name", "length"),
        ({"name": "x" * 257}, "name", "length"),
        ({"enforcement": "blok"}, "enforcement", "did you mean `block`"),
        ({"enforcement": ["block"]}, "enforcement", "is not one of"),
        ({"alerts": "50%"}, "alerts", "is not a list"),
        ({"alerts": [50, "fifty"]}, "alerts[1]", "whole percentage"),
        ({"alerts": [50.5]}, "alerts[0]", "whole percentage"),
        ({"alerts": [True]}, "alerts[0]", "whole percentage"),
        ({"alerts": [0]}, "alerts[0]", "above 0"),
        ({"alerts": [1001]}, "alerts[0]", "up to 1000"),
        ({"alerts": list(range(1, 30))}, "alerts", "more than 20"),
        ({"rate": "60 requests/day"}, "rate", "per minute or hour"),
        ({"rate": "60 requests/minute"}, "rate", "only throttle"),
        ({"enforcement": "throttle", "rate": "$1/hour", "limit": "$1/minute"}, "rate", "itself is the rate"),
        ({"enforcement": "rate_limit"}, "rate", "needs the rate"),
        ({"overage": "10.5%"}, "overage", "whole percentage"),
        ({"rollover": "half"}, "rollover", "none, full or a percentage"),
        ({"rollover": "101%"}, "rollover", "up to 100"),
        ({"rollover": {"policy": "all"}}, "rollover.policy", "Invalid enum"),
        ({"rollover": {"polici": "full"}}, "rollover.polici", "did you mean `policy`"),
        ({"rollover": "full", "limit": "$5 total"}, "rollover", "nothing rolls over"),
        ({"filters": {"modle": "x"}}, "filters.modle", "did you mean `model`"),
        ({"filters": {"model": 4}}, "filters.model", "put it in quotes"),
        ({"filters": "gpt"}, "filters", "is not a mapping"),
        ({"prefer": "gpt"}, "prefer", "is not a list"),
        ({"prefer": ["a", 1]}, "prefer[1]", "put it in quotes"),
        ({"override": {"approver": ["x"]}}, "override.approver", "did you mean `approvers`"),
        ({"override": {"approvers": "x"}}, "override.approvers", "Expected `array`"),
        ({"override": {"max_hours": 0}}, "override.max_hours", ">= 1"),
        ({"override": {"max_percent": "x"}}, "override.max_percent", "whole percentage"),
        ({"on_expiry": "keep"}, "on_expiry", "is not one of"),
        ({"active": "yes"}, "active", "true or false"),
        ({"timezone": "Mars/Olympus"}, "timezone", "IANA"),
        ({"currency": "usd"}, "currency", "ISO 4217"),
        ({"currency": "EUR"}, "currency", "is in EUR here and in USD"),
        ({"currency": "ERU"}, "currency", "did you mean 'EUR'"),
        ({"limit": "$900M/month", "overage": "50%"}, "overage", "larger than any amount"),
        ({"colour": "red"}, "colour", "unknown key"),
        ({"limits": "$5/day"}, "limits", "did you mean `limit`"),
    ],
)
def test_a_bad_value_is_refused_where_it_stands(keys: dict[str, Any], field: str, said: str) -> None:
    found = wrong([entry(**keys)])
    assert list(found) == [f"policies[0].{field}"]
    assert said in found[f"policies[0].{field}"]


def test_everything_a_policy_can_say() -> None:
    text = """
    version: 1
    defaults:
      timezone: Europe/Vienna
      alerts: [50%, 75, "90%"]
    policies:
      - name: engineering
        scope: team:engineering
        limit: $500/month
        enforcement: rate_limit
        rate: 60 requests/minute
        overage: 10%
        rollover: 50%
        filters: {provider: openai, model: gpt-*}
        prefer: [gpt-4o-mini, anthropic/claude-3-5-haiku]
        fallback: gpt-4o-mini
        override: {approvers: [finance], max_percent: 20%, max_hours: 24, auto_approve_percent: 5}
        on_expiry: settle
        active: false
      - {name: each user, scope: "user:*", limit: 5/month, currency: USD, alerts: [], enforcement: notify_only}
    """
    document = read_text(text)
    assert document.errors == ()
    first, second = document.policies
    assert first == CreateBudget(
        name="engineering",
        type="team",
        entity_id="engineering",
        filters=BudgetFilters(provider="openai", model="gpt-*"),
        limit="500",
        timezone="Europe/Vienna",
        overage_percent=10,
        enforcement="throttle",
        rate=Rate(limit="60"),
        alert_thresholds=[50, 75, 90],
        rollover=Rollover(policy="capped", percent=50),
        override_policy=OverridePolicy(
            approver_roles=["finance"], max_percent=20, max_hours=24, auto_approve_percent=5
        ),
        on_expiry="settle",
        preferred_models=["gpt-4o-mini", "anthropic/claude-3-5-haiku"],
        fallback_model="gpt-4o-mini",
        active=False,
    )
    assert (second.limit, second.alert_thresholds, second.enforcement) == ("5", [], "warn")
    assert (second.timezone, second.entity_id) == ("Europe/Vienna", "*")


def test_every_error_of_a_document_is_told_at_once() -> None:
    text = """
    version: 2
    owner: me
    defaults: {name: x, alerts: [most]}
    policies:
      - {name: a, scope: org, limit: 5, enforcement: stop}
      - nonsense
      - {name: b, scope: org, limit: $5 total, rollover: full, enforcement: throttle}
      - {scope: nowhere}
      - {name: c, scope: org, limit: $5/day}
      - {name: c, scope: org, limit: $6/day}
      - {name: d, scope: org, limit: $5/day, enforcement: throttle, rate: 5 requests/hour}
      - {name: d (rate), scope: org, limit: $5/day}
    """
    assert list(wrong(text)) == [
        "owner",
        "version",
        "defaults.name",
        "defaults.alerts[0]",
        "policies[0].limit",
        "policies[0].enforcement",
        "policies[1]",
        "policies[2].rollover",
        "policies[2].rate",
        "policies[3].scope",
        "policies[3].name",
        "policies[3].limit",
        "policies[5].name",
        "policies[7].name",
    ]


@pytest.mark.parametrize("document", [None, "", "5", "{}", "policies: 5", "policies: {a: b}", "[a"])
def test_what_is_no_list_of_policies(document: Any) -> None:
    assert wrong(document)


def test_a_bare_list_and_an_empty_one_are_documents() -> None:
    assert len(read_text("- {name: a, scope: org, limit: $5/day}").policies) == 1
    assert read_text("policies: []") == read_document([])
    assert read_document([]).errors == ()


def test_a_document_has_at_most_so_many_policies() -> None:
    assert wrong([entry(name=str(n)) for n in range(501)]) == {"policies": "lists more than 500 policies"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1]\nb: *x", "anchors and aliases"),
        ("a: &x 1", "anchors and aliases"),
        ("[" * 100_000, "nested deeper"),
        ("- " * 1_000 + "x", "nested deeper"),
        ("a: 1\nb: 2\na: 3", "`a` is there twice (line 3, column 1)"),
        ("? [a]\n: b", "must be a word"),
        ("a: !!python/object/apply:os.system [ls]", "tags are not taken"),
        ("a: !!timestamp x", "tags are not taken"),
        ("a: 1\n---\nb: 2", "second document"),
        ('a: "\\0"', "no name may have"),
        ('a: "\\ud800"', ""),
        ("a: [1, 2", "line 2"),
        ("a: \x01", "is not YAML"),
        ("\ta: 1", "line 1"),
    ],
)
def test_yaml_that_is_not_taken(text: str, said: str) -> None:
    with pytest.raises(YamlError) as refused:
        read_yaml(text)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("1_000", 1000),
        ("-3", -3),
        ('"12"', "12"),
        ("0o17", "0o17"),
        ("017", "017"),
        ("12.50", "12.50"),
        ("1e3", "1e3"),
        ("2026-11-22", "2026-11-22"),
        ("12:30:00", "12:30:00"),
        ("yes", "yes"),
        ("true", True),
        ("~", None),
        ("'~'", "~"),
        ("9" * 40, "9" * 40),
        ("", None),
    ],
)
def test_scalars_are_what_was_written(text: str, value: Any) -> None:
    found = read_yaml(f"a: {text}")
    assert found == {"a": value} and type(found["a"]) is type(value)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\x85\u2028\u2029"), min_size=1, max_size=20)
WHOLE = st.integers(0, 10**9).map(str)
PERCENT = st.integers(0, 100)


RATE = {"limit": WHOLE, "unit": st.just("requests"), "period": st.sampled_from(["minute", "hourly"])}
CURRENCY = st.sampled_from(["USD", "EUR", "JPY", "KWD"])
DEAR_RATE = {**RATE, "unit": st.just("cost"), "currency": st.none() | CURRENCY}


@st.composite
def budgets(draw: st.DrawFn) -> CreateBudget:
    unit = draw(st.sampled_from(["cost", "tokens", "requests"]))
    period = draw(st.sampled_from(["minute", "hourly", "daily", "weekly", "monthly", "yearly", "total"]))
    kind = draw(st.sampled_from(["global", "team", "user", "feature", "cost_center"]))
    enforcement = draw(st.sampled_from(["block", "throttle", "downgrade", "warn", "shadow"]))
    rated = enforcement == "throttle" and period not in ("minute", "hourly")
    rollovers = ["none"] if period == "total" else ["none", "full", "capped"]
    fields: dict[str, Any] = {
        "name": draw(NAMES),
        "type": kind,
        "entity_id": "*" if kind == "global" else draw(NAMES.map(str.strip).filter(bool)),
        "filters": draw(st.dictionaries(st.sampled_from(["model", "environment"]), NAMES)),
        "unit": unit,
        "currency": draw(CURRENCY) if unit == "cost" else "USD",
        "period": period,
        "timezone": draw(st.sampled_from(["UTC", "Europe/Vienna", "Asia/Kathmandu"])),
        "limit": draw(st.decimals(0, 10**6, places=9).map(lambda d: f"{d:f}") if unit == "cost" else WHOLE),
        "overage_percent": draw(PERCENT),
        "enforcement": enforcement,
        "rate": draw(st.fixed_dictionaries(RATE) | st.fixed_dictionaries(DEAR_RATE)) if rated else None,
        "alert_thresholds": draw(st.lists(st.integers(1, 1000), max_size=5)),
        "rollover": {"policy": draw(st.sampled_from(rollovers)), "percent": draw(PERCENT)},
        "override_policy": {
            "approver_roles": draw(st.lists(st.sampled_from(ROLES), max_size=3)),
            "max_percent": draw(PERCENT),
        },
        "on_expiry": draw(st.sampled_from(["release", "settle"])),
        "preferred_models": draw(st.lists(NAMES, max_size=3)),
        "fallback_model": draw(st.none() | NAMES),
        "active": draw(st.booleans()),
    }
    return msgspec.convert(fields, CreateBudget)


class PlainDumper(yaml.SafeDumper):
    """Writes what is there twice two times."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def draft(request: CreateBudget) -> Whole:
    return drafted(request, org="o", now=EPOCH, new_id=lambda: "id", managed=True)


@given(st.lists(budgets(), max_size=4, unique_by=lambda b: b.name))
@examples(150)
def test_what_is_rendered_reads_as_the_same_budgets(wanted: list[CreateBudget]) -> None:
    drafts = [draft(request) for request in wanted]
    for write in (rendered, complete):
        text = yaml.dump(  # pyright: ignore[reportUnknownMemberType]
            {"version": 1, "policies": [write(d) for d in drafts]}, Dumper=PlainDumper, allow_unicode=True
        )
        document = read_text(text)
        assert document.errors == ()
        assert [draft(request) for request in document.policies] == drafts
