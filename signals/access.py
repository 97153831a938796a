"""Signals about who may do what, and about what is asked on a schedule."""

from typing import Any, Final, TypeVar

from schemas import access
from signals import Event, Request

Q = TypeVar("Q")
R = TypeVar("R")
GROUP: Final = "access"


def _admin(name: str, request: type[Q], reply: type[R], purpose: str, *, idempotent: bool = True) -> Request[Q, R]:
    return Request(
        name=name,
        request=request,
        reply=reply,
        roles=("admin",),
        group=GROUP,
        purpose=purpose,
        idempotent=idempotent,
    )


SET_USER = _admin("set_user", access.SetUser, access.User, "Make a user what the request says")
LIST_USERS = _admin("list_users", access.ListUsers, access.UserList, "The users of the org")
DELETE_USER = _admin("delete_user", access.DeleteUser, access.User, "End what a user and the user's keys may do")
SET_TEAM = _admin("set_team", access.SetTeam, access.Team, "Say which users named in calls belong to a team")
LIST_TEAMS = _admin("list_teams", access.ListTeams, access.TeamList, "The directory of teams and their members")
CREATE_API_KEY = _admin(
    "create_api_key", access.CreateApiKey, access.NewApiKey, "A new key for a user, shown once", idempotent=False
)
LIST_API_KEYS = _admin("list_api_keys", access.ListApiKeys, access.ApiKeyList, "API keys, without their secrets")
REVOKE_API_KEY = _admin("revoke_api_key", access.RevokeApiKey, access.ApiKey, "End a key at once")
SET_SCHEDULE = _admin(
    "set_schedule", access.SetSchedule, access.Schedule, "Ask a signal at planned times and tell the result"
)
LIST_SCHEDULES = _admin("list_schedules", access.ListSchedules, access.ScheduleList, "What is asked when")
DELETE_SCHEDULE = _admin("delete_schedule", access.DeleteSchedule, access.Schedule, "Remove a schedule")
SCHEDULE_RAN = Event(name="schedule.ran", payload=access.ScheduleRan, purpose="A schedule was run: its result")

SIGNALS: tuple[Request[Any, Any], ...] = (
    SET_USER,
    LIST_USERS,
    DELETE_USER,
    SET_TEAM,
    LIST_TEAMS,
    CREATE_API_KEY,
    LIST_API_KEYS,
    REVOKE_API_KEY,
    SET_SCHEDULE,
    LIST_SCHEDULES,
    DELETE_SCHEDULE,
)
EVENTS = (SCHEDULE_RAN,)
