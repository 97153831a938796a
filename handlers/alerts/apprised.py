"""What apprise is used for: reading the URLs of some 150 services, and talking to them. Blocking: runs in a thread.

apprise is imported at the first use (0.15 s). Everything it logs stays here, because it names URLs and tokens.
"""

import importlib
import logging
import re
import threading
import warnings
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, unquote_plus

from handlers.alerts.content import DELIVERED, Content, Outcome
from handlers.alerts.scrub import pieces
from handlers.alerts.smtp import Mailbox

MAIL: Final = frozenset({"mailto", "mailtos"})
# They show a message on the agent's own host, read or write its files, or speak something else than HTTP, which
# handlers.alerts.addresses could not watch. A test compares this with what the installed apprise brings.
LOCAL: Final = frozenset(
    {
        *(
            "syslog",
            "dbus",
            "kde",
            "qt",
            "glib",
            "gio",
            "gnome",
            "macosx",
            "windows",
            "blink1",
            "vapid",
            "fcm",
            "deltachat",
        ),
        *("deltachats", "rsyslog", "growl", "irc", "ircs", "xmpp", "xmpps", "mqtt", "mqtts", "amqp", "amqps", "smpp"),
        *("smpps", "aprs", "nostr"),
    }
)
# Parameters by which a URL names a file of the agent's host, wherever they stand: not every service reads a URL alike.
_FILE_PARAMETER: Final = re.compile(
    r"[?&;#][+:-]?(template|keyfile|pgp|pgpkey|pgpmode|subfile|attach|include|config|storage)\s*(?==|&|$)",
    re.IGNORECASE,
)
# Services that send e-mail by an HTTP API: they get the page, the others the short text.
PAGES: Final = frozenset(
    {
        *("ses", "sendgrid", "mailgun", "sparkpost", "smtp2go", "mailersend", "brevo", "resend", "postmark", "o365"),
        *("azure", "sendpulse"),
    }
)
_MAIL_PARAMETERS: Final = frozenset({"to", "from", "cc", "bcc", "reply", "name", "smtp", "mode", "format"})
_LINES_MAX: Final = 4
_TYPES: Final = {"info": "info", "warning": "warning", "critical": "failure", "exceeded": "failure"}
_REFUSED: Final = re.compile(r"error=(?:400|401|403|404|405|410)\b")


class UrlRefused(ValueError):
    """A URL that is not used; the message says why and repeats nothing of it."""


def schema_of(url: str) -> str:
    """The part before ``://`` in lower case, empty if there is none."""
    return url.partition("://")[0].strip().lower() if "://" in url else ""


def read(url: str) -> Any:
    """The service a URL names, as apprise's object for it. Raises UrlRefused."""
    schema = schema_of(url)
    if not schema or any(c.isspace() or c < " " for c in url.strip()):
        raise UrlRefused("is not one apprise URL, such as 'mailto://user:password@example.com?to=team@example.com'")
    if schema in LOCAL:
        raise UrlRefused(f"'{schema}' would act on the agent's own host, or cannot be watched: use another service")
    if found := _FILE_PARAMETER.search(unquote_plus(unquote_plus(url))):
        raise UrlRefused(f"its parameter '{found[1].lower()}' names a file of the agent's host, which no channel may")
    service = _library().instantiate(url)
    if service is not None and (LOCAL.intersection(service.schemas()) or _library().names_files(service)):
        raise UrlRefused("names a service, or a file, that no channel may use")
    if service is None:
        raise UrlRefused(f"apprise does not understand this '{schema[:32]}' URL: something is missing or misspelt")
    if not service.enabled:
        raise UrlRefused(f"'{schema}' needs a library that is not installed here")
    return service


def shown_url(url: str, service: Any) -> str:
    """Where a URL leads, without anything secret: the service and, for e-mail, the server and the recipients."""
    schema = schema_of(url)
    if schema in MAIL:
        box = mailbox(service)
        return f"{schema}://{box.host}/… to " + ", ".join(address for _, address in box.to)
    return f"{schema}://… ({service.service_name})"


def mailbox(service: Any) -> Mailbox:
    """What a ``mailto`` URL says."""
    names: dict[str, Any] = service.names or {}

    def named(addresses: Any) -> list[tuple[str, str]]:
        return [(names.get(address) or "", address) for address in sorted(addresses)]

    return Mailbox(
        host=service.smtp_host,
        port=service.port,
        security=service.secure_mode,
        user=service.user,
        password=service.password,
        verify=service.verify_certificate,
        sender=(service.from_addr[0] or "", service.from_addr[1]),
        to=[(name or "", address) for name, address in service.targets],
        cc=named(service.cc),
        bcc=named(service.bcc),
        reply_to=named(service.reply_to),
    )


