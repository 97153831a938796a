"""Alerts are told on the side of a decision or of usage: what goes wrong with them costs the alert and nothing else."""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from store.pool import Connection, is_unavailable

T = TypeVar("T")
_log = logging.getLogger(__name__)


async def aside(connection: Connection, org: str, work: Callable[[], Awaitable[T]], otherwise: T) -> T:
    """Run ``work`` within the caller's transaction, undoing only its own writes where it fails; then ``otherwise``.

    Raises what makes the whole transaction run again: a deadlock, or a database that is away.
    """
    try:
        async with connection.transaction():
            return await work()
    except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
        raise
    except Exception as error:  # A rule that cannot be evaluated must never hold up usage, nor lose it.
        if is_unavailable(error):
            raise
        _log.error("an alert of org %s could not be raised", org, exc_info=error)
        return otherwise
