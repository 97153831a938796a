"""Every signal answered one by one, as data. Batched signals are bound in the actor, which owns their queues."""

from handlers.context import Context
from handlers.cost import calculate
from handlers.enforcer import budgets, changes
from handlers.enforcer import status as budget_status
from handlers.management import status as agent_status
from handlers.tracker import dead_letters, query
from signals import Route

ROUTES: tuple[Route[Context], ...] = (
    *query.ROUTES,
    *dead_letters.ROUTES,
    *changes.ROUTES,
    *budgets.ROUTES,
    *budget_status.ROUTES,
    *calculate.ROUTES,
    *agent_status.ROUTES,
)
