"""`python -m web --nats-url U --port P`: serve HTTP until SIGTERM."""

import argparse
import os

import uvicorn

from web.app import Settings, create_app

STOP_S = 5


def main() -> None:
    """Read the options and serve."""
    options = parse()
    settings = Settings(
        nats_url=options.nats_url,
        hosts=frozenset(name.lower() for name in options.allow_host),
        timeout_s=options.timeout_s,
    )
    uvicorn.run(
        create_app(settings),
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_S,
        ws="none",
    )


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m web", description="HTTP side car of the token manager agent")
    parser.add_argument(
        "--nats-url", default=os.environ.get("TOKEN_MANAGER_NATS_URL", "nats://127.0.0.1:4222"), help="the bus"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; there is no login, so keep it local")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="accept this Host name besides loopback"
    )
    parser.add_argument("--timeout-s", type=float, default=10.0, help="longest wait for an answer from the bus")
    return parser.parse_args()


if __name__ == "__main__":
    main()
