"""What is decided about a call before any budget: brakes, the attribution it must carry, the team the directory knows.

Pure, and the same for every call with these attributes, so it is looked at once for each kind of call.
"""

from dataclasses import dataclass, field

from handlers.cost.resolve import provider_key
from handlers.enforcer.catalogue import Catalogue, pattern_matches
from schemas.budget import DenialReason
from store.catalogue import Brake

Call = dict[str, str | None]


@dataclass(slots=True)
class Finding:
    """``refusal`` denies the call; ``team_id`` fills what it left out; ``mismatch``: its team is not its user's."""

    refusal: DenialReason | None = None
    team_id: str | None = None
    mismatch: bool = False
    warnings: list[str] = field(default_factory=list[str])


def look(catalogue: Catalogue, call: Call) -> Finding:
    """What to do with a call with these attributes."""
    found = Finding()
    teams = catalogue.members.get(call.get("user_id") or "", ())
    stated = call.get("team_id")
    if stated is None and len(teams) == 1:
        found.team_id = teams[0]
    elif stated is not None and teams and stated not in teams:
        found.mismatch = True
    found.refusal = _braked(catalogue, call, found.team_id or stated) or _attribution(catalogue, call, found)
    unnamed = [scope for scope in ("provider", "model") if call.get(scope) is None]
    if blind := sorted({brake.scope for brake in catalogue.brakes if brake.scope in unnamed}):
        found.warnings.append(f"the call names no {' and no '.join(blind)}: kill switches of one could not be applied")
    return found


def _braked(catalogue: Catalogue, call: Call, team_id: str | None) -> DenialReason | None:
    for brake in catalogue.brakes:
        if _holds(brake, call, team_id):
            what = "the org" if brake.scope == "org" else f"{brake.scope} '{brake.entity_id}'"
            return DenialReason(code="kill_switch", message=f"the kill switch of {what} is on: {brake.reason}")
    return None


def _holds(brake: Brake, call: Call, team_id: str | None) -> bool:
    if brake.scope == "org":
        return True
    if brake.scope == "team":
        return team_id == brake.entity_id
    provider, model = call.get("provider"), call.get("model")
    if brake.scope == "provider":
        return provider == provider_key(brake.entity_id)
    if model is None:
        return False
    return any(pattern_matches(brake.entity_id, name) for name in (model, f"{provider}/{model}"))


def _attribution(catalogue: Catalogue, call: Call, found: Finding) -> DenialReason | None:
    settings = catalogue.org_settings
    missing = [name for name in settings.required_attribution if _value(call, name, found) is None]
    if missing:
        fields = ", ".join(missing)
        return DenialReason(code="missing_attribution", message=f"this org requires {fields} on every call")
    if not found.mismatch:
        return None
    user, team = call["user_id"], call["team_id"]
    text = f"user '{user}' does not belong to team '{team}' in the directory"
    if settings.on_mismatch == "reject":
        return DenialReason(code="attribution_mismatch", message=text)
    found.warnings.append(f"attribution_mismatch: {text}")
    return None


def _value(call: Call, name: str, found: Finding) -> str | None:
    return found.team_id or call.get(name) if name == "team_id" else call.get(name)
