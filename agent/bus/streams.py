"""The streams and the consumer the agent needs: created when missing, corrected when changed, refused when foreign.

Owns their settings. Must never delete or recreate one: a work-queue consumer that is recreated loses its place.
Raw JSON requests to `$JS.API`, because the server refuses fields it does not know and nats-py sends them all.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec
from nats import errors

from agent.bus.client import BusClient
from agent.bus.stored import (
    PubAck,
    PublishFailed,
    StoredPublisher,
    StreamFull,
    StreamUnavailable,
    publish_stored,
)
from schemas.subjects import (
    AGENT_BATCH_PREFIX,
    AGENT_DEAD_LETTER_PREFIX,
    AGENT_EVENT_PREFIX,
    AGENT_INGEST_PREFIX,
    APPLY_CONSUMER,
    DEAD_LETTER_STREAM,
    EVENT_PREFIX,
    EVENTS_STREAM,
    USAGE_PREFIX,
    USAGE_STREAM,
)

__all__ = [
    "PubAck",
    "PublishFailed",
    "StoredPublisher",
    "StreamConflict",
    "StreamFull",
    "StreamSettings",
    "StreamState",
    "StreamUnavailable",
    "ensure_streams",
    "publish_stored",
    "stream_state",
]

API: Final = "$JS.API"
NANOS: Final = 1_000_000_000
DAY_S: Final = 86_400
NOT_FOUND: Final = 404
NO_RESPONDERS: Final = 503
NAME_IN_USE: Final = 10058
QUOTA_EXCEEDED: Final = 10047
QUOTA_HINT: Final = "; give JetStream more storage or set TOKEN_MANAGER_STREAM_USAGE_BYTES_MAX"
FIXED_IN_STREAM: Final = ("retention", "storage", "deny_delete")
"""What the server, or our promises, do not allow to change once a stream exists."""


class StreamConflict(Exception):
    """A stream or consumer of our name exists with settings that cannot be corrected; the text says which."""


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How much the streams may hold, and how often it is kept. Sizes in bytes, times in seconds."""

    num_replicas: int = 1
    usage_bytes_max: int = 4 * 1024**3
    """At least what 24 hours without an agent bring; a full stream refuses to store."""
    events_bytes_max: int = 1024**3
    dead_letter_bytes_max: int = 1024**3
    events_age_s: int = 7 * DAY_S
    dead_letter_age_s: int = 30 * DAY_S
    message_bytes_max: int = 1024 * 1024
    duplicate_window_s: float = 0.1
    ack_wait_s: int = 15
    max_ack_pending: int = 20_000
    max_waiting: int = 512
    single_account: bool = False
    """Whether callers share the agent's account: then the streams capture the callers' own subjects."""


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """What a stream holds. `first_timestamp` is None when it is empty."""

    messages: int
    first_timestamp: datetime | None
    first_seq: int
    last_seq: int
    created: datetime
    bytes: int = 0


async def ensure_streams(
    client: BusClient, settings: StreamSettings | None = None, *, timeout_s: float = 5.0
) -> datetime:
    """Make sure TM_USAGE, TM_EVENTS, TM_DLQ and the consumer `apply` are as they must be; may be called any time.

    Returns when TM_USAGE was created; it identifies the stream's sequence numbers.

    Raises:
        StreamConflict: one exists that cannot be corrected.
        StreamUnavailable: JetStream does not answer.
    """
    settings = settings or StreamSettings()
    wanted = stream_configs(settings)
    infos = [await _ensure_stream(client, config, timeout_s) for config in wanted]
    await _ensure_consumer(client, consumer_config(settings), timeout_s)
    return _time(infos[0]["created"])


async def stream_state(client: BusClient, stream: str, *, timeout_s: float = 5.0) -> StreamState:
    """How many messages a stream holds and how old the oldest is.

    Raises:
        StreamConflict: there is no such stream.
        StreamUnavailable: JetStream does not answer.
    """
    info = await _call(client, f"STREAM.INFO.{stream}", None, timeout_s)
    if _code(info):
        raise StreamConflict(f"stream {stream}: {_text(info)}")
    state = info["state"]
    return StreamState(
        messages=state["messages"],
        first_timestamp=_time(state["first_ts"]) if state["messages"] else None,
        first_seq=state["first_seq"],
        last_seq=state["last_seq"],
        created=_time(info["created"]),
        bytes=state["bytes"],
    )


