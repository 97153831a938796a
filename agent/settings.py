"""Everything that can be set, from environment variables ``TOKEN_MANAGER_*``. Every bound has its unit in its name."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from handlers.context import Limits
from signals import ROLES


class Settings(BaseSettings):
    """One agent's settings. Nested ones are written ``TOKEN_MANAGER_LIMITS__CHECK_BATCH_MAX=128``."""

    model_config = SettingsConfigDict(env_prefix="TOKEN_MANAGER_", env_nested_delimiter="__", extra="ignore")

    nats_url: str | None = Field(None, description="A real NATS server; unset: a private one is started")
    nats_credentials_file: Path | None = Field(None, description="Credentials of the agent's user")
    nats_mode: Literal["accounts", "single-account"] = Field(
        "accounts", description="accounts: orgs are NATS accounts; single-account: one org, weaker identity"
    )
    web_nats_url: str | None = Field(None, description="How the HTTP side car connects; unset: as a local caller")
    database_url: str | None = Field(None, description="A real PostgreSQL; unset: a private one is started")
    connect_deadline_s: float = Field(30.0, gt=0, description="How long a start waits for given servers to answer")
    data_dir: Path = Field(Path("data"), description="Where private servers keep their data and runtime.json lies")
    nats_port: int = Field(0, ge=0, le=65535, description="Port of the private NATS server; 0: a free one, kept")
    http_port: int = Field(0, ge=0, le=65535, description="Port of the HTTP side car; 0: a free one, kept")
    http_host: str = Field("127.0.0.1", description="Address of the HTTP side car; it has no login, keep it local")
    http_enabled: bool = Field(True, description="Whether to serve HTTP")
    secret_key: SecretStr | None = Field(
        None, min_length=16, description="Seals secrets and user names; unset: made in the data folder"
    )
    instance: str = Field("", description="Name of this agent; empty: made up")
    default_roles: tuple[str, ...] | None = Field(
        None, description="Roles of users not listed in roles; unset: admin with private servers, else none"
    )
    roles: dict[str, tuple[str, ...]] = Field(
        default_factory=dict[str, tuple[str, ...]], description='JSON, {"org/user": ["provider", "viewer"]}'
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    stream_replicas: int = Field(1, ge=1, le=5)
    stream_usage_bytes_max: int = Field(4 * 1024**3, ge=1024**2)
    database_pool_max: int = Field(12, ge=3, le=200)
    request_concurrency_max: int = Field(64, ge=1, description="Requests handled at once, besides batched ones")
    request_queue_max: int = Field(2048, ge=1, description="Requests that may wait for one of these places")
    request_timeout_s: float = Field(30.0, gt=0)
    drain_timeout_s: float = Field(20.0, gt=0)
    expiry_interval_s: float = Field(1.0, gt=0)
    partition_interval_s: float = Field(3600.0, gt=0)
    partition_days_ahead: int = Field(7, ge=1, le=60)
    watchdog_interval_s: float = Field(5.0, gt=0)
    watchdog_timeout_s: float = Field(5.0, gt=0)
    store_silent_max_s: float = Field(
        15.0, gt=0, description="A private NATS server that is there but confirms nothing for so long is started again"
    )
    outbox_batch_max: int = Field(200, ge=1)
    outbox_poll_s: float = Field(1.0, gt=0)
    retry_wait_s: float = Field(0.2, gt=0, description="First wait after a failure; doubles up to the next setting")
    retry_wait_max_s: float = Field(5.0, gt=0)
    ingest_batch_messages_max: int = Field(256, ge=1)
    ingest_pending_messages_max: int = Field(2000, ge=1)
    ingest_ack_wait_s: int = Field(
        15, ge=3, description="What a dead agent had taken is given to another one after this; a third: how often said"
    )
    limits: Limits = Limits()

    def roles_of(self, org: str, user: str | None) -> frozenset[str]:
        """What a caller may do."""
        named = self.roles.get(f"{org}/{user}") if user is not None else None
        roles = named if named is not None else self.default_roles or ()
        return frozenset(role for role in roles if role in ROLES)
