"""Whether a model's name is one that the price data knows, or was only taken for it because it begins alike.

The data matches many models by how a name begins, so that a typing error is priced as the model it resembles. A date, a
version or another mark that says which edition of a model is meant, and the path that leads to it, are no error. Pure.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo

# Where the model is: folders of a catalogue, a region's inference profile and its vendor, a fine-tuned model's mark.
_LEADS_TO: Final = re.compile(r"(?:[a-z0-9:@._~-]+/)*(?:[a-z0-9-]+\.){0,2}(?:ft:)?")
_EDITION: Final = (
    r"\d{4}-?\d{2}-?\d{2}|\d{2}-\d{2}(?:-\d{4})?|\d{3,4}|v\d+(?:[.:]\d+)*|\d+k"
    r"|latest|preview|exp|experimental|beta|stable|default|original|maas|fp8|fp16|bf16|free|nitro|floor|extended|online"
)
_FOLLOWS: Final = re.compile(rf"(?:[-@:_.](?:{_EDITION}))*")
# Of a fine-tuned model: whose it is.
_OWNER: Final = re.compile(rf"(?:[-@_.](?:{_EDITION}))*:.*", re.DOTALL)
_LITERALS: Final = ("equals", "starts_with", "contains", "ends_with")


def is_known(model: "ModelInfo", asked: str) -> bool:
    """Whether the entry that prices ``asked`` knows that name, give or take its edition and where it is found."""
    name = asked.lower()
    if any(_around(model.id.lower(), name)):
        return True
    return any(_fits(kind, text, name) for kind, text in _clauses(model.match))


def _fits(kind: str, text: str, name: str) -> bool:
    if kind == "regex":
        return re.fullmatch(text, name) is not None
    if kind == "equals":
        return name == text or name.endswith(f"/{text}")
    return any(_around(text, name))


def _around(text: str, name: str) -> Iterator[bool]:
    """For each place of ``text`` in a name, whether what is around it says nothing else."""
    at = name.find(text)
    while text and at >= 0:
        before, after = name[:at], name[at + len(text) :]
        owned = text.startswith("ft:") or before.endswith("ft:")
        follows = _FOLLOWS.fullmatch(after) or (owned and _OWNER.fullmatch(after))
        yield bool(_LEADS_TO.fullmatch(before) and follows)
        at = name.find(text, at + 1)


def _clauses(match: Any) -> Iterator[tuple[str, str]]:
    """The texts an entry matches by, each with how."""
    for group in ("or_", "and_"):
        for clause in getattr(match, group, ()):
            yield from _clauses(clause)
    for kind in _LITERALS:
        text = getattr(match, kind, None)
        if isinstance(text, str):
            yield kind, text.lower()
    if isinstance(getattr(match, "regex", None), str):
        yield "regex", match.regex
