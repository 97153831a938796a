"""The messages of the load generator, cheap to make: only the id changes from one to the next."""

from collections.abc import Callable
from datetime import UTC, datetime

SCOPE = b'"team_id":"t1","user_id":"u1","project_id":"p1"'
CHECK = (
    b'{"request_id":"%b-%d","provider":"openai","model":"gpt-4o","prompt_tokens":1200,"max_completion_tokens":400,'
    b'"ttl_s":7200,' + SCOPE + b"}"
)
EVENT = (
    b'{"id":"%b-%d","timestamp":"%b","provider":"openai","model":"gpt-4o-2024-08-06","prompt_tokens":2006,'
    b'"completion_tokens":300,"cache_read_tokens":1920,"feature":"chat","latency_ms":812,' + SCOPE + b"}"
)
BUDGETS = (("global", "*"), ("team", "t1"), ("user", "u1"), ("project", "p1"))
"""The hot tree: one budget of each type, and every message counts in all four."""


def maker(kind: str, run: str, size: int) -> Callable[[int], bytes]:
    """The function that makes message number n of a kind. `size` is what `LoadSpec.size` says."""
    name = run.encode()
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()

    def event(number: int) -> bytes:
        return EVENT % (name, number, now)

    def batch(number: int) -> bytes:
        return b'{"events":[%b]}' % b",".join(event(number * size + n) for n in range(size))

    if kind == "check":
        return lambda number: CHECK % (name, number)
    if kind == "applied":
        return lambda number: event(number)[:-1] + b',"ack":"applied"}'
    if kind == "batch":
        return batch
    if kind == "raw":
        block = b"x" * size
        return lambda number: block
    return event if kind in ("track", "publish") else lambda number: CHECK % (name, number)
