"""Channels are set, shown, tested and deleted; what is refused says which field; nothing secret comes back out."""

import inspect
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from handlers.alerts import apprised, channels
from handlers.alerts.addresses import Reachable
from handlers.alerts.channels import delete_channel, list_channels, list_deliveries, set_channel
from handlers.alerts.couriers import Couriers, CourierSettings
from handlers.context import Context, Limits, Services
from handlers.vault import Vault
from schemas import channel as schemas
from schemas.channel import DeleteChannel, ListChannels, ListDeliveries, QuietHours, SetChannel
from signals import channel as signals
from tests.delivery.conftest import SECRET, all_are, deliveries, delivering, delivering_services, new_channel, tell
from tests.delivery.servers import LOCALHOST, MailServer, Receiver, free_port
from tests.support.polling import eventually
from tests.support.services import context, refusal

SLACK = "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#alerts"
HOOK: dict[str, Any] = {"kind": "webhook", "url": f"http://{LOCALHOST}:9/hook", "secret": SECRET}


async def test_a_channel_is_set_shown_replaced_and_deleted(ctx: Context) -> None:
    quiet = QuietHours(start="22:00", end="07:00", timezone="Europe/Vienna")
    made = await set_channel(ctx, SetChannel(name="slack", kind="apprise", url=SLACK, quiet_hours=quiet))
    assert made.url == "slack://… (Slack)"
    changed = await set_channel(ctx, SetChannel(name="slack", kind="apprise", min_level="critical"))
    assert (changed.min_level, changed.quiet_hours, changed.created_at) == ("critical", None, made.created_at)
    await set_channel(ctx, SetChannel(name="ops", **HOOK))
    listed = (await list_channels(ctx, ListChannels())).channels
    assert [(c.name, c.kind, c.signed) for c in listed] == [("ops", "webhook", True), ("slack", "apprise", False)]
    assert listed[0].url == f"http://{LOCALHOST}:9/…"
    assert (await delete_channel(ctx, DeleteChannel(name="slack"))).pending == 0
    assert [c.name for c in (await list_channels(ctx, ListChannels())).channels] == ["ops"]
    error = await refusal(delete_channel(ctx, DeleteChannel(name="slack")))
    assert (error.code, error.field) == ("not_found", "name")


