"""Who may do what: users, the directory of teams, API keys, and what is asked on a schedule."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from .base import Name, Reply, Request, Text, Time

Role = Literal["provider", "viewer", "manager", "approver", "finance", "admin"]
UserName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}$(?!\n)",
        description="A user's name on the bus: letters, digits and _ . @ + -",
    ),
]
ScheduleName = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$(?!\n)", description="A schedule's name.")
]
Page = Annotated[int, Meta(ge=1, le=1000)]
TEAM_MEMBERS_MAX = 2_000


class SetUser(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user is from now on, as a whole: what is left out is empty.

    ``teams`` are those a manager manages. ``public_key`` is the user's NKey (``U...``), by which the bus knows the user
    and requests are signed. A user that is not active may do nothing, and the user's API keys are refused.
    """

    name: UserName
    roles: Annotated[list[Role], Meta(max_length=6)]
    display_name: Annotated[str, Meta(max_length=256)] = ""
    teams: Annotated[list[Name], Meta(max_length=1000)] = []
    public_key: Annotated[str, Meta(max_length=64)] | None = None
    active: bool = True


class ListUsers(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Users of the org by name."""

    active: bool | None = None
    role: Role | None = None
    limit: Page = 100
    cursor: Text | None = None


class DeleteUser(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """End what a user may do, and the user's API keys. The row stays until the name is made anonymous."""

    name: UserName


class User(Reply, frozen=True, kw_only=True):
    """One user."""

    name: str
    display_name: str
    roles: list[str]
    teams: list[str]
    public_key: str | None
    active: bool
    created_at: Time
    updated_at: Time


class UserList(Reply, frozen=True, kw_only=True):
    """One page of users."""

    users: list[User]
    next_cursor: str | None


class SetTeam(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The members of a team from now on, as a whole: users as calls name them. No members: the team is no more."""

    team_id: Name
    members: Annotated[list[Name], Meta(max_length=TEAM_MEMBERS_MAX)]


class ListTeams(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Teams of the directory by id; only ``team_id`` if given."""

    team_id: Name | None = None
    limit: Page = 100
    cursor: Text | None = None


class Team(Reply, frozen=True, kw_only=True):
    """A team and its members."""

    team_id: str
    members: list[str]


class TeamList(Reply, frozen=True, kw_only=True):
    """One page of teams."""

    teams: list[Team]
    next_cursor: str | None


class CreateApiKey(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key for ``user``. It may do what ``roles`` say and the user may still do; no roles: all of the user's."""

    name: Name
    user: UserName
    roles: Annotated[list[Role], Meta(max_length=6)] = []
    expires_at: Time | None = None


class ListApiKeys(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys, newest first; with ``revoked`` also those that were ended."""

    user: UserName | None = None
    revoked: bool = False
    limit: Page = 100
    cursor: Text | None = None


class RevokeApiKey(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """End a key, on every agent within moments. Ending it again changes nothing."""

    key_id: Annotated[str, Meta(max_length=64)]


class ApiKey(Reply, frozen=True, kw_only=True):
    """A key without its secret. ``prefix`` is how it begins; ``last_used_at`` is right to a minute or so."""

    key_id: str
    name: str
    user: str
    prefix: str
    roles: list[str]
    created_by: str
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None
    last_used_at: Time | None


class NewApiKey(Reply, frozen=True, kw_only=True):
    """A new key. ``secret`` is the whole key, for the header ``Token-Manager-Key``; nobody can show it again."""

    key: ApiKey
    secret: str


class ApiKeyList(Reply, frozen=True, kw_only=True):
    """One page of keys."""

    keys: list[ApiKey]
    next_cursor: str | None


class SetSchedule(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask ``signal`` with ``request`` at the times ``cron`` says, as whoever sets this.

    ``cron`` has five fields: minute, hour, day of month, month, day of week (0 and 7 are Sunday; names are taken, too);
    a day must satisfy both day fields. The result is told as event ``schedule.ran`` and sent to ``channels``.
    """

    name: ScheduleName
    cron: Annotated[str, Meta(min_length=9, max_length=256)]
    signal: Name
    timezone: Name = "UTC"
    request: dict[str, Any] = {}
    channels: Annotated[list[Name], Meta(max_length=20)] = []
    active: bool = True


class ListSchedules(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Schedules by name."""

    limit: Page = 100
    cursor: Text | None = None


class DeleteSchedule(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Remove a schedule."""

    name: ScheduleName


class Schedule(Reply, frozen=True, kw_only=True):
    """One schedule. ``last_error`` is the code and text of the last run, if it failed."""

    name: str
    cron: str
    timezone: str
    signal: str
    request: dict[str, Any]
    channels: list[str]
    active: bool
    created_by: str | None
    created_at: Time
    updated_at: Time
    next_run_at: Time | None
    last_run_at: Time | None
    last_error: str | None


class ScheduleList(Reply, frozen=True, kw_only=True):
    """One page of schedules."""

    schedules: list[Schedule]
    next_cursor: str | None


class ScheduleRan(Reply, frozen=True, kw_only=True):
    """A schedule was run. Either ``result``, the reply of the signal, or ``error``.

    A result too large for a message is left out, and ``too_large`` says so.
    """

    name: str
    signal: str
    planned_at: Time
    ran_at: Time
    result: dict[str, Any] | None
    error: str | None
    channels: list[str]
    too_large: bool = False
