"""Delivering: claim what a channel is due to send, send it while nothing is locked, and write down what became of it.

At least once: an agent that dies between sending and writing leaves a lease, and when it ends another agent sends the
same message, with the same id, again. Otherwise once.
"""

import html
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

import msgspec

from handlers.alerts import notes
from handlers.alerts.content import Content, Outcome
from handlers.alerts.couriers import Target
from handlers.alerts.delivery_plan import Plan, Terms, plan
from handlers.alerts.mail import Envelope, alert_content, digest_content
from handlers.alerts.notes import Note
from handlers.alerts.spending import spending_of
from handlers.context import Limits, Services
from schemas.channel import QuietHours
from store import alerts as alert_store
from store import budgets as budget_store
from store import channels as channel_store
from store import deliveries as delivery_store
from store.channels import ChannelRow
from store.deliveries import DeliveryRow
from store.pool import Connection

_UNKNOWN: Final = "there is no channel of this name"
_OFF: Final = "the channel is switched off"
_GONE: Final = "what it was to tell is gone"
_SEALED: Final = "the channel was sealed with another secret key: set it again"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A message that this agent sends, under its lease."""

    channel: ChannelRow
    message_id: str
    claim_id: str
    attempts: int
    postponed: str | None
    notes: Sequence[Note]

    @property
    def key(self) -> tuple[str, str]:
        """The channel."""
        return self.channel.org_id, self.channel.name


async def due(services: Services, *, except_for: Sequence[tuple[str, str]], limit: int) -> list[tuple[str, str]]:
    """Channels (org, name) with something to send now, besides ``except_for``."""
    async with services.database.connection() as connection:
        return await delivery_store.due_channels(connection, except_for=except_for, limit=limit)


async def claim(services: Services, org: str, name: str, *, most: int) -> list[Claimed]:
    """Decide what a channel sends now, and lease at most ``most`` messages of it to this agent; one transaction."""
    async with services.database.transaction() as connection:
        channel = await channel_store.lock(connection, org, name)
        rows = await delivery_store.lock_due(connection, org, name, services.limits.delivery_rows_max)
        if channel is None:
            await _finish(connection, org, rows, "dead", _UNKNOWN)
            return []
        if not channel.active:
            await _finish(connection, org, rows, "skipped", _OFF)
            return []
        told = await _told(connection, org, rows)
        worn = [row for row in rows if row.attempts >= services.limits.delivery_attempts_max]
        await _finish(connection, org, worn, "dead", "no attempt came to an end")
        await _finish(connection, org, [row for row in rows if row.delivery_id not in told], "dead", _GONE)
        open_rows = [row for row in rows if row not in worn and row.delivery_id in told]
        if not open_rows:
            return []
        now = await budget_store.clock(connection)
        made = plan(
            _terms(channel, services.limits, most),
            open_rows,
            {row.delivery_id: told[row.delivery_id].level for row in open_rows},
            await delivery_store.traffic(connection, org, name),
            now,
        )
        return await _write(services, connection, channel, made, told)


async def send(services: Services, claimed: Claimed) -> Outcome:
    """Send a claimed message once. Nothing is locked; raises only where the database is away."""
    channel = claimed.channel
    try:
        target = Target.unpacked(services.vault.unseal(channel.sealed))
    except ValueError:
        return Outcome(False, _SEALED, final=True)
    return await services.couriers.send(target, await content_of(services, claimed))


async def content_of(services: Services, claimed: Claimed) -> Content:
    """What a claimed message says."""
    channel, found = claimed.channel, claimed.notes
    quiet = quiet_hours_of(channel)
    envelope = Envelope(
        org=channel.org_id,
        channel=channel.name,
        message_id=claimed.message_id,
        sent_at=services.clock(),
        public_url=services.public_url,
        timezone="UTC" if quiet is None else quiet.timezone,
    )
    if len(found) > 1:
        digest = digest_content(envelope, found, why=claimed.postponed, shown_max=services.limits.digest_items_max)
        return await with_names(services, channel.org_id, digest)
    async with services.database.connection() as connection:
        spending = await spending_of(services, connection, channel.org_id, found[0], envelope.sent_at)
    return await with_names(services, channel.org_id, alert_content(envelope, found[0], spending))


async def with_names(services: Services, org: str, content: Content) -> Content:
    """With names in the place of surrogates, each part escaped as it is written."""
    names = services.identities
    parts = (content.title, content.text, content.mail_text, content.mail_html)
    await names.learn(org, content.body + "".join(parts).encode())
    return replace(
        content,
        title=names.spoken(org, content.title),
        text=names.spoken(org, content.text),
        mail_text=names.spoken(org, content.mail_text),
        mail_html=names.spoken(org, content.mail_html, html.escape),
        body=names.named(org, content.body),
    )


async def settle(services: Services, claimed: Claimed, outcome: Outcome) -> str | None:
    """Write down what became of a message; returns its status, None where another agent has taken it over."""
    org, message, claim_id = claimed.channel.org_id, claimed.message_id, claimed.claim_id
    async with services.database.transaction() as connection:
        if outcome.delivered:
            sent = await delivery_store.mark_sent(connection, org, message, claim_id, note=outcome.reason)
            return "sent" if sent else None
        limits = services.limits
        return await delivery_store.mark_failed(
            connection,
            org,
            message,
            claim_id,
            reason=outcome.reason or "not delivered",
            wait=wait_after(claimed.attempts, limits),
            attempts_max=limits.delivery_refused_attempts_max if outcome.final else limits.delivery_attempts_max,
        )


def lease_s(services: Services) -> float:
    """How long a message is one agent's, in seconds: never so short that another sends what is still on its way."""
    return max(services.limits.delivery_lease_s, 3 * services.couriers.timeout_s)


