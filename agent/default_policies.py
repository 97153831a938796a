"""The policies of an org that is new here: read once from a file, checked before the agent serves."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from handlers.context import Services
from handlers.enforcer.policies import Wanted, apply_defaults, readable
from schemas.errors import SignalError
from schemas.policy import DOCUMENT_CHARS_MAX


class BadPolicies(RuntimeError):
    """The file of default policies cannot be read, or says what cannot be applied; the text says which and where."""


def for_new_orgs(path: Path) -> Callable[[Services, str], Awaitable[None]]:
    """What gives a new org the policies of a file. Raises BadPolicies."""
    wanted = _read(path)
    return partial(_give, wanted)


async def _give(wanted: Wanted, services: Services, org: str) -> None:
    await apply_defaults(services, org, wanted)


def _read(path: Path) -> Wanted:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadPolicies(f"the default policies in {path} cannot be read: {error}") from None
    if len(text) > DOCUMENT_CHARS_MAX:
        raise BadPolicies(f"the default policies in {path} have more than {DOCUMENT_CHARS_MAX} characters")
    try:
        return readable(text)
    except SignalError as error:
        raise BadPolicies(f"the default policies in {path} cannot be applied: {error.field}: {error.message}") from None
