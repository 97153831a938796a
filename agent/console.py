"""What a person at a terminal sees: the greeting with three commands to try, and one request at a time."""

import json
import sys
from pathlib import Path
from typing import Any

from nats import errors as nats_errors
from nats.aio.client import Client

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


async def request(signal: str, body: str, *, data_dir: Path, url: str | None) -> int:
    """Send one request and print the reply; the exit status is 1 for an error reply or no reply."""
    text = sys.stdin.read() if body == "-" else body
    client = Client()
    try:
        await client.connect(url or _running(data_dir), connect_timeout=5, max_reconnect_attempts=0)
        reply = await client.request(request_subject(signal), text.encode(), timeout=TIMEOUT_S)
    except _Unreachable as error:
        return _complain(str(error))
    except nats_errors.NoRespondersError:
        return _complain(f"nobody answers {request_subject(signal)}")
    except (nats_errors.Error, OSError, TimeoutError) as error:
        return _complain(f"no reply: {type(error).__name__} {error}")
    finally:
        await client.close()
    sys.stdout.write(_pretty(reply.data) + "\n")
    return 1 if reply.headers and "Nats-Service-Error-Code" in reply.headers else 0


class _Unreachable(Exception):
    pass


def _running(data_dir: Path) -> str:
    try:
        found: dict[str, Any] = json.loads((data_dir / "runtime.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _Unreachable(f"no agent runs on {data_dir}: start one with 'make run'") from None
    return str(found["nats_url"])


def _pretty(data: bytes) -> str:
    try:
        return json.dumps(json.loads(data), indent=2, ensure_ascii=False)
    except ValueError:
        return data.decode("utf-8", "replace")


def _complain(text: str) -> int:
    sys.stderr.write(text + "\n")
    return 1


def _relative(path: Path) -> str:
    """Shorter where it lies below the current folder or the project."""
    for base in (Path.cwd(), ROOT):
        if path.is_absolute() and path.is_relative_to(base):
            return str(path.relative_to(base))
    return str(path)