def send(url: str, service: Any, content: Content, *, timeout_s: float) -> Outcome:
    """Send a message through a service that is not plain e-mail. The reason of a failure still holds secrets."""
    service.request_rate_per_sec = 0  # It would wait by sleeping; the bound is the channel's own.
    service.socket_connect_timeout = service.socket_read_timeout = timeout_s
    service.redirects = False
    service.overflow_mode = _library().truncate
    page = schema_of(url) in PAGES
    with _Overheard() as heard:
        arrived = service.notify(
            title=content.title,
            body=content.mail_html if page else content.text,
            body_format="html" if page else "text",
            notify_type=_TYPES.get(content.level, "info"),
        )
    if arrived:
        return DELIVERED
    reason = " ".join(heard) or f"{service.service_name} did not take it"
    return Outcome(False, reason, final=_REFUSED.search(reason) is not None)


def secrets_of(url: str) -> list[str]:
    """Every part of a URL that may be secret: of e-mail all but servers and addresses, of others everything."""
    rest = url.partition("://")[2]
    if schema_of(url) not in MAIL:
        return [rest, *pieces(rest)]
    head, _, query = rest.partition("?")
    login = head.rpartition("@")[0]
    parameters = parse_qsl(query.replace("#", "&"), keep_blank_values=True)
    values = [value for key, value in parameters if key.lower() not in _MAIL_PARAMETERS]
    return [login, *pieces(login), unquote(login.partition(":")[2]), *values]


def host_of(url: str, service: Any) -> str | None:
    """The server a URL itself names, None for a service that has but one."""
    if schema_of(url) in MAIL:
        return str(service.smtp_host).strip("[]")
    if not any("{host}" in template for template in service.templates):
        return None
    return str(service.host).strip("[]")


class _Overheard:
    """What apprise says in this thread while a message is sent; the few lines that tell why it did not arrive."""

    _here: Final = threading.local()

    def __enter__(self) -> list[str]:
        lines: list[str] = []
        self._here.lines = lines
        return lines

    def __exit__(self, *_: object) -> None:
        self._here.lines = None

    @classmethod
    def hear(cls, record: logging.LogRecord) -> None:
        lines: list[str] | None = getattr(cls._here, "lines", None)
        told = record.levelno >= logging.WARNING or "Exception" in str(record.msg)
        if lines is not None and told and len(lines) < _LINES_MAX:
            lines.append(record.getMessage())


class _Ear(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _Overheard.hear(record)


class _Library:
    """apprise, set up once: nothing on disk, no redirects, no plugins of others, no word to our own logs."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Of what its optional parts import.
            apprise: Any = importlib.import_module("apprise")
            apprise.Apprise.instantiate("json://localhost")  # Reads the services now.
        self._apprise: Any = apprise
        self._asset: Any = apprise.AppriseAsset(
            app_id="Token Manager",
            app_desc="Token Manager",
            app_url="",
            storage_mode="memory",
            pgp_autogen=False,
            pem_autogen=False,
            http_redirects=False,
            image_url_mask="",
            image_url_logo="",
        )
        self.truncate: Any = apprise.OverflowMode.TRUNCATE
        log = logging.getLogger("apprise")
        log.handlers = [_Ear()]
        log.propagate = False
        log.setLevel(logging.DEBUG)
        # These name whole URLs where a log is read at level debug.
        for name in ("urllib3", "requests", "requests_oauthlib", "oauthlib"):
            logging.getLogger(name).setLevel(logging.ERROR)

    def names_files(self, service: Any) -> bool:
        """Whether a URL gave its service something to read."""
        kind: Any = self._apprise.AppriseAttachment
        found: list[Any] = [value for value in service.__dict__.values() if type(value) is kind]
        return any(map(len, found))

    def instantiate(self, url: str) -> Any:
        """apprise's object for a URL, None where it does not understand it."""
        return self._apprise.Apprise.instantiate(url.strip(), asset=self._asset, suppress_exceptions=True)


_made: list[_Library] = []
_making: Final = threading.Lock()


def _library() -> _Library:
    with _making:
        if not _made:
            _made.append(_Library())
    return _made[0]
