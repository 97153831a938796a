"""Brings what an earlier schema wrote to this release, once, before an agent serves."""

from typing import Final

from handlers.context import Services
from store import budgets as budget_store
from store import identities as identity_store
from store import installation, upgrade

_DONE: Final = "user_keys"


async def upgrade_users(services: Services) -> int:
    """Put surrogates where the first schema kept users' names; returns how many users that were.

    Budgets of users and their windows go on with all their sums, and open reservations settle into them. Usage that was
    recorded before keeps the names it was recorded with: it is append-only.
    """
    async with services.database.transaction() as connection:
        if await installation.known(connection, _DONE):
            return 0
        named = await upgrade.named_users(connection)
    for org, names in sorted(named.items()):
        keys = {name: services.vault.surrogate(org, name) for name in names}
        async with services.database.transaction() as connection:
            await budget_store.lock_exclusive(connection, org)
            await upgrade.rename_users(connection, org, keys)
            await identity_store.remember(connection, [(org, key, name) for name, key in keys.items()])
            await budget_store.bump(connection, org)
    async with services.database.transaction() as connection:
        await installation.remember(connection, _DONE, "surrogates")
    return sum(map(len, named.values()))
