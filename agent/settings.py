"""Everything that can be set, from environment variables ``TOKEN_MANAGER_*``. Every bound has its unit in its name."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from handlers.alerts.webhook import shown_url
from handlers.context import Limits
from signals import ROLES

LocalUser = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Settings(BaseSettings):
    """One agent's settings. Nested ones are written ``TOKEN_MANAGER_LIMITS__CHECK_BATCH_MAX=128``."""

    model_config = SettingsConfigDict(
        env_prefix="TOKEN_MANAGER_", env_nested_delimiter="__", extra="ignore", hide_input_in_errors=True
    )

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
    local_users: tuple[LocalUser, ...] = Field(
        (), max_length=100, description='Users of the private NATS server besides the anonymous one: ["erin", "grace"]'
    )
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
    override_interval_s: float = Field(
        5.0, gt=0, description="How often ended overrides are marked; their effect ends by the clock"
    )
    sizing_interval_s: float = Field(
        2.0, gt=0, description="How often what was learned for reservations is read, for orgs that use it"
    )
    orgs_read_max: int = Field(1_000, ge=0, description="Orgs whose settings are read before the agent serves")
    tally_interval_s: float = Field(5.0, gt=0, description="How often counts of decisions are stored")
    identity_interval_s: float = Field(1.0, gt=0, description="How often user names that were met are stored")
    partition_interval_s: float = Field(3600.0, gt=0)
    partition_days_ahead: int = Field(7, ge=1, le=60)
    watchdog_interval_s: float = Field(5.0, gt=0)
    watchdog_timeout_s: float = Field(5.0, gt=0)
    store_silent_max_s: float = Field(
        15.0, gt=0, description="A private NATS server that is there but confirms nothing for so long is started again"
    )
    outbox_batch_max: int = Field(200, ge=1)
    outbox_poll_s: float = Field(1.0, gt=0)
    public_url: str | None = Field(None, description="Where people reach the dashboard; messages link to it")
    alert_interval_s: float = Field(
        2.0, gt=0, description="How often rates and pacing are evaluated and the actions of alerts are run"
    )
    delivery_poll_s: float = Field(1.0, gt=0, description="How often to look for alerts that are due to be sent")
    delivery_threads_max: int = Field(8, ge=2, le=100, description="Messages sent at once")
    delivery_timeout_s: float = Field(20.0, gt=0, description="One message altogether; the lease must be longer")
    delivery_answer_timeout_s: float = Field(8.0, gt=0, description="Each answer of a mail server or receiver")
    delivery_allowed_hosts: tuple[str, ...] = Field(
        (), description='Hosts and networks besides the public ones that channels may use: ["10.0.0.0/8"], ["*"]: all'
    )
    retry_wait_s: float = Field(0.2, gt=0, description="First wait after a failure; doubles up to the next setting")
    retry_wait_max_s: float = Field(5.0, gt=0)
    ingest_batch_messages_max: int = Field(256, ge=1)
    ingest_pending_messages_max: int = Field(2000, ge=1)
    ingest_ack_wait_s: int = Field(
        15, ge=3, description="What a dead agent had taken is given to another one after this; a third: how often said"
    )
    directory_users_max: int = Field(200_000, ge=1, description="Users of all orgs an agent keeps in memory")
    directory_keys_max: int = Field(100_000, ge=1, description="API keys an agent keeps in memory")
    directory_changes_max: int = Field(1_000, ge=1, description="More changes at once: everything is read again")
    directory_reread_s: float = Field(30.0, gt=0, description="How often users and keys are read as a whole")
    directory_stale_max_s: float = Field(
        90.0, gt=0, description="When users and keys were not read for so long, get_status says it; above the former"
    )
    signature_window_s: float = Field(30.0, gt=0, description="How far the time of a signed request may be from now")
    signature_nonces_max: int = Field(100_000, ge=1, description="Signed requests remembered for twice that long")
    access_tidy_interval_s: float = Field(
        30.0, gt=0, description="How often the use of API keys is noted and old nonces are removed"
    )
    access_tidy_nonces_max: int = Field(10_000, ge=1, description="Old nonces removed each time")
    count_workers: int = Field(
        1, ge=1, le=64, description="Processes that count tokens; of several one takes large texts"
    )
    count_queue_jobs_max: int = Field(
        4_096, ge=1, description="Texts that may wait to be counted; others are estimated"
    )
    count_queue_bytes_max: int = Field(64 * 1024**2, ge=1024, description="Bytes of texts that may wait to be counted")
    count_deadline_s: float = Field(2.0, gt=0, description="What is not counted by then is estimated")
    count_start_s: float = Field(30.0, gt=0, description="How long a start waits for vocabularies")
    schedule_interval_s: float = Field(1.0, gt=0, description="How often schedules that are due are looked for")
    schedule_batch_max: int = Field(20, ge=1, description="Schedules run each time, one after the other")
    default_policies_file: Path | None = Field(
        None, description="YAML policies (docs/policies.md) that a new org begins with; unset: none"
    )
    price_rules_file: Path | None = Field(
        None, description="YAML or JSON list of price rules (docs/pricing.md) for every org of this agent; unset: none"
    )
    prices_refresh: Literal["off", "file", "url"] = Field(
        "off", description="Where refresh_prices reads public list prices: prices_file, prices_url, or nowhere"
    )
    prices_file: Path | None = Field(None, description="A price file in genai-prices' format (data.json, version 2)")
    prices_url: str | None = Field(None, description="The same on a mirror; redirects are not followed")
    prices_bytes_max: int = Field(16 * 1024**2, ge=1024, description="The largest price file that is read, unpacked")
    prices_timeout_s: float = Field(20.0, gt=0, description="Reading a price file altogether")
    prices_interval_s: float = Field(
        0.0,
        ge=0,
        description="How often prices are refreshed by themselves, unless they are suspicious; 0: on request only",
    )
    exchange_seed_days: int = Field(
        1_100, ge=0, description="Days of the bundled exchange rates that a new database begins with; 0: none"
    )
    exchange_rates_file: Path | None = Field(
        None, description="A CSV table of the European Central Bank (or its zip) with rates for every org; unset: none"
    )
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _refreshable(self) -> Self:
        """Where prices come from must be said together with that they do."""
        if self.prices_refresh == "file" and self.prices_file is None:
            raise ValueError("prices_refresh is file: set prices_file")
        if self.prices_refresh == "url":
            if self.prices_url is None:
                raise ValueError("prices_refresh is url: set prices_url")
            try:
                shown_url(self.prices_url)
            except ValueError as error:
                raise ValueError(f"prices_url {error}") from None
        return self

    def roles_of(self, org: str, user: str | None) -> frozenset[str]:
        """What a caller may do."""
        named = self.roles.get(f"{org}/{user}") if user is not None else None
        roles = named if named is not None else self.default_roles or ()
        return frozenset(role for role in roles if role in ROLES)
