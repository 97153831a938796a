"""What ADR-32 says of the answers to `$SRV`: fields, types, and which are required."""

from typing import Any

TEXT = {"type": "string", "minLength": 1}
WHOLE = {"type": "integer", "minimum": 0}
LABEL = {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"}
METADATA = {"type": "object", "additionalProperties": {"type": "string"}}
IDENTITY: dict[str, Any] = {
    "name": LABEL,
    "id": TEXT,
    "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$"},
    "metadata": METADATA,
}
ADDRESS: dict[str, Any] = {"name": LABEL, "subject": TEXT, "queue_group": TEXT}


def answer(kind: str, **more: Any) -> dict[str, Any]:
    """A closed object: an answer of `kind` with the identity and further fields, all of them required."""
    properties = {"type": {"const": f"io.nats.micro.v1.{kind}_response"}, **IDENTITY, **more}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def listed(**fields: Any) -> dict[str, Any]:
    item = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    return {"type": "array", "items": item}


SCHEMAS = {
    "PING": answer("ping"),
    "INFO": answer("info", description=TEXT, endpoints=listed(**ADDRESS, metadata=METADATA)),
    "STATS": answer(
        "stats",
        started={"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"},
        endpoints=listed(
            **ADDRESS,
            num_requests=WHOLE,
            num_errors=WHOLE,
            last_error={"type": "string"},
            processing_time=WHOLE,
            average_processing_time=WHOLE,
        ),
    ),
}
