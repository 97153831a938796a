"""E-mail over SMTP, with what apprise reads from a ``mailto`` URL. Blocking: it runs in a courier's thread.

Sent by hand and not by apprise, so that a message has its own text beside the HTML, the same Message-ID however often
it is tried, one transaction for all recipients, and a reason that tells a refusal from a server that is away.
"""

import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from email import policy
from email.message import EmailMessage
from email.utils import format_datetime, formataddr
from typing import Final, Literal

from handlers.alerts.content import DELIVERED, Content, Outcome

Address = tuple[str, str]
_PRIORITY: Final = {"critical": "1", "exceeded": "1", "warning": "3", "info": "5"}
# 421: the server is closing; 4xx in general says "later", 5xx says "no".
_REFUSED: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Mailbox:
    """A server, how to log in, and who writes to whom. Addresses are (name or empty, address)."""

    host: str
    port: int
    security: Literal["insecure", "ssl", "starttls"]
    user: str | None
    password: str | None
    verify: bool
    sender: Address
    to: Sequence[Address]
    cc: Sequence[Address] = ()
    bcc: Sequence[Address] = ()
    reply_to: Sequence[Address] = ()


def send(mailbox: Mailbox, content: Content, *, timeout_s: float) -> Outcome:
    """Hand a message to the server; ``timeout_s`` bounds each of its answers."""
    message = compose(mailbox, content)
    recipients = [address for _, address in (*mailbox.to, *mailbox.cc, *mailbox.bcc)]
    try:
        with _connected(mailbox, timeout_s) as server:
            refused = server.send_message(message, mailbox.sender[1], recipients)
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        return Outcome(False, f"every recipient was refused: {_first(error.recipients)}", final=min(codes) >= _REFUSED)
    except smtplib.SMTPResponseException as error:
        said = _text(error.smtp_code, error.smtp_error)
        return Outcome(False, f"the mail server refused: {said}", final=error.smtp_code >= _REFUSED)
    except smtplib.SMTPNotSupportedError as error:
        return Outcome(False, f"the mail server cannot do this: {error}", final=True)
    except (smtplib.SMTPException, OSError) as error:
        return Outcome(False, f"the mail server cannot be reached: {error or type(error).__name__}")
    if refused:
        # The others have it; trying again would give it to them twice.
        return Outcome(True, f"{len(refused)} of {len(recipients)} recipients were refused: {_first(refused)}")
    return DELIVERED


def compose(mailbox: Mailbox, content: Content) -> EmailMessage:
    """The message with a text and an HTML part."""
    message = EmailMessage(policy.SMTP)
    domain = mailbox.sender[1].rpartition("@")[2]
    message["Message-ID"] = f"<{content.message_id}@{domain}>"
    message["Date"] = format_datetime(content.sent_at)
    message["From"] = formataddr(mailbox.sender)
    message["To"] = ", ".join(map(formataddr, mailbox.to))
    for header, addresses in (("Cc", mailbox.cc), ("Reply-To", mailbox.reply_to)):
        if addresses:
            message[header] = ", ".join(map(formataddr, addresses))
    message["Subject"] = " ".join(content.title.split())
    message["Auto-Submitted"] = "auto-generated"
    message["X-Priority"] = _PRIORITY.get(content.level, "3")
    message.set_content(content.mail_text)
    message.add_alternative(content.mail_html, subtype="html")
    return message


def _connected(mailbox: Mailbox, timeout_s: float) -> smtplib.SMTP:
    context = ssl.create_default_context()
    if not mailbox.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if mailbox.security == "ssl":
        server: smtplib.SMTP = smtplib.SMTP_SSL(mailbox.host, mailbox.port, timeout=timeout_s, context=context)
    else:
        server = smtplib.SMTP(mailbox.host, mailbox.port, timeout=timeout_s)
    try:
        if mailbox.security == "starttls":
            server.starttls(context=context)
        if mailbox.user and mailbox.password:
            server.login(mailbox.user, mailbox.password)
    except BaseException:
        server.close()
        raise
    return server


def _first(refused: dict[str, tuple[int, bytes]]) -> str:
    address, (code, said) = next(iter(refused.items()))
    return f"{address}: {_text(code, said)}"


def _text(code: int, said: bytes | str) -> str:
    return f"{code} {said.decode(errors='replace') if isinstance(said, bytes) else said}"