async def test_channels_are_listed_page_by_page_and_each_org_sees_its_own(services: Services, ctx: Context) -> None:
    for name in ("a", "b", "c"):
        await new_channel(services, name, **HOOK)
    await new_channel(services, "theirs", org="globex", **HOOK)
    first = await list_channels(ctx, ListChannels(limit=2))
    rest = await list_channels(ctx, ListChannels(limit=2, cursor=first.next_cursor))
    assert [c.name for c in (*first.channels, *rest.channels)] == ["a", "b", "c"]
    assert rest.next_cursor is None
    theirs = context(services, org="globex")
    for work in (
        delete_channel(theirs, DeleteChannel(name="a")),
        channels.test_channel(theirs, schemas.TestChannel(name="a")),
    ):
        assert (await refusal(work)).code == "not_found"


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"kind": "apprise"}, "url", "is required"),
        ({"kind": "apprise", "url": "nonsense"}, "url", "not one apprise URL"),
        ({"kind": "apprise", "url": "mailto://"}, "url", "does not understand"),
        ({"kind": "apprise", "url": "nosuch://host/token-9f8e7d"}, "url", "does not understand"),
        ({"kind": "apprise", "url": f"{SLACK} json://example.com"}, "url", "not one apprise URL"),
        ({"kind": "apprise", "url": "syslog://"}, "url", "own host"),
        ({"kind": "apprise", "url": "dbus://"}, "url", "own host"),
        ({"kind": "apprise", "url": "SYSLOG://"}, "url", "own host"),
        ({"kind": "apprise", "url": "windows://"}, "url", "own host"),
        ({"kind": "apprise", "url": "macosx://"}, "url", "own host"),
        ({"kind": "apprise", "url": "rsyslog://example.com"}, "url", "own host"),
        ({"kind": "apprise", "url": f"{SLACK}?template=/etc/passwd"}, "url", "file"),
        ({"kind": "apprise", "url": "mailto://a:b@example.com?pgpkey=/etc/passwd"}, "url", "file"),
        ({"kind": "apprise", "url": f"{SLACK.split('#', maxsplit=1)[0]}?x=y&%74emplate=/etc/passwd"}, "url", "file"),
        ({"kind": "apprise", "url": SLACK, "secret": SECRET}, "secret", "only a webhook"),
        ({"kind": "webhook", "url": "https://example.com"}, "secret", "needs the secret"),
        ({"kind": "webhook", "url": "https://example.com", "secret": "whsec_c2hvcnQ="}, "secret", "24 to 64"),
        ({"kind": "webhook", "url": "https://example.com", "secret": "no prefix at all"}, "secret", "whsec_"),
        ({"kind": "webhook", "url": "ftp://example.com", "secret": SECRET}, "url", "http"),
        ({"kind": "webhook", "url": "https://", "secret": SECRET}, "url", "http"),
        ({"kind": "webhook", "url": "https://example.com:99999/", "secret": SECRET}, "url", "http"),
        (
            {"kind": "apprise", "url": SLACK, "quiet_hours": QuietHours(start="22:00", end="07:00", timezone="Mars")},
            "quiet_hours.timezone",
            "time zone",
        ),
    ],
)
async def test_what_is_wrong_with_a_channel_names_the_field_and_repeats_no_secret(
    ctx: Context, fields: dict[str, Any], field: str, says: str
) -> None:
    error = await refusal(set_channel(ctx, SetChannel(name="new", **fields)))
    assert (error.code, error.field) == ("invalid_request", field)
    assert says in error.message
    assert "TIiajkdn" not in error.message and "9f8e7d" not in error.message
    assert not (await list_channels(ctx, ListChannels())).channels


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/hook",
        "http://localhost:8080/hook",
        "http://[::1]/hook",
        "http://169.254.169.254/latest/meta-data",
        "http://10.1.2.3/",
        "http://192.168.0.1/",
        "http://[::ffff:10.0.0.1]/",
        "http://0.0.0.0/",
        "http://2130706433/",
        "http://[fe80::1]/",
        "http://[64:ff9b::7f00:1]/",
    ],
)
async def test_a_channel_leads_to_no_private_address_unless_the_operator_allows_it(
    services: Services, ctx: Context, url: str
) -> None:
    services.couriers = Couriers(CourierSettings())
    error = await refusal(set_channel(ctx, SetChannel(name="hook", kind="webhook", url=url, secret=SECRET)))
    assert error.field == "url" and "not public" in error.message
    error = await refusal(set_channel(ctx, SetChannel(name="json", kind="apprise", url=url.replace("http", "json", 1))))
    assert error.field == "url"
    services.couriers = Couriers(CourierSettings(allowed_hosts=("*",)))
    await set_channel(ctx, SetChannel(name="hook", kind="webhook", url=url, secret=SECRET))


async def test_a_mail_server_inside_needs_the_operators_leave_too(services: Services, ctx: Context) -> None:
    services.couriers = Couriers(CourierSettings(allowed_hosts=("10.0.0.0/8",)))
    await set_channel(ctx, SetChannel(name="mail", kind="apprise", url="mailto://10.0.0.5?from=a@b.com&to=c@d.com"))
    for url in ("mailto://127.0.0.1?from=a@b.com&to=c@d.com", "mailto://u:p@example.com?smtp=127.0.0.1&to=c@d.com"):
        assert (await refusal(set_channel(ctx, SetChannel(name="mail", kind="apprise", url=url)))).field == "url"


