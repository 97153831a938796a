"""``python -m agent nats-config``: the server's configuration for the users that the agents know.

So the server itself refuses what a role may not send, before an agent hears of it. Users are known by their public
NKeys; one without a key, or not active, is left out. The agents decide all the same: this is a second wall.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any, Final

import asyncpg

from agent.settings import Settings
from schemas.subjects import DEFAULT_ORG, request_subject
from signals.registry import REQUESTS
from store import users as user_store
from store.pool import UNAVAILABLE
from store.users import UserRow

USERS_MAX: Final = 1_000_000
CONNECT_S: Final = 10.0
_ORG: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TAKEN: Final = ("TM", "SYS")

CONFIG: Final = Template("""\
# Written by `python -m agent nats-config` from the users table: write it anew when users change, and reload the server.
# Passwords come from the environment (letters first, then letters and digits: the value is read as configuration).
listen: "0.0.0.0:4222"
http: "127.0.0.1:8222"
server_name: tm-nats-1
max_payload: 1MB
feature_flags { js_ack_fc_v2: false }

jetstream {
  store_dir: "/data/jetstream"
  max_mem: 256MB
  max_file: 64GB
  sync_interval: always  # an acknowledged message is on the disk
}

accounts {
  SYS: { users: [ {user: sys, password: $$TM_NATS_SYSTEM_PASSWORD} ] }

  TM: {
    jetstream: enabled
    users: [ {user: agent, password: $$TM_NATS_AGENT_PASSWORD} ]
    exports: [
      {service: "tm.req.*.>", account_token_position: 3, response_type: Singleton}
      {service: "tm.ingest.*.>", account_token_position: 3}
      {stream: "tm.evt.*.>", account_token_position: 3}
      {service: "$$SRV.>", response_type: Stream}
    ]
  }

$orgs}

system_account: SYS
""")

ORG: Final = Template("""\
  $org: {
    imports: [
      {service: {account: TM, subject: "tm.req.$org.>"}, to: "token.>", share: true}
      {service: {account: TM, subject: "tm.ingest.$org.>"}, to: "usage.>", share: true}
      {stream: {account: TM, subject: "tm.evt.$org.>"}, to: "token.evt.>"}
      {service: {account: TM, subject: "$$SRV.>"}}
    ]
    users: [
$users    ]
  }
""")


class ConfigRefused(RuntimeError):
    """No configuration would be right; the text says why."""


def inbox_prefix(name: str) -> str:
    """Where a user receives replies, and nobody else: clients set it as their inbox prefix."""
    return f"_INBOX_{name.replace('.', '%2E')}"


def permissions(name: str, roles: frozenset[str]) -> dict[str, list[str]]:
    """What a user may publish and subscribe. Signals are listed one by one: `token.get_*` is no pattern of NATS."""
    publish = [request_subject(signal.name) for signal in REQUESTS if signal.allows(roles)]
    if roles & {"provider", "admin"}:
        publish.append("usage.>")
    if "admin" in roles:
        publish.append("$SRV.>")
    subscribe = [f"{inbox_prefix(name)}.>"]
    if roles - {"provider"}:
        subscribe.append("token.evt.>")
    return {"publish": publish, "subscribe": subscribe}


def render(users: Sequence[UserRow], *, org: str | None = None) -> str:
    """The whole configuration, or with ``org`` that org's account alone. Raises ConfigRefused."""
    _check(users)
    names = sorted({user.org_id for user in users} | {DEFAULT_ORG}) if org is None else [org]
    if bad := [name for name in names if not _ORG.fullmatch(name) or name in _TAKEN]:
        raise ConfigRefused(f"'{bad[0]}' cannot be an account: letters, digits, - and _, and not TM or SYS")
    orgs = {name: _org(name, [user for user in users if user.org_id == name]) for name in names}
    return orgs[org] if org is not None else CONFIG.substitute(orgs="\n".join(orgs.values()))


async def print_config(settings: Settings, *, org: str | None) -> int:
    """Print the configuration; the exit status is 1 where there is none, and the reason goes to standard error."""
    try:
        users = await _read(settings.database_url or _private_database(settings.data_dir))
        sys.stdout.write(render(users, org=org))
    except (ConfigRefused, asyncpg.PostgresError, *UNAVAILABLE) as error:
        sys.stderr.write(f"no configuration: {str(error) or type(error).__name__}\n")
        return 1
    return 0


def _check(users: Sequence[UserRow]) -> None:
    """One key in two accounts would be one of them to the server, and the other org's secrets with it."""
    owners: dict[str, UserRow] = {}
    for user in users:
        if user.public_key is None or not user.active:
            continue
        other = owners.setdefault(user.public_key, user)
        if other is not user:
            raise ConfigRefused(
                f"{user.org_id}/{user.name} and {other.org_id}/{other.name} have the same public key: find out whose "
                "it is and take it from the other"
            )


def _org(name: str, users: Sequence[UserRow]) -> str:
    return ORG.substitute(org=name, users="".join(_user(user) for user in users))


def _user(user: UserRow) -> str:
    if user.public_key is None or not user.active:
        reason = "has no public key" if user.active else "is not active"
        return f"      # {user.name} {reason}\n"
    allowed: dict[str, Any] = permissions(user.name, frozenset(user.roles))
    shown = ", ".join(f"{verb}: {json.dumps(subjects)}" for verb, subjects in allowed.items())
    line = f"{{nkey: {user.public_key}, permissions: {{{shown}}}}}"
    return f"      # {user.name}: {', '.join(user.roles) or 'no role'}\n      {line}\n"


async def _read(dsn: str) -> list[UserRow]:
    connection = await asyncpg.connect(dsn, timeout=CONNECT_S)
    try:
        found = await user_store.everyone(connection, USERS_MAX + 1)
    finally:
        await connection.close(timeout=CONNECT_S)
    if len(found) > USERS_MAX:
        raise ConfigRefused(f"there are more than {USERS_MAX} users")
    return found


def _private_database(folder: Path) -> str:
    """The database of an agent that runs with private servers, as it wrote it."""
    try:
        return json.loads((folder / "runtime.json").read_text(encoding="utf-8"))["database_url"]
    except (OSError, ValueError, KeyError) as error:
        text = f"set TOKEN_MANAGER_DATABASE_URL, or name the data folder of a running agent (none in {folder})"
        raise ConfigRefused(text) from error
