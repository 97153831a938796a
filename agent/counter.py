"""Token counting in worker processes, so that no text delays a decision: queue, deadlines, and what replaces a worker.

The agent's loop never decodes a text: it passes raw JSON on. A worker that crashes or hangs is replaced; the job it was
at is answered by an estimate with a note, the others are given to its successor.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.backoff import Backoff
from agent.counting_worker import NOTE, SMALL_BYTES_MAX, Frames, Note, Order, framed
from agent.embedded.process import LAUNCHER
from handlers.counting.count import Job, digest_of, roughly
from handlers.counting.counter import Counted
from schemas.errors import SignalError

ROOT: Final = Path(__file__).resolve().parents[1]
BUSY: Final = "counter_busy"
LATE: Final = "counter_timeout"
CRASHED: Final = "counter_crashed"
AWAY: Final = "counter_away"
_KILL_WAIT_S: Final = 5.0
_READ_BYTES: Final = 1 << 18
_log = logging.getLogger(__name__)


class CounterError(RuntimeError):
    """No worker can count: the text says why."""


@dataclass(frozen=True, kw_only=True)
class CounterSettings:
    """Bounds of counting; ``queue_bytes_max`` bounds the texts that wait."""

    workers: int = 1
    queue_jobs_max: int = 4_096
    queue_bytes_max: int = 64 * 1024**2
    deadline_s: float = 2.0
    start_s: float = 30.0
    retry_wait_s: float = 0.2
    retry_wait_max_s: float = 5.0


class _Open:
    """A job that is not answered yet."""

    __slots__ = ("answer", "begun", "digest", "job", "tries")

    def __init__(self, job: Job, answer: "asyncio.Future[Counted | None]") -> None:
        self.job = job
        self.answer = answer
        self.digest = b""
        self.begun = False
        self.tries = 0

    def settle(self, found: Counted | None) -> None:
        """Answer it, unless nobody waits any more. None: it could not be counted."""
        if not self.answer.done():
            self.answer.set_result(found)


class _WorkerProcess:
    """One process, the socket to it and the jobs it has."""

    def __init__(self) -> None:
        self.jobs: dict[int, _Open] = {}
        self.ready = False
        self.problem: str | None = None
        self.heard = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return None if self._process is None else self._process.pid

    async def open(self) -> asyncio.StreamReader:
        """Start the process. Returns what is read from it."""
        pairs = [socket.socketpair(), socket.socketpair()]
        try:
            self._process = _spawn([theirs.fileno() for _, theirs in pairs])
        finally:
            for _, theirs in pairs:
                theirs.close()
        streams = [await asyncio.open_unix_connection(sock=ours) for ours, _ in pairs]
        self._writers = [writer for _, writer in streams]
        return streams[0][0]

    def send(self, order: Order) -> None:
        """Pass an order on; to a process that is gone it does nothing."""
        large = order.job is not None and order.job.size > SMALL_BYTES_MAX
        if self._writers and not self._writers[large].is_closing():
            self._writers[large].write(framed(order))

    def kill(self) -> None:
        """End the process now; whoever reads from it hears of it."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    async def close(self) -> None:
        """End the process and take it from the process table."""
        self.kill()
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        self._writers = []
        if self._process is not None:
            await asyncio.to_thread(self._process.wait, _KILL_WAIT_S)


