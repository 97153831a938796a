"""The periodic part of alerting: rates and pacing, telling again, and the actions that alerts have set off.

Each org is evaluated by one agent at a time; an org without rules costs nothing. Reads rollups and windows only.
"""

import asyncio
from datetime import datetime

from handlers.alerts.actions import run_actions
from handlers.alerts.again import tell_again
from handlers.alerts.pacing import Pacing
from handlers.alerts.raising import News, raise_news
from handlers.alerts.rates import Rates, changes
from handlers.alerts.scope import PERIODIC
from handlers.context import Services
from handlers.enforcer.catalogue import Catalogue
from store import alert_rules as rule_store
from store import alerts as alert_store
from store import budgets as budget_store
from store.alert_rules import AlertRuleRow
from store.pool import Connection


class Watch:
    """Looks after every org that has something to evaluate, to tell again or to do."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._rates = Rates(services.limits)
        self._pacing = Pacing(services.limits)

    async def run(self) -> int:
        """Look at every org once; returns how many alerts were raised."""
        raised, after, limit = 0, "", self._services.limits.alert_orgs_max
        failed: BaseException | None = None
        while True:
            async with self._services.database.connection() as connection:
                orgs = await alert_store.orgs_with_work(connection, after=after, limit=limit)
            for org in orgs:
                # One org whose evaluation fails must not keep the others from theirs; it is told of at the end.
                (result,) = await asyncio.gather(self.run_org(org), return_exceptions=True)
                if isinstance(result, BaseException):
                    failed = result
                else:
                    raised += result
            if len(orgs) < limit:
                break
            after = orgs[-1]
        if failed is not None:
            raise failed
        return raised

    async def run_org(self, org: str) -> int:
        """Evaluate one org unless another agent does so now, then do what its alerts have set off."""
        raised, told = await self._evaluate(org)
        if raised or told:
            self._services.outbox_ready.set()
            self._services.delivery_ready.set()
        await run_actions(self._services, org)
        return raised

    async def _evaluate(self, org: str) -> tuple[int, int]:
        services = self._services
        catalogue = await self._present(org)
        async with services.database.transaction() as connection:
            if not await alert_store.try_lock(connection, org):
                return 0, 0
            rules = await rule_store.active(connection, org)
            at = await budget_store.clock(connection)
            news = [item for rule in rules for item in await self._news(connection, rule, catalogue, at)]
            raised = await raise_news(services, connection, org, news, at)
            told = await tell_again(services, connection, catalogue, rules, at)
        return len(raised), told

    async def _present(self, org: str) -> Catalogue:
        """The catalogue as it is now; it may change meanwhile, and the next look sees that."""
        known = self._services.catalogues.known(org)
        if known is not None:
            async with self._services.database.connection() as connection:
                if known.version == await budget_store.version(connection, org):
                    return known
        return await self._services.reload_catalogue(org)

    async def _news(self, connection: Connection, rule: AlertRuleRow, catalogue: Catalogue, at: datetime) -> list[News]:
        if rule.kind not in PERIODIC:
            return []
        if rule.kind == "pacing":
            return await self._pacing.news(connection, rule, catalogue, at)
        reached = await self._rates.reached(connection, rule, catalogue, at)
        if reached is None:
            return []
        standing = await alert_store.open_of(connection, catalogue.org, rule.rule_id)
        news, ended = changes(rule, *reached, standing, at)
        await alert_store.end(connection, catalogue.org, ended, at)
        return news
