"""Hands messages to channels: in threads of its own, bounded and timed, and only to addresses that are allowed."""

import json
import logging
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from handlers.alerts import apprised, smtp, webhook
from handlers.alerts.addresses import NOT_PUBLIC, Reachable, only
from handlers.alerts.content import Content, Outcome
from handlers.alerts.scrub import scrubbed
from handlers.alerts.threads import Threads
from schemas.errors import invalid, unavailable

APPRISE: Final = "apprise"
WEBHOOK: Final = "webhook"
TRIALS_MAX: Final = 4
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a channel leads, with its secrets: never logged, shown or kept unsealed."""

    kind: str
    url: str
    secret: str | None

    def __repr__(self) -> str:
        return f"Target({self.kind})"

    def secrets(self) -> list[str]:
        """What no reason may repeat."""
        found = webhook.secrets_of(self.url) if self.kind == WEBHOOK else apprised.secrets_of(self.url)
        return [*found, *([self.secret] if self.secret else [])]

    def packed(self) -> str:
        """As text to be sealed."""
        return json.dumps([self.kind, self.url, self.secret])

    @classmethod
    def unpacked(cls, text: str) -> "Target":
        """What was sealed."""
        return cls(*json.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class CourierSettings:
    """``timeout_s`` bounds a message altogether, ``answer_timeout_s`` each answer of the other side."""

    threads_max: int = 8
    timeout_s: float = 20.0
    answer_timeout_s: float = 10.0
    allowed_hosts: tuple[str, ...] = ()


class Couriers:
    """One per agent."""

    def __init__(self, settings: CourierSettings | None = None) -> None:
        self._settings = settings or CourierSettings()
        self._threads = Threads(self._settings.threads_max)
        # What people try out must not take the places of what has to be delivered.
        self._trials = Threads(TRIALS_MAX)
        self._reachable = Reachable(self._settings.allowed_hosts)
        # It tells of every request, with its URL.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)

    @property
    def timeout_s(self) -> float:
        """The longest a message may take, in seconds."""
        return self._settings.timeout_s

    async def inspect(self, target: Target) -> str:
        """Where a target leads, fit to be shown. Raises SignalError naming ``url`` or ``secret`` if it is not used."""
        try:
            return await self._trials.run(lambda: self._inspect(target), self._settings.timeout_s)
        except TimeoutError:
            raise unavailable("the channel could not be looked at in time; try again") from None

    async def send(self, target: Target, content: Content, *, trial: bool = False) -> Outcome:
        """Send a message once. Never raises but for cancellation; a reason holds nothing of the URL."""
        threads = self._trials if trial else self._threads
        try:
            outcome = await threads.run(lambda: self._send(target, content), self._settings.timeout_s)
        except TimeoutError:
            return Outcome(False, "not done in time; it may have arrived")
        except Exception as error:  # A library may raise anything; its text may hold the URL, its type does not.
            _log.error("a courier failed: %s", type(error).__name__)
            return Outcome(False, f"the library failed: {type(error).__name__}")
        if outcome.reason is None:
            return outcome
        reason = scrubbed(outcome.reason, target.secrets())
        return Outcome(outcome.delivered, reason, outcome.final)

    def _inspect(self, target: Target) -> str:
        try:
            if target.kind == WEBHOOK:
                shown = webhook.shown_url(target.url)
                self._check_host(urlsplit(target.url).hostname)
            else:
                service = apprised.read(target.url)
                shown = apprised.shown_url(target.url, service)
                self._check_host(apprised.host_of(target.url, service))
        except ValueError as error:
            raise invalid(str(error), field="url") from None
        _check_secret(target)
        return shown

    def _check_host(self, host: str | None) -> None:
        """Refuse early what would be refused with every message. A name that does not resolve now may do so later."""
        if host is not None and not self._reachable.may_lead_to(host):
            raise ValueError(NOT_PUBLIC)

    def _send(self, target: Target, content: Content) -> Outcome:
        with only(self._reachable) as turned_away:
            outcome = self._hand_over(target, content)
        if turned_away and not outcome.delivered:
            return Outcome(False, f"the URL {NOT_PUBLIC}", final=True)
        return outcome

    def _hand_over(self, target: Target, content: Content) -> Outcome:
        timeout_s = self._settings.answer_timeout_s
        if target.kind == WEBHOOK:
            assert target.secret is not None
            return webhook.post(target.url, target.secret, content, timeout_s=timeout_s)
        try:
            service: Any = apprised.read(target.url)
        except apprised.UrlRefused as error:
            return Outcome(False, f"the channel's URL {error}", final=True)
        if apprised.schema_of(target.url) in apprised.MAIL:
            return smtp.send(apprised.mailbox(service), content, timeout_s=timeout_s)
        return apprised.send(target.url, service, content, timeout_s=timeout_s)


def _check_secret(target: Target) -> None:
    if target.kind != WEBHOOK:
        if target.secret is not None:
            raise invalid("only a webhook has one; an apprise URL holds its own", field="secret")
        return
    if target.secret is None:
        raise invalid("a webhook needs the secret that signs its messages", field="secret")
    try:
        webhook.key_of(target.secret)
    except ValueError as error:
        raise invalid(str(error), field="secret") from None
