"""``python -m agent`` serves until SIGTERM; ``python -m agent request SIGNAL JSON`` asks a running agent."""

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from agent import audit_file, console, finance_commands, nats_config
from agent.actor import TokenManagerAgent, WrongKey
from agent.bus.client import ConnectFailed
from agent.bus.streams import StreamConflict, StreamUnavailable
from agent.counter import CounterError
from agent.default_policies import BadPolicies
from agent.embedded import DataDir, EmbeddedServerError
from agent.logs import configure
from agent.price_rules import BadPriceRules
from agent.servers import Servers
from agent.settings import Settings
from handlers.cost.resolve import RateCards
from handlers.vault import Vault
from store.migrate import DatabaseUnreachable, MigrationError, migrate

_log = logging.getLogger("agent")
# What a person can mend: said in one line, without a traceback.
EXPLAINED = (
    CounterError,
    EmbeddedServerError,
    DatabaseUnreachable,
    MigrationError,
    StreamConflict,
    StreamUnavailable,
    ConnectFailed,
    WrongKey,
    BadPolicies,
    BadPriceRules,
)


def main() -> int:
    """Run what the command line says; the exit status."""
    options = _parse()
    if options.command == "request":
        return uvloop.run(
            console.request(options.signal, options.body, data_dir=options.data_dir, url=options.url, user=options.user)
        )
    if options.command == "audit export":
        return uvloop.run(audit_file.export(data_dir=options.data_dir, url=options.url, after_seq=options.after_seq))
    if options.command == "audit verify":
        return audit_file.verify(options.file, head=options.head)
    if options.command in finance_commands.COMMANDS:
        return finance_commands.run(options)
    settings = _settings(options)
    if options.command == "nats-config":
        return uvloop.run(nats_config.print_config(settings, org=options.org))
    configure(settings.log_level, settings.log_format)
    try:
        uvloop.run(serve(settings))
    except EXPLAINED as error:
        sys.stderr.write(f"token-manager cannot start: {error}\n")
        return 1
    return 0


async def serve(settings: Settings) -> None:
    """Start everything, serve until SIGTERM or SIGINT, drain. Raises one of EXPLAINED where it cannot start."""
    began = time.monotonic()
    rate_cards = RateCards()
    warm = asyncio.create_task(asyncio.to_thread(rate_cards.warm))
    with DataDir(settings.data_dir) as data:
        servers = Servers(data)
        try:
            await servers.start(settings)
            await servers.start_side_car(settings)
            await migrate(servers.database_url, timeout_s=settings.connect_deadline_s)
            await warm
            await _serve(settings, servers, rate_cards, began)
        finally:
            data.remove_runtime()
            await servers.stop()


def _vault(settings: Settings, data: DataDir) -> Vault:
    """All agents of one database need the same key; alone on private servers it may live in the data folder."""
    return Vault(settings.secret_key.get_secret_value() if settings.secret_key else data.secret("master"))


async def _serve(settings: Settings, servers: Servers, rate_cards: RateCards, began: float) -> None:
    private = servers.nats is not None
    if private and settings.default_roles is None:
        settings = settings.model_copy(update={"default_roles": ("admin",)})
        _log.warning("private NATS on loopback: the anonymous local user is admin")
    agent = TokenManagerAgent(
        settings,
        nats_url=servers.agent_nats_url,
        database_url=servers.database_url,
        rate_cards=rate_cards,
        vault=_vault(settings, servers.data),
        house=servers if servers.private else None,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    await agent.start()
    _spare_collector()
    servers.data.write_runtime(
        nats_url=servers.nats_url or servers.agent_nats_url,
        http_url=servers.http_url or "",
        database_url=servers.database_url,
        pid=os.getpid(),
        instance=agent.instance,
    )
    _log.info("ready in %.2f s", time.monotonic() - began)
    console.greet(servers)
    await agent.wait()
    _log.info("draining")
    await agent.drain()


def _spare_collector() -> None:
    """What is loaded by now (prices above all) stays for good: to look through it again costs 40 ms every time."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m agent", description="The token manager agent")
    parser.add_argument("--data-dir", type=Path, help="where private servers keep their data (default: data)")
    parser.add_argument("--nats-port", type=int, help="port of the private NATS server; 0: a free one, kept")
    parser.add_argument("--http-port", type=int, help="port of the HTTP side car; 0: a free one, kept")
    parser.add_argument("--no-http", action="store_true", help="serve no HTTP")
    parser.set_defaults(command="serve")
    commands = parser.add_subparsers()
    request = commands.add_parser("request", help="send one request to a running agent and print the reply")
    request.add_argument("signal", help="for example check_budget")
    request.add_argument("body", nargs="?", default="{}", help="JSON, or - for standard input")
    request.add_argument("--as", dest="user", help="who asks: one of TOKEN_MANAGER_LOCAL_USERS of the running agent")
    _of_agent(request)
    request.set_defaults(command="request")
    audit = commands.add_parser("audit", help="export the audit trail, or check an exported file")
    _add_audit(audit.add_subparsers(required=True))
    finance_commands.add(commands)
    config = commands.add_parser("nats-config", help="print the NATS server's configuration for the known users")
    config.add_argument("--org", help="only this org's account, to be included in accounts {}")
    config.add_argument(
        "--data-dir", type=Path, default=argparse.SUPPRESS, help="of a running agent, unless a database is set"
    )
    config.set_defaults(command="nats-config")
    return parser.parse_args()


def _add_audit(commands: Any) -> None:
    export = commands.add_parser("export", help="write the trail to standard output, a line for each entry")
    export.add_argument("--after-seq", type=int, default=0, help="only what comes after this entry")
    _of_agent(export)
    export.set_defaults(command="audit export")
    verify = commands.add_parser("verify", help="check an exported file, with nothing but the file")
    verify.add_argument("file", type=Path)
    verify.add_argument("--head", help="SEQ:HASH that was written down earlier")
    verify.set_defaults(command="audit verify")


def _of_agent(command: argparse.ArgumentParser) -> None:
    """Where the agent is that a command asks."""
    command.add_argument("--data-dir", type=Path, default=Path("data"), help="the agent's data folder")
    command.add_argument("--url", help="the bus, instead of what the data folder says")


def _settings(options: argparse.Namespace) -> Settings:
    given: dict[str, Any] = {
        "data_dir": options.data_dir,
        "nats_port": options.nats_port,
        "http_port": options.http_port,
        "http_enabled": False if options.no_http else None,
    }
    return Settings(**{name: value for name, value in given.items() if value is not None})


if __name__ == "__main__":
    sys.exit(main())
