"""Private servers for `make run` and for tests: NATS and PostgreSQL in one data folder, gone when the agent is gone."""

from agent.embedded.data_dir import DataDir
from agent.embedded.errors import EmbeddedServerError
from agent.embedded.nats import AccountSpec, EmbeddedNats, UserSpec
from agent.embedded.postgres import EmbeddedPostgres
from agent.embedded.process import keep_running

__all__ = [
    "AccountSpec",
    "DataDir",
    "EmbeddedNats",
    "EmbeddedPostgres",
    "EmbeddedServerError",
    "UserSpec",
    "keep_running",
]
