"""What a person at a terminal sees: the greeting with three commands to try, and one request at a time."""

import contextlib
import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from agent.embedded.nats import secret_of
from agent.servers import ROOT, Servers
from schemas.subjects import request_subject

TIMEOUT_S = 30.0


def greet(servers: Servers) -> None:
    """Say where everything is and what to try."""
    python = _relative(Path(sys.executable))
    folder = _relative(servers.data.path)
    option = "" if folder == "data" else f" --data-dir {folder}"
    ask = f"{python} -m agent request"
    budget = '{"name":"research","type":"team","entity_id":"t1","limit":"500"}'
    check = '{"provider":"openai","model":"gpt-4o","prompt_tokens":1200,"max_completion_tokens":400,"team_id":"t1"}'
    usage = (
        '{"provider":"openai","model":"gpt-4o","prompt_tokens":1200,"completion_tokens":150,'
        '"team_id":"t1","ack":"applied"}'
    )
    lines = ["", "token-manager is ready", f"  NATS  {servers.nats_url or 'as configured'}"]
    if servers.http_url:
        lines.append(f"  HTTP  {servers.http_url}")
    lines += [
        f"  data  {servers.data.path}",
        "",
        "try, from another terminal:",
        f"  {ask} create_budget '{budget}'{option}",
        f"  {ask} check_budget '{check}'{option}",
        f"  {ask} track_usage '{usage}'{option}",
        "",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


async def request(signal: str, body: str, *, data_dir: Path, url: str | None, user: str | None = None) -> int:
    """Send one request and print the reply; the exit status is 1 for an error reply or no reply.

    ``user`` is a local user of the private NATS server; None: the anonymous one, or whoever ``url`` names.
    """
    text = sys.stdin.read() if body == "-" else body
    try:
        async with asking(data_dir, url, user=user) as ask:
            reply = await ask(signal, text.encode())
    except Unanswered as error:
        return complain(str(error))
    sys.stdout.write(_pretty(reply.data) + "\n")
    return 1 if reply.headers and "Nats-Service-Error-Code" in reply.headers else 0


class Unanswered(Exception):
    """There is no reply; the text says why, fit for a person."""


@contextlib.asynccontextmanager
async def asking(
    data_dir: Path, url: str | None, *, user: str | None = None
) -> AsyncGenerator[Callable[[str, bytes], Awaitable[Msg]]]:
    """A way to ask the agent at ``url``, or the one that runs on ``data_dir``, as ``user``. Raises Unanswered."""
    client = Client()

    async def ask(signal: str, body: bytes) -> Msg:
        try:
            return await client.request(request_subject(signal), body, timeout=TIMEOUT_S)
        except nats_errors.NoRespondersError:
            raise Unanswered(f"nobody answers {request_subject(signal)}") from None
        except (nats_errors.Error, OSError, TimeoutError) as error:
            raise Unanswered(f"no reply: {type(error).__name__} {error}") from None

    try:
        await client.connect(url or _running(data_dir, user), connect_timeout=5, max_reconnect_attempts=0)
    except (nats_errors.Error, OSError, TimeoutError) as error:
        await client.close()
        raise Unanswered(f"no reply: {type(error).__name__} {error}") from None
    try:
        yield ask
    finally:
        await client.close()


def _running(data_dir: Path, user: str | None) -> str:
    try:
        found: dict[str, Any] = json.loads((data_dir / "runtime.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unanswered(f"no agent runs on {data_dir}: start one with 'make run'") from None
    return str(found["nats_url"]) if user is None else _as(user, str(found["nats_url"]), data_dir)


def _as(user: str, url: str, data_dir: Path) -> str:
    """The URL of a local user of the agent that runs on ``data_dir``."""
    host = url.partition("://")[2]
    try:
        password = (data_dir / f"{secret_of(user)}.password").read_text(encoding="utf-8").strip()
    except OSError:
        raise Unanswered(f"'{user}' is not one of TOKEN_MANAGER_LOCAL_USERS of the agent on {data_dir}") from None
    return f"nats://{user}:{password}@{host}"


def _pretty(data: bytes) -> str:
    try:
        return json.dumps(json.loads(data), indent=2, ensure_ascii=False)
    except ValueError:
        return data.decode("utf-8", "replace")


def complain(text: str) -> int:
    """Say what went wrong; the exit status for it."""
    sys.stderr.write(text + "\n")
    return 1


def _relative(path: Path) -> str:
    """Shorter where it lies below the current folder or the project."""
    for base in (Path.cwd(), ROOT):
        if path.is_absolute() and path.is_relative_to(base):
            return str(path.relative_to(base))
    return str(path)
