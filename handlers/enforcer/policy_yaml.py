"""YAML as people write policies, and nothing more of it: a bounded document of mappings, lists and plain words.

Scalars become text, whole numbers, true, false or null; whatever else YAML guesses at (dates, sexagesimal numbers,
floats that would round an amount) stays the text that was written. Only the parser's events are used, so no tag
constructs anything, and anchors are refused, so no document is larger than it looks.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, cast

import yaml

DEPTH_MAX: Final = 8
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17}|[1-9][0-9]{0,2}(?:_[0-9]{3}){1,5})")
_WORDS: Final = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlError(ValueError):
    """The text is not such a document; the message says where and is fit for a caller."""


def read_yaml(text: str) -> Any:
    """What a document says, in dicts, lists, text, ints, bools and None. Raises YamlError."""
    try:
        events = cast("Iterator[Any]", yaml.parse(text, Loader=_LOADER))  # pyright: ignore[reportUnknownMemberType]
        return _document(_checked(events))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _refused(error.problem or "is not YAML", mark) from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise YamlError(f"is not YAML: {str(error).splitlines()[0]}") from None


def _checked(events: Iterator[Any]) -> Iterator[Any]:
    """The events, as long as they are of one plain document."""
    documents = depth = 0
    for event in events:
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise _refused("holds a second document", event.start_mark)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _refused("anchors and aliases are not taken: write what is shared under `defaults`", event.start_mark)
        if getattr(event, "tag", None) not in (None, "!"):
            raise _refused("tags are not taken", event.start_mark)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_MAX:
            raise _refused(f"is nested deeper than {DEPTH_MAX} levels", event.start_mark)
        yield event


def _document(events: Iterator[Any]) -> Any:
    found: Any = None
    for event in events:
        if isinstance(event, yaml.NodeEvent):
            found = _node(event, events)
    return found


def _node(event: Any, events: Iterator[Any]) -> Any:
    """What begins with ``event``. Its depth is bounded by ``_checked``."""
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event)
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Any] = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_node(item, events))
        return items
    mapping: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent):
            raise _refused("a key must be a word", key.start_mark)
        name = _text(key)
        if name in mapping:
            raise _refused(f"the key `{name[:64]}` is there twice", key.start_mark)
        mapping[name] = _node(next(events), events)
    return mapping


def _scalar(event: Any) -> Any:
    value = _text(event)
    if not event.implicit[0]:  # Quoted, or a block of text.
        return value
    if value in _WORDS:
        return _WORDS[value]
    return int(value.replace("_", "")) if _NUMBER.fullmatch(value) else value


def _text(event: Any) -> str:
    value: str = event.value
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise _refused("contains a character that no name may have", event.start_mark)
    return value


def _refused(message: str, mark: Any) -> YamlError:
    at = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    return YamlError(f"{message}{at}")
