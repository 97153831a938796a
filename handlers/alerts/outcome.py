"""What an action has decided: the changes to write, and how a temporary one ends."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from handlers.enforcer.written import Change


@dataclass(frozen=True, slots=True)
class Entry:
    """A line for the audit trail beside those of budget changes."""

    action: str
    entity: str
    entity_id: str
    before: object
    after: object


@dataclass(frozen=True, slots=True)
class Outcome:
    """``result`` says in a few words what was done; ``ends_at`` and ``undo`` belong to a temporary change."""

    result: str
    changes: list[Change] = field(default_factory=list[Change])
    entries: list[Entry] = field(default_factory=list[Entry])
    ends_at: datetime | None = None
    undo: dict[str, Any] | None = None
