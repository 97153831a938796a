"""``set_team`` and ``list_teams``: the directory of the users that calls name. Decisions are made from it (R2)."""

from handlers import audit
from handlers.context import Context
from handlers.cursor import decode_cursor, page
from handlers.enforcer.transaction import catalogue_change
from schemas.access import ListTeams, SetTeam, Team, TeamList
from schemas.errors import SignalError, invalid
from signals import access as signals
from signals import route
from store import users as user_store
from store.pool import Connection
from store.users import TeamRow


async def set_team(ctx: Context, request: SetTeam) -> Team:
    """Make these users, and no others, the members of a team; the next decision on every agent knows it."""
    after = Team(team_id=request.team_id, members=_keys(ctx, request.members))

    async def work(connection: Connection) -> Team:
        found = await user_store.teams(connection, ctx.org, after_team_id="", limit=1, team_id=request.team_id)
        before = _shown(found[0]) if found else None
        await user_store.set_team(connection, ctx.org, after.team_id, after.members)
        await audit.record(
            connection,
            ctx.caller,
            action="created" if before is None else "updated" if after.members else "deleted",
            entity="team",
            entity_id=after.team_id,
            before=before,
            after=after,
        )
        return after

    return await catalogue_change(ctx, work)


async def list_teams(ctx: Context, request: ListTeams) -> TeamList:
    """Teams by id, each with all its members."""
    position = decode_cursor(request.cursor, tuple[str])
    async with ctx.database.connection() as connection:
        rows = await user_store.teams(
            connection,
            ctx.org,
            after_team_id=position[0] if position is not None else "",
            limit=request.limit + 1,
            team_id=request.team_id,
        )
    teams, next_cursor = page([_shown(row) for row in rows], limit=request.limit, key=lambda team: (team.team_id,))
    return TeamList(teams=teams, next_cursor=next_cursor)


def _keys(ctx: Context, members: list[str]) -> list[str]:
    """Surrogates of the members, under which calls are decided. They are named again when a reply leaves."""
    keys: set[str] = set()
    for position, member in enumerate(members):
        try:
            keys.add(ctx.user_key(member))
        except SignalError as error:
            raise invalid(error.message, field=f"members[{position}]") from None
    return sorted(keys)


def _shown(row: TeamRow) -> Team:
    return Team(team_id=row.team_id, members=list(row.members))


ROUTES = (route(signals.SET_TEAM, set_team), route(signals.LIST_TEAMS, list_teams))
