"""Every signal answered one by one, as data. Batched signals are bound in the actor, which owns their queues."""

from handlers.access import api_keys, schedules, teams, users
from handlers.alerts import channels, inbox, rules
from handlers.context import Context
from handlers.cost import calculate
from handlers.enforcer import brakes, budgets, changes, overrides, policies
from handlers.enforcer import status as budget_status
from handlers.management import audit, privacy, settings
from handlers.management import status as agent_status
from handlers.tracker import dead_letters, query
from signals import Route

ROUTES: tuple[Route[Context], ...] = (
    *query.ROUTES,
    *dead_letters.ROUTES,
    *changes.ROUTES,
    *budgets.ROUTES,
    *policies.ROUTES,
    *budget_status.ROUTES,
    *overrides.ROUTES,
    *brakes.ROUTES,
    *channels.ROUTES,
    *rules.ROUTES,
    *inbox.ROUTES,
    *calculate.ROUTES,
    *agent_status.ROUTES,
    *settings.ROUTES,
    *audit.ROUTES,
    *privacy.ROUTES,
    *users.ROUTES,
    *teams.ROUTES,
    *api_keys.ROUTES,
    *schedules.ROUTES,
)