def stream_configs(settings: StreamSettings) -> list[dict[str, Any]]:
    """The streams: usage (nothing unapplied is ever aged out), events, dead letters."""
    common = {
        "storage": "file",
        "num_replicas": settings.num_replicas,
        "max_msg_size": settings.message_bytes_max,
        "compression": "s2",
        "allow_direct": True,
        "metadata": {"owner": "token-manager", "schema": "1"},
    }
    usage = {
        "name": USAGE_STREAM,
        "subjects": [f"{AGENT_INGEST_PREFIX}.>", f"{AGENT_BATCH_PREFIX}.*", *_own(settings, f"{USAGE_PREFIX}.>")],
        "retention": "workqueue",
        "discard": "new",
        "max_bytes": settings.usage_bytes_max,
        "max_age": 0,
        # Ids in this window are not per org, so it is as short as the server allows; PostgreSQL decides.
        "duplicate_window": int(settings.duplicate_window_s * NANOS),
        "deny_delete": True,
    }
    events = {
        "name": EVENTS_STREAM,
        "subjects": [f"{AGENT_EVENT_PREFIX}.>", *_own(settings, f"{EVENT_PREFIX}.>")],
        "retention": "limits",
        "discard": "old",
        "max_bytes": settings.events_bytes_max,
        "max_age": settings.events_age_s * NANOS,
    }
    advisory = "$JS.EVENT.ADVISORY.CONSUMER"
    dead_letters = {
        "name": DEAD_LETTER_STREAM,
        "subjects": [
            f"{AGENT_DEAD_LETTER_PREFIX}.>",
            f"{advisory}.MAX_DELIVERIES.{USAGE_STREAM}.>",
            f"{advisory}.MSG_TERMINATED.{USAGE_STREAM}.>",
        ],
        "retention": "limits",
        "discard": "old",
        "max_bytes": settings.dead_letter_bytes_max,
        "max_age": settings.dead_letter_age_s * NANOS,
    }
    return [{**common, **stream} for stream in (usage, events, dead_letters)]


def _own(settings: StreamSettings, subject: str) -> list[str]:
    return [subject] if settings.single_account else []


def consumer_config(settings: StreamSettings) -> dict[str, Any]:
    """The durable consumer all agents pull from."""
    return {
        "durable_name": APPLY_CONSUMER,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "replay_policy": "instant",
        "ack_wait": settings.ack_wait_s * NANOS,
        "max_deliver": -1,
        "max_ack_pending": settings.max_ack_pending,
        "max_waiting": settings.max_waiting,
    }


async def _ensure_stream(client: BusClient, wanted: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    name = wanted["name"]
    info = await _call(client, f"STREAM.INFO.{name}", None, timeout_s)
    if _code(info) == NOT_FOUND:
        info = await _call(client, f"STREAM.CREATE.{name}", wanted, timeout_s)
        if _code(info, "err_code") == NAME_IN_USE:  # another agent was faster, with other settings
            info = await _call(client, f"STREAM.INFO.{name}", None, timeout_s)
    if _code(info):
        hint = QUOTA_HINT if _code(info, "err_code") == QUOTA_EXCEEDED else ""
        raise StreamConflict(f"stream {name}: {_text(info)}{hint}")
    found = info["config"]
    for key in FIXED_IN_STREAM:
        if key in wanted and found.get(key) != wanted[key]:
            raise StreamConflict(f"stream {name}: {key} is {found.get(key)!r}, must be {wanted[key]!r}")
    if all(found.get(key) == value for key, value in wanted.items() if key != "metadata" and value != 0):
        return info
    config = {**found, **wanted, "metadata": {**found.get("metadata", {}), **wanted["metadata"]}}
    info = await _call(client, f"STREAM.UPDATE.{name}", config, timeout_s)
    if _code(info):
        raise StreamConflict(f"stream {name} cannot be corrected: {_text(info)}")
    return info


async def _ensure_consumer(client: BusClient, wanted: dict[str, Any], timeout_s: float) -> None:
    name = wanted["durable_name"]
    label = f"consumer {name} of {USAGE_STREAM}"
    info = await _call(client, f"CONSUMER.INFO.{USAGE_STREAM}.{name}", None, timeout_s)
    if _code(info) == NOT_FOUND:
        action, config = "create", wanted
    elif _code(info):
        raise StreamConflict(f"{label}: {_text(info)}")
    else:
        found = info["config"]
        if found.get("ack_policy") != "explicit" or "deliver_subject" in found or found.get("filter_subject"):
            raise StreamConflict(f"{label} must be a pull consumer of all subjects with explicit acks, is {found!r}")
        if all(found.get(key) == value for key, value in wanted.items()):
            return
        action, config = "update", {**found, **wanted}
    request = {"stream_name": USAGE_STREAM, "config": config, "action": action}
    info = await _call(client, f"CONSUMER.CREATE.{USAGE_STREAM}.{name}", request, timeout_s)
    if _code(info) and action == "create":  # another agent was faster
        info = await _call(client, f"CONSUMER.INFO.{USAGE_STREAM}.{name}", None, timeout_s)
    if _code(info):
        raise StreamConflict(f"{label}: {_text(info)}")


async def _call(client: BusClient, api: str, body: dict[str, Any] | None, timeout_s: float) -> dict[str, Any]:
    payload = b"" if body is None else msgspec.json.encode(body)
    try:
        answer = await client.request(f"{API}.{api}", payload, timeout=timeout_s)
    except (errors.NoRespondersError, errors.TimeoutError) as error:
        raise StreamUnavailable(f"JetStream does not answer {api}: {error}") from error
    info = msgspec.json.decode(answer.data, type=dict[str, Any])
    if _code(info) == NO_RESPONDERS:  # no leader, or no JetStream here
        raise StreamUnavailable(f"JetStream does not answer {api}: {_text(info)}", code=_code(info, "err_code"))
    return info


def _code(answer: dict[str, Any], key: str = "code") -> int:
    """The error code of an answer; 0 when it is none."""
    return int(answer.get("error", {}).get(key, 0))


def _text(answer: dict[str, Any]) -> str:
    error = answer["error"]
    return f"{error.get('description', 'refused')} (error {error.get('err_code', error.get('code'))})"


def _time(text: str) -> datetime:
    return msgspec.convert(text, datetime)
