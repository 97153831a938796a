"""The HTTP routes. Every one of them is a request on the bus; no decision is made here.

All callers share the identity with which this side car is connected, so it listens on the loopback interface only.
"""

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.types import ControllerRouterHandler

from web.bus import Answer, Bus, failure
from web.guard import check_origin
from web.metrics import render

BODY_BYTES_MAX = 1_000_000
READY_TIMEOUT_S = 2.0
SIGNAL = re.compile(r"[a-z_]{1,64}")
CODES = {403: "forbidden", 404: "not_found", 413: "too_large", 500: "internal", 503: "unavailable"}
SAFE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Token Manager</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem}
pre{background:#8881;padding:.8rem;overflow:auto}</style>
<h1>Token Manager</h1>
<p>Knows and limits what LLM calls cost. This is its HTTP side car: it passes requests on to the agent
on the NATS bus.</p>
<ul><li><a href="healthz">healthz</a>: this process is alive
<li><a href="readyz">readyz</a>: the agent answers
<li><a href="metrics">metrics</a>: the agent's status for Prometheus</ul>
<p>Every signal is a POST to <code>/v1/&lt;signal&gt;</code> with a JSON body:</p>
<pre>curl -X POST ADDRESS/v1/describe -H 'Content-Type: application/json' -d '{}'</pre>
</html>
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the side car needs to know. `hosts` are accepted Host names besides loopback; times are in seconds."""

    nats_url: str
    hosts: frozenset[str] = frozenset()
    timeout_s: float = 10.0


@get("/", media_type="text/html", sync_to_thread=False)
def index(request: Request[object, object, State]) -> str:
    """Say what this is."""
    return PAGE.replace("ADDRESS", f"{request.url.scheme}://{request.url.netloc}")


@get("/healthz", sync_to_thread=False)
def healthz() -> dict[str, str]:
    """Say that this process is alive."""
    return {"status": "alive"}


@get("/readyz")
async def readyz(state: State) -> Response[bytes]:
    """Say whether the agent answers on the bus; 503 if not."""
    return _respond(await _bus(state).call("get_status", b"{}", timeout_s=READY_TIMEOUT_S))


@get("/metrics")
async def metrics(state: State) -> Response[bytes]:
    """Give the agent's status as Prometheus text; `token_manager_up` is 0 when it does not answer."""
    answer = await _bus(state).call("get_status", b"{}", timeout_s=READY_TIMEOUT_S)
    status = msgspec.json.decode(answer.body) if answer.status == 200 else None
    return Response(render(status), media_type="text/plain; version=0.0.4; charset=utf-8")


@post("/v1/{signal:str}", request_max_body_size=BODY_BYTES_MAX)
async def call(request: Request[object, object, State], state: State) -> Response[bytes]:
    """Pass the body on as request `token.<signal>`; the answer's error code becomes the HTTP status."""
    signal = str(request.path_params["signal"])
    if not SIGNAL.fullmatch(signal):
        return _respond(failure(404, "not_found", "a signal's name has the letters a-z and _ only"))
    return _respond(await _bus(state).call(signal, await request.body() or b"{}"))


def create_app(settings: Settings) -> Litestar:
    """Return the ASGI application; it connects to the bus when it starts."""
    bus = Bus(settings.nats_url, timeout_s=settings.timeout_s)

    @asynccontextmanager
    async def connected(_: Litestar) -> AsyncGenerator[None]:
        await bus.open()
        try:
            yield
        finally:
            await bus.close()

    def guard(request: Request[object, object, State]) -> None:
        check_origin(request, hosts=settings.hosts)

    routes: list[ControllerRouterHandler] = [index, healthz, readyz, metrics, call]
    return Litestar(
        route_handlers=routes,
        lifespan=[connected],
        before_request=guard,
        state=State({"bus": bus}),
        exception_handlers={HTTPException: _refuse},
        response_headers=SAFE_HEADERS,
        openapi_config=None,
    )


def _bus(state: State) -> Bus:
    bus = state["bus"]
    assert isinstance(bus, Bus)
    return bus


def _respond(answer: Answer) -> Response[bytes]:
    return Response(answer.body, status_code=answer.status, media_type="application/json")


def _refuse(_: Request[object, object, State], error: HTTPException) -> Response[bytes]:
    code = CODES.get(error.status_code, "invalid_request")
    return _respond(failure(error.status_code, code, error.detail))