def wait_after(attempts: int, limits: Limits) -> timedelta:
    """How long after a failed attempt (the first is 1) the next one comes: doubling, bounded."""
    doubled = limits.delivery_wait_s * 2.0 ** min(attempts - 1, 30)
    return timedelta(seconds=min(doubled, limits.delivery_wait_max_s))


def quiet_hours_of(channel: ChannelRow) -> QuietHours | None:
    """A channel's quiet hours as they were set."""
    return None if channel.quiet_hours is None else msgspec.convert(channel.quiet_hours, QuietHours)


def _terms(channel: ChannelRow, limits: Limits, most: int) -> Terms:
    return Terms(
        min_level=channel.min_level,
        quiet_hours=quiet_hours_of(channel),
        messages_per_hour_max=channel.messages_per_hour_max,
        at_once_max=min(most, limits.delivery_channel_at_once_max),
    )


async def _told(connection: Connection, org: str, rows: Sequence[DeliveryRow]) -> dict[str, Note]:
    """What each delivery tells, by its id; without those that tell nothing any more."""
    found: dict[str, Note] = {}
    for row in rows:
        if row.alert_id is not None:
            alert = await alert_store.find(connection, org, row.alert_id)
            note = None if alert is None else notes.of_alert(row.delivery_id, alert)
        else:
            note = notes.of_payload(row)
        if note is not None:
            found[row.delivery_id] = note
    return found


async def _write(
    services: Services, connection: Connection, channel: ChannelRow, made: Plan, told: dict[str, Note]
) -> list[Claimed]:
    org = channel.org_id
    await delivery_store.finish(connection, org, made.skipped, status="skipped", reason="below the channel's level")
    await delivery_store.postpone(connection, org, made.postponed)
    claim_id = services.new_id()
    members = {row.delivery_id: message for message, rows in made.messages.items() for row in rows}
    lease = timedelta(seconds=lease_s(services))
    await delivery_store.claim(connection, org, members, claim_id=claim_id, lease=lease)
    return [
        Claimed(
            channel=channel,
            message_id=message,
            claim_id=claim_id,
            attempts=max(row.attempts for row in rows) + 1,
            postponed=rows[0].postponed,
            notes=[told[row.delivery_id] for row in rows],
        )
        for message, rows in made.messages.items()
    ]


async def _finish(connection: Connection, org: str, rows: Sequence[DeliveryRow], status: str, reason: str) -> None:
    if rows:
        _log.warning("%d deliveries of org %s to a channel: %s (%s)", len(rows), org, status, reason)
    await delivery_store.finish(connection, org, [row.delivery_id for row in rows], status=status, reason=reason)