async def test_what_is_private_by_the_time_it_is_sent_is_refused_then(services: Services, receiver: Receiver) -> None:
    """The name led elsewhere when the channel was set, or the operator allowed more then."""
    await new_channel(services, "hook", kind="webhook", url=receiver.url(), secret=SECRET)
    await new_channel(services, "json", kind="apprise", url=f"json://localhost:{receiver.port}/x")
    await new_channel(
        services, "mail", kind="apprise", url=f"mailto://localhost:{receiver.port}?from=a@b.com&to=c@d.com"
    )
    services.couriers = Couriers(CourierSettings())
    async with delivering(services):
        await tell(services, "hook", "json", "mail")
        await eventually(all_are(services, "dead", 3))
    assert {row["last_error"] for row in await deliveries(services)} == {
        "the URL leads to an address that is not public and that the operator does not allow"
    }
    assert not receiver.posts


def test_addresses_that_are_not_the_internet() -> None:
    public = Reachable()
    assert public.allows("example.com", "93.184.216.34") and public.allows("example.com", "2606:4700::1111")
    for address in ("224.0.0.1", "100.64.0.1", "255.255.255.255", "fd00::1", "::", "2002:7f00:1::", "fe80::1%eth0"):
        assert not public.allows("example.com", address), address
    some = Reachable(("mail.corp", "10.2.0.0/16"))
    assert some.allows("MAIL.corp", "10.9.9.9") and some.allows("other.corp", "10.2.3.4")
    assert not some.allows("other.corp", "10.3.0.1")


async def test_the_number_of_channels_is_bounded(database_url: str) -> None:
    async with delivering_services(database_url, limits=Limits(channels_max=2)) as services:
        for name in ("a", "b", "a"):
            await new_channel(services, name, **HOOK)
        assert (await refusal(new_channel(services, "c", **HOOK))).code == "conflict"


async def test_a_test_message_arrives_or_says_why_not(
    services: Services, ctx: Context, mail: MailServer, receiver: Receiver
) -> None:
    quiet = QuietHours(start="00:00", end="00:00", except_level=None)
    await new_channel(services, "mail", kind="apprise", url=mail.url(), quiet_hours=quiet, min_level="exceeded")
    await new_channel(services, "hook", **{**HOOK, "url": receiver.url()})
    for name in ("mail", "hook"):
        tested = await channels.test_channel(ctx, schemas.TestChannel(name=name))
        assert tested.delivered and tested.reason is None and tested.latency_ms < 5_000
    assert "works" in str(mail.messages[0].get_body())
    assert receiver.posts[0].json["data"]["kind"] == "test"
    await new_channel(
        services, "mail", kind="apprise", url=f"mailto://{LOCALHOST}:{free_port()}?from=a@b.com&to=c@d.com"
    )
    receiver.status = 500
    assert "refused" in ((await channels.test_channel(ctx, schemas.TestChannel(name="mail"))).reason or "")
    failed = await channels.test_channel(ctx, schemas.TestChannel(name="hook"))
    assert (failed.delivered, failed.reason) == (False, "the receiver answered 500")
    assert not await deliveries(services)


async def test_another_key_says_so(services: Services, ctx: Context) -> None:
    await new_channel(services, "hook", **HOOK)
    services.vault = Vault("another secret key than before")
    assert (await refusal(channels.test_channel(ctx, schemas.TestChannel(name="hook")))).code == "conflict"
    async with delivering(services):
        await tell(services, "hook")
        await eventually(all_are(services, "dead", 1))
    assert "another secret key" in (await deliveries(services))[0]["last_error"]


def test_only_an_admin_may() -> None:
    for signal in signals.SIGNALS:
        others = frozenset({"provider", "viewer", "manager", "approver", "finance"})
        assert not signal.allows(others) and signal.allows(frozenset({"admin"})), signal.name


