"""Every subject name. Callers type ``token.*`` and ``usage.*`` in their own account; the agent hears ``tm.*``."""

from typing import Final

REQUEST_PREFIX: Final = "token"
EVENT_PREFIX: Final = "token.evt"
USAGE_PREFIX: Final = "usage"

AGENT_REQUEST_PREFIX: Final = "tm.req"
AGENT_INGEST_PREFIX: Final = "tm.ingest"
AGENT_EVENT_PREFIX: Final = "tm.evt"
AGENT_BATCH_PREFIX: Final = "tm.batch"
AGENT_DEAD_LETTER_PREFIX: Final = "tm.dlq"

USAGE_STREAM: Final = "TM_USAGE"
EVENTS_STREAM: Final = "TM_EVENTS"
DEAD_LETTER_STREAM: Final = "TM_DLQ"
APPLY_CONSUMER: Final = "apply"

DEFAULT_ORG: Final = "default"


def request_subject(signal: str) -> str:
    """What a caller requests, e.g. ``token.check_budget``."""
    return f"{REQUEST_PREFIX}.{signal}"


def event_subject(org: str, event: str) -> str:
    """Where the agent publishes event ``budget.threshold`` of an org; heard as ``token.evt.budget.threshold``."""
    return f"{AGENT_EVENT_PREFIX}.{org}.{event}"
