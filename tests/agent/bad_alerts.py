"""What signals about alert rules, channels and deliveries refuse for reasons of their own."""

from collections.abc import Iterator
from typing import Any

from tests.agent.bad_fields import INVALID
from tests.agent.good_requests import (
    HOOK,
    NAMELESS_ORG,
    NOBODY,
    QUIET,
    RULE,
    SECRET,
    Refused,
)


def rules() -> Iterator[Refused]:
    def rule(what: str, field: str, kind: str = "request_cost", code: str = INVALID, **fields: Any) -> Refused:
        needs = kind in ("request_cost", "hourly_rate", "absolute_tokens")
        whole = {"name": "new", "kind": kind, "parameters": {"limit": "1"} if needs else {}, **fields}
        return Refused(what, "set_alert_rule", whole, field, code)

    def act(what: str, field: str, kind: str = "request_cost", scope: Any = None, **action: Any) -> Refused:
        given = {} if scope is None else {"scope": scope}
        return rule(what, f"actions[0].{field}", kind, actions=[action], **given)

    for kind in ("hourly_rate", "absolute_tokens", "request_cost"):
        yield rule("no limit", "parameters.limit", kind, parameters={})
    for kind in ("threshold", "exceeded", "overrun", "pacing"):
        yield rule("a limit, where the budget has one", "parameters.limit", kind, parameters={"limit": "1"})
    yield rule("threshold 0", "parameters.percents[0]", "threshold", parameters={"percents": [0]})
    yield rule("no threshold", "parameters.percents", "threshold", parameters={"percents": []})
    yield rule("a parameter of another kind", "parameters.percents", parameters={"limit": "1", "percents": [5]})
    for zone in ("Mars/Base", "../../etc/passwd"):
        yield rule(
            f"time zone `{zone}`", "parameters.timezone", "absolute_tokens", parameters={"limit": "1", "timezone": zone}
        )
    yield rule("a budget and a type", "scope.type", scope={"budget_id": "$budget", "type": "team"})
    yield rule("a budget twice", "scope.budget", scope={"budget_id": "$budget", "budget": "ops"})
    yield rule("an entity of no type", "scope.entity_id", scope={"entity_id": "ops"})
    yield rule("filters of a budget", "scope.filters", scope={"budget": "ops", "filters": {"model": "x"}})
    yield rule("a type that is not summed", "scope.type", "hourly_rate", scope={"type": "session"})
    for name, value in (("budget_id", NOBODY), ("budget_id", "x"), ("budget", "nothing"), ("budget_id", "$deleted")):
        yield rule("a budget that is not there", f"scope.{name}", code="not_found", scope={name: value})
    yield rule("again, told to nobody", "renotify_s", "exceeded", renotify_s=60)
    yield rule("one call, again and again", "renotify_s", channels=["mail"], renotify_s=60)
    yield rule("a version of nothing", "name", version=1, code="not_found")
    yield rule("a name that is taken", "version", name="standing", code="conflict")
    yield rule("a version that nobody read", "version", name="standing", version=9, code="conflict")
    yield act("a word to nobody", "channels", do="notify")
    yield act("a word to nobody", "channels", do="callback", channels=[])
    yield act("a rate limit without a rate", "rate", do="rate_limit")
    yield act("a switch to nothing", "model", "exceeded", do="switch_model")
    yield act("a switch without a budget", "do", do="switch_model", model="x")
    yield act(
        "minutes and until_reset", "until_reset", "exceeded", do="switch_model", model="x", minutes=5, until_reset=True
    )
    yield act("a rollback of nothing", "entities", "hourly_rate", do="rollback")
    yield act("a rollback of what cannot be", "entities[0]", "hourly_rate", do="rollback", entities=["user"])
    yield act("a rollback without a rate", "do", do="rollback", entities=["policy"])
    yield act("a field of another action", "model", do="log", model="x")
    for version, code, field in ((9, "conflict", "version"),):
        yield Refused(
            "a version that nobody read", "delete_alert_rule", {"name": "standing", "version": version}, field, code
        )
    user = {**RULE, "scope": {"type": "user", "entity_id": "ada"}}
    yield Refused("a plain user name, refused", "set_alert_rule", user, "scope.entity_id", org=NAMELESS_ORG)


