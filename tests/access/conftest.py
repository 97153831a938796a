"""Services on a fresh database, a nats-server with two tenants, and users who hold real NKeys."""

import base64
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client

from agent.embedded import AccountSpec, DataDir, EmbeddedNats, UserSpec
from agent.signed import NONCE_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, USER_HEADER, signed_text
from handlers.access.nkeys import encode_user_key
from handlers.context import Context, Services
from tests.support.services import context, services_for

ORGS = ("acme", "globex")
PASSWORD = "test"
# Everybody of the permission matrix: one user for each role, and one of two managers for each team.
PEOPLE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "provider": (("provider",), ()),
    "viewer": (("viewer",), ()),
    "manager": (("manager",), ("red",)),
    "approver": (("approver",), ()),
    "finance": (("finance",), ()),
    "admin": (("admin",), ()),
    "nobody": ((), ()),
    "gone": (("admin",), ("red",)),
}


@dataclass(frozen=True)
class NKey:
    """A user's key pair."""

    private: Ed25519PrivateKey

    @classmethod
    def new(cls) -> "NKey":
        return cls(Ed25519PrivateKey.generate())

    @property
    def text(self) -> str:
        return encode_user_key(self.private.public_key().public_bytes_raw())

    def headers(
        self, user: str, subject: str, payload: bytes, *, at_ms: int, nonce: str | None = None
    ) -> dict[str, str]:
        """What a signed request carries."""
        used = nonce or secrets.token_urlsafe(16)
        text = signed_text(user=user, subject=subject, timestamp_ms=at_ms, nonce=used, payload=payload)
        signature = base64.urlsafe_b64encode(self.private.sign(text)).decode().rstrip("=")
        return {
            USER_HEADER: user,
            TIMESTAMP_HEADER: str(at_ms),
            NONCE_HEADER: used,
            SIGNATURE_HEADER: signature,
        }

    async def connect(self, url: str, **options: Any) -> Client:
        """A connection to the bus by this key, without the package nats-py would want for it."""
        client = Client()
        client._public_nkey = self.text  # pyright: ignore[reportPrivateUsage]
        try:
            await client.connect(  # pyright: ignore[reportUnknownMemberType]
                url,
                signature_cb=lambda nonce: base64.b64encode(self.private.sign(nonce.encode())),
                max_reconnect_attempts=0,
                connect_timeout=5,
                **options,
            )
        except BaseException:
            await client.close()
            raise
        return client


@pytest_asyncio.fixture
async def services(database_url: str) -> AsyncIterator[Services]:
    async with services_for(database_url) as found:
        found.new_secret = lambda: secrets.token_urlsafe(32)
        yield found


@pytest.fixture
def ctx(services: Services) -> Context:
    return context(services)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tenants_bus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedNats]:
    """A server with the tenants `acme` and `globex`, each with all of PEOPLE, besides `default`."""

    def account(org: str) -> AccountSpec:
        return AccountSpec(
            name=org, users=tuple(UserSpec(name=f"{org}-{name}", password=PASSWORD) for name in (*PEOPLE, "root"))
        )

    with DataDir(tmp_path_factory.mktemp("access")) as data:
        server = EmbeddedNats(data, extra_accounts=tuple(account(org) for org in ORGS))
        await server.start()
        yield server
        await server.stop()
