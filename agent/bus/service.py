"""The ADR-32 face of the agent: `nats service list`, `info` and `stats` find it, its endpoints and their schemas.

Owns the answers to `$SRV.{PING,INFO,STATS}[.<name>[.<id>]]`. Must never answer a signal. The discovery of nats-py is
not used: it copies request headers into replies, may send a null description, which breaks `nats service list` for
every service on the bus, and drops requests when it stops.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from nats import errors

from agent.bus.client import BusClient, DirectSubscription
from schemas import CONTRACT_VERSION
from schemas.subjects import AGENT_REQUEST_PREFIX
from signals import Request
from signals.contract import request_schema_id, response_schema_id

SERVICE_NAME: Final = "token-manager"
DESCRIPTION: Final = "Knows and limits what LLM calls cost: usage, budgets, prices, forecasts"
VERBS: Final = ("PING", "INFO", "STATS")
QUEUE_GROUP: Final = "q"
LAST_ERROR_CHARS_MAX: Final = 512

_NAME = re.compile(r"^[A-Za-z0-9_-]+$")
_VERSION = re.compile(r"^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$")


@dataclass(slots=True)
class EndpointStats:
    """What one endpoint has done since it started. Dispatch updates it; times are ns."""

    num_requests: int = 0
    num_errors: int = 0
    last_error: str = ""
    processing_time: int = 0

    def count(self, took_ns: int, error: str | None = None) -> None:
        """Add one answered request; `error` is its code and text when the answer was an error."""
        self.num_requests += 1
        self.processing_time += took_ns
        if error is not None:
            self.num_errors += 1
            self.last_error = error[:LAST_ERROR_CHARS_MAX]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One subject the agent answers. `subject` is what the agent subscribes to."""

    name: str
    subject: str
    queue_group: str = QUEUE_GROUP
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    stats: EndpointStats = field(default_factory=EndpointStats)


def endpoint_of(
    signal: Request[Any, Any], *, subject_prefix: str = f"{AGENT_REQUEST_PREFIX}.*", queue_group: str = QUEUE_GROUP
) -> Endpoint:
    """The endpoint that answers `signal`; `subject_prefix` is `token` where one account holds everything."""
    return Endpoint(
        name=signal.name,
        subject=f"{subject_prefix}.{signal.name}",
        queue_group=queue_group,
        metadata={
            "schema.request": request_schema_id(signal),
            "schema.response": response_schema_id(signal),
            "idempotent": "true" if signal.idempotent else "false",
            "roles": ",".join(signal.roles),
        },
    )


class Service:
    """Answers discovery for one running agent."""

    def __init__(
        self,
        client: BusClient,
        *,
        instance: str,
        version: str,
        endpoints: Iterable[Endpoint],
        metadata: Mapping[str, str] | None = None,
        name: str = SERVICE_NAME,
        description: str = DESCRIPTION,
    ) -> None:
        """Describe the service; nothing is subscribed before `start`.

        Raises:
            ValueError: a name or the version is not what ADR-32 allows.
        """
        self.endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        for label in (name, *self.endpoints):
            if not _NAME.match(label):
                raise ValueError(f"not a service or endpoint name: {label!r}")
        if not _VERSION.match(version):
            raise ValueError(f"not a semantic version: {version!r}")
        if not instance or not re.fullmatch(r"[^\s.*>]+", instance):
            raise ValueError(f"not one subject token: {instance!r}")
        self._client = client
        self._description = description
        self._started = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self._subscriptions: list[DirectSubscription] = []
        self._identity: dict[str, Any] = {
            "name": name,
            "id": instance,
            "version": version,
            "metadata": {
                "protocol": "token-manager/1",
                "contract": CONTRACT_VERSION,
                "cloudevents": "1.0",
                "asyncapi": "token.describe",
                "instance": instance,
                **(metadata or {}),
            },
        }

    @property
    def instance(self) -> str:
        """The id of this agent among the services of its name."""
        return self._identity["id"]

    def stats(self, endpoint: str) -> EndpointStats:
        """The counters of an endpoint, for dispatch to update."""
        return self.endpoints[endpoint].stats

    async def start(self) -> None:
        """Answer discovery from now on. No queue group: every instance answers."""
        answers = {"PING": self.ping, "INFO": self.info, "STATS": self.statistics}
        name, instance = self._identity["name"], self._identity["id"]
        for verb in VERBS:
            for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{name}", f"$SRV.{verb}.{name}.{instance}"):
                answer = answers[verb]

                def reply_with(
                    _subject: bytes, reply: bytes, _data: bytes, _headers: bytes | None, answer: Any = answer
                ) -> None:
                    if reply:
                        self._client.respond(reply, msgspec.json.encode(answer()))

                self._subscriptions.append(await self._client.subscribe_direct(subject, reply_with))

    async def stop(self) -> None:
        """Stop answering; what was asked before is answered."""
        subscriptions, self._subscriptions = self._subscriptions, []
        drains = (subscription.drain() for subscription in subscriptions)
        for result in await asyncio.gather(*drains, return_exceptions=True):
            # A bus that hangs asks nothing.
            if isinstance(result, BaseException) and not isinstance(result, errors.Error):
                raise result

    def ping(self) -> dict[str, Any]:
        """The answer to PING."""
        return {"type": "io.nats.micro.v1.ping_response", **self._identity}

    def info(self) -> dict[str, Any]:
        """The answer to INFO."""
        endpoints = [
            {**_address(endpoint), "metadata": dict(endpoint.metadata)} for endpoint in self.endpoints.values()
        ]
        return {
            "type": "io.nats.micro.v1.info_response",
            **self._identity,
            "description": self._description,
            "endpoints": endpoints,
        }

    def statistics(self) -> dict[str, Any]:
        """The answer to STATS."""
        return {
            "type": "io.nats.micro.v1.stats_response",
            **self._identity,
            "started": self._started,
            "endpoints": [{**_address(endpoint), **_numbers(endpoint.stats)} for endpoint in self.endpoints.values()],
        }


def _address(endpoint: Endpoint) -> dict[str, Any]:
    return {"name": endpoint.name, "subject": endpoint.subject, "queue_group": endpoint.queue_group}


def _numbers(stats: EndpointStats) -> dict[str, Any]:
    return {
        "num_requests": stats.num_requests,
        "num_errors": stats.num_errors,
        "last_error": stats.last_error,
        "processing_time": stats.processing_time,
        "average_processing_time": stats.processing_time // stats.num_requests if stats.num_requests else 0,
    }
