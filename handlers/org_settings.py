"""What an org has decided about itself, with the defaults where it has not. Read from rows of ``setting``."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from schemas.settings import OrgConfiguration, Sizing

_TYPES: Final = {field.name: field.type for field in msgspec.structs.fields(OrgConfiguration)}
_SIZING_TYPES: Final = {field.name: field.type for field in msgspec.structs.fields(Sizing)}
NAMES: Final = tuple(_TYPES)


class OrgSettings(OrgConfiguration, frozen=True, kw_only=True):
    """One org's settings, typed: what decisions read."""

    @classmethod
    def of(cls, stored: Mapping[str, Any], **defaults: Any) -> "OrgSettings":
        """The settings of stored rows. What another release wrote, and this one cannot read, counts as not stored.

        ``defaults`` take the place of those of the contract, for what the agent's own settings say.
        """
        sizing = stored.get("sizing")
        found = _readable(_TYPES, {name: value for name, value in stored.items() if name != "sizing"})
        if isinstance(sizing, Mapping):
            found["sizing"] = Sizing(**_readable(_SIZING_TYPES, sizing))  # pyright: ignore[reportUnknownArgumentType]
        return cls(**{**defaults, **found})


def _readable(types: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, kind in types.items():
        if name in stored:
            try:
                found[name] = msgspec.convert(stored[name], kind)
            except msgspec.ValidationError:
                continue
    return found