def channels() -> Iterator[Refused]:
    """Webhooks, their addresses and secrets, then apprise services."""
    yield from _webhooks()
    yield from _quiet()
    yield from _services()
    other = {"name": "mail", "kind": "webhook", "secret": SECRET}
    yield Refused("another kind, without a URL", "set_channel", other, "url")
    failed = {"delivery_id": "$waiting"}
    yield Refused("a delivery that has not failed", "retry_delivery", failed, "delivery_id", "conflict")


def _hook(what: str, field: str, **fields: Any) -> Refused:
    return Refused(what, "set_channel", {**HOOK, **fields}, field)


def _webhooks() -> Iterator[Refused]:
    for url in (
        "ftp://8.8.8.8/",
        "8.8.8.8/hook",
        "https://",
        "https:///x",
        "https://8.8.8.8:99999/",
        "https://8.8.8.8/\n",
        "file:///etc/passwd",
        "https://[::1",
        "javascript:x",
        "https://a..b/",
        "https://xn--/",
    ):
        yield _hook(f"webhook to `{url}`".replace("\n", "\\n"), "url", url=url)
    private = (
        "127.0.0.1",
        "localhost",
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[fd00::1]",
        "0.0.0.0",
        "2130706433",
        "0x7f.1",
        "100.64.0.1",
        "224.0.0.1",
    )
    for host in private:
        yield _hook(f"webhook to `{host}`", "url", url=f"http://{host}/hook")
    yield _hook("webhook to a login at a private address", "url", url="http://8.8.8.8@127.0.0.1/")
    for what, secret in (
        ("of no kind", "swordfish"),
        ("of 23 bytes", "whsec_" + "A" * 30 + "A="),
        ("of 65 bytes", "whsec_" + "A" * 86 + "A="),
        ("not base64", "whsec_" + "!" * 32),
        ("of a prefix only", "whsec_"),
    ):
        yield _hook(f"a secret {what}", "secret", secret=secret)
    yield Refused(
        "a webhook without a secret", "set_channel", {k: v for k, v in HOOK.items() if k != "secret"}, "secret"
    )
    yield Refused("a webhook without a URL", "set_channel", {k: v for k, v in HOOK.items() if k != "url"}, "url")


def _quiet() -> Iterator[Refused]:
    for zone in ("Mars/Base", "../../etc/passwd"):
        yield _hook(f"time zone `{zone}`", "quiet_hours.timezone", quiet_hours={**QUIET, "timezone": zone})
    for text in ("24:00", "9:00", "22:60", "22:00:00", "22:00\n"):
        yield _hook(f"time of day `{text}`".replace("\n", "\\n"), "quiet_hours.end", quiet_hours={**QUIET, "end": text})
    yield _hook("no end of quiet", "quiet_hours.end", quiet_hours={"start": "22:00"})
    yield _hook("quiet on no day", "quiet_hours.days", quiet_hours={**QUIET, "days": []})


def _services() -> Iterator[Refused]:
    def service(what: str, url: str, **fields: Any) -> Refused:
        return Refused(
            what, "set_channel", {"name": "new", "kind": "apprise", "url": url, **fields}, "secret" if fields else "url"
        )

    for kind in (
        "syslog",
        "dbus",
        "gnome",
        "windows",
        "macosx",
        "irc",
        "mqtt",
        "rsyslog",
        "growl",
        "fcm",
        "SYSLOG",
        "exec",
        "script",
        "file",
        "python",
    ):
        yield service(f"`{kind}://`", f"{kind}://8.8.8.8/x")
    for part in (
        "template=/etc/passwd",
        "attach=/etc/passwd",
        "include=/etc/passwd",
        "keyfile=/k",
        "pgpkey=/k",
        "config=/c",
        "%74emplate=/x",
    ):
        yield service(
            "a URL that names a file of the host", f"mailto://u:p@8.8.8.8?from=b@example.com&to=a@example.com&{part}"
        )
    for url in (
        "mailto://u:p@127.0.0.1?from=b@example.com&to=a@example.com",
        "json://localhost",
        "jsons://169.254.169.254/x",
        "xml://10.0.0.1",
    ):
        yield service("a service at a private address", url)
    for url in ("x", "mailto://", "slack://", "nothing://8.8.8.8", "mailto://u:p@8.8.8.8 tgram://x", "json://"):
        yield service("a URL that says nothing", url)
    yield service("a secret of an apprise URL", "json://8.8.8.8", secret=SECRET)
