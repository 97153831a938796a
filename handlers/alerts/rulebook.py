"""The active alert rules of each org as they were at one version of its catalogue, so that a call that no rule is
about costs no look-up.
"""

from store import alert_rules as rule_store
from store.alert_rules import AlertRuleRow
from store.pool import Connection


class RuleBook:
    """Rules by org; bounded by ``limit`` orgs. Every change of a rule is a new version of the catalogue."""

    def __init__(self, limit: int = 10_000) -> None:
        self._known: dict[str, tuple[int, tuple[AlertRuleRow, ...]]] = {}
        self._limit = limit

    def known(self, org: str, version: int) -> tuple[AlertRuleRow, ...] | None:
        """Active rules as far as they were read at ``version``; None where they were not."""
        found = self._known.get(org)
        return found[1] if found is not None and found[0] == version else None

    async def rules(self, connection: Connection, org: str, version: int) -> tuple[AlertRuleRow, ...]:
        """Active rules by name. The caller holds the org's catalogue lock and ``version`` is the present one."""
        if (known := self.known(org, version)) is not None:
            return known
        found = tuple(await rule_store.active(connection, org))
        if len(self._known) >= self._limit:
            self._known.clear()
        self._known[org] = version, found
        return found
