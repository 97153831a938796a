"""Whoever counts: in a process of its own in an agent, in this one where that is enough."""

from dataclasses import dataclass
from functools import cache
from typing import Protocol

from handlers.counting.count import Job, run
from handlers.counting.vocabulary import Vocabularies
from schemas.tokens import TokenCount


@dataclass(frozen=True, slots=True)
class Counted:
    """A job's result: its count (None where none was asked for), and what tells its texts from others (R5)."""

    count: TokenCount | None
    digest: bytes


class Counter(Protocol):
    """Counts tokens. Whatever becomes of it, there is an answer: an estimate with a note where it cannot count."""

    async def count(self, job: Job) -> Counted:
        """Count a job. Raises SignalError only where its texts are not what they must be."""
        ...


@cache
def vocabularies() -> Vocabularies:
    """This process's vocabularies, loaded as they are first needed."""
    return Vocabularies()


class InlineCounter:
    """Counts at once, in the caller's process and loop: for tests and tools."""

    async def count(self, job: Job) -> Counted:
        """As ``Counter.count``."""
        digest, found = run(job, vocabularies())
        return Counted(found, digest)
