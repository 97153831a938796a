"""Documents of policies that are refused as a whole: what is wrong, the document, and the field that is named."""

from typing import Any, Final

_ENTRY: Final[dict[str, Any]] = {"name": "new", "scope": "team:new", "limit": "$5/day"}
_LINE: Final = "[{name: new, scope: 'team:new', limit: $5/day}]"
# Nine lists, each nine times the one before it: a billion laughs.
_LAUGHS: Final = "\n".join(
    [
        "a: &a [x, x, x, x, x, x, x, x, x]",
        *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    ]
)


def _texts() -> tuple[tuple[str, str, str], ...]:
    nested: dict[str, str] = {
        "YAML: a billion laughs": _LAUGHS,
        "YAML: an alias": "a: &x 1\npolicies: [*x]",
        "YAML: an anchor without an alias": "policies: &x []",
        "YAML: an alias of itself": "policies: &x [*x]",
        "YAML: a merge key": "defaults: &d {limit: $1/day}\npolicies: [{<<: *d, name: x}]",
        "YAML: nine lists in lists": "policies: " + "[" * 9 + "]" * 9,
        "YAML: 100,000 open brackets": "[" * 100_000,
        "YAML: 100,000 lists in lists": "[" * 100_000 + "]" * 100_000,
        "YAML: 100,000 mappings in mappings": "{a: " * 60_000 + "}" * 60_000,
        "YAML: 600 lists by indentation": "\n".join(" " * i + "- " for i in range(600)),
        "YAML: a tag that makes an object": "policies: !!python/object/apply:os.system ['true']",
        "YAML: a tag of its own": "policies: !thing []",
        "YAML: a second document": f"---\n{_LINE}\n---\n{_LINE}",
        "YAML: a key twice": "policies: []\npolicies: []",
        "YAML: a list as a key": "? [a]\n: 1",
        "YAML: not closed": "policies: [",
        "YAML: a tab": "policies:\n\t- x",
        "YAML: a control character": "policies: \x01",
        "YAML: a quoted NUL": 'policies: ["\\0"]',
        "YAML: half a character": 'policies: ["\\ud800"]',
        "YAML: an unknown escape": 'policies: ["\\q"]',
        "YAML: an unknown directive": "%FOO\n---\n[",
    }
    shaped = {
        "an empty document": ("", "policies"),
        "a document of a word": ("hello", "policies"),
        "a document of a number": ("7", "policies"),
        "a document without policies": ("version: 1", "policies"),
        "policies that are no list": ("policies: {name: x}", "policies"),
        "a key that documents have not": (f"policys: 1\npolicies: {_LINE}", "policys"),
        "version 2": (f"version: 2\npolicies: {_LINE}", "version"),
        "defaults that are no mapping": (f"defaults: []\npolicies: {_LINE}", "defaults"),
        "defaults with a name": (f"defaults: {{name: x}}\npolicies: {_LINE}", "defaults.name"),
        "defaults with an error": (f"defaults: {{timezone: Mars/Base}}\npolicies: {_LINE}", "defaults.timezone"),
        "an entry that is a word": ("[x]", "policies[0]"),
        "an entry that is nothing": ("[~]", "policies[0]"),
        "26,000 unknown keys": ("[{" + ",".join(f"k{i}: 1" for i in range(26_000)) + "}]", "policies[0].k0"),
        "501 policies": ("policies:\n" + "- x\n" * 501, "policies"),
    }
    return (
        *((what, text, "document") for what, text in nested.items()),
        *((what, text, field) for what, (text, field) in shaped.items()),
    )


def _entries() -> tuple[tuple[str, list[Any], str], ...]:
    deep: Any = "x"
    for _ in range(60):
        deep = {"a": [deep]}
    wrong: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("a policy with an unknown key", {"limmit": 1}, "limmit"),
        ("a policy 120 levels deep", {"filters": deep}, "filters.a"),
        ("a policy without a name", {"name": None}, "name"),
        ("a policy called by a number", {"name": 7}, "name"),
        ("a policy with an empty name", {"name": ""}, "name"),
        ("a policy with a name of 257 characters", {"name": "x" * 257}, "name"),
        ("scope `nobody:x`", {"scope": "nobody:x"}, "scope"),
        ("scope `team`", {"scope": "team"}, "scope"),
        ("scope `team:`", {"scope": "team: "}, "scope"),
        ("a scope that is a list", {"scope": []}, "scope"),
        *(
            (f"limit `{text or ' '}`" if len(text) < 30 else "limit of 30 digits", {"limit": text}, "limit")
            for text in (
                *(
                    "unlimited",
                    "$5",
                    "5/day",
                    "-5 USD/day",
                    "$1e3/day",
                    "1.5 tokens/day",
                    "$5/fortnight",
                    "$5 tokens/day",
                ),
                *("$" + "9" * 30 + "/day", "", "NaN USD/day", "5 XYZW/day", "\u0665 USD/day", "$1.0000000001/day"),
            )
        ),
        ("limit `5 EUX/day`, no currency", {"limit": "5 EUX/day"}, "limit"),
        ("a limit that is a number", {"limit": 5}, "limit"),
        ("two currencies", {"limit": "$5/day", "currency": "EUR"}, "currency"),
        ("time zone `Mars/Base`", {"timezone": "Mars/Base"}, "timezone"),
        ("enforcement `blok`", {"enforcement": "blok"}, "enforcement"),
        ("throttle without a rate", {"enforcement": "rate_limit"}, "rate"),
        ("a rate on a blocking policy", {"rate": "60 requests/minute"}, "rate"),
        ("a rate over a day", {"enforcement": "throttle", "rate": "60 requests/day"}, "rate"),
        ("alerts at 0%", {"alerts": ["50%", "0%"]}, "alerts[1]"),
        ("alerts that are no list", {"alerts": "50%"}, "alerts"),
        ("alerts at 1.5%", {"alerts": ["1.5%"]}, "alerts[0]"),
        ("21 alerts", {"alerts": ["50%"] * 21}, "alerts"),
        ("rollover 101%", {"rollover": "101%"}, "rollover"),
        ("rollover of one window", {"limit": "$5 total", "rollover": "full"}, "rollover"),
        ("an override of no hours", {"override": {"max_hours": 0}}, "override.max_hours"),
        ("an approver of no role", {"override": {"approvers": ["boss"]}}, "override.approvers[0]"),
        ("a filter on nothing", {"filters": {"modle": "x"}}, "filters.modle"),
        ("51 preferred models", {"prefer": ["x"] * 51}, "prefer"),
        ("active `yes`", {"active": "yes"}, "active"),
        ("on_expiry `keep`", {"on_expiry": "keep"}, "on_expiry"),
    )
    one = tuple((what, [{**_ENTRY, **change}], f"policies[0].{field}") for what, change, field in wrong)
    return (
        *one,
        ("one bad policy among good ones", [_ENTRY, {**_ENTRY, "name": "b", "limit": "x"}], "policies[1].limit"),
        ("a name twice", [_ENTRY, _ENTRY], "policies[1].name"),
        (
            "the name of a rate",
            [{**_ENTRY, "enforcement": "throttle", "rate": "6 requests/minute"}, {**_ENTRY, "name": "new (rate)"}],
            "policies[1].name",
        ),
    )


DOCUMENTS: Final = _texts()
POLICIES: Final = _entries()
