"""Measure the service beside its references, in one run on one machine, and print a Markdown section.

``--write`` puts it into docs/benchmarks.md; ``--profile`` shows where the time of the agent goes instead.
"""

import argparse
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from bench import budgets, counting, ingest, latency, pricing, reserve, startup
from bench.figures import machine
from bench.profile import profile
from bench.replay.service import ROOT
from bench.sizes import FULL, QUICK, Sizes
from bench.stand import BenchError, temporary_folder

NUMBERS = {
    1: latency.measure,
    2: reserve.measure,
    4: ingest.measure,
    8: startup.measure,
    10: budgets.measure,
    11: pricing.measure,
    12: counting.measure,
}
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
TITLE = "# Benchmarks\n\nWhat `make bench ARGS=--write` measured last; it replaces everything between the markers.\n"


def main() -> int:
    """Measure what the command line asks for; the exit status."""
    options = _parse()
    sizes = QUICK if options.quick else FULL
    try:
        with temporary_folder(options.folder) as folder:
            text = uvloop.run(_measure(options, sizes, Path(folder)))
    except BenchError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    sys.stdout.write(text + "\n")
    if options.write:
        _write(text)
    return 0


async def _measure(options: argparse.Namespace, sizes: Sizes, folder: Path) -> str:
    began = time.monotonic()
    numbers: list[int] = options.only or list(NUMBERS)
    if options.profile:
        return await profile(folder, sizes, set(options.only or (2, 4)))
    sections: list[str] = []
    for number in numbers:
        sys.stderr.write(f"measuring number {number} ...\n")
        (folder / str(number)).mkdir()
        sections.append(await NUMBERS[number](folder / str(number), sizes))
    took = f"{time.monotonic() - began:.0f} s"
    return "\n\n".join((_heading(sizes, folder, took), *sections))


def _heading(sizes: Sizes, folder: Path, took: str) -> str:
    command = shlex.join(("python", "-m", "bench", *sys.argv[1:]))
    return (
        f"## Measured on {datetime.now(UTC):%Y-%m-%d}\n\n`{command}` in {took}; medians of {sizes.runs} runs of"
        f" {sizes.seconds:g} s, references measured in the same run.\n\nMachine: {machine(folder)}."
    )


def _write(text: str) -> None:
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else f"{TITLE}\n{BEGIN}\n{END}\n"
    before, found, rest = page.partition(BEGIN)
    if not found or END not in rest:
        before, rest = f"{page.rstrip()}\n\n", f"{END}\n"
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", type=_numbers, metavar="1,2,4,8,10,11,12", help="which numbers; default: all")
    parser.add_argument("--quick", action="store_true", help="short runs: rougher figures, less than two minutes")
    parser.add_argument("--write", action="store_true", help="put the section into docs/benchmarks.md")
    parser.add_argument("--profile", action="store_true", help="where the agent's time goes, for numbers 2 and 4")
    parser.add_argument("--folder", type=Path, help="where servers keep their data; decides what fsync costs")
    options = parser.parse_args()
    if options.profile and options.write:
        parser.error("--write is for measurements, not for a profile")
    return options


def _numbers(text: str) -> list[int]:
    numbers = [int(word) for word in text.split(",")]
    unknown = [number for number in numbers if number not in NUMBERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no number {unknown[0]}; there are {', '.join(map(str, NUMBERS))}")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
