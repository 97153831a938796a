"""The load generator: a process of its own, one core, direct subscriptions. ``python -m bench.load SPEC`` prints JSON.

Closed loop: `outstanding` requests are always on their way. Open loop: requests leave by the clock at `rate`, and a
latency counts from when its request was due, so a slow service cannot slow its own measurement.
"""

import asyncio
import contextlib
import itertools
import sys
import time
from collections.abc import Callable
from typing import Literal

import msgspec
import uvloop

from agent.bus.client import BusClient, connect
from agent.bus.settings import BusSettings
from bench.payloads import Call, maker
from bench.ticker import Ticker

REST_S = 10.0
LATENCIES_MAX = 2_000_000
TICK_MIN_S = 0.0002
BESIDE_S = 1.0
"""How much time before and after a turn is compared."""


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to send. Either `seconds` or `count` bounds it; `rate` 0 is a closed loop."""

    url: str
    subject: str
    kind: Literal["check", "track", "applied", "batch", "echo", "publish", "raw"]
    run: str
    outstanding: int = 1
    rate: float = 0.0
    seconds: float = 0.0
    count: int = 0
    warmup_s: float = 0.0
    size: int = 1
    """Events per message of kind `batch`, bytes per message of kind `raw`."""
    call: Call | None = None
    """Who calls, for kinds `check` and `track`; none: the hot tree's one user."""
    turn_at: float = 0.0
    """A wall-clock time whose neighbourhood is told apart; 0: none."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What was answered in BESIDE_S seconds on one side of a turn."""

    per_s: float
    p50_ms: float
    p99_ms: float
    worst_ms: float


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured. `began` and `ended` are wall-clock times; `cpu_s` is this process's own."""

    answered: int
    failed: int
    problem: str
    seconds: float
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_s: float
    began: float
    ended: float
    before: Part | None = None
    after: Part | None = None


class Load:
    """One load over one connection. The reply subject of a request ends in its number's place among those open."""

    def __init__(self, client: BusClient, spec: LoadSpec) -> None:
        self._client = client
        self._spec = spec
        self._subject = spec.subject.encode()
        self._payload: Callable[[int], bytes] = maker(spec.kind, spec.run, spec.size, spec.call)
        self._prefix = client.new_inbox().encode() + b"."
        self._numbers = itertools.count()
        self._due: dict[bytes, float] = {}
        self._latencies: list[float] = []
        self._times: list[float] = []
        self._measuring = False
        self._stopped = False
        self._answered = 0
        self._failed = 0
        self._problem = ""
        self._all_answered = asyncio.Event()
        self._rested = asyncio.Event()

    async def run(self) -> LoadResult:
        """Send until the bound is reached and everything is answered."""
        reply = self._again if self._spec.rate == 0 else self._once
        self._client.subscribe_now((self._prefix + b"*").decode(), reply)
        if self._spec.count:
            self._measure()
        begin = self._closed if self._spec.rate == 0 else self._open
        sending = asyncio.ensure_future(begin())
        if not self._spec.count:
            await asyncio.sleep(self._spec.warmup_s)
            self._measure()
            await asyncio.sleep(self._spec.seconds)
            return await self._end(sending)
        await self._all_answered.wait()
        return await self._end(sending)

    def _measure(self) -> None:
        self._answered = self._failed = 0
        self._latencies.clear()
        self._times.clear()
        self._measuring = True
        self._cpu, self._began, self._began_wall = time.process_time(), time.perf_counter(), time.time()

    async def _end(self, sending: "asyncio.Future[None]") -> LoadResult:
        """Take the figures at the end of the measured time; what is still open is waited for, not counted."""
        seconds, cpu_s, wall = time.perf_counter() - self._began, time.process_time() - self._cpu, time.time()
        answered, ordered = self._answered, sorted(self._latencies)
        turn = self._spec.turn_at - self._began_wall + self._began
        self._stopped = True
        sending.cancel()
        if self._due:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._rested.wait(), REST_S)
        if self._due:
            self._failed += len(self._due)
            self._problem = self._problem or f"{len(self._due)} requests were never answered"
        return LoadResult(
            answered=answered,
            failed=self._failed,
            problem=self._problem,
            seconds=seconds,
            per_s=answered * (self._spec.size if self._spec.kind == "batch" else 1) / seconds,
            p50_ms=_at(ordered, 0.50) * 1000,
            p99_ms=_at(ordered, 0.99) * 1000,
            cpu_s=cpu_s,
            began=self._began_wall,
            ended=wall,
            before=self._part(turn - BESIDE_S) if self._spec.turn_at else None,
            after=self._part(turn) if self._spec.turn_at else None,
        )

    def _part(self, since: float) -> Part:
        """What was answered from `since` on."""
        answered = zip(self._times, self._latencies, strict=True)
        ordered = sorted(latency for at, latency in answered if since <= at < since + BESIDE_S)
        p50, p99, worst = (_at(ordered, share) * 1000 for share in (0.50, 0.99, 1.0))
        return Part(per_s=len(ordered) / BESIDE_S, p50_ms=p50, p99_ms=p99, worst_ms=worst)

    async def _closed(self) -> None:
        for _ in range(self._spec.outstanding):
            self._send(time.perf_counter())

    async def _open(self) -> None:
        rate = self._spec.rate
        started, sent = time.perf_counter(), 0
        with Ticker(max(TICK_MIN_S, 1 / rate)) as ticker:
            while not self._stopped:
                due = int((time.perf_counter() - started) * rate) + 1
                for number in range(sent, due):
                    self._send(started + number / rate)
                sent = max(sent, due)
                await ticker.tick()

    def _send(self, due: float) -> None:
        number = next(self._numbers)
        if self._spec.count and number >= self._spec.count:
            return
        token = b"%d" % number
        self._due[token] = due
        self._client.publish_now(self._subject, self._payload(number), self._prefix + token)

    def _once(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        del reply
        due = self._due.pop(subject[len(self._prefix) :], None)
        if due is None:
            return
        if headers is not None or b'"approved":false' in data or b'"error":{' in data:
            self._failed += 1
            self._problem = self._problem or (data or headers or b"").decode(errors="replace")[:300]
        if self._measuring and len(self._latencies) < LATENCIES_MAX:
            now = time.perf_counter()
            self._latencies.append(now - due)
            if self._spec.turn_at:
                self._times.append(now)
        self._answered += 1
        if self._answered == self._spec.count:
            self._all_answered.set()
        if self._stopped and not self._due:
            self._rested.set()

    def _again(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self._once(subject, reply, data, headers)
        if not self._stopped:
            self._send(time.perf_counter())


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


async def _main(spec: LoadSpec) -> LoadResult:
    client = await connect(spec.url, settings=BusSettings(pending_bytes=64 * 1024 * 1024))
    try:
        return await Load(client, spec).run()
    finally:
        await client.close()


if __name__ == "__main__":
    result = uvloop.run(_main(msgspec.json.decode(sys.argv[1], type=LoadSpec)))
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