def _spawn(fds: list[int]) -> "subprocess.Popen[bytes]":
    """The process dies with this one: the kernel sees to it, and so does the end of its sockets."""
    before = (str(os.getpid()), str(int(signal.SIGKILL)), "-1", "-1")
    command = (sys.executable, "-m", "agent.counting_worker", *map(str, fds))
    try:
        return subprocess.Popen(
            (sys.executable, "-I", "-S", str(LAUNCHER), *before, *command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={"PATH": os.defpath, "LC_ALL": "C", "PYTHONPATH": str(ROOT)},
            pass_fds=fds,
            process_group=0,
        )
    except OSError as error:
        raise CounterError(f"cannot start a process that counts tokens: {error}") from error


class WorkerCounter:
    """A Counter over worker processes."""

    def __init__(self, settings: CounterSettings) -> None:
        self._settings = settings
        self._workers = [_WorkerProcess() for _ in range(settings.workers)]
        self._keepers: list[asyncio.Task[None]] = []
        self._started: list[asyncio.Future[None]] = []
        self._number = 0
        self._bytes = 0
        self._open = 0

    @property
    def problem(self) -> str | None:
        """Why nothing can be counted now, None where it can."""
        return None if any(w.ready for w in self._workers) else next((w.problem for w in self._workers), "is starting")

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    async def start(self) -> None:
        """Return when every worker has loaded its vocabularies. Raises CounterError where one cannot."""
        loop = asyncio.get_running_loop()
        for worker in self._workers:
            first: asyncio.Future[None] = loop.create_future()
            self._keepers.append(loop.create_task(self._keep(worker, first), name="counter"))
            self._started.append(first)
        try:
            async with asyncio.timeout(self._settings.start_s):
                await asyncio.gather(*self._started)
        except TimeoutError:
            await self.stop()
            raise CounterError(f"no token counter was ready within {self._settings.start_s:g} s") from None
        except CounterError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the workers. What is still open is answered by estimates."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, *self._started, return_exceptions=True)
        self._keepers.clear()
        for worker in self._workers:
            worker.ready, worker.problem = False, "is stopped"
            _give_up(worker)
            await worker.close()

    async def count(self, job: Job) -> Counted:
        """As ``handlers.counting.counter.Counter.count``."""
        settings, size = self._settings, job.size
        if self._open >= settings.queue_jobs_max or self._bytes + size > settings.queue_bytes_max:
            return await _estimated(job, b"", BUSY)
        worker = self._worker_for(size)
        if worker is None:
            return await _estimated(job, b"", AWAY)
        self._number += 1
        number, waiting = self._number, _Open(job, asyncio.get_running_loop().create_future())
        worker.jobs[number] = waiting
        self._open += 1
        self._bytes += size
        heard, note = worker.heard, CRASHED
        try:
            async with asyncio.timeout(settings.deadline_s):
                worker.send(Order(number, job))
                found = await waiting.answer
        except TimeoutError:
            found, note = None, LATE
            self._too_late(worker, number, heard)
        finally:
            worker.jobs.pop(number, None)
            self._open -= 1
            self._bytes -= size
        if found is not None:
            return found
        return await _estimated(job, waiting.digest, note)

    def _worker_for(self, size: int) -> _WorkerProcess | None:
        """The least busy; of several the last alone takes large texts."""
        alive = [worker for worker in self._workers if worker.problem is None]
        if len(alive) > 1:
            alive = alive[-1:] if size > SMALL_BYTES_MAX else alive[:-1]
        return min(alive, key=lambda worker: len(worker.jobs), default=None)

    def _too_late(self, worker: _WorkerProcess, number: int, heard: int) -> None:
        """A worker that has said nothing all the while hangs; otherwise it only had too much to do."""
        if worker.heard == heard and worker.ready:
            _log.error("the token counter hangs: another one takes its place")
            worker.kill()
        else:
            worker.send(Order(number))

    async def _keep(self, worker: _WorkerProcess, first: "asyncio.Future[None]") -> None:
        """Run a worker, again and again."""
        backoff = Backoff(self._settings.retry_wait_s, self._settings.retry_wait_max_s)
        while True:
            try:
                await self._serve(worker, first, backoff)
            except (CounterError, OSError) as error:
                worker.problem = str(error)
                if not first.done():
                    first.set_exception(error if isinstance(error, CounterError) else CounterError(str(error)))
                    return
            worker.ready = False
            if not first.done():
                first.set_exception(CounterError("a process that counts tokens ended while it loaded"))
                return
            _log.error("a token counter ended: another one takes its place")
            await worker.close()
            await asyncio.sleep(backoff.next_s())

    async def _serve(self, worker: _WorkerProcess, first: "asyncio.Future[None]", backoff: Backoff) -> None:
        """One life of a worker, until its socket ends."""
        reader = await worker.open()
        _again(worker)
        frames = Frames()
        while data := await reader.read(_READ_BYTES):
            for frame in frames.feed(data):
                note = NOTE.decode(frame)
                worker.heard += 1
                if note.number == 0:
                    if note.problem is not None:
                        raise CounterError(note.problem[1])
                    worker.ready, worker.problem = True, None
                    if not first.done():
                        first.set_result(None)
                else:
                    backoff.reset()
                    _note(worker.jobs.get(note.number), note)


def _note(waiting: _Open | None, note: Note) -> None:
    if waiting is None:
        return
    waiting.begun = True
    waiting.digest = note.digest or waiting.digest
    if not note.done:
        return
    if note.problem is None:
        waiting.settle(Counted(note.count, note.digest))
    elif not waiting.answer.done():
        code, message, field = note.problem
        waiting.answer.set_exception(SignalError(code, message, field=field))  # pyright: ignore[reportArgumentType]


def _again(worker: _WorkerProcess) -> None:
    """Give a new process what the former one left; what that one was at, or what was tried twice, it does not get."""
    for number, waiting in list(worker.jobs.items()):
        if waiting.begun or waiting.tries:
            waiting.settle(None)
        else:
            waiting.tries += 1
            worker.send(Order(number, waiting.job))


def _give_up(worker: _WorkerProcess) -> None:
    for waiting in worker.jobs.values():
        waiting.settle(None)


async def _estimated(job: Job, digest: bytes, note: str) -> Counted:
    """The last resort. The digest is the same as a worker's, so that a retry is known as one."""
    if not digest:
        small = job.size <= SMALL_BYTES_MAX
        digest = digest_of(job.texts) if small else await asyncio.to_thread(digest_of, job.texts)
    return Counted(roughly(job.texts, note) if job.count else None, digest)
