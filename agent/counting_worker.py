"""The process that counts tokens: ``python -m agent.counting_worker FD FD``. Owns vocabularies; touches no network.

Jobs come as frames on two sockets, one for large jobs, so that no small one waits for their bytes; results go back on
the first. Small jobs come first; of large ones a piece is counted now and then, so neither holds up the other. When
the agent is gone, its end of the sockets is closed and this process ends.
"""

import os
import resource
import select
import sys
from collections import deque
from typing import Final

import msgspec

from handlers.counting.count import Job, Steps, roughly, steps
from handlers.counting.vocabulary import CorruptRanks, Vocabularies
from schemas.errors import SignalError
from schemas.tokens import TokenCount

SMALL_BYTES_MAX: Final = 65_536
SMALL_STEPS_MAX: Final = 8
MEMORY_BYTES_MAX: Final = 4 * 1024**3
# Where processors are short, decisions and the ledger come before counts.
NICE: Final = 10
_RECEIVE_BYTES: Final = 1 << 20
_LENGTH_BYTES: Final = 4


class Order(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A job on its way to the worker; without one: it is wanted no more."""

    number: int
    job: Job | None = None


class Note(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the worker says of a job. Without ``done`` it has only begun. Number 0: the worker itself is ready or not.

    ``problem`` is what is wrong with the texts (code, message, field), or with the worker.
    """

    number: int
    done: bool
    digest: bytes = b""
    count: TokenCount | None = None
    problem: tuple[str, str, str | None] | None = None


ORDER: Final = msgspec.msgpack.Decoder(Order)
NOTE: Final = msgspec.msgpack.Decoder(Note)
_ENCODE: Final = msgspec.msgpack.Encoder().encode


def framed(message: Order | Note) -> bytes:
    """A message with its length before it."""
    data = _ENCODE(message)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


class Frames:
    """Cuts what is received into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete now."""
        self._buffer += data
        found: list[bytes] = []
        at = 0
        while len(self._buffer) - at >= _LENGTH_BYTES:
            end = at + _LENGTH_BYTES + int.from_bytes(self._buffer[at : at + _LENGTH_BYTES], "big")
            if len(self._buffer) < end:
                break
            found.append(bytes(self._buffer[at + _LENGTH_BYTES : end]))
            at = end
        del self._buffer[:at]
        return found


class _Task:
    """A job that is being counted."""

    def __init__(self, number: int, job: Job, vocabularies: Vocabularies) -> None:
        self.number = number
        self.job = job
        self.small = job.size <= SMALL_BYTES_MAX
        self.digest = b""
        self.told = False
        self.work: Steps = steps(job, vocabularies)


class Worker:
    """Counts what it is given until the socket is closed."""

    def __init__(self, fds: tuple[int, int], vocabularies: Vocabularies) -> None:
        self._fd = fds[0]
        self._vocabularies = vocabularies
        self._frames = {fd: Frames() for fd in fds}
        self._small: deque[_Task] = deque()
        self._large: deque[_Task] = deque()
        self._small_steps = 0
        self._poll = select.poll()
        for fd in fds:
            self._poll.register(fd, select.POLLIN)

    def run(self) -> None:
        """Return when the agent is gone."""
        while self._take(wait=not (self._small or self._large)):
            task = self._next()
            if task is not None and self._step(task):
                (self._small if task.small else self._large).append(task)

    def _take(self, *, wait: bool) -> bool:
        """Receive what is there, of each socket a little; False: the agent is gone."""
        for fd, _ in self._poll.poll(None if wait else 0):
            data = os.read(fd, _RECEIVE_BYTES)
            if not data:
                return False
            for frame in self._frames[fd].feed(data):
                self._order(ORDER.decode(frame))
        return True

    def _order(self, order: Order) -> None:
        if order.job is None:
            for lane in (self._small, self._large):
                for task in [t for t in lane if t.number == order.number]:
                    lane.remove(task)
            return
        task = _Task(order.number, order.job, self._vocabularies)
        (self._small if task.small else self._large).append(task)

    def _next(self) -> _Task | None:
        """Small jobs first, but of large ones a piece after every few."""
        if self._small and (not self._large or self._small_steps < SMALL_STEPS_MAX):
            self._small_steps += 1
            return self._small.popleft()
        self._small_steps = 0
        return self._large.popleft() if self._large else None

    def _step(self, task: _Task) -> bool:
        """Count a piece; whether there is more. Whatever a text does to a vocabulary costs that job only."""
        if not task.small and not task.told:
            # Should this job end the process, it is known which one it was.
            task.told = True
            self._say(Note(task.number, done=False))
        try:
            found = next(task.work)
        except StopIteration as end:
            self._say(Note(task.number, done=True, digest=task.digest, count=end.value))
        except SignalError as error:
            self._say(Note(task.number, done=True, problem=(error.code, error.message, error.field)))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # A panic of the vocabulary's library derives from it.
            self._say(
                Note(task.number, done=True, digest=task.digest, count=roughly(task.job.texts, "counting_failed"))
            )
        else:
            if found is not None:
                task.digest = found
                if not task.small:
                    self._say(Note(task.number, done=False, digest=found))
            return True
        return False

    def _say(self, note: Note) -> None:
        data = memoryview(framed(note))
        while data:
            data = data[os.write(self._fd, data) :]


def main() -> int:
    """Load, say that it is ready, count."""
    fd, large_fd = int(sys.argv[1]), int(sys.argv[2])
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    vocabularies = Vocabularies()
    worker = Worker((fd, large_fd), vocabularies)
    try:
        vocabularies.load()
    except CorruptRanks as error:
        os.write(fd, framed(Note(0, done=True, problem=("corrupt", str(error), None))))
        return 1
    os.write(fd, framed(Note(0, done=True)))
    try:
        worker.run()
    except (BrokenPipeError, ConnectionResetError):
        pass  # The agent is gone.
    return 0


if __name__ == "__main__":
    sys.exit(main())
