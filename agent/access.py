"""Everything an agent needs to say who may do what, made from its settings."""

from agent.backoff import Backoff
from agent.directory import Directory, DirectoryLimits
from agent.identity import Access, Identity
from agent.settings import Settings
from agent.signed import Proofs
from handlers.context import Services
from store import api_keys as key_store
from store import users as user_store


class AccessControl:
    """The directory of one agent and what is decided from it."""

    def __init__(self, settings: Settings, services: Services, *, database_url: str) -> None:
        single = settings.nats_mode == "single-account"
        self._services = services
        self._nonces_max = settings.access_tidy_nonces_max
        limits = DirectoryLimits(
            users_max=settings.directory_users_max,
            keys_max=settings.directory_keys_max,
            changes_max=settings.directory_changes_max,
            reread_s=settings.directory_reread_s,
            stale_max_s=settings.directory_stale_max_s,
        )
        backoff = Backoff(settings.retry_wait_s, settings.retry_wait_max_s)
        self.directory = Directory(database_url, limits, backoff, with_keys=single)
        self.access = Access(self.directory, settings.roles_of, services.actor_key)
        self.proofs: Proofs | None = None
        if single:
            window_s, nonces_max = settings.signature_window_s, settings.signature_nonces_max
            self.proofs = Proofs(self.directory, window_s=window_s, nonces_max=nonces_max)
        self.identity = Identity(self.access, self.proofs, services.clock)

    async def tidy(self) -> None:
        """Note which keys were used, and forget nonces that no signature can use any more."""
        if self.proofs is None:
            return
        used = self.directory.take_used()
        async with self._services.database.connection() as connection:
            if used:
                await key_store.used(connection, used)
            await user_store.forget_nonces(connection, self._nonces_max)
