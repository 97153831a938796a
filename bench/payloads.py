"""The messages of the load generator, cheap to make: only the id, and at most the user, change from one to the next."""

import random
from array import array
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, Literal

import msgspec

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
PICKS = 1 << 18
SEED = 20_261_123


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a kind of its own: its attribution, what else its request says, and over how many users it spreads.

    ``users`` 0 is the one user of ``scope``; else they are called by numbers from ``first`` on. ``spread`` takes them
    in turn, at random, or at random by Zipf's law with exponent 1: the n-th user makes 1/n of the calls of the first.
    """

    scope: dict[str, str]
    more: dict[str, Any] = {}
    users: int = 0
    first: int = 0
    spread: Literal["turn", "uniform", "zipf"] = "turn"

    def choose(self) -> Callable[[int], int]:
        """The function that tells the user of message n; the same on every run."""
        users, first = self.users, self.first
        if self.spread == "turn":
            return lambda number: first + number % users
        weights = list(accumulate(1 / (n + 1) for n in range(users))) if self.spread == "zipf" else None
        source = random.Random(SEED)
        picks = array("l", source.choices(range(first, first + users), cum_weights=weights, k=PICKS))
        return lambda number: picks[number % PICKS]

    def text(self) -> bytes:
        """What follows the id of a message, with a place for the user's number where there are several users."""
        scope = {**self.scope, **({"user_id": "u%d"} if self.users else {})}
        return msgspec.json.encode({**scope, **self.more})[1:-1]


def maker(kind: str, run: str, size: int, call: Call | None = None) -> Callable[[int], bytes]:
    """The function that makes message number n of a kind. `size` is what `LoadSpec.size` says."""
    name = run.encode()
    if call is not None:
        return _calls(kind, name, call)
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


def _calls(kind: str, name: bytes, call: Call) -> Callable[[int], bytes]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()
    template = CHECK if kind == "check" else EVENT.replace(b'"feature":"chat",', b"").replace(b':"%b"', b':"%b"' % now)
    template = template.replace(SCOPE, call.text())
    if not call.users:
        return lambda number: template % (name, number)
    choose = call.choose()
    return lambda number: template % (name, number, choose(number))
