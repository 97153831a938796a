"""Runs the agent and notes, every few milliseconds of its CPU time, what it is doing.

``python -m bench.sampler OUT.json [arguments of the agent]``. Costs a few percent, where tracing every call would cost
more than half and shift the picture. Only the main thread is sampled; it is the one that serves.
"""

import json
import signal
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from agent.__main__ import main

INTERVAL_S = 0.002
TOP = 25
STDLIB = sysconfig.get_path("stdlib") + "/"
ROOT = str(Path(__file__).resolve().parents[1]) + "/"

_samples = 0
_since = 0.0
_own: Counter[str] = Counter()
_within: Counter[str] = Counter()


def sample(number: int, frame: FrameType | None) -> None:
    """Count the function that runs, and once each those that called it."""
    global _samples  # noqa: PLW0603
    del number
    if frame is None:
        return
    _samples += 1
    _own[_name(frame)] += 1
    seen: set[str] = set()
    while frame is not None:
        seen.add(_name(frame))
        frame = frame.f_back
    _within.update(seen)


def _name(frame: FrameType) -> str:
    code = frame.f_code
    return f"{_short(code.co_filename)}:{code.co_firstlineno} {code.co_qualname}"


def _short(path: str) -> str:
    """A path from the project, the installed packages or the standard library on."""
    for root in ("site-packages/", ROOT, STDLIB):
        if root in path:
            return path.rpartition(root)[2]
    return path


def reset(number: int, frame: FrameType | None) -> None:
    """Forget the samples so far: what comes now is what is wanted (SIGUSR1)."""
    global _samples, _since
    del number, frame
    _samples, _since = 0, time.process_time()
    _own.clear()
    _within.clear()


def run(out: Path) -> int:
    """Serve as `python -m agent` would, then write the counts."""
    signal.signal(signal.SIGPROF, sample)
    signal.signal(signal.SIGUSR1, reset)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)
    try:
        return main()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        top = {"own": _own.most_common(TOP * 2), "within": _within.most_common(TOP * 2)}
        out.write_text(json.dumps({"samples": _samples, "cpu_s": time.process_time() - _since, **top}))


if __name__ == "__main__":
    target = Path(sys.argv.pop(1))
    sys.exit(run(target))
