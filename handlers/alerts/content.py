"""One message in every form a channel may need, and what became of it."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A message. ``text`` is short, for chats; ``body`` is the JSON of a webhook.

    ``message_id`` stays the same however often it is sent, so that a receiver can drop what it has.
    """

    message_id: str
    sent_at: datetime
    level: str
    title: str
    text: str
    mail_text: str
    mail_html: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a message arrived. ``reason`` says why not, without anything secret (or for whom not).

    ``final``: the other side refused it and will again, so that trying on is of little use.
    """

    delivered: bool
    reason: str | None = None
    final: bool = False


DELIVERED = Outcome(True)
