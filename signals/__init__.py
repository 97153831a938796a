"""Every signal declared once: name, request type, reply type, who may send it. Imports schemas only.

``Request`` and ``Event`` use invariant TypeVars on purpose: with PEP 695 syntax pyright infers covariance for a frozen
dataclass and accepts a handler that returns the wrong struct.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from schemas.subjects import request_subject

Q = TypeVar("Q")
R = TypeVar("R")
P = TypeVar("P")
C = TypeVar("C")

ROLES = ("provider", "viewer", "manager", "approver", "finance", "admin")
ANYONE = "anyone"


@dataclass(frozen=True, kw_only=True)
class Request(Generic[Q, R]):
    """A request/reply signal. ``roles`` may send it; ``admin`` always may, ``anyone`` needs no role.

    ``queued`` False: it never waits behind other requests, because it must answer while what they need hangs.
    """

    name: str
    request: type[Q]
    reply: type[R]
    roles: tuple[str, ...]
    purpose: str
    group: str
    idempotent: bool = True
    queued: bool = True

    @property
    def subject(self) -> str:
        """What a caller types, e.g. ``token.check_budget``."""
        return request_subject(self.name)

    def allows(self, roles: frozenset[str]) -> bool:
        """Whether a caller holding ``roles`` may send it."""
        return ANYONE in self.roles or "admin" in roles or not roles.isdisjoint(self.roles)


@dataclass(frozen=True, kw_only=True)
class Event(Generic[P]):
    """A published event; subscribers hear it on ``token.evt.<name>`` as a CloudEvent."""

    name: str
    payload: type[P]
    purpose: str

    @property
    def subject(self) -> str:
        """What a subscriber types, e.g. ``token.evt.budget.threshold``."""
        return f"token.evt.{self.name}"


@dataclass(frozen=True)
class Route(Generic[C]):
    """One signal and the handler that answers it, as data. ``raw`` handlers take bytes (they batch decoding)."""

    signal: Request[Any, Any]
    handler: Callable[[C, Any], Awaitable[Any]]


def route(signal: Request[Q, R], handler: Callable[[C, Q], Awaitable[R]]) -> Route[C]:
    """Bind a signal to its handler; the type checker refuses a handler of another shape."""
    return Route(signal, handler)
