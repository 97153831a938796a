"""Every signal answered one by one, as data. Batched signals are bound in the actor, which owns their queues."""

from handlers.access import api_keys, schedules, teams, users
from handlers.adjustments import adjust, adjusted, reprice
from handlers.alerts import channels, inbox, rules
from handlers.context import Context
from handlers.cost import calculate
from handlers.counting import model_limits
from handlers.currency import rates as exchange_rates
from handlers.enforcer import brakes, budgets, changes, overrides, policies
from handlers.enforcer import status as budget_status
from handlers.finance import allocate, bill, export, invoice, invoice_read, project
from handlers.finance import rules as allocation_rules
from handlers.management import audit, privacy, settings
from handlers.management import status as agent_status
from handlers.pricing import aliases as model_aliases
from handlers.pricing import listing, refresh, update
from handlers.tracker import dead_letters, query
from signals import Route

ROUTES: tuple[Route[Context], ...] = (
    *query.ROUTES,
    *dead_letters.ROUTES,
    *adjust.ROUTES,
    *adjusted.ROUTES,
    *reprice.ROUTES,
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
    *model_limits.ROUTES,
    *update.ROUTES,
    *listing.ROUTES,
    *model_aliases.ROUTES,
    *refresh.ROUTES,
    *exchange_rates.ROUTES,
    *export.ROUTES,
    *bill.ROUTES,
    *allocate.ROUTES,
    *allocation_rules.ROUTES,
    *project.ROUTES,
    *invoice.ROUTES,
    *invoice_read.ROUTES,
    *agent_status.ROUTES,
    *settings.ROUTES,
    *audit.ROUTES,
    *privacy.ROUTES,
    *users.ROUTES,
    *teams.ROUTES,
    *api_keys.ROUTES,
    *schedules.ROUTES,
)