class _Heard(logging.Handler):
    """Everything that reaches the process's log, at every level."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter().format(record))


@pytest.fixture
def heard() -> Iterator[_Heard]:
    handler, root = _Heard(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


async def test_secrets_are_in_no_log_reply_audit_entry_table_or_reason(
    services: Services, ctx: Context, receiver: Receiver, heard: _Heard
) -> None:
    server = MailServer(password="something-else")
    server.start()
    receiver.status = 401
    secrets = ["s3cretPassword", "t0kenInThePath", "t0kenInTheQuery", "t0kenInAHeader", SECRET.removeprefix("whsec_")]
    replies: list[Any] = []
    urls: dict[str, dict[str, Any]] = {
        "mail": {"kind": "apprise", "url": server.url(login=f"bob:{secrets[0]}@")},
        "json": {
            "kind": "apprise",
            "url": f"json://bob:{secrets[0]}@{LOCALHOST}:{receiver.port}/{secrets[1]}?+X-Key={secrets[3]}&-q={secrets[2]}",
        },
        "hook": {"kind": "webhook", "url": f"{receiver.url(secrets[1])}?key={secrets[2]}", "secret": SECRET},
        "down": {
            "kind": "webhook",
            "url": f"http://u:{secrets[0]}@{LOCALHOST}:{free_port()}/{secrets[1]}",
            "secret": SECRET,
        },
        "away": {"kind": "apprise", "url": f"json://{LOCALHOST}:{free_port()}/{secrets[1]}"},
        "slack": {"kind": "apprise", "url": f"slack://T1JJ3T3L2/A1BRTD4JD/{secrets[1]}1234567890"},
    }  # fmt: skip
    try:
        for name, fields in urls.items():
            replies.append(await set_channel(ctx, SetChannel(name=name, **fields)))
        near = [name for name in urls if name != "slack"]
        replies += [await channels.test_channel(ctx, schemas.TestChannel(name=name)) for name in near]
        async with delivering(services):
            await tell(services, *near)

            async def failed() -> bool:
                return all(row["last_error"] for row in await deliveries(services))

            await eventually(failed)
        replies.append(await list_channels(ctx, ListChannels()))
        replies.append(await list_deliveries(ctx, ListDeliveries()))
        replies += [await delete_channel(ctx, DeleteChannel(name=name)) for name in urls]
    finally:
        server.stop()
    tables = [
        str([dict(row) for row in await services.database.fetch(f"SELECT * FROM {table}")])
        for table in ("audit", "delivery", "outbox", "channel")
    ]
    said = "\n".join([*heard.lines, *tables, *(msgspec.json.encode(reply).decode() for reply in replies)])
    assert len(await services.database.fetch("SELECT * FROM audit")) == 2 * len(urls)
    assert not [secret for secret in secrets if secret in said]
    assert receiver.posts, "they were sent to the receiver, though"


def test_every_service_that_may_be_used_speaks_http_or_is_mail() -> None:
    """An apprise that brings something new that acts on the host, or opens sockets of its own, fails here."""
    unknown: list[str] = []
    for schema, plugin in _services().items():
        if schema in apprised.LOCAL | apprised.MAIL:
            continue
        text = "\n".join(_sources(plugin))
        local = ("subprocess", "import socket", "ctypes", "os.system", "open_connection", "websocket")
        if "requests" not in text or any(word in text for word in local):
            unknown.append(schema)
    assert not unknown


def _services() -> dict[str, Any]:
    """Every schema that the installed apprise knows, with its class."""
    apprised.read("json://example.com")
    from apprise import manager_plugins

    manager: Any = manager_plugins.NotificationManager()
    return dict(manager._schema_map)


def _sources(plugin: Any) -> Iterator[str]:
    """The source of a service: its module or package, and those of what it derives from."""
    for kind in plugin.__mro__:
        module = inspect.getmodule(kind)
        if module is None or not module.__name__.startswith("apprise.plugins."):
            continue
        assert module.__file__ is not None
        file = Path(module.__file__)
        if module.__name__ != "apprise.plugins.base":
            for found in [file] if file.parent.name == "plugins" else sorted(file.parent.rglob("*.py")):
                yield found.read_text(encoding="utf-8")


def test_services_that_act_on_the_host_are_known_to_apprise_by_these_names() -> None:
    known = _services()
    for schema in ("syslog", "dbus", "gnome", "macosx", "windows", "rsyslog", "irc", "vapid", "fcm"):
        assert schema in known and schema in apprised.LOCAL
